"""Which noise, which prior and which dynamics do charged particles need, and how sure may the posterior be?

    python analyses/charged_particles.py [--jobs 2] [--num-train 100] [--num-test 1000] [--seeds 3] [--minutes 1]

The table: prior (independent, symmetric, charges) x noise (geometric, student_t, normal) x dynamics (pair-forces,
message-passing). Every entry has a training of its own, prior included, as a user would run it; both dynamics are given
``--minutes`` (pair forces spend a quarter of them on gradients, then fit laws and calibration, however long that takes;
``training_seconds`` has it all). Learned types are renamed once for each model, by the alignment fitted on its training
scenes. The default of pair forces is inferred from windows of 5, 10, 20 and 49 frames too, and trained and inferred
with measurement noise of 0.01. ``best_temperature`` is the T between 0.25 and 4 at which the posterior to the power
1 / T has the best log score, above 1 where it is too sure (empty below 20 uncertain edges, which say nothing);
``log_score_softened`` is that of a 0/1 forecast as sure as it is right.

Out, beside this file or in ``--out``: charged_particles.csv, a row for each model and window, and charged_particles
.png. Finished models are kept: run it again to go on. Prints Markdown tables. 57 trainings and 75 inferences: about 2.5
hours on one core, half of it with ``--jobs 2``. ``--smoke`` runs a few small ones in seconds.
"""

import argparse
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.figures import COLOURS
from pyro_nri.posterior.scores import score_edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
CHOICES = {
    "dynamics": ("pair-forces", "message-passing"),
    "prior": ("independent", "symmetric", "charges"),
    "noise": ("geometric", "student_t", "normal"),
}
DEFAULT = {name: choices[0] for name, choices in CHOICES.items()}
WINDOWS = (5, 10, 20)
TEMPERATURES = np.geomspace(0.25, 4, 33)
SCORES = ("edge_accuracy", "expected_accuracy", "ece", "ece_uncertain", "log_score")
COLUMNS = (*SCORES, "log_score_softened", "best_temperature", "training_seconds", "inference_seconds")


def cells(num_seeds: int, sizes: Cell, *, smoke: bool) -> list[Cell]:
    """What to train, seed by seed: the table, and the default with measurement noise."""
    kinds = [dict(zip(CHOICES, kind, strict=True)) for kind in product(*CHOICES.values())]
    kinds.append({**DEFAULT, "measurement_noise": 0.01})
    if smoke:
        kinds = [DEFAULT, {**DEFAULT, "dynamics": "message-passing", "prior": "charges"}]
    return [{"measurement_noise": 0.0, **kind, "seed": seed, **sizes} for seed in range(num_seeds) for kind in kinds]


def run_cell(cell: Cell) -> list[Cell]:
    """Train, infer the held-out scenes, score: one row for each window."""
    torch.set_num_threads(1)
    options = {name: cell[name] for name in ("num_entities", "num_frames", "measurement_noise")}
    train = simulate("charged", cell["num_train"], seed=cell["seed"] + 1, **options)
    test = simulate("charged", cell["num_test"], seed=0, **options)
    started = time.monotonic()
    try:
        spec = ModelSpec(2, **{name: cell[name] for name in CHOICES})
        checkpoint = fit(train, spec=spec, minutes=cell["minutes"], seed=cell["seed"])
    except Diverged as error:  # no row, so that it is tried again
        tqdm.write(f"{cell}: {error}")
        return []
    seconds = time.monotonic() - started
    truth = test.edge_type.numpy()
    scene = np.repeat(np.arange(len(truth)), truth.shape[1])
    score = partial(score_edges, true_edge_type=truth.ravel(), scene=scene, alignment=checkpoint.alignment)
    rows = []
    for window in (*(WINDOWS if DEFAULT.items() <= cell.items() else ()), test.num_frames):
        scenes, started = test.frames(0, window), time.monotonic()
        with torch.no_grad():
            prior = checkpoint.model.structure_prior(checkpoint.model.prepare(scenes))
            posterior = partial(enumerate_posterior, checkpoint.model.likelihood(scenes), prior)
            found = score(posterior().edge_probability.reshape(-1, 2))
            row = {**cell, "window": window, "num_steps": checkpoint.training["num_steps"]}
            row |= {"training_seconds": seconds, "inference_seconds": time.monotonic() - started}
            tempered = [
                score(posterior(temperature=each).edge_probability.reshape(-1, 2), num_replicates=0)["log_score"][
                    "value"
                ]
                for each in (TEMPERATURES if found["num_uncertain_edges"] >= 20 else ())
            ]
        right = found["edge_accuracy"]["value"]
        row["log_score_softened"] = sum(p * np.log(max(p, 1e-300)) for p in (right, 1 - right))
        row |= {name: found[name]["value"] for name in SCORES}
        row |= {end: found["edge_accuracy"][end] for end in ("low", "high")}
        row["best_temperature"] = TEMPERATURES[np.argmax(tempered)] if tempered else None
        rows.append({**row, "num_uncertain_edges": found["num_uncertain_edges"]})
    return rows


