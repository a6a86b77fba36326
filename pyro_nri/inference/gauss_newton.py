"""Modes of posteriors over a few numbers, by damped least squares: many problems and many starts side by side.

A residual that depends smoothly on P numbers, noise that says how much each residual weighs, a normal prior. The
weights are taken anew at each step, so heavy-tailed noise is iteratively reweighted least squares; the damping is that
of Levenberg and Marquardt, one for each row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Damping of the first step, and its bounds, relative to the diagonal of the normal equations.
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-3, 1e-12, 1e8


@dataclass(frozen=True)
class LeastSquares:
    """A log density of R rows of P numbers each; rows do not depend on one another.

    Attributes:
        residuals: from values ``[R, P]`` to residuals ``[R, M]``, differentiable, in forward mode too.
        log_likelihood: from residuals ``[R, M]`` to ``[R]``.
        precision: weight of each residual, ``-(d log_likelihood / d residual) / residual``, from ``[R, M]`` to
            ``[R, M]``; 0 where it does not count.
        prior_mean: ``[P]`` or ``[R, P]``.
        prior_scale: standard deviations, the same shape.
        difference: take derivatives by differences of this size, for residuals that admit leading axes
            (``[*, R, P]`` to ``[*, R, M]``) and are long chains of small operations; 0: by forward differentiation.
    """

    residuals: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor], Tensor]
    precision: Callable[[Tensor], Tensor]
    prior_mean: Tensor
    prior_scale: Tensor
    difference: float = 0.0

    def log_prior(self, value: Tensor) -> Tensor:
        """Log density of the normal prior, ``[R]``."""
        normal = torch.distributions.Normal(self.prior_mean, self.prior_scale, validate_args=False)
        total: Tensor = normal.log_prob(value).sum(-1)
        return total

    def jacobian(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals ``[R, M]`` at values ``[R, P]`` and their derivatives ``[R, M, P]``."""
        if self.difference == 0:
            return jacobian(self.residuals, value)
        steps = self.difference * torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
        steps = torch.cat([torch.zeros_like(steps[:1]), steps])
        every = self.residuals(value + steps[:, None])  # [P + 1, R, M]
        return every[0], ((every[1:] - every[0]) / self.difference).movedim(0, -1)

    def log_density(self, value: Tensor) -> Tensor:
        """Log prior plus log-likelihood of values ``[R, P]``: ``[R]``; -inf where it is not finite."""
        total = self.log_prior(value) + self.log_likelihood(self.residuals(value))
        return torch.where(total.isfinite(), total, torch.full_like(total, -torch.inf))


class Mode(NamedTuple):
    """Where a search ended.

    Attributes:
        value: ``[R, P]``.
        log_density: ``[R]``.
        precision: curvature of the log density there after Gauss and Newton, ``[R, P, P]``: the inverse covariance of
            the Laplace approximation.
    """

    value: Tensor
    log_density: Tensor
    precision: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """Laplace's approximation of the log integral of the density, ``[R]``; -inf where it fails."""
        root, failed = torch.linalg.cholesky_ex(self.precision)
        half_log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        half_log_turn = self.value.shape[-1] / 2 * torch.log(self.value.new_tensor(2 * torch.pi))
        total = self.log_density + half_log_turn - half_log_det
        return torch.where((failed == 0) & total.isfinite(), total, torch.full_like(total, -torch.inf))


def jacobian(function: Callable[[Tensor], Tensor], value: Tensor) -> tuple[Tensor, Tensor]:
    """A function of rows and its derivatives.

    Args:
        function: from ``[R, P]`` to ``[R, M]``, row by row.
        value: ``[R, P]``.

    Returns:
        The function's values ``[R, M]`` and Jacobians ``[R, M, P]``, by forward differentiation.
    """
    basis = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        found: Any = torch.func.jvp(function, (value,), (direction.expand_as(value),))
        return found[0], found[1]

    results, columns = torch.func.vmap(along, out_dims=(0, -1))(basis)
    return results[0], columns


def gauss_newton(problem: LeastSquares, start: Tensor, *, num_steps: int = 12) -> Mode:
    """Climb to a mode from each start.

    A step that would lower a row's log density is not taken, and the row's damping grows.

    Args:
        problem: log density of R rows.
        start: ``[R, P]``.
        num_steps: Jacobians to compute for each row.

    Returns:
        The best value of each row.
    """
    value = start
    density = problem.log_density(value)
    damping = torch.full_like(density, FIRST_DAMPING)
    for _ in range(num_steps):
        slope, normal = _normal_equations(problem, value)
        diagonal = normal.diagonal(dim1=-2, dim2=-1)
        damped = normal + torch.diag_embed(damping[:, None] * diagonal)
        change = torch.linalg.solve_ex(damped, slope[..., None])[0].squeeze(-1)
        tried = value + torch.where(change.isfinite(), change, torch.zeros_like(change))
        new = problem.log_density(tried)
        better = new >= density
        value = torch.where(better[:, None], tried, value)
        density = torch.where(better, new, density)
        damping = torch.where(better, damping / 10, damping * 10).clamp(LEAST_DAMPING, MOST_DAMPING)
    return Mode(value, density, _normal_equations(problem, value)[1])


def _normal_equations(problem: LeastSquares, value: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of the log density ``[R, P]``, Gauss-Newton curvature ``[R, P, P]``."""
    residual, derivative = problem.jacobian(value)
    finite = derivative.isfinite().all(-1) & residual.isfinite()
    weight = torch.where(finite, problem.precision(residual), torch.zeros_like(residual))
    derivative = torch.where(finite[..., None], derivative, torch.zeros_like(derivative))
    residual = torch.where(finite, residual, torch.zeros_like(residual))
    weighted = derivative * weight[..., None]  # [R, M, P]
    prior = problem.prior_scale.pow(-2).expand_as(value)
    slope = -torch.einsum("rmp,rm->rp", weighted, residual) + (problem.prior_mean - value) * prior
    normal = torch.einsum("rmp,rmq->rpq", weighted, derivative) + torch.diag_embed(prior)
    return slope, normal
