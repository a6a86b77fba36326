"""Rates by maximum marginal likelihood, against all graphs of three entities listed one by one."""

import itertools

import numpy as np
import pytest
from scipy import optimize, special

from pyro_nri.posterior.patterns import other_models
from pyro_nri.posterior.pool import make_pool, redrawn
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.quantities import at_rates, edge_model, log_rates
from pyro_nri.posterior.tilting import Base, Family, at, leave_one_out, maximise

EDGES = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
NONE = np.zeros((2, 2))


def coin(heads, log_likelihood_ratio):
    """Scenes that are one coin each, of which a noisy view is seen; s is whether it shows heads."""
    ratio = np.asarray(log_likelihood_ratio, float)
    value = np.tile([0.0, 1.0], len(ratio))[:, None]
    weight = np.stack([np.zeros(len(ratio)), ratio], axis=1).ravel()
    unit = np.repeat(np.arange(len(ratio)), 2)
    scene, kind = np.arange(len(ratio)), np.zeros(len(ratio), np.int64)
    return Family(value, weight, unit, scene, kind, [Base(np.array([[0.0], [1.0]]), np.zeros(2), 1)])


def test_certain_coins_have_their_share():
    point = maximise(coin(1, [40, 40, 40, -40, -40]), np.zeros(1))
    assert special.expit(point.theta[0]) == pytest.approx(0.6, abs=1e-6)
    assert point.moments[:, 0] == pytest.approx([1, 1, 1, 0, 0], abs=1e-6)


def test_uncertain_coins_are_a_mixture_whose_weight_is_fitted():
    """Each coin: weight w of likelihood e^r against 1 - w of likelihood 1; scipy looks for the likeliest w."""
    ratio = np.random.default_rng(0).normal(0.5, 1.5, 200)
    point = maximise(coin(1, ratio), np.zeros(1))
    best = optimize.minimize_scalar(
        lambda w: -np.log(w * np.exp(ratio) + 1 - w).sum(), bounds=(0, 1), method="bounded", options={"xatol": 1e-10}
    )
    assert special.expit(point.theta[0]) == pytest.approx(best.x, abs=1e-6)
    # Pseudo-observations: mean of the estimate, spread of its sandwich error, leaning nowhere.
    weight = special.expit(point.theta[0] + ratio)
    score = weight - best.x
    information = best.x * (1 - best.x) - (weight * (1 - weight)).mean()
    assert point.moments.mean() == pytest.approx(best.x, abs=1e-6)
    wanted = np.sqrt((score**2).mean()) / information * best.x * (1 - best.x)
    assert point.moments.std() == pytest.approx(wanted, rel=1e-4)


def test_derivatives():
    rng = np.random.default_rng(1)
    value = rng.normal(size=(24, 2))
    bases = [Base(rng.normal(size=(5, 2)), rng.normal(size=5), 3), Base(rng.normal(size=(4, 2)), rng.normal(size=4), 1)]
    unit, scene = np.repeat(np.arange(6), 4), np.array([0, 0, 1, 2, 2, 2])
    family = Family(value, rng.normal(size=24), unit, scene, np.array([0, 1, 0]), bases)
    theta, start, precision = np.array([0.3, -0.5]), np.array([0.1, 0.2]), np.array([[2.0, 0.5], [0.5, 1.0]])
    point = at(family, theta, start, precision)

    def value_at(x):
        return at(family, x, start, precision).log_marginal

    def gradient_at(x):
        return at(family, x, start, precision).gradient

    assert point.gradient == pytest.approx(optimize.approx_fprime(theta, value_at, 1e-6), abs=1e-4)
    hessian = np.stack([optimize.approx_fprime(theta, lambda x, p=p: gradient_at(x)[p], 1e-6) for p in range(2)])
    assert -hessian == pytest.approx(point.information, abs=1e-4)
    part = family.part(np.array([True, False, True]))
    assert at(part, theta, start, NONE).score == pytest.approx(point.score[[0, 2]])


def test_a_likelihood_that_grows_for_ever_ends_far_out():
    point = maximise(coin(1, [-50.0] * 6), np.zeros(1))
    assert special.expit(point.theta[0]) < 1e-6
    assert point.moments[:, 0] == pytest.approx(0, abs=1e-6)


def test_leaving_one_out_is_near_fitting_without_it():
    family = coin(1, np.random.default_rng(2).normal(0.5, 2, 40))
    whole = maximise(family, np.zeros(1))
    found = leave_one_out(family, whole)[:, 0]
    rest = [maximise(family.part(np.arange(40) != g), np.zeros(1)).theta[0] for g in range(40)]
    share = special.expit(whole.theta[0])
    change = special.expit(rest) - share
    assert np.abs(found - share - change).max() < 0.2 * np.abs(change).max()  # one Newton step of the way
    certain = coin(1, [40.0] * 30 + [-40.0] * 20)
    found = leave_one_out(certain, maximise(certain, np.zeros(1)))[:, 0]
    assert found == pytest.approx([29 / 49] * 30 + [30 / 49] * 20, abs=1e-3)


