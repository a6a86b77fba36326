"""Pictures of a posterior over structures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pyro_nri.posterior.align import apply_alignment, fit_alignment
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.figures import COLOURS, DASHES, INK, AxesLike, chosen_scenes, panels, type_names
from pyro_nri.posterior.probability import edge_probability

_RADIUS, _HEAD, _BEND = 0.13, 0.1, 0.16  # of an entity, of an arrow head, of an arrow's bow; the panel is 2 wide
_FAINTEST = 0.05  # arrows less probable than this are left out when one type is hidden


def plot_structures(
    tree: xr.DataTree,
    *,
    scenes: Sequence[str] | None = None,
    max_scenes: int = 6,
    hidden_type: int | None = None,
    layout: str = "position",
    axes: AxesLike = None,
) -> NDArray[Any]:
    """Draw each scene's structure: an arrow for each edge in the colour of its most probable type, wide if sure.

    Where the truth is known, a cross marks each edge whose most probable type is wrong.

    Args:
        tree: a posterior.
        scenes: names of the scenes to draw; default: the first ones.
        max_scenes: number of panels at most.
        hidden_type: a type that means "no interaction": each arrow then shows the most probable of the other types, as
            wide as that is probable, and those below 5 % are left out.
        layout: "position": entities at their mean position, pushed apart where they would touch (on a circle if the
            state has no x and y); "circle".
        axes: one for each scene drawn; default: a new figure.

    Returns:
        The axes, ``[number of scenes drawn]``.

    Raises:
        ValueError: a scene, a type or a layout does not exist, or there are fewer axes than scenes.
    """
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    probability, _ = edge_probability(tree)
    names = type_names(tree)
    if layout not in ("position", "circle"):
        raise ValueError(f"layout must be 'position' or 'circle', found {layout!r}")
    if hidden_type is not None and not 0 <= hidden_type < len(names):
        raise ValueError(f"hidden_type must be between 0 and {len(names) - 1}, found {hidden_type}")
    chosen = chosen_scenes(tree, scenes, max_scenes)
    drawn = panels(axes, len(chosen), "scenes")
    wrong = wrong_edges(constant, probability)
    shown = probability.copy()
    if hidden_type is not None:
        shown[:, hidden_type] = -1
    kind, sure = shown.argmax(1), shown.max(1)
    for ax, name in zip(drawn, chosen, strict=True):
        rows = np.flatnonzero(posterior["scene"].values == name)
        entities, positions = _entities(tree, name, layout)
        number = {entity: n for n, entity in enumerate(entities)}
        for edge in rows[np.argsort(sure[rows])]:
            ends = (number[posterior[end].values[edge]] for end in ("sender", "receiver"))
            points = _bow(*(positions[n] for n in ends))
            if hidden_type is None or sure[edge] >= _FAINTEST:
                _draw_arrow(ax, points, int(kind[edge]), float(sure[edge]))
            if wrong[edge]:
                middle = points[len(points) // 2]
                ax.plot(*middle, "x", color="white", markersize=7.5, markeredgewidth=3.2, zorder=5)
                ax.plot(*middle, "x", color="black", markersize=6, markeredgewidth=1.3, zorder=6)
        _draw_entities(ax, entities, positions)
        ax.set_title(f"scene {name}", fontsize=9, color=INK)
    any_wrong = bool(wrong[np.isin(posterior["scene"].values, chosen)].any())
    handles = _legend(names, hidden_type, any_wrong=any_wrong)
    style: dict[str, Any] = {"handles": handles, "frameon": False, "fontsize": 8, "handlelength": 2.8}
    if axes is None:
        ncols = min(len(handles), 2 * min(len(drawn), 3))
        drawn[0].figure.legend(loc="outside lower center", ncols=ncols, **style)
    else:
        drawn[0].legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0, **style)
    return drawn


def wrong_edges(constant: xr.Dataset, probability: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the most probable type of each edge is known to be wrong, ``[M]``."""
    if "true_edge_type" not in constant:
        return np.zeros(len(probability), bool)
    truth, best = constant["true_edge_type"].values, probability.argmax(1)
    if "type_alignment" in constant:
        alignment = constant["type_alignment"].values
    else:
        alignment = fit_alignment(best, truth, num_edge_types=probability.shape[1])
    return np.asarray(apply_alignment(best, alignment) != truth)


