"""Proposals around known modes: mixtures of Student-t bumps, and integrals by importance sampling from them."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.gauss_newton import Mode
from pyro_nri.inference.streams import normals

#: Degrees of freedom of the bumps: their tails are heavier than those of the posterior.
FREEDOM = 4


class LaplaceMixture(NamedTuple):
    """For each of B problems a mixture of M Student-t distributions over P numbers, and the normal prior as one more.

    Attributes:
        centre: ``[B, M, P]``.
        root: Cholesky factor of each precision, lower, ``[B, M, P, P]``.
        log_weight: of each bump, ``[B, M]``, -inf for none; with ``prior_share`` they sum to 1.
        prior_mean: ``[P]``.
        prior_scale: ``[P]``.
        prior_share: weight of the prior, ``[B]``, in (0, 1]: no region that the prior knows is ever left out.
    """

    centre: Tensor
    root: Tensor
    log_weight: Tensor
    prior_mean: Tensor
    prior_scale: Tensor
    prior_share: Tensor

    @property
    def num_slots(self) -> int:
        """Uniform numbers that a draw needs."""
        return 3 + 2 * self.centre.shape[-1]

    def log_prob(self, value: Tensor, possible: Tensor | None = None, log_prior: Tensor | float = 0.0) -> Tensor:
        """Log density of values ``[*batch, B, P]``: ``[*batch, B]``.

        Args:
            value: where.
            possible: which bumps count, bool ``[*batch, B, M]``: those with the same discrete part as the value.
            log_prior: log prior of the discrete part, ``[*batch, B]``.
        """
        size = self.centre.shape[-1]
        apart = value[..., None, :] - self.centre  # [*batch, B, M, P]
        standard = torch.einsum("bmqp,...bmq->...bmp", self.root, apart)
        constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2) - size / 2 * math.log(FREEDOM * math.pi)
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        bump = constant + log_det - (FREEDOM + size) / 2 * torch.log1p(standard.square().sum(-1) / FREEDOM)
        bump = bump + self.log_weight
        if possible is not None:
            bump = torch.where(possible, bump, -torch.inf)
        normal = torch.distributions.Normal(self.prior_mean, self.prior_scale, validate_args=False)
        prior = normal.log_prob(value).sum(-1) + self.prior_share.log() + log_prior
        return torch.cat([bump, prior[..., None]], -1).logsumexp(-1)

    def sample(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Turn uniform numbers into draws.

        Args:
            uniform: ``[*batch, B, num_slots]``.

        Returns:
            Values ``[*batch, B, P]`` and the numbers of their bumps, long ``[*batch, B]``; M is the prior.
        """
        size, num_bumps = self.centre.shape[-1], self.centre.shape[-2]
        choose, uniform = uniform[..., 0], uniform[..., 1:]
        cumulative = self.log_weight.exp().cumsum(-1)  # [B, M]
        bump = (choose[..., None] >= cumulative).sum(-1)  # M: the prior
        chosen = bump.clamp(max=num_bumps - 1)
        problem = torch.arange(len(self.centre), device=uniform.device)
        normal = normals(uniform[..., : 2 * size])
        # Two more make a chi-square variable of four degrees of freedom.
        weight = -2 * torch.log1p(-uniform[..., 2 * size :]).sum(-1) / FREEDOM
        root = self.root[problem, chosen]  # [*batch, B, P, P]
        step = torch.linalg.solve_triangular(root.mT, normal[..., None], upper=True).squeeze(-1)
        near = self.centre[problem, chosen] + step / weight.sqrt()[..., None]
        far = self.prior_mean + self.prior_scale * normal
        return torch.where((bump == num_bumps)[..., None], far, near), bump


def mixture_of(
    mode: Mode, log_weight: Tensor, prior_mean: Tensor, prior_scale: Tensor, prior_share: Tensor | float = 0.05
) -> LaplaceMixture:
    """The mixture of modes that a search found.

    Args:
        mode: values ``[B, M, P]``, log densities ``[B, M]``, precisions ``[B, M, P, P]``.
        log_weight: of each mode, up to a constant for each problem, ``[B, M]``; -inf leaves a mode out.
        prior_mean: ``[P]``.
        prior_scale: ``[P]``.
        prior_share: weight of the prior, in all problems or ``[B]``; 1 where a problem has no mode.
    """
    root, failed = torch.linalg.cholesky_ex(mode.precision)
    weight = torch.where((failed == 0) & mode.log_density.isfinite(), log_weight, -torch.inf)
    identity = torch.diag(1 / prior_scale).expand_as(root)
    root = torch.where((failed == 0)[..., None, None], root, identity)
    share = torch.as_tensor(prior_share, dtype=weight.dtype).expand(weight.shape[:1])
    share = torch.where(weight.isfinite().any(-1), share, torch.ones_like(share))
    weight = weight - weight.logsumexp(-1, keepdim=True).clamp(min=-1e300)
    return LaplaceMixture(mode.value, root, weight + torch.log1p(-share)[:, None], prior_mean, prior_scale, share)


class Integral(NamedTuple):
    """An integral by importance sampling.

    Attributes:
        log_value: ``[B]``.
        log_error: standard error of ``log_value``, ``[B]``.
        effective: effective number of the S draws, ``[B]``.
    """

    log_value: Tensor
    log_error: Tensor
    effective: Tensor


def integrate(log_weight: Tensor) -> Integral:
    """Log integral from log importance weights ``[S, B]`` (log density minus log proposal)."""
    number = len(log_weight)
    log_value = log_weight.logsumexp(0) - math.log(number)
    share = log_weight.softmax(0)
    effective = 1 / share.square().sum(0)
    relative = (number * share - 1).square().sum(0) / max(number - 1, 1) / number
    return Integral(log_value, relative.sqrt(), effective)
