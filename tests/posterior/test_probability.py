import arviz as az
import numpy as np

from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.posterior.probability import edge_probability, indicators


def test_counts_never_say_certain(make_tree):
    edge_type = np.zeros((2, 10, 1, 2), np.int8)
    edge_type[0, :5, 0, 1] = 1
    probability, estimator = edge_probability(make_tree(edge_type))
    assert estimator == "counts"
    np.testing.assert_allclose(probability, [[20.5 / 21, 0.5 / 21], [15.5 / 21, 5.5 / 21]])


def test_known_probabilities_come_first(make_tree):
    known = np.random.default_rng(0).dirichlet([1, 1, 1], (3, 6))
    for method, name in (("exact", "exact"), ("mcmc", "rao-blackwell")):
        probability, estimator = edge_probability(make_tree(num_edge_types=3, edge_probability=known, method=method))
        assert estimator == name
        np.testing.assert_array_equal(probability, known.reshape(18, 3))


def test_indicators_are_what_arviz_wants(make_tree):
    tree = make_tree(num_edge_types=3)
    found = indicators(tree)
    flags, edge_type = found["edge_is_type"], tree["posterior/edge_type"].values
    assert flags.dims == ("chain", "draw", "edge", "type")
    np.testing.assert_array_equal(flags.argmax("type"), edge_type)
    np.testing.assert_array_equal(flags.sum("type"), 1)
    first = found.isel(edge=found.scene == "0")
    summary = az.summary(first, round_to="none")
    assert summary.index[0] == "edge_is_type[0: 0 -> 1, type_0]"
    np.testing.assert_allclose(summary["mean"], flags.mean(("chain", "draw")).values[:6].ravel())
    np.testing.assert_allclose(az.rhat(first)["edge_is_type"], edge_diagnostics(edge_type, 3).r_hat[:6])
