"""Blocks of all receivers from a guess: against their transition matrices, and with guesses that mean nothing."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference import metropolis
from pyro_nri.inference.propagated import FLOOR, PropagatedBlocks
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable
from pyro_nri.scenes import edges

NUM_ENTITIES, NUM_EDGES = 3, 6


def problem(*, padded=False, seed=0, num_groups=1):
    """Terms and guesses at random, which have nothing to do with one another."""
    rng = np.random.default_rng(seed)
    mask = torch.ones(num_groups, NUM_EDGES, dtype=torch.bool)
    if padded:
        mask[:, (edges.senders(3) == 2) | (edges.receivers(3) == 2)] = False
    prior = make_prior("independent", 2).double()
    with torch.no_grad():
        prior.type_logits.copy_(torch.tensor([0.4, -0.4]))
    likelihood = ReceiverTable(torch.as_tensor(2 * rng.standard_normal((num_groups, 3, 4))), 2, mask)
    guess = torch.as_tensor(rng.dirichlet([0.5, 0.5], (num_groups, NUM_EDGES)))
    return StructureTarget(likelihood, prior(mask)), guess


def every_structure():
    return torch.tensor(list(itertools.product(range(2), repeat=NUM_EDGES)))[:, None]  # [64, 1, E]


def block_matrix(target, guess, receiver, temperature):
    """Metropolis over the two edges into one receiver, ``[4, 4]``, written out."""
    own = edges.incoming_edges(3)[receiver].tolist()
    q = (1 - FLOOR) * guess[0].numpy() + FLOOR / 2
    weight = target.prior.edge_log_weight()[0].detach().numpy()
    table = target.likelihood.table[0, receiver].numpy()
    matrix = np.zeros((4, 4))
    codes = list(itertools.product(range(2), repeat=2))
    log_target = [table[2 * a + b] / temperature + weight[own[0], a] + weight[own[1], b] for a, b in codes]
    proposed = [q[own[0], a] * q[own[1], b] for a, b in codes]
    for old, new in itertools.product(range(4), repeat=2):
        ratio = np.exp(log_target[new] - log_target[old]) * proposed[old] / proposed[new]
        matrix[old, new] += proposed[new] * min(1, ratio)
        matrix[old, old] += proposed[new] * (1 - min(1, ratio))
    return matrix


def whole_matrix(target, guess, temperature):
    """Receivers move independently: ``[64, 64]``."""
    blocks = [block_matrix(target, guess, receiver, temperature) for receiver in range(3)]
    incoming = edges.incoming_edges(3)
    codes = (every_structure()[:, 0][:, incoming] * torch.tensor([2, 1])).sum(-1).numpy()  # [64, N]
    return np.prod([block[np.ix_(codes[:, n], codes[:, n])] for n, block in enumerate(blocks)], axis=0)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_posterior_is_left_invariant(temperature):
    target, guess = problem()
    score = target({"edge_type": every_structure()})
    log_joint = (score.log_likelihood / temperature + score.log_prior)[:, 0].numpy()
    posterior = np.exp(log_joint - log_joint.max())
    posterior /= posterior.sum()
    matrix = whole_matrix(target, guess, temperature)
    assert np.abs(matrix.sum(1) - 1).max() < 1e-12
    assert np.abs(posterior @ matrix - posterior).max() < 1e-10


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_library_makes_these_transitions(temperature):
    target, guess = problem()
    moves, number = PropagatedBlocks(target.prior, target.likelihood, guess), 3000
    start = every_structure().repeat_interleave(number, 0)
    state = metropolis.init({"edge_type": start}, target)
    stream = Stream(0, keys(("a",)), len(start))
    heat = torch.full((len(start), 1), temperature) if temperature != 1 else temperature  # of replicas, or of all
    state, info = metropolis.step(state, stream, 0, proposal=moves, target=target, temperature=heat)
    assert torch.equal(info.accepted, info.proposed)  # each receiver has decided already
    place = 2 ** torch.arange(NUM_EDGES - 1, -1, -1)
    ends = (state.latents["edge_type"][:, 0] * place).sum(-1).view(64, number).numpy()
    found = np.stack([np.bincount(row, minlength=64) for row in ends]) / number
    wanted = whole_matrix(target, guess, temperature)
    error = np.sqrt(np.maximum(wanted * (1 - wanted), 1e-3) / number)
    assert (np.abs(found - wanted) < 5 * error).all()


def tied_problem(name):
    target, guess = problem()
    prior = make_prior(name, 2).double()
    with torch.no_grad():
        prior.type_logits.copy_(torch.tensor([0.4, -0.4]))
    return StructureTarget(target.likelihood, prior(target.prior.edge_mask)), guess


def tied_matrix(target, guess, temperature):
    """Graphs of three pairs proposed as a whole: their 8 structures and the matrix over them."""
    first, second = edges.pairs(3).T
    every = torch.zeros(8, 1, NUM_EDGES, dtype=torch.long)
    types = torch.tensor(list(itertools.product(range(2), repeat=3)))
    every[:, 0, first], every[:, 0, second] = types, types
    log = np.log(guess[0].numpy())
    mean = np.exp((log[first.numpy()] + log[second.numpy()]) / 2)
    q = (1 - FLOOR) * mean / mean.sum(1, keepdims=True) + FLOOR / 2
    proposed = np.array([np.prod([q[p, k] for p, k in enumerate(row)]) for row in types.tolist()])
    score = target({"edge_type": every})
    log_target = (score.log_likelihood / temperature + score.log_prior)[:, 0].detach().numpy()
    ratio = np.exp(log_target[None] - log_target[:, None]) * proposed[:, None] / proposed[None]
    matrix = proposed[None] * np.minimum(1, ratio)
    matrix[np.arange(8), np.arange(8)] += 1 - matrix.sum(1)
    return every, matrix, np.exp(log_target - log_target.max())


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("prior", ["symmetric", "sparse"])
def test_tied_graphs_are_proposed_as_a_whole(prior, temperature):
    target, guess = tied_problem(prior)
    every, wanted, posterior = tied_matrix(target, guess, temperature)
    posterior /= posterior.sum()
    assert np.abs(posterior @ wanted - posterior).max() < 1e-10
    moves, number = PropagatedBlocks(target.prior, target.likelihood, guess), 5000
    start = every.repeat_interleave(number, 0)
    state = metropolis.init({"edge_type": start}, target)
    stream = Stream(0, keys(("a",)), len(start))
    state, _ = metropolis.step(state, stream, 0, proposal=moves, target=target, temperature=temperature)
    ends = state.latents["edge_type"][:, 0]
    assert torch.equal(ends, ends[:, edges.reverse_edges(3)])
    place = (ends[:, edges.pairs(3)[:, 0]] * torch.tensor([4, 2, 1])).sum(-1).view(8, number).numpy()
    found = np.stack([np.bincount(row, minlength=8) for row in place]) / number
    error = np.sqrt(np.maximum(wanted * (1 - wanted), 1e-3) / number)
    assert (np.abs(found - wanted) < 5 * error).all()


def test_padding_stays_and_the_score_is_right():
    target, guess = problem(padded=True, num_groups=4)
    moves = PropagatedBlocks(target.prior, target.likelihood, guess)
    stream = Stream(1, keys(tuple("abcd")), 20)
    state = metropolis.init({"edge_type": torch.zeros(20, 4, NUM_EDGES, dtype=torch.long)}, target)
    for step in range(10):
        state, _ = metropolis.step(state, stream, step, proposal=moves, target=target, temperature=1.0)
    structure = state.latents["edge_type"]
    assert not structure[..., ~target.prior.edge_mask[0]].any()
    assert structure[..., target.prior.edge_mask[0]].double().mean() > 0.1
    torch.testing.assert_close(state.score.log_likelihood, target.likelihood.log_likelihood(structure))


def test_a_right_guess_is_taken_at_once():
    """From all wrong to all right, where the data are clear."""
    target, _ = problem()
    table = torch.full_like(target.likelihood.table, -1000.0)
    truth = torch.tensor([[1, 0, 0, 1, 1, 1]])
    code = (truth[:, edges.incoming_edges(3)] * torch.tensor([2, 1])).sum(-1)
    likelihood = ReceiverTable(table.scatter(-1, code[..., None], 0.0), 2, target.likelihood.edge_mask)
    guess = torch.nn.functional.one_hot(truth, 2).double()
    moves = PropagatedBlocks(target.prior, likelihood, guess)
    clear = StructureTarget(likelihood, target.prior)
    state = metropolis.init({"edge_type": (1 - truth).expand(200, 1, -1).clone()}, clear)
    stream = Stream(0, keys(("a",)), 200)
    state, _ = metropolis.step(state, stream, 0, proposal=moves, target=clear, temperature=1.0)
    assert (state.latents["edge_type"] == truth).all(-1).double().mean() > 0.95


def test_what_does_not_fit_is_refused():
    target, guess = problem()
    labels = make_prior("charges", 2).double()
    labels.set_table(torch.eye(2, dtype=torch.long))
    with pytest.raises(ValueError, match="prior must leave each edge a choice"):
        PropagatedBlocks(labels(target.prior.edge_mask), target.likelihood, guess)

    class Whole(AbstractLikelihood):
        is_cached = False

        def receiver_terms(self, structure, known=None):
            raise NotImplementedError

    with pytest.raises(ValueError, match="likelihood must factorise over receivers"):
        PropagatedBlocks(target.prior, Whole(), guess)


def test_auto_has_them_where_the_likelihood_guesses():
    target, guess = problem()

    table = target.likelihood
    assert "propagated_blocks" not in make_proposal("auto", target.prior, likelihood=table).move_names

    class Cached(AbstractLikelihood):
        num_edge_types, edge_mask, relaxed = 2, table.edge_mask, None

        def receiver_terms(self, structure, known=None):
            return table.receiver_terms(structure, known)

        def likely_types(self):
            return guess

    assert "propagated_blocks" in make_proposal("auto", target.prior, likelihood=Cached()).move_names
    assert "propagated_blocks" not in make_proposal("balanced", target.prior, likelihood=Cached()).move_names
    tied = make_prior("symmetric", 2).double()(target.prior.edge_mask)
    assert "propagated_blocks" in make_proposal("auto", tied, likelihood=Cached()).move_names
