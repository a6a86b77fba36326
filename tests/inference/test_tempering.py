"""Parallel tempering against detailed balance, enumeration, and targets whose modes no single move connects."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.inference.chains import make_chains
from pyro_nri.inference.draws import append_draws
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.metropolis import Score, State
from pyro_nri.inference.run import infer
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.tempering import Ladder, is_round
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.noise import NormalNoise
from pyro_nri.model.priors import SparsePrior, make_prior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import to_datatree, to_draws
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


def names(number):
    return tuple(str(g) for g in range(number))


def two_modes(depth, num_groups=1, num_entities=4):
    """All edges of type 0, or all of type 1; whatever lies between is ``depth`` nats less likely at each receiver."""
    mask = torch.ones(num_groups, num_entities * (num_entities - 1), dtype=torch.bool)
    table = torch.full((num_groups, num_entities, 2 ** (num_entities - 1)), -float(depth), dtype=torch.double)
    table[..., 0] = table[..., -1] = 0
    return ReceiverTable(table, 2, mask), make_prior("symmetric", 2).double()(mask)


def chains_of(likelihood, prior, *, num_chains=4, num_warmup=400, num_replicas=6, seed=0, proposal="uniform"):
    num_groups = len(likelihood.edge_mask)
    ladder = None if num_replicas == 1 else Ladder.start(num_replicas, num_chains, num_groups)
    return make_chains(
        likelihood,
        prior,
        group_names=names(num_groups),
        proposal=proposal,
        log_q=None,
        num_chains=num_chains,
        num_warmup=num_warmup,
        start_temperature=1.0,
        seed=seed,
        ladder=ladder,
    )


# --- exchanges -------------------------------------------------------------------------------------------------------
class GivenStream:
    """Answers every request with one number."""

    def __init__(self, value, shape):
        self.value, self.shape = value, shape

    def child(self, purpose):
        return self

    def uniform(self, step, num):
        return torch.full((*self.shape, num), self.value, dtype=torch.double)


def exchanged(ladder, log_likelihood, uniform, number=0):
    """Which replica's state each replica holds afterwards, with a chain for each row of ``log_likelihood [R, C]``."""
    num_replicas, num_chains = log_likelihood.shape
    place = torch.arange(num_replicas).repeat_interleave(num_chains)[:, None]
    score = Score(log_likelihood.reshape(-1, 1), torch.zeros(num_replicas * num_chains, 1), place[..., None].double())
    state = State({"edge_type": place[..., None]}, score)
    found = ladder.exchange(state, GivenStream(uniform, (num_replicas * num_chains, 1)), number)
    assert torch.equal(found.score.terms.long(), found.latents["edge_type"])
    assert torch.equal(
        found.score.log_likelihood,
        log_likelihood.gather(0, found.latents["edge_type"].view(num_replicas, num_chains)).view(-1, 1),
    )
    return found.latents["edge_type"].view(num_replicas, num_chains)


def test_detailed_balance_of_exchanges():
    """For all pairs of eight likelihoods: the flow from (a, b) to (b, a) is that from (b, a) to (a, b)."""
    values = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 3
    pairs = torch.tensor(list(itertools.product(values.tolist(), repeat=2)), dtype=torch.double).T  # [2, 64]
    ladder = Ladder.start(2, 64, 1)
    ladder.inverse_temperature = torch.tensor([[1.0], [0.3]], dtype=torch.double)

    def probability(lik):
        """Of an exchange, found by bisection of the uniform number that still leads to one."""
        low, high = torch.zeros(64, dtype=torch.double), torch.ones(64, dtype=torch.double)
        for _ in range(40):
            middle = (low + high) / 2
            found = torch.stack([exchanged(ladder, lik, float(u))[0, c] == 1 for c, u in enumerate(middle)])
            low, high = torch.where(found, middle, low), torch.where(found, high, middle)
        return low

    there, back = probability(pairs), probability(pairs.flip(0))
    weight = (1.0 * pairs[0] + 0.3 * pairs[1]).exp()
    weight_back = (1.0 * pairs[1] + 0.3 * pairs[0]).exp()
    np.testing.assert_allclose(weight * there, weight_back * back, rtol=1e-7)
    assert (there < 0.9).any()


