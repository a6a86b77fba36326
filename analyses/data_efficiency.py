"""How many scenes, how many frames and how little measurement noise do springs and charged particles need?

    python analyses/data_efficiency.py [--jobs 2] [--only pair-forces] [--budget 1] [--num-test 200] [--seeds 3]

Both dynamics with their default noise and the independent prior, and NRI as Pyro SVI ("variational", the paper's
rival; against the number of scenes alone, as in the paper's Figure 3), trained without labels, three seeds, 200
held-out scenes, against

- 5, 10, 30, 100, 300, 1,000 and 5,000 training scenes (49 frames, no measurement noise);
- 5, 10, 20 and 49 frames, in training and in inference (100 training scenes);
- measurement noise of 0, 0.001, 0.01 and 0.05 on positions and velocities, in both (100 training scenes, 49 frames);
- velocities by finite differences of the positions, instead of observed ones (the same).

``--budget`` are the minutes of each training by the clock; pair forces spend a quarter of them on gradients and then
fit their laws, which takes the time it takes (``training_seconds`` has all of it). Learned types are renamed once for
each model, by the alignment fitted on its training scenes.

Out, beside this file or in ``--out``: data_efficiency.csv, a row for each model, and data_efficiency.png. Finished
models are kept: run it again to go on. ``--only`` takes parts: pair-forces, message-passing, variational, springs,
charged, scenes, frames, noise, velocities; those of one kind are alternatives. 210 trainings: about 4.5 hours on one
core, half of it with ``--jobs 2``. ``--smoke`` runs a few small ones in seconds.
"""

import argparse
import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.posterior.figures import COLOURS, DASHES
from pyro_nri.posterior.frames import read_frame
from pyro_nri.posterior.scores import score_edges
from pyro_nri.rivals import alignment_of, fit_method, num_steps
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.scenes.velocities import with_velocities
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
SYSTEMS, DYNAMICS = ("springs", "charged"), ("pair-forces", "message-passing", "variational")
USUAL = {"num_train": 100, "num_frames": 49, "measurement_noise": 0.0, "velocities": "observed"}
SCENES, FRAMES, NOISES = (5, 10, 30, 100, 300, 1000, 5000), (5, 10, 20, 49), (0.0, 1e-3, 1e-2, 5e-2)
PANELS = {  # what changes, its values, the axis
    "scenes": ("num_train", SCENES, "training scenes (49 frames each)"),
    "frames": ("num_frames", FRAMES, "frames of each scene (100 training scenes)"),
    "noise": ("measurement_noise", NOISES, "measurement noise, in units of the state"),
    "velocities": ("velocities", ("observed", "finite differences"), ""),
}
NO_NOISE = 2e-4  # its place on a logarithmic axis
PUBLISHED = {"NRI": 0.821, "paper": 0.884, "supervised": 0.954}  # edges right, charged
SCORES = ("edge_accuracy", "expected_accuracy", "ece", "log_score")


def cells(num_seeds: int, sizes: Cell, usual: Cell, only: list[str]) -> list[Cell]:
    """What to train, seed by seed, without repetition: one column at a time takes other values than usual."""
    systems, dynamics, panels = (
        [choice for choice in choices if choice in only] or list(choices) for choices in (SYSTEMS, DYNAMICS, PANELS)
    )
    kinds = [usual]
    for column, values, _ in (PANELS[panel] for panel in panels):
        kinds += [{**usual, column: value} for value in values if value != usual[column]]
    every = product(range(num_seeds), kinds, systems, dynamics)
    found = [{"system": system, "dynamics": name, **kind, "seed": seed, **sizes} for seed, kind, system, name in every]
    by_scenes = {name: value for name, value in usual.items() if name != "num_train"}
    return [cell for cell in found if cell["dynamics"] != "variational" or by_scenes.items() <= cell.items()]


def scenes_of(cell: Cell, num_scenes: int, seed: int) -> Scenes:
    """Simulated scenes as the cell has them observed."""
    options = {name: cell[name] for name in ("num_entities", "num_frames", "measurement_noise")}
    scenes = simulate(cell["system"], num_scenes, seed=seed, **options)
    if cell["velocities"] == "observed":
        return scenes
    positions = scenes.trajectory[..., :2]
    return with_velocities(replace(scenes, trajectory=positions, state_names=("x", "y"), initial_state=None))


