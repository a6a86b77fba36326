"""Draws of the paths of hidden entities of which every frame lies near what the laws make of the one before.

A path is found frame by frame: the last one is predicted from the one before, and the last few are led to the data.
Then all frames are, by least squares whose normal equations are block tridiagonal. Draws are those of a Gibbs sampler:
Student-t noise is a scale mixture, and given the precisions of all frames the path is nearly normal, so that a draw
from the normal distribution that is linearised at the mode is nearly always accepted (Carter & Kohn 1994, "On Gibbs
sampling for state space models", with Metropolis's correction). They also say how likely the data are (Chib 1995,
"Marginal likelihood from the Gibbs output"): density at one path, over its posterior density there.
"""

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.block_tridiagonal import colour, factorise, log_volume, solve, whiten
from pyro_nri.inference.gauss_newton import FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING
from pyro_nri.inference.laplace import Integral, integrate
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden_motion import HiddenMotion, Linearised

#: Frames that are led to the data together with a new one.
LAG = 6
#: Sizes of the noise on the way to that of the data, shares of scaled units, and steps with each and with the last.
BLUNT, NUM_BLUNT_STEPS, NUM_SHARP_STEPS = (1e-3, 1e-5), 2, 2
#: Frames after which only some of several starts are followed, and how many.
PRUNED = ((5, 4), (12, 2))
#: Steps of all frames together.
NUM_STEPS = 8
#: Noise on the way from a path with breaks to one without, shares of its scales, and steps with each.
NORMAL_WIDTHS, ROBUST_WIDTHS, NUM_WIDE_STEPS = (1e4, 1e2, 1.0), (1e4, 1e3, 1e2, 1e1), 6
#: Residual that is a break, in scales of the noise.
BREAK = 3e3
#: Stretches that a broken path is followed from at most.
NUM_STRETCHES = 4
#: How often the states beside the most violent frame are tried anew.
NUM_RESEATED = 3
#: Frames whose shares of a path's density are averaged together.
BLOCK_FRAMES = 6
#: Draws of each chain before the first that counts; after each of the first rounds the proposal is made anew.
NUM_WARMUP, NUM_ROUNDS = 12, 3


def climb(motion: HiddenMotion, path: Tensor, *, num_steps: int) -> tuple[Tensor, Tensor]:
    """Lead paths ``[R, T, N_hidden, D]`` to nearby modes; also their log density ``[R]``."""
    density = motion.log_density(path)
    damping = torch.full_like(density, FIRST_DAMPING)
    for _ in range(num_steps):
        near = motion.linearise(path)
        slope, diagonal, above = _normal_equations(near, near.weight)
        own = diagonal.diagonal(dim1=-2, dim2=-1)
        change = solve(factorise(diagonal + torch.diag_embed(damping[:, None, None] * own), above), slope)
        change = torch.where(change.isfinite(), change, 0.0)
        tried = motion.inside(path + change.view_as(path))
        new = motion.log_density(tried)
        better = new >= density
        path = torch.where(better[:, None, None, None], tried, path)
        density = torch.where(better, new, density)
        damping = torch.where(better, damping / 10, damping * 10).clamp(LEAST_DAMPING, MOST_DAMPING)
    return path, density


