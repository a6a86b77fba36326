"""Scenes from and to xarray datasets, and NetCDF files that hold one.

Layout, format version 1; dimensions scene (B), frame (T), entity (N), state (D), edge (E):

==================  ======================  ============================================================================
variable            dimensions              meaning
==================  ======================  ============================================================================
trajectory          scene frame entity      raw units; NaN where not observed
                    state
observation_mask    scene frame entity      optional: the entity was seen; absent = all were
entity_mask         scene entity            optional: the entity exists in the scene; absent = all do
entity_name         scene entity            optional coordinate: names, where scenes have different ones
structure_group     scene                   optional: name of the group that shares a structure
entity_kind         scene entity            optional: known kinds
edge_type           scene edge              optional: true types; needs the coordinates sender and receiver on edge,
                                            which hold labels of the entity dimension
initial_state       scene entity state      optional: true state before the first frame's noise
==================  ======================  ============================================================================

Coordinates scene, entity and state are names, time (on frame) is in the unit of the attribute ``time_step``.
"""

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes

FORMAT = "pyro_nri scenes"
FORMAT_VERSION = 1
_ENGINE: Final = "h5netcdf"


def to_dataset(scenes: Scenes) -> xr.Dataset:
    """Lay scenes out as a dataset with named dimensions; see the head of this file.

    Args:
        scenes: the scenes; nothing of them is lost.
    """
    observed = scenes.observation_mask.cpu().numpy()
    rows = scenes.entity_names
    same_names = all(row == rows[0] for row in rows) and bool(scenes.entity_mask.all())
    entity = rows[0] if same_names else tuple(str(n) for n in range(scenes.num_entities))
    trajectory = np.where(observed[..., None], scenes.trajectory.cpu().numpy(), np.nan)
    variables: dict[str, Any] = {
        "trajectory": (("scene", "frame", "entity", "state"), trajectory),
        "structure_group": ("scene", _text(scenes.structure_group)),
    }
    coordinates: dict[str, Any] = {
        "scene": _text(scenes.scene_names),
        "frame": np.arange(scenes.num_frames),
        "time": ("frame", scenes.time_step * np.arange(scenes.num_frames)),
        "entity": _text(entity),
        "state": _text(scenes.state_names),
    }
    if not same_names:
        coordinates["entity_name"] = (("scene", "entity"), _text(rows))
    if not observed.all():
        variables["observation_mask"] = (("scene", "frame", "entity"), observed)
    if not scenes.entity_mask.all():
        variables["entity_mask"] = (("scene", "entity"), scenes.entity_mask.cpu().numpy())
    if scenes.entity_kind is not None:
        variables["entity_kind"] = (("scene", "entity"), scenes.entity_kind.cpu().numpy())
    if scenes.edge_type is not None:
        variables["edge_type"] = (("scene", "edge"), scenes.edge_type.cpu().numpy())
        coordinates["sender"] = ("edge", _text(entity)[edges.senders(scenes.num_entities).numpy()])
        coordinates["receiver"] = ("edge", _text(entity)[edges.receivers(scenes.num_entities).numpy()])
    if scenes.initial_state is not None:
        variables["initial_state"] = (("scene", "entity", "state"), scenes.initial_state.cpu().numpy())
    attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, "time_step": scenes.time_step}
    return xr.Dataset(variables, coordinates, attributes)