def markdown(frame: pd.DataFrame, by: list[str]) -> str:
    """Means over seeds as a Markdown table, accuracies in per cent with their range over seeds."""
    lines = ["| " + " | ".join([*by, *COLUMNS]) + " |", "|" + "---|" * (len(by) + len(COLUMNS))]
    for kind, part in frame.groupby(by, sort=False):
        found = [f"{part[name].mean():.4g}" for name in COLUMNS]
        for i in range(2):
            low, mean, high = (100 * getattr(part[COLUMNS[i]], which)() for which in ("min", "mean", "max"))
            found[i] = f"{mean:.2f} ({low:.2f} to {high:.2f})"
        lines.append("| " + " | ".join([*map(str, kind), *found]) + " |")
    return "\n".join(lines).replace("nan", "-")


def draw(table: pd.DataFrame, windows: pd.DataFrame, num_edges: int) -> Figure:
    """Left: what is right under each choice. Right: what is right and what was expected from fewer frames."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.5, 1])
    floor = 0.5 / num_edges  # half an edge, where none is wrong
    places = list(dict.fromkeys(zip(table["prior"], table["noise"], strict=True)))
    for d, (dynamics, part) in enumerate(table.groupby("dynamics", sort=False)):
        y = [places.index(place) for place in zip(part["prior"], part["noise"], strict=True)]
        wrong = np.maximum(1 - part["edge_accuracy"], floor)
        left.plot(wrong, y, "os"[d], color=COLOURS[d], markersize=6, alpha=0.7, label=dynamics, linestyle="none")
    left.set(xscale="log", xlim=(0.7, 0.7 * floor), xlabel="edges right (one point for each seed)")
    marks = [wrong for wrong in (0.5, 0.1, 0.01, 1e-3, 1e-4) if wrong > 1.5 * floor]
    left.set_xticks([*marks, floor], [f"{100 * (1 - wrong):g} %" for wrong in marks] + ["all"])
    left.minorticks_off()
    left.set_yticks(range(len(places)), [f"{prior}, {noise.replace('_', '-')}" for prior, noise in places])
    left.invert_yaxis()
    left.grid(axis="x", color="0.9")
    left.set_title("prior and noise of the model, 49 frames", fontsize=10)
    for m, (noise, part) in enumerate(windows.groupby("measurement_noise")):
        mean = part.groupby("window")[["edge_accuracy", "expected_accuracy"]].mean() * 100
        name = "no measurement noise" if noise == 0 else f"measurement noise {noise:g}"
        right.plot(mean["edge_accuracy"], "os"[m] + "-", color=COLOURS[m], label=f"right, {name}")
        right.plot(mean["expected_accuracy"], "k" + "x+"[m] + ":", label=f"expected, {name}", markersize=8, linewidth=1)
    right.set(xscale="log", xlabel="frames inferred from", ylabel="edges (%), mean over seeds")
    ticks = sorted(windows["window"].unique())
    right.set_xticks(ticks, [str(tick) for tick in ticks])
    right.minorticks_off()
    right.set_title("pair forces, geometric noise, independent prior", fontsize=10)
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
        handles, names = ax.get_legend_handles_labels()
        ax.legend(handles, names, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=100, help="training scenes")
    parser.add_argument("--num-test", type=int, default=1000, help="held-out scenes")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, each on one thread")
    parser.add_argument("--smoke", action="store_true", help="a few small models, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    sizes: Cell = {name: getattr(arguments, name) for name in ("num_train", "num_test", "minutes")}
    sizes, name = {**sizes, "num_entities": 5, "num_frames": 49}, "charged_particles"
    if arguments.smoke:
        sizes = {"num_train": 4, "num_test": 8, "minutes": 0.005, "num_entities": 3, "num_frames": 24}
        name += "_smoke"
    wanted = cells(1 if arguments.smoke else arguments.seeds, sizes, smoke=arguments.smoke)
    path = arguments.out / f"{name}.csv"
    frame = run_cells(path, wanted, run_cell, jobs=arguments.jobs, unit="model")
    table = frame.query("measurement_noise == 0 and window == num_frames")
    windows = frame[(frame[list(DEFAULT)] == pd.Series(DEFAULT)).all(axis=1)]
    with written_beside(path.with_suffix(".png")) as beside:
        num_edges = sizes["num_test"] * sizes["num_entities"] * (sizes["num_entities"] - 1)
        draw(table, windows, num_edges).savefig(beside, dpi=150)
    print(markdown(table, list(CHOICES)), markdown(windows, ["measurement_noise", "window"]), sep="\n\n")


if __name__ == "__main__":
    main()
