"""Draws of the paths of hidden entities of which every frame lies near what the laws make of the one before.

Draws are those of a Gibbs sampler: Student-t noise is a scale mixture, and given the precisions of all frames the path
is nearly normal, so that a draw from the normal distribution that is linearised at the mode is nearly always accepted
(Carter & Kohn 1994, "On Gibbs sampling for state space models", with Metropolis's correction).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.block_tridiagonal import colour, factorise, solve, whiten
from pyro_nri.inference.hidden_smoothing import normal_equations
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden_motion import HiddenMotion

#: Draws of each chain before the first that counts; after each of the first rounds the proposal is made anew.
NUM_WARMUP, NUM_ROUNDS = 12, 3


class SmoothedPaths(NamedTuple):
    """Draws of paths.

    Attributes:
        path: ``[C, S, R, T, N_hidden, D]``, scaled units.
        log_density: of recorded frames and paths, ``[C, S, R]``.
        accepted: bool ``[C, S, R]``.
    """

    path: Tensor
    log_density: Tensor
    accepted: Tensor


def draw_paths(motion: HiddenMotion, mode: Tensor, stream: Stream, *, num_draws: int) -> SmoothedPaths:
    """Draw paths given structures.

    Args:
        motion: of R rows.
        mode: where to start, ``[R, T, N_hidden, D]``, scaled units.
        stream: of C chains, R keys.
        num_draws: S.
    """
    shape = mode.shape
    near = motion.linearise(mode)
    path = mode.expand(stream.num_chains, *shape)
    residual, context = motion.residual(path)
    paths, densities, accepts = [], [], []
    for step in range(NUM_WARMUP + num_draws):
        if 0 < step < NUM_WARMUP and step % (NUM_WARMUP // NUM_ROUNDS) == 0:
            # Any state will do for a proposal: that of the best chain, warm-up only.
            best = motion.log_density(path).argmax(0)
            near = motion.linearise(path[best, torch.arange(len(best))])
        size, slots = path[0, 0].numel(), _num_slots(motion, residual)
        uniform = stream.child("smoothed paths").uniform(step, 2 * size + slots + 1)
        weight = _mixture_draw(motion, residual, context, uniform[..., 2 * size : -1])
        # Precisions belong to the scales at the present path; the proposal has those of the path it was made at.
        slope, diagonal, above = normal_equations(near, near.unit * weight)
        factor = factorise(diagonal, above)
        mean = solve(factor, slope)
        white = normals(uniform[..., : 2 * size]).view(*mean.shape)
        proposed = near.path + (mean + colour(factor, white)).view_as(path)
        new_residual, new_context = motion.residual(proposed)
        back = whiten(factor, (path - near.path).flatten(-2) - mean)
        ratio = _log_normal(motion, proposed, new_residual, new_context, weight)
        ratio = ratio - _log_normal(motion, path, residual, context, weight)
        ratio = ratio + (white.square().sum((-1, -2)) - back.square().sum((-1, -2))) / 2
        accept = (uniform[..., -1].log() < ratio) & ~factor.failed
        chosen = accept[..., None, None, None]
        path, residual = torch.where(chosen, proposed, path), torch.where(chosen, new_residual, residual)
        if context is not None and new_context is not None:
            context = torch.where(chosen, new_context, context)
        if step >= NUM_WARMUP:
            paths.append(path)
            densities.append(motion.log_density_of(path, residual, context))
            accepts.append(accept)
    return SmoothedPaths(torch.stack(paths, 1), torch.stack(densities, 1), torch.stack(accepts, 1))


def _num_slots(motion: HiddenMotion, residual: Tensor) -> int:
    """Uniform numbers that :func:`_mixture_draw` needs for each row."""
    shape = motion.noise.mixture_shape(residual.shape[-1])
    if shape is None:
        return 0
    num_exponentials, is_odd = divmod(round(2 * shape), 2)
    count = residual[0, 0, ..., 0].numel() * (1 if motion.noise.uses_context else residual.shape[-1])
    return count * (num_exponentials + 2 * is_odd)


def _mixture_draw(motion: HiddenMotion, residual: Tensor, context: Tensor | None, uniform: Tensor) -> Tensor:
    """Draw precisions given residuals, relative to those of the unit scale, of the residuals' shape."""
    shape = motion.noise.mixture_shape(residual.shape[-1])
    if shape is None:
        return torch.ones_like(residual)
    num_exponentials, is_odd = divmod(round(2 * shape), 2)
    together = motion.noise.uses_context
    wanted = residual.shape[:-1] if together else residual.shape
    each = uniform.unflatten(-1, (*wanted[2:], -1))
    gamma = -torch.log1p(-each[..., :num_exponentials]).sum(-1)
    if is_odd:
        gamma = gamma + normals(each[..., num_exponentials:]).squeeze(-1).square() / 2
    mean = motion.noise.precision(residual, context) / motion.noise.precision(torch.zeros_like(residual), context)
    unit = motion.unit_share(residual.shape[-1])
    gamma = gamma / shape
    return mean / unit * (gamma[..., None] if together else gamma)


def _log_normal(motion: HiddenMotion, path: Tensor, residual: Tensor, context: Tensor | None, weight: Tensor) -> Tensor:
    """Log density of residuals and first frame given the relative precisions, up to a constant: ``[*batch, R]``."""
    precision = motion.unit_precision(residual, context)
    counts = precision > 0
    log_scale = torch.where(counts, precision, 1.0).log() / 2
    total = (log_scale - torch.where(counts, precision * weight * residual.square(), 0.0) / 2).sum((-1, -2, -3))
    total = total + motion.log_start(path)
    return torch.where(total.isfinite(), total, torch.full_like(total, -torch.inf))
