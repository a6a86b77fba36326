"""Counts in structures: linked edges, mutual pairs, stars, triads.

Everything here looks at one type: an edge is *linked* if it has the type, and the structure is the directed graph of
linked edges.
"""

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from pyro_nri.scenes import edges

#: The sixteen classes of directed graphs of three entities: mutual, one-way, absent pairs, and their direction.
TRIADS = (
    *("003", "012", "102", "021D", "021U", "021C", "111D", "111U"),
    *("030T", "030C", "201", "120D", "120U", "120C", "210", "300"),
)
# Structures whose matrices are multiplied at once.
_CHUNK = 2**16


def adjacency(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.float32]:
    """Matrices ``[J, N, N]``, row = sender, of linked edges ``[J, E]``."""
    matrix = np.zeros((len(linked), num_entities, num_entities), np.float32)
    matrix[:, edges.senders(num_entities).numpy(), edges.receivers(num_entities).numpy()] = linked
    return matrix


def num_edges(linked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Linked edges, ``[J]``, of ``[J, E]``."""
    result = np.empty(len(linked), np.int64)
    ones = np.ones(linked.shape[1], np.float32)
    for start in range(0, len(linked), _CHUNK):  # a product is many times faster than a sum over a short axis
        part = slice(start, start + _CHUNK)
        result[part] = linked[part].astype(np.float32) @ ones
    return result


def num_mutual(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
    """Pairs linked both ways, ``[J]``."""
    both = edges.pairs(num_entities).numpy()
    return num_edges(linked[:, both[:, 0]] & linked[:, both[:, 1]])


def num_stars(linked: NDArray[np.bool_], num_entities: int, ends: str) -> NDArray[np.int64]:
    r"""Pairs of linked edges with one receiver (``ends`` "in") or sender ("out"): :math:`\sum_j d_j (d_j - 1) / 2`."""
    owner = edges.senders(num_entities) if ends == "out" else edges.receivers(num_entities)
    ends_at = (owner.numpy()[:, None] == np.arange(num_entities)).astype(np.float32)  # [E, N]
    ones, result = np.ones(num_entities, np.float32), np.empty(len(linked), np.int64)
    for start in range(0, len(linked), _CHUNK):
        part = slice(start, start + _CHUNK)
        degree = linked[part].astype(np.float32) @ ends_at
        result[part] = np.rint((degree * (degree - 1) / 2) @ ones)
    return result


def num_transitive(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
    """Ordered triples with i -> j, j -> k and i -> k (feed-forward loops), ``[J]``."""
    return _closed_paths(linked, num_entities, transpose=False)


def num_cycles(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
    """Cycles i -> j -> k -> i, each once, ``[J]``."""
    return _closed_paths(linked, num_entities, transpose=True) // 3


def _closed_paths(linked: NDArray[np.bool_], num_entities: int, *, transpose: bool) -> NDArray[np.int64]:
    result = np.zeros(len(linked), np.int64)
    for start in range(0, len(linked), _CHUNK):
        part = slice(start, start + _CHUNK)
        matrix = adjacency(linked[part], num_entities)
        closing = matrix.swapaxes(1, 2) if transpose else matrix
        result[part] = np.rint(np.einsum("jik,jik->j", matrix @ matrix, closing))
    return result


def triad_census(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
    """Sets of three entities in each class of :data:`TRIADS`, ``[J, 16]``.

    Args:
        linked: ``[J, E]``.
        num_entities: N.
    """
    number = edges.edge_number(num_entities).numpy()
    census = np.zeros((len(linked), len(TRIADS)), np.int64)
    row = np.arange(len(linked))
    for i, j, k in combinations(range(num_entities), 3):
        six = [number[i, j], number[j, i], number[i, k], number[k, i], number[j, k], number[k, j]]
        code = linked[:, six] @ (1 << np.arange(6))
        census[row, _CLASS_OF_CODE[code]] += 1
    return census


def _class_of(code: int) -> int:
    """Class of a graph of three entities from its six edges, in the order of :func:`triad_census`."""
    ends = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)]
    present = {edge for bit, edge in enumerate(ends) if code >> bit & 1}
    both = [pair for pair in combinations(range(3), 2) if {pair, pair[::-1]} <= present]
    one_way = [edge for edge in present if edge[::-1] not in present]
    name = f"{len(both)}{len(one_way)}{3 - len(both) - len(one_way)}"
    receivers, senders = ({edge[end] for edge in one_way} for end in (1, 0))
    if name in ("021", "120"):
        name += "D" if len(senders) == 1 else "U" if len(receivers) == 1 else "C"
    elif name == "030":
        name += "C" if len(receivers) == 3 else "T"
    elif name == "111":  # D: the third entity links to the mutual pair, U: the pair links to it
        name += "D" if one_way[0][1] in both[0] else "U"
    return TRIADS.index(name)


_CLASS_OF_CODE = np.array([_class_of(code) for code in range(64)])
