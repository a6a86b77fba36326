"""Metropolis steps for continuous numbers: they leave a known density as it is, and wrong ones do not."""

import math

import pytest
import torch
from scipy import stats

from pyro_nri.inference import mala
from pyro_nri.inference.gauss_newton import Mode
from pyro_nri.inference.laplace import mixture_of
from pyro_nri.inference.streams import Stream, keys

NUM_CHAINS, NUM_STEPS = 4000, 6
CENTRE = torch.tensor([[0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
COVARIANCE = torch.tensor([[[1.0, 0.8], [0.8, 1.0]], [[0.2, -0.1], [-0.1, 2.0]]], dtype=torch.float64)


def density(value):
    """Two bent normal densities: the second number follows the square of the first."""
    straight = torch.stack([value[..., 0], value[..., 1] - 0.3 * value[..., 0].square()], -1)
    return torch.distributions.MultivariateNormal(CENTRE, COVARIANCE).log_prob(straight)


def exact(stream):
    uniform = stream.child("truth").uniform(0, 2)
    normal = torch.special.ndtri(uniform.clamp(min=1e-300))
    straight = CENTRE + torch.einsum("bpq,cbq->cbp", torch.linalg.cholesky(COVARIANCE), normal)
    return torch.stack([straight[..., 0], straight[..., 1] + 0.3 * straight[..., 0].square()], -1)


def proposal():
    """A mixture that is some way off."""
    mode = Mode(CENTRE[:, None] + 0.3, torch.zeros(2, 1).double(), torch.linalg.inv(2 * COVARIANCE)[:, None])
    zero = torch.zeros(2, dtype=torch.float64)
    return mixture_of(mode, torch.zeros(2, 1).double(), zero, zero + 3, 0.2)


def run(kind, wrong=False):
    stream = Stream(1, keys(["one", "two"]), NUM_CHAINS)
    state = mala.init(exact(stream), density)
    root = torch.linalg.cholesky(torch.linalg.inv(COVARIANCE))
    mixture = proposal()
    accepted = 0
    for number in range(NUM_STEPS):
        if kind == "langevin":
            uniform = stream.uniform(number, 5)
            new, info = mala.langevin_step(state, uniform, density, root, torch.tensor([1.2, 0.9]).double())
        else:
            uniform = stream.uniform(number, 1 + mixture.num_slots)
            new, info = mala.independent_step(state, uniform, density, mixture)
        if wrong:  # every proposal is taken
            certain = torch.cat([torch.zeros_like(uniform[..., :1]), uniform[..., 1:]], -1)
            if kind == "langevin":
                new, _ = mala.langevin_step(state, certain, density, root, torch.tensor([1.2, 0.9]).double())
            else:
                new, _ = mala.independent_step(state, certain, density, mixture)
        accepted = accepted + info.accepted.double().mean(0)
        state = new
    return state, accepted / NUM_STEPS


def p_values(value):
    """Of the numbers that should be normal, one after the other."""
    straight = torch.stack([value[..., 0], value[..., 1] - 0.3 * value[..., 0].square()], -1)
    standard = torch.linalg.solve_triangular(
        torch.linalg.cholesky(COVARIANCE), (straight - CENTRE).permute(1, 2, 0), upper=False
    )
    return [stats.kstest(row, "norm").pvalue for row in standard.flatten(0, 1)]


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["langevin", "independent"])
def test_density_is_left_as_it_is(kind):
    state, rate = run(kind)
    assert float(rate.min()) > 0.1
    assert float(rate.max()) < 0.95
    assert min(p_values(state.value)) > 1e-3
    assert min(p_values(run(kind, wrong=True)[0].value)) < 1e-6


def test_states_know_their_density():
    state, _ = run("langevin")
    torch.testing.assert_close(state.log_density, density(state.value))
    log_density, gradient = mala.gradient(state.value, density)
    torch.testing.assert_close(state.log_density, log_density)
    value = state.value[:3].clone()
    for p in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[p] = 1e-6
        slope = (density(value + step) - density(value - step)) / 2e-6
        torch.testing.assert_close(gradient[:3, :, p], slope, atol=1e-5, rtol=1e-5)


def test_what_has_no_density_is_never_entered():
    def half(value):
        return torch.where(value[..., 0] > 0, density(value), -torch.inf)

    stream = Stream(0, keys(["one", "two"]), 200)
    state = mala.init(exact(stream).abs() + 0.01, half)
    root = torch.eye(2).double().expand(2, 2, 2)
    for number in range(20):
        state, info = mala.langevin_step(state, stream.uniform(number, 5), half, root, torch.ones(2).double())
        assert info.log_accept.max() <= 0
    assert bool((state.value[..., 0] > 0).all())
    assert math.isfinite(float(state.log_density.sum()))
