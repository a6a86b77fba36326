"""Answers as plain tables: one row per edge and type, one per structure, and the files that hold them."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import edge_diagnostics, share_errors
from pyro_nri.posterior.parts import scene_parts, select_scenes
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes.files import written_beside

# Columns of names: a scene called "007" or "NA" stays what it is when a CSV file is read.
TEXT_COLUMNS = (
    "scene",
    "recording",
    "sender",
    "receiver",
    "structure",
    "estimator",
    "entity",
    "state",
    "chains",
    "bound",
    "quantity",
    "group_a",
    "group_b",
)


def edges_frame(tree: xr.DataTree, scenes: Sequence[str] | None = None, *, wide: bool = False) -> pd.DataFrame:
    """One row for each edge and type, in the order of the posterior's edges and then of types.

    Args:
        tree: a posterior; one that :func:`~pyro_nri.posterior.storage.open_posterior` opened is read part by part.
        scenes: names of the scenes wanted; default: all.
        wide: one row for each edge instead.

    Returns:
        Columns ``scene``, ``sender``, ``receiver``, ``edge_type``, ``probability``, ``mcse`` (Monte Carlo standard
        error of the mean of the draws; 0 for exact probabilities; for Rao-Blackwellised ones that of the plain
        frequencies, usually larger; NaN where the indicator never moves),
        ``r_hat``, ``ess`` (NaN where the indicator never moves, except that R-hat is infinite where chains disagree),
        ``map`` (whether the type is the edge's most probable), ``estimator`` ("exact", "rao-blackwell" or "counts").
        Wide: ``edge_type`` is the most probable type, ``probability_0``, ``probability_1``, ... replace
        ``probability``, ``map`` is left out, and ``mcse``, ``r_hat``, ``ess`` are the worst of the edge's types.

    Raises:
        ValueError: a scene does not exist.
    """
    tree = tree if scenes is None else select_scenes(tree, scenes)
    one = _wide_edges if wide else _long_edges
    return pd.concat([one(part) for part in scene_parts(tree)], ignore_index=True)


def _long_edges(tree: xr.DataTree) -> pd.DataFrame:
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


def _wide_edges(tree: xr.DataTree) -> pd.DataFrame:
    posterior = group(tree, "posterior")
    probability, estimator = edge_probability(tree)
    num_edges, num_types = probability.shape
    found = edge_diagnostics(posterior["edge_type"].values, num_types)
    return pd.DataFrame(
        {
            **{name: posterior[name].values for name in ("scene", "sender", "receiver")},
            "edge_type": probability.argmax(1),
            **{f"probability_{k}": probability[:, k] for k in range(num_types)},
            "mcse": np.zeros(num_edges) if estimator == "exact" else np.fmax.reduce(found.mcse, axis=1),
            "r_hat": np.fmax.reduce(found.r_hat, axis=1),
            "ess": np.fmin.reduce(found.ess, axis=1),
            "estimator": np.full(num_edges, estimator),
        }
    )


def structures_frame(tree: xr.DataTree, num_top: int = 10, scenes: Sequence[str] | None = None) -> pd.DataFrame:
    """The structures that were drawn most often, most probable first within each scene.

    Args:
        tree: a posterior; one that :func:`~pyro_nri.posterior.storage.open_posterior` opened is read part by part.
        num_top: rows for each scene at most.
        scenes: names of the scenes wanted; default: all.

    Returns:
        Columns ``scene``; ``structure``, the types of the scene's edges in the posterior's order, "0110...", with
        blanks between if there are more than ten types (in a CSV :func:`read_frame` keeps it as text, where plain
        pandas takes "0110" for 110); ``probability``, its share of the draws of all chains, or its exact probability
        where an enumerated posterior stored its log marginal; ``log_joint``, the mean over the draws that have this
        structure; ``mcse`` of the share (NaN where no other structure was drawn; 0 if exact);
        ``estimator`` ("exact" or "counts").

    Raises:
        ValueError: ``num_top`` is smaller than 1, or a scene does not exist.
    """
    if num_top < 1:
        raise ValueError(f"num_top must be at least 1, found {num_top}")
    tree = tree if scenes is None else select_scenes(tree, scenes)
    return pd.concat([_structures(part, num_top) for part in scene_parts(tree)], ignore_index=True)


def _structures(tree: xr.DataTree, num_top: int) -> pd.DataFrame:
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    num_types, log_marginal = int(tree.attrs["num_edge_types"]), exact_log_marginal(tree)
    names, shape = stats["scene"].values, (stats.sizes["chain"], stats.sizes["draw"])
    log_joint = stats["log_joint"].values.reshape(-1, len(names))
    # One byte for each edge, so that a structure is a byte string, which sorts fast. 48 is the digit "0".
    code = posterior["edge_type"].values.astype(np.uint8) + np.uint8(48)
    bounds = np.searchsorted(posterior["scene_index"].values, np.arange(len(names) + 1))
    parts: dict[str, list[object]] = {
        name: [] for name in ("scene", "structure", "probability", "log_joint", "mcse", "estimator")
    }
    indicators: list[NDArray[np.bool_]] = []
    for g, name in enumerate(names.tolist()):
        rows = np.ascontiguousarray(code[:, :, bounds[g] : bounds[g + 1]]).reshape(
            len(log_joint), bounds[g + 1] - bounds[g]
        )
        if not rows.size:
            continue
        key = rows.view(f"S{rows.shape[1]}")[:, 0]
        found, inverse, count = np.unique(key, return_inverse=True, return_counts=True)
        mean = np.bincount(inverse, log_joint[:, g]) / count
        probability = count / len(key) if log_marginal is None else np.exp(np.minimum(mean - log_marginal[g], 0))
        top = np.lexsort((-count, -probability))[:num_top]
        if log_marginal is None:
            indicators.append((inverse[:, None] == top).reshape(*shape, len(top)))
        parts["scene"] += [name] * len(top)
        parts["structure"] += [_readable(structure, num_types) for structure in found[top].tolist()]
        parts["probability"] += probability[top].tolist()
        parts["log_joint"] += mean[top].tolist()
        parts["estimator"] += ["counts" if log_marginal is None else "exact"] * len(top)
    if log_marginal is None:
        parts["mcse"] = np.concatenate([*share_errors(indicators), np.empty(0)]).tolist()
    else:
        parts["mcse"] = [0.0] * len(parts["scene"])
    types = {"scene": "str", "structure": "str", "estimator": "str"}
    return pd.DataFrame(parts).astype({name: types.get(name, "float64") for name in parts})


def exact_log_marginal(tree: xr.DataTree) -> NDArray[np.float64] | None:
    """Log marginal of each scene, ``[G]``, if the posterior was enumerated under a single model."""
    if str(tree.attrs["method"]) != "exact" or "edge_posterior" not in tree.children:
        return None
    known = group(tree, "edge_posterior")
    return np.asarray(known["log_marginal"].values) if "log_marginal" in known else None


def write_frame(frame: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Write a table as ``.csv`` or ``.parquet``, beside ``path`` first and then renamed.

    Args:
        frame: the table; its index is not written.
        path: where to; missing folders are made.

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

    Args:
        path: the file.

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
