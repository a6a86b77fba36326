"""Two posteriors of the same scenes: distances of whole graphs and differences of edges."""

import itertools

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import jensenshannon

from pyro_nri.posterior.compare import edge_differences
from pyro_nri.posterior.distances import scene_distances
from pyro_nri.posterior.probability import edge_probability


@pytest.fixture
def two(studies):
    """Weak views of the same four scenes of three entities, seen twice."""
    structure = np.random.default_rng(0).integers(0, 2, (4, 6))
    return [studies.exact_posterior(structure, 1.0, np.random.default_rng(seed), num_draws=3000) for seed in (1, 2)]


def all_graphs(tree, scene):
    """Probability of each of 64 graphs, edges being independent here, and the graphs."""
    link = edge_probability(tree)[0][:, 1].reshape(-1, 6)[scene]
    graphs = np.array(list(itertools.product([0, 1], repeat=6)))
    return np.prod(np.where(graphs == 1, link, 1 - link), axis=1), graphs


def test_exact_distances_are_those_of_all_graphs(two):
    frame = scene_distances(*two)
    assert frame["estimator"].unique().tolist() == ["exact"]
    assert frame["chance"].tolist() == [0] * 4
    for g, row in frame.iterrows():
        (p, graphs), (q, _) = (all_graphs(tree, g) for tree in two)
        assert row["total_variation"] == pytest.approx(np.abs(p - q).sum() / 2)
        assert row["jensen_shannon"] == pytest.approx(jensenshannon(p, q) ** 2)
        apart = (graphs[:, None] != graphs).sum(-1)
        assert row["distance_between"] == pytest.approx(p @ apart @ q)
        assert row["distance_a"] == pytest.approx(p @ apart @ p)
        assert row["distance_b"] == pytest.approx(q @ apart @ q)
    same = scene_distances(two[0], two[0])
    assert same[["total_variation", "jensen_shannon"]].to_numpy() == pytest.approx(0, abs=1e-12)
    assert same["distance_between"].to_numpy() == pytest.approx(same["distance_a"])


@pytest.mark.statistical
def test_drawn_distances_are_near_and_say_what_chance_does(studies, two):
    drawn = []
    for tree in two:
        copy = tree.copy()
        del copy["edge_posterior"]
        drawn.append(copy)
    exact, frame = scene_distances(*two), scene_distances(*drawn)
    assert frame["estimator"].unique().tolist() == ["draws"]
    # 64 graphs, 3,000 draws: an excess of about half the sum of standard errors at most.
    excess = frame["total_variation"] - exact["total_variation"]
    assert excess.abs().max() < 0.06
    assert (frame["chance"].between(0.01, 0.1)).all()
    for name in ("distance_between", "distance_a", "distance_b"):
        assert frame[name].to_numpy() == pytest.approx(exact[name], abs=4 * 2 / np.sqrt(3000))
    halves = []
    for part in (slice(0, 1500), slice(1500, None)):
        half = drawn[0].copy()
        half["posterior"] = xr.DataTree(half["posterior"].to_dataset().isel(draw=part))
        halves.append(half)
    chance = scene_distances(*halves)  # the same posterior, other draws
    assert chance["total_variation"].mean() == pytest.approx(chance["chance"].mean(), rel=0.3)


def test_edges_are_matched_by_name(studies):
    structure = np.random.default_rng(3).integers(0, 2, (3, 6))
    a = studies.exact_posterior(structure, 2.0, np.random.default_rng(4), scene_names=["p", "q", "r"])
    b = studies.exact_posterior(structure[[2, 0]], 2.0, np.random.default_rng(5), scene_names=["r", "p"], num_draws=50)
    frame = edge_differences(a, b)
    assert frame["scene"].unique().tolist() == ["p", "r"]
    assert len(frame) == 2 * 6 * 2
    first, second = edge_probability(a)[0].reshape(3, 12), edge_probability(b)[0].reshape(2, 12)
    assert frame["probability_a"].to_numpy() == pytest.approx(first[[0, 2]].ravel())
    assert frame["probability_b"].to_numpy() == pytest.approx(second[[1, 0]].ravel())
    assert (frame["mcse"] == 0).all()
    swapped = edge_differences(a, b, relabel=[1, 0])
    assert swapped["probability_b"].to_numpy() == pytest.approx(second[[1, 0]].reshape(-1, 2)[:, ::-1].ravel())


@pytest.mark.statistical
def test_monte_carlo_errors_of_drawn_edges(make_tree):
    rng = np.random.default_rng(6)
    probability = rng.uniform(0.1, 0.9, 24)
    probability[0] = 0
    trees = [make_tree((rng.random((4, 500, 4, 6)) < probability.reshape(4, 6)).astype(np.int8)) for _ in range(2)]
    frame = edge_differences(*trees)
    link = frame[frame["edge_type"] == 1]
    assert link["z"].iloc[1:].std() == pytest.approx(1, abs=4 / np.sqrt(2 * 23))
    assert link["mcse"].iloc[1:].to_numpy() == pytest.approx(
        np.sqrt(2 * probability[1:] * (1 - probability[1:]) / 2000), rel=0.25
    )
    assert 0 < link["mcse"].iloc[0] < 1e-3  # 2,000 draws alike are not a certainty
    stuck = np.zeros((2, 50, 1, 6), np.int8)
    stuck[1] = 1
    one, other = make_tree(stuck), make_tree(np.zeros((2, 50, 1, 6), np.int8))
    assert np.isinf(edge_differences(one, other)["mcse"]).all()


def test_refusals(studies, make_tree):
    rng = np.random.default_rng(7)
    a = studies.exact_posterior(np.zeros((2, 6), int), 1.0, rng, scene_names=["p", "q"])
    b = studies.exact_posterior(np.zeros((2, 6), int), 1.0, rng, scene_names=["r", "s"])
    with pytest.raises(ValueError, match="no scene in common: the first has 'p', 'q', the second 'r', 's'"):
        scene_distances(a, b)
    other = studies.exact_posterior(
        np.zeros((2, 6), int), 1.0, rng, scene_names=["p", "q"], entity_names=["x", "y", "z"]
    )
    with pytest.raises(ValueError, match="scene 'p' does not have the same entities in both posteriors"):
        edge_differences(a, other)
    larger = studies.exact_posterior(np.zeros((2, 12), int), 1.0, rng, scene_names=["p", "q"])
    with pytest.raises(ValueError, match="scene 'p' does not have the same entities"):
        edge_differences(a, larger)
    three = studies.exact_posterior(np.zeros((2, 6), int), 1.0, rng, num_types=3, scene_names=["p", "q"])
    with pytest.raises(ValueError, match="must have the same number of edge types, found 2 and 3"):
        edge_differences(a, three)
