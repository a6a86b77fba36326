"""Springs between 20 and 50 particles, mean degree 5: what the chains find, how long it takes, and what it needs.

    python benchmarks/large_graphs.py [--smoke] [--out FOLDER]

One 49-frame scene at a time, laws of ``data/models/springs5.pt`` (learned from five particles) used unchanged, four
chains from prior draws, no annealing. ``f1`` is that of the linked type at probability 0.5. Beside it single-edge moves
for the same number of steps, and the empty graph, whose F1 is 0.
"""

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.priors import make_prior
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.scenes.simulate import simulate

#: Moves of the chains.
KERNELS = ("auto", "uniform")
#: Entities, scenes, warm-up steps and draws of each chain.
SIZES = ((20, 4, 300, 200), (50, 1, 1000, 300))


def run(num_entities: int, num_scenes: int, num_warmup: int, num_draws: int, prior: str, kernel: str) -> dict[str, Any]:
    """One row."""
    checkpoint = load_checkpoint(Path(__file__).parent.parent / "data" / "models" / "springs5.pt")
    model, alignment = checkpoint.model, checkpoint.alignment
    assert alignment is not None
    model.prior = make_prior(prior, 2, learn_weights=False).double()
    scenes = simulate(
        "springs", num_scenes, num_entities=num_entities, seed=5, link_probability=min(0.5, 5 / (num_entities - 1))
    )
    started = time.perf_counter()
    draws = infer(
        model,
        scenes,
        method="mcmc",
        proposal=kernel,
        num_warmup=num_warmup,
        num_draws=num_draws,
        start_temperature=1.0,
        seed=0,
    )
    seconds = time.perf_counter() - started
    probability = (draws.edge_type == alignment.index(1)).mean((0, 1))  # of a link, [G, E]
    truth, guess = scenes.edge_type.numpy() == 1, probability > 0.5
    hits = (truth & guess).sum()
    return {
        "entities": num_entities,
        "scenes": num_scenes,
        "prior": prior,
        "kernel": kernel,
        "warmup": num_warmup,
        "draws": num_draws,
        "f1": 2 * hits / max(1, truth.sum() + guess.sum()),
        "accuracy": (truth == guess).mean(),
        "expected_accuracy": np.maximum(probability, 1 - probability).mean(),
        "accuracy_of_empty_graph": 1 - truth.mean(),
        "passed": check(to_datatree(draws, scenes)).passed,
        "seconds_per_scene": seconds / num_scenes,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [(14, 1, 4, 4)] if arguments.smoke else SIZES
    cells = [(*size, prior, kernel) for size in sizes for prior in ("independent", "symmetric") for kernel in KERNELS]
    frame = pd.DataFrame([run(*cell) for cell in tqdm(cells, unit="run")])
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("large_graphs_smoke.csv" if arguments.smoke else "large_graphs.csv")
    frame.to_csv(path, index=False)
    print(frame.round(3).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
