"""Sums over the rest of a structure against sums over all structures, one by one."""

import itertools

import pytest
import torch

from pyro_nri.inference.hidden_edges import incoming_of, make_rest, structure_from
from pyro_nri.model.priors import IndependentPrior, SparsePrior, SymmetricPrior
from pyro_nri.scenes import edges

NUM_OBSERVED = 3


def prior_of(name, num_hidden, num_types=2):
    made = {"independent": IndependentPrior, "symmetric": SymmetricPrior, "sparse": SparsePrior}[name](num_types)
    if name != "sparse":
        made.type_logits.data.copy_(torch.tensor([0.3, -0.4, 0.1][:num_types]))
    total = NUM_OBSERVED + num_hidden
    return made(torch.ones(2, edges.num_edges(total), dtype=torch.bool))


def tables(num_hidden, seed=0):
    generator = torch.Generator().manual_seed(seed)
    senders = NUM_OBSERVED + num_hidden - 1
    return 3 * torch.randn(2, NUM_OBSERVED, 2**senders, generator=generator, dtype=torch.float64)


def every_structure(num_hidden):
    num_edges = edges.num_edges(NUM_OBSERVED + num_hidden)
    return torch.tensor(list(itertools.product(range(2), repeat=num_edges)))


def log_joint(prior, table, structures):
    """[J, B], by another route than the code: types of a receiver's senders, read as a binary number."""
    incoming = incoming_of(structures)[:, :NUM_OBSERVED]  # [J, N, L]
    number = torch.zeros(incoming.shape[:2], dtype=torch.long)
    for sender in range(incoming.shape[2]):
        number = 2 * number + incoming[..., sender]
    total = prior.log_prob(structures[:, None].expand(-1, 2, -1)).double()
    for receiver in range(NUM_OBSERVED):
        total = total + table[:, receiver].T[number[:, receiver]]
    return total


@pytest.mark.parametrize("name", ["independent", "symmetric", "sparse"])
def test_sums_are_those_over_all_structures(name):
    prior, table, structures = prior_of(name, 1), tables(1), every_structure(1)
    rest = make_rest(prior, NUM_OBSERVED)
    joint = log_joint(prior, table, structures)
    into = incoming_of(structures)[:, NUM_OBSERVED:]
    for code in itertools.product(range(2), repeat=3):
        wanted = torch.tensor(code).view(1, 1, 3)
        same = (into == wanted).all(-1).all(-1)
        exact = joint[same].logsumexp(0)
        given = wanted.expand(2, 1, 3)
        torch.testing.assert_close(rest.log_sum(table, given), exact, atol=1e-5, rtol=1e-6)
        likely = structure_from(rest.most_likely(table, given), given)
        best = structures[same][joint[same].argmax(0)]
        assert torch.equal(likely, best)
        weight = rest.log_weight(table, rest.most_likely(table, given), given)
        torch.testing.assert_close(weight, joint[same].max(0).values, atol=1e-5, rtol=1e-6)
        torch.testing.assert_close(
            rest.log_prior_into(given),
            prior.log_prob(structures[same][:, None].expand(-1, 2, -1)).logsumexp(0).double(),
            atol=1e-5,
            rtol=1e-6,
        )


@pytest.mark.parametrize("name", ["independent", "symmetric"])
def test_draws_follow_the_conditional(name):
    prior, table, structures = prior_of(name, 1), tables(1), every_structure(1)
    rest = make_rest(prior, NUM_OBSERVED)
    given = torch.tensor([[[0, 1, 1]], [[1, 1, 0]]])
    number = 20000
    uniform = torch.rand(number, 2, NUM_OBSERVED, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = rest.draw(table.expand(number, -1, -1, -1), given.expand(number, -1, -1, -1), uniform)
    joint = log_joint(prior, table, structures)
    for scene in range(2):
        same = (incoming_of(structures)[:, NUM_OBSERVED:] == given[scene]).all(-1).all(-1)
        weight = joint[same, scene].softmax(0)
        exact = torch.einsum("j,jnl->nl", weight, incoming_of(structures[same])[:, :NUM_OBSERVED].double())
        found = drawn[:, scene].double().mean(0)
        error = (exact * (1 - exact) / number).sqrt()
        assert ((found - exact).abs() <= 4.5 * error + 1e-12).all()


def test_given_structures_leave_nothing_open():
    prior = prior_of("independent", 1)
    structure = every_structure(1)[[77, 2345]]
    rest = make_rest(prior, NUM_OBSERVED, structure)
    assert not rest.is_open
    table = tables(1)
    into = incoming_of(structure)[:, NUM_OBSERVED:]
    joint = log_joint(prior, table, structure) - prior.log_prob(structure[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(rest.log_sum(table, into), joint.diagonal().double(), atol=1e-5, rtol=1e-6)
    assert (rest.log_sum(table, 1 - into) == -torch.inf).all()
    assert torch.equal(structure_from(rest.most_likely(table, into), into), structure)
    assert torch.equal(rest.project(1 - into), into)


def test_symmetric_edges_are_projected_to_themselves():
    rest = make_rest(prior_of("symmetric", 2), NUM_OBSERVED)
    into = torch.tensor([[[0, 1, 1, 0], [1, 0, 0, 1]]])  # hidden 1 -> 2 and 2 -> 1 differ
    projected = rest.project(into)
    assert projected[0, 0, 3] == projected[0, 1, 3]
    assert (projected != into).sum() == 1


def test_too_many_structures_to_list_are_refused():
    prior = SymmetricPrior(2)(torch.ones(1, edges.num_edges(8), dtype=torch.bool))
    with pytest.raises(ValueError, match="too many; use a model with the independent prior"):
        make_rest(prior, 6)
