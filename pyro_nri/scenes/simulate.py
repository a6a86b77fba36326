"""Simulated scenes with known structure: springs, charged particles and phase oscillators.

The laws and every physics constant of the package are in :mod:`pyro_nri.scenes.particles` and
:mod:`pyro_nri.scenes.oscillators`; here scenes are counted, seeded, measured and named.

Many scenes move together: a system's arrays have the scenes on their last axis, and only element-wise arithmetic
touches them, so a scene comes out the same, bit for bit, whichever scenes are simulated beside it.
"""

from collections.abc import Sequence

import numpy as np
import torch
from tqdm import tqdm

from pyro_nri.scenes import edges, oscillators, particles
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.systems import Setting, System

# Elements of the largest array of one chunk of scenes: the chunk should stay within the processor's last cache.
_CHUNK_ELEMENTS = 2**19
_CHUNK_SCENES = 4096

SYSTEMS = {
    "springs": System(
        particles.STATE_NAMES,
        particles.SUBSTEP,
        particles.FRAME_SPACING,
        particles.springs,
        options=("box", "spring_types", "link_probability", "symmetric"),
    ),
    "charged": System(
        particles.STATE_NAMES, particles.SUBSTEP, particles.FRAME_SPACING, particles.charged, options=("box",)
    ),
    "kuramoto": System(
        oscillators.STATE_NAMES,
        oscillators.SUBSTEP,
        oscillators.FRAME_SPACING,
        oscillators.kuramoto,
        options=("link_probability", "symmetric"),
        known_states=("omega",),
    ),
}
"""Systems that :func:`simulate` knows, by name."""


def simulate(
    system: str,
    num_scenes: int,
    *,
    seed: int,
    first_scene: int = 0,
    num_entities: int = 5,
    num_frames: int = 49,
    frame_spacing: int | None = None,
    measurement_noise: float = 0.0,
    link_probability: float | None = None,
    spring_types: Sequence[float] | None = None,
    symmetric: bool = True,
    box: float | None = None,
    dtype: torch.dtype = torch.float64,
    progress: bool = False,
) -> Scenes:
    """Draw scenes of a known system, with their true structure.

    Scene ``b`` of a seed is the same whatever ``num_scenes`` and ``first_scene`` are, its first frames do not depend on
    ``num_frames``, and measurement noise is added to the path that the seed gives without noise.

    Args:
        system: "springs" (edge type k = spring of stiffness ``spring_types[k]``), "charged" (charges -1 and +1 equally
            likely; edge type 0 = attract, 1 = repel) or "kuramoto" (phase oscillators; edge type 1 = coupled).
        num_scenes: B.
        seed: with the number of a scene it decides everything random in that scene.
        first_scene: number of the first scene, also its name; disjoint ranges give independent scenes.
        num_entities: N.
        num_frames: T; particles: frame t is seen ``(t + 1) * frame_spacing`` sub-steps after the drawn start;
            kuramoto: ``t * frame_spacing``, so frame 0 is the drawn start.
        frame_spacing: sub-steps between two frames; default: 100 of 0.001 for particles, 10 of 0.01 for kuramoto, in
            both a ``time_step`` of 0.1.
        measurement_noise: standard deviation of independent Gaussian noise on every observed number, in the units of
            the state (positions and velocities alike); ``initial_state`` and the known ``omega`` stay free of it.
        link_probability: springs, kuramoto: probability that a pair has another type than 0, shared equally by the
            other types; default: every type equally likely.
        spring_types: springs: stiffness of each edge type; default (0, 0.1), no link and a link.
        symmetric: springs, kuramoto: both edges of a pair have one type. False: each edge has its own, and acts on the
            receiver only; springs then do not conserve momentum.
        box: springs, charged: distance of the walls from the origin, default 5; ``float("inf")`` for none.
        dtype: type of the floats of the scenes; the simulation itself runs in float64.
        progress: show a bar on stderr.

    Returns:
        Scenes with state x, y, vx, vy (kuramoto: phi, not wrapped; vphi, its rate at the frame; omega, the constant
        natural frequency), true ``edge_type``, and ``initial_state`` = the noise-free state at frame 0.

    Raises:
        ValueError: an argument is out of its range, or belongs to another system.

    >>> simulate("springs", 2, num_frames=3, seed=0)
    Scenes(2 scenes, 3 frames, 5 entities, state x, y, vx, vy, 2 structures, truth known)
    """
    if system not in SYSTEMS:
        raise ValueError(f"system must be one of {', '.join(sorted(SYSTEMS))}, found {system!r}")
    chosen = SYSTEMS[system]
    if frame_spacing is None:
        frame_spacing = chosen.frame_spacing
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
    options = {"link_probability": link_probability, "spring_types": spring_types, "box": box}
    given = [name for name, value in options.items() if value is not None] + ([] if symmetric else ["symmetric"])
    for name in given:
        if name not in chosen.options:
            owners = ", ".join(owner for owner in SYSTEMS if name in SYSTEMS[owner].options)
            raise ValueError(f"{name} belongs to {owners}, found it with {system!r}")
    wall = particles.BOX if box is None else float(box)
    if not wall >= 1:
        raise ValueError(f"box must be at least 1, the spread of the drawn starts, found {box}")
    types = (0.0, particles.SPRING_STIFFNESS) if spring_types is None else tuple(float(k) for k in spring_types)
    if len(types) < 2 or not all(0 <= stiffness < float("inf") for stiffness in types):
        raise ValueError(f"spring_types must be at least two stiffnesses of 0 or more, found {list(types)}")
    linked = 1 - 1 / len(types) if link_probability is None else float(link_probability)
    if not 0 <= linked <= 1:
        raise ValueError(f"link_probability must lie between 0 and 1, found {link_probability}")

    setting = Setting(num_entities, num_frames, frame_spacing, wall, types, linked, symmetric)
    state_size = len(chosen.state_names)
    measured = [d for d, name in enumerate(chosen.state_names) if name not in chosen.known_states]
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
                    noise = generator.standard_normal((num_frames, num_entities, len(measured)))
                    trajectory[scene][..., measured] += measurement_noise * noise
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
