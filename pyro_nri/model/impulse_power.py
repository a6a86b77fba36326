"""How far the impulse likelihood is believed, so that its posterior of structures is as sure as it may be."""

import math

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.pair_forces import INTEGRATED

#: A path counts as possibly lost where this power of the share of its frames that are fast is not small.
LOST_EXPONENT = 16
#: Paths that are lost with a smaller probability are not.
RARE = 1e-12
#: Edges that are fast in this share of the frames are known even where the path is lost.
BOUND = 0.5


class ImpulsePower(nn.Module):
    """How far the composite likelihood of a receiver is believed, so that it is as sure as it may be.

    It is raised to a power ``exp(weight @ covariates)``. And where a sender may turn the receiver about within nearly
    every frame (two charges in orbit), its path may have been lost, with probability ``lost * share of fast frames **
    LOST_EXPONENT``: the data then say how these two are linked, and nothing of the receiver's other edges.
    Nor of any edge where strangers, or frames in another order, would be explained as well: that has the probability
    ``chance[0] * exp(chance[1] + chance[2] * explained)``, at most 1. Weights, ``lost`` and ``chance`` of 0, the start,
    leave the likelihood as it is. Fitted by :func:`pyro_nri.learning.calibration.calibrate` and
    :func:`pyro_nri.learning.chance.fit_chance`.

    Messages that are cached, where tables would be too large, know the power alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(5))
        self.register_buffer("lost", torch.zeros(()))
        self.register_buffer("chance", torch.zeros(3))
        self.weight: Tensor
        self.lost: Tensor
        self.chance: Tensor

    def covariates(self, features: ImpulseFeatures) -> Tensor:
        """One, share of frames with integrated paths, log number of frames, their product, any: ``[B, N, 5]``."""
        counted = features.mask.to(features.target.dtype)  # [B, T - 1, N]
        number = counted.sum(1).clamp(min=1)
        share = torch.zeros_like(number)
        if features.context.shape[-1] > INTEGRATED:
            share = (features.context[..., INTEGRATED] * counted).sum(1) / number
        length = (number / 48).log()  # against the 49 frames of NRI's protocol
        return torch.stack([torch.ones_like(share), share, length, share * length, (share > 0).to(share)], -1)

    def forward(self, features: ImpulseFeatures) -> Tensor:
        """Power of each receiver's log-likelihood, ``[B, N]``."""
        return power_of(self.covariates(features), self.weight.to(features.target.dtype))

    def believed(self, table: Tensor, features: ImpulseFeatures) -> Tensor:
        """Log-likelihoods of all codes as far as they are believed, ``[B, N, K ** (N - 1)]``."""
        return believed_table(
            table,
            self.covariates(features).to(table),
            self.weight.to(table),
            self.lost.to(table),
            fast=features.fast_share,
            chance=self.chance.to(table),
            log_volume=volume_of(features).to(table),
        )


def power_of(covariates: Tensor, weight: Tensor) -> Tensor:
    """See :class:`ImpulsePower`: ``[B, N]`` from covariates ``[B, N, 5]`` and their weights ``[5]``."""
    return (covariates @ weight).clamp(-5, 5).exp()


def believed_table(
    table: Tensor,
    covariates: Tensor,
    weight: Tensor,
    lost: Tensor,
    *,
    fast: Tensor | None = None,
    chance: Tensor | None = None,
    log_volume: Tensor | float = 0.0,
) -> Tensor:
    """See :class:`ImpulsePower`; differentiable in the weights ``[5]`` and in the probability ``lost``.

    Args:
        table: log-likelihoods of all codes, ``[B, N, R]``.
        covariates: ``[B, N, 5]``.
        weight: ``[5]``.
        lost: a number from 0 to below 1.
        fast: share of frames in which each sender may turn the receiver about, ``[B, N, N - 1]``; None where none does.
        chance: ``[3]``, or None where nothing is explained by chance.
        log_volume: see :func:`explained`.
    """
    believed = table * power_of(covariates, weight)[..., None]
    if fast is not None:
        is_lost = lost * fast.amax(-1, keepdim=True).to(table) ** LOST_EXPONENT
        some = is_lost.detach().squeeze(-1) > RARE
        mean = log_mean_of_codes(believed[some], fast[some] <= BOUND)
        believed = believed.index_put((some,), _mixed(believed[some], mean, is_lost[some]))
    if chance is not None and chance[0] > 0:
        by_chance = chance[0] * (chance[1] + chance[2] * explained(table, covariates, log_volume)).clamp(max=50).exp()
        mean = believed.logsumexp(-1, keepdim=True) - math.log(table.shape[-1])
        believed = _mixed(believed, mean, by_chance.clamp(max=1 - 1e-9)[..., None])
    return believed


def log_mean_of_codes(table: Tensor, over: Tensor) -> Tensor:
    """Logarithm of the mean likelihood over all types of some edges, for every code, ``[B, N, R]``.

    Args:
        table: log-likelihoods of all codes, ``[B, N, R]``.
        over: which edges into each receiver, bool ``[B, N, N - 1]``.
    """
    count = over.shape[-1]
    num_types = round(table.shape[-1] ** (1 / count))
    digits = table.unflatten(-1, (num_types,) * count)
    for place in range(count):  # the first sender is the first digit
        mean = digits.logsumexp(place - count, keepdim=True) - math.log(num_types)
        averaged = over[..., place].reshape(*over.shape[:-1], *(1,) * count)
        digits = torch.where(averaged, mean, digits)
    result: Tensor = digits.flatten(-count)
    return result


def _mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Logarithm of ``(1 - share) exp(first) + share exp(second)``; where the share is 0 just the first."""
    possible = share > 1e-30
    share = torch.where(possible, share, torch.full_like(share, 0.5))  # no logarithm of 0, nor its gradient
    return torch.where(possible, torch.logaddexp(first + torch.log1p(-share), second + share.log()), first)


def volume_of(features: ImpulseFeatures) -> Tensor:
    """What mixing adds to the log density of a receiver's path, whatever its edges, ``[B, N]``."""
    return torch.where(features.mask, features.log_volume, 0.0).sum(1)


def explained(table: Tensor, covariates: Tensor, log_volume: Tensor | float = 0.0) -> Tensor:
    """How well a receiver's path is explained: composite log-likelihood a frame, all codes alike, ``[B, N]``.

    Args:
        table: log-likelihoods of all codes, ``[B, N, R]``.
        covariates: see :meth:`ImpulsePower.covariates`, ``[B, N, 5]``.
        log_volume: from :func:`volume_of`, ``[B, N]``.
    """
    return (table.logsumexp(-1) - math.log(table.shape[-1]) + log_volume) / (48 * covariates[..., 2].exp())
