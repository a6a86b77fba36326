"""Simulated scenes with known structure: springs and charged particles, after the generator of NRI.

The physics is that of Kipf et al. (2018), "Neural Relational Inference for Interacting Systems", and of the code they
released: particles in a square box with elastic walls, moved by sub-steps of 0.001, seen every 100 sub-steps. One
sub-step is kick, drift, reflect::

    v <- v + dt * clip(F(x), -100, 100)      clipped component by component
    x <- x + dt * v
    where x is beyond a wall: x <- 2 * wall - x, and v points inwards

The first observed frame comes after ``frame_spacing`` sub-steps, not at the drawn start (that generator overwrites its
frame 0). Its "half step" is a whole one, so velocities are those of half a sub-step before the positions; both are kept
here as they are there. Every physics constant of the package lives in this file.

Many scenes move together: arrays have the scenes on their last axis, and only element-wise arithmetic touches them, so
a scene comes out the same, bit for bit, whichever scenes are simulated beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

SUBSTEP = 0.001
"""Time of one sub-step of the particle systems."""
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

Floats = NDArray[np.float64]
# Elements of the largest array of one chunk of scenes: the chunk should stay within the processor's last cache.
_CHUNK_ELEMENTS = 2**19
_CHUNK_SCENES = 4096


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


@dataclass(frozen=True)
class Setting:
    """What a system needs to know about the scenes that are wanted; see :func:`simulate`."""

    num_entities: int
    num_frames: int
    frame_spacing: int
    box: float
    spring_types: tuple[float, ...]
    link_probability: float
    symmetric: bool


@dataclass(frozen=True)
class System:
    """One kind of simulated system.

    Attributes:
        state_names: names of the D state variables.
        substep: time of one sub-step.
        run: from one random generator for each of B scenes and the setting to a noise-free trajectory ``[B, T, N, D]``
            and edge types ``[B, N, N]`` (row = sender). It draws the same numbers from a generator whatever stands
            beside it.
    """

    state_names: tuple[str, ...]
    substep: float
    run: Callable[[Sequence[np.random.Generator], Setting], tuple[Floats, NDArray[np.int64]]]


def simulate(
    system: str,
    num_scenes: int,
    *,
    seed: int,
    first_scene: int = 0,
    num_entities: int = 5,
    num_frames: int = 49,
    frame_spacing: int = 100,
    measurement_noise: float = 0.0,
    link_probability: float | None = None,
    spring_types: Sequence[float] | None = None,
    symmetric: bool = True,
    box: float = BOX,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Scenes:
    """Draw scenes of a known system, with their true structure.

    Scene ``b`` of a seed is the same whatever ``num_scenes`` and ``first_scene`` are, its first frames do not depend on
    ``num_frames``, and measurement noise is added to the path that the seed gives without noise.

    Args:
        system: "springs" (edge type k = spring of stiffness ``spring_types[k]``) or "charged" (charges -1 and +1
            equally likely; edge type 0 = attract, 1 = repel).
        num_scenes: B.
        seed: with the number of a scene it decides everything random in that scene.
        first_scene: number of the first scene, also its name; disjoint ranges give independent scenes.
        num_entities: N.
        num_frames: T; frame t is seen ``(t + 1) * frame_spacing`` sub-steps after the drawn start.
        frame_spacing: sub-steps between two frames; ``time_step`` of the scenes is this many times 0.001.
        measurement_noise: standard deviation of independent Gaussian noise on every observed number, in the units of
            the state (positions and velocities alike); ``initial_state`` stays free of it.
        link_probability: springs: probability that a pair has another type than 0, shared equally by the other types;
            default: every type equally likely.
        spring_types: springs: stiffness of each edge type; default (0, 0.1), no link and a link.
        symmetric: springs: both edges of a pair have one type. False: each edge has its own, and a spring pulls only
            the receiver, so momentum is not conserved.
        box: distance of the walls from the origin; ``float("inf")`` for none.
        dtype: type of the floats of the scenes; the simulation itself runs in float64.
        progress: show a bar on stderr.

    Returns:
        Scenes with state x, y, vx, vy, true ``edge_type``, and ``initial_state`` = the noise-free state at frame 0 (the
        first frame seen, not the drawn start).

    Raises:
        ValueError: an argument is out of its range, or belongs to another system.

    >>> simulate("springs", 2, num_frames=3, seed=0)
    Scenes(2 scenes, 3 frames, 5 entities, state x, y, vx, vy, 2 structures, truth known)
    """
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(sorted(SYSTEMS))}, found {system!r}")
    for name, count, least in (
        ("num_scenes", num_scenes, 1),
        ("num_entities", num_entities, 2),
        ("num_frames", num_frames, 2),
        ("frame_spacing", frame_spacing, 1),
        ("first_scene", first_scene, 0),
        ("seed", seed, 0),
    ):
        if count != int(count) or count < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, found {count}")
    if not 0 <= measurement_noise < float("inf"):
        raise ValueError(f"measurement_noise must be a standard deviation of at least 0, found {measurement_noise}")
    if not box >= 1:
        raise ValueError(f"box must be at least 1, the spread of the drawn starts, found {box}")
    if system != "springs" and (link_probability is not None or spring_types is not None or not symmetric):
        raise ValueError(f"link_probability, spring_types and symmetric belong to springs, found them with {system!r}")
    types = (0.0, SPRING_STIFFNESS) if spring_types is None else tuple(float(stiffness) for stiffness in spring_types)
    if len(types) < 2 or not all(0 <= stiffness < float("inf") for stiffness in types):
        raise ValueError(f"spring_types must be at least two stiffnesses of 0 or more, found {list(types)}")
    linked = 1 - 1 / len(types) if link_probability is None else float(link_probability)
    if not 0 <= linked <= 1:
        raise ValueError(f"link_probability must lie between 0 and 1, found {link_probability}")

    chosen = SYSTEMS[system]
    setting = Setting(num_entities, num_frames, frame_spacing, float(box), types, linked, symmetric)
    state_size = len(chosen.state_names)
    trajectory = np.empty((num_scenes, num_frames, num_entities, state_size))
    edge_type = np.empty((num_scenes, num_entities, num_entities), dtype=np.int64)
    initial_state = np.empty((num_scenes, num_entities, state_size))
    chunk = min(_CHUNK_SCENES, max(1, _CHUNK_ELEMENTS // (2 * num_entities) ** 2))
    with tqdm(total=num_scenes, unit="scene", disable=not progress) as bar:
        for start in range(0, num_scenes, chunk):
            part = slice(start, min(start + chunk, num_scenes))
            generators = [
                np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(first_scene + scene,))))
                for scene in range(part.start, part.stop)
            ]
            trajectory[part], edge_type[part] = chosen.run(generators, setting)
            initial_state[part] = trajectory[part, 0]
            if measurement_noise > 0:
                for scene, generator in zip(range(part.start, part.stop), generators, strict=True):
                    trajectory[scene] += measurement_noise * generator.standard_normal(trajectory.shape[1:])
            bar.update(len(generators))
    scenes = Scenes.from_arrays(
        trajectory,
        time_step=chosen.substep * frame_spacing,
        scene_names=range(first_scene, first_scene + num_scenes),
        state_names=chosen.state_names,
        edge_type=edges.from_matrix(torch.from_numpy(edge_type)),
        initial_state=initial_state,
    )
    return scenes if dtype == torch.float64 else scenes.to(dtype)


# --- particles -------------------------------------------------------------------------------------------------------
# Inside, scenes stand last: location and velocity are [2, N, B], and velocity is the way in one sub-step, dt v.
# A kick maps locations to the change of that velocity, dt² F.
Kick = Callable[[Floats], Floats]


def _springs(generators: Sequence[np.random.Generator], setting: Setting) -> tuple[Floats, NDArray[np.int64]]:
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


def _charged(generators: Sequence[np.random.Generator], setting: Setting) -> tuple[Floats, NDArray[np.int64]]:
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


_STATE = ("x", "y", "vx", "vy")
SYSTEMS = {
    "springs": System(_STATE, SUBSTEP, _springs),
    "charged": System(_STATE, SUBSTEP, _charged),
}
"""Systems that :func:`simulate` knows, by name."""
