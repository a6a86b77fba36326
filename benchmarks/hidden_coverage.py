"""How often intervals of paths hold the true path, of seen and of hidden particles, when measurements are noisy.

    python benchmarks/hidden_coverage.py [--smoke] [--measurement-noise 0.01 0.05] [--num-scenes 120] [--out FOLDER]

Springs between five particles in NRI's protocol, 49 frames, of which four are seen with normal noise on positions and
velocities. The law is that of data/models/springs5.pt, learned without labels and without the hidden particle in mind
(its sub-steps are made longer, which moves paths by 3e-5); true edges and the noise's standard deviation are given.
Unknown are the initial states of all five. Rows: the number of links of the hidden particle, and the same intervals
under half the true noise, which must fail. An interval goes from the 5 % to the 95 % quantile of each state variable at
each frame; standard errors are over scenes. Finished settings are kept.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.noisy_chains import infer_latents
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.noisy import with_measurement_noise
from pyro_nri.scenes import edges
from pyro_nri.scenes.simulate import simulate

ROOT = Path(__file__).parent.parent
KEYS = ["measurement_noise", "assumed_noise", "num_scenes", "num_frames"]
NUM_SEEN, NUM_SUBSTEPS, SEED = 4, 2, 2000


def study(noise: float, assumed: float, num_scenes: int, num_frames: int, *, num_draws: int) -> pd.DataFrame:
    """Rows of the results for one setting."""
    started = time.perf_counter()
    checkpoint = load_checkpoint(ROOT / "data" / "models" / "springs5.pt")
    scale = torch.full((4,), assumed, dtype=torch.float64)
    model = with_measurement_noise(checkpoint.model, scale, num_hidden=1)
    model.dynamics.num_substeps = NUM_SUBSTEPS
    options = {"num_frames": num_frames, "seed": SEED}
    truth = simulate("springs", num_scenes, **options)
    recorded = simulate("springs", num_scenes, **options, measurement_noise=noise)
    seen = replace(
        recorded,
        trajectory=recorded.trajectory[:, :, :NUM_SEEN],
        observation_mask=recorded.observation_mask[:, :, :NUM_SEEN],
        entity_mask=recorded.entity_mask[:, :NUM_SEEN],
        entity_names=tuple(names[:NUM_SEEN] for names in recorded.entity_names),
        edge_type=None,
        initial_state=None,
    )
    inferred_type = torch.tensor(checkpoint.alignment).argsort()
    structure = inferred_type[truth.edge_type]
    found = infer_latents(
        model, seen, structure, seed=0, num_chains=2, num_draws=num_draws, num_warmup=25, num_starts=3
    )
    with torch.no_grad():
        path = model.path(seen, structure, model.unpack(found.value.flatten(0, 1), NUM_SEEN))  # [C * S, B, T, 5, 4]
    low, middle, high = path.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), 0)
    holds = ((low <= truth.trajectory) & (truth.trajectory <= high)).double()
    error = middle - truth.trajectory
    links = edges.to_matrix(truth.edge_type)[:, -1].sum(-1)
    rows = []
    hidden = slice(NUM_SEEN, None)
    cases = [("seen", slice(NUM_SEEN), links >= 0, "all"), ("hidden", hidden, links >= 1, "1 or more")]
    cases += [("hidden", hidden, links == number, str(number)) for number in range(NUM_SEEN + 1)]
    for particle, which, scenes, name in cases:
        if not scenes.any():
            continue
        by_scene = holds[scenes][:, :, which].mean((1, 2, 3))
        width = (high - low)[scenes][:, :, which] / 2
        squared = (error[scenes][:, :, which] / checkpoint.model.score_scale).square()
        rows.append(
            {
                "measurement_noise": noise,
                "assumed_noise": assumed,
                "num_scenes": num_scenes,
                "num_frames": num_frames,
                "particle": particle,
                "links": name,
                "scenes": int(scenes.sum()),
                "coverage": float(by_scene.mean()),
                "standard_error": pd.Series(by_scene.numpy()).sem(),
                "median_half_width": float(width.median()),
                "median_error": float(error[scenes][:, :, which].abs().median()),
                "scaled_mse": float(squared.mean()),
                "effective_share": float((found.log_marginal.effective / 200)[scenes].median()),
                "independent_rate": float(found.independent_rate[scenes].mean()),
                "langevin_rate": float(found.langevin_rate[scenes].mean()),
                "seconds": time.perf_counter() - started,
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and frames, to see that it runs")
    parser.add_argument("--measurement-noise", nargs="+", type=float, default=[0.01, 0.05])
    parser.add_argument("--num-scenes", type=int, default=120)
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    num_draws = 60
    if arguments.smoke:
        arguments.num_scenes, arguments.num_frames, num_draws = 4, 8, 10
        arguments.measurement_noise = [0.05]
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("hidden_coverage_smoke.csv" if arguments.smoke else "hidden_coverage.csv")
    settings = [(noise, noise) for noise in arguments.measurement_noise]
    settings.append((arguments.measurement_noise[-1], arguments.measurement_noise[-1] / 2))
    for noise, assumed in settings:
        rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=KEYS)
        wanted = [noise, assumed, arguments.num_scenes, arguments.num_frames]
        if (rows[KEYS] == wanted).all(axis=1).any():
            continue
        found = study(noise, assumed, arguments.num_scenes, arguments.num_frames, num_draws=num_draws)
        rows = pd.concat([rows, found], ignore_index=True) if len(rows) else found
        rows.sort_values(KEYS, kind="stable").to_csv(path, index=False, float_format="%.4g")
    print(pd.read_csv(path).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