def _normal_equations(near: Linearised, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slope ``[*batch, R, T, P]`` and blocks ``[*batch, R, T or T - 1, P, P]`` of the precision of a path's change.

    Args:
        near: R rows.
        weight: of the residuals, ``[*batch, R, T - 1, N + N_hidden, D]``.
    """
    num_hidden = near.path.shape[-2]
    weighted = near.jacobian * weight[..., None]
    square = torch.einsum("...ndp,...ndq->...pq", weighted, near.jacobian)
    slope = torch.einsum("...ndp,...nd->...p", weighted, near.residual)
    own = weight[..., -num_hidden:, :] * near.scale
    above = -(weighted[..., -num_hidden:, :, :] * near.scale[:, None]).flatten(-3, -2).mT
    pad = torch.nn.functional.pad
    prior = torch.zeros_like(pad(own, (0, 0, 0, 0, 1, 0)).flatten(-2))
    prior[..., 0, :] = 1.0
    diagonal = pad(square, (0, 0, 0, 0, 0, 1))
    diagonal = diagonal + torch.diag_embed(pad((own * near.scale).flatten(-2), (0, 0, 1, 0)) + prior)
    after = (own * near.residual[..., -num_hidden:, :]).flatten(-2)
    slope = pad(slope, (0, 0, 0, 1)) - pad(after, (0, 0, 1, 0)) - prior * near.path.flatten(-2)
    return slope, diagonal, above


def _longer(motion: HiddenMotion, path: Tensor, num_frames: int) -> Tensor:
    """Paths of the first frames ``[R, T', N_hidden, D]``, led to the data frame by frame: ``[R, T, N_hidden, D]``."""
    while path.shape[1] < num_frames:
        length = path.shape[1]
        last = motion.frames(length - 1, length)
        predicted = last.predict(path[:, -1:])[0][..., -path.shape[2] :, :]
        predicted = (predicted - motion.offset) / motion.scale
        path = torch.cat([path, torch.where(predicted.isfinite(), predicted, path[:, -1:])], 1)
        first = max(0, length + 1 - LAG)
        window, some = motion.frames(first, length + 1), path[:, first:]
        for share in BLUNT:
            some, _ = climb(window.blunted(share), some, num_steps=NUM_BLUNT_STEPS)
        some, _ = climb(window, some, num_steps=NUM_SHARP_STEPS)
        path = torch.cat([path[:, :first], some], 1)
    return path


def best_paths(motion: HiddenMotion, start: Tensor, num_scenes: int) -> tuple[Tensor, Tensor]:
    """Follow several starts of each scene and keep the path that explains most.

    Args:
        motion: of rows, start by start, ``R = M B``.
        start: states at frame 0, ``[R, N_hidden, D]``, scaled units.
        num_scenes: B.

    Returns:
        Paths ``[B, T, N_hidden, D]`` and which rows they come from, long ``[B]``.
    """
    row, path = torch.arange(len(start)), start[:, None]
    for length, number in (*PRUNED, (motion.num_frames, 1)):
        part = motion[row].frames(0, min(length, motion.num_frames))
        path, density = climb(part, _longer(part, path, part.num_frames), num_steps=NUM_STEPS)
        kept = density.view(-1, num_scenes).argsort(dim=0, descending=True, stable=True)[:number]
        kept = (kept * num_scenes + torch.arange(num_scenes)).flatten()
        row, path = row[kept], path[kept]
    return path, row


def improve(motion: HiddenMotion, path: Tensor) -> tuple[Tensor, Tensor]:
    """Better paths near paths ``[R, T, N_hidden, D]``, and their log density ``[R]``.

    Robust noise forgives a break: two stretches that both follow the laws, with one violent frame between them, are a
    mode of least squares that no small step leaves. Noise from wide to narrow leads out, first normal noise, under
    which breaks are dearest, then robust noise. Paths that are still broken are followed anew to both ends from
    their longest unbroken stretch, from their last frame, and from other stretches. Then single states are tried anew.
    """
    path, density = _mended(motion, *climb(motion, path, num_steps=NUM_STEPS))
    last = (path.shape[1] - 1, path.shape[1])
    for row in range(len(path)):
        here, done = torch.tensor([row]), set[tuple[int, int]]()
        one = motion[here]
        while len(done) < NUM_STRETCHES and len(stretches := _stretches(one, path[here])) > 1:
            chosen = next((each for each in (stretches[0], last, *stretches[1:]) if each not in done), None)
            if chosen is None:
                break
            done.add(chosen)
            tried, _ = climb(one, _followed(one, path[here], *chosen), num_steps=NUM_STEPS)
            tried, new = _mended(one, tried, one.log_density(tried))
            if bool(new > density[row]):
                path, density = path.index_copy(0, here, tried), density.index_copy(0, here, new)
    return _reseated(motion, path, density)


def _reseated(motion: HiddenMotion, path: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Paths of log density ``[R]``, or better ones in which a state beside the most violent frame comes from another.

    Between two frames through a close encounter a state may lie where neither the motion to it nor that from it is
    right, and no small step leads away. It is tried where the frame before leads, and where that after comes from.
    """
    every = torch.arange(len(path))
    for _ in range(NUM_RESEATED):
        residual, context = motion.residual(path)
        violent = (motion.unit_precision(residual, context).sqrt() * residual).abs().amax((-1, -2)).argmax(1)  # [R]
        turned = motion.turned()
        ahead = _led_to(motion, path)
        behind = turned.turned_path(_led_to(turned, turned.turned_path(path)))
        before = density
        for source, first, last in ((ahead, 1, path.shape[1]), (behind, 0, path.shape[1] - 1)):
            for frame in (violent, violent + 1):
                possible = (frame >= first) & (frame < last)
                frame = frame.clamp(first, last - 1)
                tried = path.clone()
                tried[every, frame] = source[every, frame]
                tried, new = climb(motion, motion.inside(tried), num_steps=NUM_STEPS)
                better = possible & (new > density)
                path = torch.where(better[:, None, None, None], tried, path)
                density = torch.where(better, new, density)
        if not bool((density > before + 1e-3).any()):
            break
    return path, density


def _led_to(motion: HiddenMotion, path: Tensor) -> Tensor:
    """Where each frame of paths leads in the next one, ``[R, T, N_hidden, D]``; the first frame as it is."""
    predicted = motion.predict(path[:, :-1])[0][..., -path.shape[2] :, :]
    predicted = (predicted - motion.offset) / motion.scale
    return torch.cat([path[:, :1], torch.where(predicted.isfinite(), predicted, path[:, 1:])], 1)


def _mended(motion: HiddenMotion, path: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Paths of log density ``[R]``, or better ones that wide noise leads to."""
    for widths, is_forgiving in ((NORMAL_WIDTHS, False), (ROBUST_WIDTHS, True)):
        tried = path
        for factor in widths:
            tried, _ = climb(motion.widened(factor, is_forgiving=is_forgiving), tried, num_steps=NUM_WIDE_STEPS)
        tried, new = climb(motion, tried, num_steps=NUM_STEPS)
        path = torch.where((new > density)[:, None, None, None], tried, path)
        density = torch.maximum(new, density)
    return path, density


def _stretches(motion: HiddenMotion, path: Tensor) -> list[tuple[int, int]]:
    """Stretches of a path ``[1, T, N_hidden, D]`` without a break, longest first; each leaves its end out."""
    residual, context = motion.residual(path)
    size = (motion.unit_precision(residual, context).sqrt() * residual)[0].abs().amax((-1, -2))
    breaks = (~(size < BREAK)).nonzero()[:, 0].tolist()  # between this frame and the next
    ends = [0, *(place + 1 for place in breaks), path.shape[1]]
    return sorted(itertools.pairwise(ends), key=lambda stretch: stretch[0] - stretch[1])


def _followed(motion: HiddenMotion, path: Tensor, start: int, end: int) -> Tensor:
    """Paths of which the frames ``start`` to ``end``, the latter left out, are followed to both ends."""
    turned, num_frames = motion.turned(), path.shape[1]
    path = _longer(motion.frames(start, num_frames), path[:, start:end], num_frames - start)
    return motion.turned_path(_longer(turned, turned.turned_path(path), num_frames))


class SmoothedPaths(NamedTuple):
    """Draws of paths.

    Attributes:
        path: ``[C, S, R, T, N_hidden, D]``, scaled units.
        log_density: of recorded frames and paths, ``[C, S, R]``.
        accepted: bool ``[C, S, R]``.
        integral: log of the integral over paths.
    """

    path: Tensor
    log_density: Tensor
    accepted: Tensor
    integral: Integral


def log_integral(motion: HiddenMotion, mode: Tensor) -> Tensor:
    """Laplace's approximation of the log integral over paths around a mode ``[R, T, N_hidden, D]``: ``[R]``."""
    near = motion.linearise(mode)
    factor = factorise(*_normal_equations(near, near.weight)[1:])
    size = mode[0].numel()
    # Where rounding spoils a block its diagonal stands for it: a rough value, but no reason to give a path up.
    return motion.log_density(mode) + size / 2 * math.log(2 * math.pi) - log_volume(factor).sum(-1)


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
    paths, densities, accepts, heights = [], [], [], []
    for step in range(NUM_WARMUP + num_draws):
        if 0 < step < NUM_WARMUP and step % (NUM_WARMUP // NUM_ROUNDS) == 0:
            # Any state will do for a proposal: that of the best chain, warm-up only.
            best = motion.log_density(path).argmax(0)
            near = motion.linearise(path[best, torch.arange(len(best))])
        size, slots = path[0, 0].numel(), _num_slots(motion, residual)
        uniform = stream.child("smoothed paths").uniform(step, 2 * size + slots + 1)
        weight = _mixture_draw(motion, residual, context, uniform[..., 2 * size : -1])
        # Precisions belong to the scales at the present path; the proposal has those of the path it was made at.
        slope, diagonal, above = _normal_equations(near, near.unit * weight)
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
            apart = whiten(factor, -mean)  # of the path that the proposal was made at
            heights.append(log_volume(factor) - apart.square().sum(-1) / 2)
    height = torch.stack(heights, 1).flatten(0, 1) - shape[-1] * shape[-2] / 2 * math.log(2 * math.pi)  # [C S, R, T]
    return SmoothedPaths(
        torch.stack(paths, 1),
        torch.stack(densities, 1),
        torch.stack(accepts, 1),
        _over(motion.log_density(near.path), height),
    )


def _over(log_density: Tensor, log_height: Tensor) -> Integral:
    """A density ``[R]`` over the mean of its shares of the whole, of which draws ``[S, R, T]`` are known.

    The shares of many frames together spread so far that a few draws would make up the mean: it is a product of means
    over blocks of frames, which know little of one another. What longer blocks would say is part of the error.
    """
    value, error, effective = [], [], []
    for length in (BLOCK_FRAMES, 2 * BLOCK_FRAMES):
        parts = [integrate(each.sum(-1)) for each in log_height.split(length, -1)]
        value.append(torch.stack([part.log_value for part in parts]).sum(0))
        error.append(torch.stack([part.log_error for part in parts]).square().sum(0))
        effective.append(torch.stack([part.effective for part in parts]).amin(0))
    log_error = (error[0] + (value[1] - value[0]).square()).sqrt()
    if len(log_height) < 2:  # one draw says nothing of its spread
        log_error = torch.full_like(log_error, torch.inf)
    return Integral(log_density - value[0], log_error, effective[0])


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
