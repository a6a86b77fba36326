"""Noise densities against SciPy's, and the scale mixtures that they are."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.model.impulse import draw_precision
from pyro_nri.model.noise import SCALE_FLOOR, GeometricNoise, StudentTNoise, VectorStudentT, make_noise

NAMES = ["normal", "student_t", "geometric"]
RELATIVE = [-1.0, 0.0, 0.5]
CHANGE = [0.5, 2.0, 10.0]
WEIGHT, MEAN, SPREAD = [0.3, -0.2], [1.0, -2.0], [2.0, 0.5]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def make(name):
    made = make_noise(name, 3, 2).double()
    mean, spread = (torch.tensor(values, dtype=torch.double) for values in (MEAN, SPREAD))
    contexts = mean + torch.tensor([[-1.0], [0.0], [1.0]]) * spread  # their standard deviation is unbiased
    made.fit_scaling(torch.tensor(CHANGE), contexts)
    with torch.no_grad():
        made.log_relative_scale.copy_(torch.tensor(RELATIVE, dtype=torch.double))
        if name == "geometric":
            made.context_weight.copy_(torch.tensor(WEIGHT, dtype=torch.double))
    return made


@pytest.fixture(params=NAMES)
def noise(request):
    return make(request.param)


def scales(noise, context):
    """Scale of each of the three variables, by hand."""
    log_factor = 0.0
    if isinstance(noise, GeometricNoise):
        standard = [max(-8.0, min(8.0, (c - m) / s)) for c, m, s in zip(context, MEAN, SPREAD, strict=True)]
        log_factor = sum(w * c for w, c in zip(WEIGHT, standard, strict=True))
    return [change * (math.exp(r + log_factor) + SCALE_FLOOR) for change, r in zip(CHANGE, RELATIVE, strict=True)]


def scipy_log_density(noise, value, prediction, context):
    scale = scales(noise, context)
    if isinstance(noise, GeometricNoise):
        return stats.multivariate_t.logpdf(value, loc=prediction, shape=np.diag(np.square(scale)), df=4)
    each = (value, prediction, scale)
    if isinstance(noise, StudentTNoise):
        return sum(stats.t.logpdf(v, 4, p, s) for v, p, s in zip(*each, strict=True))
    return sum(stats.norm.logpdf(v, p, s) for v, p, s in zip(*each, strict=True))


def test_density(noise):
    prediction, value, context = 10 * rand(2, 4, 3), 10 * rand(2, 4, 3, seed=1), 2 * rand(2, 4, 2, seed=2)
    distribution = noise(prediction, context)
    assert (distribution.batch_shape, distribution.event_shape) == ((2, 4), (3,))
    found = distribution.log_prob(value).detach()
    for a, b in np.ndindex(2, 4):
        wanted = scipy_log_density(noise, value[a, b].tolist(), prediction[a, b].tolist(), context[a, b].tolist())
        assert float(found[a, b]) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("name", ["normal", "student_t"])
def test_fixed_scales_need_no_context(name):
    noise, prediction, value = make(name), rand(5, 3), rand(5, 3, seed=1)
    without, given = noise(prediction), noise(prediction, rand(5, 2))
    assert torch.equal(without.log_prob(value), given.log_prob(value))
    assert not noise.uses_context


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["normal", "student_t"])
def test_draws(name):
    noise = make(name)
    torch.manual_seed(0)
    drawn = noise(torch.zeros(20_000, 3, dtype=torch.double)).sample()
    kind = stats.t(4) if name == "student_t" else stats.norm()
    for d in range(3):
        assert stats.kstest((drawn[:, d] / noise.scale[d].detach()).numpy(), kind.cdf).pvalue > 1e-3


@pytest.mark.statistical
def test_draws_of_geometric_noise():
    """Each variable is Student-t, and the square of the scaled length over D is an F variable."""
    noise, num = make("geometric"), 20_000
    torch.manual_seed(0)
    context = torch.tensor([2.0, -3.0], dtype=torch.double)
    distribution = noise(torch.zeros(num, 3, dtype=torch.double), context)
    drawn = distribution.sample() / torch.tensor(scales(noise, context.tolist()))
    for d in range(3):
        assert stats.kstest(drawn[:, d].numpy(), stats.t(4).cdf).pvalue > 1e-3
    assert stats.kstest((drawn.square().sum(-1) / 3).numpy(), stats.f(3, 4).cdf).pvalue > 1e-3
    # uncorrelated, but violent together
    ranks = stats.spearmanr(drawn.abs().numpy()).statistic
    assert abs(stats.spearmanr(drawn.numpy()).statistic[0, 1]) < 5 / num**0.5
    assert ranks[0, 1] > 20 / num**0.5


def test_shapes_of_the_vector():
    made = VectorStudentT(4.0, torch.zeros(5, 1, 2), torch.ones(7, 2))
    assert (made.batch_shape, made.event_shape) == ((5, 7), (2,))
    assert made.sample((3,)).shape == (3, 5, 7, 2)
    assert made.log_prob(torch.zeros(5, 7, 2)).shape == (5, 7)
    wide = made.expand((2, 5, 7))
    assert wide.batch_shape == (2, 5, 7)
    value = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(wide.log_prob(value), made.log_prob(value).expand(2, 5, 7))


# --- precisions ------------------------------------------------------------------------------------------------------
def test_precision_is_minus_the_slope_over_the_residual(noise):
    residual, context = (3 * rand(6, 3)).requires_grad_(), rand(6, 2, seed=1)
    log_prob = noise(torch.zeros(6, 3, dtype=torch.double), context).log_prob(residual).sum()
    (slope,) = torch.autograd.grad(log_prob, residual)
    torch.testing.assert_close(noise.precision(residual, context), -slope / residual, rtol=1e-9, atol=1e-12)


@pytest.mark.statistical
@pytest.mark.parametrize("name", NAMES)
def test_precision_given_the_residual(name):
    """Bayes by importance: draw gamma precisions from the prior of the mixture, weigh them by the Gaussian density."""
    noise, num = make(name), 200_000
    residual, context = torch.tensor([0.4, -5.0, 8.0]).double(), torch.tensor([2.0, -3.0]).double()
    scale = torch.tensor(scales(noise, context.tolist())).double()
    drawn = draw_precision(residual.expand(num, 3), noise, context.expand(num, 2), torch.Generator().manual_seed(0))
    drawn = drawn.detach()
    if name == "normal":
        torch.testing.assert_close(drawn, scale.pow(-2).expand(num, 3))
        return
    together = name == "geometric"
    weight = torch.from_numpy(np.random.default_rng(1).gamma(2, 1 / 2, (num, 1 if together else 3)))  # df / 2 = 2
    square = (residual / scale).square()
    if together:  # density of all three variables
        log_density = 1.5 * weight.log() - weight * square.sum() / 2
    else:
        log_density = 0.5 * weight.log() - weight * square / 2
    share = log_density.exp()
    for d in range(3):
        place = 0 if together else d
        w, p = weight[:, place], share[:, place] / share[:, place].sum()
        moments = [float((p * w**power).sum()) / float(scale[d]) ** (2 * power) for power in (1, 2)]
        assert float(drawn[:, d].mean()) == pytest.approx(moments[0], rel=0.02)
        assert float(drawn[:, d].square().mean()) == pytest.approx(moments[1], rel=0.04)
        assert noise.precision(residual, context)[d].item() == pytest.approx(moments[0], rel=0.02)
    if together:  # one number drives all variables
        first = (drawn * scale.square())[:, :1]
        torch.testing.assert_close((drawn * scale.square()), first.expand(num, 3))
    else:
        assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.02


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["student_t", "geometric"])
def test_gibbs_sampling_of_the_mixture_leaves_the_density_alone(name):
    """Residual given precision is Gaussian, precision given residual is drawn: together they keep Student-t draws."""
    noise, num = make(name), 20_000
    context = torch.tensor([2.0, -3.0], dtype=torch.double).expand(num, 2)
    torch.manual_seed(0)
    residual = noise(torch.zeros(num, 3, dtype=torch.double), context).sample()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        precision = draw_precision(residual, noise, context, generator).detach()
        residual = torch.randn(residual.shape, generator=generator, dtype=torch.double) / precision.sqrt()
    scale = torch.tensor(scales(noise, context[0].tolist()))
    for d in range(3):
        assert stats.kstest((residual[:, d] / scale[d]).numpy(), stats.t(4).cdf).pvalue > 1e-3
    length = ((residual / scale).square().sum(-1) / 3).numpy()
    assert (stats.kstest(length, stats.f(3, 4).cdf).pvalue > 1e-3) == (name == "geometric")


def test_shape_of_the_gamma_law():
    assert make("normal").mixture_shape(3) is None
    assert make("student_t").mixture_shape(3) == 2.5  # (4 + 1) / 2, each variable for itself
    assert make("geometric").mixture_shape(3) == 3.5  # (4 + 3) / 2


# --- scales ----------------------------------------------------------------------------------------------------------
def test_scale_is_learned_and_never_zero(noise):
    context = torch.tensor([2.0, -3.0]).double()
    noise(torch.zeros(3, dtype=torch.double), context).log_prob(torch.ones(3)).backward()
    assert all(parameter.grad.abs().min() > 0 for parameter in noise.parameters())
    with torch.no_grad():
        noise.log_relative_scale.fill_(-1000.0)
    assert (noise.scale / noise.change_scale).tolist() == pytest.approx([SCALE_FLOOR] * 3)
    value = torch.full((3,), 1e-5, dtype=torch.double)
    assert noise(torch.zeros(3, dtype=torch.double), context).log_prob(value).isfinite()


def test_contexts_far_from_those_of_training_are_cut():
    """Eight standard deviations at most."""
    noise, zero = make("geometric"), torch.zeros(3, dtype=torch.double)
    for far in (8.0, 9.0, 1e6):
        context = torch.tensor([MEAN[0] + far * SPREAD[0], MEAN[1] - far * SPREAD[1]]).double()
        wanted = [c * (math.exp(r + 8 * 0.3 + 8 * 0.2) + SCALE_FLOOR) for c, r in zip(CHANGE, RELATIVE, strict=True)]
        assert noise(zero, context).scale.tolist() == pytest.approx(wanted, rel=1e-6)


def test_contexts_without_spread_keep_scale_one():
    noise = make_noise("geometric", 1, 2).double()
    noise.fit_scaling(torch.ones(1), torch.tensor([[1.0, 3.0], [1.0, 5.0]]))
    assert noise.context_mean.tolist() == [1.0, 4.0]
    assert noise.context_scale.tolist() == pytest.approx([1.0, 2**0.5])


def test_geometric_noise_needs_a_context():
    noise = make("geometric")
    assert noise.uses_context
    with pytest.raises(ValueError, match="geometric noise needs the context of each prediction, found none"):
        noise(torch.zeros(3))
    with pytest.raises(ValueError, match="needs the context"):
        noise.precision(torch.zeros(3))
    with pytest.raises(ValueError, match="needs contexts to standardise, found none"):
        noise.fit_scaling(torch.ones(3))


def test_unknown_name():
    with pytest.raises(ValueError, match="noise must be one of normal, student_t, geometric, found 'cauchy'"):
        make_noise("cauchy", 2)
