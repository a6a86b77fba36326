import numpy as np
import pytest

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior.inclusion import bayes_factors_frame


def test_exact_probabilities(make_tree):
    probability = np.random.default_rng(0).dirichlet([1, 1, 1], (3, 6))
    prior = np.array([0.5, 0.3, 0.2])
    tree = make_tree(
        num_edge_types=3, edge_probability=probability, method="exact", prior=PriorRecord("independent", tuple(prior))
    )
    found = bayes_factors_frame(tree)
    odds = (probability / (1 - probability)) / (prior / (1 - prior))
    np.testing.assert_allclose(found["log_bayes_factor"], np.log(odds).ravel())
    assert (found["mcse"] == 0).all()
    assert (found["bound"] == "").all()
    given = bayes_factors_frame(tree, ["2"], prior_probability=[1 / 3] * 3)
    np.testing.assert_allclose(given["log_bayes_factor"], np.log(2 * probability[2] / (1 - probability[2])).ravel())


@pytest.mark.statistical
def test_monte_carlo_error_is_the_spread_over_runs(make_tree):
    """400 chains of independent draws, each a scene of its own: the errors are those of the log odds."""
    probability, num_draws = 0.2, 400
    edge_type = np.random.default_rng(0).random((1, num_draws, 400, 2)) < probability
    found = bayes_factors_frame(make_tree(edge_type), prior_probability=[0.5, 0.5])
    of_one = found[found["edge_type"] == 1]
    wanted = 1 / np.sqrt(num_draws * probability * (1 - probability))
    assert of_one["mcse"].mean() == pytest.approx(wanted, rel=0.05)
    assert of_one["log_bayes_factor"].std() == pytest.approx(wanted, rel=0.1)
    assert of_one["log_bayes_factor"].mean() == pytest.approx(np.log(0.25), abs=4 * wanted / np.sqrt(800))


def test_frequencies_of_zero_and_one_are_bounds(make_tree):
    """If the type had the probability of the bound, 5 % of runs of so many independent draws would miss it."""
    edge_type = np.zeros((2, 50, 1, 2), np.int8)
    found = bayes_factors_frame(make_tree(edge_type, prior=PriorRecord("independent", (0.5, 0.5))))
    assert found["bound"].tolist() == ["at least", "at most"] * 2
    assert found["mcse"].isna().all()
    missed = 1 / (1 + np.exp(-found["log_bayes_factor"][1]))
    assert (1 - missed) ** 100 == pytest.approx(0.05)
    assert found["log_bayes_factor"][0] == -found["log_bayes_factor"][1]


def test_bounds_are_weaker_where_chains_mix_slowly(make_tree):
    """The other edge moves every 25 draws: fewer effective draws, and a bound nearer to 0."""
    edge_type = np.zeros((2, 100, 2, 2), np.int8)
    edge_type[:, 25:50, 0, 1] = edge_type[:, 75:, 0, 1] = 1
    found = bayes_factors_frame(make_tree(edge_type, prior=PriorRecord("independent", (0.5, 0.5))))
    slow, still = (found.query("scene == @scene and edge_type == 0")["log_bayes_factor"].iloc[0] for scene in "01")
    assert 0 < slow < still - 1


def test_rao_blackwell_probabilities_do_not_replace_bounds(make_tree):
    """Conditionals of a chain that sat still are no evidence that nothing else is possible."""
    sure = np.tile([1 - 1e-12, 1e-12], (1, 6, 1))
    found = bayes_factors_frame(
        make_tree(np.zeros((2, 50, 1, 6), np.int8), edge_probability=sure), prior_probability=[0.5, 0.5]
    )
    assert set(found["bound"]) == {"at least", "at most"}
    assert found["log_bayes_factor"].max() < 5


@pytest.mark.parametrize("wrong", [[0.5, 0.4], [1.0, 0.0], [0.2, 0.3, 0.5]])
def test_priors_must_be_probabilities(make_tree, wrong):
    with pytest.raises(ValueError, match="prior_probability must be 2 positive numbers that add up to 1"):
        bayes_factors_frame(make_tree(), prior_probability=wrong)


def test_the_prior_must_be_known(make_tree):
    with pytest.raises(ValueError, match="the posterior does not store its prior; give prior_probability"):
        bayes_factors_frame(make_tree())
