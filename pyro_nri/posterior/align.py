"""Alignment of type labels: which true type does an inferred type stand for.

Training without labels numbers the types arbitrarily, so inferred and true labels are compared after one relabelling
for the whole data set, never one per scene. An alignment is an array ``[K]``: the true type of each inferred type, or
-1 for a spare inferred type that stands for none; an edge with a spare type counts as wrong.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment


def confusion(
    inferred: ArrayLike, true_edge_type: ArrayLike, num_edge_types: int, num_true_types: int
) -> NDArray[np.float64]:
    """How often each inferred type meets each true type.

    Args:
        inferred: types ``[M]`` (integers) or probabilities of the types ``[M, K]``, which count in parts.
        true_edge_type: true types ``[M]``.
        num_edge_types: K, number of inferred types.
        num_true_types: L, number of true types.

    Returns:
        Counts ``[K, L]``.

    Raises:
        ValueError: shapes do not agree, or a type is outside its range.
    """
    truth = _codes("true_edge_type", true_edge_type, num_true_types)
    values = np.asarray(inferred)
    if values.ndim == 1:
        values = np.eye(num_edge_types)[_codes("inferred", values, num_edge_types)]
    if values.shape != (len(truth), num_edge_types):
        raise ValueError(
            f"inferred must have shape [{len(truth)}] or [{len(truth)}, {num_edge_types}], found {list(values.shape)}"
        )
    return np.stack([values[truth == label].sum(0) for label in range(num_true_types)], axis=-1, dtype=np.float64)


def fit_alignment(
    inferred: ArrayLike, true_edge_type: ArrayLike, *, num_edge_types: int, num_true_types: int | None = None
) -> NDArray[np.int64]:
    """One-to-one alignment that gets most edges right (Hungarian algorithm on the confusion counts).

    Args:
        inferred: types ``[M]`` or probabilities ``[M, K]`` of the edges of the whole data set.
        true_edge_type: true types ``[M]``.
        num_edge_types: K, number of inferred types.
        num_true_types: L, number of true types; default: the largest that occurs, plus one. K and L may differ.

    Returns:
        True type of each inferred type, ``[K]``; -1 for the K - L spare ones if K > L.

    Raises:
        ValueError: shapes do not agree, or a type is outside its range.

    >>> fit_alignment([0, 0, 1, 1, 2], [1, 1, 0, 0, 0], num_edge_types=3).tolist()
    [1, 0, -1]
    """
    counts = confusion(inferred, true_edge_type, num_edge_types, _num_types(true_edge_type, num_true_types))
    alignment = np.full(num_edge_types, -1, np.int64)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    alignment[rows] = columns
    return alignment


def many_to_one_alignment(
    inferred: ArrayLike, true_edge_type: ArrayLike, *, num_edge_types: int, num_true_types: int | None = None
) -> NDArray[np.int64]:
    """Alignment of each inferred type to the true type that it meets most often; several may share one.

    It forgives a type that was split in two, and it flatters: with many inferred types it nears 100 %. Shown beside the
    one-to-one figure, never instead of it.

    Args:
        inferred: types ``[M]`` or probabilities ``[M, K]`` of the edges of the whole data set.
        true_edge_type: true types ``[M]``.
        num_edge_types: K, number of inferred types.
        num_true_types: L, number of true types; default: the largest that occurs, plus one.

    Returns:
        True type of each inferred type, ``[K]``; -1 for a type that never occurs.

    >>> many_to_one_alignment([0, 0, 1, 1, 2], [1, 1, 0, 0, 0], num_edge_types=3).tolist()
    [1, 0, 0]
    """
    counts = confusion(inferred, true_edge_type, num_edge_types, _num_types(true_edge_type, num_true_types))
    return np.where(counts.sum(1) > 0, counts.argmax(1), -1).astype(np.int64)


def apply_alignment(edge_type: ArrayLike, alignment: ArrayLike) -> NDArray[np.int64]:
    """Inferred types in the labels of the truth; any shape, -1 where the type is spare.

    >>> apply_alignment([[0, 1], [2, 0]], [1, 0, -1]).tolist()
    [[1, 0], [-1, 1]]
    """
    table = np.asarray(alignment, np.int64)
    return table[_codes("edge_type", edge_type, len(table))]


def aligned_probability(probability: ArrayLike, alignment: ArrayLike, num_true_types: int) -> NDArray[np.float64]:
    """Probabilities in the labels of the truth.

    Args:
        probability: probabilities of the inferred types, ``[*batch, K]``.
        alignment: true type of each inferred type or -1, ``[K]``.
        num_true_types: L, number of true types.

    Returns:
        ``[*batch, L + P]``: a column for each true type (inferred types that share it add up; 0 if none stands for it)
        and after them one for each of the P spare types, which are always wrong. Rows sum to one as before.

    >>> aligned_probability([[0.7, 0.2, 0.1]], [1, -1, 0], 2).tolist()
    [[0.1, 0.7, 0.2]]
    """
    values, table = np.asarray(probability, np.float64), np.asarray(alignment, np.int64)
    if values.shape[-1:] != table.shape:
        raise ValueError(f"alignment must have shape {list(values.shape[-1:])}, found {list(table.shape)}")
    if table.max(initial=-1) >= num_true_types:
        raise ValueError(f"alignment names the true type {table.max()}, but there are {num_true_types}")
    spare = table < 0
    column = np.where(spare, num_true_types + np.cumsum(spare) - 1, table)
    matrix = np.zeros((len(table), num_true_types + int(spare.sum())))
    matrix[np.arange(len(table)), column] = 1
    return np.asarray(values @ matrix)


def _num_types(true_edge_type: ArrayLike, num_true_types: int | None) -> int:
    return int(np.max(np.asarray(true_edge_type), initial=0)) + 1 if num_true_types is None else num_true_types


def _codes(name: str, values: ArrayLike, num_types: int) -> NDArray[np.int64]:
    codes = np.asarray(values)
    if not np.issubdtype(codes.dtype, np.integer):
        raise ValueError(f"{name} must hold whole numbers, found {codes.dtype}")
    if codes.size and not (codes.min() >= 0 and codes.max() < num_types):
        raise ValueError(f"{name} must be between 0 and {num_types - 1}, found {codes.min()} to {codes.max()}")
    return codes.astype(np.int64)
