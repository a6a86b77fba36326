"""Pictures of learned force laws."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from pyro_nri.posterior.figures import COLOURS, INK, AxesLike, panels
from pyro_nri.posterior.laws import Floats, Law
from pyro_nri.scenes.files import written_beside

#: Axes are logarithmic where the largest force is so many times the median one, among those that are not zero for sure.
LOG_RATIO = 20.0
#: How far a law is drawn beyond the data, as a factor of the distance.
CONTINUED = 1.5
_DOTS, _TRUTH = (0, (1, 1.3)), (0, (4, 2.5))
_UNCOVERED = "0.93"


def plot_laws(
    frame: pd.DataFrame,
    truth: Sequence[Law] | None = None,
    axes: AxesLike = None,
    *,
    names: Sequence[str] | None = None,
) -> NDArray[Any]:
    """Draw each law with its interval: a full line where data lie, dotted and on grey where it is only continued.

    All panels have the same scales: logarithmic on both sides of zero where forces span orders of magnitude.

    Args:
        frame: from :func:`~pyro_nri.posterior.laws.laws_frame`.
        truth: the true law of each true edge type, a function of distances (or phase differences); drawn beside the
            learned law that is aligned with it (without an alignment: of the same number).
        axes: one for each type; default: a new figure.
        names: what to call the learned types.

    Returns:
        The axes, ``[K]``.

    Raises:
        ValueError: the frame lacks a column or has no row, or there are fewer axes or names than types.
    """
    wanted = ("edge_type", "quantity", "distance", "force", "low", "high", "covered")
    if missing := [name for name in wanted if name not in frame.columns]:
        raise ValueError(f"frame must be one of laws_frame, column {missing[0]!r} is missing")
    types = [int(kind) for kind in dict.fromkeys(frame["edge_type"].tolist())]
    if not types:
        raise ValueError("frame must hold at least one law, found no row")
    if names is not None and len(names) < len(types):
        raise ValueError(f"names must have one entry for each of {len(types)} types, found {len(names)}")
    drawn = panels(axes, len(types), "types", width=3.6 if len(types) > 1 else 4.4, height=3.1, sharey=True)
    circular = bool(frame["quantity"].iloc[0] != "distance")
    shown = frame[frame["covered"]] if frame["covered"].any() else frame
    sure = shown[(shown["low"] > 0) | (shown["high"] < 0)]
    sure = sure if len(sure) else shown
    logarithmic = not circular and bool(sure["force"].abs().max() > LOG_RATIO * sure["force"].abs().median())
    for number, (ax, kind) in enumerate(zip(drawn, types, strict=True)):
        part = frame[frame["edge_type"] == kind]
        title = f"type {kind}" if names is None else names[number]
        aligned = int(part["aligned_type"].iloc[0]) if "aligned_type" in part else kind
        law = truth[aligned] if truth is not None and 0 <= aligned < len(truth) else None
        if law is not None and "aligned_type" in part and names is None:
            title += f" (true type {aligned})"
        _draw_law(ax, part, law, COLOURS[kind % len(COLOURS)])
        if logarithmic:
            _scale_logarithmic(ax, shown["distance"].to_numpy(float), sure["force"].to_numpy(float))
        else:
            _scale_linear(ax, shown["distance"].to_numpy(float), sure, circular=circular)
        ax.set_title(title, fontsize=10, color=INK)
        ax.set_xlabel("phase of sender minus receiver (rad)" if circular else "distance (units of the data)")
        ax.spines[["top", "right"]].set_visible(False)
    what, sides = ("change of rate", ("slows", "speeds")) if circular else ("force", ("attracts", "repels"))
    drawn[0].set_ylabel(f"{what} (units of the data)\n{sides[0]} $\\leftarrow$     $\\rightarrow$ {sides[1]}")
    if axes is None:
        share = frame.attrs.get("interval")
        interval = "interval" if share is None else f"{100 * share:g} % interval"
        handles = _legend(interval if frame["low"].notna().any() else None, any_truth=truth is not None)
        drawn[0].figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return drawn


def write_law_plot(frame: pd.DataFrame, path: str | os.PathLike[str], truth: Sequence[Law] | None = None) -> None:
    """Draw laws into a file, whose suffix says its format; it appears whole or not at all.

    Raises:
        ValueError: the format is unknown, or the file cannot be written.
    """
    import matplotlib.pyplot as plt

    figure = plot_laws(frame, truth)[0].figure
    try:
        with written_beside(Path(path)) as beside:
            figure.savefig(beside, dpi=150)
    finally:
        plt.close(figure)


def _draw_law(ax: Axes, part: pd.DataFrame, law: Law | None, colour: str) -> None:
    distance, force, low, high = (part[name].to_numpy(float) for name in ("distance", "force", "low", "high"))
    covered = part["covered"].to_numpy(bool)
    first, last = distance[covered][[0, -1]] if covered.any() else distance[[0, 0]]
    near = (distance > first / CONTINUED) & (distance < last * CONTINUED) if covered.any() else covered | True
    ax.axhline(0, color="0.55", linewidth=0.6, zorder=1)
    ax.fill_between(distance, low, high, where=covered.tolist(), color=colour, alpha=0.3, linewidth=0, zorder=2)
    ax.plot(distance[near], force[near], color=colour, linewidth=1.3, linestyle=_DOTS, zorder=3)
    ax.plot(distance, np.where(covered, force, np.nan), color=colour, linewidth=2.2, zorder=3)
    if law is not None:
        ax.plot(distance, np.asarray(law(distance), float), color="black", linewidth=0.9, linestyle=_TRUTH, zorder=4)
    for left, right in ((distance[0], first), (last, distance[-1])):
        ax.axvspan(left, right, color=_UNCOVERED, linewidth=0, zorder=0)


def _scale_logarithmic(ax: Axes, distance: Floats, force: Floats) -> None:
    """Decades of distance, and of force on both sides of zero."""
    ax.set_xscale("log")
    ax.set_xlim(distance.min() / 1.3, distance.max() * 1.2)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    smallest, largest = np.log10(np.abs(force).min()), np.log10(np.abs(force).max())
    lowest = int(np.floor(max(smallest, largest - 8)))
    ax.set_yscale("symlog", linthresh=10.0**lowest, linscale=0.5)
    every = -(-int(np.ceil(largest) - lowest) // 4)
    decades = 10.0 ** np.arange(lowest + 1, np.ceil(largest) + 1, every)
    ax.yaxis.set_major_locator(FixedLocator([*-decades, 0.0, *decades]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}".replace("-", "\N{MINUS SIGN}")))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(min(2 * force.min(), -(10.0**lowest)), max(2 * force.max(), 10.0**lowest))


def _scale_linear(ax: Axes, distance: Floats, sure: pd.DataFrame, *, circular: bool) -> None:
    """From zero on; forces as far as they are known."""
    if circular:
        ax.set_xlim(-np.pi, np.pi)
        ax.xaxis.set_major_locator(FixedLocator([-np.pi, 0, np.pi]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "0" if x == 0 else "π" if x > 0 else "\N{MINUS SIGN}π"))
    else:
        ax.set_xlim(0, 1.1 * distance.max())
    bounds = sure[["force", "low", "high"]].to_numpy(float)
    bottom, top = (np.nanmin(bounds), np.nanmax(bounds))
    room = 0.08 * max(top - bottom, abs(top), 1e-300)
    ax.set_ylim(min(bottom - room, -3 * room), max(top + room, 3 * room))


def _legend(interval: str | None, *, any_truth: bool) -> list[Line2D | Patch]:
    handles: list[Line2D | Patch] = [
        Line2D([], [], color="0.35", linewidth=2.2, label="learned law"),
        Line2D([], [], color="0.35", linewidth=1.3, linestyle=_DOTS, label="continued without data"),
        Patch(color=_UNCOVERED, linewidth=0, label="not covered by data"),
    ]
    if interval is not None:
        handles.insert(1, Patch(color="0.35", alpha=0.3, linewidth=0, label=interval))
    if any_truth:
        handles.append(Line2D([], [], color="black", linewidth=0.9, linestyle=_TRUTH, label="true law"))
    return handles
