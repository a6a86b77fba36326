"""Posteriors with their priors divided out: draws and exact receivers say the same."""

import dataclasses

import numpy as np
import pytest
import torch
import xarray as xr

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.model.structures import EdgeDistribution, SparseDistribution
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.distinct import distinct_structures, log_prior, scene_sizes
from pyro_nri.posterior.exact_receivers import Atoms, type_counts
from pyro_nri.posterior.pool import combine, make_pool, redrawn
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.quantities import edge_model, log_rates


def pool_of(*trees, **options):
    return make_pool(trees, **options)


def test_distinct_draws_are_counted_scene_by_scene(unequal, make_draws, make_tree):
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 60, 2, 12))
    edge_type[:, :, 1] = 0
    draws = make_draws(unequal, edge_type)
    tree = to_datatree(draws, unequal)
    assert scene_sizes(tree).tolist() == [4, 3]
    three, four = distinct_structures(tree)
    assert (three.num_entities, four.num_entities) == (3, 4)
    assert (three.scene.tolist(), four.scene.tolist()) == ([1], [0])
    assert three.share.tolist() == [1.0]  # all zero
    flat = draws.edge_type[:, :, 0].reshape(-1, 12)
    rows, times = np.unique(flat, axis=0, return_counts=True)
    found = {tuple(row): share for row, share in zip(four.structure.tolist(), four.share.tolist(), strict=True)}
    assert found == pytest.approx({tuple(row): n / 120 for row, n in zip(rows.tolist(), times.tolist(), strict=True)})


@pytest.mark.parametrize("name", ["independent", "symmetric", "sparse"])
def test_log_prior_is_that_of_the_distribution(name):
    mask = torch.ones(12, dtype=torch.bool)
    weight = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    prior = SparseDistribution(3, mask, concentration=(2.0, 3.0)) if name == "sparse" else None
    prior = EdgeDistribution(weight.log(), mask, tied=name == "symmetric") if prior is None else prior
    record = PriorRecord.of(prior)
    assert record.name == name
    assert record.type_probability == pytest.approx((0.6, 0.2, 0.2) if name == "sparse" else (0.2, 0.5, 0.3))
    structure = prior.from_uniform(torch.rand(50, 12, generator=torch.Generator().manual_seed(0)).double())
    found = log_prior(record, type_counts(structure.numpy(), 3))
    assert found == pytest.approx(prior.log_prob(structure).numpy())


