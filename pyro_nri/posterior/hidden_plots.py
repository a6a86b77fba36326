"""Pictures of hidden entities: the recorded tracks, the path of what was not recorded, what it pulls on; as a film."""

import os
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.figures import COLOURS, DASHES, INK
from pyro_nri.posterior.hidden_frames import hidden_group
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes.files import written_beside

#: Paths that are drawn of each hidden entity.
NUM_PATHS = 40
_FAINTEST = 0.05


def plot_hidden(
    tree: xr.DataTree, scene: str | None = None, *, hidden_type: int | None = None, axes: Axes | None = None
) -> Axes:
    """Draw one scene: recorded tracks, a fan of paths of each hidden entity, and edges from it at the last frame.

    Args:
        tree: a posterior with hidden entities, whose state has x and y.
        scene: its name; default: the first scene with a hidden entity.
        hidden_type: a type that means "no interaction": edges are then as wide as any other type is probable.
        axes: where to draw; default: a new figure.

    Returns:
        The axes.

    Raises:
        ValueError: the posterior has no hidden entities, no such scene, or no x and y.
    """
    picture = _Picture(tree, scene, hidden_type)
    if axes is None:
        axes = Figure(figsize=(5, 5), layout="constrained").add_subplot()
    picture.tracks(axes, picture.observed.shape[0])
    picture.edges(axes, picture.observed.shape[0] - 1)
    picture.finish(axes)
    return axes


def animate_hidden(
    tree: xr.DataTree,
    path: str | os.PathLike[str],
    scene: str | None = None,
    *,
    hidden_type: int | None = None,
    frames_per_second: int = 10,
) -> None:
    """Write the scene of :func:`plot_hidden` as a film, frame by frame.

    Args:
        tree: a posterior with hidden entities.
        path: ends in ``.gif``.
        scene: its name; default: the first scene with a hidden entity.
        hidden_type: as in :func:`plot_hidden`.
        frames_per_second: speed.

    Raises:
        ValueError: the path has another suffix, or as in :func:`plot_hidden`.
    """
    if Path(path).suffix != ".gif":
        raise ValueError(f"path must end in .gif, found {os.fspath(path)!r}")
    picture = _Picture(tree, scene, hidden_type)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()

    def show(frame: int) -> list[Axes]:
        axes.clear()
        picture.tracks(axes, frame + 1)
        picture.edges(axes, frame)
        picture.finish(axes)
        return [axes]

    film = FuncAnimation(figure, show, frames=picture.observed.shape[0])
    with written_beside(Path(path)) as beside:
        film.save(beside, writer=PillowWriter(fps=frames_per_second), dpi=80)


class _Picture:
    """What there is to draw of one scene."""

    def __init__(self, tree: xr.DataTree, scene: str | None, hidden_type: int | None) -> None:
        hidden = hidden_group(tree)
        names = hidden["scene"].values.tolist()
        if scene is None:
            with_some = [name for name, number in zip(names, hidden["num_hidden"].values, strict=True) if number]
            if not with_some:
                raise ValueError("no scene of the posterior has a hidden entity")
            scene = with_some[0]
        if scene not in names:
            raise ValueError(f"the posterior has no scene {scene!r}")
        states = hidden["state"].values.tolist()
        if not {"x", "y"} <= set(states):
            raise ValueError(f"pictures of hidden entities need states x and y, found {', '.join(states)}")
        self.scene, place = scene, names.index(scene)
        axes = [states.index("x"), states.index("y")]
        number = int(hidden["num_hidden"].values[place])
        paths = hidden["path"].values[:, place, :number][..., axes]  # [R, N_hidden, T, 2]
        self.paths = paths[np.linspace(0, len(paths) - 1, NUM_PATHS).round().astype(int)]
        self.mean: NDArray[np.float64] = paths.mean(0)
        constant = group(tree, "constant_data")
        recording = constant["structure_group"].values.tolist().index(scene)
        self.names = constant["entity_name"].values[recording].tolist()
        seen = constant["observation_mask"].values[recording].any(0)
        self.entities = np.flatnonzero(seen)
        self.observed = group(tree, "observed_data")["trajectory"].values[recording][:, seen][..., axes]
        self.frames = hidden["frame"].values
        self.first_hidden = len(seen) - hidden.sizes["hidden"]
        self.hidden_type, self.types = hidden_type, constant["type"].values.tolist()
        if hidden_type is not None and not 0 <= hidden_type < len(self.types):
            raise ValueError(f"hidden_type must be between 0 and {len(self.types) - 1}, found {hidden_type}")
        self._find_edges(tree, scene)
        both = np.concatenate([self.observed.reshape(-1, 2), self.mean.reshape(-1, 2)])
        self.centre, self.reach = (both.max(0) + both.min(0)) / 2, 0.55 * float(np.ptp(both, axis=0).max())

    def _find_edges(self, tree: xr.DataTree, scene: str) -> None:
        """Edges from hidden to recorded entities: (hidden, place of the receiver, type, how sure)."""
        posterior = group(tree, "posterior")
        probability, _ = edge_probability(tree)
        place = {self.names[entity]: number for number, entity in enumerate(self.entities)}
        number_of = {f"hidden {n + 1}": n for n in range(len(self.mean))}
        self.pulls = []
        for edge in np.flatnonzero(posterior["scene"].values == scene):
            sender, receiver = str(posterior["sender"].values[edge]), str(posterior["receiver"].values[edge])
            if sender in number_of and receiver in place:
                shown = probability[edge].copy()
                if self.hidden_type is not None:
                    shown[self.hidden_type] = -1
                if shown.max() >= _FAINTEST:
                    kind = int(shown.argmax())
                    self.pulls.append((number_of[sender], place[receiver], kind, float(shown.max())))

    def tracks(self, axes: Axes, num_frames: int) -> None:
        for number, entity in enumerate(self.entities):
            track = self.observed[:num_frames, number]
            axes.plot(*track.T, color="#999999", lw=1, zorder=1)
            axes.plot(*track[-1], "o", color=INK, ms=6, zorder=4)
            axes.annotate(self.names[entity], track[-1], xytext=(5, 5), textcoords="offset points", fontsize=8)
        for number in range(len(self.mean)):
            colour = COLOURS[(1 + 2 * number) % len(COLOURS)]
            for path in self.paths[:, number]:
                axes.plot(*path[:num_frames].T, color=colour, lw=0.6, alpha=0.15, zorder=2)
            axes.plot(*self.mean[number, :num_frames].T, color=colour, lw=1.5, zorder=3)
            end = self.mean[number, num_frames - 1]
            axes.plot(*end, "o", mfc="white", mec=colour, mew=1.8, ms=8, zorder=5)
            axes.annotate(f"hidden {number + 1}", end, xytext=(6, -11), textcoords="offset points", fontsize=8)

    def edges(self, axes: Axes, frame: int) -> None:
        for hidden, receiver, kind, sure in self.pulls:
            ends = np.stack([self.mean[hidden, frame], self.observed[frame, receiver]])
            axes.plot(
                *ends.T,
                color=COLOURS[kind % len(COLOURS)],
                ls=DASHES[kind % len(DASHES)],
                lw=0.3 + 2 * sure,
                alpha=0.7,
                zorder=0,
            )

    def finish(self, axes: Axes) -> None:
        axes.set_xlim(self.centre[0] - self.reach, self.centre[0] + self.reach)
        axes.set_ylim(self.centre[1] - self.reach, self.centre[1] + self.reach)
        axes.set_aspect("equal")
        axes.set(xlabel="x", ylabel="y", title=f"scene {self.scene}")
