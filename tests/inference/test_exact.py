"""Enumerated posteriors against sums over all structures, written with NumPy."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference.exact import (
    FactorisedPosterior,
    ListedPosterior,
    can_enumerate,
    edge_conditionals,
    enumerate_posterior,
    list_structures,
    num_structures,
)
from pyro_nri.inference.streams import Stream, keys

CASES = {
    "independent, K=2": ({}, {}),
    "independent, K=3": ({"num_edge_types": 3, "noise": "student_t"}, {"missing": 0.1}),
    "symmetric, K=2": ({"prior": "symmetric"}, {}),
    "symmetric, K=3": ({"num_edge_types": 3, "prior": "symmetric"}, {}),
    "padded": ({}, {"padded": [1]}),
    "symmetric, padded": ({"prior": "symmetric"}, {"padded": [0, 2]}),
    "shared": ({}, {"groups": ["a", "b", "a"]}),
    "symmetric, shared": ({"prior": "symmetric", "num_edge_types": 3}, {"groups": ["a", "a", "a"], "missing": 0.1}),
    "horizon": ({"horizon": 3}, {"groups": ["a", "b", "a"]}),
    "symmetric, horizon": ({"horizon": 2, "prior": "symmetric"}, {"padded": [2]}),
}


class BruteForce:
    """Weights of all K ** E structures of each group, normalised one by one."""

    def __init__(self, model, scenes, every, temperature=1.0):
        self.every = np.array(every)  # [J, E]
        num_groups = scenes.num_groups
        with torch.no_grad():
            joint = model.log_joint(scenes, torch.tensor(every)[:, None].expand(-1, num_groups, -1)).numpy()
        self.log_joint = joint / temperature  # [J, G]; -inf off the support
        weight = np.exp(self.log_joint - self.log_joint.max(0))
        self.log_marginal = np.log(weight.sum(0)) + self.log_joint.max(0)
        self.probability = weight / weight.sum(0)

    def edge_probability(self, num_types):
        """Marginals [G, E, K]."""
        is_type = np.stack([self.every == k for k in range(num_types)], -1)  # [J, E, K]
        return np.tensordot(self.probability.T, is_type, axes=1)


@pytest.fixture(params=CASES)
def case(request, make_model, make_scenes, all_structures):
    options, what = CASES[request.param]
    model, scenes = make_model(**options), make_scenes(**what)
    return model, scenes, all_structures(model.num_edge_types)


def posterior_of(model, scenes, cache="auto", temperature=1.0):
    likelihood = model.likelihood(scenes, cache=cache)
    return enumerate_posterior(likelihood, model.structure_prior(model.prepare(scenes)), temperature)


@pytest.mark.parametrize("temperature", [1.0, 7.0])
def test_posterior(case, temperature):
    model, scenes, every = case
    brute = BruteForce(model, scenes, every, temperature)
    posterior = posterior_of(model, scenes, temperature=temperature)
    assert (brute.probability.max(0) < 0.95).all()  # the case is not trivial
    np.testing.assert_allclose(posterior.edge_probability, brute.edge_probability(model.num_edge_types), atol=1e-10)
    np.testing.assert_allclose(posterior.log_marginal.detach(), brute.log_marginal, rtol=1e-10)
    assert posterior.map_structure.tolist() == brute.every[brute.log_joint.argmax(0)].tolist()
    structures = torch.tensor(every)[:, None].expand(-1, scenes.num_groups, -1)
    np.testing.assert_allclose(posterior.log_prob(structures).exp().detach(), brute.probability, atol=1e-10)


@pytest.mark.parametrize("cache", ["table", "messages", "none"])
def test_every_route_gives_the_same_posterior(make_model, make_scenes, all_structures, cache):
    for prior in ("independent", "symmetric"):
        model, scenes = make_model(prior=prior), make_scenes(padded=[1], missing=0.1)
        brute = BruteForce(model, scenes, all_structures(2))
        posterior = posterior_of(model, scenes, cache)
        is_factorised = cache == "table" and prior == "independent"
        assert isinstance(posterior, FactorisedPosterior if is_factorised else ListedPosterior)
        np.testing.assert_allclose(posterior.edge_probability, brute.edge_probability(2), atol=1e-10)
        np.testing.assert_allclose(posterior.log_marginal, brute.log_marginal, rtol=1e-10)


def test_padded_edges_are_type_0_with_certainty(make_model, make_scenes):
    for prior in ("independent", "symmetric"):
        model, scenes = make_model(prior=prior), make_scenes(padded=[1])
        posterior = posterior_of(model, scenes)
        absent = ~scenes.edge_mask
        assert absent.sum() == 4
        assert posterior.edge_probability[absent].tolist() == [[1.0, 0.0]] * 4
        assert not posterior.map_structure[absent].any()
        drawn = posterior.sample(Stream(0, keys(scenes.scene_names), 50))
        assert not drawn[:, absent].any()


@pytest.mark.statistical
def test_draws_have_the_posteriors_frequencies(case):
    """Each structure of each group within five standard errors of its probability; up to 3 * 729 comparisons."""
    model, scenes, every = case
    brute = BruteForce(model, scenes, every)
    posterior, num = posterior_of(model, scenes), 8000
    drawn = posterior.sample(Stream(1, keys(scenes.group_names), num), 3).numpy()
    assert drawn.shape == (num, scenes.num_groups, 6)
    place = model.num_edge_types ** np.arange(6)
    number = {int(z @ place): n for n, z in enumerate(brute.every)}
    for g in range(scenes.num_groups):
        counts = np.bincount([number[int(code)] for code in drawn[:, g] @ place], minlength=len(every))
        p = brute.probability[:, g]
        # Where few are expected the normal approximation is poor: one more count is allowed.
        assert (np.abs(counts - num * p) <= 5 * np.sqrt(num * p * (1 - p)) + 1).all()


def test_draws_depend_on_seed_step_and_chain(make_model, make_scenes):
    posterior, names = posterior_of(make_model(), make_scenes()), keys(["s0", "s1", "s2"])
    one = posterior.sample(Stream(0, names, 20), 0)
    assert torch.equal(one, posterior.sample(Stream(0, names, 20), 0))
    assert not torch.equal(one, posterior.sample(Stream(0, names, 20), 1))
    assert not torch.equal(one, posterior.sample(Stream(1, names, 20), 0))
    assert len(set(map(tuple, one[:, 0].tolist()))) > 1


@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_edge_conditionals(make_model, make_scenes, all_structures, prior, num_types):
    """Renormalise the joint over the alternatives of one edge (a pair when tied)."""
    model = make_model(num_types, prior=prior)
    scenes = make_scenes(padded=[1], groups=["a", "b", "c"])
    every = all_structures(num_types)
    brute = BruteForce(model, scenes, every)
    number = {z: n for n, z in enumerate(every)}
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    supported = [[z for z in every if np.isfinite(brute.log_joint[number[z], g])] for g in range(3)]
    rng = np.random.default_rng(0)
    start = [[supported[g][rng.integers(len(supported[g]))] for g in range(3)] for _ in range(5)]
    found = edge_conditionals(
        model.likelihood(scenes, cache="table"), model.structure_prior(scenes), torch.tensor(start)
    )
    assert found.shape == (5, 3, 6, num_types)
    for c, g, e in itertools.product(range(5), range(3), range(6)):
        alternatives = []
        for k in range(num_types):
            z = list(start[c][g])
            z[e] = k
            if prior == "symmetric":
                z[pairs.index(pairs[e][::-1])] = k
            alternatives.append(brute.probability[number[tuple(z)], g])
        wanted = np.array(alternatives) / sum(alternatives)
        np.testing.assert_allclose(found[c, g, e].detach(), wanted, atol=1e-10)


def test_conditionals_average_to_the_marginals(make_model, make_scenes, all_structures):
    """Sum over the whole posterior: E[P(edge | others)] = P(edge)."""
    for prior in ("independent", "symmetric"):
        model, scenes, every = make_model(prior=prior), make_scenes(num_scenes=1), all_structures(2)
        brute = BruteForce(model, scenes, every)
        structures = torch.tensor(every)[:, None]
        keep = torch.as_tensor(brute.probability[:, 0] > 0)
        each = edge_conditionals(
            model.likelihood(scenes, cache="table"), model.structure_prior(scenes), structures[keep]
        )
        average = torch.einsum("j,jek->ek", torch.as_tensor(brute.probability[:, 0])[keep], each[:, 0])
        np.testing.assert_allclose(average, brute.edge_probability(2)[0], atol=1e-10)


def test_listing(make_model, make_scenes, all_structures):
    for prior, num_types in itertools.product(("independent", "symmetric"), (1, 2, 3)):
        distribution = make_model(num_types, prior=prior).structure_prior(make_scenes())
        wanted = all_structures(num_types, tied=prior == "symmetric")
        assert sorted(map(tuple, list_structures(distribution).tolist())) == sorted(wanted)
        assert num_structures(distribution) == len(wanted)


def test_what_can_be_enumerated(make_model, make_scenes):
    model, scenes = make_model(), make_scenes(num_scenes=1, num_entities=6)  # 2 ** 30 graphs
    prior = model.structure_prior(scenes)
    assert can_enumerate(model.likelihood(scenes, cache="table"), prior)
    messages = model.likelihood(scenes, cache="messages")
    assert not can_enumerate(messages, prior)
    with pytest.raises(ValueError, match=r"2\^30 structures are too many.*; use method 'mcmc'"):
        enumerate_posterior(messages, prior)
    symmetric = make_model(prior="symmetric")
    assert can_enumerate(symmetric.likelihood(scenes, cache="messages"), symmetric.structure_prior(scenes))  # 2 ** 15


def test_log_prob_off_the_list(make_model, make_scenes):
    posterior = posterior_of(make_model(prior="symmetric"), make_scenes())
    assert (posterior.log_prob(torch.tensor([1, 0, 0, 0, 0, 0]).expand(1, 3, 6)) == -torch.inf).all()