def test_combining_adds_up_likelihoods():
    atoms = Atoms(
        np.array([[1, 0], [1, 0], [0, -2], [1, 0]]), np.log([1.0, 2, 3, 4]), np.array([0, 0, 0, 1]), np.array([0, 1])
    )
    for shift in (0, 2**40):  # the second is too much for one whole number
        found = combine(atoms._replace(value=atoms.value * (shift + 1)))
        assert sorted((found.value // (shift + 1)).tolist()) == [[0, -2], [1, 0], [1, 0]]
        assert sorted(np.exp(found.log_likelihood)) == pytest.approx([3, 3, 4])
        assert found.unit.tolist() == [0, 0, 1]


@pytest.mark.statistical
def test_draws_and_exact_receivers_agree(studies):
    rng = np.random.default_rng(0)
    structure = rng.integers(0, 2, (40, 6))
    tree = studies.exact_posterior(structure, 3.0, rng, num_draws=4000, weight=(0.6, 0.4))
    exact = pool_of(tree)
    drawn = dataclasses.replace(exact, receivers=None)
    rates = [edge_model(pool, {"density"}, [1]).fit().theta[0] for pool in (exact, drawn)]
    assert rates[0] == pytest.approx(rates[1], abs=0.03)
    log_rate = np.log([0.3, 0.7])
    again = redrawn(exact, log_rate, rng, num_draws=2000)
    # Weighted for other rates, the old draws give each edge the probability that fresh draws have.
    for pool in (drawn, again):
        (each,) = pool.drawn
        weight = np.exp(pool.log_likelihood[0] + type_counts(each.structure, 2) @ log_rate)
        total = np.bincount(each.owner, weight)
        found = np.stack([np.bincount(each.owner, weight * each.structure[:, e]) / total for e in range(6)], axis=1)
        odds = edge_probability(tree)[0].reshape(40, 6, 2) / [0.6, 0.4] * np.exp(log_rate)
        # Receivers of two edges: the two are independent here, as each edge is seen by itself.
        assert found == pytest.approx(odds[..., 1] / odds.sum(-1), abs=0.05)


def test_scenes_of_unequal_sizes_and_padding(studies, unequal, make_draws):
    """The same scenes alone and padded beside larger ones."""
    rng = np.random.default_rng(1)
    small = studies.exact_posterior(rng.integers(0, 2, (1, 6)), 2.0, rng, weight=(0.7, 0.3))
    large = studies.exact_posterior(rng.integers(0, 2, (1, 12)), 2.0, rng, weight=(0.7, 0.3))
    code = np.zeros((2, 4, 8))
    code[0] = large["edge_posterior"]["receiver_probability"].values[0]
    # Entities a, b, c of the second group's four exist: a code's last digit is that of the absent sender, 0.
    code[1, :3, ::2] = small["edge_posterior"]["receiver_probability"].values[0]
    code[1, 3, 0] = 1
    edge_type = np.zeros((1, 100, 2, 12), np.int8)
    edge_type[:, :, 0] = large["posterior"]["edge_type"].values
    edge_type[:, :, 1, [0, 1, 3, 4, 6, 7]] = small["posterior"]["edge_type"].values
    draws = make_draws(
        unequal, edge_type, method="exact", receiver_probability=code, prior=PriorRecord("independent", (0.7, 0.3))
    )
    padded, apart = pool_of(to_datatree(draws, unequal)), pool_of(large, small)
    assert padded.sizes.tolist() == apart.sizes.tolist() == [4, 3]
    fits = [edge_model(pool, {"density"}, [1]).fit() for pool in (padded, apart)]
    assert fits[0].theta == pytest.approx(fits[1].theta)
    fresh = [redrawn(pool, np.log([0.5, 0.5]), np.random.default_rng(2), num_draws=3000) for pool in (padded, apart)]
    for one, other in zip(fresh[0].drawn, fresh[1].drawn, strict=True):
        mean = [(each.structure * each.share[:, None]).sum(0) for each in (one, other)]
        assert mean[0] == pytest.approx(mean[1], abs=0.02)


def test_relabelling_turns_types_round(studies):
    rng = np.random.default_rng(2)
    tree = studies.exact_posterior(rng.integers(0, 2, (20, 6)), 3.0, rng, weight=(0.8, 0.2))
    pools = pool_of(tree), pool_of(tree, relabels=[np.array([1, 0])])
    rates = [log_rates(pool, edge_model(pool, {"density"}, [1]).fit()) for pool in pools]
    assert rates[0] == pytest.approx(rates[1][::-1], abs=1e-6)
    again = [redrawn(pool, rate, np.random.default_rng(0)) for pool, rate in zip(pools, rates, strict=True)]
    assert (again[0].drawn[0].structure[:9] == 1 - again[1].drawn[0].structure[:9]).mean() > 0.3
    assert pools[0].edge_probability == pytest.approx(pools[1].edge_probability[:, ::-1])


def test_few_draws_are_said(studies):
    rng = np.random.default_rng(3)
    structure = (rng.random((30, 20)) < 0.1).astype(int)
    tree = studies.exact_posterior(structure, 0.5, rng, num_draws=50, receivers=False)
    pool = pool_of(tree)
    with pytest.warns(UserWarning, match="of 30 scenes have fewer than 20 effective draws once"):
        redrawn(pool, np.log([0.9, 0.1]), rng)
    assert redrawn(pool, np.log([0.5, 0.5]), rng) is pool  # no prior to divide out, no warning


def test_refusals(studies, make_tree):
    rng = np.random.default_rng(4)
    tree = studies.exact_posterior(rng.integers(0, 2, (3, 6)), 3.0, rng)
    with pytest.raises(ValueError, match="does not say under which prior it was drawn"):
        pool_of(make_tree())
    charges, symmetric = (make_tree(prior=PriorRecord(name, (0.5, 0.5))) for name in ("charges", "symmetric"))
    with pytest.raises(ValueError, match="drawn under the prior 'charges'"):
        pool_of(tree, charges)
    with pytest.raises(ValueError, match="independent and symmetric"):
        pool_of(tree, symmetric)
    three = studies.exact_posterior(rng.integers(0, 3, (3, 6)), 3.0, rng, num_types=3)
    with pytest.raises(ValueError, match="same number of edge types, found 2 and 3"):
        pool_of(tree, three)
    one = make_tree(np.zeros((1, 5, 2, 6), np.int8), num_edge_types=1, prior=PriorRecord("independent", (1.0,)))
    with pytest.raises(ValueError, match="at least two edge types"):
        pool_of(one)
    assert isinstance(tree, xr.DataTree)
