"""Some scenes of a posterior: chosen by name, or a few at a time so that never all draws are in memory."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group

#: Draws of edges that are looked at together: 32 MiB as stored, a few hundred with what is made of them.
MAX_VALUES = 2**25


def scene_names(tree: xr.DataTree) -> list[str]:
    """Names of the scenes of a posterior, in its order."""
    return [str(name) for name in group(tree, "sample_stats")["scene"].values.tolist()]


def select_scenes(tree: xr.DataTree, scenes: Sequence[str]) -> xr.DataTree:
    """The posterior of some scenes alone, in the order that they have in the posterior.

    Nothing is read from a file that :func:`~pyro_nri.posterior.storage.open_posterior` opened until it is used.

    Args:
        tree: a posterior.
        scenes: names of scenes.

    Raises:
        ValueError: a scene does not exist, or none is named.
    """
    names = scene_names(tree)
    wanted = [scenes] if isinstance(scenes, str) else list(scenes)
    if not wanted:
        raise ValueError("scenes must name at least one scene, found none")
    if unknown := [name for name in wanted if name not in set(names)]:
        some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(f"the posterior has no scene {unknown[0]!r}, only {some}")
    chosen = set(wanted)
    return _select(tree, np.array([g for g, name in enumerate(names) if name in chosen]))


def scene_parts(tree: xr.DataTree, max_values: int = MAX_VALUES) -> Iterator[xr.DataTree]:
    """The posterior in parts of neighbouring scenes: each one scene, or at most ``max_values`` draws of edges."""
    sizes = group(tree, "posterior")["edge_type"].sizes
    num_scenes = group(tree, "sample_stats").sizes["scene"]
    per_scene = max(sizes["chain"] * sizes["draw"] * sizes["edge"] // max(num_scenes, 1), 1)
    step = max(max_values // per_scene, 1)
    if step >= num_scenes:
        yield tree
        return
    for start in range(0, num_scenes, step):
        yield _select(tree, np.arange(start, min(start + step, num_scenes)))


def _select(tree: xr.DataTree, numbers: NDArray[np.int64]) -> xr.DataTree:
    """Scenes by their numbers, ascending."""
    names = np.array(scene_names(tree))[numbers]
    recordings = np.flatnonzero(np.isin(group(tree, "constant_data")["structure_group"].values, names))
    groups = {"/": xr.Dataset(attrs=tree.attrs)}
    for name, node in tree.children.items():
        dataset = node.to_dataset()
        rows: dict[str, NDArray[np.int64]] = {"scene": numbers, "recording": recordings}
        if "scene_index" in dataset:
            rows["edge"] = np.flatnonzero(np.isin(dataset["scene_index"].values, numbers))
        dataset = dataset.isel({axis: _as_slice(row) for axis, row in rows.items() if axis in dataset.dims})
        if "scene_index" in dataset:
            place = np.searchsorted(numbers, dataset["scene_index"].values)
            new = {"edge": np.arange(len(place)), "scene_index": ("edge", place)}
            dataset = dataset.assign_coords({key: value for key, value in new.items() if key in dataset.coords})
        groups[name] = dataset
    return xr.DataTree.from_dict(groups)


def _as_slice(rows: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Neighbours as a slice, which files read fast and arrays give without copying."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows
