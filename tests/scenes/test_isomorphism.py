"""Isomorphism classes against the known numbers of graphs, and against networkx-free search by hand."""

import itertools

import pytest
import torch

from pyro_nri.scenes import edges
from pyro_nri.scenes.isomorphism import canonical_structure, graph_classes


def all_structures(num_entities, *, symmetric, num_types=2):
    parts = edges.num_edges(num_entities) // (2 if symmetric else 1)
    every = torch.tensor(list(itertools.product(range(num_types), repeat=parts)))
    return every[:, edges.pair_of_edge(num_entities)] if symmetric else every


@pytest.mark.parametrize(
    ("num_entities", "symmetric", "num_types", "number"),
    [
        (3, True, 2, 4),
        (4, True, 2, 11),
        (5, True, 2, 34),  # graphs on n nodes: OEIS A000088
        (3, False, 2, 16),
        (4, False, 2, 218),  # directed graphs: OEIS A000273
        (4, True, 3, 66),  # pairs of three colours: OEIS A004102
    ],
)
def test_number_of_classes(num_entities, symmetric, num_types, number):
    structures = all_structures(num_entities, symmetric=symmetric, num_types=num_types)
    classes, owner = graph_classes(structures)
    assert len(classes) == number
    assert torch.equal(classes[owner], canonical_structure(structures))


def test_every_order_of_the_entities_gives_the_same_and_it_is_one_of_them():
    random = torch.Generator().manual_seed(0)
    matrix = torch.randint(3, (4, 4), generator=random)
    orders = [list(order) for order in itertools.permutations(range(4))]
    moved = torch.stack([edges.from_matrix(matrix[order][:, order]) for order in orders])
    canonical = canonical_structure(moved)
    assert (canonical == canonical[0]).all()
    assert canonical[0].tolist() == min(moved.tolist())


def test_batches_and_refusals():
    structures = all_structures(3, symmetric=False)
    assert torch.equal(canonical_structure(structures.reshape(8, 8, 6)).reshape(64, 6), canonical_structure(structures))
    with pytest.raises(ValueError, match="at most 7 entities, found 8"):
        canonical_structure(torch.zeros(1, 56, dtype=torch.long))
    with pytest.raises(ValueError, match="types of 0 or more, found -1"):
        canonical_structure(torch.full((1, 6), -1))
