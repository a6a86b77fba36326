"""One door for scenes of any format: NetCDF, arrays of NRI and ACD, CSV and parquet tables, data frames, datasets."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pyro_nri.scenes.netcdf import from_dataset, read_netcdf, to_dataset, write_netcdf
from pyro_nri.scenes.nri_arrays import TIME_STEP, read_nri, write_nri
from pyro_nri.scenes.phase_features import read_phase_features, write_phase_features
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.tables import from_dataframe, to_dataframe

__all__ = [
    "from_dataframe",
    "from_dataset",
    "read_netcdf",
    "read_nri",
    "read_phase_features",
    "read_scenes",
    "to_dataframe",
    "to_dataset",
    "write_netcdf",
    "write_nri",
    "write_phase_features",
]

_NETCDF, _TABLES = (".nc", ".nc4", ".netcdf"), (".csv", ".parquet", ".pq")


def read_scenes(
    source: str | os.PathLike[str],
    *,
    system: str | None = None,
    split: str | None = None,
    rows: str = "receiver",
    scene: str | None = "scene",
    entity: str = "entity",
    time: str = "time",
    state: Sequence[str] = ("x", "y", "vx", "vy"),
    time_step: float | None = None,
    group: str | None = None,
    kind: str | None = None,
    missing: str = "error",
) -> Scenes:
    """Read scenes from a file or folder, by its kind.

    Args:
        source: a NetCDF file of ours (.nc), a folder of NRI arrays (``loc_*``, ``vel_*``, ``edges_*``; for oscillators
            ``feat_*``, ``edges_*``, see :func:`read_phase_features`), or a long table (.csv, .parquet).
        system: NRI arrays: the last part of the file names; may be left out if the folder holds one.
        split: NRI arrays: the middle part of the file names; may be left out if the folder holds one.
        rows: NRI arrays: what a row of ``edges`` is, "receiver" or "sender"; see :func:`read_nri`.
        scene: tables: column that names the scene, or None; this and the next, see :func:`from_dataframe`.
        entity: tables: column that names the entity.
        time: tables: column of times.
        state: tables: columns of the state variables.
        time_step: time between two frames; default for NRI arrays 0.1, for tables taken from the times.
        group: tables: column that names the structure group.
        kind: tables: column with the known kind of the entity.
        missing: tables: "error" or "mask", what an empty state means.

    Raises:
        ValueError: the source does not exist, cannot be read, or does not fit the arguments.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"{str(path)!r} does not exist; scenes are a .nc file, a folder of NRI arrays, a .csv or .parquet"
        )
    suffix = path.suffix.lower()
    if (group is not None or kind is not None) and suffix not in _TABLES:
        raise ValueError(f"group and kind name columns of a table, {str(path)!r} is none")
    if path.is_dir():
        system, split = _choose(path, system, split)
        step = TIME_STEP if time_step is None else time_step
        has_features = (path / f"feat_{split}_{system}.npy").is_file()
        read = read_phase_features if has_features else read_nri
        return read(path, system=system, split=split, rows=rows, time_step=step)
    if system is not None or split is not None:
        raise ValueError(f"system and split choose files of a folder of NRI arrays, {str(path)!r} is a file")
    if suffix in _NETCDF:
        if time_step is not None:
            raise ValueError(f"time_step is part of a NetCDF file of scenes, it cannot be given for {str(path)!r}")
        return read_netcdf(path)
    if suffix not in _TABLES:
        raise ValueError(f"{str(path)!r} is of an unknown kind, the name should end in .nc, .csv or .parquet")
    # Names stay as they are written: "007" is not 7.
    names = [column for column in (scene, entity, group) if column is not None]
    frame = _read_csv(path, names) if suffix == ".csv" else _read_parquet(path)
    try:
        return from_dataframe(
            frame,
            scene=scene,
            entity=entity,
            time=time,
            state=state,
            time_step=time_step,
            group=group,
            kind=kind,
            missing=missing,
        )
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def _choose(folder: Path, system: str | None, split: str | None) -> tuple[str, str]:
    """System and split of NRI arrays, those that are not given from the names of the files."""
    if system is not None and split is not None:
        return system, split
    found = []
    for path in sorted([*folder.glob("loc_*_*.npy"), *folder.glob("feat_*_*.npy")]):
        _, file_split, file_system = path.stem.split("_", 2)
        if system in (None, file_system) and split in (None, file_split):
            found.append((file_system, file_split))
    if len(found) != 1:
        choices = ", ".join(f"{file_system} {file_split}" for file_system, file_split in found) or "none"
        raise ValueError(
            f"{str(folder)!r} must hold NRI arrays loc_SPLIT_SYSTEM.npy or feat_SPLIT_SYSTEM.npy of one system and "
            f"split, or both have to be given; those that fit are {choices}"
        )
    return found[0]


def _read_csv(path: Path, names: list[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=dict.fromkeys(names, str), index_col=False, skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' own parser errors and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{str(path)!r} is not a readable CSV table") from error


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except ImportError as error:
        raise ValueError(f"reading {str(path)!r} needs pyarrow: pip install 'pyro-nri[parquet]'") from error
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ValueError(f"{str(path)!r} is not a readable parquet table") from error
