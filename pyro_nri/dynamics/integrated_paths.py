"""Paths integrated under a structure, for the frames in which forces change too fast for a cubic path."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import sum_messages
from pyro_nri.dynamics.impulses import ImpulseFeatures, path_block, replace_frames, unfold
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Sub-steps of a path that is integrated within a frame; even, for Simpson's rule.
NUM_PATH_STEPS = 40
#: Frames are integrated where ``dt² |df/dr| / 12`` exceeds this: there a cubic path is far from the motion.
STIFF = 0.1


def refine(
    dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, references: Sequence[Tensor]
) -> ImpulseFeatures:
    """Replace cubic paths by integrated ones in the frames where forces change fast along them.

    From both ends of such a frame the motion is integrated under a reference structure; the two paths are blended,
    each near its own end. Of several references an entity takes the one whose two paths agree best.

    Args:
        dynamics: with fitted laws.
        features: of the same scenes, from :meth:`PairForces.features`.
        scenes: B scenes in raw units.
        references: structures to integrate under, long ``[B, E]`` each.
    """
    if dynamics.circular or not references:
        return features
    (block,) = features.blocks
    dt = scenes.time_step
    exists = dynamics.edge_exists(scenes)
    stiff = (force_changes(dynamics, features, scenes) > STIFF).flatten(2).any(-1)
    row = (stiff & features.mask.any(-1)).nonzero()  # [R, 2]
    if len(row) == 0:
        return features
    trajectory = scenes.trajectory.double()
    scene, frame = row.unbind(-1)
    incoming = edges.incoming_edges(scenes.num_entities).to(row.device)
    tried = torch.stack([each[scene] for each in references])  # [M, R, E]
    start, end = trajectory[scene, frame], trajectory[scene, frame + 1]  # [R, N, D]
    ramp = torch.linspace(0, 1, NUM_PATH_STEPS + 1, dtype=torch.float64, device=start.device)
    ramp = (3 * ramp**2 - 2 * ramp**3)[:, None]
    forth, back = _both_ways(dynamics, start, end, tried, scenes.edge_mask[scene], dt)
    gap, chosen = (forth - back)[..., NUM_PATH_STEPS // 2, :].norm(dim=-1).min(0)  # [R, N]
    index = chosen[..., None, None].expand(forth.shape[1:])[None]
    path = (forth.gather(0, index) * (1 - ramp) + back.gather(0, index) * ramp)[0]
    position, velocity = trajectory[..., dynamics.positions], trajectory[..., dynamics.velocities]
    _, _, wall = unfold(position, velocity, dynamics.low.double(), dynamics.high.double(), dt)
    simpson = torch.ones_like(ramp[:, 0])
    simpson[1:-1:2], simpson[2:-1:2] = 4, 2
    sign = _sign_after_bounce(path, wall[scene, frame])
    weight = dynamics.over_velocities(simpson / simpson.sum())
    better_block = path_block(path, sign, weight, exists[scene, 0], row)
    if dynamics.force_limit.isfinite():
        types = tried[:, :, incoming].gather(0, chosen[None, ..., None].expand(1, *chosen.shape, incoming.shape[1]))[0]
        force = _force_along(dynamics, path, types, exists[scene, 0])
        excess = (force - force.clamp(-dynamics.force_limit, dynamics.force_limit)) * sign * weight[:, None]
        target = features.target.clone()
        target[scene, frame] += excess.sum(-2)
        features = replace(features, target=target)
        better_block = replace(better_block, free=(force.abs() < dynamics.force_limit).to(force))
    closest, own_error = block.coordinate.amin(-1), _own_error(dynamics, scenes)
    closest[scene, frame] = better_block.coordinate.amin(-1)
    own_error[scene, frame] = gap / 2
    context = dynamics.context(scenes, closest, own_error, stiff[..., None])
    return replace_frames(features, better_block, context)


def force_changes(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes) -> Tensor:
    """``dt² |df/dr| / 12`` at each closest approach: far below 1 on smooth paths, ``[B, T - 1, N, N - 1]``."""
    (block,) = features.blocks
    slope = dynamics.laws.slope(block.coordinate.amin(-1)) * dynamics.edge_exists(scenes)
    return slope * scenes.time_step**2 / 12


def frame_errors(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> Tensor:
    """How far from the observed positions integrated motion ends, raw units, ``[R, N]``.

    Args:
        dynamics: with fitted laws.
        scenes: B scenes in raw units.
        row: number of scene and frame of R frames, long ``[R, 2]``.
        structure: long ``[B, E]``.
    """
    scene, frame = row.unbind(-1)
    trajectory = scenes.trajectory.double()
    path = _integrate(
        dynamics,
        trajectory[scene, frame],
        structure[scene],
        scenes.edge_mask[scene],
        scenes.time_step,
        dynamics.clock_lag,
    )
    gap: Tensor = (path[..., -1, :] - trajectory[scene, frame + 1][..., dynamics.positions]).norm(dim=-1)
    return gap


def largest_force(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> float:
    """Largest component of the total force on an entity along integrated motion, as for :func:`frame_errors`."""
    scene, frame = row.unbind(-1)
    start = scenes.trajectory.double()[scene, frame]
    path = _integrate(dynamics, start, structure[scene], scenes.edge_mask[scene], scenes.time_step, dynamics.clock_lag)
    incoming = structure[scene][:, edges.incoming_edges(scenes.num_entities)]
    return float(_force_along(dynamics, path, incoming, dynamics.edge_exists(scenes)[scene, 0]).abs().max())


def _force_along(dynamics: PairForces, path: Tensor, incoming: Tensor, exists: Tensor) -> Tensor:
    """Sum of the forces on each entity along paths, before any limit: ``[R, N, Q, S]``."""
    block = path_block(path, torch.ones_like(path), torch.ones_like(path[0, 0, :, 0]), exists, None)
    types = incoming[..., None].expand(block.coordinate.shape)
    force = dynamics.laws.select(block.coordinate, types, dynamics.laws.table().detach().double())
    return (force[..., None] * block.direction).sum(-3)


def _own_error(dynamics: PairForces, scenes: Scenes) -> Tensor:
    trajectory = scenes.trajectory.double()
    position, velocity = trajectory[..., dynamics.positions], trajectory[..., dynamics.velocities]
    end, after, _ = unfold(position, velocity, dynamics.low.double(), dynamics.high.double(), scenes.time_step)
    error: Tensor = (end - position[:, :-1] - scenes.time_step * (velocity[:, :-1] + after) / 2).norm(dim=-1)
    return error


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
        Twice ``[M, R, N, NUM_PATH_STEPS + 1, S]``.
    """
    back = end.clone()
    back[..., dynamics.velocities] *= -1  # which are now those of a later moment
    state = torch.stack([start, back]).expand(len(structures), -1, -1, -1, -1).transpose(0, 1)  # [2, M, R, N, D]
    lag = dynamics.clock_lag.to(state.dtype) * state.new_tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    path = _integrate(dynamics, state, structures.expand(2, -1, -1, -1), edge_mask, duration, lag)
    return path[0], path[1].flip(-2)


