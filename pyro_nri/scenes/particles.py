"""Particles in a box: springs and charges, after the generator of NRI.

The physics is that of Kipf et al. (2018), "Neural Relational Inference for Interacting Systems", and of the code they
released: particles in a square box with elastic walls, moved by sub-steps of 0.001, seen every 100 sub-steps. One
sub-step is kick, drift, reflect::

    v <- v + dt * clip(F(x), -100, 100)      clipped component by component
    x <- x + dt * v
    where x is beyond a wall: x <- 2 * wall - x, and v points inwards

The first observed frame comes after ``frame_spacing`` sub-steps, not at the drawn start (that generator overwrites its
frame 0). Its "half step" is a whole one, so velocities are those of half a sub-step before the positions; both are kept
here as they are there.

Inside, scenes stand last: location and velocity are ``[2, N, B]``, and velocity is the way in one sub-step, dt v.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_nri.scenes.systems import Floats, Setting

STATE_NAMES = ("x", "y", "vx", "vy")
SUBSTEP = 0.001
"""Time of one sub-step."""
FRAME_SPACING = 100
"""Default number of sub-steps between two frames."""
BOX = 5.0
"""Default distance of each wall from the origin."""
SPEED = 0.5
"""Speed of every particle at its drawn start."""
MAX_FORCE = 0.1 / SUBSTEP
"""Bound on each component of the total force on a particle."""
SPRING_LOCATION_STD = 0.5
SPRING_STIFFNESS = 0.1
CHARGED_LOCATION_STD = 1.0
COULOMB_STRENGTH = 1.0

# A kick maps locations to the change of the velocity in one sub-step, dt² F.
Kick = Callable[[Floats], Floats]


def spring_force(distance: ArrayLike, stiffness: float = SPRING_STIFFNESS) -> Floats:
    """Force along the separation between two linked particles, positive = repulsive: ``-stiffness * distance``."""
    return -stiffness * np.asarray(distance, dtype=np.float64)


def coulomb_force(distance: ArrayLike, sign: int = 1) -> Floats:
    """Force along the separation between two charges, positive = repulsive: ``sign / distance**2``, before clipping.

    Args:
        distance: distances, any shape.
        sign: product of the two charges, +1 (repel) or -1 (attract).
    """
    return sign * COULOMB_STRENGTH / np.asarray(distance, dtype=np.float64) ** 2


def springs(generators: Sequence[np.random.Generator], setting: Setting) -> tuple[Floats, NDArray[np.int64]]:
    """Trajectory ``[B, T, N, 4]`` and edge types ``[B, N, N]`` (row = sender) of particles on springs."""
    num_entities, num_types = setting.num_entities, len(setting.spring_types)
    uniform, location, velocity = _draw_start(
        generators, num_entities, num_entities**2, SPRING_LOCATION_STD, setting.box
    )
    share = setting.link_probability / (num_types - 1)
    bounds = 1 - setting.link_probability + share * np.arange(num_types - 1)
    edge_type = np.searchsorted(bounds, uniform, side="right").reshape(-1, num_entities, num_entities)
    if setting.symmetric:
        upper = np.triu(edge_type, 1)
        edge_type = upper + upper.transpose(0, 2, 1)
    edge_type[:, range(num_entities), range(num_entities)] = 0
    # [receiver, sender, B], in the kick's units; nobody pulls itself, even where type 0 has a stiffness.
    pull = SUBSTEP**2 * np.asarray(setting.spring_types)[edge_type.transpose(2, 1, 0)]
    pull[range(num_entities), range(num_entities)] = 0
    frames = _spring_frames(location, velocity, pull, setting)
    return frames, edge_type


def _spring_frames(location: Floats, velocity: Floats, pull: Floats, setting: Setting) -> Floats:
    """Trajectory ``[B, T, N, 4]`` of particles on springs.

    Away from the walls a frame is a linear map of the state, computed once for each scene. A scene takes the map only
    when a bound rules out that a wall is touched or a force clipped within the frame, else it goes by sub-steps.
    """
    num_entities, num_substeps = setting.num_entities, setting.frame_spacing
    one_frame = _spring_propagator(pull, num_substeps)
    total_pull = pull.sum(1).max(0)  # [B]
    # If no |coordinate| exceeds R, no kick exceeds 2 R total_pull and the way of a frame is at most
    # n |velocity| + n (n + 1) R total_pull; so R = (|x| + n |velocity|) / (1 - n (n + 1) total_pull) bounds itself.
    stretch = 1 - num_substeps * (num_substeps + 1) * total_pull
    frames = np.empty((location.shape[2], setting.num_frames, num_entities, 4))
    state = np.concatenate([location, velocity], axis=1)  # [2, 2 N, B]
    moved, term = np.empty_like(state), np.empty_like(state)
    for frame in range(setting.num_frames):
        extent = np.abs(state[:, :num_entities]).max((0, 1)) + num_substeps * np.abs(state[:, num_entities:]).max(
            (0, 1)
        )
        reach = extent * (1 + 1e-9) / np.where(stretch > 0, stretch, 1.0)
        free = (stretch > 0) & (reach < setting.box) & (2 * reach * total_pull < SUBSTEP**2 * MAX_FORCE)
        np.multiply(one_frame[0], state[:, 0, None], out=moved)
        for column in range(1, 2 * num_entities):
            np.multiply(one_frame[column], state[:, column, None], out=term)
            moved += term
        if len(rest := np.flatnonzero(~free)):
            x, u = state[:, :num_entities, rest], state[:, num_entities:, rest]
            _substeps(x, u, _pair_kick(_by_pair(pull[:, :, rest]), inverse_cube=False), num_substeps, setting.box)
            moved[:, :num_entities, rest], moved[:, num_entities:, rest] = x, u
        state, moved = moved, state
        _record(frames, frame, state[:, :num_entities], state[:, num_entities:])
    return frames


def _spring_propagator(pull: Floats, num_substeps: int) -> Floats:
    """Linear map of ``num_substeps`` sub-steps on (location, velocity), ``[2 N (column), 2 N (row), B]``, no walls."""
    num_entities = len(pull)
    identity = np.eye(num_entities)[:, :, None]
    kick = pull - identity * pull.sum(1, keepdims=True)  # dt² F = kick @ location
    ones = np.broadcast_to(identity, kick.shape)
    step = np.concatenate([np.concatenate([ones + kick, ones], axis=1), np.concatenate([kick, ones], axis=1)])
    step = np.ascontiguousarray(step.swapaxes(0, 1))  # column first

    def product(left: Floats, right: Floats) -> Floats:
        # By hand, not by matmul: results must not depend on the number of scenes or on the linear algebra library.
        result = np.zeros_like(left)
        for k in range(2 * num_entities):
            result += left[k][None] * right[:, k, None]
        return result

    result = np.broadcast_to(np.eye(2 * num_entities)[:, :, None], step.shape)
    for bit in bin(num_substeps)[2:]:
        result = product(result, result)
        if bit == "1":
            result = product(step, result)
    return np.ascontiguousarray(result)


def charged(generators: Sequence[np.random.Generator], setting: Setting) -> tuple[Floats, NDArray[np.int64]]:
    """Trajectory ``[B, T, N, 4]`` and edge types ``[B, N, N]`` of charges: 1 = repel (like signs), 0 = attract."""
    num_entities, num_scenes = setting.num_entities, len(generators)
    uniform, location, velocity = _draw_start(generators, num_entities, num_entities, CHARGED_LOCATION_STD, setting.box)
    charge = np.where(uniform < 0.5, -1.0, 1.0)  # [B, N]
    sign = charge[:, :, None] * charge[:, None, :]
    edge_type = (sign > 0).astype(np.int64)
    edge_type[:, range(num_entities), range(num_entities)] = 0
    pull = -COULOMB_STRENGTH * SUBSTEP**2 * sign.transpose(1, 2, 0)
    kick = _pair_kick(_by_pair(pull), inverse_cube=True)
    frames = np.empty((num_scenes, setting.num_frames, num_entities, 4))
    for frame in range(setting.num_frames):
        _substeps(location, velocity, kick, setting.frame_spacing, setting.box)
        _record(frames, frame, location, velocity)
    return frames, edge_type


def _draw_start(
    generators: Sequence[np.random.Generator], num_entities: int, num_uniform: int, location_std: float, box: float
) -> tuple[Floats, Floats, Floats]:
    """Uniform numbers for the structure ``[B, num_uniform]``; location and velocity ``[2, N, B]``."""
    uniform = np.empty((len(generators), num_uniform))
    normal = np.empty((len(generators), 2, 2, num_entities))
    for generator, row, block in zip(generators, uniform, normal, strict=True):
        generator.random(out=row)
        generator.standard_normal(out=block)
    location = np.ascontiguousarray(location_std * normal[:, 0].transpose(1, 2, 0))
    velocity = np.ascontiguousarray(normal[:, 1].transpose(1, 2, 0))
    velocity *= SUBSTEP * SPEED / np.sqrt(velocity[0] ** 2 + velocity[1] ** 2)
    while _reflect(location, velocity, np.abs(location), box):
        pass  # more than once only where the box is much smaller than the generator's
    return uniform, location, velocity


def _by_pair(pull: Floats) -> tuple[Floats, Floats | None]:
    """``pull`` ``[receiver, sender, B]`` by unordered pair ``[P, B]``: on the lower entity, on the higher if different.

    Pairs are ordered by the difference of their two entities, so that all pairs of one difference are two slices.
    """
    num_entities = len(pull)
    low = np.concatenate([np.arange(num_entities - gap) for gap in range(1, num_entities)])
    high = np.concatenate([np.arange(gap, num_entities) for gap in range(1, num_entities)])
    on_low, on_high = pull[low, high], pull[high, low]
    return on_low, None if np.array_equal(on_low, on_high) else on_high


def _pair_kick(pull: tuple[Floats, Floats | None], *, inverse_cube: bool) -> Kick:
    """Kick by forces along the separations: ``pull * separation``, divided by distance cubed if ``inverse_cube``."""
    on_low, on_high = pull
    num_pairs, num_scenes = on_low.shape
    num_entities = round((1 + (1 + 8 * num_pairs) ** 0.5) / 2)
    separation = np.empty((2, num_pairs, num_scenes))
    other = separation if on_high is None else np.empty_like(separation)
    square, cube = np.empty_like(on_low), np.empty_like(on_low)
    total = np.empty((2, num_entities, num_scenes))
    largest = SUBSTEP**2 * MAX_FORCE
    slices, start = [], 0
    for gap in range(1, num_entities):
        slices.append((gap, slice(start, start + num_entities - gap)))
        start += num_entities - gap

    def kick(location: Floats) -> Floats:
        for gap, pair in slices:
            np.subtract(location[:, gap:], location[:, :-gap], out=separation[:, pair])
        weight = on_low
        if inverse_cube:
            np.multiply(separation[0], separation[0], out=square)
            np.multiply(separation[1], separation[1], out=cube)
            np.add(square, cube, out=square)
            np.sqrt(square, out=cube)
            np.multiply(cube, square, out=cube)
            weight = np.divide(on_low, cube, out=cube)
        if on_high is not None:
            np.multiply(separation, on_high, out=other)
        np.multiply(separation, weight, out=separation)
        total.fill(0)
        for gap, pair in slices:
            total[:, :-gap] += separation[:, pair]
            total[:, gap:] -= other[:, pair]
        np.minimum(total, largest, out=total)
        return np.maximum(total, -largest, out=total)

    return kick


def _substeps(location: Floats, velocity: Floats, kick: Kick, num_substeps: int, box: float) -> None:
    """Move all scenes by ``num_substeps``, in place."""
    size = np.empty_like(location)
    for _ in range(num_substeps):
        velocity += kick(location)
        location += velocity
        _reflect(location, velocity, np.abs(location, out=size), box)


def _reflect(location: Floats, velocity: Floats, size: Floats, box: float) -> bool:
    """Put what is beyond a wall back inside, moving inwards, in place; True if there was any. ``size`` = |location|."""
    if not size.max() > box:
        return False
    scenes = np.nonzero(size > box)
    outside = location[scenes]
    location[scenes] = np.copysign(2 * box, outside) - outside
    velocity[scenes] = -np.copysign(velocity[scenes], outside)
    return True


def _record(frames: Floats, frame: int, location: Floats, velocity: Floats) -> None:
    """Write ``[2, N, B]`` location and velocity into frame ``frame`` of ``frames`` ``[B, T, N, 4]``, in plain units."""
    frames[:, frame, :, :2] = location.transpose(2, 1, 0)
    frames[:, frame, :, 2:] = velocity.transpose(2, 1, 0) / SUBSTEP
