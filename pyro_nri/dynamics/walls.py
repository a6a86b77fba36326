"""Reflecting walls: where they are, judged from motion."""

import torch
from torch import Tensor

#: Bounces that must agree before a wall is believed.
MIN_BOUNCES = 3


def estimate_walls(position: Tensor, velocity: Tensor, mask: Tensor, time_step: float) -> tuple[Tensor, Tensor]:
    """Find the walls of a box that entities bounce off.

    A frame counts as a bounce off a wall if the entity comes and goes at nearly the same speed with the sign reversed,
    no further from the outermost position seen than it travels in a frame, if free motion does not fit the frame, and
    if the mirror that would fit it does not stand inside. A wall is the median of what its bounces say. Where single
    walls have too few, all walls together may show a square box around the origin.

    Args:
        position: ``[B, T, N, S]``, raw units.
        velocity: ``[B, T, N, S]``.
        mask: which transitions are observed, bool ``[B, T - 1, N]``.
        time_step: time of a frame.

    Returns:
        Lower and upper walls, ``[S]`` each, -inf and inf where nothing speaks for a wall.
    """
    num_axes = position.shape[-1]
    outside = [[torch.inf, -torch.inf][side == 0] for side in range(2)]
    walls = position.new_tensor(outside)[:, None].repeat(1, num_axes)  # [2, S]
    if not mask.any():
        return walls[0], walls[1]
    mirrors, reaches = [], []
    for axis in range(num_axes):
        for side, sign in enumerate((-1.0, 1.0)):
            mirror, reach, outermost = _bounces(position[..., axis], velocity[..., axis], mask, time_step, sign)
            mirrors.append(mirror)
            reaches.append(reach)
            if _agree(mirror, reach):
                walls[side, axis] = sign * torch.maximum(mirror.median(), outermost)
    together, reach = torch.cat(mirrors), torch.cat(reaches)
    num_walls = sum(len(mirror) > 0 for mirror in mirrors)
    if not walls.isfinite().all() and num_walls > 1 and _agree(together, reach):
        farthest = torch.maximum(position[:, :-1][mask].abs().max(), position[:, 1:][mask].abs().max())
        square = torch.maximum(together.median(), farthest)
        if square - together.median() <= reach.median():  # else single walls, and open space beyond
            walls = torch.where(walls.isfinite(), walls, square * position.new_tensor([[-1.0], [1.0]]))
    return walls[0], walls[1]


def _bounces(position: Tensor, velocity: Tensor, mask: Tensor, time_step: float, sign: float) -> tuple[Tensor, ...]:
    """For each bounce off the wall in direction ``sign``: where the mirror stands and the way of the frame, ``[R]``."""
    start, end = sign * position[:, :-1][mask], sign * position[:, 1:][mask]
    before, after = sign * velocity[:, :-1][mask], sign * velocity[:, 1:][mask]
    outermost = torch.maximum(start, end).max()
    gap = (end - start - time_step * (before + after) / 2).abs()
    mirror = (start + end) / 2 + time_step * (before - after) / 4
    reach = time_step * (before.abs() + after.abs()) / 2
    bounce = (before > 0) & (after < 0) & ((before + after).abs() < 0.2 * before) & (gap > 0.01 * reach)
    bounce &= (outermost - torch.maximum(start, end) <= reach) & (mirror >= outermost - 0.1 * reach)
    return mirror[bounce], reach[bounce], outermost


def _agree(mirror: Tensor, reach: Tensor) -> bool:
    """Turning points of free motion scatter; bounces agree about the wall to a small part of the way of a frame."""
    if len(mirror) < MIN_BOUNCES:
        return False
    return bool((mirror - mirror.median()).abs().median() < 0.1 * reach.median())