def from_dataset(dataset: xr.Dataset) -> Scenes:
    """Make scenes of a dataset with the layout at the head of this file.

    Dimensions may come in any order, and so may edges: ``sender`` and ``receiver`` say which is which. Of the
    coordinates only these two are needed, and only beside ``edge_type``. Variables that the layout does not name are
    left alone.

    Args:
        dataset: at least the variable ``trajectory`` and the attribute ``time_step``.

    Raises:
        ValueError: something needed is absent, has other dimensions, or does not fit the rest.
    """
    version = dataset.attrs.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ValueError(f"dataset has format_version {version}, this version of pyro_nri reads {FORMAT_VERSION}")
    if "trajectory" not in dataset.data_vars:
        found = ", ".join(str(name) for name in dataset.data_vars) or "none"
        raise ValueError(f"dataset has no variable 'trajectory', its variables are {found}")
    if "time_step" not in dataset.attrs:
        raise ValueError("dataset has no attribute 'time_step', the time between two frames")
    try:
        time_step = float(dataset.attrs["time_step"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"attribute 'time_step' must be a number, found {dataset.attrs['time_step']!r}") from error

    trajectory = _numbers(dataset, "trajectory", "scene", "frame", "entity", "state")
    if trajectory is None or not np.issubdtype(trajectory.dtype, np.number):
        raise ValueError(f"variable 'trajectory' must be numeric, found {dataset['trajectory'].dtype}")
    entity_names: Any = _names(dataset, "entity", trajectory.shape[2])
    edge_type = _edge_type(dataset, entity_names)
    if "entity_name" in dataset.variables:
        entity_names = _values(dataset, "entity_name", "scene", "entity").astype(str).tolist()
    groups = None
    if "structure_group" in dataset.variables:
        groups = _values(dataset, "structure_group", "scene").astype(str).tolist()
    return Scenes.from_arrays(
        trajectory,
        time_step=time_step,
        observation_mask=_numbers(dataset, "observation_mask", "scene", "frame", "entity"),
        entity_mask=_numbers(dataset, "entity_mask", "scene", "entity"),
        scene_names=_names(dataset, "scene", trajectory.shape[0]),
        entity_names=entity_names,
        state_names=_names(dataset, "state", trajectory.shape[3]) if "state" in dataset.coords else None,
        structure_group=groups,
        entity_kind=_numbers(dataset, "entity_kind", "scene", "entity"),
        edge_type=edge_type,
        initial_state=_numbers(dataset, "initial_state", "scene", "entity", "state"),
    )


def write_netcdf(scenes: Scenes, path: str | os.PathLike[str]) -> None:
    """Write scenes to a NetCDF file; a run that is killed leaves no half file.

    Args:
        scenes: the scenes.
        path: the file, replaced if it exists.

    Raises:
        ValueError: the file cannot be written.
    """
    dataset = to_dataset(scenes)
    with written_beside(Path(path)) as beside:
        dataset.to_netcdf(beside, engine=_ENGINE)


def read_netcdf(path: str | os.PathLike[str]) -> Scenes:
    """Read scenes from a NetCDF file that :func:`write_netcdf` wrote.

    Raises:
        ValueError: the file does not exist, is damaged, or holds something else.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"{str(file)!r} does not exist or is not a file, a NetCDF file of scenes is wanted")
    try:
        # OSError: not HDF5, or cut short. The others: HDF5 with contents that are not NetCDF, or damaged inside.
        with xr.open_dataset(file, engine=_ENGINE) as opened:
            dataset = opened.load()
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is not a whole NetCDF file") from error
    if dataset.attrs.get("format") != FORMAT:
        raise ValueError(
            f"{str(file)!r} is a NetCDF file, but not one of scenes: attribute 'format' should be {FORMAT!r}, "
            f"found {dataset.attrs.get('format')!r}"
        )
    try:
        return from_dataset(dataset)
    except ValueError as error:
        raise ValueError(f"{str(file)!r}: {error}") from error


def _text(names: Any) -> NDArray[np.str_]:
    return np.asarray(names, dtype=str)


def _names(dataset: xr.Dataset, dimension: str, size: int) -> list[str]:
    """Names along a dimension; its numbers where it has no coordinate."""
    if dimension not in dataset.coords:
        return [str(i) for i in range(size)]
    return [str(name) for name in dataset.coords[dimension].to_numpy()]


def _values(dataset: xr.Dataset, name: str, *dimensions: str) -> NDArray[Any]:
    variable = dataset[name]
    if set(variable.dims) != set(dimensions):
        raise ValueError(f"variable {name!r} must have dimensions {', '.join(dimensions)}, found {variable.dims}")
    values: NDArray[Any] = variable.transpose(*dimensions).to_numpy()
    return values


def _numbers(dataset: xr.Dataset, name: str, *dimensions: str) -> NDArray[Any] | None:
    """A variable's values, or None if it is absent."""
    if name not in dataset.variables:
        return None
    values = _values(dataset, name, *dimensions)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"variable {name!r} must hold real numbers, found {values.dtype}")
    if name.endswith("_mask") and not np.isin(values, (0, 1)).all():
        raise ValueError(f"variable {name!r} must hold True and False, or 1 and 0")
    return values


def _edge_type(dataset: xr.Dataset, entity_labels: list[str]) -> NDArray[Any] | None:
    """True types ``[B, E]``, put in our order of edges."""
    types = _numbers(dataset, "edge_type", "scene", "edge")
    if types is None:
        return None
    if not {"sender", "receiver"} <= set(dataset.variables):
        raise ValueError(
            "variable 'edge_type' needs the coordinates sender and receiver on edge, at least one is absent"
        )
    position = {label: n for n, label in enumerate(entity_labels)}
    ends = [
        [position.get(str(label), -1) for label in _values(dataset, end, "edge").tolist()]
        for end in ("sender", "receiver")
    ]
    number = edges.edge_number(len(entity_labels)).numpy()
    unknown = -1 in ends[0] or -1 in ends[1]
    order = number[ends[0], ends[1]]
    if unknown or sorted(order.tolist()) != list(range(edges.num_edges(len(entity_labels)))):
        raise ValueError("sender and receiver must name every ordered pair of different entities exactly once")
    result = np.empty_like(types)
    result[:, order] = types
    return result
