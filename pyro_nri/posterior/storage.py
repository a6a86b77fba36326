"""The file that holds a posterior: NetCDF, written whole or not at all."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xarray as xr

from pyro_nri.posterior.convert import FORMAT_VERSION, LIBRARY
from pyro_nri.scenes.files import written_beside

REQUIRED = {
    "posterior": ("edge_type", "scene", "sender", "receiver", "scene_index", "edge_index"),
    "sample_stats": ("log_joint", "accepted", "proposed", "move_kind", "temperature", "scene"),
    "observed_data": ("trajectory", "recording", "frame", "state"),
    "constant_data": ("time_step", "observation_mask", "entity_mask", "entity_name", "structure_group"),
}


def write_posterior(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a posterior as NetCDF, beside ``path`` first and then renamed, so that no half file is ever seen there."""
    encoding: dict[str, dict[str, Any]] = {}
    for name, node in tree.children.items():
        names = ("edge_type", "accepted", "proposed", "receiver_probability")
        if variables := [v for v in names if v in node and node[v].size]:
            encoding[f"/{name}"] = {variable: {"zlib": True, "complevel": 1} for variable in variables}
    with written_beside(Path(path)) as beside:
        tree.to_netcdf(beside, engine="h5netcdf", encoding=encoding)


def read_posterior(path: str | os.PathLike[str]) -> xr.DataTree:
    """Read a posterior into memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a posterior of this library, is damaged, or was written by a newer version.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no posterior file {os.fspath(path)}")
    try:
        with xr.open_datatree(path, engine="h5netcdf") as opened:
            attributes, children = dict(opened.attrs), set(opened.children)
            if attributes.get("inference_library") == LIBRARY and _format_of(attributes) <= FORMAT_VERSION:
                tree = opened.load()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{os.fspath(path)} is not a readable NetCDF file; it may be damaged or cut off") from error
    if attributes.get("inference_library") != LIBRARY:
        raise ValueError(f"{os.fspath(path)} is not a posterior that {LIBRARY} wrote")
    if _format_of(attributes) > FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)} has posterior format {_format_of(attributes)}, this version of {LIBRARY} reads "
            f"{FORMAT_VERSION}; please update {LIBRARY}"
        )
    for name, variables in REQUIRED.items():
        if name not in children:
            raise ValueError(f"{os.fspath(path)} is not a whole posterior: the group {name} is missing")
        if missing := [variable for variable in variables if variable not in tree[name].variables]:
            raise ValueError(f"{os.fspath(path)} is not a whole posterior: {name}/{missing[0]} is missing")
    return tree


def _format_of(attributes: Mapping[Any, Any]) -> int:
    return int(attributes.get("posterior_format", 0))
