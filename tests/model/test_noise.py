"""Noise densities against SciPy's."""

import math

import pytest
import torch
from scipy import stats

from pyro_nri.model.noise import SCALE_FLOOR, StudentTNoise, make_noise


@pytest.fixture(params=["normal", "student_t"])
def noise(request):
    made = make_noise(request.param, 3).double()
    made.fit_scaling(torch.tensor([0.5, 2.0, 10.0]))
    with torch.no_grad():
        made.log_relative_scale.copy_(torch.tensor([-1.0, 0.0, 0.5]))
    return made


def scipy_log_density(noise, value, prediction, d):
    scale = [0.5, 2.0, 10.0][d] * (math.exp([-1.0, 0.0, 0.5][d]) + SCALE_FLOOR)
    if isinstance(noise, StudentTNoise):
        return stats.t.logpdf(value, df=4, loc=prediction, scale=scale)
    return stats.norm.logpdf(value, loc=prediction, scale=scale)


def test_density(noise):
    generator = torch.Generator().manual_seed(0)
    prediction, value = (10 * torch.randn(2, 4, 3, generator=generator, dtype=torch.double) for _ in range(2))
    distribution = noise(prediction, prediction)
    assert (distribution.batch_shape, distribution.event_shape) == ((2, 4), (3,))
    found = distribution.log_prob(value).detach()
    for a in range(2):
        for b in range(4):
            wanted = sum(
                scipy_log_density(noise, float(value[a, b, d]), float(prediction[a, b, d]), d) for d in range(3)
            )
            assert float(found[a, b]) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.statistical
def test_draws(noise):
    torch.manual_seed(0)
    drawn = noise(torch.zeros(20_000, 3, dtype=torch.double), torch.zeros(20_000, 3)).sample()
    kind = stats.t(4) if isinstance(noise, StudentTNoise) else stats.norm()
    for d in range(3):
        assert stats.kstest((drawn[:, d] / noise.scale[d].detach()).numpy(), kind.cdf).pvalue > 1e-3


def test_scale_is_learned_and_never_zero(noise):
    noise(torch.zeros(3, dtype=torch.double), torch.zeros(3)).log_prob(torch.ones(3)).backward()
    assert noise.log_relative_scale.grad.abs().min() > 0
    with torch.no_grad():
        noise.log_relative_scale.fill_(-1000.0)
    assert (noise.scale / noise.change_scale).tolist() == pytest.approx([SCALE_FLOOR] * 3)


def test_degrees_of_freedom():
    noise = StudentTNoise(1, degrees_of_freedom=7.0)
    found = float(noise(torch.zeros(1), torch.zeros(1)).log_prob(torch.ones(1)).detach())
    assert found == pytest.approx(stats.t.logpdf(1.0, df=7, scale=1 + SCALE_FLOOR), rel=1e-6)


def test_unknown_name():
    with pytest.raises(ValueError, match="noise must be one of normal, student_t, found 'cauchy'"):
        make_noise("cauchy", 2)
