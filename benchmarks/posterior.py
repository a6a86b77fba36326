"""Tables and scores of a large posterior: seconds and memory for 10,000 scenes x 1,000 draws.

    python benchmarks/posterior.py [--smoke] [--num-scenes 10000] [--num-chains 4] [--num-draws 250] [--out FOLDER]

Scenes of five entities. Each edge has a probability of its own (a tenth of them are in doubt), from which its draws and
its truth are drawn: the posterior is calibrated and its accuracy is known. A process of its own makes the file; then
every table is made from the opened file, part by part, and scores from the file read whole. ``cpu_seconds`` are those
of the processor: on a machine that others use too, the clock says less. The memory is the largest that this process
ever had, so it grows from row to row. Accuracy: largest difference between a table's figures and
plain NumPy of the known probabilities or draws (for scores: between the share of right edges and what was drawn).
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.draws import Draws, PriorRecord
from pyro_nri.posterior.calibration import calibration
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.diagnostics import diagnostics_frame
from pyro_nri.posterior.frames import edges_frame, structures_frame, write_frame
from pyro_nri.posterior.graph_statistics import edge_counts_frame
from pyro_nri.posterior.inclusion import bayes_factors_frame
from pyro_nri.posterior.scores import score
from pyro_nri.posterior.storage import open_posterior, read_posterior, write_posterior
from pyro_nri.posterior.uncertainty import uncertainty_frame
from pyro_nri.scenes.scenes import Scenes

NUM_ENTITIES, NUM_EDGES = 5, 20
IN_DOUBT = 0.1


def known(num_scenes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probability that each edge has type 1, and its true type, ``[G, E]``."""
    rng = np.random.default_rng(0)
    shape = (num_scenes, NUM_EDGES)
    sure = (rng.random(shape) < 0.5).astype(float)
    probability = np.where(rng.random(shape) < IN_DOUBT, rng.random(shape), sure)
    return probability, (rng.random(shape) < probability).astype(np.int64)


def drawn(probability: np.ndarray, num_chains: int, num_draws: int) -> np.ndarray:
    """Draws ``[C, S, G, E]``, int8."""
    rng = np.random.default_rng(1)
    shape = (num_chains, num_draws, *probability.shape)
    return (rng.random(shape, dtype=np.float32) < probability).astype(np.int8)


def make_file(path: str, num_scenes: int, num_chains: int, num_draws: int) -> None:
    probability, truth = known(num_scenes)
    shape = (num_chains, num_draws, num_scenes)
    rng = np.random.default_rng(2)
    trajectory = rng.standard_normal((num_scenes, 2, NUM_ENTITIES, 4)).astype(np.float32)
    scenes = Scenes.from_arrays(trajectory, time_step=0.1, edge_type=truth)
    draws = Draws(
        edge_type=drawn(probability, num_chains, num_draws),
        log_joint=rng.standard_normal(shape),
        accepted=np.ones(shape, bool),
        proposed=np.ones(shape, bool),
        move_kind=np.zeros(num_draws, np.int8),
        temperature=np.ones(num_draws),
        move_names=("independent",),
        num_edge_types=2,
        group_names=scenes.group_names,
        method="mcmc",
        seed=1,
        num_evaluations=0,
        prior=PriorRecord("independent", (0.5, 0.5)),
    )
    write_posterior(to_datatree(draws, scenes, type_alignment=[0, 1]), path)


def difference(name: str, found: Any, truth: np.ndarray, edge_type: np.ndarray) -> float:
    """How far some of a table's figures are from plain NumPy."""
    count, size = edge_type.sum((0, 1), dtype=np.int64), edge_type.shape[0] * edge_type.shape[1]
    estimate = (count + 0.5) / (size + 1)
    if name == "edges":
        return float(np.abs(found.query("edge_type == 1")["probability"].to_numpy() - estimate.ravel()).max())
    if name == "edges, wide":
        return float(np.abs(found["probability_1"].to_numpy() - estimate.ravel()).max())
    if name == "Bayes factors":
        told = found.query("edge_type == 1 and bound == ''")
        return float(np.abs(told["log_bayes_factor"] - np.log(told["probability"] / (1 - told["probability"]))).max())
    if name == "uncertainty":
        wanted = np.maximum(estimate, 1 - estimate).mean(1)
        return float(np.abs(found["expected_accuracy"].to_numpy() - wanted).max())
    if name == "diagnostics":
        moving = ((count > 0) & (count < size)).sum(1)
        return float(np.abs(found["num_moving"].to_numpy() - moving).max())
    if name == "edge counts":
        mean = found["num_edges"] * found["probability"]
        return float(np.abs(mean.groupby(found["scene"], sort=False).sum().to_numpy() - count.sum(1) / size).max())
    if name in ("structures", "check"):
        return float("nan")
    right = ((estimate > 0.5) == truth).mean()
    value = (found if isinstance(found, dict) else found.scores)["edge_accuracy"]["value"]
    return float(abs(value - right))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few scenes, to see that it runs")
    parser.add_argument("--num-scenes", type=int, default=10_000)
    parser.add_argument("--num-chains", type=int, default=4)
    parser.add_argument("--num-draws", type=int, default=250, help="of each chain")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.num_scenes = 50
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "posterior.nc")
        size = (arguments.num_scenes, arguments.num_chains, arguments.num_draws)
        started = time.perf_counter()
        maker = get_context("spawn").Process(target=make_file, args=(path, *size))
        maker.start()
        maker.join()
        print(f"a file of {Path(path).stat().st_size / 2**20:,.0f} MiB, made in {time.perf_counter() - started:.0f} s")
        rows, kept = [], {}

        def measure(name: str, work: Callable[[], Any]) -> None:
            started, busy = time.perf_counter(), time.process_time()
            kept[name] = work()
            seconds, busy = time.perf_counter() - started, time.process_time() - busy
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            num_rows = len(kept[name]) if isinstance(kept[name], pd.DataFrame) else np.nan
            rows.append({"what": name, "seconds": seconds, "cpu_seconds": busy, "peak_gib": memory, "rows": num_rows})
            print(f"{name:20} {seconds:7.2f} s, {busy:7.2f} s of a core {memory:6.2f} GiB", flush=True)

        with open_posterior(path) as opened:
            measure("edges", lambda: edges_frame(opened))
            measure("edges, wide", lambda: edges_frame(opened, wide=True))
            measure("structures", lambda: structures_frame(opened))
            measure("uncertainty", lambda: uncertainty_frame(opened))
            measure("Bayes factors", lambda: bayes_factors_frame(opened))
            measure("edge counts", lambda: edge_counts_frame(opened, 1))
            measure("diagnostics", lambda: diagnostics_frame(opened))
        measure("edges to CSV", lambda: write_frame(kept["edges"], Path(folder) / "edges.csv"))
        tree = read_posterior(path)
        measure("scores", lambda: score(tree))
        measure("calibration", lambda: calibration(tree))
        measure("check", lambda: check(tree))
    probability, truth = known(arguments.num_scenes)
    edge_type = drawn(probability, *size[1:])
    frame = pd.DataFrame(rows)
    names = [name for name in frame["what"] if name != "edges to CSV"]
    found = {name: difference(name, kept[name], truth, edge_type) for name in names}
    frame["largest_difference"] = frame["what"].map(found)
    frame.insert(0, "num_scenes", arguments.num_scenes)
    frame.insert(1, "num_draws", arguments.num_chains * arguments.num_draws)
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / ("posterior_smoke.csv" if arguments.smoke else "posterior.csv")
    write_frame(frame, table)
    clock, busy = frame["seconds"].sum(), frame["cpu_seconds"].sum()
    print(f"in all {clock:.0f} s ({busy:.0f} s of a core), at most {frame['peak_gib'].max():.2f} GiB; wrote {table}")


if __name__ == "__main__":
    main()
