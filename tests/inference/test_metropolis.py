"""The step on toy targets and moves that know nothing of structures."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference import metropolis
from pyro_nri.inference.metropolis import Move, Score
from pyro_nri.inference.streams import Stream, keys


class Weights:
    """A target over the integers 0..R-1: log weights by look-up."""

    def __init__(self, log_weight):
        self.log_weight = torch.tensor(log_weight, dtype=torch.double)

    def __call__(self, latents, known=None):
        value = self.log_weight[latents["x"]]
        return Score(value, torch.zeros_like(value), value[..., None])


class Jump:
    """A jump to a fixed value, with a stated probability there and back."""

    num_uniforms = 1
    move_names = ("jump",)

    def __init__(self, to, log_forward=0.0, log_reverse=0.0):
        self.to, self.log_forward, self.log_reverse = to, log_forward, log_reverse

    def propose(self, latents, uniform, step, temperature):
        shape = latents["x"].shape
        forward, reverse = (
            torch.full(shape, value, dtype=torch.double) for value in (self.log_forward, self.log_reverse)
        )
        return Move({"x": torch.full_like(latents["x"], self.to)}, forward, reverse, 0)


def share_accepted(target, jump, num=20_000, **options):
    stream = Stream(0, keys(["a", "b"]), num // 2)
    state = metropolis.init({"x": torch.zeros(num // 2, 2, dtype=torch.long)}, target)
    after, info = metropolis.step(state, stream, 0, proposal=jump, target=target, **options)
    assert torch.equal(after.latents["x"] == jump.to, info.accepted | (jump.to == 0))
    return float(info.accepted.double().mean()), info


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("log_weight", "forward", "reverse", "options", "probability"),
    [
        ([0.0, -1.0], 0.0, 0.0, {}, math.exp(-1)),
        ([0.0, 1.0], 0.0, 0.0, {}, 1.0),
        ([0.0, -1.0], 0.0, 0.0, {"temperature": 4.0}, math.exp(-1 / 4)),
        ([0.0, -1.0], math.log(0.9), math.log(0.45), {}, math.exp(-1) / 2),
        ([0.0, 1.0], math.log(0.8), math.log(0.2), {}, math.e / 4),
        ([0.0, -1.0], math.log(0.9), math.log(0.45), {"acceptance": "annealing"}, math.exp(-1)),
        ([0.0, -1.0], 0.0, math.log(0.5), {"temperature": 2.0}, math.exp(-1 / 2) / 2),
    ],
)
def test_probability_of_acceptance(log_weight, forward, reverse, options, probability):
    found, info = share_accepted(Weights(log_weight), Jump(1, forward, reverse), **options)
    standard_error = (probability * (1 - probability) / 20_000) ** 0.5
    assert abs(found - probability) <= 4 * standard_error
    assert info.proposed.all()
    assert bool(info.worse.all()) is (log_weight[1] < 0)
    assert info.temperature == options.get("temperature", 1.0)


def test_a_move_that_changes_nothing_is_no_move():
    found, info = share_accepted(Weights([0.0, 1.0]), Jump(0))
    assert found == 0
    assert not info.proposed.any()
    assert not info.worse.any()


class NoLuck:
    """A stream whose uniforms are all the smallest there is: zero."""

    def uniform(self, step, num):
        return torch.zeros(1, 1, num, dtype=torch.double)


@pytest.mark.parametrize("log_weight", [[0.0, -math.inf], [-math.inf, -math.inf], [0.0, math.nan]])
def test_impossible_states_are_never_entered(log_weight):
    target = Weights(log_weight)
    state = metropolis.init({"x": torch.zeros(1, 1, dtype=torch.long)}, target)
    after, info = metropolis.step(state, NoLuck(), 0, proposal=Jump(1), target=target)
    assert not info.accepted.any()
    assert after.latents["x"].item() == 0


def test_a_chain_leaves_an_impossible_start():
    target = Weights([-math.inf, 0.0])
    state = metropolis.init({"x": torch.zeros(1, 1, dtype=torch.long)}, target)
    after, info = metropolis.step(state, Stream(0, keys(["a"]), 1), 0, proposal=Jump(1), target=target)
    assert info.accepted.all()
    assert float(after.score.log_joint) == 0


def test_an_impossible_way_back_is_rejected():
    found, _ = share_accepted(Weights([0.0, 5.0]), Jump(1, 0.0, -math.inf))
    assert found == 0


class RandomWalk:
    """A normal step on a real number beside a step on a ring: several latents, several event shapes."""

    num_uniforms = 3
    move_names = ("walk",)

    def propose(self, latents, uniform, step, temperature):
        normal = torch.as_tensor(stats.norm.ppf(uniform[..., :2].clamp(1e-12).numpy()))
        ring = (latents["ring"] + torch.where(uniform[..., 2] < 0.5, 1, 4)) % 5
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"point": latents["point"] + 1.5 * normal, "ring": ring}, zero, zero, 0)


class Product:
    """Two independent standard normals, and a ring with weights 1 to 5."""

    def __call__(self, latents, known=None):
        terms = torch.stack([-0.5 * latents["point"].square().sum(-1), (latents["ring"] + 1.0).double().log()], -1)
        return Score(terms.sum(-1), torch.zeros_like(terms.sum(-1)), terms)


@pytest.mark.statistical
def test_several_latents_move_together():
    num_chains = 4000
    state = metropolis.init(
        {"point": torch.full((num_chains, 1, 2), 3.0).double(), "ring": torch.zeros(num_chains, 1, dtype=torch.long)},
        Product(),
    )
    stream = Stream(3, keys(["a"]), num_chains)
    for number in range(80):
        state, _ = metropolis.step(state, stream, number, proposal=RandomWalk(), target=Product())
    point, ring = state.latents["point"][:, 0], state.latents["ring"][:, 0]
    assert stats.kstest(point[:, 0].numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(point[:, 1].numpy(), "norm").pvalue > 1e-3
    counts = np.bincount(ring.numpy(), minlength=5)
    assert stats.chisquare(counts, num_chains * np.arange(1, 6) / 15).pvalue > 1e-3
    again = Product()(state.latents)
    torch.testing.assert_close(state.score.log_joint, again.log_joint)
    torch.testing.assert_close(state.score.terms, again.terms)


def test_the_state_before_is_left_alone():
    target = Weights([0.0, 3.0])
    state = metropolis.init({"x": torch.zeros(1, 2, dtype=torch.long)}, target)
    metropolis.step(state, Stream(0, keys(["a", "b"]), 1), 0, proposal=Jump(1), target=target)
    assert not state.latents["x"].any()
    assert not state.score.log_joint.any()


def test_unknown_acceptance():
    with pytest.raises(ValueError, match="acceptance must be 'metropolis' or 'annealing', found 'greedy'"):
        share_accepted(Weights([0.0, 0.0]), Jump(1), acceptance="greedy")
