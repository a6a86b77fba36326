"""Do two conditions differ in how their entities interact, by how much, and is that more than chance?

    python analyses/compare_conditions.py [--num-scenes 60] [--seed 0]

A worked study on simulated scenes of five particles on springs, in three conditions: sparse (a pair is linked with
probability 0.3), dense (0.5) and one-sided (either direction of a pair is linked by itself, with probability 0.5, and
the spring pulls the receiver only).

1. 49 frames without measurement noise, inferred with ``data/models/springs5.pt``: every two conditions are compared.
2. The first 5, 10, 20 and 49 frames of the sparse and the dense scenes with measurement noise of 0.01, inferred with a
   model of that noise, which is learned here from 100 other scenes: what do few frames leave of the difference in
   density? Averages of posteriors lean towards their common prior; the estimate has the prior divided out.

Out, beside this file or in ``--out``: compare_conditions.csv (the comparisons), compare_conditions_frames.csv (the
second part), compare_conditions.png and compare_conditions.txt, the conclusions. Finished tables are kept; delete them
to start again. About 5 minutes. ``--smoke`` runs a small one in seconds.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.comparison_table import adjusted
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.figures import COLOURS, INK
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.groups import compare_groups
from pyro_nri.posterior.motifs import num_mutual, num_transitive
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

matplotlib.use("Agg")
MODEL = Path(__file__).parent.parent / "data" / "models" / "springs5.pt"
CONDITIONS: dict[str, dict[str, Any]] = {
    "sparse": {"link_probability": 0.3},
    "dense": {"link_probability": 0.5},
    "one-sided": {"link_probability": 0.5, "symmetric": False},
}
PAIRS = (("dense", "sparse"), ("dense", "one-sided"), ("sparse", "one-sided"))
SHOWN = ("density", "reciprocity", "transitive triads")
NOISE = 0.01


def posterior_of(checkpoint: Checkpoint, scenes: Scenes, seed: int) -> tuple[xr.DataTree, int]:
    """The posterior of scenes, and which of its types is the link."""
    draws = infer(checkpoint.model, scenes, num_draws=100, seed=seed)
    return to_datatree(draws, scenes, type_alignment=checkpoint.alignment), checkpoint.alignment.index(1)


def true_numbers(scenes: Scenes) -> dict[str, float]:
    """What the true structures of a condition say, all scenes together."""
    linked, number = scenes.edge_type.numpy() == 1, scenes.num_entities
    density, both = linked.mean(), 2 * num_mutual(linked, number).sum() / linked.sum()
    triads = num_transitive(linked, number).mean() / (scenes.num_edges * (number - 2))
    return {"density": density, "reciprocity": (both - density) / (1 - density), "transitive triads": triads}


def compare(scenes: dict[str, Scenes], seed: int, num_permutations: int) -> pd.DataFrame:
    """Every two conditions, with the truth of the simulation in a column of its own."""
    checkpoint, frames = load_checkpoint(MODEL), []
    found = {name: posterior_of(checkpoint, each, seed) for name, each in scenes.items()}
    for names in PAIRS:
        trees, link = [found[name][0] for name in names], found[names[0]][1]
        frame = compare_groups(*trees, names=names, types=(link,), num_permutations=num_permutations, seed=seed)
        a, b = (true_numbers(scenes[name]) for name in names)
        truth = [a[name] - b[name] if name in a else np.nan for name in frame["quantity"]]
        frames.append(frame.assign(true_effect=truth))
    table = pd.concat(frames, ignore_index=True)
    return table.assign(p_adjusted=adjusted(table))


def compare_windows(scenes: dict[str, Scenes], windows: tuple[int, ...], seed: int, **training: Any) -> pd.DataFrame:
    """The difference in density from the first frames, by averages of posteriors and by the estimate."""
    num_permutations, num_train = training.pop("num_permutations"), training.pop("num_train")
    options = {"num_entities": scenes["dense"].num_entities, "num_frames": min(20, windows[-1])}
    train = simulate("springs", num_train, seed=seed + 100, measurement_noise=NOISE, **options)
    checkpoint, rows = fit(train, spec=ModelSpec(2, dynamics="pair-forces"), seed=seed, **training), []
    truth = true_numbers(scenes["dense"])["density"] - true_numbers(scenes["sparse"])["density"]
    for window in windows:
        found = [posterior_of(checkpoint, scenes[name].frames(0, window), seed) for name in ("dense", "sparse")]
        trees, link = [tree for tree, _ in found], found[0][1]
        frame = compare_groups(*trees, types=(link,), num_permutations=num_permutations, seed=seed)
        row = frame.set_index("quantity").loc["density"]
        averages = [edge_probability(tree)[0][:, link].mean() for tree in trees]
        sure = np.mean([edge_probability(tree)[0].max(1).mean() for tree in trees])
        kept = {name: row[name] for name in ("effect", "low", "high", "p_value")}
        kept |= {"averages": averages[0] - averages[1], "mean_confidence": sure}
        rows.append({"num_frames": window, "true_effect": truth, **kept})
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, windows: pd.DataFrame) -> Figure:
    """Effects with their intervals and the truth; the difference in density against the number of frames."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    *left, right = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.5])
    for ax, quantity in zip(left, SHOWN, strict=True):
        part, place = table[table["quantity"] == quantity], np.arange(len(PAIRS))[::-1]
        ax.hlines(place, part["low"], part["high"], color=COLOURS[0], linewidth=2)
        ax.plot(part["effect"], place, "o", color=COLOURS[0], label="estimate, 95 %")
        ax.plot(part["true_effect"], place, "|", color=INK, markersize=18, label="true structures (right: line)")
        names = (part["group_a"] + " -\n" + part["group_b"]).tolist()
        ax.set_yticks(place, names if ax is left[0] else [""] * len(place))
        ax.set(title=quantity, xlabel="difference", ylim=(-0.6, len(part) - 0.4))
        ax.axvline(0, color="0.8", zorder=0)
        ax.locator_params(axis="x", nbins=4)
    draw_windows(right, windows)
    handles = [*left[0].get_legend_handles_labels()[0], right.get_legend_handles_labels()[0][0]]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    for ax in (*left, right):
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure


