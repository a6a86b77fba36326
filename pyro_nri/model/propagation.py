"""Types of many senders at once by expectation propagation: guesses where no list of structures could be gone through.

Where a likelihood is linear in the types, the edges into a receiver are an integer least squares problem. With many
senders its columns are nearly dependent, and plain least squares spreads what a few senders do over all of them. That
each weight is 0 or 1 is what settles it: expectation propagation (Minka 2001) puts a normal distribution in the place
of each sender's choice, with the mean and the variance that the choice has given all others; for such problems it is
near the optimum (Céspedes, Olmos, Sánchez-Fernández & Perez-Cruz 2014, "Expectation propagation detection for
high-order high-dimensional MIMO systems"). Errors start out so wide that nothing is decided, and shrink.

What comes out is a guess: moves that propose it are accepted or not by the likelihood itself.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.receivers import chunk_size

#: Rounds in which errors shrink, and rounds after.
NUM_SHRINKING, NUM_MORE = 80, 30
#: Square of the errors at the end, in those of the noise: a guess is rough.
LAST = 4.0
#: Share of each round's result that is taken.
DAMPING = 0.5
#: Least variance of a choice.
LEAST_VARIANCE = 1e-6
#: What is added to correlations, so that senders that do the same do not make them singular.
JITTER = 1e-13
#: Shares that a common type is given where equal ones do not lead to a structure that explains the motion.
COMMON = (0.8, 0.95)
#: A structure explains the motion if it is as likely as if all errors were so many times the scale of the noise.
ENOUGH = 3.0
#: Share of equal probabilities in the guesses for receivers whose motion none explained.
UNEXPLAINED = 0.02


def propagate(
    impulses: Tensor,
    features: ImpulseFeatures,
    noise: AbstractNoise,
    group_index: Tensor,
    score: Callable[[Tensor], Tensor],
    enough: Tensor,
) -> Tensor:
    """Probabilities of the types of each edge, from the starts that explain the motion of each receiver best.

    Args:
        impulses: ``[B, T - 1, N, N - 1, K, S]``.
        features: of the same scenes.
        noise: of the impulses.
        group_index: group of each scene, long ``[B]``.
        score: log-likelihood ``[G, N]`` of each receiver under types of its incoming edges, long ``[G, N, N - 1]``.
        enough: receivers with a log-likelihood above it, ``[G, N]``, are not tried again.

    Returns:
        ``[G, N, N - 1, K]``, receivers first, their senders ascending.
    """
    _, _, num_entities, num_senders, num_types, _ = impulses.shape
    num_groups, device = len(enough), impulses.device
    result = impulses.new_full((num_groups, num_entities, num_senders, num_types), 1 / num_types)
    best = impulses.new_full((num_groups, num_entities), -torch.inf)
    most = int(group_index.bincount().max())  # recordings of one structure
    floats = impulses[0, :, 0].numel() + (num_senders * (num_types - 1)) ** 2 * 8  # of a receiver in one of them
    size = chunk_size(floats * most, device)
    for is_robust, share in _starts(num_types):
        left = (best < enough).nonzero()  # [O, 2]: group and receiver
        if len(left) == 0:
            break
        found = []
        for part in left.split(size):
            number = torch.full_like(best, -1, dtype=torch.long)
            number[part[:, 0], part[:, 1]] = torch.arange(len(part), device=device)
            owner = number[group_index]  # [B, N]
            scene, receiver = (owner >= 0).nonzero().unbind(-1)
            design, right = _rows(impulses, features, noise, scene, receiver)
            each = _propagate(design, right, owner[scene, receiver], len(part), share.to(right), is_robust=is_robust)
            found.append(each)
        each, group, receiver = torch.cat(found), *left.unbind(-1)
        types = result.argmax(-1)
        types[group, receiver] = each.argmax(-1)
        value = score(types)[group, receiver].to(best)
        better = value > best[group, receiver]
        result[group[better], receiver[better]] = each[better].to(result)
        best[group[better], receiver[better]] = value[better]
    blurred = (1 - UNEXPLAINED) * result + UNEXPLAINED / num_types
    return torch.where((best < enough)[..., None, None], blurred, result)


def _starts(num_types: int) -> list[tuple[bool, Tensor]]:
    """Whether large errors weigh less, and how frequent the types are: equally, or one of them common."""
    equal = torch.full((num_types,), 1 / num_types, dtype=torch.float64)
    every = [equal]
    for share in COMMON:
        for common in range(num_types):
            other = torch.full_like(equal, (1 - share) / (num_types - 1))
            other[common] = share
            every.append(other)
    return [(is_robust, share) for share in every for is_robust in (False, True)]


def _rows(
    impulses: Tensor, features: ImpulseFeatures, noise: AbstractNoise, scene: Tensor, receiver: Tensor
) -> tuple[Tensor, Tensor]:
    """Least squares of R scenes and receivers in units of the noise: ``[R, Q, M]``, M = (N - 1) F, and ``[R, Q]``."""
    own = impulses[scene, :, receiver]  # [R, T - 1, N - 1, K, S]
    base = own[..., :1, :]
    change = (own[..., 1:, :] - base).flatten(2, 3)  # [R, T - 1, M, S]
    target = features.target[scene, :, receiver] - base.squeeze(-2).sum(-2)
    context = features.context[scene, :, receiver] if noise.uses_context else None
    precision = noise.precision(torch.zeros_like(target), context) * features.mask[scene, :, receiver, None]
    root = precision.sqrt()
    design = (change * root[:, :, None]).movedim(-1, 2).flatten(1, 2)
    return design, (target * root).flatten(1)


def _propagate(design: Tensor, right: Tensor, owner: Tensor, number: int, share: Tensor, *, is_robust: bool) -> Tensor:
    """Probabilities of types ``[O, N - 1, K]`` of ``number`` = O receivers, each the owner of one or more rows."""
    num_types = len(share)
    free = num_types - 1
    identity = torch.eye(free, dtype=share.dtype, device=share.device)
    vertex = torch.cat([torch.zeros_like(identity[:1]), identity])  # weights of each type, [K, F]
    num_senders = design.shape[-1] // free
    before = torch.linalg.inv(share[1:].diag() - share[1:, None] * share[1:])
    site = before.expand(number, num_senders, free, free)
    pull = (before @ share[1:]).expand(number, num_senders, free)

    def system(weight: Tensor | None) -> tuple[Tensor, Tensor]:
        weighted = design if weight is None else design * weight[..., None]
        gram = design.new_zeros(number, *design.shape[-1:] * 2).index_add(0, owner, weighted.mT @ design)
        linear = design.new_zeros(number, design.shape[-1]).index_add(
            0, owner, (weighted.mT @ right[..., None])[..., 0]
        )
        return gram, linear

    gram, linear = system(None)
    top = gram.diagonal(dim1=-2, dim2=-1).amax(-1).clamp(min=LAST)  # errors that hide every sender
    steps = [*torch.linspace(0, 1, NUM_SHRINKING).tolist(), *[1.0] * NUM_MORE]
    probability = share.expand(number, num_senders, num_types)
    for step in steps:
        square = top ** (1 - step) * LAST**step  # of the errors, [O]
        total = gram / square[:, None, None] + _on_diagonal(site)
        scale = total.diagonal(dim1=-2, dim2=-1).rsqrt()
        correlation = total * scale[..., None] * scale[..., None, :]
        factor = torch.linalg.cholesky_ex(correlation + JITTER * torch.eye(correlation.shape[-1]).to(correlation)).L
        sound_factor = torch.where(factor.diagonal(dim1=-2, dim2=-1).gt(0).all(-1)[:, None, None], factor, torch.nan)
        covariance = torch.cholesky_inverse(sound_factor) * scale[..., None] * scale[..., None, :]
        mean = (covariance @ (linear / square[:, None] + pull.flatten(1))[..., None])[..., 0]
        if is_robust:
            error = (right - (design @ mean[owner][..., None])[..., 0]).square()
            error = error + ((design @ covariance[owner]) * design).sum(-1)
            wide = 3 * square[owner][:, None] + error.median(-1, keepdim=True).values
            gram, linear = system(wide / (wide + error))
        blocks = covariance.unflatten(-1, (num_senders, free)).unflatten(-3, (num_senders, free))
        own = torch.linalg.inv_ex(blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)).inverse  # [O, N - 1, F, F]
        cavity = _positive(own - site)
        aim = (own @ mean.unflatten(-1, (num_senders, free))[..., None])[..., 0] - pull  # cavity precision times mean
        # Up to a constant: what all others say of each vertex.
        log_odds = (vertex @ aim[..., None])[..., 0] - ((vertex @ cavity) * vertex).sum(-1) / 2
        probability = (share.log() + log_odds).softmax(-1)
        middle = probability[..., 1:]
        spread = middle.diag_embed() - middle[..., None] * middle[..., None, :] + LEAST_VARIANCE * identity
        new_site = torch.linalg.inv_ex(spread).inverse - cavity
        new_pull = torch.linalg.solve_ex(spread, middle).result - aim
        sound = _is_positive(new_site) & new_pull.isfinite().all(-1)
        site = torch.where(sound[..., None, None], DAMPING * new_site + (1 - DAMPING) * site, site)
        pull = torch.where(sound[..., None], DAMPING * new_pull + (1 - DAMPING) * pull, pull)
    return torch.where(probability.isfinite().all(-1, keepdim=True), probability, share)


def _on_diagonal(blocks: Tensor) -> Tensor:
    """Blocks ``[O, n, F, F]`` as block diagonal matrices ``[O, n F, n F]``."""
    return blocks.movedim(1, -1).diag_embed(dim1=1, dim2=3).flatten(3, 4).flatten(1, 2)


def _positive(matrix: Tensor) -> Tensor:
    """The nearest matrices ``[*batch, F, F]`` that are positive definite, beyond rounding."""
    if matrix.shape[-1] == 1:
        return matrix.clamp(min=1e-12)
    value, vector = torch.linalg.eigh(torch.where(matrix.isfinite(), matrix, 0.0))
    nearest: Tensor = (vector * value.clamp(min=1e-12)[..., None, :]) @ vector.mT
    return nearest


def _is_positive(matrix: Tensor) -> Tensor:
    finite = matrix.isfinite().all(-1).all(-1)
    kept = torch.where(finite[..., None, None], matrix, 0.0)
    least: Tensor = kept[..., 0, 0] if matrix.shape[-1] == 1 else torch.linalg.eigvalsh(kept).amin(-1)
    return finite & (least > 0)
