"""The main method's networks under full and true graphs."""

from dataclasses import replace

import pytest
import torch

from pyro_nri.baselines.graphs import GraphNetwork, fit_full_graph, fit_true_graph
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def train():
    return simulate("springs", 40, num_entities=3, num_frames=24, seed=3)


@pytest.fixture(scope="module")
def test_scenes():
    return simulate("springs", 30, num_entities=3, num_frames=24, seed=4)


@pytest.fixture(scope="module")
def true_graph(train):
    return fit_true_graph(train, num_steps=150, seed=0)


def error(baseline, scenes):
    path = baseline.predict(scenes, start=12, num_steps=5)
    return float((path[:, 4] - scenes.trajectory[:, 17]).square().mean())


def test_true_graph_beats_full_graph(train, test_scenes, true_graph):
    full = fit_full_graph(train, num_steps=150, seed=0)
    assert error(true_graph, test_scenes) < 0.5 * error(full, test_scenes)
    wrong = replace(test_scenes, edge_type=1 - test_scenes.edge_type)
    assert error(true_graph, wrong) > 2 * error(true_graph, test_scenes)
    assert true_graph.uses_labels and not full.uses_labels  # noqa: PT018
    assert full.checkpoint.spec.num_edge_types == 1


def test_prediction_sees_nothing_later(test_scenes, true_graph):
    later = replace(test_scenes, trajectory=test_scenes.trajectory.clone())
    later.trajectory[:, 13:] = 100.0
    for edges in ("given", "infer"):
        row = GraphNetwork(true_graph.checkpoint, edges=edges)
        path = row.predict(test_scenes, start=12, num_steps=3)
        assert torch.equal(path, row.predict(later, start=12, num_steps=3))


def test_inferred_structures_are_the_posterior(test_scenes, true_graph):
    model = true_graph.checkpoint.model
    row = GraphNetwork(true_graph.checkpoint)
    found = row.edge_probability(test_scenes)
    prior = model.structure_prior(model.prepare(test_scenes))
    exact = enumerate_posterior(model.likelihood(test_scenes), prior).edge_probability
    torch.testing.assert_close(found, exact)
    best = row.predict(test_scenes, start=12, num_steps=3)
    given = row.predict(
        test_scenes,
        start=12,
        num_steps=3,
        structure=row.edge_probability(test_scenes.frames(0, 12)).argmax(-1),
    )
    assert torch.equal(best, given)
    chains = GraphNetwork(true_graph.checkpoint, method="mcmc", num_chains=2, num_draws=150, num_warmup=50)
    assert float((chains.edge_probability(test_scenes) - exact).abs().mean()) < 0.02


def test_refuses(train, true_graph):
    unknown = replace(train, edge_type=None)
    with pytest.raises(ValueError, match="training under true structures needs scenes whose structures are known"):
        fit_true_graph(unknown, seed=0)
    with pytest.raises(ValueError, match="prediction under true structures needs"):
        true_graph.predict(unknown, start=3, num_steps=1)
    with pytest.raises(ValueError, match="structures are given, not inferred"):
        true_graph.edge_probability(train)
    with pytest.raises(ValueError, match="edges must be one of"):
        GraphNetwork(true_graph.checkpoint, edges="some")
    with pytest.raises(ValueError, match="a full graph has one type of edge"):
        GraphNetwork(true_graph.checkpoint, edges="full")
    assert fit_full_graph(train, spec=ModelSpec(3), num_steps=1, seed=0).checkpoint.spec.num_edge_types == 1
