"""Distributions of structures, against enumeration with ``itertools.product`` and integration over rho."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution, SparseDistribution, StructureDistribution

PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]
FULL, PADDED = [True, True, True], [True, False, True]
ALONE = [False, True, False]
TABLES = {
    "charges": [[1, 0], [0, 1]],
    "one attracts": [[0, 0], [0, 1]],
    "directed": [[0, 1], [2, 0]],
    "constant": [[1, 1], [1, 1]],
    "three labels": [[0, 1, 1], [1, 0, 1], [0, 1, 0]],
}
SPARSE = {"sparse": (1.0, 1.0), "sparser": (0.5, 3.0)}
CASES = [(name, num_types) for name in ("independent", "symmetric") for num_types in (1, 2, 3)]
CASES += [(name, num_types) for name in SPARSE for num_types in (2, 3)] + [(name, 3) for name in TABLES]


def edge_mask(present):
    return torch.tensor([present[i] and present[j] for i, j in PAIRS])


def make(name, num_types, mask):
    if name in SPARSE:
        return SparseDistribution(num_types, mask, concentration=SPARSE[name])
    if name in TABLES:
        return ChargesDistribution(torch.tensor(TABLES[name]), num_types, mask)
    return EdgeDistribution(torch.tensor(weights(num_types), dtype=torch.double).log(), mask, tied=name == "symmetric")


def weights(num_types):
    unnormalised = [math.exp(x) for x in [0.3, -0.8, 0.5][:num_types]]
    return [u / sum(unnormalised) for u in unnormalised]


def probability(structure, name, present, num_types):
    """Probability of a structure, by what its definition says."""
    types = dict(zip(PAIRS, structure, strict=True))
    exists = {(i, j): present[i] and present[j] for i, j in PAIRS}
    if any(types[pair] and not exists[pair] for pair in PAIRS):
        return 0.0
    if name in TABLES:
        table, num_fitting, every = TABLES[name], 0, list(itertools.product(range(len(TABLES[name])), repeat=3))
        for labels in every:
            num_fitting += all(types[i, j] == table[labels[i]][labels[j]] for i, j in PAIRS if exists[i, j])
        return num_fitting / len(every)
    if name != "independent" and any(types[i, j] != types[j, i] for i, j in PAIRS):
        return 0.0
    free = [types[i, j] for i, j in PAIRS if exists[i, j] and (name == "independent" or i < j)]
    if name in SPARSE:
        (a, b), m = SPARSE[name], sum(k > 0 for k in free)
        integral, _ = integrate.quad(
            lambda rho: rho**m * (1 - rho) ** (len(free) - m), 0, 1, weight="alg", wvar=(a - 1, b - 1)
        )
        return integral / special.beta(a, b) / (num_types - 1) ** m
    return math.prod(weights(num_types)[k] for k in free)


def every_structure(num_types):
    return list(itertools.product(range(num_types), repeat=6))


@pytest.mark.parametrize("present", [FULL, PADDED, ALONE])
@pytest.mark.parametrize(("name", "num_types"), CASES)
def test_log_prob_by_enumeration(name, num_types, present):
    every = every_structure(num_types)
    found = make(name, num_types, edge_mask(present)).log_prob(torch.tensor(every)).exp().tolist()
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx([probability(z, name, present, num_types) for z in every], abs=1e-12)


def test_off_support_is_minus_infinity():
    for name in ("symmetric", "sparse", "charges"):
        distribution = make(name, 2, edge_mask(FULL))
        assert distribution.log_prob(torch.tensor([1, 0, 0, 0, 0, 0])) == -torch.inf
        assert distribution.log_prob(torch.tensor([1, 1, 1, 1, 1, 1])).isfinite()
    into_padding = torch.tensor([int(pair in ((0, 1), (1, 0))) for pair in PAIRS])
    for name in ("independent", "symmetric", "sparse", "charges"):
        padded = make(name, 2, edge_mask(PADDED))
        assert padded.log_prob(into_padding) == -torch.inf
        assert padded.log_prob(torch.zeros(6, dtype=torch.long)).isfinite()
    for name in ("sparse", "charges"):
        assert (make(name, 2, edge_mask(FULL)).log_prob(torch.tensor([[2] * 6, [-1] * 6])) == -torch.inf).all()


@pytest.mark.parametrize("name", ["symmetric", "sparser", "directed"])
def test_log_prob_broadcasts_over_chains(name):
    distribution = make(name, 3, torch.stack([edge_mask(FULL), edge_mask(PADDED)]))
    uniform = torch.rand(5, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    structures = distribution.expand((5, 2)).from_uniform(uniform)
    assert torch.equal(distribution.from_uniform(uniform), structures)
    found = distribution.log_prob(structures)
    assert found.shape == (5, 2)
    for c, (b, present) in itertools.product(range(5), enumerate([FULL, PADDED])):
        wanted = probability(tuple(structures[c, b].tolist()), name, present, 3)
        assert float(found[c, b].exp()) == pytest.approx(wanted)
    assert distribution.log_prob(structures[0, 0]).shape == (2,)  # one structure, many scenes


def frequencies_fit(drawn, name, present, num_types):
    """Pearson's test of drawn structures against their probabilities; every draw has positive probability."""
    every = every_structure(num_types)
    probabilities = np.array([probability(z, name, present, num_types) for z in every])
    number = {z: n for n, z in enumerate(every)}
    counts = np.bincount([number[tuple(z)] for z in drawn.tolist()], minlength=len(every))
    assert not counts[probabilities == 0].any()
    expected = probabilities[probabilities > 0] * counts.sum()
    if len(expected) == 1:
        return True
    return stats.chisquare(counts[probabilities > 0], expected).pvalue > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("present", [FULL, PADDED])
