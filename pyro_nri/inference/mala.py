"""Metropolis steps for a few continuous numbers: Langevin moves with a fixed metric, and independent proposals.

Pure functions over rows ``[C, B, P]``; the file knows neither Pyro nor the model. Metric, step size and proposal are
given and stay as they are, so that both steps leave the density as it is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.laplace import LaplaceMixture

#: Log density of values ``[C, B, P]``: ``[C, B]``, differentiable; -inf where there is none.
Density = Callable[[Tensor], Tensor]


class State(NamedTuple):
    """What the next step needs.

    Attributes:
        value: ``[C, B, P]``.
        log_density: ``[C, B]``.
    """

    value: Tensor
    log_density: Tensor


class Info(NamedTuple):
    """What a person may want to know of a step.

    Attributes:
        accepted: bool ``[C, B]``.
        log_accept: log acceptance probability, at most 0, ``[C, B]``.
    """

    accepted: Tensor
    log_accept: Tensor


def init(value: Tensor, density: Density) -> State:
    """State at given values."""
    with torch.no_grad():
        return State(value, density(value))


def gradient(value: Tensor, density: Density) -> tuple[Tensor, Tensor]:
    """Log density ``[C, B]`` and its gradient ``[C, B, P]``, 0 where it is not finite."""
    with torch.enable_grad():
        leaf = value.detach().requires_grad_()
        log_density = density(leaf)
        (slope,) = torch.autograd.grad(log_density.sum(), leaf)
    return log_density.detach(), torch.nan_to_num(slope, 0.0, 0.0, 0.0)


def langevin_step(
    state: State, uniform: Tensor, density: Density, root: Tensor, step_size: Tensor
) -> tuple[State, Info]:
    """A Metropolis-adjusted Langevin step (Roberts and Tweedie 1996).

    With the metric ``root @ root.T``, an inverse covariance: ``x' = x + e² / 2 cov gradient(x) + e root^-T normal``.

    Args:
        state: where the chains are.
        uniform: ``[C, B, 1 + 2 P]`` in [0, 1).
        density: what is sampled.
        root: lower Cholesky factor of the inverse covariance, ``[B, P, P]``.
        step_size: e, ``[B]``.
    """
    size = state.value.shape[-1]
    normal = _normal(uniform[..., 1 : 1 + size], uniform[..., 1 + size :])
    epsilon = step_size[:, None]
    mean = _mean(state.value, gradient(state.value, density)[1], root, epsilon)
    proposed = mean + epsilon * _solve(root.mT, normal, upper=True)
    log_density, slope = gradient(proposed, density)
    new = State(proposed, log_density)
    back = torch.einsum("bpq,cbp->cbq", root, state.value - _mean(proposed, slope, root, epsilon)) / epsilon
    log_reverse, log_forward = -back.square().sum(-1) / 2, -normal.square().sum(-1) / 2
    return _choose(state, new, uniform[..., 0], new.log_density - state.log_density + log_reverse - log_forward)


def independent_step(state: State, uniform: Tensor, density: Density, proposal: LaplaceMixture) -> tuple[State, Info]:
    """A Metropolis step whose proposal does not look at the current value.

    Args:
        state: where the chains are.
        uniform: ``[C, B, 1 + proposal.num_slots]`` in [0, 1).
        density: what is sampled.
        proposal: over B problems.
    """
    new = init(proposal.sample(uniform[..., 1:])[0], density)
    log_ratio = new.log_density - state.log_density + proposal.log_prob(state.value) - proposal.log_prob(new.value)
    return _choose(state, new, uniform[..., 0], log_ratio)


def _mean(value: Tensor, slope: Tensor, root: Tensor, epsilon: Tensor) -> Tensor:
    return value + epsilon**2 / 2 * _solve(root.mT, _solve(root, slope, upper=False), upper=True)


def _solve(factor: Tensor, right: Tensor, *, upper: bool) -> Tensor:
    """``factor^-1 right`` for triangular factors ``[B, P, P]`` and vectors ``[C, B, P]``."""
    solved: Tensor = torch.linalg.solve_triangular(factor, right.permute(1, 2, 0), upper=upper)
    return solved.permute(2, 0, 1)


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Standard normal numbers from two uniform ones each (Box and Muller)."""
    return (-2 * torch.log1p(-first)).sqrt() * (2 * math.pi * second).cos()


def _choose(old: State, new: State, uniform: Tensor, log_ratio: Tensor) -> tuple[State, Info]:
    log_accept = torch.where(log_ratio.isnan(), -torch.inf, log_ratio).clamp(max=0)
    accepted = uniform.log() < log_accept
    state = State(
        *(
            torch.where(accepted.reshape(accepted.shape + (1,) * (b.ndim - accepted.ndim)), b, a)
            for a, b in zip(old, new, strict=True)
        )
    )
    return state, Info(accepted, log_accept)
