"""How far a figure may be off because the scenes happen to be few: a bootstrap over whole scenes.

Edges of one scene are not independent, so scenes are drawn again with replacement, never edges. A figure is
``{"value": v, "low": l, "high": h}``: for all scenes, and its 95 % percentile interval. One scene alone gives no
interval: its ``low`` and ``high`` are None.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Score = dict[str, float | None]


def sum_by_scene(columns: NDArray[np.float64], scene: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum edges ``[M, P]`` over each scene that occurs, ``[G, P]``."""
    names, owner = np.unique(scene, return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, owner, columns)
    return sums


def scene_weights(num_scenes: int, num_replicates: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each scene counts, ``[G]``: once, then in each replicate as often as it was drawn with replacement."""
    rng = np.random.default_rng(seed)
    yield np.ones(num_scenes, np.int64)
    for _ in range(num_replicates):
        yield np.bincount(rng.integers(num_scenes, size=num_scenes), minlength=num_scenes)


def replicate_totals(sums: NDArray[np.float64], num_replicates: int, seed: int) -> NDArray[np.float64]:
    """Totals ``[1 + R, P]``: over all scenes, then over scenes drawn with replacement, the same for every column."""
    return np.stack([weight @ sums for weight in scene_weights(len(sums), num_replicates, seed)])


def as_score(values: NDArray[np.float64], num_scenes: int) -> Score:
    """Score from the figure itself, followed by its replicates, ``[1 + R]``; undefined replicates are left out."""
    defined = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None}
    if num_scenes < 2 or not len(defined):
        return {"value": float(values[0]), "low": None, "high": None}
    low, high = np.quantile(defined, [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
