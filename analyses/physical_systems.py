"""How do all methods of the paper's Tables 1 and 2 do on the same scenes, and how does this one?

    python analyses/physical_systems.py [--budget small] [--jobs 2] [--only springs variational] [--seeds 1]

Springs and charged particles. Every method is trained on the same scenes (49 frames), says which type each edge has
from frames 0 to 48 of the same held-out scenes, and predicts from observed frame 49 on, under its most probable
structure. Errors are scaled as published: half the range of all positions, and of all velocities, of the training
scenes. Figures are means over scenes (medians beside, as a few scenes make a mean) with 95 % bootstrap intervals.
Learned types are renamed once for each model, by the alignment fitted on training scenes. ``uses_labels`` marks what
was shown true structures: the threshold of a correlation, the supervised encoder, and the true graph, which keeps them
in prediction. Published figures (data/published.csv) are of 50,000 training scenes.

Methods: those of ``pyro_nri.rivals``. "paper" is the paper's method (``--preset paper``), "message_passing" BounceGrad
on exact posteriors of one step, "pair_forces" learned force laws with geometric noise.

``--budget small``: 1,000 training and 200 test scenes, minutes for each training as below, about 80 minutes on one
core, half of it with ``--jobs 2``. ``--budget full``: 50,000 and 1,000 scenes, networks of the paper's size, batches of
128, for one accelerator (``--device cuda``; the paper gave a day to springs and seven to charged particles);
``--minutes`` and ``--num-train`` take less. Out, beside this file or in ``--out``: physical_systems.csv, .md and .png.
Finished trainings are kept: run it again to go on. ``--only`` takes parts. ``--smoke`` runs small ones in seconds.
"""

import argparse
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.posterior.figures import COLOURS
from pyro_nri.posterior.frames import read_frame
from pyro_nri.rivals import METHODS, SHARED, fit_methods, score_method
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
SYSTEMS, START, STEPS = ("springs", "charged"), 49, (1, 10, 20)
TRAINED = tuple(name for name in METHODS if name not in SHARED.values())
NO_TRAINING = ("static", "correlation_path")
BUDGETS: dict[str, Cell] = {  # sizes, minutes of most trainings, of others
    "small": {"num_train": 1000, "num_test": 200, "preset": "small", "minutes": 2.0},
    "full": {"num_train": 50_000, "num_test": 1000, "preset": "paper", "minutes": 60.0},
    "smoke": {"num_train": 6, "num_test": 4, "preset": "small", "minutes": 0.003},
}
OTHERS = {
    "small": {"variational": 6.0, "supervised": 4.0, "paper": 4.0, "pair_forces": 1.0},
    "full": {"variational": 240.0, "paper": 1440.0, "pair_forces": 30.0},
    "smoke": {},
}
PAPER_RATE = {"springs": 1e-2, "charged": 1e-3}  # of Adam; the paper has 1e-4 for charged, and a week
SMALL_BATCH = 16  # of its batches of 128 scenes too few fit into minutes
FULL = {"batch_size": 128, "learning_rate": 1e-3}  # of the other networks with the full budget
PUBLISHED = Path(__file__).parent.parent / "data" / "published.csv"


def cells(
    budget: str, num_seeds: int, only: list[str], minutes: float | None = None, num_train: int | None = None
) -> list[Cell]:
    """What to train, seed by seed; ``minutes`` and ``num_train`` in place of the budget's."""
    sizes = {**BUDGETS[budget], "budget": budget, "num_entities": 3 if budget == "smoke" else 5}
    sizes["num_train"] = num_train or sizes["num_train"]
    systems = [name for name in SYSTEMS if name in only] or SYSTEMS[: 1 if budget == "smoke" else 2]
    trained = [name for name in TRAINED if name in only] or TRAINED
    found = []
    for seed, system, name in product(range(num_seeds), systems, trained):
        spent = 0.0 if name in NO_TRAINING else minutes or OTHERS[budget].get(name, sizes["minutes"])
        found.append({"system": system, "trained": name, "seed": seed, **sizes, "minutes": spent})
    return found


