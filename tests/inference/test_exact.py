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
)
from pyro_nri.inference.labels import label_conditionals
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
    "sparse, K=2": ({"prior": "sparse"}, {"padded": [0]}),
    "sparse, K=3, shared": ({"prior": "sparse", "num_edge_types": 3}, {"groups": ["a", "b", "a"]}),
    "charges": ({"table": [[1, 0], [0, 1]]}, {}),
    "charges, padded": ({"table": [[1, 0], [0, 1]]}, {"padded": [0, 2]}),
    "one attracts, padded": ({"table": [[1, 1], [1, 0]]}, {"padded": [1]}),
    "directed, shared": ({"table": [[0, 1], [2, 0]], "num_edge_types": 3}, {"groups": ["a", "b", "a"]}),
    "three labels, horizon": (
        {"table": [[0, 1, 1], [1, 0, 1], [0, 1, 0]], "num_labels": 3, "horizon": 2},
        {"padded": [0, 1]},
    ),
}
TABLE = [[1, 0], [0, 1]]


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


@pytest.fixture
def make(make_model):
    """Models; ``table`` stands for a prior over labels whose table is chosen."""

    def make(num_edge_types=2, *, table=None, **options):
        model = make_model(num_edge_types, **options | ({} if table is None else {"prior": "charges"}))
        if table is not None:
            model.prior.set_table(torch.tensor(table))
        return model

    return make


@pytest.fixture(params=CASES)
def case(request, make, make_scenes, all_structures):
    options, what = CASES[request.param]
    model, scenes = make(**options), make_scenes(**what)
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
def test_every_route_gives_the_same_posterior(make, make_scenes, all_structures, cache):
    for prior in ("independent", "symmetric", "sparse", "charges"):
        options = {"table": TABLE} if prior == "charges" else {"prior": prior}
        model, scenes = make(**options), make_scenes(padded=[1], missing=0.1)
        brute = BruteForce(model, scenes, all_structures(2))
        posterior = posterior_of(model, scenes, cache)
        is_factorised = cache == "table" and prior == "independent"
        assert isinstance(posterior, FactorisedPosterior if is_factorised else ListedPosterior)
        np.testing.assert_allclose(posterior.edge_probability, brute.edge_probability(2), atol=1e-10)
        np.testing.assert_allclose(posterior.log_marginal, brute.log_marginal, rtol=1e-10)


def test_padded_edges_are_type_0_with_certainty(make, make_scenes):
    for options in ({}, {"prior": "symmetric"}, {"prior": "sparse"}, {"table": TABLE}, {"table": [[1, 1], [1, 0]]}):
        model, scenes = make(**options), make_scenes(padded=[1])
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
@pytest.mark.parametrize("prior", ["independent", "symmetric", "sparse"])
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
            if prior != "independent":
                z[pairs.index(pairs[e][::-1])] = k
            alternatives.append(brute.probability[number[tuple(z)], g])
        wanted = np.array(alternatives) / sum(alternatives)
        np.testing.assert_allclose(found[c, g, e].detach(), wanted, atol=1e-10)


def test_conditionals_average_to_the_marginals(make_model, make_scenes, all_structures):
    """Sum over the whole posterior: E[P(edge | others)] = P(edge)."""
    for prior in ("independent", "symmetric", "sparse"):
        model, scenes, every = make_model(prior=prior), make_scenes(num_scenes=1), all_structures(2)
        brute = BruteForce(model, scenes, every)
        structures = torch.tensor(every)[:, None]
        keep = torch.as_tensor(brute.probability[:, 0] > 0)
        each = edge_conditionals(
            model.likelihood(scenes, cache="table"), model.structure_prior(scenes), structures[keep]
        )
        average = torch.einsum("j,jek->ek", torch.as_tensor(brute.probability[:, 0])[keep], each[:, 0])
        np.testing.assert_allclose(average, brute.edge_probability(2)[0], atol=1e-10)


LABELLED = {
    "charges": (2, TABLE),
    "one attracts": (2, [[1, 1], [1, 0]]),
    "directed": (3, [[0, 1], [2, 0]]),
    "sender decides": (2, [[0, 0], [1, 1]]),
}