def test_pairs_take_turns_and_chains_keep_apart():
    lik = torch.zeros(4, 3, dtype=torch.double)
    lik[1, 1] = -math.inf
    ladder = Ladder.start(4, 3, 1)
    assert exchanged(ladder, lik, 0.5, number=0).T.tolist() == [[1, 0, 3, 2], [0, 1, 3, 2], [1, 0, 3, 2]]
    assert exchanged(ladder, lik, 0.5, number=1).T.tolist() == [[0, 2, 1, 3], [0, 2, 1, 3], [0, 2, 1, 3]]
    assert ladder.num_steps == 2


def test_ladder_is_set_to_equal_rejection():
    """Likelihoods of many independent edges: after some rounds all neighbours are rejected about equally often."""
    mask = torch.ones(2, 20, dtype=torch.bool)
    table = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    table[0] *= 5
    table[1] *= 50  # another ladder
    chains = chains_of(
        ReceiverTable(table, 2, mask),
        make_prior("independent", 2).double()(mask),
        num_warmup=513,
        num_replicas=7,
        proposal="exact",
    )
    chains.record(513, 1, names(2))
    beta = chains.ladder.inverse_temperature
    assert (beta[0] == 1).all()
    assert (beta[-1] == 0).all()
    assert (beta.diff(dim=0) < 0).all()
    assert beta[1, 0] > beta[1, 1]
    assert chains.ladder.num_steps == 0  # what warm-up counted is forgotten
    later = chains.record(600, 1, names(2)).replicas
    assert torch.equal(torch.as_tensor(later.inverse_temperature), beta)  # frozen
    assert later.num_steps == 600
    rejection = later.rejection
    assert (rejection.max(0) - rejection.min(0) < 0.15).all()
    assert [n for n in range(200) if is_round(n)] == [16, 32, 64, 128]


# --- modes -----------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
def test_both_modes_are_visited_equally_where_plain_chains_stay():
    likelihood, prior = two_modes(8, num_groups=2)
    plain = chains_of(likelihood, prior, num_replicas=1)
    plain.record(400, 1, names(2))
    stuck = plain.record(1000, 1, names(2)).edge_type
    moved = (np.diff(stuck[..., 0].astype(int), axis=1) != 0).sum()
    chains = chains_of(likelihood, prior)
    chains.record(400, 1, names(2))
    found = chains.record(2500, 1, names(2))
    in_mode = [(found.edge_type == k).all(-1) for k in (0, 1)]
    assert (in_mode[0] | in_mode[1]).mean() > 0.95
    share = in_mode[1].mean((1, 2))  # of each chain
    error = share.std(ddof=1) / 2
    assert abs(share.mean() - 0.5) < 4 * max(error, 0.01)
    changes = (np.diff(found.edge_type[..., 0].astype(int), axis=1) != 0).sum()
    assert changes / 2500 > 20 * (moved + 1) / 1000


SYMMETRIC = {"modules": 3, "table": 5}
"""Targets that do not change if all types are swapped, and with how many replicas they are sampled."""


def symmetric_target(kind):
    """Likelihood and prior of two scenes: hardly a pair interacts or hardly one does not, and both are as likely.

    Two modules with the same weights tell no structures apart, so their posterior is the prior; the table tells them
    apart, but none from its mirror image.
    """
    scenes = simulate("springs", 2, num_entities=4, num_frames=6, seed=0)
    prior = SparsePrior(2, concentration=(1e-8, 1e-8))
    if kind == "modules":
        dynamics = MessagePassing(2, 4, generator=torch.Generator().manual_seed(0))
        model = SceneModel(dynamics, NormalNoise(4), prior).double()
        model.fit_scaling(scenes)
        with torch.no_grad():
            for parameter in dynamics.edge_modules.parameters():
                parameter[1] = parameter[0]
        return model.likelihood(scenes), model.structure_prior(scenes)
    table = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    return ReceiverTable(table + table.flip(-1), 2, scenes.edge_mask), prior(scenes.edge_mask)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("kind", SYMMETRIC)
