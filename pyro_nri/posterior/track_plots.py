"""Pictures of motion: what was seen, what is predicted, and how far predictions spread."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pyro_nri.posterior.figures import COLOURS, DASHES, INK, MARKERS, AxesLike, legend_below, panels, plain
from pyro_nri.scenes.scenes import Scenes

_BEFORE = 10  # observed frames shown before the prediction starts


def plot_predictions(
    paths: xr.Dataset,
    recording: str,
    *,
    scenes: Scenes | None = None,
    states: Sequence[str] | None = None,
    num_before: int = _BEFORE,
    axes: AxesLike = None,
) -> NDArray[Any]:
    """State variables over time: lines are predicted means, fans their intervals, dots what was observed.

    Args:
        paths: from :func:`~pyro_nri.posterior.predictions.predict`.
        recording: name of the recording.
        scenes: scenes with that recording, whose frames are drawn as dots; default: predictions alone.
        states: names of the state variables drawn; default: all.
        num_before: observed frames before the start that are drawn.
        axes: one for each state variable; default: a new figure.

    Returns:
        The axes, ``[number of state variables]``.

    Raises:
        ValueError: the recording or a state variable does not exist, or there are fewer axes than state variables.
    """
    one = _recording(paths, recording)
    known = [str(name) for name in one["state"].values.tolist()]
    chosen = list(states or known)
    if unknown := [name for name in chosen if name not in known]:
        raise ValueError(f"states must be among {', '.join(known)}, found {unknown[0]!r}")
    entities = _entities(one)
    observed = None if scenes is None else _observed(scenes, recording)
    start, frames = int(paths.attrs["start"]), one["frame"].values
    drawn = panels(axes, len(chosen), "state variables", width=3.4, height=2.2, num_columns=2, sharex=True)
    for ax, name in zip(drawn, chosen, strict=True):
        column = known.index(name)
        for n in range(len(entities)):
            style = _style(n)
            low, mean, high = (one[part].values[:, n, column] for part in ("low", "mean", "high"))
            ax.fill_between(frames, low, high, color=style["color"], alpha=0.25, linewidth=0, zorder=2)
            ax.plot(frames, mean, linewidth=1.2, zorder=3, **style)
            if observed is not None:
                first, last = max(start - num_before, 0), min(int(frames[-1]) + 1, len(observed))
                dots = {"marker": MARKERS[n % len(MARKERS)], "markersize": 2.2, "linestyle": "none"}
                ax.plot(np.arange(first, last), observed[first:last, n, column], color=style["color"], zorder=4, **dots)
        ax.axvline(start, color=INK, linewidth=0.8, zorder=1)
        ax.set_ylabel(f"{name} (units of the data)")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        plain(ax)
        spec = ax.get_subplotspec()
        if spec is None or spec.is_last_row() or axes is not None or len(chosen) == 3:
            ax.set_xlabel(f"frame (predicted from {start} on)")
    _legend(axes, drawn, paths, entities, observed is not None)
    return drawn


def plot_tracks(
    paths: xr.Dataset,
    recording: str,
    *,
    scenes: Scenes | None = None,
    num_before: int = _BEFORE,
    ax: Axes | None = None,
) -> Axes:
    """Paths in the plane of x and y: lines are predicted means, ellipses their intervals, dots what was observed.

    Args:
        paths: from :func:`~pyro_nri.posterior.predictions.predict`, of states that have an x and a y.
        recording: name of the recording.
        scenes: scenes with that recording, whose frames are drawn as dots; default: predictions alone.
        num_before: observed frames before the start that are drawn.
        ax: default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the recording does not exist, or states have no x and y.
    """
    one = _recording(paths, recording)
    states = [str(name) for name in one["state"].values.tolist()]
    if not {"x", "y"} <= set(states):
        raise ValueError(f"tracks need states with x and y, found {', '.join(states)}")
    plane = [states.index("x"), states.index("y")]
    entities = _entities(one)
    observed = None if scenes is None else _observed(scenes, recording)
    start, frames = int(paths.attrs["start"]), one["frame"].values
    drawn: Axes = panels(ax, 1, "recordings", width=4.2, height=4.2)[0]
    for n in range(len(entities)):
        style = _style(n)
        low, mean, high = (one[part].values[:, n][:, plane] for part in ("low", "mean", "high"))
        for centre, (width, height) in zip((low + high) / 2, high - low, strict=True):
            if np.isfinite(centre).all():
                shape = Ellipse((centre[0], centre[1]), width, height, color=style["color"], alpha=0.15, linewidth=0)
                drawn.add_patch(shape)
        drawn.plot(*mean.T, linewidth=1.3, zorder=3, **style)
        marker = {"marker": MARKERS[n % len(MARKERS)], "color": style["color"]}
        if observed is not None:
            first, last = max(start - num_before, 0), min(int(frames[-1]) + 1, len(observed))
            seen = observed[first:last, n][:, plane]
            drawn.plot(*seen.T, markersize=2.2, linestyle="none", zorder=4, **marker)
            drawn.plot(*observed[start, n][plane], markersize=5.5, markeredgecolor="white", zorder=5, **marker)
    drawn.set(xlabel="x (units of the data)", ylabel="y (units of the data)", title=f"recording {recording}")
    drawn.set_aspect("equal", adjustable="datalim")
    plain(drawn)
    _legend(ax, np.array([drawn]), paths, entities, observed is not None)
    return drawn


def _recording(paths: xr.Dataset, recording: str) -> xr.Dataset:
    known = [str(name) for name in paths["recording"].values.tolist()]
    if recording not in known:
        raise ValueError(f"the predictions have no recording {recording!r}")
    return paths.isel(recording=known.index(recording))


def _entities(one: xr.Dataset) -> list[str]:
    """Names of the entities; those of padding, which come last, are empty and left out."""
    return [str(name) for name in one["entity_name"].values.tolist() if name]


def _observed(scenes: Scenes, recording: str) -> NDArray[np.float64]:
    """States of a recording ``[T, N, D]``, NaN where nothing was seen."""
    if recording not in scenes.scene_names:
        raise ValueError(f"scenes have no recording {recording!r}")
    b = scenes.scene_names.index(recording)
    seen = scenes.observation_mask[b].numpy()[..., None]
    return np.where(seen, scenes.trajectory[b].double().numpy(), np.nan)


def _style(n: int) -> dict[str, Any]:
    return {"color": COLOURS[n % len(COLOURS)], "linestyle": DASHES[n % len(DASHES)]}


def _legend(axes: AxesLike, drawn: NDArray[Any], paths: xr.Dataset, entities: list[str], any_seen: bool) -> None:
    handles: list[Any] = [
        Line2D([], [], linewidth=1.3, marker=MARKERS[n % len(MARKERS)], markersize=3.5, label=name, **_style(n))
        for n, name in enumerate(entities)
    ]
    share = f"{100 * paths.attrs['interval']:g} % of draws"
    handles.append(Patch(color="0.4", alpha=0.3, linewidth=0, label=share))
    if any_seen:
        handles.append(Line2D([], [], color="0.3", marker="o", markersize=2.5, linestyle="none", label="observed"))
    legend_below(axes, drawn, handles, ncols=4 if len(drawn) > 1 else 3)
