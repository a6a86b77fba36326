"""The reliability diagram: probabilities against what came true."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from pyro_nri.posterior.figures import COLOURS, INK, MARKERS, panels, plain

_WANTED = ("bin_low", "num_edges", "mean_probability", "share_right", "low", "high", "chance_error")
_BAND = "0.88"


def plot_reliability(tables: pd.DataFrame | Mapping[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """How often edges are right against the probability that they were given; above each point its number of edges.

    Points of a calibrated posterior lie on the diagonal, nine in ten within the grey band where edges are independent
    (1.645 standard errors by chance). Below the diagonal: over-confident. Whiskers are 95 % intervals over scenes.

    Args:
        tables: from :func:`~pyro_nri.posterior.calibration.reliability_table`, or several by name.
        ax: default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: a table lacks a column or has no row.
    """
    named = {"": tables} if isinstance(tables, pd.DataFrame) else dict(tables)
    for table in named.values():
        if missing := [name for name in _WANTED if name not in table.columns]:
            raise ValueError(f"tables must be of reliability_table, column {missing[0]!r} is missing")
        if not len(table):
            raise ValueError("tables must hold at least one bin, found no row")
    drawn: Axes = panels(ax, 1, "tables", width=3.8, height=3.9)[0]
    lowest = min(float(table["bin_low"].min()) for table in named.values())
    drawn.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, zorder=2)
    handles: list[Line2D | Patch] = [Line2D([], [], color=INK, linewidth=0.8, label="calibrated")]
    if len(named) == 1:
        (only,) = named.values()
        centre, half = only["mean_probability"].to_numpy(), 1.645 * only["chance_error"].to_numpy()
        low, high = np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)
        drawn.vlines(centre, low, high, color=_BAND, linewidth=9, zorder=1)
        handles.append(Patch(color=_BAND, linewidth=0, label="nine in ten, by chance"))
    for number, (name, table) in enumerate(named.items()):
        x, y = table["mean_probability"].to_numpy(), table["share_right"].to_numpy()
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": MARKERS[number % len(MARKERS)],
            "markersize": 5,
        }
        style |= {"linestyle": "none", "zorder": 4 + number}
        whiskers = np.nan_to_num(np.abs(table[["low", "high"]].to_numpy().T - y))
        drawn.errorbar(x, y, whiskers, elinewidth=1.0, capsize=2, **style)
        if name:
            handles.append(Line2D([], [], label=name, **style))
        elif len(named) == 1:
            handles.append(Line2D([], [], label="edges, 95 % over scenes", **style))
    if len(named) == 1:
        for x, count in zip(only["mean_probability"], only["num_edges"], strict=True):
            drawn.annotate(
                f"{count:,}",
                (x, 1.02),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=7,
                rotation=90,
                color=INK,
            )
        drawn.annotate(
            "edges", (0, 1.02), xycoords="axes fraction", ha="right", va="bottom", fontsize=7, rotation=90, color=INK
        )
    margin = 0.03 * (1 - lowest)
    bottom = min(lowest, *(float(np.fmin(table["low"], table["share_right"]).min()) for table in named.values()))
    drawn.set(xlim=(lowest - margin, 1 + margin), ylim=(bottom - margin, 1 + margin))
    drawn.set(xlabel="probability that an edge was given", ylabel="share of edges that are right")
    plain(drawn)
    layout: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "frameon": False, "fontsize": 8}
    drawn.legend(handles=handles, ncols=2, **layout)
    return drawn
