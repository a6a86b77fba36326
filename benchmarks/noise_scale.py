"""How well is the noise of a measurement estimated, from recordings whose structures are not known?

    python benchmarks/noise_scale.py [--smoke]

Springs and charged particles, 20 scenes of 49 frames, the models in data/models: the estimate of each state variable
over the truth. Five recorded particles, noise of 0.001, 0.01 and 0.05; springs also with a fifth that is hidden, which
is asked for or, as a negative control, not. Out: results/noise_scale.csv.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.noise_scale import estimate_noise
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parent.parent / "data" / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short recording, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = {"num_scenes": 1, "num_frames": 6} if arguments.smoke else {"num_scenes": 20, "num_frames": 49}
    settings = [(system, noise, 0, 0) for system in ("springs", "charged") for noise in (0.05, 0.01, 0.001)]
    settings += [("springs", noise, 1, asked) for noise in (0.01, 0.001) for asked in (1, 0)]
    rows = []
    for system, noise, num_hidden, asked in settings[1:2] if arguments.smoke else settings:
        whole = simulate(system, **size, measurement_noise=noise, seed=21)
        recorded = whole.trajectory[:, :, : whole.num_entities - num_hidden]
        scenes = Scenes.from_arrays(recorded, time_step=whole.time_step, state_names=whole.state_names)
        started = time.monotonic()
        found = estimate_noise(load_checkpoint(MODELS / f"{system}5.pt").model, scenes, asked, seed=0)
        row = {"system": system, "noise": noise, "num_hidden": num_hidden, "num_hidden_asked": asked}
        row |= dict(zip(scenes.state_names, (found / noise).tolist(), strict=True))
        rows.append({**row, "seconds": time.monotonic() - started})
        print(rows[-1], flush=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("noise_scale_smoke.csv" if arguments.smoke else "noise_scale.csv")
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