@pytest.mark.parametrize("name", LABELLED)
def test_label_conditionals(make, make_scenes, name):
    """Given one labeling: change one label at a time, renormalise, and average over the two ends of an edge.

    Averaged over the labelings of each structure and then over the posterior these are the edge probabilities.
    """
    num_types, table = LABELLED[name]
    model, scenes = make(num_types, table=table), make_scenes(padded=[1])
    likelihood, prior = model.likelihood(scenes, cache="table"), model.structure_prior(scenes)
    present = scenes.entity_mask.tolist()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    labelings = list(itertools.product((0, 1), repeat=3))
    structures = np.array(
        [[[table[z[i]][z[j]] * (there[i] and there[j]) for i, j in pairs] for there in present] for z in labelings]
    )  # [8, G, E]
    with torch.no_grad():
        weight = model.log_likelihood(scenes, torch.tensor(structures)).exp().numpy()  # [8, G]
    probability = weight / weight.sum(0)
    wanted = np.stack([structures == k for k in range(num_types)], -1)  # [8, G, E, K]

    by_labeling = [{}, {}, {}]  # a fine grid of numbers draws every labeling of a structure
    grid = torch.cartesian_prod(*[(torch.arange(4) + 0.5) / 4] * 3)  # [64, 3]
    for row in range(len(labelings)):
        stack, uniform = torch.tensor(structures[row]).expand(64, -1, -1), grid[:, None].expand(-1, 3, -1)
        found = label_conditionals(likelihood, prior, stack, uniform).numpy()
        drawn = prior.labelings(stack).draw(uniform)
        for g, c in itertools.product(range(3), range(64)):
            here = tuple(drawn[c, g].tolist())
            given = np.zeros((6, num_types))
            for n in range(3):
                family = [labelings.index((*here[:n], label, *here[n + 1 :])) for label in (0, 1)]
                share = probability[family, g] / probability[family, g].sum()
                for e in [e for e, pair in enumerate(pairs) if n in pair]:
                    given[e] += (share[:, None] * wanted[family, g, e]).sum(0) / 2
            np.testing.assert_allclose(found[c, g], given, atol=1e-10)
            by_labeling[g][here] = given
    for g, there in enumerate(present):
        seen = [tuple(label * exists for label, exists in zip(labels, there, strict=True)) for labels in labelings]
        average = sum(probability[row, g] * by_labeling[g][here] for row, here in enumerate(seen))
        np.testing.assert_allclose(average, wanted_marginal(probability, wanted)[g], atol=1e-10)


def wanted_marginal(probability, is_type):
    """Edge probabilities [G, E, K] of weighted labelings."""
    return (probability[..., None, None] * is_type).sum(0)


def test_labels_and_edges_have_their_own_conditionals(make, make_scenes):
    model, scenes = make(table=TABLE), make_scenes()
    likelihood, prior = model.likelihood(scenes, cache="table"), model.structure_prior(scenes)
    with pytest.raises(ValueError, match="prior must leave each edge a choice given all others, found one over labels"):
        edge_conditionals(likelihood, prior, torch.ones(1, 3, 6, dtype=torch.long))


def test_what_can_be_enumerated(make_model, make_scenes):
    model, scenes = make_model(), make_scenes(num_scenes=1, num_entities=6)  # 2 ** 30 graphs
    prior = model.structure_prior(scenes)
    assert can_enumerate(model.likelihood(scenes, cache="table"), prior)
    messages = model.likelihood(scenes, cache="messages")
    assert not can_enumerate(messages, prior)
    with pytest.raises(ValueError, match=r"2\^30 structures are too many.*; use method 'mcmc'"):
        enumerate_posterior(messages, prior)
    for name in ("symmetric", "sparse"):
        tied = make_model(prior=name)
        assert can_enumerate(tied.likelihood(scenes, cache="messages"), tied.structure_prior(scenes))  # 2 ** 15
    charges = make_model(prior="charges")
    charges.prior.set_table(torch.tensor(TABLE))
    for num_entities, fits in ((16, True), (17, False)):
        scenes = make_scenes(num_scenes=1, num_entities=num_entities, num_frames=2)
        messages, prior = charges.likelihood(scenes, cache="messages"), charges.structure_prior(scenes)
        assert can_enumerate(messages, prior) is fits
    with pytest.raises(ValueError, match=r"2\^17 structures are too many"):
        enumerate_posterior(messages, prior)


def test_many_labels(make, make_scenes):
    """Ten entities, 90 edges: two labelings for each of 512 structures, each as often as the other."""
    model, scenes = make(table=TABLE, scale=8.0), make_scenes(num_scenes=2, num_entities=10, num_frames=3, padded=[1])
    posterior = posterior_of(model, scenes)
    labelings = np.array(list(itertools.product((0, 1), repeat=10)))
    with torch.no_grad():
        first, second = np.nonzero(~np.eye(10, dtype=bool))
        structures = torch.tensor(1 * (labelings[:, first] == labelings[:, second]))[:, None] * scenes.edge_mask
        log_joint = model.log_likelihood(scenes, structures).numpy() - 10 * np.log(2)
    np.testing.assert_allclose(posterior.log_marginal, np.log(np.exp(log_joint).sum(0)), rtol=1e-10)
    assert len(posterior.structures) == 512 + 256 - 1  # one is possible with and without the last entity
    weight = np.exp(log_joint - log_joint.max(0))
    wanted = np.einsum("jg,jge->ge", weight / weight.sum(0), structures.numpy())
    np.testing.assert_allclose(posterior.edge_probability[..., 1], wanted, atol=1e-10)
    found = posterior.log_prob(structures).exp().numpy()
    assert found[:, 0].sum() == pytest.approx(2)  # two labelings each
    assert found[:, 1].sum() == pytest.approx(4)  # the entity that is not there has two labels


def test_log_prob_off_the_list(make_model, make_scenes):
    posterior = posterior_of(make_model(prior="symmetric"), make_scenes())
    assert (posterior.log_prob(torch.tensor([1, 0, 0, 0, 0, 0]).expand(1, 3, 6)) == -torch.inf).all()
