"""Pictures of probabilities: of each edge, of whole structures, of the number of edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.figures import (
    COLOURS,
    INK,
    SHADES,
    AxesLike,
    chosen_scenes,
    edge_label,
    legend_below,
    panels,
    plain,
    type_names,
)
from pyro_nri.posterior.frames import structures_frame
from pyro_nri.posterior.graph_statistics import edge_counts_frame
from pyro_nri.posterior.parts import select_scenes
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.truth import has_truth, known_edges

_NUMBERS = 8  # entities up to which cells have room for a number
_NAMES = 20  # entities up to which each has its name at the axis
_CHANGES = 2  # edges that a bar names one by one


def plot_edge_probabilities(
    tree: xr.DataTree,
    edge_type: int,
    *,
    scenes: Sequence[str] | None = None,
    max_scenes: int = 6,
    axes: AxesLike = None,
) -> NDArray[Any]:
    """Heat map of the probability that the edge from a sender (row) to a receiver (column) has a type.

    Where the truth is known, a dot marks each edge that truly has the type.

    Args:
        tree: a posterior.
        edge_type: the type.
        scenes: names of the scenes to draw; default: the first ones.
        max_scenes: number of panels at most.
        axes: one for each scene drawn; default: a new figure.

    Returns:
        The axes, ``[number of scenes drawn]``.

    Raises:
        ValueError: a scene or the type does not exist, or there are fewer axes than scenes.
    """
    name = _type_name(tree, edge_type)
    chosen = chosen_scenes(tree, scenes, max_scenes)
    drawn = panels(axes, len(chosen), "scenes", width=2.7)
    shades = None
    for ax, scene in zip(drawn, chosen, strict=True):
        part = select_scenes(tree, [scene])
        posterior, constant = group(part, "posterior"), group(part, "constant_data")
        entities = [entity for entity in constant["entity_name"].values[0].tolist() if entity]
        number = {entity: n for n, entity in enumerate(entities)}
        rows, columns = ([number[e] for e in posterior[end].values.tolist()] for end in ("sender", "receiver"))
        matrix = np.full((len(entities), len(entities)), np.nan)
        matrix[rows, columns] = edge_probability(part)[0][:, edge_type]
        ax.set_facecolor("0.85")
        shades = ax.imshow(matrix, cmap=SHADES, norm=Normalize(0, 1))
        small = len(entities) <= _NUMBERS
        for row, column in zip(rows, columns, strict=True) if small else ():
            value = matrix[row, column]
            ink = "white" if value > 0.6 else INK
            ax.text(column, row, _percent(value), ha="center", va="center", fontsize=7, color=ink)
        if has_truth(part):
            known = known_edges(part)
            for row, column, true in zip(rows, columns, known.true_edge_type, strict=True):
                if true == known.alignment[edge_type]:
                    shift = 0.36 if small else 0.0
                    face = {"markerfacecolor": COLOURS[1], "markeredgecolor": "white", "markeredgewidth": 0.7}
                    ax.plot(column + shift, row - shift, "o", markersize=4.5 if small else 3.5, **face)
        places = np.arange(len(entities)) if len(entities) <= _NAMES else np.arange(0, len(entities), 10)
        names = [entities[n] for n in places]
        turn = 90 if max(map(len, entities)) > 2 else 0
        ax.set_xticks(places, names, rotation=turn)
        ax.set_yticks(places, names)
        said = "" if axes is None else f": probability of {name} (%)"  # what a colour bar says in a figure of our own
        ax.set(xlabel="receiver", ylabel="sender", title=f"scene {scene}{said}")
        plain(ax)
        ax.spines[:].set_visible(False)
        ax.tick_params(length=0)
    if axes is None:
        bar = drawn[0].figure.colorbar(shades, ax=list(drawn), shrink=0.7, aspect=25, pad=0.02)
        bar.set_label(f"probability of {name} (%)", fontsize=9, color=INK)
        bar.set_ticks(np.linspace(0, 1, 6), labels=[f"{100 * x:.0f}" for x in np.linspace(0, 1, 6)])
        bar.ax.tick_params(labelsize=8)
        bar.outline.set_visible(False)
    if has_truth(tree):
        dot = Line2D([], [], color=COLOURS[1], marker="o", linestyle="none", markersize=4.5, label=f"truly {name}")
        legend_below(axes, drawn, [dot])
    return drawn


def plot_structure_probabilities(
    tree: xr.DataTree,
    *,
    scenes: Sequence[str] | None = None,
    max_scenes: int = 4,
    num_top: int = 6,
    axes: AxesLike = None,
) -> NDArray[Any]:
    """Bars of the most probable structures of each scene, named by how they differ from the first.

    A whisker is a 95 % interval for Monte Carlo error. The last bar is all others together.

    Args:
        tree: a posterior.
        scenes: names of the scenes to draw; default: the first ones.
        max_scenes: number of panels at most.
        num_top: structures in a panel.
        axes: one for each scene drawn; default: a new figure.

    Returns:
        The axes, ``[number of scenes drawn]``.

    Raises:
        ValueError: a scene does not exist, or there are fewer axes than scenes.
    """
    chosen = chosen_scenes(tree, scenes, max_scenes)
    frame = structures_frame(tree, num_top, chosen)
    drawn = panels(axes, len(chosen), "scenes", width=3.6, height=0.28 * (num_top + 1) + 0.8, num_columns=2)
    for ax, scene in zip(drawn, chosen, strict=True):
        part = frame[frame["scene"] == scene]
        labels = _changes(select_scenes(tree, [scene]), part["structure"].tolist())
        share, error = part["probability"].to_numpy(), part["mcse"].fillna(0).to_numpy()
        rest = max(1 - share.sum(), 0.0)
        colours = [COLOURS[0]] * len(share)
        values = share
        if rest > 1e-3:
            labels, values, error = [*labels, "all others"], np.append(share, rest), np.append(error, np.nan)
            colours.append("0.75")
        place = np.arange(len(values))
        low, high = np.minimum(1.96 * error, values), np.minimum(1.96 * error, 1 - values)
        whiskers = {"ecolor": INK, "elinewidth": 1.0, "capsize": 2}
        ax.barh(place, values, color=colours, height=0.7, xerr=[low, high], error_kw=whiskers)
        ax.set_yticks(place, labels)
        ax.set_ylim(max(num_top, len(values) - 1) + 0.6, -0.6)  # bars as wide where there are few of them
        ax.set(
            xlim=(0, min(1, 1.1 * (values + np.nan_to_num(high)).max())),
            xlabel="posterior probability",
            title=f"scene {scene}",
        )
        plain(ax)
    return drawn


def plot_edge_counts(
    tree: xr.DataTree,
    edge_type: int,
    *,
    scenes: Sequence[str] | None = None,
    max_scenes: int = 6,
    axes: AxesLike = None,
) -> NDArray[Any]:
    """Posterior of the number of edges of a type in each scene; a triangle marks the true number where it is known.

    Args:
        tree: a posterior.
        edge_type: the type that is counted.
        scenes: names of the scenes to draw; default: the first ones.
        max_scenes: number of panels at most.
        axes: one for each scene drawn; default: a new figure.

    Returns:
        The axes, ``[number of scenes drawn]``.

    Raises:
        ValueError: a scene or the type does not exist, or there are fewer axes than scenes.
    """
    name = _type_name(tree, edge_type)
    chosen = chosen_scenes(tree, scenes, max_scenes)
    frame = edge_counts_frame(tree, edge_type, chosen)
    drawn = panels(axes, len(chosen), "scenes", width=2.5, height=2.0, sharey=True)
    for number, (ax, scene) in enumerate(zip(drawn, chosen, strict=True)):
        part = frame[frame["scene"] == scene]
        ax.bar(part["num_edges"], part["probability"], width=0.8, color=COLOURS[0])
        known = select_scenes(tree, [scene])
        if has_truth(known):
            edges = known_edges(known)
            true = int((edges.true_edge_type == edges.alignment[edge_type]).sum())
            above = float(part["probability"][part["num_edges"] == true].sum()) + 0.05
            ax.plot(true, above, "v", color=COLOURS[1], markersize=6, clip_on=False, zorder=5)
        middle = (part["num_edges"].min() + part["num_edges"].max()) / 2
        half = max(3, (part["num_edges"].max() - part["num_edges"].min()) / 2 + 1)
        ax.set(xlim=(middle - half - 0.5, middle + half + 0.5), ylim=(0, 1), title=f"scene {scene}")
        ax.set_xlabel(f"number of edges: {name}")
        if not number or axes is None:
            ax.set_ylabel("probability" if ax.get_subplotspec() is None or ax.get_subplotspec().is_first_col() else "")
        ax.xaxis.get_major_locator().set_params(integer=True)
        plain(ax)
        ax.tick_params(axis="x", pad=6)
    if has_truth(tree):
        mark = Line2D([], [], color=COLOURS[1], marker="v", linestyle="none", markersize=6, label="true number")
        legend_below(axes, drawn, [mark])
    return drawn


def _type_name(tree: xr.DataTree, edge_type: int) -> str:
    names = type_names(tree)
    if not 0 <= edge_type < len(names):
        raise ValueError(f"edge_type must be between 0 and {len(names) - 1}, found {edge_type}")
    return names[edge_type]


def _percent(probability: float) -> str:
    """Whole per cent; never 0 or 100 for what is neither."""
    value = 100 * probability
    return "<1" if 0 < value < 0.5 else ">99" if 99.5 <= value < 100 else f"{value:.0f}"


def _changes(tree: xr.DataTree, structures: Sequence[str]) -> list[str]:
    """Names of structures by the edges whose types differ from those of the first."""
    posterior, names = group(tree, "posterior"), type_names(tree)
    codes = [s.split(" ") if " " in s else list(s) for s in structures]
    edges = [edge_label(*ends) for ends in zip(posterior["sender"].values, posterior["receiver"].values, strict=True)]
    labels = ["most probable"]
    for other in codes[1:]:
        changed = [(edge, new) for edge, old, new in zip(edges, codes[0], other, strict=True) if old != new]
        if len(changed) > _CHANGES:
            labels.append(f"{len(changed)} edges differ")
        else:
            labels.append(", ".join(f"{edge}: {names[int(new)]}" for edge, new in changed))
    return labels