# --- whole posteriors ------------------------------------------------------------------------------------------------
def listed(structure, information, num_types, seed, studies):
    """Log-likelihood of every graph of three entities for each scene, and the posterior by another road."""
    noise = np.random.default_rng(seed).normal(size=(*structure.shape, num_types)) / np.sqrt(information)
    seen = np.eye(num_types)[structure] + noise
    graphs = np.array(list(itertools.product(range(num_types), repeat=6)))
    log_likelihood = np.stack([(information * seen[:, range(6), graph]).sum(1) for graph in graphs], axis=1)
    return graphs, log_likelihood


@pytest.fixture(params=[2, 3])
def noisy(request, studies):
    num_types = request.param
    rng = np.random.default_rng(num_types)
    structure = rng.choice(num_types, (30, 6), p=[0.7, *[0.3 / (num_types - 1)] * (num_types - 1)])
    graphs, log_likelihood = listed(structure, 2.0, num_types, 5, studies)
    tree = studies.exact_posterior(
        structure,
        2.0,
        np.random.default_rng(5),
        num_types=num_types,
        num_draws=400,
        weight=(0.2, 0.8, 0.1)[:num_types] if num_types == 2 else (0.2, 0.7, 0.1),
    )
    return tree, graphs, log_likelihood, num_types


def marginal(log_prior, log_likelihood):
    return special.logsumexp(log_likelihood + log_prior - special.logsumexp(log_prior), axis=1).sum()


def test_densities_are_the_likeliest_whatever_the_prior_was(noisy):
    tree, graphs, log_likelihood, num_types = noisy
    counts = np.stack([(graphs == k).sum(1) for k in range(num_types)], axis=1)
    best = optimize.minimize(
        lambda x: -marginal(counts @ special.log_softmax([0, *x]), log_likelihood), np.zeros(num_types - 1), tol=1e-10
    )
    wanted = special.softmax([0, *best.x])
    pool = make_pool([tree], [edge_probability(tree)[0]])
    point = edge_model(pool, {"density"}, [0]).fit()
    assert np.exp(log_rates(pool, point)) == pytest.approx(wanted, abs=1e-5)
    posterior_mean = edge_probability(tree)[0].mean(0)
    assert np.abs(posterior_mean - wanted).max() > 0.1  # what the prior does to averages


@pytest.mark.statistical
def test_pairs_and_stars_are_the_likeliest(noisy):
    tree, graphs, log_likelihood, num_types = noisy
    pool = make_pool([tree], [edge_probability(tree)[0]])
    rate = log_rates(pool, edge_model(pool, {"density"}, [0]).fit())
    pool = at_rates(redrawn(pool, rate, np.random.default_rng(0), num_draws=4000), rate)
    models = other_models(pool, rate, {"reciprocity", "dispersion", "motifs"}, [1], np.random.default_rng(0))
    matrix = np.zeros((len(graphs), 3, 3))
    for e, (i, j) in enumerate(EDGES):
        matrix[:, i, j] = graphs[:, e] == 1
    linked, into, out = matrix.sum((1, 2)), matrix.sum(1), matrix.sum(2)
    both = (matrix * matrix.swapaxes(1, 2)).sum((1, 2)) / 2
    statistics = {
        "reciprocity": [linked, both],
        "in-degree dispersion": [linked, (into * (into - 1) / 2).sum(1)],
        "out-degree dispersion": [linked, (out * (out - 1) / 2).sum(1)],
        "transitive triads": [linked, both, np.einsum("gij,gjk,gik->g", matrix, matrix, matrix)],
        "cyclic triads": [linked, both, np.einsum("gij,gjk,gki->g", matrix, matrix, matrix) / 3],
    }
    base = np.stack([(graphs == k).sum(1) for k in range(num_types)], axis=1) @ rate
    for model in models:
        s = np.stack(statistics[model.quantities[0].name], axis=1)
        precision = model.fit().information - at(model.family, model.fit().theta, model.start, 0 * s.T @ s).information
        if s.shape[1] == 3:  # around the pairs that all scenes have
            pairs = models[0].fit().theta
            centre = np.array([*pairs, 0.0])
        else:
            centre = np.zeros(2)

        def loss(x, s=s, centre=centre, precision=precision):
            away = x - centre
            return -marginal(base + s @ x, log_likelihood) + away @ precision @ away / 2

        best = optimize.minimize(loss, centre, method="BFGS", tol=1e-8)
        prior = special.softmax(base + s @ best.x)
        found = model.fit().mean.mean(0)
        assert found == pytest.approx(prior @ s, abs=0.04), model.quantities[0].name
