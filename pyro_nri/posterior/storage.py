"""The file that holds a posterior: NetCDF, written whole or not at all."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from pyro_nri.posterior.convert import FORMAT_VERSION
from pyro_nri.posterior.parts import select_scenes
from pyro_nri.scenes.files import written_beside
from pyro_nri.version import LIBRARY

_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError)

_ROUNDING = 1e-6

REQUIRED = {
    "posterior": ("edge_type", "scene", "sender", "receiver", "scene_index", "edge_index"),
    "sample_stats": ("log_joint", "temperature", "scene"),
    "observed_data": ("trajectory", "recording", "frame", "state"),
    "constant_data": ("time_step", "observation_mask", "entity_mask", "entity_name", "structure_group"),
}

MOVES = ("accepted", "proposed", "move_kind")  # required of Markov chains


def write_posterior(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Write a posterior as NetCDF, beside ``path`` first and then renamed, so that no half file is ever seen there.

    Args:
        tree: a posterior, see :func:`~pyro_nri.posterior.convert.to_datatree`.
        path: where to; missing folders are made.

    Raises:
        ValueError: the folder cannot be made or written.
    """
    encoding: dict[str, dict[str, Any]] = {}
    for name, node in tree.children.items():
        names = ("edge_type", "accepted", "proposed", "receiver_probability")
        if variables := [v for v in names if v in node and node[v].size]:
            encoding[f"/{name}"] = {variable: {"zlib": True, "complevel": 1} for variable in variables}
    with written_beside(Path(path)) as beside:
        tree.to_netcdf(beside, engine="h5netcdf", encoding=encoding)


@contextmanager
def open_posterior(path: str | os.PathLike[str]) -> Iterator[xr.DataTree]:
    """A posterior whose draws are read from the file when they are used, for files larger than memory.

    Tables are made of it part by part::

        with open_posterior("posterior.nc") as tree:
            edges = edges_frame(tree)

    Args:
        path: the file; it stays open until the block ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a posterior of this library, is damaged, or was written by a newer version.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no posterior file {os.fspath(path)}")
    with ExitStack() as stack:
        try:
            tree = stack.enter_context(xr.open_datatree(path, engine="h5netcdf"))
        except _DAMAGE as error:
            raise _damaged(path) from error
        _check(tree, path)
        yield tree


def read_posterior(path: str | os.PathLike[str], scenes: Sequence[str] | None = None) -> xr.DataTree:
    """Read a posterior into memory.

    Args:
        path: the file.
        scenes: names of the scenes to read; default: all.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a posterior of this library, is damaged, or was written by a newer version; or it
            does not have one of the scenes.
    """
    with open_posterior(path) as opened:
        tree = opened if scenes is None else select_scenes(opened, scenes)
        try:
            tree = tree.load()
        except _DAMAGE as error:
            raise _damaged(path) from error
        _check_values(tree, path)
        return tree


def _check(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    if tree.attrs.get("inference_library") != LIBRARY:
        raise ValueError(f"{os.fspath(path)} is not a posterior that {LIBRARY} wrote")
    if _format_of(tree.attrs) > FORMAT_VERSION:
        raise ValueError(
            f"{os.fspath(path)} has posterior format {_format_of(tree.attrs)}, this version of {LIBRARY} reads "
            f"{FORMAT_VERSION}; please update {LIBRARY}"
        )
    for name, variables in REQUIRED.items():
        if name not in tree.children:
            raise ValueError(f"{os.fspath(path)} is not a whole posterior: the group {name} is missing")
        if name == "sample_stats" and tree.attrs.get("method") != "exact":
            variables = (*variables, *MOVES)
        if missing := [variable for variable in variables if variable not in tree[name].variables]:
            raise ValueError(f"{os.fspath(path)} is not a whole posterior: {name}/{missing[0]} is missing")


def _check_values(tree: xr.DataTree, path: str | os.PathLike[str]) -> None:
    """Types must exist and probabilities be some: tables and pictures of others would look like any."""
    types, num_types = np.asarray(tree["posterior"]["edge_type"]), int(tree.attrs["num_edge_types"])
    if types.size and (types.min() < 0 or types.max() >= num_types):
        found = int(types.max() if types.max() >= num_types else types.min())
        raise ValueError(
            f"{os.fspath(path)} is damaged: posterior/edge_type must be between 0 and {num_types - 1}, found {found}"
        )
    for name in ("edge_probability", "receiver_probability"):
        if "edge_posterior" in tree.children and name in tree["edge_posterior"]:
            values = np.asarray(tree["edge_posterior"][name])
            if wrong := values[~((values >= -_ROUNDING) & (values <= 1 + _ROUNDING))].ravel()[:1].tolist():
                raise ValueError(
                    f"{os.fspath(path)} is damaged: edge_posterior/{name} must be between 0 and 1, found {wrong[0]:g}"
                )


def _damaged(path: str | os.PathLike[str]) -> ValueError:
    return ValueError(f"{os.fspath(path)} is not a readable NetCDF file; it may be damaged or cut off")


def _format_of(attributes: Mapping[Any, Any]) -> int:
    return int(attributes.get("posterior_format", 0))
