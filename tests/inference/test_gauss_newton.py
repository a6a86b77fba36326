"""Modes and Laplace mixtures against closed forms, scipy and quadrature."""

import math

import pytest
import torch
from scipy import optimize, stats
from torch import Tensor

from pyro_nri.inference.gauss_newton import LeastSquares, gauss_newton, jacobian
from pyro_nri.inference.laplace import integrate, mixture_of


def _linear(seed: int, rows: int = 4, size: int = 3, num: int = 11) -> tuple[LeastSquares, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    design = torch.randn(rows, num, size, generator=generator, dtype=torch.float64)
    target = torch.randn(rows, num, generator=generator, dtype=torch.float64)
    sd = 0.3
    problem = LeastSquares(
        residuals=lambda value: target - torch.einsum("rmp,rp->rm", design, value),
        log_likelihood=lambda residual: (-(residual**2) / (2 * sd**2) - math.log(sd * math.sqrt(2 * math.pi))).sum(-1),
        precision=lambda residual: torch.full_like(residual, sd**-2),
        prior_mean=torch.tensor([0.5, 0.0, -1.0], dtype=torch.float64),
        prior_scale=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64),
    )
    return problem, design, target


def test_linear_problems_are_solved_and_their_evidence_is_exact() -> None:
    problem, design, target = _linear(0)
    found = gauss_newton(problem, torch.zeros(4, 3, dtype=torch.float64), num_steps=6)
    for row in range(4):
        prior = torch.diag(problem.prior_scale**2)
        covariance = design[row] @ prior @ design[row].T + 0.09 * torch.eye(11, dtype=torch.float64)
        exact = stats.multivariate_normal(design[row] @ problem.prior_mean, covariance).logpdf(target[row])
        assert float(found.log_evidence[row]) == pytest.approx(exact, abs=1e-9)
        gain = prior @ design[row].T @ torch.linalg.inv(covariance)
        mean = problem.prior_mean + gain @ (target[row] - design[row] @ problem.prior_mean)
        torch.testing.assert_close(found.value[row], mean, atol=1e-8, rtol=0)


def test_jacobian_is_that_of_the_function() -> None:
    value = torch.tensor([[0.3, 1.2], [2.0, -0.5]], dtype=torch.float64)

    def function(x: Tensor) -> Tensor:
        return torch.stack([x[:, 0].sin() * x[:, 1], x[:, 1] ** 2, x[:, 0] + 0 * x[:, 1]], -1)

    _, found = jacobian(function, value)
    for row, (a, b) in enumerate(value.tolist()):
        wanted = [[math.cos(a) * b, math.sin(a)], [0.0, 2 * b], [1.0, 0.0]]
        torch.testing.assert_close(found[row], torch.tensor(wanted, dtype=torch.float64))


def _curved(precision_of: str) -> tuple[LeastSquares, Tensor]:
    """Decaying waves whose rate and height are sought; one frame is violent."""
    time = torch.linspace(0, 3, 30, dtype=torch.float64)
    noise = 0.02 * torch.randn(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    seen = 1.4 * torch.exp(-0.7 * time) + noise
    seen[5] += 3.0
    sd, nu = 0.02, 4.0

    def student(residual: Tensor) -> Tensor:
        return torch.distributions.StudentT(nu, 0.0, sd).log_prob(residual).sum(-1)

    def normal(residual: Tensor) -> Tensor:
        return torch.distributions.Normal(0.0, sd).log_prob(residual).sum(-1)

    heavy = precision_of == "student"
    problem = LeastSquares(
        residuals=lambda value: seen - value[:, :1] * torch.exp(-value[:, 1:] * time),
        log_likelihood=student if heavy else normal,
        precision=((lambda r: (nu + 1) / (nu * sd**2 + r**2)) if heavy else (lambda r: torch.full_like(r, sd**-2))),
        prior_mean=torch.zeros(2, dtype=torch.float64),
        prior_scale=torch.full((2,), 3.0, dtype=torch.float64),
    )
    return problem, torch.tensor([[1.0, 0.1], [0.2, 2.0]], dtype=torch.float64)


@pytest.mark.parametrize("noise", ["student", "normal"])
def test_mode_of_a_curved_problem_is_that_of_scipy(noise: str) -> None:
    problem, start = _curved(noise)
    found = gauss_newton(problem, start, num_steps=40)

    def negative(value: list[float]) -> float:
        return -float(problem.log_density(torch.tensor([list(value)], dtype=torch.float64)))

    best = optimize.minimize(negative, [1.4, 0.7], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11})
    for row in range(2):
        torch.testing.assert_close(found.value[row], torch.tensor(best.x), atol=1e-5, rtol=0)
    if noise == "student":
        assert abs(float(found.value[0, 0]) - 1.4) < 0.05  # the violent frame does not count
    else:
        assert abs(float(found.value[0, 0]) - 1.4) > 0.05


def test_integral_by_importance_sampling_is_that_of_quadrature() -> None:
    problem, start = _curved("student")
    mode = gauss_newton(problem, start, num_steps=40)
    one = type(mode)(mode.value[None], mode.log_density[None], mode.precision[None])
    mixture = mixture_of(one, torch.tensor([[0.0, -3.0]], dtype=torch.float64), problem.prior_mean, problem.prior_scale)
    uniform = torch.rand(4000, 1, mixture.num_slots, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    draw, _ = mixture.sample(uniform)
    weight = problem.log_density(draw[:, 0])[:, None] - mixture.log_prob(draw)
    found = integrate(weight)
    spread = mode.precision[0].inverse().diagonal().sqrt()
    grid = torch.linspace(-12, 12, 241, dtype=torch.float64)
    points = torch.cartesian_prod(grid * spread[0] + mode.value[0, 0], grid * spread[1] + mode.value[0, 1])
    exact = problem.log_density(points).logsumexp(0) + (spread.prod() * 0.01).log()
    assert float(found.log_error) < 0.03
    assert abs(float(found.log_value - exact)) < 4 * float(found.log_error)
    assert float(found.effective) > 1000


def test_mixture_samples_follow_its_density() -> None:
    problem, start = _curved("student")
    mode = gauss_newton(problem, start, num_steps=40)
    apart = torch.stack([mode.value[0], mode.value[0] + 0.2])[None]
    both = type(mode)(apart, torch.zeros(1, 2, dtype=torch.float64), mode.precision[:1].repeat(2, 1, 1)[None])
    mixture = mixture_of(
        both, torch.tensor([[0.0, 1.0]]).double(), problem.prior_mean, problem.prior_scale, prior_share=0.3
    )
    uniform = torch.rand(20000, 1, mixture.num_slots, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw, _ = mixture.sample(uniform)
    other = torch.distributions.MultivariateNormal(torch.zeros(2).double(), 9 * torch.eye(2).double())
    # The mean of p / q over draws of q is 1, for a density p that q covers.
    ratio = (other.log_prob(draw[:, 0]) - mixture.log_prob(draw)[:, 0]).exp()
    assert abs(float(ratio.mean()) - 1) < 4 * float(ratio.std()) / math.sqrt(len(ratio))
    near_first = ((draw[:, 0] - apart[0, 0]).norm(dim=-1) < 0.1).double().mean()
    near_second = ((draw[:, 0] - apart[0, 1]).norm(dim=-1) < 0.1).double().mean()
    assert abs(float(near_second / near_first) - math.e) < 0.25