def test_exact_symmetry(kind):
    """Tempered chains are in both modes equally often; plain ones stay, and the check says it of those alone."""
    likelihood, prior = symmetric_target(kind)
    every = prior.list_structures()[:, None].expand(-1, 2, -1)
    joint = likelihood.log_likelihood(every) + prior.log_prob(every)
    torch.testing.assert_close(joint, joint.flip(0))  # the types of the last structure are those of the first, swapped
    assert (joint[1:-1] < joint[0] - 10).all()
    if kind == "modules":
        flat = likelihood.log_likelihood(every)
        torch.testing.assert_close(flat, flat[:1].expand_as(flat))
    scenes = Scenes.from_arrays(torch.zeros(2, 6, 4, 4))
    verdicts, shares = {}, {}
    for num_replicas in (1, SYMMETRIC[kind]):
        chains = chains_of(likelihood, prior, num_chains=12, num_warmup=130, num_replicas=num_replicas, proposal="auto")
        chains.record(130, 1, names(2))
        draws = chains.record(400, 1, names(2))
        interacting = draws.edge_type.mean(-1)  # share of pairs, [C, S, G]
        assert (np.abs(interacting - 0.5) == 0.5).mean() > 0.95
        shares[num_replicas] = (interacting > 0.5).mean(1)  # [C, G]
        verdicts[num_replicas] = check(to_datatree(draws, scenes))
    plain, tempered = verdicts.values()
    stuck, mixed = shares.values()
    error = mixed.std(0, ddof=1) / np.sqrt(12)
    assert error.max() < 0.04
    assert (np.abs(mixed.mean(0) - 0.5) < 4 * error).all()
    assert set(stuck.flatten()) == {0, 1}  # each chain in one mode from beginning to end
    assert plain.passed is False
    assert plain.verdict == "Do not trust this run yet: in 2 of 2 scenes chains sit in different modes."
    for scene in range(2):
        modes = [",".join(map(str, np.flatnonzero(stuck[:, scene] == mode))) for mode in (0, 1)]
        assert any(f"scene {scene} has chains {one} | {two}" in plain.problems[0] for one, two in (modes, modes[::-1]))
    assert "Let chains cross between modes by parallel tempering: infer(num_replicas=8)." in plain.advice
    assert tempered.passed is True
    assert tempered.verdict.startswith("Trust this run: in 2 of 2 scenes its 12 chains agree")
    assert not tempered.problems
    assert not tempered.advice


# --- evidence --------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize("name", ["independent", "symmetric", "sparse", "charges"])
def test_log_marginals_are_those_of_enumeration(name):
    """N = 4, random likelihoods that differ by tens of nats: within some standard errors, which are small."""
    mask = torch.ones(2, 12, dtype=torch.bool)
    table = 5 * torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    likelihood = ReceiverTable(table, 2, mask)
    prior = make_prior(name, 2).double()
    if name == "charges":
        prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    prior = prior(mask)
    wanted = enumerate_posterior(likelihood, prior).log_marginal
    chains = chains_of(likelihood, prior, num_chains=16, num_replicas=6, num_warmup=130, proposal="auto")
    chains.record(130, 1, names(2))
    found = chains.record(400, 1, names(2))
    gap = torch.as_tensor(found.log_marginal) - wanted
    assert (gap.abs() < 4.5 * torch.as_tensor(found.log_marginal_error)).all()  # t with 15 degrees of freedom: 4e-4
    assert found.log_marginal_error.max() < 0.08
    draws = found.edge_type.reshape(-1, 2, 12)
    exact = enumerate_posterior(likelihood, prior).edge_probability[..., 1].numpy()
    np.testing.assert_allclose(draws.mean(0), exact, atol=0.1)


