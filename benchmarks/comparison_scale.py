"""How long do comparisons of many scenes take, and how much memory?

    python benchmarks/comparison_scale.py [--num-scenes 10000] [--num-draws 1000]

Two groups of five entities each, half of the scenes in either, every edge in doubt (information 2, see comparison.py):
each draw of a scene is nearly a graph of its own, the worst case. Once with the exact probabilities of receivers, once
from draws alone. Out: benchmarks/results/comparison_scale.csv: seconds of one processor, and the most memory that
the process has held, posteriors included, in MiB. About 2 minutes.
"""

import argparse
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import comparison as studies

from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.groups import compare_groups
from pyro_nri.posterior.probability import edge_probability

OUT = Path(__file__).parent / "results" / "comparison_scale.csv"


def posterior(num_scenes: int, num_draws: int, rate: float, seed: int, receivers: bool) -> xr.DataTree:
    """An exact posterior with as many draws; its edges are independent, so they are drawn one by one."""
    rng = np.random.default_rng(seed)
    structure = studies.draw_structures(rng, num_scenes, 5, rate, 0.0)
    tree = studies.exact_posterior(structure, 2.0, rng, num_draws=2, receivers=receivers)
    link = edge_probability(tree)[0][:, 1].astype(np.float32)
    edge_type = np.stack([rng.random(len(link), np.float32) < link for _ in range(num_draws)]).astype(np.int8)
    dataset = tree["posterior"].to_dataset().drop_vars(["edge_type", "draw"])
    tree["posterior"] = xr.DataTree(dataset.assign(edge_type=(("chain", "draw", "edge"), edge_type[None])))
    return tree


def run(num_scenes: int, num_draws: int, receivers: bool) -> None:
    """One comparison, in a process of its own; its row goes to standard output."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    trees = [posterior(num_scenes // 2, num_draws, rate, seed, receivers) for seed, rate in enumerate((0.4, 0.45))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.process_time()
    frame = compare_groups(*trees)
    seconds = time.process_time() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    effect = frame[(frame["quantity"] == "density") & (frame["type"] == 1)].iloc[0]["effect"]
    name = "exact receivers" if receivers else "draws"
    row = [num_scenes, num_draws, name, len(frame), round(seconds, 1), round(memory), round(before), round(effect, 4)]
    print(*row, sep=",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-scenes", type=int, default=10_000)
    parser.add_argument("--num-draws", type=int, default=1_000)
    parser.add_argument("--only", choices=["exact", "draws"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        run(arguments.num_scenes, arguments.num_draws, arguments.only == "exact")
        return
    lines = []
    for only in ("exact", "draws"):
        sizes = ["--num-scenes", str(arguments.num_scenes), "--num-draws", str(arguments.num_draws)]
        command = [sys.executable, __file__, "--only", only, *sizes]
        lines.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().split(","))
    columns = ["num_scenes", "num_draws", "from", "rows", "seconds", "max_mib", "max_mib_before", "density_effect"]
    write_frame(pd.DataFrame(lines, columns=columns), OUT)
    print(read_frame(OUT).to_string(index=False))


if __name__ == "__main__":
    main()
