"""Posteriors of numbers that belong to a whole structure: edges of a type, distance to a given graph."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import share_errors
from pyro_nri.posterior.parts import scene_parts, select_scenes
from pyro_nri.posterior.truth import known_edges
from pyro_nri.scenes.scenes import Scenes

_NAMES = ("scene", "sender", "receiver")


def edge_counts_frame(tree: xr.DataTree, edge_type: int, scenes: Sequence[str] | None = None) -> pd.DataFrame:
    """How many edges of a type a scene has.

    Args:
        tree: a posterior; one that :func:`~pyro_nri.posterior.storage.open_posterior` opened is read part by part.
        edge_type: the type that is counted.
        scenes: names of the scenes wanted; default: all.

    Returns:
        One row for each scene and number that was drawn: ``scene``, ``num_edges``, ``probability`` (share of the
        draws), ``mcse`` (NaN where no other number was drawn or there are fewer than 4 draws).

    Raises:
        ValueError: a scene or the type does not exist, or there are no draws.
    """
    num_types = int(tree.attrs["num_edge_types"])
    if not 0 <= edge_type < num_types:
        raise ValueError(f"edge_type must be between 0 and {num_types - 1}, found {edge_type}")
    tree = tree if scenes is None else select_scenes(tree, scenes)

    def count(part: xr.DataTree) -> pd.DataFrame:
        return _distribution(part, group(part, "posterior")["edge_type"].values == edge_type, "num_edges")

    return pd.concat([count(part) for part in scene_parts(tree)], ignore_index=True)


def distances_frame(
    tree: xr.DataTree, reference: Scenes | pd.DataFrame | None = None, scenes: Sequence[str] | None = None
) -> pd.DataFrame:
    """How many edges of a scene have another type than in a given graph: the structural Hamming distance.

    Args:
        tree: a posterior.
        reference: scenes with true structures, whose types are aligned as in :func:`score`; or a table with columns
            ``scene``, ``sender``, ``receiver``, ``edge_type`` in the posterior's own types, one row for each of its
            edges. Default: the truth that the posterior carries.
        scenes: names of the scenes wanted; default: all.

    Returns:
        One row for each scene and distance that was drawn: ``scene``, ``distance``, ``probability`` (share of the
        draws), ``mcse`` (NaN where no other distance was drawn or there are fewer than 4 draws).

    Raises:
        ValueError: a scene does not exist, the truth is not known, the table lacks a column or an edge, or there are
            no draws.
    """
    tree = tree if scenes is None else select_scenes(tree, scenes)
    edge_type = group(tree, "posterior")["edge_type"].values
    if isinstance(reference, pd.DataFrame):
        differs = edge_type != _from_table(tree, reference)
    else:
        known = known_edges(tree, reference)
        differs = known.alignment[edge_type] != known.true_edge_type
    return _distribution(tree, differs, "distance")


def _from_table(tree: xr.DataTree, table: pd.DataFrame) -> NDArray[np.int64]:
    """Type of each edge of the posterior in a table, ``[M]``."""
    if missing := [name for name in (*_NAMES, "edge_type") if name not in table.columns]:
        raise ValueError(f"reference must have a column {missing[0]!r}, found {', '.join(map(str, table.columns))}")
    keys = zip(*(table[name].astype(str).tolist() for name in _NAMES), strict=True)
    known = dict(zip(keys, table["edge_type"].tolist(), strict=True))
    if len(known) < len(table):
        raise ValueError("reference must name each edge once; an edge comes twice")
    posterior = group(tree, "posterior")
    result = []
    for edge in zip(*(posterior[name].values.tolist() for name in _NAMES), strict=True):
        if edge not in known:
            raise ValueError(f"reference has no edge from {edge[1]!r} to {edge[2]!r} in scene {edge[0]!r}")
        result.append(int(known[edge]))
    return np.array(result, np.int64)


def _distribution(tree: xr.DataTree, counted: NDArray[np.bool_], name: str) -> pd.DataFrame:
    """Posterior of the number of edges of each scene of which something is true, bool ``[C, S, M]``."""
    if not counted.shape[0] * counted.shape[1]:
        raise ValueError("the posterior holds no draw, at least one is needed")
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    bounds = np.searchsorted(posterior["scene_index"].values, np.arange(stats.sizes["scene"] + 1))
    numbers = [counted[..., low:high].sum(-1) for low, high in pairwise(bounds.tolist())]  # each [C, S]
    found = [np.unique(number, return_counts=True) for number in numbers]
    errors = share_errors(number[..., None] == values for number, (values, _) in zip(numbers, found, strict=True))
    return pd.DataFrame(
        {
            "scene": np.repeat(stats["scene"].values, [len(values) for values, _ in found]),
            name: np.concatenate([values for values, _ in found]),
            "probability": np.concatenate([count / count.sum() for _, count in found]),
            "mcse": np.concatenate(list(errors)),
        }
    )
