"""Delayed moves: exact transition matrices with a wrong surrogate, rollouts against enumeration, and what they save."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference import metropolis
from pyro_nri.inference.delayed import Delayed
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.metropolis import init, step
from pyro_nri.inference.proposals import ExactReceiver, Mixture, UniformPair, make_proposal
from pyro_nri.inference.run import infer
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import ReceiverTable

MASK = torch.ones(1, 6, dtype=torch.bool)


def targets(prior_name, distance):
    """A posterior over structures of three entities, and a surrogate that is wrong by ``distance`` nats a receiver."""
    random = torch.Generator().manual_seed(0)
    table = 1.5 * torch.randn(1, 3, 4, generator=random, dtype=torch.double)
    other = table + distance * torch.randn(1, 3, 4, generator=random, dtype=torch.double)
    prior = make_prior(prior_name, 2).double()(MASK)
    return [StructureTarget(ReceiverTable(each, 2, MASK), prior) for each in (table, other)]


def every_structure(prior):
    return prior.list_structures()


def transition(target, proposal, number, num_repeats, temperature=1.0):
    """Transition matrix of one step, by running it very often from every structure; rows sum to 1."""
    every = every_structure(target.prior)
    place = {tuple(z): n for n, z in enumerate(every.tolist())}
    start = every.repeat_interleave(num_repeats, 0)[:, None]
    stream = Stream(number, keys(("a",)), len(start))
    state, _ = step(
        init({"edge_type": start}, target), stream, number, proposal=proposal, target=target, temperature=temperature
    )
    reached = np.array([place[tuple(z)] for z in state.latents["edge_type"][:, 0].tolist()])
    counts = np.zeros((len(every), len(every)))
    np.add.at(counts, (np.repeat(np.arange(len(every)), num_repeats), reached), 1)
    return counts / num_repeats


def exact_matrix(target, surrogate, matrix, temperature=1.0):
    """Acceptance of the second stage, written out: of what the first stage's matrix proposes."""
    every = every_structure(target.prior)[:, None]

    def weight(of):
        score = of({"edge_type": every})
        return (score.log_likelihood / temperature + score.log_prior)[:, 0].numpy()

    wanted, cheap = weight(target), weight(surrogate)
    log_ratio = (wanted[None] - wanted[:, None]) - (cheap[None] - cheap[:, None])
    result = matrix * np.minimum(1, np.exp(log_ratio))
    np.fill_diagonal(result, 0)
    return result + np.diag(1 - result.sum(1))


def block_matrix(surrogate, receiver, temperature=1.0):
    """Gibbs block of one receiver on the surrogate: the conditional given the edges that it cannot change."""
    every = every_structure(surrogate.prior).tolist()
    score = surrogate({"edge_type": torch.tensor(every)[:, None]})
    weight = np.exp((score.log_likelihood / temperature + score.log_prior)[:, 0].numpy())
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    tied = surrogate.prior.tied
    fixed = [e for e, (i, j) in enumerate(pairs) if j != receiver and not (tied and i == receiver)]
    matrix = np.zeros((len(every), len(every)))
    for m, n in itertools.product(range(len(every)), repeat=2):
        if all(every[m][e] == every[n][e] for e in fixed):
            matrix[m, n] = weight[n]
    return matrix / matrix.sum(1, keepdims=True)


def block_and_reverse(surrogate, temperature):
    return np.linalg.multi_dot([block_matrix(surrogate, j, temperature) for j in (2, 1, 0)])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_a_wrong_surrogate_leaves_the_posterior_invariant(prior, temperature):
    """One, two and three random blocks in a row: detailed balance and invariance to rounding."""
    target, surrogate = targets(prior, 2.0)
    every = every_structure(target.prior)
    score = target({"edge_type": every[:, None]})
    posterior = (score.log_likelihood / temperature + score.log_prior)[:, 0].softmax(0).numpy()
    once = np.mean([block_matrix(surrogate, j, temperature) for j in range(3)], axis=0)
    for num_steps in (1, 2, 3):
        matrix = exact_matrix(target, surrogate, np.linalg.matrix_power(once, num_steps), temperature)
        flow = posterior[:, None] * matrix
        np.testing.assert_allclose(flow, flow.T, atol=1e-12)
        assert np.abs(posterior @ matrix - posterior).max() < 1e-10
    in_turn = np.linalg.multi_dot([block_matrix(surrogate, j, temperature) for j in range(3)])
    if prior == "symmetric":  # why the way back is taken too
        assert np.abs(posterior @ exact_matrix(target, surrogate, in_turn, temperature) - posterior).max() > 1e-4
    there_and_back = exact_matrix(target, surrogate, in_turn @ block_and_reverse(surrogate, temperature), temperature)
    assert np.abs(posterior @ there_and_back - posterior).max() < 1e-10


