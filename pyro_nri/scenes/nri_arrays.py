"""Scenes from and to the array files of NRI: ``loc_*``, ``vel_*`` and ``edges_*`` in one folder.

``loc_{split}_{system}.npy`` and ``vel_{split}_{system}.npy`` are ``[sims, T, 2, n]``, ``edges_{split}_{system}.npy`` is
``[sims, n, n]``. NRI's generator and its model read row = receiver, column = sender; the code released with "Fast
Modular Meta-learning" reads row = sender. Symmetric structures hide the difference, so both are offered by name.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes

STATE_NAMES = ("x", "y", "vx", "vy")
TIME_STEP = 0.1
"""Time between two frames of NRI's files: 100 sub-steps of 0.001."""
_WANTED = (
    "NRI arrays are a folder with loc_{split}_{system}.npy and vel_{split}_{system}.npy, [sims, T, 2, n], and "
    "edges_{split}_{system}.npy, [sims, n, n]"
)


def read_nri(
    folder: str | os.PathLike[str],
    *,
    system: str = "springs5",
    split: str = "train",
    rows: str = "receiver",
    time_step: float = TIME_STEP,
) -> Scenes:
    """Read the three array files of one split.

    Edge values -1/+1 (charged: attract, repel) become types 0/1; whole numbers of 0 or more are types as they are. The
    diagonal is left out. Scenes are named "test-17", so that those of different splits can stand together.

    Args:
        folder: where the files are.
        system: the last part of the file names.
        split: the middle part of the file names: train, valid or test.
        rows: what a row of ``edges`` is, "receiver" (NRI) or "sender".
        time_step: time between two frames, which the files do not hold.

    Returns:
        Scenes with state x, y, vx, vy and true ``edge_type``.

    Raises:
        ValueError: a file is missing or damaged, shapes do not fit together, or an edge value is not a type.
    """
    location, velocity = (
        load_array(Path(folder) / f"{part}_{split}_{system}.npy", _WANTED.format(split=split, system=system))
        for part in ("loc", "vel")
    )
    if location.ndim != 4 or location.shape[2] != 2:
        raise ValueError(f"loc_{split}_{system}.npy must have shape [sims, T, 2, n], found {list(location.shape)}")
    if velocity.shape != location.shape:
        raise ValueError(
            f"vel_{split}_{system}.npy must have the shape of loc, {list(location.shape)}, found {list(velocity.shape)}"
        )
    num_scenes, _, _, num_entities = location.shape
    edge_type = read_edges(Path(folder), split, system, rows, (num_scenes, num_entities), "loc")
    trajectory = np.concatenate([location, velocity], axis=2).transpose(0, 1, 3, 2)  # [sims, T, 4, n] -> [B, T, N, D]
    try:
        return Scenes.from_arrays(
            torch.from_numpy(np.ascontiguousarray(trajectory, dtype=np.float64)),
            time_step=time_step,
            scene_names=[f"{split}-{scene}" for scene in range(num_scenes)],
            state_names=STATE_NAMES,
            edge_type=edge_type,
        )
    except ValueError as error:
        raise ValueError(f"{split} {system} in {str(folder)!r}: {error}") from error


def write_nri(
    scenes: Scenes, folder: str | os.PathLike[str], *, system: str, split: str, rows: str = "receiver"
) -> None:
    """Write the three array files of one split; the counterpart of :func:`read_nri`.

    Edge types are written as they are, with 0 on the diagonal; if ``system`` starts with "charged", types 0/1 become
    -1/+1 with +1 on the diagonal, as in NRI's files. Names, time step and ``initial_state`` have no place in them.

    Args:
        scenes: scenes with state x, y, vx, vy, true ``edge_type``, no padding and nothing missing.
        folder: where to write; made if it does not exist.
        system: the last part of the file names.
        split: the middle part of the file names.
        rows: what a row of ``edges`` is to be, "receiver" (NRI) or "sender".

    Raises:
        ValueError: the format cannot hold these scenes, or the files cannot be written.
    """
    if scenes.state_names != STATE_NAMES:
        raise ValueError(f"NRI arrays hold the state x, y, vx, vy, found {', '.join(scenes.state_names)}")
    if not scenes.observation_mask.all():
        raise ValueError(
            "NRI arrays cannot hold padded entities or missing frames, these scenes have some; use write_netcdf"
        )
    matrix = edge_matrix(scenes, rows, signed=system.startswith("charged")).astype(np.float64)
    state = scenes.trajectory.cpu().numpy().transpose(0, 1, 3, 2)
    arrays = {"loc": state[:, :, :2], "vel": state[:, :, 2:], "edges": matrix}
    for part, array in arrays.items():
        with written_beside(Path(folder) / f"{part}_{split}_{system}.npy") as beside, open(beside, "wb") as file:
            np.save(file, np.ascontiguousarray(array))


