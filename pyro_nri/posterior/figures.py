"""What all pictures share: colours that the colour-blind tell apart, panels, and names of edges."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import gaussian_kde

from pyro_nri.posterior.convert import group

# Okabe and Ito's palette, told apart by the colour-blind; with dashes and markers also readable in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("solid", (0, (3.2, 1.2)), (0, (1, 0.9)), (0, (4, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"
ARROW = "\N{RIGHTWARDS ARROW}"
#: From nothing (white) to everything (dark), one hue: as readable in grey.
SHADES = "Blues"

AxesLike = Sequence[Axes] | NDArray[Any] | Axes | None


def panels(
    axes: AxesLike,
    count: int,
    what: str,
    *,
    width: float = 2.6,
    height: float = 2.75,
    num_columns: int = 3,
    **more: Any,
) -> NDArray[Any]:
    """The axes given, or those of a new figure, one for each of ``count`` things.

    Args:
        axes: axes to draw on, or None.
        count: number of panels.
        what: what there is a panel for, in the plural, for the message.
        width: of a panel, inches.
        height: of a panel, inches.
        num_columns: panels side by side at most.
        more: for ``plt.subplots``.

    Raises:
        ValueError: there are fewer axes than panels, or nothing to draw.
    """
    if count < 1:
        raise ValueError(f"there are no {what} to draw")
    if axes is not None:
        given = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
        if len(given) < count:
            raise ValueError(f"axes must have one entry for each of {count} {what}, found {len(given)}")
        return given[:count]
    import matplotlib.pyplot as plt

    columns = 2 if count == 4 and num_columns == 3 else min(count, num_columns)
    rows = -(-count // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(width * columns, height * rows + 0.35), squeeze=False, **more)
    figure.set_layout_engine("constrained", h_pad=0.08, w_pad=0.08)
    for ax in grid.ravel()[count:]:
        figure.delaxes(ax)
    return np.asarray(grid.ravel()[:count])


def legend_below(axes: AxesLike, drawn: NDArray[Any], handles: Sequence[Any], *, ncols: int = 4) -> None:
    """A legend that covers no data: below a figure of our own, below the first of the axes given."""
    style: dict[str, Any] = {
        "handles": list(handles),
        "frameon": False,
        "fontsize": 8,
        "handlelength": 2.4,
        "columnspacing": 1.4,
    }
    if axes is None:
        drawn[0].figure.legend(loc="outside lower center", ncols=min(ncols, len(handles)), **style)
    else:
        style |= {"bbox_to_anchor": (0.5, -0.2), "borderaxespad": 0}
        drawn[0].legend(loc="upper center", ncols=min(ncols, len(handles)), **style)


def plain(ax: Axes) -> None:
    """Two spines, small ticks, dark grey ink."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    for text in (ax.xaxis.label, ax.yaxis.label):
        text.set_fontsize(9)
        text.set_color(INK)
    ax.title.set_fontsize(9)
    ax.title.set_color(INK)


def draw_region(
    ax: Axes, places: NDArray[np.float64], colour: str, dash: Any, label: str, *, probability: float = 0.9
) -> None:
    """Drawn places, and a line around their densest region, by a kernel estimate: clouds alone look alike in grey.

    Args:
        ax: where to draw.
        places: draws, ``[R, 2]``; there is no line around fewer than 50.
        colour: of dots and line.
        dash: of the line.
        label: for the legend.
        probability: share of the draws inside.
    """
    ax.scatter(places[:, 0], places[:, 1], s=3, alpha=0.25, color=colour, linewidths=0)
    ax.plot([], [], color=colour, linestyle=dash, label=label)
    if len(places) < 50:
        return
    density = gaussian_kde(places.T)
    x, y = np.meshgrid(*(np.linspace(*ends, 120) for ends in zip(places.min(0), places.max(0), strict=True)))
    height = density(np.stack([x.ravel(), y.ravel()])).reshape(x.shape)
    level = np.quantile(density(places.T), 1 - probability)
    ax.contour(x, y, height, [level], colors=[colour], linestyles=[dash], linewidths=1.6)


def type_names(tree: xr.DataTree) -> list[str]:
    """Names of the K edge types; "type_0" reads "type 0"."""
    return [str(name).replace("_", " ") for name in group(tree, "constant_data")["type"].values.tolist()]


def chosen_scenes(tree: xr.DataTree, scenes: Sequence[str] | None, max_scenes: int) -> list[str]:
    """Names of the scenes to draw: those given, else the first ones.

    Raises:
        ValueError: a scene does not exist.
    """
    known = list(dict.fromkeys(group(tree, "posterior")["scene"].values.tolist()))
    wanted = [scenes] if isinstance(scenes, str) else list(scenes or known)
    if unknown := [name for name in wanted if name not in set(known)]:
        raise ValueError(f"the posterior has no scene {unknown[0]!r}")
    return wanted[:max_scenes]


def edge_label(sender: str, receiver: str) -> str:
    """An edge as a reader sees it."""
    return f"{sender} {ARROW} {receiver}"
