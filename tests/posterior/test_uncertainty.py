import numpy as np
import pytest
from scipy.stats import entropy

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior.parts import select_scenes
from pyro_nri.posterior.uncertainty import explains_nothing, uncertainty_frame


def listed(seed=0, num_draws=4000, num_scenes=2):
    """Draws of structures of two edges with known, dependent probabilities ``[G, 4]``, and what enumeration stores."""
    rng = np.random.default_rng(seed)
    weight = rng.dirichlet([1, 1, 1, 1], num_scenes)
    every = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    number = np.stack([rng.choice(4, (2, num_draws), p=p) for p in weight], axis=-1)  # [C, S, G]
    log_marginal = rng.normal(size=num_scenes)
    log_joint = np.log(weight)[np.arange(num_scenes), number] + log_marginal
    marginal = np.stack([weight @ (every == k) for k in (0, 1)], axis=-1)  # [G, E, K]
    known = {"log_joint": log_joint, "log_marginal": log_marginal, "edge_probability": marginal, "method": "exact"}
    return weight, every[number].astype(np.int8), known


@pytest.mark.statistical
def test_entropies_of_an_enumerated_posterior(make_tree):
    weight, edge_type, known = listed()
    found = uncertainty_frame(make_tree(edge_type, **known))
    assert found["estimator"].tolist() == ["exact", "exact"]
    error = [np.sqrt(p @ (np.log(p) + entropy(p)) ** 2 / 8000) for p in weight]
    assert (np.abs(found["structure_entropy"] - entropy(weight, axis=1)) < 4 * np.array(error)).all()
    np.testing.assert_allclose(found["map_probability"], weight.max(1))
    marginal = known["edge_probability"]
    np.testing.assert_allclose(found["edge_entropy"], entropy(marginal, axis=-1).sum(1))
    np.testing.assert_allclose(found["expected_accuracy"], marginal.max(-1).mean(1))
    np.testing.assert_allclose(found["expected_errors"], 2 - marginal.max(-1).sum(1))
    np.testing.assert_allclose(found["information"], 1 - found["edge_entropy"] / (2 * np.log(2)))
    assert (found["structure_entropy"] < found["edge_entropy"] + 4 * np.array(error)).all()


@pytest.mark.statistical
def test_entropies_of_draws(make_tree):
    weight, edge_type, known = listed()
    found = uncertainty_frame(make_tree(edge_type, log_joint=known["log_joint"]))
    assert found["estimator"].tolist() == ["counts", "counts"]
    np.testing.assert_allclose(found["structure_entropy"], entropy(weight, axis=1), atol=0.03)
    np.testing.assert_allclose(found["map_probability"], weight.max(1), atol=0.03)
    assert found["num_structures"].tolist() == [4, 4]


def test_information_is_relative_to_the_prior(make_tree):
    probability = np.tile([0.2, 0.8], (1, 6, 1))
    tree = make_tree(
        edge_probability=probability, prior=PriorRecord("independent", (0.2, 0.8)), edge_type=np.ones((1, 4, 1, 6))
    )
    assert uncertainty_frame(tree)["information"][0] == pytest.approx(0)
    assert "the data took away 0.0 % of what the prior" in explains_nothing(tree)
    uniform = make_tree(edge_probability=probability, edge_type=np.ones((1, 4, 1, 6)))
    assert uncertainty_frame(uniform)["information"][0] == pytest.approx(1 - entropy([0.2, 0.8]) / np.log(2))


def test_structures_that_tell_nothing_apart(make_tree):
    sure = np.tile([0.001, 0.999], (1, 6, 1))
    arguments = {"edge_type": np.ones((1, 4, 1, 6)), "type_names": ["none", "spring"]}
    assert "100.0 % of all edges have the type spring" in explains_nothing(
        make_tree(edge_probability=sure, **arguments)
    )
    mixed = sure.copy()
    mixed[0, :2] = [0.999, 0.001]
    assert explains_nothing(make_tree(edge_probability=mixed, **arguments)) is None
    expected = {"prior": PriorRecord("independent", (0.001, 0.999))}  # that nearly all are linked was known before
    nearly = explains_nothing(make_tree(edge_probability=sure, **arguments, **expected))
    assert nearly is None or "took away" in nearly


def test_scenes_and_parts(make_tree, unequal, monkeypatch):
    import pyro_nri.posterior.parts as parts

    tree = make_tree(scenes=unequal)
    whole = uncertainty_frame(tree)
    monkeypatch.setattr(parts.scene_parts, "__defaults__", (1,))
    assert uncertainty_frame(tree).equals(whole)
    assert uncertainty_frame(tree, ["other"]).equals(whole.iloc[[1]].reset_index(drop=True))
    assert uncertainty_frame(select_scenes(tree, ["other"])).equals(whole.iloc[[1]].reset_index(drop=True))


def test_without_draws(make_tree):
    found = uncertainty_frame(make_tree(np.zeros((2, 0, 1, 6), np.int8)))
    assert np.isnan(found["structure_entropy"][0])
    assert found["num_structures"][0] == 0
