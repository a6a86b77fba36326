"""Why two rows of the paper's tables stand in another order here: the joint LSTM, and the correlation of LSTM states.

    python benchmarks/rival_orders.py [--smoke]

Springs, 1,000 training scenes. Both forms of the LSTM after the same 300 steps: scaled squared error after one step on
200 of their own training scenes and on 200 others. Edges that are right by a threshold, fitted on training scenes, on
the distance between two particles in the last of 49 frames. Out: results/rival_orders.csv.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.baselines.correlation import fit_threshold
from pyro_nri.baselines.lstm import fit_lstm
from pyro_nri.rivals import score_method
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

START = 49


def nearness(scenes: Scenes) -> Tensor:
    """Minus the distance between the ends of each edge in the last frame that structures are read from, ``[B, E]``."""
    position = scenes.trajectory[:, START - 1, :, :2].double()
    sender, receiver = edges.senders(scenes.num_entities), edges.receivers(scenes.num_entities)
    return -(position[:, sender] - position[:, receiver]).norm(dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    num_train, num_test, num_steps = (4, 4, 2) if arguments.smoke else (1000, 200, 300)
    whole = simulate("springs", num_train, num_frames=START + 2, seed=1)
    train, test = whole.frames(0, START), simulate("springs", num_test, num_frames=START + 2, seed=0)
    rows = []
    for form in ("single", "joint"):
        lstm = fit_lstm(train, form=form, num_steps=num_steps, seed=0)
        for name, scenes in (("training", whole[:num_test]), ("others", test)):
            error = score_method(lstm, train, scenes, start=START, steps=(1,))["mse_1"]
            rows.append({"what": f"LSTM, {form}, error after 1 step", "scenes": name, "value": error})
            print(rows[-1], flush=True)
    threshold, share = fit_threshold(nearness(whole).flatten(), whole.edge_type.flatten(), 2)
    found = share.argmax(-1)[(nearness(test) > threshold).long()]
    right = float((found == test.edge_type).double().mean())
    rows.append({"what": "distance in the last frame, edges right", "scenes": "others", "value": right})
    print(rows[-1])
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("rival_orders_smoke.csv" if arguments.smoke else "rival_orders.csv")
    pd.DataFrame(rows).to_csv(path, index=False, float_format="%.4g")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
