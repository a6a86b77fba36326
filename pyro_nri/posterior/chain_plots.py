"""Pictures of chains: do they visit the same structures?"""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy.stats import binom

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.figures import (
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    SHADES,
    AxesLike,
    chosen_scenes,
    edge_label,
    legend_below,
    panels,
    plain,
    type_names,
)
from pyro_nri.posterior.parts import select_scenes

_NAMED = 0.25  # chains whose frequencies of a type differ by more are named


def plot_trace(tree: xr.DataTree, scene: str, *, max_edges: int = 6, ax: Axes | None = None) -> Axes:
    """The type of each edge draw by draw, a row for each chain; the edges that chains disagree about most come first.

    Type codes are labels, so there is no line to draw: a shade is a type. Chains that mix look alike, and like noise.

    Args:
        tree: a posterior.
        scene: name of the scene.
        max_edges: edges at most.
        ax: default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the scene does not exist, or there are no draws.
    """
    draws, labels = _draws(tree, scene)  # [C, S, E]
    names, order = type_names(tree), _most_in_doubt(draws, len(type_names(tree)))[:max_edges]
    num_chains, num_draws, _ = draws.shape
    shown = np.full(((num_chains + 1) * len(order) - 1, num_draws), -1)
    for place, edge in enumerate(order):
        shown[place * (num_chains + 1) : place * (num_chains + 1) + num_chains] = draws[:, :, edge]
    height = 0.13 * len(shown) + 0.9
    drawn: Axes = panels(ax, 1, "scenes", width=5.6, height=height)[0]
    shades = mpl.colormaps[SHADES](np.linspace(0.15, 1, len(names)))
    colours = ListedColormap(shades)
    drawn.imshow(
        np.ma.masked_less(shown, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=colours,
        norm=BoundaryNorm(np.arange(len(names) + 1) - 0.5, colours.N),
    )
    places = np.arange(len(order)) * (num_chains + 1) + (num_chains - 1) / 2
    drawn.set_yticks(places, [labels[edge] for edge in order])
    drawn.set(xlabel=f"draw ({num_chains} chains, one above the other)", title=f"scene {scene}")
    plain(drawn)
    drawn.spines[:].set_visible(False)
    drawn.tick_params(axis="y", length=0)
    handles = [
        Patch(facecolor=shade, edgecolor="0.6", linewidth=0.5, label=name)
        for shade, name in zip(shades, names, strict=True)
    ]
    _legend_under(ax, drawn, handles, height)
    return drawn


def plot_ranks(
    tree: xr.DataTree,
    scene: str,
    edge_type: int,
    *,
    max_edges: int = 6,
    num_bins: int = 10,
    seed: int = 0,
    axes: AxesLike = None,
) -> NDArray[Any]:
    """Rank histograms of the indicator "this edge has this type", a line for each chain (Vehtari et al. 2021).

    Draws of all chains are ranked together, ties in random order. Lines of chains that agree are level; the band holds
    a bar of a chain of independent draws with probability 0.99.

    Args:
        tree: a posterior.
        scene: name of the scene.
        edge_type: the type.
        max_edges: edges at most, those that chains disagree about most first.
        num_bins: bars of a histogram.
        seed: fixes the order of ties.
        axes: one for each edge drawn; default: a new figure.

    Returns:
        The axes, ``[number of edges drawn]``.

    Raises:
        ValueError: the scene or the type does not exist, or there are fewer draws than bins.
    """
    draws, labels = _draws(tree, scene)
    names = type_names(tree)
    if not 0 <= edge_type < len(names):
        raise ValueError(f"edge_type must be between 0 and {len(names) - 1}, found {edge_type}")
    num_chains, num_draws, _ = draws.shape
    if num_draws < num_bins:
        raise ValueError(f"ranks need at least {num_bins} draws of each chain, found {num_draws}")
    order = _most_in_doubt(draws, len(names))[:max_edges]
    drawn = panels(axes, len(order), "edges", width=2.4, height=1.9, sharex=True, sharey=True)
    share = 1 / num_bins
    low, high = (100 * binom.ppf(q, num_draws, share) / num_draws for q in (0.005, 0.995))
    rng = np.random.default_rng(seed)
    for ax, edge in zip(drawn, order, strict=True):
        indicator = draws[:, :, edge] == edge_type
        rank = np.lexsort((rng.random(indicator.size), indicator.ravel())).argsort().reshape(indicator.shape)
        place = rank * num_bins // indicator.size
        ax.axhspan(low, high, color="0.9", linewidth=0, zorder=0)
        for chain in range(num_chains):
            height = 100 * np.bincount(place[chain], minlength=num_bins) / num_draws
            ax.stairs(height, np.linspace(0, 1, num_bins + 1), **_line(chain))
        ax.set(title=labels[edge], xlim=(0, 1))
        plain(ax)
        spec = ax.get_subplotspec()
        if spec is None or spec.is_first_col():
            ax.set_ylabel("draws (%)")
        if spec is None or spec.is_last_row() or axes is not None:
            ax.set_xlabel("rank, as a share")
    for ax in drawn:  # after all of them, as they may share their scale
        ax.set_ylim(bottom=0)
    handles: list[Any] = [Line2D([], [], label=f"chain {c}", **_line(c, line=True)) for c in range(num_chains)]
    legend_below(axes, drawn, [*handles, Patch(color="0.9", linewidth=0, label="99 % if independent")], ncols=5)
    return drawn


def plot_split_frequencies(tree: xr.DataTree, *, scenes: Sequence[str] | None = None, ax: Axes | None = None) -> Axes:
    """How often two chains have a type at an edge, one against the other, for all edges and all pairs of chains.

    The picture of phylogenetics for "do my chains sample the same trees": points off the diagonal are edges that chains
    do not agree about. The one furthest off is named if its frequencies differ by more than a quarter. The halves of a
    single chain are compared.

    Args:
        tree: a posterior.
        scenes: names of scenes; default: all.
        ax: default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: a scene does not exist, or there are no draws.
    """
    tree = tree if scenes is None else select_scenes(tree, chosen_scenes(tree, scenes, len(scenes)))
    posterior = group(tree, "posterior")
    draws = posterior["edge_type"].transpose("chain", "draw", "edge").values
    if not draws.size:
        raise ValueError("the posterior holds no draw, at least one is needed")
    what = "chain"
    if len(draws) == 1:
        half = draws.shape[1] // 2
        if not half:
            raise ValueError("a single chain must have at least 2 draws, found 1")
        draws, what = np.concatenate([draws[:, :half], draws[:, -half:]]), "half"
    num_types = len(type_names(tree))
    kinds = range(1, num_types) if num_types == 2 else range(num_types)  # of two types one says it all
    frequency = np.stack([(draws == k).mean(1) for k in kinds], axis=-1)  # [C, M, K]
    drawn: Axes = panels(ax, 1, "scenes", width=3.8, height=3.8)[0]
    drawn.plot([0, 1], [0, 1], color=INK, linewidth=0.8, zorder=1)
    pairs = list(combinations(range(len(draws)), 2))
    for number, (one, other) in enumerate(pairs):
        style: dict[str, Any] = {
            "markerfacecolor": "none",
            "markersize": 4.5,
            "markeredgewidth": 0.8,
            "linestyle": "none",
        }
        colour = COLOURS[number % len(COLOURS)]
        x, y = frequency[one].ravel(), frequency[other].ravel()
        drawn.plot(x, y, MARKERS[number % len(MARKERS)], color=colour, label=f"{one}, {other}", zorder=2, **style)
    gap = np.stack([np.abs(frequency[one] - frequency[other]).max(-1) for one, other in pairs])  # [pairs, M]
    pair, edge = np.unravel_index(gap.argmax(), gap.shape)
    title = f"largest difference {gap.max():.2f}"
    if gap.max() > _NAMED:
        scene, sender, receiver = (posterior[name].values[edge] for name in ("scene", "sender", "receiver"))
        one, other = pairs[int(pair)]
        title += f": scene {scene}, {edge_label(sender, receiver)}\nin {_plural(what)} {one} and {other}"
    drawn.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect="equal", title=title)
    drawn.set(xlabel=f"frequency of a type in one {what}", ylabel=f"in another {what}")
    plain(drawn)
    layout: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "frameon": False, "fontsize": 8}
    drawn.legend(title=_plural(what), title_fontsize=8, handletextpad=0.2, **layout)
    return drawn


