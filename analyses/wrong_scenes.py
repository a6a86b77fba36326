"""Which scenes of charged particles stay wrong, does the posterior know it, and why?

    python analyses/wrong_scenes.py [--num-train 100] [--num-test 1000] [--minutes 1] [--seed 0]

The default of pair forces (geometric noise, independent prior) is trained on 100 scenes without labels and infers 1,000
others from 49 frames. Two charges of opposite sign that are bound go around each other; how fast follows from their
distance and speed. Where a turn takes less than about a frame, the frames do not show the motion, and what the others
do to the two is lost in what they do to each other.

Out, beside this file or in ``--out``: wrong_scenes.csv, a row for every held-out scene, most wrong edges first
(``mean_confidence``: mean probability of the types of its wrong edges, ``close_frames``: share of frames in which a
pair is closer than 0.2, ``smallest_distance`` of any pair, ``orbit_pair`` and ``orbit_frames``: the pair that turns
fastest and how long it takes, ``wrong_edges``: sender>receiver:probability), and wrong_scenes.png. A finished table is
kept and only drawn anew; delete it to start again. About 3 minutes. ``--smoke`` runs a small one in seconds.
"""

import argparse
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.align import apply_alignment
from pyro_nri.posterior.figures import COLOURS, INK
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

matplotlib.use("Agg")
CLOSE = 0.2
MAX_PANELS = 6
ORBITS = (0, 0.5, 1, 2, 4, 8, 16, np.inf)  # frames: bins of the last panel


def orbit_frames(scenes: Scenes) -> np.ndarray:
    """Frames in which each pair of opposite charges would go around if it were alone, ``[B, E]``; infinite if unbound.

    Kepler's third law for a relative acceleration of 2 / r²: the half axis a = 1 / (2 / r - v² / 2) gives a period of
    2 pi sqrt(a³ / 2). Median over the frames in which the pair is bound, where that is at least half of them.
    """
    distance, speed = pairs(scenes, 0), pairs(scenes, 2)
    bound = (speed**2 / 2 < 2 / distance) & (scenes.edge_type.numpy() == 0)[:, None]
    axis = 1 / np.where(bound, 2 / distance - speed**2 / 2, 1)
    period = np.where(bound, 2 * np.pi * np.sqrt(axis**3 / 2) / scenes.time_step, np.nan)
    bound = bound.mean(1) >= 0.5
    result = np.full(bound.shape, np.inf)
    result[bound] = np.nanmedian(period.swapaxes(1, 2)[bound], axis=-1)
    return result


def pairs(scenes: Scenes, first: int) -> np.ndarray:
    """Length of the difference of sender and receiver in two state variables, ``[B, T, E]``."""
    sender, receiver = edges.senders(scenes.num_entities), edges.receivers(scenes.num_entities)
    state = scenes.trajectory[..., first : first + 2]
    return (state[..., sender, :] - state[..., receiver, :]).norm(dim=-1).numpy()


