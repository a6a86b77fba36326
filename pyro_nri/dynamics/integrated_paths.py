"""Paths integrated under a structure, for the frames in which forces change too fast for a cubic path."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures, PathBlock, path_block, replace_frames, unfold
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.pair_motion import PairMotion
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Sub-steps of an integrated path within a frame, where the motion does not tell its own; even, for Simpson's rule.
PATH_STEPS = 40
#: Frames are integrated where ``dt² |df/dr| / 12`` exceeds this: there a cubic path is far from the motion.
STIFF = 0.1
#: Two entities that attract each other so go round once within a frame, on a circle under ``1 / r²``.
FAST = (2 * math.pi) ** 2 / 12
#: A gap between the motions from both ends counts from this share of the typical way of a frame on, and from so many
#: times the lower quartile of what positions and velocities disagree by.
GAP, NOISE = 1e-3, 5.0


def refine(
    dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, references: Sequence[Tensor]
) -> ImpulseFeatures:
    """Replace cubic paths by integrated ones in the frames where forces change fast along them.

    From both ends of such a frame the motion is integrated under a reference structure; the two paths are blended,
    each near its own end. Where the last of several references leaves a gap between the two, an entity takes the one
    whose paths agree best.

    Args:
        dynamics: with fitted laws.
        features: of the same scenes, from :meth:`PairForces.features`.
        scenes: B scenes in raw units.
        references: structures to integrate under, long ``[B, E]`` each, the most trusted last.
    """
    if dynamics.circular or not references:
        return features
    (block,) = features.blocks
    dt = scenes.time_step
    exists = dynamics.edge_exists(scenes)
    change = force_changes(dynamics, features, scenes)
    hard = _any_hard(change, features)
    row = hard.nonzero()  # [R, 2]
    if len(row) == 0:
        return features
    trajectory = scenes.trajectory.double()
    scene, frame = row.unbind(-1)
    incoming = edges.incoming_edges(scenes.num_entities).to(row.device)
    tried = torch.stack([each[scene] for each in references])  # [M, R, E]
    start, end = trajectory[scene, frame], trajectory[scene, frame + 1]  # [R, N, D]
    num_steps = path_steps(dynamics)
    ramp = torch.linspace(0, 1, num_steps + 1, dtype=torch.float64, device=start.device)
    ramp = (3 * ramp**2 - 2 * ramp**3)[:, None]

    def paths(rows: Tensor, structures: Tensor) -> tuple[Tensor, Tensor]:
        """Blended paths ``[M, R, N, P + 1, S]`` and their gaps ``[M, R, N]``."""
        forth, back = _both_ways(dynamics, start[rows], end[rows], structures, scenes.edge_mask[scene[rows]], dt)
        gap = (forth - back)[..., num_steps // 2, :].norm(dim=-1).nan_to_num(nan=torch.inf)
        return forth * (1 - ramp) + back * ramp, gap

    every = torch.arange(len(row), device=row.device)
    (path,), (gap,) = paths(every, tried[-1:])
    chosen = torch.full_like(gap, len(tried) - 1, dtype=torch.long)  # [R, N]
    far = (gap > gap_floor(dynamics, scenes)[scene, None]).any(-1).nonzero().squeeze(-1)
    if len(far) and len(tried) > 1:
        others, gaps = paths(far, tried[:-1, far])
        gap[far], chosen[far] = torch.cat([gaps, gap[None, far]]).min(0)
        index = chosen[far][..., None, None].expand(others.shape[1:])[None]
        path[far] = torch.cat([others, path[None, far]]).gather(0, index)[0]
    position, velocity = trajectory[..., dynamics.positions], trajectory[..., dynamics.velocities]
    _, _, wall = unfold(position, velocity, dynamics.low.double(), dynamics.high.double(), dt)
    sign = _sign_after_bounce(path, wall[scene, frame])
    weight = dynamics.over_velocities(_quadrature(dynamics, ramp[:, 0]))
    better_block = path_block(path, sign, weight, exists[scene, 0], row)
    if dynamics.force_limit.isfinite():
        types = tried[:, :, incoming].gather(0, chosen[None, ..., None].expand(1, *chosen.shape, incoming.shape[1]))[0]
        force = _force_along(dynamics, better_block, types)
        excess = (force - force.clamp(-dynamics.force_limit, dynamics.force_limit)) * weight[:, None]
        target = features.target.clone()
        target[scene, frame] += excess.sum(-2)
        features = replace(features, target=target)
        better_block = replace(better_block, free=(force.abs() < dynamics.force_limit).to(force))
    closest, own_error = block.coordinate.amin(-1), dynamics.own_error(scenes)
    closest[scene, frame] = better_block.coordinate.amin(-1)
    own_error[scene, frame] = gap / 2
    context = dynamics.context(scenes, closest, own_error, hard[..., None])
    return replace(replace_frames(features, better_block, context), fast=change > FAST)


def hard_frames(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes) -> Tensor:
    """Which frames of scenes with cubic paths need integrated ones, bool ``[B, T - 1]``."""
    return _any_hard(force_changes(dynamics, features, scenes), features)


def _any_hard(change: Tensor, features: ImpulseFeatures) -> Tensor:
    return (change > STIFF).flatten(2).any(-1) & features.mask.any(-1)


def gap_floor(dynamics: PairForces, scenes: Scenes) -> Tensor:
    """From where on the motions from both ends of a frame count as passing by each other, ``[B]``."""
    disagreement = torch.where(scenes.transition_mask, dynamics.own_error(scenes), torch.nan)
    noise = disagreement.flatten(1).nanquantile(0.25, dim=-1)
    return (NOISE * noise).clamp(min=GAP * float(dynamics.length))


def path_gaps(
    dynamics: PairForces, start: Tensor, end: Tensor, structures: Tensor, edge_mask: Tensor, duration: float
) -> Tensor:
    """How far the motions from both ends of frames pass by each other in their middle, ``[M, R, N]``.

    Args:
        dynamics: with fitted laws.
        start: states ``[R, N, D]``, raw units.
        end: states a frame later ``[R, N, D]``.
        structures: M for each of them, long ``[M, R, E]``.
        edge_mask: bool ``[R, E]``.
        duration: time of a frame.
    """
    forth, back = _both_ways(dynamics, start, end, structures, edge_mask, duration)
    gap: Tensor = (forth - back)[..., path_steps(dynamics) // 2, :].norm(dim=-1)
    return gap


def path_steps(dynamics: PairForces) -> int:
    """Sub-steps of a path that is integrated within a frame."""
    return int(dynamics.leapfrog_steps) or PATH_STEPS


def _quadrature(dynamics: PairForces, like: Tensor) -> Tensor:
    """Weights of the P + 1 positions of a path, ``[P + 1]``; those of a leapfrog are what it does."""
    weight = torch.ones_like(like)
    if dynamics.leapfrog_steps:
        weight[0] = weight[-1] = 0.5
    else:
        weight[1:-1:2], weight[2:-1:2] = 4, 2
    return weight / weight.sum()


def force_changes(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes) -> Tensor:
    """``dt² |df/dr| / 12`` at each closest approach: far below 1 on smooth paths, ``[B, T - 1, N, N - 1]``."""
    (block,) = features.blocks
    slope = dynamics.laws.slope(block.coordinate.amin(-1)) * dynamics.edge_exists(scenes)
    return slope * scenes.time_step**2 / 12


def frame_errors(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor, limits: Tensor) -> Tensor:
    """How far from the observed positions integrated motion ends under each of L limits of forces, ``[L, R, N]``.

    Args:
        dynamics: with fitted laws.
        scenes: B scenes in raw units.
        row: number of scene and frame of R frames, long ``[R, 2]``.
        structure: long ``[B, E]``.
        limits: in place of the limit that the dynamics have, ``[L]``.
    """
    scene, frame = row.unbind(-1)
    trajectory = scenes.trajectory.double()
    path = _integrate(
        dynamics,
        trajectory[scene, frame].expand(len(limits), -1, -1, -1),
        structure[scene],
        scenes.edge_mask[scene],
        scenes.time_step,
        dynamics.clock_lag,
        limits[:, None, None, None],
    )
    gap: Tensor = (path[..., -1, :] - trajectory[scene, frame + 1][..., dynamics.positions]).norm(dim=-1)
    return gap


def largest_forces(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> Tensor:
    """Largest component of the total force on an entity in each frame if it had no limit, ``[R]``."""
    scene, frame = row.unbind(-1)
    start = scenes.trajectory.double()[scene, frame]
    motion, moved = _motion(
        dynamics,
        start,
        structure[scene],
        scenes.edge_mask[scene],
        scenes.time_step,
        dynamics.clock_lag,
        start.new_tensor(torch.inf),
    )
    motion.peak = start.new_zeros(len(row))
    for _ in moved:
        pass
    return motion.peak


def _force_along(dynamics: PairForces, block: PathBlock, incoming: Tensor) -> Tensor:
    """Sum of the forces on each entity along paths, before any limit: ``[R, N, Q, S]``."""
    types = incoming[..., None].expand(block.coordinate.shape)
    force = dynamics.laws.select(block.coordinate, types, dynamics.laws.table().detach().double())
    return (force[..., None] * block.direction).sum(-3)


def _both_ways(
    dynamics: PairForces, start: Tensor, end: Tensor, structures: Tensor, edge_mask: Tensor, duration: float
) -> tuple[Tensor, Tensor]:
    """Positions along the motion from the start, and along the one that leads to the end, both in order of time.

    Args:
        dynamics: with fitted laws.
        start: states ``[R, N, D]``.
        end: states ``[R, N, D]``.
        structures: M for each of them, long ``[M, R, E]``.
        edge_mask: bool ``[R, E]``.
        duration: time from start to end.

    Returns:
        Twice ``[M, R, N, P + 1, S]``.
    """
    back = end.clone()
    back[..., dynamics.velocities] *= -1  # which are now those of a later moment
    state = torch.stack([start, back]).expand(len(structures), -1, -1, -1, -1).transpose(0, 1)  # [2, M, R, N, D]
    lag = dynamics.clock_lag.to(state.dtype) * state.new_tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    path = _integrate(dynamics, state, structures.expand(2, -1, -1, -1), edge_mask, duration, lag)
    return path[0], path[1].flip(-2)


def _integrate(
    dynamics: PairForces,
    state: Tensor,
    structure: Tensor,
    edge_mask: Tensor,
    duration: float,
    lag: Tensor,
    limit: Tensor | None = None,
) -> Tensor:
    """Positions at the start and after each of P sub-steps, ``[*batch, N, P + 1, S]``."""
    motion, moved = _motion(dynamics, state, structure, edge_mask, duration, lag, limit)
    start = motion.flat(state[..., dynamics.positions])
    path = torch.stack([start, *(position for position, _ in moved)])  # [P + 1, N, S, B]
    path = path.permute(3, 1, 0, 2).contiguous()  # distances along other orders of axes are slow
    return path.reshape(*motion.batch, *path.shape[1:])


def _motion(
    dynamics: PairForces,
    state: Tensor,
    structure: Tensor,
    edge_mask: Tensor,
    duration: float,
    lag: Tensor,
    limit: Tensor | None,
) -> tuple[PairMotion, Iterator[tuple[Tensor, Tensor]]]:
    """Motion over a frame by the sub-steps of its paths."""
    num_steps, table = path_steps(dynamics), dynamics.laws.table().detach()
    step = state.new_tensor(duration / num_steps)
    return dynamics.motion(state, structure, edge_mask, table, num_steps, step, lag, limit)


def _sign_after_bounce(path: Tensor, wall: Tensor) -> Tensor:
    """-1 from the moment on at which a path ``[R, N, Q, S]`` is next to the wall it touches ``[R, N, S]``, else 1."""
    distance = (path - wall[..., None, :]).abs().nan_to_num(nan=torch.inf)
    touch = distance.argmin(dim=-2, keepdim=True)
    node = torch.arange(path.shape[-2], device=path.device)[:, None]
    return torch.where((node > touch) & ~wall[..., None, :].isnan(), -1.0, 1.0).to(path)