def _draws(tree: xr.DataTree, scene: str) -> tuple[NDArray[np.int8], list[str]]:
    """Draws of a scene ``[C, S, E]`` and the names of its edges."""
    posterior = group(select_scenes(tree, chosen_scenes(tree, [scene], 1)), "posterior")
    draws = posterior["edge_type"].transpose("chain", "draw", "edge").values
    if not draws.size:
        raise ValueError("the posterior holds no draw, at least one is needed")
    ends = zip(posterior["sender"].values.tolist(), posterior["receiver"].values.tolist(), strict=True)
    return draws, [edge_label(*each) for each in ends]


def _most_in_doubt(draws: NDArray[np.int8], num_types: int) -> NDArray[np.int64]:
    """Edges of a scene: first those whose chains differ most, then those with the most even types."""
    frequency = np.stack([(draws == k).mean(1) for k in range(num_types)], axis=-1)  # [C, E, K]
    between, doubt = np.ptp(frequency, axis=0).max(-1), 1 - frequency.mean(0).max(-1)
    return np.lexsort((-doubt, -np.round(between, 1)))


def _line(chain: int, *, line: bool = False) -> dict[str, Any]:
    style: dict[str, Any] = {"color": COLOURS[chain % len(COLOURS)], "linewidth": 1.2}
    return style | {"linestyle": DASHES[chain % len(DASHES)]} | ({} if line else {"baseline": None})


def _plural(what: str) -> str:
    return "halves" if what == "half" else "chains"


def _legend_under(given: Axes | None, drawn: Axes, handles: list[Any], height: float) -> None:
    if given is None:
        legend_below(None, np.array([drawn]), handles)
    else:
        layout: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.5 / height), "frameon": False}
        drawn.legend(handles=handles, ncols=4, fontsize=8, **layout)
