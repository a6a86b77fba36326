"""Some of the scenes of a posterior, and what is known of each scene beside its motion."""

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group


def add_columns(tree: xr.DataTree, table: pd.DataFrame) -> xr.DataTree:
    """The posterior with columns of a table as variables (recording) of ``constant_data``, such as conditions.

    Args:
        tree: a posterior.
        table: a column ``scene`` with names of recordings, or of structures that several share, and any others. A long
            table of trajectories will do if what it says does not change within a scene; columns that do change are
            left out.

    Raises:
        ValueError: the table has no column ``scene``, lacks a scene, or has no column that is constant within scenes.
    """
    if "scene" not in table.columns:
        raise ValueError(f"table has no column 'scene', its columns are {', '.join(map(str, table.columns))}")
    constant = group(tree, "constant_data")
    rows = table.assign(scene=table["scene"].astype(str)).groupby("scene", sort=False)
    steady = [str(name) for name in table.columns if name != "scene" and (rows[name].nunique(dropna=False) == 1).all()]
    if not steady:
        raise ValueError("table has no column beside 'scene' that is constant within scenes")
    first = rows[steady].first()
    names = constant["recording"].values.tolist()
    shared = constant["structure_group"].values.tolist()
    keys = [name if name in first.index else other for name, other in zip(names, shared, strict=True)]
    if missing := [name for name, key in zip(names, keys, strict=True) if key not in first.index]:
        raise ValueError(f"table has no scene {missing[0]!r}, which the posterior has")
    found = first.loc[keys]
    new = [name for name in steady if name not in constant.variables]
    values = {name: ("recording", _plain(found[name])) for name in new}
    result = tree.copy()
    result["constant_data"] = xr.DataTree(constant.assign(values))
    return result


def scene_values(tree: xr.DataTree, column: str) -> NDArray[np.generic]:
    """What a variable (recording) of ``constant_data`` says of each scene, ``[G]``.

    Raises:
        ValueError: there is no such variable, or recordings that share a structure differ in it.
    """
    constant = group(tree, "constant_data")
    if column not in constant.variables or constant[column].dims != ("recording",):
        known = [str(name) for name in constant.variables if constant[str(name)].dims == ("recording",)]
        raise ValueError(f"the posterior has no column {column!r} of its scenes, only {', '.join(sorted(known))}")
    values = constant[column].values
    names = tree["sample_stats"].to_dataset()["scene"].values
    number = {name: g for g, name in enumerate(names.tolist())}
    owner = np.array([number[name] for name in constant["structure_group"].values.tolist()])
    _, first = np.unique(owner, return_index=True)
    if (differs := values[first][owner] != values).any():
        name = str(names[owner[int(differs.argmax())]])
        raise ValueError(f"column {column!r} differs between recordings that share the structure {name!r}")
    return np.asarray(values[first])


def select_scenes(tree: xr.DataTree, chosen: NDArray[np.bool_]) -> xr.DataTree:
    """A posterior of some of its scenes only, bool ``[G]``; what comparisons do not need is left out."""
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    stats = group(tree, "sample_stats")
    edge = chosen[posterior["scene_index"].values]
    number = np.cumsum(chosen) - 1
    scene_index = number[posterior["scene_index"].values[edge]]
    recording = np.isin(constant["structure_group"].values, stats["scene"].values[chosen])
    parts: dict[str, xr.Dataset] = {
        "/": xr.Dataset(attrs=tree.attrs),
        "posterior": posterior.isel(edge=edge).assign_coords(scene_index=("edge", scene_index)),
        "sample_stats": stats.isel(scene=chosen),
        "constant_data": constant.isel(edge=edge, recording=recording),
    }
    if "edge_posterior" in tree.children:
        known = group(tree, "edge_posterior").isel(scene=chosen, edge=edge)
        parts["edge_posterior"] = known.assign_coords(scene_index=("edge", scene_index))
    return xr.DataTree.from_dict(parts)


def _plain(column: pd.Series) -> NDArray[np.generic]:
    """Numbers as they are, anything else as text, which a NetCDF file can hold."""
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return column.to_numpy() if is_number else column.astype(str).to_numpy(str)
