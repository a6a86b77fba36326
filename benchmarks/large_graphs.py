"""Springs between 20, 50 and 100 particles, mean degree 5: what the chains find, how long it takes, and what it needs.

    python benchmarks/large_graphs.py [--smoke] [--out FOLDER]

One scene of 49 frames at a time (N = 100: 24, 49 and 99 too), laws of ``data/models/springs5.pt`` (learned from five
particles) used unchanged, chains from prior draws. ``f1`` is that of the linked type at probability 0.5. "known
density": the prior knows that 5 of N - 1 are linked, else both types are equally likely. Beside it single-edge moves
for the same number of steps, and the empty graph, whose F1 is 0. Finished rows are kept: run it again to go on.
"""

import argparse
import math
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.priors import make_prior
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

#: Entities, frames, scenes, chains, warm-up steps and draws of each chain.
SIZES = ((20, 49, 4, 4, 300, 200), (50, 49, 1, 4, 300, 50), (100, 49, 1, 2, 400, 50))
LONG = ((100, 24, 1, 2, 400, 50), (100, 99, 1, 2, 400, 50))
#: Prior, whether it knows the density, moves.
CHOICES = (
    ("independent", False, "auto"),
    ("independent", False, "uniform"),
    ("independent", True, "auto"),
    ("symmetric", False, "auto"),
    ("symmetric", False, "uniform"),
)
DEGREE = 5


def run(cell: Cell) -> list[Cell]:
    """One row."""
    num_entities, num_scenes, prior, kernel = (cell[name] for name in ("entities", "scenes", "prior", "kernel"))
    checkpoint = load_checkpoint(Path(__file__).parent.parent / "data" / "models" / "springs5.pt")
    model, alignment = checkpoint.model, checkpoint.alignment
    assert alignment is not None
    linked, density = alignment.index(1), min(0.5, DEGREE / (num_entities - 1))
    model.prior = make_prior(prior, 2, learn_weights=False).double()
    if cell["known_density"]:
        model.prior.type_logits.fill_(math.log(1 - density))
        model.prior.type_logits[linked] = math.log(density)
    scenes = simulate(
        "springs", num_scenes, num_entities=num_entities, num_frames=cell["frames"], seed=5, link_probability=density
    )
    started = time.perf_counter()
    draws = infer(
        model,
        scenes,
        method="mcmc",
        proposal=kernel,
        num_chains=cell["num_chains"],
        num_warmup=cell["num_warmup"],
        num_draws=cell["num_draws"],
        seed=0,
    )
    seconds = time.perf_counter() - started
    probability = (draws.edge_type == linked).mean((0, 1))  # [G, E]
    truth, guess = scenes.edge_type.numpy() == 1, probability > 0.5
    hits = (truth & guess).sum()
    row = {
        "f1": 2 * hits / max(1, truth.sum() + guess.sum()),
        "accuracy": (truth == guess).mean(),
        "expected_accuracy": np.maximum(probability, 1 - probability).mean(),
        "accuracy_of_empty_graph": 1 - truth.mean(),
        "passed": check(to_datatree(draws, scenes)).passed,
        "seconds_per_scene": seconds / num_scenes,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }
    return [cell | row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(14, 49, 1, 4, 4, 4)] if arguments.smoke else SIZES
    cells = [(size, choice) for size in sizes for choice in CHOICES]
    cells += [] if arguments.smoke else [(size, ("independent", True, "auto")) for size in LONG]
    names = (
        "entities",
        "frames",
        "scenes",
        "num_chains",
        "num_warmup",
        "num_draws",
        "prior",
        "known_density",
        "kernel",
    )
    wanted = [dict(zip(names, size + choice, strict=True)) for size, choice in cells]
    path = arguments.out / ("large_graphs_smoke.csv" if arguments.smoke else "large_graphs.csv")
    frame = run_cells(path, wanted, run, unit="run")
    print(frame.round(3).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