def _integrate(
    dynamics: PairForces, state: Tensor, structure: Tensor, edge_mask: Tensor, duration: float, lag: Tensor
) -> Tensor:
    """Positions at the start and after each of P = :data:`NUM_PATH_STEPS` sub-steps, ``[*batch, N, P + 1, S]``."""
    table = dynamics.laws.table().detach().double()
    time = state.new_tensor(duration / NUM_PATH_STEPS)
    positions = [state[..., dynamics.positions]]
    for _ in range(NUM_PATH_STEPS):
        forces = dynamics.forces(state, structure, time, lag, table) * edge_mask[..., None]
        state = dynamics.move(state, sum_messages(forces), time, lag)
        positions.append(state[..., dynamics.positions])
    return torch.stack(positions, dim=-2)


def _sign_after_bounce(path: Tensor, wall: Tensor) -> Tensor:
    """-1 from the moment on at which a path ``[R, N, Q, S]`` is next to the wall it touches ``[R, N, S]``, else 1."""
    distance = (path - wall[..., None, :]).abs().nan_to_num(nan=torch.inf)
    touch = distance.argmin(dim=-2, keepdim=True)
    node = torch.arange(path.shape[-2], device=path.device)[:, None]
    return torch.where((node > touch) & ~wall[..., None, :].isnan(), -1.0, 1.0).to(path)
