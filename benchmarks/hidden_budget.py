"""What a hidden particle costs: evaluations and seconds against accuracy.

    python benchmarks/hidden_budget.py [--smoke] [--num-scenes 20] [--systems springs charged] [--seed 0]

Scenes of NRI's protocol, 49 frames, the models of ``data/models``; 4 recorded particles and a hidden one with true
edges, and 5 recorded and a hidden one with unknown edges; of springs those in which the hidden one pulls on something.
``find_hidden`` with so many guesses from what motion leaves unexplained, and from prior draws alone (as the paper
starts), then ``infer_hidden`` with 4 chains. An evaluation is a path of the hidden particle over all frames (over part
of them, that part), with what it does to the others; where forces change fast, frames predicted from those before count
as so much of a path. ``found``: scenes with a mean squared error below 1e-6, scaled
units. ``edges_recorded``, ``edges_hidden``: edges among recorded particles, and of the hidden one, that are right.
``ess``: effective draws of the first state of the hidden particle, mean over its variables, median over scenes.

Out: benchmarks/results/hidden_budget.csv. 20 scenes: springs about 10 minutes on one core, charged an hour.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.hidden_find import find_hidden
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.model.hidden_motion import HiddenMotion
from pyro_nri.posterior.align import apply_alignment
from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parent.parent / "data" / "models"
SYSTEMS = ("springs", "charged")
#: Guesses and prior starts of a search.
SEARCHES = ((0, 4), (0, 16), (1, 0), (2, 0), (8, 4), (16, 4))
#: Draws of each chain, half as many for warm-up.
DRAWS = (50, 250)


@contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Counts frames of hidden particles: of paths that run free, and of predictions of frames from those before."""
    count, run, predict = {"frames": 0.0}, HiddenLikelihood.path, HiddenMotion.predict

    def path(self: HiddenLikelihood, hidden_state: torch.Tensor, into_hidden: torch.Tensor) -> Any:
        found = run(self, hidden_state, into_hidden)
        count["frames"] += found.state.shape[:-3].numel() * self.target.shape[1]
        return found

    def predicted(self: HiddenMotion, path: torch.Tensor) -> Any:
        count["frames"] += path.shape[:-2].numel()
        return predict(self, path)

    HiddenLikelihood.path, HiddenMotion.predict = path, predicted  # type: ignore[method-assign]
    try:
        yield count
    finally:
        HiddenLikelihood.path, HiddenMotion.predict = run, predict  # type: ignore[method-assign]


def scenes_of(system: str, setting: str, number: int, seed: int, num_frames: int) -> Scenes:
    """Whole scenes, hidden particle last."""
    size = 5 if setting == "edges given" else 6
    every = simulate(system, 2 * number, num_entities=size, num_frames=num_frames, seed=1000 + seed)
    assert every.edge_type is not None
    pulls = edges.to_matrix(every.edge_type)[:, -1, :-1].sum(-1) > 0
    if system == "charged":  # every charge pulls on all others
        pulls = torch.ones_like(pulls)
    return every[pulls.nonzero().squeeze(-1)[:number]]


def measure(system: str, setting: str, whole: Scenes, seed: int, searches: Any, draws: Any) -> list[dict[str, Any]]:
    """A row for each budget."""
    checkpoint = load_checkpoint(MODELS / f"{system}5.pt")
    assert whole.edge_type is not None
    scale, last = checkpoint.model.score_scale.numpy(), whole.num_entities - 1
    touches = ((edges.senders(last + 1) == last) | (edges.receivers(last + 1) == last)).numpy()
    recorded = Scenes.from_arrays(whole.trajectory[:, :, :-1], time_step=whole.time_step, scene_names=whole.scene_names)
    given = None
    if setting == "edges given":
        given = torch.as_tensor(np.argsort(checkpoint.alignment))[whole.edge_type]
    rows = []
    for method, budget in [("find", each) for each in searches] + [("infer", each) for each in draws]:
        row: dict[str, Any] = {"system": system, "setting": setting, "method": method, "num_scenes": whole.num_scenes}
        started = time.perf_counter()
        with counted() as count:
            if method == "find":
                row |= {"guesses": budget[0], "starts": budget[1]}
                found = find_hidden(
                    checkpoint.model, recorded, structure=given, num_guesses=budget[0], num_starts=budget[1], seed=seed
                )
                path, edge_type = found.path.numpy(), found.edge_type.numpy()
            else:
                row |= {"draws": budget}
                drawn = infer_hidden(
                    checkpoint.model, recorded, 1, structure=given, num_draws=budget, num_warmup=budget // 2, seed=seed
                )
                assert drawn.hidden is not None
                path = drawn.hidden.path.mean(0)
                edge_type = (drawn.edge_type == 1).mean((0, 1)).round().astype(int)
                state = drawn.hidden.state[..., 0, :]  # [C, S, B, D]
                ess = az.ess(az.convert_to_dataset({"state": state}))["state"].to_numpy()  # [B, D]
                row["ess"] = float(np.median(ess.mean(-1)))
        row["seconds"] = (time.perf_counter() - started) / whole.num_scenes
        row["evaluations"] = count["frames"] / (whole.num_scenes * (whole.num_frames - 1))
        error = (((path[:, 0] - whole.trajectory[:, :, -1].numpy()) / scale) ** 2).mean((1, 2))
        row |= {"found": (error < 1e-6).mean(), "mse_mean": error.mean(), "mse_median": np.median(error)}
        right = apply_alignment(edge_type, checkpoint.alignment) == whole.edge_type.numpy()  # [B, E]
        row |= {"edges_recorded": right[:, ~touches].mean(), "edges_hidden": right[:, touches].mean()}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two scenes, to see that it runs")
    parser.add_argument("--num-scenes", type=int, default=20)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    number, num_frames, searches, draws = arguments.num_scenes, 49, SEARCHES, DRAWS
    if arguments.smoke:
        number, num_frames, searches, draws, arguments.systems = 2, 12, SEARCHES[2:3], (4,), ["springs"]
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("hidden_budget_smoke.csv" if arguments.smoke else "hidden_budget.csv")
    before = pd.read_csv(path) if path.exists() and not arguments.smoke else pd.DataFrame({"system": []})
    rows = before[~before["system"].isin(arguments.systems)].to_dict("records")
    for system in tqdm(arguments.systems, unit="system"):
        for setting in ("edges given", "edges unknown"):
            whole = scenes_of(system, setting, number, arguments.seed, num_frames)
            rows += measure(system, setting, whole, arguments.seed, searches, draws)
            with written_beside(path) as beside:
                pd.DataFrame(rows).to_csv(beside, index=False, float_format="%.6g")
    print(pd.DataFrame(rows).round(12).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