def run_cell(cell: Cell, device: str = "cpu") -> list[Cell]:
    """Train and score: a row for each method that the training serves for."""
    torch.set_num_threads(1)
    name, size = cell["trained"], {"num_entities": cell["num_entities"]}
    train = simulate(cell["system"], cell["num_train"], seed=cell["seed"] + 1, **size)
    test = simulate(cell["system"], cell["num_test"], seed=0, num_frames=START + 1 + max(STEPS), **size)
    options = {} if name in NO_TRAINING else {"minutes": cell["minutes"], "device": device}
    if cell["budget"] == "full" and name not in (*NO_TRAINING, "pair_forces"):
        options |= FULL
    if name == "paper":
        options["learning_rate"] = PAPER_RATE[cell["system"]]
        options |= {"batch_size": SMALL_BATCH} if cell["budget"] != "full" else {}
    started = time.monotonic()
    torch.set_float32_matmul_precision("high" if device != "cpu" else "highest")  # networks are trained in TF32
    try:
        methods = fit_methods(name, train, preset=cell["preset"], seed=cell["seed"], **options)
    except Diverged as error:  # no row, so that it is tried again
        tqdm.write(f"{cell}: {error}")
        return []
    made = {**cell, "training_seconds": time.monotonic() - started}
    made["hardware"] = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    torch.set_float32_matmul_precision("highest")
    rows, published = [], pd.read_csv(PUBLISHED).set_index(["system", "method"])[["edge_accuracy", "mse_1", "mse_10"]]
    for method, baseline in methods.items():
        beside = published.reindex([(cell["system"], method)]).add_prefix("published_").iloc[0].to_dict()
        scores = score_method(baseline.to(device), train, test, start=START, steps=STEPS)
        rows.append({**made, "method": method, **scores, **beside})
    return rows


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, in the order of the methods."""
    keys = ["system", "method", "num_train"]
    scores = product(("edge_accuracy", *(f"mse_{step}" for step in STEPS)), ("", "_low", "_high", "_median"))
    numbers = [*frame.drop(columns=keys).select_dtypes(("number", "bool")), *map("".join, scores)]
    means = frame.reindex(columns=[*dict.fromkeys([*keys, *numbers])]).groupby(keys, as_index=False).mean()
    places = [*SYSTEMS, *METHODS]
    return means.sort_values(keys[:2], key=lambda names: names.map(places.index), kind="stable", ignore_index=True)


def markdown(table: pd.DataFrame) -> str:
    """One row for each system and method; an asterisk where true structures were shown."""
    errors = [f"error after {step}" for step in STEPS]
    names = ["system", "method", "edges right, %", "published", *errors, "published, 1 and 10", "scenes", "minutes"]
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for _, row in table.iterrows():
        right, low, high = (100 * row[f"edge_accuracy{end}"] for end in ("", "_low", "_high"))
        share = f"{right:.2f} [{low:.2f}, {high:.2f}]"
        found = [row["system"], row["method"] + (" *" if row["uses_labels"] else ""), share]
        found.append(f"{100 * row['published_edge_accuracy']:.1f}")
        found += [f"{row[f'mse_{step}']:.2e} ({row[f'mse_{step}_median']:.2e})" for step in STEPS]
        found.append(f"{row['published_mse_1']:.2e}, {row['published_mse_10']:.2e}")
        found += [f"{row['num_train']:.0f}", f"{row['training_seconds'] / 60:.1f}"]
        lines.append("| " + " | ".join(found) + " |")
    for empty in ("nan [nan, nan]", "nan (nan)", "nan, nan", "nan"):
        lines = [line.replace(f"| {empty} ", "| ") for line in lines]
    return "\n".join(lines)


def draw(table: pd.DataFrame) -> Figure:
    """Ours filled, published hollow: edges right, and errors after ten steps."""
    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    names = [name for name in METHODS if name in set(table["method"])]
    # Column, factor, label.
    panels = (
        ("edge_accuracy", 100.0, "edges right (%), 95 % intervals over scenes"),
        ("mse_10", 1.0, "scaled squared error after 10 steps, mean over scenes"),
    )
    for ax, (column, factor, label) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for s, (system, part) in enumerate(table.groupby("system", sort=False)):
            y = [names.index(name) + 0.2 * (s - 0.5) for name in part["method"]]
            bars = (part[[f"{column}_low", f"{column}_high"]].sub(part[column], axis=0)).abs().to_numpy().T * factor
            ax.errorbar(
                part[column] * factor,
                y,
                xerr=bars,
                fmt="os"[s],
                color=COLOURS[s],
                markersize=5,
                label=f"{system}, here",
            )
            hollow = {"facecolors": "none", "edgecolors": COLOURS[s], "marker": "os"[s], "s": 30}
            ax.scatter(part[f"published_{column}"] * factor, y, **hollow, label=f"{system}, published")
        ax.set(xlabel=label, xscale="log" if column == "mse_10" and table[column].notna().any() else "linear")
        ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        ax.grid(axis="x", color="0.92")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    ax.invert_yaxis()
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", choices=["small", "full"], default="small")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds")
    parser.add_argument("--only", nargs="+", default=[], choices=[*SYSTEMS, *TRAINED], help="run a part")
    parser.add_argument("--minutes", type=float, help="for each training, in place of the budget's")
    parser.add_argument("--num-train", type=int, help="training scenes, in place of the budget's")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, each on one thread")
    parser.add_argument("--device", default="cpu", help="where to train")
    parser.add_argument("--smoke", action="store_true", help="small ones, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    budget = "smoke" if arguments.smoke else arguments.budget
    path = arguments.out / f"physical_systems{'' if budget == 'small' else '_' + budget}.csv"
    num_seeds = 1 if arguments.smoke else arguments.seeds
    wanted = cells(budget, num_seeds, arguments.only, arguments.minutes, arguments.num_train)
    run_cells(path, wanted, partial(run_cell, device=arguments.device), jobs=arguments.jobs, unit="training")
    table = summary(read_frame(path))  # with what other runs with --only have made
    path.with_suffix(".md").write_text(markdown(table) + "\n")
    with written_beside(path.with_suffix(".png")) as beside:
        draw(table).savefig(beside, dpi=150)
    print(markdown(table))


if __name__ == "__main__":
    main()
