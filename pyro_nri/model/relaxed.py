"""Structures whose types may be mixed: where a likelihood is linear in them, a normal distribution close to it.

A receiver whose senders are many cannot try all their types. If each sender could exert any weighted mean of its types,
the weights would follow from least squares; their covariance says which combinations data leave open.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.model.noise import AbstractNoise

#: Rounds of re-weighted least squares.
NUM_ROUNDS = 12


class Relaxed(NamedTuple):
    """Weights of the types 1 to K - 1 of each sender as a normal distribution; F = K - 1, type 0 has the rest.

    Attributes:
        mean: ``[G, N, N - 1, F]``, receivers first, their senders ascending.
        precision: inverse covariance, ``[G, N, N - 1, F, N - 1, F]``.
    """

    mean: Tensor
    precision: Tensor

    def types(self) -> Tensor:
        """The type of largest weight of each sender, long ``[G, N, N - 1]``."""
        return torch.cat([1 - self.mean.sum(-1, keepdim=True), self.mean], -1).argmax(-1)


def relax(
    impulses: Tensor, features: ImpulseFeatures, noise: AbstractNoise, group_index: Tensor | None = None
) -> Relaxed:
    """Robust least squares for the weights of types.

    It begins with plain least squares and goes step by step towards the typical residual, as robust noise alone has
    many optima. Before data the weights have the mean and the covariance of a type that is drawn with equal
    probabilities.

    Args:
        impulses: ``[B, T - 1, N, N - 1, K, S]``.
        features: of the same scenes.
        noise: of the impulses.
        group_index: group of each scene, long ``[B]``; each its own by default.
    """
    num_senders, num_free = impulses.shape[3], impulses.shape[4] - 1
    if group_index is None:
        group_index = torch.arange(len(impulses), device=impulses.device)
    num_groups = int(group_index.max()) + 1
    base = impulses[..., :1, :]
    change = (impulses[..., 1:, :] - base).flatten(-3, -2)  # [B, T - 1, N, (N - 1) F, S]
    target = features.target - base.squeeze(-2).sum(-2)
    context = features.context if noise.uses_context else None
    prior, share = _before_data(num_senders, num_free)
    prior = prior.to(change)
    counted = features.mask[..., None].to(target)  # [B, T - 1, N, 1]
    num_rows = (counted.sum((1, 3)) * target.shape[-1]).clamp(min=1)  # [B, N]
    excess = (1 - num_senders * num_free / num_rows).clamp(min=0.05)[:, None, :, None]  # residuals of a fit are smaller
    size = (counted * target.square()).sum((1, 3)) / num_rows  # of each receiver alone, whatever scenes are beside it
    precision = counted.expand_as(target) / size.clamp(min=1e-300)[:, None, :, None]
    for _ in range(NUM_ROUNDS):
        weighted = change * precision[..., None, :]
        gram = torch.einsum("btnas,btncs->bnac", weighted, change)
        linear = torch.einsum("btnas,btns->bna", weighted, target)
        gram = gram.new_zeros(num_groups, *gram.shape[1:]).index_add(0, group_index, gram) + prior
        linear = linear.new_zeros(num_groups, *linear.shape[1:]).index_add(0, group_index, linear)
        scale = gram.diagonal(dim1=-2, dim2=-1).rsqrt()  # information varies over many orders of magnitude
        right = scale * (linear + prior.sum(-1) * share)
        mean = scale * torch.linalg.solve(gram * scale[..., None] * scale[..., None, :], right)
        residual = target - torch.einsum("btnas,bna->btns", change, mean[group_index])
        square = residual.square().sum(-1, keepdim=True) / excess
        typical = torch.where(features.mask[..., None], square, torch.nan).nanmedian(1, keepdim=True).values
        own = noise.precision(torch.zeros_like(residual), context)  # no frame is better than its noise
        precision = counted / ((typical.nan_to_num(nan=1.0) + square) / target.shape[-1] + 1 / own)
    shape = (num_senders, num_free)
    return Relaxed(mean.unflatten(-1, shape), gram.unflatten(-1, shape).unflatten(-3, shape))


def pooled(parts: Relaxed, group_index: Tensor) -> Relaxed:
    """Weights of groups of scenes that share a structure, from those of single scenes: what their data say adds up.

    Args:
        parts: of B scenes.
        group_index: group of each scene, long ``[B]``.
    """
    num_groups = int(group_index.max()) + 1
    if num_groups == len(group_index):
        order = group_index.argsort()
        return Relaxed(parts.mean[order], parts.precision[order])
    shape = parts.mean.shape[-2:]
    prior, share = _before_data(*shape)
    prior, own = prior.to(parts.mean), parts.precision.flatten(-2).flatten(-3, -2)
    start = (prior.sum(-1) * share).expand(num_groups, parts.mean.shape[1], -1)
    linear = torch.einsum("bnac,bnc->bna", own, parts.mean.flatten(-2)) - start[0]
    total = prior.expand(*start.shape, -1).index_add(0, group_index, own - prior)
    scale = total.diagonal(dim1=-2, dim2=-1).rsqrt()
    right = scale * start.index_add(0, group_index, linear)
    mean = scale * torch.linalg.solve(total * scale[..., None] * scale[..., None, :], right)
    return Relaxed(mean.unflatten(-1, shape), total.unflatten(-1, shape).unflatten(-3, shape))


def _before_data(num_senders: int, num_free: int) -> tuple[Tensor, float]:
    """Precision ``[(N - 1) F, (N - 1) F]`` and mean of the weights where types are drawn with equal probabilities."""
    share = 1 / (num_free + 1)
    block = torch.linalg.inv(share * torch.eye(num_free, dtype=torch.float64) - share**2)
    return torch.block_diag(*[block] * num_senders), share