def load_array(path: Path, wanted: str) -> NDArray[Any]:
    """The array of real numbers in a file; ``wanted`` says which files there should be, if this one is missing.

    Raises:
        ValueError: the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"{str(path)!r} does not exist; {wanted}")
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a whole NumPy array file of numbers") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
        raise ValueError(f"{str(path)!r} must hold an array of real numbers")
    return array


def read_edges(
    folder: Path, split: str, system: str, rows: str, size: tuple[int, int], beside: str
) -> NDArray[np.int64]:
    """Edge types ``[B, E]`` of ``edges_{split}_{system}.npy``, ``size`` = (B, N) being that of the file ``beside``.

    Raises:
        ValueError: the file is missing or damaged, of another shape, or holds a value that is no type.
    """
    _check_rows(rows)
    file = f"edges_{split}_{system}.npy"
    shape = [size[0], size[1], size[1]]
    matrix = load_array(folder / file, f"it belongs to {beside}_{split}_{system}.npy and has shape {shape}")
    if list(matrix.shape) != shape:
        raise ValueError(f"{file} must have shape {shape} to fit {beside}, found {list(matrix.shape)}")
    by_sender = torch.from_numpy(np.ascontiguousarray(matrix.transpose(0, 2, 1) if rows == "receiver" else matrix))
    return _types(edges.from_matrix(by_sender).numpy(), file)


def edge_matrix(scenes: Scenes, rows: str, *, signed: bool = False) -> NDArray[np.int64]:
    """Edge types as a file holds them, ``[B, N, N]``; ``signed``: types 0/1 as -1/+1, with +1 on the diagonal.

    Raises:
        ValueError: the file cannot hold them.
    """
    _check_rows(rows)
    if scenes.edge_type is None:
        raise ValueError("NRI arrays hold true edge types, these scenes have none; use write_netcdf")
    if scenes.entity_kind is not None or scenes.num_groups < scenes.num_scenes:
        raise ValueError("NRI arrays cannot hold entity kinds or shared structures; use write_netcdf")
    types, diagonal = scenes.edge_type.cpu(), 0
    if signed:
        if types.max() > 1:
            raise ValueError(f"charged systems have edge types 0 and 1, found type {int(types.max())}")
        types, diagonal = 2 * types - 1, 1
    matrix: NDArray[np.int64] = edges.to_matrix(types, fill=diagonal).numpy()
    return matrix.transpose(0, 2, 1) if rows == "receiver" else matrix


def _check_rows(rows: str) -> None:
    if rows not in ("receiver", "sender"):
        raise ValueError(f"rows must be 'receiver' or 'sender', found {rows!r}")


def _types(values: NDArray[Any], file: str) -> NDArray[np.int64]:
    """Edge types of edge values; they must not depend on which values happen to occur in a split."""
    found = np.unique(values)
    if not np.isfinite(found).all() or (found != np.rint(found)).any():
        raise ValueError(f"{file} must hold whole numbers that name edge types, found {_first(found)}")
    if (found < 0).any():
        if not np.isin(found, (-1, 1)).all():
            raise ValueError(f"{file} must hold -1 and +1, or whole numbers of 0 or more, found {_first(found)}")
        return (values.astype(np.int64) + 1) // 2
    return values.astype(np.int64)


def _first(found: NDArray[Any]) -> str:
    return ", ".join(f"{value:g}" for value in found[:5])
