"""The order of edges, and every conversion that depends on it.

An edge is an ordered pair sender -> receiver; self-pairs are left out. Edges are numbered row-major by sender:
for N = 3 they are 0->1, 0->2, 1->0, 1->2, 2->0, 2->1. With N entities there are E = N (N - 1) edges.
"""

import math

import torch
from torch import Tensor


def num_edges(num_entities: int) -> int:
    """Number of ordered pairs of ``num_entities`` entities, ``E = N (N - 1)``."""
    return num_entities * (num_entities - 1)


def senders(num_entities: int) -> Tensor:
    """Sender of each edge, long ``[E]``."""
    return torch.arange(num_entities).repeat_interleave(num_entities - 1)


def receivers(num_entities: int) -> Tensor:
    """Receiver of each edge, long ``[E]``.

    >>> receivers(3).tolist()
    [1, 2, 0, 2, 0, 1]
    """
    matrix = torch.arange(num_entities).expand(num_entities, num_entities)
    return from_matrix(matrix)


def from_matrix(matrix: Tensor) -> Tensor:
    """Flatten ``[*batch, N, N]`` (row = sender, column = receiver) to ``[*batch, E]``; the diagonal is dropped.

    Raises:
        ValueError: the last two axes are not equal.

    >>> from_matrix(torch.tensor([[0, 1, 2], [3, 0, 5], [6, 7, 0]])).tolist()
    [1, 2, 3, 5, 6, 7]
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix must have shape [*batch, N, N], found {list(matrix.shape)}")
    num_entities = matrix.shape[-1]
    off_diagonal = ~torch.eye(num_entities, dtype=torch.bool, device=matrix.device)
    return matrix[..., off_diagonal]


def to_matrix(edges: Tensor, fill: float = 0) -> Tensor:
    """Lay ``[*batch, E]`` out as ``[*batch, N, N]`` (row = sender, column = receiver), with ``fill`` on the diagonal.

    Raises:
        ValueError: the last axis is not N (N - 1) for any N.

    >>> to_matrix(torch.tensor([1, 2, 3, 5, 6, 7])).tolist()
    [[0, 1, 2], [3, 0, 5], [6, 7, 0]]
    """
    num_entities = num_entities_of(edges.shape[-1])
    off_diagonal = ~torch.eye(num_entities, dtype=torch.bool, device=edges.device)
    matrix = torch.full((*edges.shape[:-1], num_entities, num_entities), fill, dtype=edges.dtype, device=edges.device)
    matrix[..., off_diagonal] = edges
    return matrix


def num_entities_of(count: int) -> int:
    """Number of entities N for which ``count = N (N - 1)``.

    Raises:
        ValueError: there is none.
    """
    num_entities = math.isqrt(4 * count + 1) // 2 + 1
    if num_edges(num_entities) != count or num_entities < 2:
        raise ValueError(f"{count} edges found, wanted N (N - 1) for some N of at least 2")
    return num_entities


def edge_number(num_entities: int) -> Tensor:
    """Number of the edge sender -> receiver, long ``[N, N]``; -1 on the diagonal."""
    return to_matrix(torch.arange(num_edges(num_entities)), fill=-1)


def incoming_edges(num_entities: int) -> Tensor:
    """Edges into each receiver in the order of their senders, long ``[N, N - 1]``.

    >>> incoming_edges(3).tolist()
    [[2, 4], [0, 5], [1, 3]]
    """
    return from_matrix(edge_number(num_entities).T).reshape(num_entities, num_entities - 1)


def from_incoming(incoming: Tensor) -> Tensor:
    """What is known of the edges into each receiver, ``[*batch, N, N - 1]``, in the order of edges, ``[*batch, E]``.

    >>> from_incoming(incoming_edges(3)).tolist()
    [0, 1, 2, 3, 4, 5]
    """
    place = incoming_edges(incoming.shape[-2]).reshape(-1).argsort()
    return incoming.flatten(-2)[..., place.to(incoming.device)]


def reverse_edges(num_entities: int) -> Tensor:
    """Number of the edge receiver -> sender for each edge sender -> receiver, long ``[E]``."""
    return from_matrix(edge_number(num_entities).T)


def pairs(num_entities: int) -> Tensor:
    """The two edges of each unordered pair {i, j}, long ``[N (N - 1) / 2, 2]``: first i -> j with i < j, then j -> i.

    >>> pairs(3).tolist()
    [[0, 2], [1, 4], [3, 5]]
    """
    number = edge_number(num_entities)
    low, high = torch.triu_indices(num_entities, num_entities, offset=1)
    return torch.stack([number[low, high], number[high, low]], dim=-1)


def pair_of_edge(num_entities: int) -> Tensor:
    """Number of the unordered pair that each edge belongs to, long ``[E]``, in the order of :func:`pairs`."""
    both = pairs(num_entities)
    owner = torch.empty(num_edges(num_entities), dtype=torch.long)
    owner[both] = torch.arange(len(both))[:, None].expand(-1, 2)
    return owner