@pytest.mark.statistical
@pytest.mark.parametrize(("scan", "num_steps"), [("random", 1), ("random", 2), ("turn", 3), ("turn", 4)])
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_the_library_makes_these_transitions(prior, scan, num_steps):
    """Blocks in turn go there and back: 0, 1, 1, 0."""
    target, surrogate = targets(prior, 2.0)
    inner = ExactReceiver(surrogate.prior, surrogate.likelihood, scan=scan)
    num_repeats, number = 2000, 5
    found = transition(target, Delayed(surrogate, inner, num_steps=num_steps), number, num_repeats)
    blocks = [block_matrix(surrogate, j) for j in range(3)]
    if scan == "random":
        made = np.linalg.matrix_power(np.mean(blocks, axis=0), num_steps)
    else:
        turns = [(number * num_steps + min(n, num_steps - 1 - n)) % 3 for n in range(num_steps)]
        made = np.linalg.multi_dot([blocks[turn] for turn in turns])
    wanted = exact_matrix(target, surrogate, made)
    error = np.sqrt(np.maximum(wanted * (1 - wanted), 1e-3) / num_repeats)  # few counts are not normal
    assert (np.abs(found - wanted) < 5 * error).all()


def test_a_right_surrogate_is_always_accepted():
    target, _ = targets("independent", 0.0)
    moves = Delayed(target, Mixture([ExactReceiver(target.prior, target.likelihood), UniformPair(target.prior)]))
    start = every_structure(target.prior)[:, None]
    state = init({"edge_type": start}, target)
    stream = Stream(0, keys(("a",)), len(start))
    for number in range(20):
        state, info = metropolis.step(state, stream, number, proposal=moves, target=target, temperature=2.0)
        assert torch.equal(info.accepted, info.proposed)
        assert info.proposed.any()


@pytest.mark.statistical
@pytest.mark.parametrize("prior", ["independent", "symmetric", "sparse"])
def test_rollouts(make_model, make_scenes, make_encoder, prior):
    """Horizon 3: marginals within standard errors of enumeration, and more edges change for each rollout."""
    model, scenes = make_model(prior=prior, horizon=3, scale=1.5), make_scenes(groups=["a", "b", "a"], num_frames=7)
    with torch.no_grad():
        likelihood, made = model.likelihood(scenes), model.structure_prior(scenes)
        wanted = enumerate_posterior(likelihood, made).edge_probability[..., 1].numpy()
    assert not likelihood.is_cached
    arguments = {"method": "mcmc", "num_chains": 60, "num_draws": 60, "num_warmup": 30, "seed": 1}
    rates = {}
    for proposal in ("delayed", "uniform"):
        draws = infer(model, scenes, proposal=proposal, encoder=make_encoder(), **arguments)
        chain_means = (draws.edge_type == 1).mean(1)
        error = chain_means.std(0, ddof=1) / np.sqrt(60)
        assert error.max() < 0.05
        assert (np.abs(chain_means.mean(0) - wanted) <= 4.5 * np.maximum(error, 1e-3)).all()
        rates[proposal] = (np.diff(draws.edge_type, axis=1) != 0).sum() / draws.proposed[:, 1:].sum()
    assert "delayed" in infer(model, scenes, **arguments | {"num_draws": 1, "num_warmup": 0}).move_names
    assert rates["delayed"] > 1.1 * rates["uniform"]


def test_only_what_changes_is_rolled_out(make_model, make_scenes):
    model, scenes = make_model(horizon=3), make_scenes(groups=["a", "b", "a"])
    likelihood = model.likelihood(scenes)
    structure = torch.randint(2, (4, 2, 6), generator=torch.Generator().manual_seed(0))
    before = likelihood.receiver_terms(structure)
    after = structure.clone()
    after[1, 0, 3] = 1 - after[1, 0, 3]
    counted = []
    trajectory = likelihood.trajectory
    likelihood.trajectory = lambda part, each: counted.append(part.num_scenes) or trajectory(part, each)
    found = likelihood.receiver_terms(after, (structure, before))
    assert counted == [2]  # both recordings of the one structure that changed
    torch.testing.assert_close(found, likelihood.receiver_terms(after))
    assert torch.equal(likelihood.receiver_terms(structure, (structure, before)), before)  # nothing at all
    cached = make_model().likelihood(scenes, cache="messages")
    terms = cached.receiver_terms(structure)
    assert torch.equal(cached.receiver_terms(structure, (structure, terms)), terms)
    same = torch.ones(4, 2, dtype=torch.bool)
    same[1, 0] = False
    assert torch.equal(found[same], before[same])


def test_what_is_missing_is_said(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    with pytest.raises(ValueError, match="delayed moves need a likelihood that does not factorise, and a surrogate"):
        infer(model, scenes, method="mcmc", proposal="delayed", seed=0)
    target, surrogate = targets("independent", 1.0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, found 0"):
        Delayed(surrogate, make_proposal("uniform", target.prior), num_steps=0)
