"""Does any method remember the graphs that it was trained on?

    python analyses/graph_classes.py [--jobs 2] [--num-train 1000] [--num-test 200] [--minutes 1] [--seeds 1]

Five particles with springs have 34 graphs up to the order of the particles. Half of these classes are kept out of
training (those with one number of springs are shared out alternately, in random order), and every method is scored on
held-out scenes of the classes that it has seen and of those that it has not. The classes differ in how hard they are,
so each method is trained on as many scenes of all classes too: what matters is whether leaving classes out costs more
on the unseen classes than on the seen ones. ``gap`` is that difference of differences, in per cent of the edges; its
interval is the 95 % bootstrap over scenes of the four figures, taken as independent.

Out, beside this file or in ``--out``: graph_classes.csv, a row for each method, training and group of classes, and
graph_classes.png. Finished trainings are kept: run it again to go on. 8 trainings: about 15 minutes on one core.
``--smoke`` runs small ones in seconds.
"""

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.streams import generator
from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.posterior.figures import COLOURS
from pyro_nri.rivals import fit_method, score_method
from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.isomorphism import canonical_structure, graph_classes
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
METHODS = ("supervised", "variational", "message_passing", "pair_forces")
CLASSES, TRAININGS = ("seen", "unseen"), ("seen classes", "all classes")


def seen_classes(num_entities: int, seed: int) -> Tensor:
    """Half of the classes of graphs, as canonical structures ``[J, E]``, every number of links shared out."""
    num_pairs = edges.num_edges(num_entities) // 2
    every = torch.arange(2**num_pairs)[:, None] // 2 ** torch.arange(num_pairs) % 2
    classes, _ = graph_classes(every[:, edges.pair_of_edge(num_entities)])
    classes = classes[torch.randperm(len(classes), generator=generator(seed, "classes"))]
    links, kept = classes.sum(-1), []
    for number in links.unique():
        kept.append(classes[links == number][::2])  # where there is one class, it is seen
    return torch.cat(kept)


def scenes_of(cell: Cell, classes: str, num_scenes: int, *, seed: int, num_frames: int) -> Scenes:
    """The first scenes of a seed whose graphs are of the classes: "seen", "unseen" or "all"."""
    size = {"num_entities": cell["num_entities"], "num_frames": num_frames}
    scenes = simulate("springs", (1 if classes == "all" else 4) * num_scenes, seed=seed, **size)
    if classes == "all":
        return scenes
    seen = seen_classes(cell["num_entities"], cell["seed"])
    is_seen = (canonical_structure(scenes.edge_type)[:, None] == seen).all(-1).any(-1)
    (chosen,) = torch.nonzero(is_seen == (classes == "seen"), as_tuple=True)
    if len(chosen) < num_scenes:
        raise ValueError(f"{len(chosen)} scenes are of {classes} classes, {num_scenes} are wanted")
    return scenes[chosen[:num_scenes].tolist()]


def cells(num_seeds: int, sizes: Cell, methods: tuple[str, ...]) -> list[Cell]:
    every = product(range(num_seeds), methods, TRAININGS)
    return [{"method": m, "trained_on": t, "seed": seed, **sizes} for seed, m, t in every]


def run_cell(cell: Cell) -> list[Cell]:
    """Train, then score on both groups of classes."""
    torch.set_num_threads(1)
    train = scenes_of(cell, cell["trained_on"].split()[0], cell["num_train"], seed=cell["seed"] + 1, num_frames=49)
    started = time.monotonic()
    try:
        found = fit_method(cell["method"], train, minutes=cell["minutes"], seed=cell["seed"])
    except Diverged as error:  # no row, so that it is tried again
        tqdm.write(f"{cell}: {error}")
        return []
    seconds, rows = time.monotonic() - started, []
    for classes in CLASSES:
        test = scenes_of(cell, classes, cell["num_test"], seed=0, num_frames=60)
        scores = score_method(found, train, test, start=49, steps=(1, 10))
        rows.append({**cell, "classes": classes, "training_seconds": seconds, **scores})
    return rows


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracies in per cent, means over seeds, and the gap with its interval."""
    rows = []
    for method, part in frame.groupby("method", sort=False):
        row: Cell = {"method": method}
        variance = 0.0
        for training, classes in product(TRAININGS, CLASSES):
            some = part[(part["trained_on"] == training) & (part["classes"] == classes)]
            row[f"{training}, {classes}"] = 100 * some["edge_accuracy"].mean()
            width = 100 * (some["edge_accuracy_high"] - some["edge_accuracy_low"]).mean() / 2 / 1.96
            variance += width**2 / max(len(some), 1)
        means = [[row[f"{training}, {classes}"] for classes in CLASSES] for training in TRAININGS]
        gap = (means[0][0] - means[0][1]) - (means[1][0] - means[1][1])
        rows.append({**row, "gap": gap, "low": gap - 1.96 * variance**0.5, "high": gap + 1.96 * variance**0.5})
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame) -> Figure:
    """Edges right on seen and unseen classes, for both trainings."""
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    ax, names = figure.subplots(), list(dict.fromkeys(frame["method"]))
    for t, (training, classes) in enumerate(product(TRAININGS, CLASSES)):
        part = frame[(frame["trained_on"] == training) & (frame["classes"] == classes)]
        y = np.array([names.index(name) for name in part["method"]]) + 0.15 * (t - 1.5)
        ends = part[["edge_accuracy_low", "edge_accuracy_high"]].sub(part["edge_accuracy"], axis=0).abs()
        style = {"color": COLOURS[t // 2], "mfc": COLOURS[t // 2] if classes == "seen" else "white", "markersize": 6}
        label = f"trained on {training}, {classes} ones"
        ax.errorbar(
            100 * part["edge_accuracy"], y, xerr=100 * ends.to_numpy().T, fmt="os"[t // 2], label=label, **style
        )
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="edges right (%), 95 % intervals over scenes")
    ax.grid(axis="x", color="0.92")
    ax.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=1000, help="training scenes")
    parser.add_argument("--num-test", type=int, default=200, help="held-out scenes of each group of classes")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one thread")
    parser.add_argument("--smoke", action="store_true", help="small ones, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    sizes: Cell = {name: getattr(arguments, name) for name in ("num_train", "num_test", "minutes")}
    path, wanted = arguments.out / "graph_classes.csv", cells(arguments.seeds, {**sizes, "num_entities": 5}, METHODS)
    if arguments.smoke:
        sizes = {"num_train": 6, "num_test": 4, "minutes": 0.003, "num_entities": 4}
        path, wanted = arguments.out / "graph_classes_smoke.csv", cells(1, sizes, METHODS[:3])
    frame = run_cells(path, wanted, run_cell, jobs=arguments.jobs, unit="training")
    with written_beside(path.with_suffix(".png")) as beside:
        draw(frame).savefig(beside, dpi=150)
    print(summary(frame).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
