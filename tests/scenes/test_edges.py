"""The order of edges, against plain loops."""

import pytest
import torch

from pyro_nri.scenes import edges

SIZES = [2, 3, 5, 8]


def ordered_pairs(num_entities: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


@pytest.mark.parametrize("num_entities", SIZES)
def test_edges_are_numbered_row_major_by_sender(num_entities: int) -> None:
    expected = ordered_pairs(num_entities)
    assert edges.num_edges(num_entities) == len(expected)
    found = zip(edges.senders(num_entities).tolist(), edges.receivers(num_entities).tolist(), strict=True)
    assert list(found) == expected


@pytest.mark.parametrize("num_entities", SIZES)
def test_matrix_has_the_sender_on_its_rows(num_entities: int) -> None:
    matrix = edges.to_matrix(torch.arange(edges.num_edges(num_entities)), fill=-7)
    for e, (i, j) in enumerate(ordered_pairs(num_entities)):
        assert matrix[i, j] == e
    assert (matrix.diagonal() == -7).all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 4)])
def test_matrix_round_trip(batch: tuple[int, ...]) -> None:
    flat = torch.arange(20).expand(*batch, 20)
    assert torch.equal(edges.from_matrix(edges.to_matrix(flat)), flat)


@pytest.mark.parametrize("num_entities", SIZES)
def test_incoming_reverse_and_pairs(num_entities: int) -> None:
    number = {pair: e for e, pair in enumerate(ordered_pairs(num_entities))}
    entities = range(num_entities)
    assert edges.edge_number(num_entities).tolist() == [[number.get((i, j), -1) for j in entities] for i in entities]
    assert edges.incoming_edges(num_entities).tolist() == [[number[i, j] for i in entities if i != j] for j in entities]
    assert edges.reverse_edges(num_entities).tolist() == [number[j, i] for i, j in number]
    pairs = [[number[i, j], number[j, i]] for i in entities for j in entities if i < j]
    assert edges.pairs(num_entities).tolist() == pairs
    owner = edges.pair_of_edge(num_entities).tolist()
    assert owner == [next(p for p, both in enumerate(pairs) if e in both) for e in range(len(number))]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\]"):
        edges.from_matrix(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="7 edges found"):
        edges.to_matrix(torch.zeros(7))
    with pytest.raises(ValueError, match="0 edges found"):
        edges.num_entities_of(0)