def run_cell(cell: Cell) -> list[Cell]:
    """Train, infer the held-out scenes, score: one row."""
    torch.set_num_threads(1)
    train = scenes_of(cell, cell["num_train"], cell["seed"] + 1)
    test = scenes_of(cell, cell["num_test"], 0)
    started = time.monotonic()
    try:
        trained = fit_method(cell["dynamics"].replace("-", "_"), train, minutes=cell["minutes"], seed=cell["seed"])
    except Diverged as error:  # no row, so that it is tried again
        tqdm.write(f"{cell}: {error}")
        return []
    row = {**cell, "num_steps": num_steps(trained), "training_seconds": time.monotonic() - started}
    started, truth = time.monotonic(), test.edge_type.numpy()
    probability = trained.edge_probability(test).reshape(-1, 2)
    row["inference_seconds"] = time.monotonic() - started
    scene = np.repeat(np.arange(len(truth)), truth.shape[1])
    found = score_edges(probability, truth.ravel(), scene, alignment=alignment_of(trained, train))
    row |= {name: found[name]["value"] for name in SCORES}
    return [{**row, **{end: found["edge_accuracy"][end] for end in ("low", "high")}}]


def draw(frame: pd.DataFrame, usual: Cell, num_edges: int) -> Figure:
    """Edges right against scenes, frames and noise: mean over seeds, bars from the worst to the best."""
    figure = Figure(figsize=(11, 4.3), layout="constrained")
    axes, floor = figure.subplots(1, 3, sharey=True), 0.5 / num_edges  # half an edge, where none is wrong
    for ax, (column, values, label) in zip(axes, PANELS.values(), strict=False):
        others = pd.Series({name: value for name, value in usual.items() if name != column})
        part = frame[(frame[list(others.index)] == others).all(axis=1)]
        for (system, dynamics), curve in part.groupby(["system", "dynamics"], sort=False):
            if curve[column].nunique() < 2:  # a series of another panel
                continue
            wrong = (1 - curve.groupby(column)["edge_accuracy"].agg(["min", "mean", "max"])).clip(lower=floor)
            s, d = SYSTEMS.index(system), DYNAMICS.index(dynamics)
            style = {"color": COLOURS[s], "linestyle": DASHES[d], "marker": "osv"[d], "markersize": 5, "capsize": 2}
            bars = np.abs(wrong[["max", "min"]].to_numpy().T - wrong["mean"].to_numpy())
            place = np.maximum(wrong.index.to_numpy(float), NO_NOISE)
            ax.errorbar(place, wrong["mean"], bars, label=f"{system}, {dynamics}", **style)
        ax.set(xscale="log", yscale="log", xlabel=label, ylim=(0.8, 0.6 * floor))
        ax.set_xticks([value or NO_NOISE for value in values], [f"{value:,g}" if value else "none" for value in values])
        marks = [wrong for wrong in (0.5, 0.2, 0.1, 0.01, 1e-3, 1e-4) if wrong > 1.5 * floor]
        ax.set_yticks([*marks, floor], [f"{100 * (1 - wrong):g} %" for wrong in marks] + ["all"])
        ax.minorticks_off()
        ax.grid(axis="y", color="0.93")
        ax.spines[["top", "right"]].set_visible(False)
    published = "published for charged (NRI, paper: from 50,000 scenes)"
    for name, share in PUBLISHED.items():
        axes[0].axhline(1 - share, color="0.45", linewidth=1, linestyle=":", zorder=1, label=published)
        axes[0].text(1.01, 1 - share, name, fontsize=7, transform=axes[0].get_yaxis_transform(), va="center")
        published = "_"  # one entry of the legend is enough
    axes[0].set_ylabel("edges right")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-test", type=int, default=200, help="held-out scenes")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--budget", type=float, default=1.0, help="minutes of each training")
    parser.add_argument("--only", nargs="+", default=[], choices=[*SYSTEMS, *DYNAMICS, *PANELS], help="run a part")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, each on one thread")
    parser.add_argument("--smoke", action="store_true", help="a few small models, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    sizes: Cell = {"num_entities": 5, "num_test": arguments.num_test, "minutes": arguments.budget}
    path, usual, only, num_seeds = arguments.out / "data_efficiency.csv", USUAL, arguments.only, arguments.seeds
    if arguments.smoke:
        path, usual, num_seeds = path.with_name("data_efficiency_smoke.csv"), {**USUAL, "num_train": 4}, 1
        sizes = {"num_entities": 3, "num_test": 4, "minutes": 0.003}
        only = only or ["springs", "message-passing", "frames"]
    run_cells(path, cells(num_seeds, sizes, usual, only), run_cell, jobs=arguments.jobs, unit="model")
    every = pd.DataFrame(cells(num_seeds, sizes, usual, []))  # what other runs with --only have made too
    frame = every.merge(read_frame(path))
    with written_beside(path.with_suffix(".png")) as beside:
        num_edges = sizes["num_test"] * sizes["num_entities"] * (sizes["num_entities"] - 1)
        draw(frame, usual, num_edges).savefig(beside, dpi=150)
    shown = frame.groupby(["dynamics", "system", *USUAL], sort=False)[[*SCORES, "training_seconds"]].mean()
    print(shown.round(4).reset_index().to_string(index=False))


if __name__ == "__main__":
    main()
