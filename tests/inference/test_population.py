"""Population Monte Carlo against closed forms and quadrature on a bent, thin sheet."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference.gauss_newton import LeastSquares, Mode, gauss_newton
from pyro_nri.inference.laplace import mixture_of
from pyro_nri.inference.population import (
    Population,
    adapt,
    directions,
    draw_population,
    infer_population,
    loose_mixture,
    refit,
)
from pyro_nri.inference.streams import Stream, keys

THIN = 1e-3


def bent(num_problems=2, height=(1.0, -0.5), folds=False):
    """Three numbers: the first is within 1e-3 of a bent function of the second, the third is vague.

    ``log density = N(a; height + b + sin(2 b) / 2, 1e-3) + N(c; 0.5, 2) + standard normal priors``. With ``folds`` the
    bend is ``b + b²``, which goes up and comes down again.
    """
    level = torch.tensor(height).double()[:num_problems]

    def residuals(value):
        a, b, c = value.unflatten(-2, (-1, num_problems)).unbind(-1)
        bend = b + (b.square() if folds else (2 * b).sin() / 2)
        return torch.stack([level + bend - a, 0.5 - c], -1).flatten(-3, -2)

    scale = torch.tensor([THIN, 2.0]).double()
    return LeastSquares(
        residuals=residuals,
        log_likelihood=lambda residual: torch.distributions.Normal(0.0, scale).log_prob(residual).sum(-1),
        precision=lambda residual: scale.pow(-2).expand_as(residual),
        prior_mean=torch.zeros(3).double(),
        prior_scale=torch.ones(3).double(),
        difference=1e-6,
    )


def exact_marginal(level, folds=False):
    """By quadrature over the second number: the first is integrated out as if the sheet had no thickness."""
    b = np.linspace(-9, 9, 200001)
    bend = b + (b**2 if folds else np.sin(2 * b) / 2)
    density = stats.norm.pdf(b) * stats.norm(0, math.sqrt(1 + THIN**2)).pdf(level + bend)
    weight = density / density.sum()
    log_c = stats.norm(0.5, math.sqrt(5)).logpdf(0)
    return math.log(density.sum() * (b[1] - b[0])) + log_c, float((weight * b).sum()), b, weight.cumsum()


def found_modes(problem, number=6, num_problems=2):
    start = 0.7 * torch.randn(number * num_problems, 3, generator=torch.Generator().manual_seed(0)).double()
    mode = gauss_newton(problem, start, num_steps=40)
    return Mode(*(part.unflatten(0, (number, num_problems)).transpose(0, 1) for part in mode))


@pytest.mark.statistical
def test_bent_sheet_against_quadrature():
    problem = bent()
    drawn = infer_population(problem, found_modes(problem), ["one", "two"], seed=0, num_draws=3000)
    integral = drawn.integral
    assert bool((integral.effective > 600).all())
    stiff = drawn.value[..., 0] - torch.tensor([1.0, -0.5]) - drawn.value[..., 1] - (2 * drawn.value[..., 1]).sin() / 2
    weight = drawn.log_weight.softmax(0)
    for problem_number, level in enumerate((1.0, -0.5)):
        log_value, mean, grid, below = exact_marginal(level)
        error = float(integral.log_error[problem_number])
        assert error < 0.05
        assert abs(float(integral.log_value[problem_number]) - log_value) < 4 * error
        b, share = drawn.value[:, problem_number, 1], weight[:, problem_number]
        spread = float((share * (b - mean).square()).sum().sqrt())
        number = float(integral.effective[problem_number])
        assert abs(float((share * b).sum()) - mean) < 4 * spread / math.sqrt(number)
        assert float((share * stiff[:, problem_number].square()).sum().sqrt()) == pytest.approx(THIN, rel=0.15)
        equal = drawn.resample(torch.full((2,), 0.3).double(), 400)[:, problem_number, 1]
        rank = np.interp(equal.numpy(), grid, below)
        assert stats.kstest(rank[:: max(1, int(400 / number))], "uniform").pvalue > 1e-3


@pytest.mark.statistical
def test_bumps_alone_miss_a_bent_sheet():
    """What the directions are for: a mixture over all three numbers has hardly an effective draw."""
    problem = bent()
    modes = found_modes(problem)
    one = torch.ones(3).double()
    mixture = mixture_of(modes, modes.log_evidence, 0 * one, one, 0.05)
    draws, _ = mixture.sample(Stream(0, keys(["one", "two"]), 3000).uniform(0, mixture.num_slots))
    log_weight = problem.log_density(draws.flatten(0, 1)).unflatten(0, (3000, 2)) - mixture.log_prob(draws)
    assert float(Population(draws, draws, log_weight, log_weight).integral.effective.max()) < 300


@pytest.mark.statistical
def test_a_sheet_that_folds_back_is_missed_in_part():
    """The limit of the method: where one loose direction has two stiff ones, the second is not found."""
    problem = bent(folds=True)
    integral = infer_population(problem, found_modes(problem), ["one", "two"], seed=0, num_draws=1000).integral
    exact = torch.tensor([exact_marginal(level, folds=True)[0] for level in (1.0, -0.5)])
    assert bool((integral.log_value < exact - 4 * integral.log_error).any())


def test_stiff_directions_follow_the_loose():
    problem = bent()
    modes = found_modes(problem)
    best = Mode(*(part[:, 0] for part in modes))
    ways = directions(problem, best)
    assert ways.num_stiff == 1
    torch.testing.assert_close(ways.turn @ ways.turn.mT, torch.eye(3).double().expand(2, 3, 3))
    value = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(ways.latents(ways.turned(value)), value)
    loose = ways.turned(best.value + 0.05 * value)[..., 1:]
    stiff, root = ways.follow(loose)
    back = ways.latents(torch.cat([stiff, loose], -1))
    residual = problem.residuals(back.flatten(0, 1))
    assert float(residual[:, 0].abs().max()) < 0.1 * THIN
    slope = ways.turn[:, 0, 0] - ((2 * back[..., 1]).cos() + 1) * ways.turn[:, 1, 0]
    torch.testing.assert_close(root[..., 0, 0], (slope / THIN).square().add(1).sqrt(), rtol=1e-2, atol=0)


@pytest.mark.statistical
def test_refitted_mixtures_follow_their_draws():
    """Weighted draws of two heaps: the mixture has their places, widths and shares afterwards."""
    generator = torch.Generator().manual_seed(0)
    heap = torch.rand(4000, 1, generator=generator) < 0.3
    draws = torch.randn(4000, 1, 2, generator=generator).double() * torch.tensor([0.3, 0.1]).double()
    draws = draws + torch.where(heap[..., None], torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 1.0]))
    start = Mode(
        torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]).double(),
        torch.zeros(1, 2).double(),
        torch.eye(2).double().expand(1, 2, 2, 2),
    )
    one = torch.ones(2).double()
    mixture = mixture_of(start, torch.zeros(1, 2).double(), 0 * one, one, 0.1)
    fitted = refit(mixture, draws, torch.zeros(4000, 1).double(), num_steps=30, prior_share=0.1)
    torch.testing.assert_close(fitted.centre[0], torch.tensor([[2.0, 0], [-1, 1]]).double(), atol=0.05, rtol=0)
    torch.testing.assert_close(fitted.log_weight[0].exp(), torch.tensor([0.27, 0.63]).double(), atol=0.03, rtol=0)
    width = torch.linalg.inv(fitted.root @ fitted.root.mT)[0].diagonal(dim1=-2, dim2=-1).sqrt()
    assert float((width / torch.tensor([0.3, 0.1])).log().abs().max()) < 0.35  # Student-t bumps are narrower


def test_adapting_raises_the_number_of_effective_draws():
    problem = bent()
    modes = found_modes(problem)
    ways = directions(problem, Mode(*(part[:, 0] for part in modes)))
    stream = Stream(3, keys(["one", "two"]), 600)
    aside = Mode(modes.value[:, :1] + 1.5, modes.log_density[:, :1], 4 * modes.precision[:, :1])
    poor = loose_mixture(ways, aside, torch.zeros(2, 1).double(), 0.1)
    before = draw_population(ways, poor, stream).integral.effective
    better = adapt(ways, poor, stream.child("adapt"), num_rounds=3)
    after = draw_population(ways, better, stream).integral.effective
    assert bool((after > before).all())


def test_thin_in_every_direction():
    """Where all directions are stiff, the one left to the mixture is as thin as it is."""
    scale = torch.tensor([1e-5, 1e-4, 1e-3]).double()
    problem = LeastSquares(
        residuals=lambda value: 0.7 - value,
        log_likelihood=lambda residual: torch.distributions.Normal(0.0, scale).log_prob(residual).sum(-1),
        precision=lambda residual: scale.pow(-2).expand_as(residual),
        prior_mean=torch.zeros(3).double(),
        prior_scale=torch.ones(3).double(),
        difference=1e-7,
    )
    mode = gauss_newton(problem, torch.zeros(1, 3).double())
    modes = Mode(*(part[None] for part in mode))
    integral = infer_population(problem, modes, ["one"], seed=0, num_draws=500).integral
    exact = torch.distributions.Normal(0.0, (1 + scale.square()).sqrt()).log_prob(torch.tensor(0.7)).sum()
    assert float(integral.effective) > 250
    assert abs(float(integral.log_value - exact)) < 4 * float(integral.log_error)


def test_other_priors_are_refused():
    problem = bent()
    wrong = LeastSquares(
        problem.residuals,
        problem.log_likelihood,
        problem.precision,
        problem.prior_mean,
        2 * problem.prior_scale,
        problem.difference,
    )
    with pytest.raises(ValueError, match="standard normal priors"):
        directions(wrong, Mode(*(part[:, 0] for part in found_modes(problem))))