def _entities(tree: xr.DataTree, scene: str, layout: str) -> tuple[list[str], NDArray[np.float64]]:
    """Names and places in the panel of the scene's entities, ``[N]`` and ``[N, 2]`` within [-1, 1]."""
    constant, observed = group(tree, "constant_data"), group(tree, "observed_data")
    recordings = np.flatnonzero(constant["structure_group"].values == scene)
    present = constant["entity_mask"].values[recordings[0]].astype(bool)
    names = constant["entity_name"].values[recordings[0]][present].tolist()
    states = observed["state"].values.tolist()
    angle = np.pi / 2 - 2 * np.pi * np.arange(len(names)) / len(names)
    circle = 0.85 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    if layout == "circle" or not {"x", "y"} <= set(states):
        return names, circle
    path = observed["trajectory"].values[recordings][..., [states.index("x"), states.index("y")]][:, :, present]
    seen = np.isfinite(path)
    if not seen.any((0, 1)).all():
        return names, circle
    mean = np.where(seen, path, 0).sum((0, 1)) / seen.sum((0, 1))
    return names, _spread(mean)


def _spread(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit places ``[N, 2]`` into [-0.85, 0.85] and push apart those that would touch, until none do."""
    places = places - (places.max(0) + places.min(0)) / 2
    places = 0.85 * places / max(np.abs(places).max(), 1e-12)
    count = len(places)
    apart = min(0.9, 1.9 / np.sqrt(count))
    turn = 2.4 * np.arange(count)  # any fixed directions, for entities at one place
    places = places + 1e-3 * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    for _ in range(300):
        difference = places[:, None] - places
        distance = np.linalg.norm(difference, axis=-1) + np.eye(count)
        push = np.maximum(apart - distance, 0) * (1 - np.eye(count))
        if push.max() < 1e-3:
            break
        places = np.clip(places + 0.5 * (push[..., None] * difference / distance[..., None]).sum(1), -0.87, 0.87)
    return np.asarray(places)


def _bow(start: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Points of a bow from the rim of one entity to the rim of another, ``[P, 2]``; there and back bend apart."""
    along = end - start
    control = (start + end) / 2 + _BEND * np.array([-along[1], along[0]])
    t = np.linspace(0, 1, 120)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end
    clear = (np.linalg.norm(points - start, axis=1) > 1.15 * _RADIUS) & (
        np.linalg.norm(points - end, axis=1) > 1.15 * _RADIUS
    )
    return np.asarray(points[clear] if clear.sum() >= 2 else points[[40, 60, 80]])


def _draw_arrow(ax: Axes, points: NDArray[np.float64], kind: int, sure: float) -> None:
    colour, width = COLOURS[kind % len(COLOURS)], _width(sure)
    size = _HEAD * (0.6 + 0.4 * sure)
    tip = points[-1]
    shaft = points[np.linalg.norm(points - tip, axis=1) > 0.8 * size]
    base = shaft[-1] if len(shaft) else points[0]
    if len(shaft) >= 2:
        dash = DASHES[kind % len(DASHES)]
        ax.plot(*shaft.T, color=colour, linewidth=width, linestyle=dash, dash_capstyle="butt", zorder=2 + sure)
    ahead = (tip - base) / max(np.linalg.norm(tip - base), 1e-12)
    side = 0.5 * size * np.array([-ahead[1], ahead[0]])
    foot = tip - size * ahead
    ax.add_patch(Polygon([tip, foot + side, foot - side], closed=True, color=colour, linewidth=0, zorder=2 + sure))


def _draw_entities(ax: Axes, names: list[str], places: NDArray[np.float64]) -> None:
    inside = max(len(name) for name in names) <= 3
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for name, place in zip(names, places, strict=True):
        ax.add_patch(Circle((place[0], place[1]), _RADIUS, facecolor="white", edgecolor=INK, linewidth=1, zorder=4))
        outward = place - places.mean(0)
        outward = outward / np.linalg.norm(outward) if np.linalg.norm(outward) > 0.05 else np.array([0.0, -1.0])
        at = place if inside else place + 1.3 * _RADIUS * outward
        ax.text(
            at[0],
            at[1],
            name,
            ha="center" if inside or abs(outward[0]) < 0.4 else "left" if outward[0] > 0 else "right",
            va="center" if inside or abs(outward[1]) < 0.4 else "bottom" if outward[1] > 0 else "top",
            fontsize=8,
            color=INK,
            path_effects=halo,
            zorder=7,
        )
    ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05 if inside else 1.35), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _legend(type_names: list[str], hidden_type: int | None, *, any_wrong: bool) -> list[Line2D]:
    handles = [
        Line2D([], [], color=COLOURS[k % len(COLOURS)], linestyle=DASHES[k % len(DASHES)], linewidth=2, label=name)
        for k, name in enumerate(type_names)
        if k != hidden_type
    ]
    handles += [Line2D([], [], color="0.5", linewidth=_width(p), label=f"probability {p:g}") for p in (0.5, 1.0)]
    if any_wrong:
        handles.append(Line2D([], [], color="black", marker="x", linestyle="none", markersize=6, label="wrong"))
    return handles


def _width(probability: float) -> float:
    """Line width in points."""
    return 0.3 + 2.2 * probability**2