@pytest.mark.parametrize(("name", "num_types"), [case for case in CASES if case != ("independent", 3)])
def test_draws_have_the_right_frequencies(name, num_types, present):
    distribution = make(name, num_types, edge_mask(present))
    torch.manual_seed(0)
    assert frequencies_fit(distribution.sample((20_000,)), name, present, num_types)
    uniform = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    assert frequencies_fit(distribution.expand((20_000,)).from_uniform(uniform), name, present, num_types)


def test_from_uniform_inverts_the_distribution_function():
    distribution = make("independent", 3, edge_mask(FULL))
    first, second, _ = weights(3)
    edge = [0.0, first - 1e-9, first + 1e-9, first + second - 1e-9, first + second + 1e-9, 1 - 2**-53]
    assert distribution.from_uniform(torch.tensor(edge, dtype=torch.double)).tolist() == [0, 0, 1, 1, 2, 2]
    one = make("independent", 1, edge_mask(FULL))
    assert not one.from_uniform(torch.rand(6, generator=torch.Generator().manual_seed(0))).any()


def test_more_uniform_numbers_than_entities_change_nothing_for_labels():
    distribution = make("charges", 2, edge_mask(FULL))
    uniform = torch.rand(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert torch.equal(distribution.from_uniform(uniform), distribution.from_uniform(uniform[:, :3]))
    extremes = distribution.from_uniform(torch.tensor([0.0, 1 - 2**-53, 1 - 2**-53]).double())
    assert extremes.tolist() == [0, 0, 0, 1, 0, 1]


@pytest.mark.parametrize(("name", "num_types"), CASES)
def test_shapes_and_expand(name, num_types):
    masks = torch.stack([edge_mask(FULL), edge_mask(PADDED)])
    distribution = make(name, num_types, masks)
    assert isinstance(distribution, StructureDistribution)
    assert (distribution.batch_shape, distribution.event_shape) == ((2,), (6,))
    assert (distribution.num_edge_types, distribution.num_entities) == (num_types, 3)
    torch.manual_seed(0)
    assert distribution.sample().shape == (2, 6)
    assert distribution.sample().dtype == torch.long
    wide = distribution.expand((7, 2))
    assert wide.batch_shape == (7, 2)
    drawn = wide.sample((3,))
    assert drawn.shape == (3, 7, 2, 6)
    assert not drawn[..., 1, ~edge_mask(PADDED)].any()
    torch.testing.assert_close(wide.log_prob(drawn), distribution.log_prob(drawn))
    assert bool(distribution.support.check(drawn).all())
    assert not bool(distribution.support.check(drawn + 3).any())


@pytest.mark.parametrize(("name", "num_types"), CASES)
def test_what_moves_together(name, num_types):
    distribution = make(name, num_types, edge_mask(FULL))
    possible = distribution.list_structures().tolist()
    opposite = [PAIRS.index((j, i)) for i, j in PAIRS]
    assert distribution.tied == (num_types > 1 and all(z[e] == z[opposite[e]] for z in possible for e in range(6))) or (
        num_types == 1
    )
    assert distribution.factorises == (name == "independent")


@pytest.mark.parametrize("masks", [[FULL], [PADDED], [PADDED, FULL], [ALONE, PADDED, PADDED]])
@pytest.mark.parametrize(("name", "num_types"), CASES)
def test_listing(name, num_types, masks):
    """Each structure that some scene may have, exactly once; under labels no others."""
    distribution = make(name, num_types, torch.stack([edge_mask(present) for present in masks]))
    found = list(map(tuple, distribution.list_structures().tolist()))
    assert len(set(found)) == len(found)
    wanted = {
        z for z in every_structure(num_types) for present in masks if probability(z, name, present, num_types) > 0
    }
    assert set(found) >= wanted
    if name in TABLES or FULL in masks:
        assert set(found) == wanted
    num_values, num_parts = distribution.choices
    if masks == [FULL]:
        assert len(found) <= num_values**num_parts
    if name not in TABLES:
        assert len(found) == num_values**num_parts


def test_labels_that_are_indistinguishable_are_counted_once():
    assert len(make("constant", 3, edge_mask(FULL)).list_structures()) == 1
    assert len(make("charges", 2, edge_mask(FULL)).list_structures()) == 4  # the two signs are alike


def test_interacting_pairs_attract_each_other():
    """Integrated over rho, what the other pairs do tells what a pair may do."""
    distribution = make("sparse", 2, edge_mask(FULL))
    none, one, two = (
        distribution.log_prob(torch.tensor([int(frozenset(pair) in linked) for pair in PAIRS]))
        for linked in ([], [{0, 1}], [{0, 1}, {0, 2}])
    )
    assert float(one - none) == pytest.approx(math.log(1 / 3))  # B(2, 3) / B(1, 4)
    assert float(two - one) == pytest.approx(0)  # B(3, 2) / B(2, 3)


@pytest.mark.parametrize("present", [FULL, PADDED])
@pytest.mark.parametrize(("name", "num_types"), CASES)
def test_type_probability_by_enumeration(name, num_types, present):
    """Of every edge that exists, whatever the labels, pairs or densities behind it."""
    every = every_structure(num_types)
    weight = np.array([probability(z, name, present, num_types) for z in every])
    found = make(name, num_types, edge_mask(present)).type_probability
    assert found.dtype == torch.float64
    for edge in np.flatnonzero(edge_mask(present)):
        wanted = [weight[[z[edge] == k for z in every]].sum() for k in range(num_types)]
        assert found.tolist() == pytest.approx(wanted, abs=1e-12)
