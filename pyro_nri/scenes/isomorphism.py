"""Which structures are one and the same graph up to the order of its entities."""

import itertools

import torch
from torch import Tensor

from pyro_nri.scenes import edges

#: Largest number of entities: all orders are tried.
MAX_ENTITIES = 7


def canonical_structure(structure: Tensor) -> Tensor:
    """The lexicographically smallest structure that another order of the entities gives.

    Two structures are isomorphic (with their types) if and only if their canonical structures are equal.

    Args:
        structure: long ``[*batch, E]``, every entity exists.

    Raises:
        ValueError: there are more than 7 entities, or a type is negative.

    >>> canonical_structure(torch.tensor([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])).tolist()
    [[0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    """
    num_entities = edges.num_entities_of(structure.shape[-1])
    if num_entities > MAX_ENTITIES:
        raise ValueError(f"structure must have at most {MAX_ENTITIES} entities, found {num_entities}")
    if structure.numel() == 0:
        return structure
    if structure.min() < 0:
        raise ValueError(f"structure must hold types of 0 or more, found {int(structure.min())}")
    flat, owner = structure.reshape(-1, structure.shape[-1]).unique(dim=0, return_inverse=True)  # [U, E]
    number, best = edges.edge_number(num_entities).to(structure.device), flat
    for order in itertools.permutations(range(num_entities)):
        moved = flat[:, edges.from_matrix(number[list(order)][:, list(order)])]
        differs = moved != best
        first = differs.to(torch.uint8).argmax(-1, keepdim=True)  # the first edge of another type
        smaller = (moved.gather(-1, first) < best.gather(-1, first)).squeeze(-1)
        best = torch.where(smaller[:, None], moved, best)
    canonical: Tensor = best[owner].reshape(structure.shape)
    return canonical


def graph_classes(structure: Tensor) -> tuple[Tensor, Tensor]:
    """Sort structures into isomorphism classes.

    Args:
        structure: long ``[M, E]``.

    Returns:
        The canonical structure of each class that occurs, ``[J, E]``, in ascending order; the class of each structure,
        long ``[M]``.
    """
    classes, owner = canonical_structure(structure).unique(dim=0, return_inverse=True)
    return classes, owner