def draw_windows(ax: Axes, windows: pd.DataFrame) -> None:
    place, error = np.arange(len(windows)), [windows["effect"] - windows["low"], windows["high"] - windows["effect"]]
    ax.errorbar(place, windows["effect"], error, fmt="o", color=COLOURS[0], capsize=3)
    ax.plot(place, windows["averages"], "s--", color=COLOURS[1], label="averages of posteriors")
    ax.axhline(windows["true_effect"].iloc[0], color=INK, linewidth=1)
    ax.set_xticks(place, windows["num_frames"])
    ax.set(title=f"density, dense - sparse, noise of {NOISE:g}", xlabel="frames", ylabel="difference")
    ax.set_ylim(bottom=0)


def conclusions(table: pd.DataFrame, windows: pd.DataFrame) -> str:
    """Two paragraphs, every number from the tables."""

    def words(quantity: str, pair: tuple[str, str]) -> str:
        row = table.set_index(["quantity", "group_a", "group_b"]).loc[(quantity, *pair)]
        found = f"{row['effect']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        return f"{found}, adjusted p = {row['p_adjusted']:.2g}, true structures {row['true_effect']:+.2f}"

    few = windows.iloc[0]
    interval = f"{few['effect']:.2f} [{few['low']:.2f}, {few['high']:.2f}], p = {few['p_value']:.2g}"
    return (
        f"From whole recordings the conditions are told apart by what was made different. Dense scenes have a higher "
        f"share of linked edges than sparse ones ({words('density', PAIRS[0])}), not another reciprocity "
        f"({words('reciprocity', PAIRS[0])}). One-sided scenes have the density of dense ones "
        f"({words('density', PAIRS[1])}), not their reciprocity ({words('reciprocity', PAIRS[1])}).\n\n"
        f"From {few['num_frames']:.0f} noisy frames an edge's most probable type has a mean probability of "
        f"{few['mean_confidence']:.2f}, and averages of posteriors differ by {few['averages']:.2f} where structures "
        f"differ by {few['true_effect']:.2f}: their common prior has pulled both groups towards itself. With the prior "
        f"divided out the estimate is {interval}; what few frames cost is the width of the interval.\n"
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-scenes", type=int, default=60, help="of each condition")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a small study, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    number, windows, size, stem = arguments.num_scenes, (5, 10, 20, 49), {}, "compare_conditions"
    training = {"num_train": 100, "num_steps": 150, "law_bootstrap": 50, "num_permutations": 9999}
    if arguments.smoke:
        number, windows, size, stem = 8, (5, 12), {"num_entities": 3}, "compare_conditions_smoke"
        training = {"num_train": 6, "num_steps": 5, "law_bootstrap": 0, "num_permutations": 99}

    def scenes(noise: float) -> dict[str, Scenes]:
        options = {"num_frames": windows[-1], "measurement_noise": noise, **size}
        return {
            name: simulate("springs", number, seed=arguments.seed + place + 1, **options, **condition)
            for place, (name, condition) in enumerate(CONDITIONS.items())
        }

    first, second = arguments.out / f"{stem}.csv", arguments.out / f"{stem}_frames.csv"
    if not first.exists():
        write_frame(compare(scenes(0.0), arguments.seed, training["num_permutations"]), first)
    if not second.exists():
        write_frame(compare_windows(scenes(NOISE), windows, arguments.seed, **training), second)
    table, by_frames = read_frame(first), read_frame(second)
    with written_beside(first.with_suffix(".png")) as beside:
        draw(table, by_frames).savefig(beside, dpi=150)
    with written_beside(first.with_suffix(".txt")) as beside:
        beside.write_text(conclusions(table, by_frames))
    print(table.drop(columns=["type", "num_scenes_a", "num_scenes_b"]).round(3).to_string(index=False))
    print(by_frames.round(3).to_string(index=False), conclusions(table, by_frames), sep="\n\n")


if __name__ == "__main__":
    main()
