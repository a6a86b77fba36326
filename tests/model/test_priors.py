"""Priors over structures, against enumeration with ``itertools.product``."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.model.priors import IndependentPrior, StructureDistribution, SymmetricPrior, make_prior

PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]
FULL, PADDED = [True, True, True], [True, False, True]


def edge_mask(present):
    return torch.tensor([present[i] and present[j] for i, j in PAIRS])


def make(name, num_types):
    prior = make_prior(name, num_types).double()
    with torch.no_grad():
        prior.type_logits.copy_(torch.tensor([0.3, -0.8, 0.5], dtype=torch.double)[:num_types])
    return prior


def weights(num_types):
    unnormalised = [math.exp(x) for x in [0.3, -0.8, 0.5][:num_types]]
    return [u / sum(unnormalised) for u in unnormalised]


def probability(structure, name, present, num_types):
    """Probability of a structure, edge by edge."""
    types = dict(zip(PAIRS, structure, strict=True))
    result = 1.0
    for i, j in PAIRS:
        if not (present[i] and present[j]):
            result *= types[i, j] == 0
        elif name == "independent":
            result *= weights(num_types)[types[i, j]]
        elif types[i, j] != types[j, i]:
            return 0.0
        elif i < j:
            result *= weights(num_types)[types[i, j]]
    return result


@pytest.mark.parametrize("present", [FULL, PADDED])
@pytest.mark.parametrize("num_types", [1, 2, 3])
@pytest.mark.parametrize("name", ["independent", "symmetric"])
def test_log_prob_by_enumeration(name, num_types, present):
    every = list(itertools.product(range(num_types), repeat=6))
    distribution = make(name, num_types)(edge_mask(present))
    found = distribution.log_prob(torch.tensor(every)).exp().tolist()
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    assert found == pytest.approx([probability(z, name, present, num_types) for z in every], abs=1e-14)


def test_off_support_is_minus_infinity():
    symmetric = make("symmetric", 2)(edge_mask(FULL))
    assert symmetric.log_prob(torch.tensor([1, 0, 0, 0, 0, 0])) == -torch.inf
    padded = make("independent", 2)(edge_mask(PADDED))
    into_padding = torch.tensor([int(pair == (0, 1)) for pair in PAIRS])
    assert padded.log_prob(into_padding) == -torch.inf
    assert padded.log_prob(torch.zeros(6, dtype=torch.long)).isfinite()


def test_log_prob_broadcasts_over_chains():
    distribution = make("symmetric", 3)(torch.stack([edge_mask(FULL), edge_mask(PADDED)]))
    uniform = torch.rand(5, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    structures = distribution.expand((5, 2)).from_uniform(uniform)
    found = distribution.log_prob(structures).detach()
    assert found.shape == (5, 2)
    for c, (b, present) in itertools.product(range(5), enumerate([FULL, PADDED])):
        wanted = probability(tuple(structures[c, b].tolist()), "symmetric", present, 3)
        assert float(found[c, b].exp()) == pytest.approx(wanted)


def frequencies_fit(drawn, name, present, num_types):
    """Pearson's test of drawn structures against their probabilities; every draw has positive probability."""
    every = list(itertools.product(range(num_types), repeat=6))
    probabilities = np.array([probability(z, name, present, num_types) for z in every])
    number = {z: n for n, z in enumerate(every)}
    counts = np.bincount([number[tuple(z)] for z in drawn.tolist()], minlength=len(every))
    assert not counts[probabilities == 0].any()
    expected = probabilities[probabilities > 0] * counts.sum()
    return stats.chisquare(counts[probabilities > 0], expected).pvalue > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("present", [FULL, PADDED])
@pytest.mark.parametrize(("name", "num_types"), [("independent", 2), ("symmetric", 2), ("symmetric", 3)])
def test_draws_have_the_right_frequencies(name, num_types, present):
    distribution = make(name, num_types)(edge_mask(present))
    torch.manual_seed(0)
    assert frequencies_fit(distribution.sample((20_000,)), name, present, num_types)
    uniform = torch.rand(20_000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    assert frequencies_fit(distribution.expand((20_000,)).from_uniform(uniform), name, present, num_types)


def test_from_uniform_inverts_the_distribution_function():
    distribution = make("independent", 3)(edge_mask(FULL))
    first, second, _ = weights(3)
    edge = [0.0, first - 1e-9, first + 1e-9, first + second - 1e-9, first + second + 1e-9, 1 - 2**-53]
    assert distribution.from_uniform(torch.tensor(edge, dtype=torch.double)).tolist() == [0, 0, 1, 1, 2, 2]
    one = make("independent", 1)(edge_mask(FULL))
    assert not one.from_uniform(torch.rand(6, generator=torch.Generator().manual_seed(0))).any()


@pytest.mark.parametrize("name", ["independent", "symmetric"])
def test_shapes_and_expand(name):
    masks = torch.stack([edge_mask(FULL), edge_mask(PADDED)])
    distribution = make(name, 3)(masks)
    assert (distribution.batch_shape, distribution.event_shape) == ((2,), (6,))
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


def test_type_weights_are_learnable_or_fixed():
    learned, fixed = IndependentPrior(3), SymmetricPrior(3, learn_weights=False)
    learned(edge_mask(FULL)).log_prob(torch.tensor([0, 1, 1, 2, 2, 2])).backward()
    # d/dlogit_k of sum_e log softmax(logit)[z_e] = count_k - E / K
    assert learned.type_logits.grad.tolist() == pytest.approx([1 - 2, 2 - 2, 3 - 2], abs=1e-6)
    assert not fixed(edge_mask(FULL)).log_prob(torch.zeros(6, dtype=torch.long)).requires_grad
    assert not IndependentPrior.tied
    assert SymmetricPrior.tied


def test_bad_arguments():
    with pytest.raises(ValueError, match="prior must be one of independent, symmetric, found 'flat'"):
        make_prior("flat", 2)
    with pytest.raises(ValueError, match="num_edge_types must be at least 1, found 0"):
        make_prior("independent", 0)


def test_distribution_knows_its_number_of_types():
    assert StructureDistribution(torch.zeros(4).log_softmax(-1), edge_mask(FULL)).num_edge_types == 4
