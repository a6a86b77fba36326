"""Draws of the paths of hidden entities of which every frame lies near what the laws make of the one before.

Draws are those of a Gibbs sampler: Student-t noise is a scale mixture, and given the precisions of all frames the path
is nearly normal, so that a draw from the normal distribution that is linearised at the mode is nearly always accepted
(Carter & Kohn 1994, "On Gibbs sampling for state space models", with Metropolis's correction).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.block_tridiagonal import Factor, colour, factorise, solve, whiten
from pyro_nri.inference.hidden_smoothing import normal_equations
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden_motion import HiddenMotion

#: Draws of each chain before the first that counts; after each of the first rounds the proposal is made anew.
NUM_WARMUP, NUM_ROUNDS = 12, 3
#: Frames of a stretch and of the gaps between them, and by how many they are shifted from step to step.
STRETCH_FRAMES, SHIFT = 6, 5
#: Nats by which a transition that has no density is less likely than any other.
IMPOSSIBLE = 1e200


class SmoothedPaths(NamedTuple):
    """Draws of paths.

    Attributes:
        path: ``[C, S, R, T, N_hidden, D]``, scaled units.
        log_density: of recorded frames and paths, ``[C, S, R]``.
        accepted: whether the step changed the path, or a part of it, bool ``[C, S, R]``.
        whole: whether a path was accepted that is new in all frames, bool ``[C, S, R]``.
    """

    path: Tensor
    log_density: Tensor
    accepted: Tensor
    whole: Tensor


class _Now(NamedTuple):
    """Paths ``[C, R, T, N_hidden, D]`` with their residuals and contexts."""

    path: Tensor
    residual: Tensor
    context: Tensor | None


class _Normal(NamedTuple):
    """The normal distribution of paths given precisions, linearised near some of them, ``[R, T, N_hidden, D]``."""

    path: Tensor
    slope: Tensor
    diagonal: Tensor
    above: Tensor


def draw_paths(motion: HiddenMotion, mode: Tensor, stream: Stream, *, num_draws: int) -> SmoothedPaths:
    """Draw paths given structures.

    Each step draws the precisions of all residuals, then the path, then stretches of it given the frames between them:
    where one frame is far from normal the others still move.

    Args:
        motion: of R rows.
        mode: where to start, ``[R, T, N_hidden, D]``, scaled units.
        stream: of C chains, R keys.
        num_draws: S.
    """
    near = motion.linearise(mode)
    path = mode.expand(stream.num_chains, *mode.shape)
    now = _Now(path, *motion.residual(path))
    size, slots = mode[0].numel(), _num_slots(motion, now.residual)
    everything = torch.ones(mode.shape[1], 1, dtype=torch.bool)
    paths, densities, accepts, wholes = [], [], [], []
    for step in range(NUM_WARMUP + num_draws):
        if 0 < step < NUM_WARMUP and step % (NUM_WARMUP // NUM_ROUNDS) == 0:
            # Any state will do for a proposal: that of the best chain, warm-up only.
            best = motion.log_density(now.path).argmax(0)
            near = motion.linearise(now.path[best, torch.arange(len(best))])
        stretch = _stretches(mode.shape[1], step)
        uniform = stream.child("smoothed paths").uniform(step, 4 * size + slots + 1 + stretch.shape[1])
        white, rest = normals(uniform[..., : 4 * size]), uniform[..., 4 * size :]
        weight = _mixture_draw(motion, now.residual, now.context, rest[..., :slots])
        # Precisions belong to the scales at the present path; the proposal has those of the path it was made at.
        normal = _Normal(near.path, *normal_equations(near, near.unit * weight))
        now, whole = _moved(motion, normal, now, everything, weight, white[..., :size], rest[..., slots : slots + 1])
        accept = whole
        if bool(stretch.any()):
            now, parts = _moved(motion, normal, now, stretch, weight, white[..., size:], rest[..., slots + 1 :])
            accept = torch.cat([whole, parts], -1)
        if step >= NUM_WARMUP:
            paths.append(now.path)
            densities.append(motion.log_density_of(*now))
            accepts.append(accept.any(-1))
            wholes.append(whole[..., 0])
    return SmoothedPaths(*(torch.stack(each, 1) for each in (paths, densities, accepts, wholes)))


def _stretches(num_frames: int, step: int) -> Tensor:
    """Which frames belong to which stretch, bool ``[T, number of stretches]``; between any two some belong to none."""
    block = (torch.arange(num_frames) + SHIFT * step) // STRETCH_FRAMES
    number = torch.unique(block[block % 2 == 0])
    belongs: Tensor = block[:, None] == number
    return belongs


def _moved(
    motion: HiddenMotion, normal: _Normal, now: _Now, stretch: Tensor, weight: Tensor, white: Tensor, uniform: Tensor
) -> tuple[_Now, Tensor]:
    """Propose stretches of paths given all other frames and the precisions of residuals, and accept some.

    Args:
        motion: of R rows.
        normal: the normal distribution of whole paths.
        now: paths of C chains.
        stretch: which frames belong to which stretch, bool ``[T, M]``.
        weight: relative precisions, of the residuals' shape.
        white: standard normal numbers ``[C, R, T P]``.
        uniform: ``[C, R, M]``.

    Returns:
        Paths, and which stretches of them were accepted, bool ``[C, R, M]``.
    """
    apart = (now.path - normal.path).flatten(-2)
    white = white.view_as(apart)
    moves = stretch.any(-1)
    factor, mean = _conditional(normal, apart, moves)
    change = (mean + colour(factor, white)).view_as(now.path)
    proposed = torch.where(moves[:, None, None], normal.path + change, now.path)
    residual, context = motion.residual(proposed)
    back = whiten(factor, apart - mean)
    frame = stretch.to(white)
    transition = (stretch[1:] | stretch[:-1]).to(white)  # a transition belongs to the stretch of either end
    gain = _log_normal(motion, residual, context, weight) - _log_normal(motion, now.residual, now.context, weight)
    gain = torch.where(gain.isfinite(), gain, -IMPOSSIBLE) @ transition
    gain = gain + ((white.square() - back.square()).sum(-1) / 2) @ frame
    gain = gain + (motion.log_start(proposed) - motion.log_start(now.path))[..., None] * frame[0]
    accept = (uniform.log() < gain) & ~factor.failed[..., None]
    frames, transitions = (accept.to(white) @ each.T > 0 for each in (frame, transition))
    moved = _Now(
        torch.where(frames[..., None, None], proposed, now.path),
        torch.where(transitions[..., None, None], residual, now.residual),
        None
        if context is None or now.context is None
        else torch.where(transitions[..., None, None], context, now.context),
    )
    return moved, accept


def _conditional(normal: _Normal, apart: Tensor, moves: Tensor) -> tuple[Factor, Tensor]:
    """Factor and mean of the changes of frames that move, bool ``[T]``, given those of all others ``[C, R, T, P]``."""
    slope, diagonal, above = normal.slope, normal.diagonal, normal.above
    if not bool(moves.all()):
        still = torch.where(moves[:, None], 0.0, apart)
        pad = torch.nn.functional.pad
        pull = pad((above @ still[..., 1:, :, None]).squeeze(-1), (0, 0, 0, 1))
        pull = pull + pad((above.mT @ still[..., :-1, :, None]).squeeze(-1), (0, 0, 1, 0))
        slope = torch.where(moves[:, None], slope - pull, 0.0)
        diagonal = torch.where(moves[:, None, None], diagonal, torch.eye(slope.shape[-1], dtype=slope.dtype))
        above = torch.where((moves[1:] & moves[:-1])[:, None, None], above, 0.0)
    factor = factorise(diagonal, above)
    return factor, solve(factor, slope)


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


def _log_normal(motion: HiddenMotion, residual: Tensor, context: Tensor | None, weight: Tensor) -> Tensor:
    """Log density of residuals given relative precisions, up to a constant: of transitions ``[*batch, R, T - 1]``."""
    precision = motion.unit_precision(residual, context)
    counts = precision > 0
    log_scale = torch.where(counts, precision, 1.0).log() / 2
    return (log_scale - torch.where(counts, precision * weight * residual.square(), 0.0) / 2).sum((-1, -2))
