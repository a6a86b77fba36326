"""Counts in structures against networkx."""

import networkx as nx
import numpy as np
import pytest

from pyro_nri.posterior import motifs


@pytest.fixture(params=[2, 3, 5, 6])
def drawn(request):
    num_entities = request.param
    rng = np.random.default_rng(num_entities)
    linked = rng.random((40, num_entities * (num_entities - 1))) < rng.random((40, 1))
    matrices = motifs.adjacency(linked, num_entities)
    return linked, num_entities, [nx.from_numpy_array(matrix, create_using=nx.DiGraph) for matrix in matrices]


def test_adjacency_has_senders_in_rows():
    matrix = motifs.adjacency(np.array([[True, False, False, False, False, True]]), 3)[0]
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 0], [0, 1, 0]]  # edges 0 -> 1 and 2 -> 1


def test_edges_and_mutual_pairs(drawn):
    linked, num_entities, graphs = drawn
    assert motifs.num_edges(linked).tolist() == [graph.number_of_edges() for graph in graphs]
    mutual = [sum(graph.has_edge(j, i) for i, j in graph.edges) // 2 for graph in graphs]
    assert motifs.num_mutual(linked, num_entities).tolist() == mutual


@pytest.mark.parametrize("ends", ["in", "out"])
def test_stars(drawn, ends):
    linked, num_entities, graphs = drawn
    degrees = [dict(graph.in_degree if ends == "in" else graph.out_degree).values() for graph in graphs]
    wanted = [sum(d * (d - 1) // 2 for d in each) for each in degrees]
    assert motifs.num_stars(linked, num_entities, ends).tolist() == wanted


def test_triads(drawn):
    linked, num_entities, graphs = drawn
    census = motifs.triad_census(linked, num_entities)
    wanted = [[nx.triadic_census(graph)[name] for name in motifs.TRIADS] for graph in graphs]
    if num_entities > 2:  # networkx gives no census of fewer entities
        assert census.tolist() == wanted
    assert (census.sum(1) == num_entities * (num_entities - 1) * (num_entities - 2) // 6).all()


def test_closed_paths(drawn):
    linked, num_entities, graphs = drawn
    cycles = [sum(len(cycle) == 3 for cycle in nx.simple_cycles(graph, length_bound=3)) for graph in graphs]
    assert motifs.num_cycles(linked, num_entities).tolist() == cycles
    transitive = [
        sum(graph.has_edge(i, k) for i, j in graph.edges for k in graph.successors(j) if k != i) for graph in graphs
    ]
    assert motifs.num_transitive(linked, num_entities).tolist() == transitive
