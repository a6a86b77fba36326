"""Answers as plain tables: one row per edge and type, one per structure, and the files that hold them."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes.files import written_beside

# Columns of names: a scene called "007" or "NA" stays what it is when a CSV file is read.
TEXT_COLUMNS = (
    "scene",
    "sender",
    "receiver",
    "structure",
    "estimator",
    "entity",
    "state",
    "quantity",
    "group_a",
    "group_b",
)


def edges_frame(tree: xr.DataTree) -> pd.DataFrame:
    """One row for each edge and type, in the order of the posterior's edges and then of types.

    Args:
        tree: a posterior.

    Returns:
        Columns ``scene``, ``sender``, ``receiver``, ``edge_type``, ``probability``, ``mcse`` (Monte Carlo standard
        error of the mean of the draws; 0 for exact probabilities; for Rao-Blackwellised ones that of the plain
        frequencies, usually larger; NaN where the indicator never moves),
        ``r_hat``, ``ess`` (NaN where the indicator never moves, except that R-hat is infinite where chains disagree),
        ``map`` (whether the type is the edge's most probable), ``estimator`` ("exact", "rao-blackwell" or "counts").
    """
    posterior = group(tree, "posterior")
    probability, estimator = edge_probability(tree)
    num_edges, num_types = probability.shape
    found = edge_diagnostics(posterior["edge_type"].values, num_types)
    names = {name: np.repeat(posterior[name].values, num_types) for name in ("scene", "sender", "receiver")}
    most = np.arange(num_types) == probability.argmax(1)[:, None]
    return pd.DataFrame(
        {
            **names,
            "edge_type": np.tile(np.arange(num_types), num_edges),
            "probability": probability.ravel(),
            "mcse": np.zeros(num_edges * num_types) if estimator == "exact" else found.mcse.ravel(),
            "r_hat": found.r_hat.ravel(),
            "ess": found.ess.ravel(),
            "map": most.ravel(),
            "estimator": np.full(num_edges * num_types, estimator),
        }
    )


def structures_frame(tree: xr.DataTree, num_top: int = 10) -> pd.DataFrame:
    """The structures that were drawn most often, most frequent first within each scene.

    Args:
        tree: a posterior.
        num_top: rows for each scene at most.

    Returns:
        Columns ``scene``; ``structure``, the types of the scene's edges in the posterior's order, "0110...", with
        blanks between if there are more than ten types; ``probability``, its share of the draws of all chains;
        ``log_joint``, the mean over the draws that have this structure.

    Raises:
        ValueError: ``num_top`` is smaller than 1.
    """
    if num_top < 1:
        raise ValueError(f"num_top must be at least 1, found {num_top}")
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    num_types = int(tree.attrs["num_edge_types"])
    names, log_joint = stats["scene"].values, stats["log_joint"].values.reshape(-1, stats.sizes["scene"])
    # One byte for each edge, so that a structure is a byte string, which sorts fast. 48 is the digit "0".
    code = posterior["edge_type"].values.astype(np.uint8) + np.uint8(48)
    bounds = np.searchsorted(posterior["scene_index"].values, np.arange(len(names) + 1))
    parts: dict[str, list[object]] = {"scene": [], "structure": [], "probability": [], "log_joint": []}
    for g, name in enumerate(names.tolist()):
        rows = np.ascontiguousarray(code[:, :, bounds[g] : bounds[g + 1]]).reshape(
            len(log_joint), bounds[g + 1] - bounds[g]
        )
        if not rows.size:
            continue
        key = rows.view(f"S{rows.shape[1]}")[:, 0]
        found, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
        mean = np.bincount(inverse, log_joint[:, g]) / count
        top = np.argsort(-count, kind="stable")[:num_top]
        parts["scene"] += [name] * len(top)
        parts["structure"] += [_readable(structure, num_types) for structure in found[top].tolist()]
        parts["probability"] += (count[top] / len(key)).tolist()
        parts["log_joint"] += mean[top].tolist()
    types = {"scene": "str", "structure": "str", "probability": "float64", "log_joint": "float64"}
    return pd.DataFrame(parts).astype(types)


def write_frame(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as ``.csv`` or ``.parquet``, beside ``path`` first and then renamed.

    Raises:
        ValueError: the suffix is another one, or parquet is wanted and pyarrow is not installed.
    """
    suffix = _suffix(path)
    with written_beside(Path(path)) as beside:
        if suffix == ".csv":
            frame.to_csv(beside, index=False)
        else:
            frame.to_parquet(beside, index=False, engine="pyarrow")


def read_frame(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a table that :func:`write_frame` wrote, with the types that its columns had.

    Raises:
        ValueError: the suffix is neither ``.csv`` nor ``.parquet``, or parquet is read and pyarrow is not installed.
    """
    if _suffix(path) == ".parquet":
        return pd.read_parquet(path, engine="pyarrow")
    frame = pd.read_csv(path, dtype="str", keep_default_na=False)
    return frame.assign(**{name: _typed(frame[name]) for name in frame.columns if name not in TEXT_COLUMNS})


def _typed(column: pd.Series) -> pd.Series:
    """Column of texts as truth values, whole numbers or floats if all of it reads so; floats to the last digit."""
    texts = column.to_numpy(dtype=object)
    if len(texts) and set(texts) <= {"True", "False"}:
        return pd.Series(texts == "True", column.index)
    for kind in (np.int64, np.float64) if len(texts) else (np.float64,):
        try:
            return pd.Series(np.where(texts == "", "nan", texts).astype(kind), column.index)
        except ValueError:
            continue
    return column


def _readable(structure: bytes, num_types: int) -> str:
    return structure.decode("ascii") if num_types <= 10 else " ".join(str(code - 48) for code in structure)


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in (".csv", ".parquet"):
        raise ValueError(f"path must end in .csv or .parquet, found {os.fspath(path)!r}")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ValueError("parquet files need pyarrow: install it with pip install 'pyro-nri[parquet]'") from error
    return suffix