def describe(scenes: Scenes, probability: np.ndarray, alignment: list[int]) -> pd.DataFrame:
    """The table."""
    sender, receiver = edges.senders(scenes.num_entities), edges.receivers(scenes.num_entities)
    sure, truth = probability.max(-1), scenes.edge_type.numpy()
    wrong = apply_alignment(probability.argmax(-1), alignment) != truth
    nearest, turn = pairs(scenes, 0).min(-1), orbit_frames(scenes)
    fastest = turn.argmin(1)
    rows = [
        {
            "scene": scenes.scene_names[b],
            "num_wrong": wrong[b].sum(),
            "mean_confidence": sure[b][wrong[b]].mean() if wrong[b].any() else np.nan,
            "close_frames": (nearest[b] < CLOSE).mean(),
            "smallest_distance": nearest[b].min(),
            "orbit_pair": f"{sender[fastest[b]]}-{receiver[fastest[b]]}",
            "orbit_frames": turn[b].min(),
            "wrong_edges": " ".join(f"{sender[e]}>{receiver[e]}:{sure[b, e]:.3f}" for e in np.flatnonzero(wrong[b])),
        }
        for b in np.argsort(-wrong.sum(1), kind="stable")
    ]
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, scenes: Scenes) -> Figure:
    """Tracks of the scenes with most wrong edges, and the share of wrong edges by the time of an orbit."""
    figure = Figure(figsize=(9.5, 10), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[3, 1])
    worst = table[table["num_wrong"] > 0].head(MAX_PANELS)
    for ax, (_, row) in zip(upper.subplots(2, 3).ravel(), worst.iterrows(), strict=False):
        draw_scene(ax, row, scenes[scenes.scene_names.index(row["scene"])])
    for ax in upper.axes[len(worst) :]:
        ax.set_axis_off()
    legend = "disc and ring: charges of opposite sign, last positions; dashed: edges whose most probable type is wrong"
    upper.suptitle(legend, fontsize=9, color=INK)
    ax = lower.subplots()
    place = pd.cut(table["orbit_frames"], [*ORBITS[:-1], 1e300], right=False).cat.codes.replace(-1, len(ORBITS) - 1)
    names = [f"{low:g} to {high:g}" for low, high in pairwise(ORBITS)]
    names[-1] = f"{ORBITS[-2]:g} or more"
    groups = table["num_wrong"].groupby(place)
    share = 100 * groups.mean() / scenes.num_edges
    bars = ax.bar(share.index, share, color=COLOURS[0], width=0.7)
    ax.bar_label(bars, [f"{s:.3g} %\n{n} scenes" for s, n in zip(share, groups.size(), strict=True)])
    ax.set_xticks(range(len(names) + 1), [*names, "no bound pair"])
    ax.set(xlabel="frames in which the fastest pair of opposite charges goes around once", ylabel="edges wrong (%)")
    ax.margins(y=0.35)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def draw_scene(ax: Axes, row: pd.Series, scene: Scenes) -> None:
    """Tracks, true charges by fill, wrong edges as arrows between the last positions."""
    position = scene.trajectory[0, :, :, :2].numpy()  # [T, N, 2]
    matrix = edges.to_matrix(scene.edge_type)[0].numpy()
    like = matrix[0] == 1
    like[0] = True
    for n in range(scene.num_entities):
        ax.plot(*position[:, n].T, "-", color=COLOURS[n], linewidth=1, alpha=0.8, zorder=1)
        face = COLOURS[n] if like[n] else "white"
        ax.plot(*position[-1, n], "o", color=COLOURS[n], markerfacecolor=face, markersize=8, zorder=3)
    drawn = [*position.reshape(-1, 2)]  # what a name must not cover
    for entry in row["wrong_edges"].split():
        sender, receiver = (position[-1, int(n)] for n in entry.split(":")[0].split(">"))
        style = {"arrowstyle": "-|>", "linestyle": (0, (4, 2)), "color": "black", "linewidth": 1, "shrinkB": 5}
        ax.annotate("", receiver, sender, arrowprops=style, zorder=2)
        drawn += [*np.linspace(sender, receiver, 30)]
    near = np.hypot(*(position[-1][:, None] - position[-1]).T) < 0.6
    for group in sorted({tuple(np.flatnonzero(row)) for row in near}):  # one name for those that lie upon each other
        place = free_place(position[-1, list(group)].mean(0), np.array(drawn))
        style = {"ha": "center", "va": "center", "path_effects": [withStroke(linewidth=2.5, foreground="w")]}
        ax.text(*place, ", ".join(map(str, group)), fontsize=9, color=INK, **style)
        drawn += [place]
    sure = [100 * float(entry.split(":")[1]) for entry in row["wrong_edges"].split()]
    title = f"scene {row['scene']}: {row['orbit_pair'].replace('-', ' and ')} orbit in {row['orbit_frames']:.2g} frames"
    title += f"\n{len(sure)} edges wrong, probability {min(sure):.0f} to {max(sure):.0f} %"
    ax.set_title(title, fontsize=9, color=INK)
    ax.set(aspect="equal", xlim=(-5.5, 5.5), ylim=(-5.5, 5.5), xlabel="x (walls at ±5)", ylabel="y")
    ax.tick_params(labelsize=8)


def free_place(centre: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Of the places around a point ``[2]``, within the picture, the farthest from what is drawn, ``[P, 2]``."""
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    around = centre + np.stack([np.cos(angle), np.sin(angle)], 1)
    around = around[(np.abs(around) < 5.1).all(1)]
    return around[np.hypot(*(around[:, None] - drawn).T).min(0).argmax()]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=100, help="training scenes")
    parser.add_argument("--num-test", type=int, default=1000, help="held-out scenes")
    parser.add_argument("--minutes", type=float, default=1.0, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    num_train, num_test, minutes = arguments.num_train, arguments.num_test, arguments.minutes
    path, options = arguments.out / "wrong_scenes.csv", {}
    if arguments.smoke:
        num_train, num_test, minutes, options = 4, 20, 0.005, {"num_entities": 3, "num_frames": 12}
        path = path.with_name("wrong_scenes_smoke.csv")
    torch.set_num_threads(1)
    test = simulate("charged", num_test, seed=0, **options)
    if not path.exists():
        train = simulate("charged", num_train, seed=arguments.seed + 1, **options)
        found = train_and_infer(train, test, minutes, arguments.seed)
        write_frame(describe(test, *found), path)
    table = read_frame(path)
    with written_beside(path.with_suffix(".png")) as beside:
        draw(table, test).savefig(beside, dpi=150)
    print((wrong := table[table["num_wrong"] > 0]).head(20).round(3).to_string(index=False))
    sure = np.average(wrong["mean_confidence"], weights=wrong["num_wrong"]) if len(wrong) else np.nan
    orbits = [table["orbit_frames"][has].median() for has in (table["num_wrong"] > 0, table["num_wrong"] == 0)]
    print(f"{len(wrong)} of {len(table)} scenes have wrong edges, of mean probability {sure:.3f}; median time of the")
    print(f"fastest orbit: {orbits[0]:.2g} frames there, {orbits[1]:.2g} in the other scenes")


def train_and_infer(train: Scenes, test: Scenes, minutes: float, seed: int) -> tuple[np.ndarray, list[int]]:
    """Probabilities ``[B, E, K]`` of the test scenes' edges, and the alignment fitted on the training scenes."""
    checkpoint = fit(train, spec=ModelSpec(2, dynamics="pair-forces"), minutes=minutes, seed=seed)
    with torch.no_grad():
        prior = checkpoint.model.structure_prior(checkpoint.model.prepare(test))
        posterior = enumerate_posterior(checkpoint.model.likelihood(test), prior)
    assert checkpoint.alignment is not None
    return posterior.edge_probability.numpy(), checkpoint.alignment


if __name__ == "__main__":
    main()
