"""Tables of types by labels, chosen by their log marginal likelihoods; against sums over labelings."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference.evidence import choose_table, fit_type_weights, require_density
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.priors import ChargesPrior
from pyro_nri.model.receivers import ReceiverTable, codes_of
from pyro_nri.model.structures import EdgeDistribution
from pyro_nri.scenes import edges

PAIRS = [(i, j) for i in range(4) for j in range(4) if i != j]
PRESENT = [[True] * 4, [True, False, True, True], [True] * 4]
MASK = torch.tensor([[p[i] and p[j] for i, j in PAIRS] for p in PRESENT])


def noise_table(num_types=2, seed=0, scale=1.0, mask=MASK):
    """A receiver table of random terms."""
    num_entities = edges.num_entities_of(mask.shape[-1])
    shape = (len(mask), num_entities, num_types ** (num_entities - 1))
    terms = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return ReceiverTable(terms, num_types, mask)


@pytest.mark.parametrize(("num_types", "num_labels"), [(2, 2), (3, 2), (2, 3)])
def test_log_marginals(num_types, num_labels):
    """Every table: mean over all labelings of each group, labels of absent entities included."""
    if num_labels == 3:
        present, mask = PRESENT[:1], MASK[:1]
    else:
        present, mask = PRESENT, MASK
    likelihood = noise_table(num_types, mask=mask)
    prior = ChargesPrior(num_types, num_labels=num_labels)
    table, found = choose_table(prior, likelihood, mask)
    candidates = prior.candidate_tables().tolist()
    labelings = list(itertools.product(range(num_labels), repeat=4))
    wanted = []
    for each in candidates:
        total = 0.0
        for g, there in enumerate(present):
            structures = torch.tensor(
                [[each[z[i]][z[j]] * (there[i] and there[j]) for i, j in PAIRS] for z in labelings]
            )
            codes = codes_of(structures, num_types).numpy()  # [J, N]
            log_likelihood = likelihood.table[g].numpy()[np.arange(4), codes].sum(-1)
            total += np.log(np.exp(log_likelihood).mean())
        wanted.append(total)
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert table.tolist() == candidates[int(np.argmax(wanted))]
    assert prior.is_open  # choosing does not set


@pytest.mark.parametrize("planted", [[[0, 1], [1, 0]], [[1, 0], [0, 1]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]])
def test_a_planted_table_is_found(planted):
    """The likelihood prefers, noisily, structures that hidden labels made; nothing else is told."""
    generator = torch.Generator().manual_seed(1)
    num_groups = 30
    labels = torch.randint(2, (num_groups, 5), generator=generator)
    matrix = torch.tensor(planted)[labels[:, :, None], labels[:, None, :]]
    truth = edges.from_matrix(matrix)  # [G, E]
    mask = torch.ones_like(truth, dtype=torch.bool)
    likelihood = noise_table(mask=mask)
    likelihood.table.scatter_add_(
        -1, codes_of(truth, 2)[..., None], torch.full((num_groups, 5, 1), 1.5, dtype=torch.double)
    )
    prior = ChargesPrior(2)
    table, log_marginal = choose_table(prior, likelihood, mask)
    assert log_marginal.shape == (8,)
    flipped = [[planted[1][1], planted[1][0]], [planted[0][1], planted[0][0]]]
    assert table.tolist() in (planted, flipped)
    best, second = log_marginal.sort(descending=True).values[:2]
    assert best - second > 5
    prior.set_table(table)
    assert not prior.is_open
    assert choose_table(prior, likelihood, mask)[0].tolist() == table.tolist()  # a frozen prior may be asked again


def test_truth_is_never_seen(make_model, make_scenes):
    """Scenes with and without their true structures give the same numbers."""
    model, scenes = make_model(prior="charges"), make_scenes(padded=[1])
    told = type(scenes).from_arrays(
        scenes.trajectory,
        observation_mask=scenes.observation_mask,
        entity_mask=scenes.entity_mask,
        scene_names=list(scenes.scene_names),
        edge_type=scenes.edge_mask.long(),
    )
    mask = scenes.edge_mask
    one, other = (choose_table(model.prior, model.likelihood(each), mask) for each in (scenes, told))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


def test_groups_and_any_likelihood(make_model, make_scenes):
    model, scenes = make_model(prior="charges"), make_scenes(groups=["a", "b", "a"])
    mask = scenes.edge_mask[scenes.group_first_scene]
    routes = [
        choose_table(model.prior, model.likelihood(scenes, cache=cache), mask)[1]
        for cache in ("table", "messages", "none")
    ]
    assert routes[0].shape == (8,)
    torch.testing.assert_close(routes[0], routes[1])
    torch.testing.assert_close(routes[0], routes[2])


def test_bad_arguments():
    prior = ChargesPrior(2)
    with pytest.raises(ValueError, match=r"edge_mask must have shape \[3, 12\], found \[2, 12\]"):
        choose_table(prior, noise_table(), MASK[:2])
    with pytest.raises(ValueError, match="prior must have 3 edge types, as the likelihood, found 2"):
        choose_table(prior, noise_table(3), MASK)
    many = torch.ones(1, 17 * 16, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"2\^17 structures are too many to list"):
        choose_table(prior, ReceiverTable(torch.zeros(1, 17, 1), 2, many), many)


@pytest.mark.parametrize("tied", [False, True])
def test_fitted_weights_are_where_the_marginal_is_highest(tied):
    """Shares of the types in the posterior equal the weights there, and steps away lose."""
    likelihood = noise_table(3, scale=1.5)
    weight = fit_type_weights(likelihood, MASK, tied=tied)
    assert weight.exp().sum() == pytest.approx(1)

    def log_marginal(log_weight):
        prior = EdgeDistribution(log_weight.log_softmax(0), MASK, tied=tied)
        return enumerate_posterior(likelihood, prior).log_marginal.sum()

    best = log_marginal(weight)
    for step in torch.eye(3, dtype=torch.double):
        assert log_marginal(weight + 0.1 * step) < best
        assert log_marginal(weight - 0.1 * step) < best


def test_a_density_is_required_in_words():
    density, composite = noise_table(), noise_table()
    composite.is_density = False
    require_density(density, "the number of types")
    with pytest.raises(
        ValueError, match="the number of types needs a density of the frames, and this likelihood is none"
    ):
        require_density(composite, "the number of types")
