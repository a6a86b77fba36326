"""The paths of hidden entities of which every frame lies near what the laws make of the one before.

A path is found frame by frame: the last one is predicted from the one before, and the last few are led to the data.
Then all frames are, by least squares whose normal equations are block tridiagonal.
"""

import itertools

import torch
from torch import Tensor

from pyro_nri.inference.block_tridiagonal import factorise, solve
from pyro_nri.inference.gauss_newton import FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING
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


def climb(motion: HiddenMotion, path: Tensor, *, num_steps: int) -> tuple[Tensor, Tensor]:
    """Lead paths ``[R, T, N_hidden, D]`` to nearby modes; also their log density ``[R]``."""
    density = motion.log_density(path)
    damping = torch.full_like(density, FIRST_DAMPING)
    for _ in range(num_steps):
        near = motion.linearise(path)
        slope, diagonal, above = normal_equations(near, near.weight)
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


def normal_equations(near: Linearised, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


def best_paths(motion: HiddenMotion, start: Tensor, num_scenes: int, frame: int = 0) -> tuple[Tensor, Tensor]:
    """Follow several starts of each scene and keep the path that explains most.

    Args:
        motion: of rows, start by start, ``R = M B``.
        start: states at one frame, ``[R, N_hidden, D]``, scaled units.
        num_scenes: B.
        frame: of the starts; paths are followed to both ends.

    Returns:
        Paths ``[B, T, N_hidden, D]`` and which rows they come from, long ``[B]``.
    """
    row, path = torch.arange(len(start)), start[:, None]
    for length, number in (*PRUNED, (motion.num_frames, 1)):
        some = motion[row]
        if number == 1:
            path, part = _followed(some, path, frame), some
        else:
            part = some.frames(frame, min(frame + length, motion.num_frames))
            path = _longer(part, path, part.num_frames)
        path, density = climb(part, path, num_steps=NUM_STEPS)
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
            tried, _ = climb(one, _followed(one, path[here, slice(*chosen)], chosen[0]), num_steps=NUM_STEPS)
            tried, new = _mended(one, tried, one.log_density(tried))
            if bool(new > density[row]):
                path, density = path.index_copy(0, here, tried), density.index_copy(0, here, new)
    return _reseated(motion, path, density)


def _reseated(motion: HiddenMotion, path: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Paths of log density ``[R]``, or better ones in which a state beside the most violent frame comes from another.

    Between two frames through a close encounter a state may lie where neither the motion to it nor that from it is
    right, and no small step leads away. It is tried where the frame before leads, and where that after comes from.
    """
    every, goes_on = torch.arange(len(path)), torch.ones(len(path), dtype=torch.bool)
    for _ in range(NUM_RESEATED):
        residual, context = motion.residual(path)
        violent = (motion.unit_precision(residual, context).sqrt() * residual).abs().amax((-1, -2)).argmax(1)  # [R]
        turned = motion.turned()
        ahead = _led_to(motion, path)
        behind = turned.turned_path(_led_to(turned, turned.turned_path(path)))
        before = density
        for source, first, last in ((ahead, 1, path.shape[1]), (behind, 0, path.shape[1] - 1)):
            for frame in (violent, violent + 1):
                possible = (frame >= first) & (frame < last) & goes_on
                frame = frame.clamp(first, last - 1)
                tried = path.clone()
                tried[every, frame] = source[every, frame]
                tried, new = climb(motion, motion.inside(tried), num_steps=NUM_STEPS)
                better = possible & (new > density)
                path = torch.where(better[:, None, None, None], tried, path)
                density = torch.where(better, new, density)
        goes_on = density > before + 1e-3
        if not bool(goes_on.any()):
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


def _followed(motion: HiddenMotion, path: Tensor, start: int) -> Tensor:
    """Paths of some frames from ``start`` on, followed to both ends."""
    num_frames = motion.num_frames
    path = _longer(motion.frames(start, num_frames), path, num_frames - start)
    if start == 0:
        return path
    turned = motion.turned()
    return motion.turned_path(_longer(turned, turned.turned_path(path), num_frames))