@pytest.mark.statistical
@pytest.mark.slow
def test_log_marginals_of_learned_laws():
    """Charged particles, N = 5: within 0.05 nats of enumeration, though structures differ by thousands of nats."""
    model = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "charged5.pt").model
    model.impulse_power.weight.copy_(torch.tensor([2.5, 0, 0, 0, 0]))  # twelve times as sure as it is
    model.impulse_power.lost.zero_()  # paths that may be lost bound the differences
    scenes = simulate("charged", 2, num_frames=5, seed=7)
    with torch.no_grad():
        likelihood, prior = model.likelihood(scenes), model.structure_prior(scenes)
    wanted = enumerate_posterior(likelihood, prior).log_marginal.numpy()
    spread = likelihood.table.amax(-1) - likelihood.table.amin(-1)
    assert spread.min() > 1000
    arguments = {"num_chains": 300, "num_replicas": 8, "num_warmup": 400, "num_draws": 100, "thin": 6}
    draws = infer(model, scenes, method="mcmc", seed=0, **arguments)
    gap = draws.log_marginal - wanted
    assert (np.abs(gap) < 0.05).all()
    assert (np.abs(gap) < 4 * draws.log_marginal_error).all()
    assert draws.log_marginal_error.max() < 0.02


# --- runs ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def problem():
    scenes = simulate("springs", 3, num_entities=4, num_frames=8, seed=0)
    model = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    return model, scenes, {"method": "mcmc", "num_chains": 2, "num_replicas": 3, "seed": 4}


def test_interrupted_replicas_go_on(problem, monkeypatch):
    """Stopped in warm-up and among draws, through a file: the same draws, ladder and marginal."""
    model, scenes, arguments = problem
    arguments = {**arguments, "num_warmup": 40, "num_draws": 30, "segment_draws": 10, "thin": 2}
    whole = infer(model, scenes, **arguments)
    parts = []
    infer(model, scenes, **arguments, on_segment=parts.append)
    for part in (parts[1], parts[5]):
        part = replace(part, complete=False)
        kept = to_draws(to_datatree(part, scenes)) if part.edge_type.shape[1] else part
        again = infer(model, scenes, **arguments, resume=kept)
        assert np.array_equal(again.edge_type, whole.edge_type)
        assert np.array_equal(again.warmup.edge_type, whole.warmup.edge_type)
        np.testing.assert_allclose(again.log_marginal, whole.log_marginal, rtol=1e-12)
        np.testing.assert_allclose(again.replicas.inverse_temperature, whole.replicas.inverse_temperature)
        assert np.array_equal(again.replicas.edge_type, whole.replicas.edge_type)
    assert whole.num_evaluations == 30 * 2 * 3
    with pytest.raises(ValueError, match="its num_replicas is 3, this run has 4"):
        infer(model, scenes, **{**arguments, "num_replicas": 4}, resume=parts[5])


def test_shards_and_file(problem):
    model, scenes, arguments = problem
    arguments = {**arguments, "num_warmup": 20, "num_draws": 10}
    whole, shards = infer(model, scenes, **arguments), infer(model, scenes, **arguments, num_shards=3)
    assert np.array_equal(whole.edge_type, shards.edge_type)
    np.testing.assert_allclose(whole.log_marginal, shards.log_marginal, rtol=1e-12)
    np.testing.assert_allclose(whole.replicas.inverse_temperature, shards.replicas.inverse_temperature)
    tree = to_datatree(whole, scenes)
    assert tree["replicas"]["inverse_temperature"].dims == ("replica", "scene")
    np.testing.assert_array_equal(tree["edge_posterior"]["log_marginal_error"].values, whole.log_marginal_error)
    back = to_draws(tree)
    assert back.num_replicas == 3
    assert np.array_equal(back.replicas.edge_type, whole.replicas.edge_type)
    assert append_draws(back, back).replicas is back.replicas


def test_bad_numbers_of_replicas(problem):
    model, scenes, arguments = problem
    with pytest.raises(ValueError, match="num_replicas must be at least 1, found 0"):
        infer(model, scenes, **{**arguments, "num_replicas": 0})
    with pytest.raises(ValueError, match="num_replicas must be at least 2 for parallel tempering, found 1"):
        Ladder.start(1, 1, 1)


def test_replicas_are_over_the_chains_of_a_stream():
    """Each replica of each chain has random numbers of its own."""
    stream = Stream(0, keys(("a",)), 6)
    assert stream.uniform(0, 1).unique().numel() == 6
