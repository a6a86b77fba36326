"""Scenes per second of the simulator, beside a plain loop over scenes written after NRI's algorithm.

Both run in this process and on the same starts; the table also gives the largest difference of their states, over the
worst and over the median scene: charged particles that orbit each other closely amplify rounding without bound.

    python benchmarks/simulate.py --num-scenes 4096
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.scenes import edges, oscillators
from pyro_nri.scenes import particles as physics
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import SYSTEMS, simulate


def plain_scene(
    start: NDArray[np.float64], edge: NDArray[np.float64], system: str, num_frames: int, spacing: int
) -> NDArray[np.float64]:
    """One scene sub-step by sub-step, from the state ``[N, 4]`` at frame 0 to ``[T, N, 4]``.

    ``edge`` ``[N, N]`` holds the stiffness of the pair, or the product of its charges.
    """
    x, v = start[:, :2].T.copy(), start[:, 2:].T.copy()
    num_entities = x.shape[1]
    frames = np.empty((num_frames, num_entities, 4))
    for step in range((num_frames - 1) * spacing + 1):
        if step % spacing == 0:
            frames[step // spacing] = np.concatenate([x, v]).T
        separation = x[:, :, None] - x[:, None, :]
        if system == "springs":
            size = -edge
        else:
            with np.errstate(divide="ignore"):
                size = physics.COULOMB_STRENGTH * edge / np.power((separation**2).sum(0), 1.5)
            np.fill_diagonal(size, 0)
        force = (size * separation).sum(-1)
        force[force > physics.MAX_FORCE] = physics.MAX_FORCE
        force[force < -physics.MAX_FORCE] = -physics.MAX_FORCE
        v += physics.SUBSTEP * force
        x += physics.SUBSTEP * v
        over, under = x > physics.BOX, x < -physics.BOX
        x[over], v[over] = 2 * physics.BOX - x[over], -np.abs(v[over])
        x[under], v[under] = -2 * physics.BOX - x[under], np.abs(v[under])
    return frames


def plain_oscillators(
    start: NDArray[np.float64], edge: NDArray[np.float64], num_frames: int, spacing: int
) -> NDArray[np.float64]:
    """One scene of oscillators, Runge-Kutta step by step, from the state ``[N, 3]`` at frame 0 to ``[T, N, 3]``."""
    phase, omega = start[:, 0].copy(), start[:, 2]

    def rate(phase: NDArray[np.float64]) -> NDArray[np.float64]:
        return omega + (edge * np.sin(phase[None, :] - phase[:, None])).sum(1)

    step, frames = oscillators.SUBSTEP, np.empty((num_frames, len(phase), 3))
    for frame in range(num_frames):
        for _ in range(spacing if frame else 0):
            first = rate(phase)
            second = rate(phase + step / 2 * first)
            third = rate(phase + step / 2 * second)
            phase = phase + step / 6 * (first + 2 * second + 2 * third + rate(phase + step * third))
        frames[frame] = np.stack([phase, rate(phase), omega], axis=-1)
    return frames


def plain(scenes: Scenes, system: str, num_frames: int) -> NDArray[np.float64]:
    """All of ``scenes`` again, one after the other, from their true first frame."""
    assert scenes.edge_type is not None
    assert scenes.initial_state is not None
    types = edges.to_matrix(scenes.edge_type).numpy().astype(np.float64)  # symmetric in every system
    values = types * physics.SPRING_STIFFNESS if system == "springs" else 2 * types - 1
    starts = scenes.initial_state.numpy()
    if system == "kuramoto":
        return np.stack([plain_oscillators(*scene, num_frames, 10) for scene in zip(starts, types, strict=True)])
    return np.stack(
        [plain_scene(start, edge, system, num_frames, 100) for start, edge in zip(starts, values, strict=True)]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-scenes", type=int, default=4096, help="scenes of the vectorised simulator")
    parser.add_argument("--num-plain", type=int, default=10, help="scenes of the plain loop")
    parser.add_argument("--num-frames", type=int, default=49)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few scenes and frames, to see that it runs")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.num_scenes, arguments.num_plain, arguments.num_frames = 20, 2, 5
    num_plain = min(arguments.num_plain, arguments.num_scenes)
    print(f"{arguments.num_frames} frames, float64; plain loop: {num_plain} scenes, vectorised: {arguments.num_scenes}")
    print(f"{'system':8} {'scenes/s':>10} {'plain/s':>8} {'ratio':>7} {'worst diff':>11} {'median':>9}")
    for system in SYSTEMS:
        simulate(system, 2, num_frames=2, seed=arguments.seed)  # imports and first touches are not timed
        begin = time.perf_counter()
        scenes = simulate(system, arguments.num_scenes, num_frames=arguments.num_frames, seed=arguments.seed)
        rate = arguments.num_scenes / (time.perf_counter() - begin)
        few = scenes[:num_plain]
        begin = time.perf_counter()
        expected = plain(few, system, arguments.num_frames)
        plain_rate = num_plain / (time.perf_counter() - begin)
        difference = np.abs(few.trajectory.numpy() - expected).max((1, 2, 3))
        print(
            f"{system:8} {rate:10.0f} {plain_rate:8.2f} {rate / plain_rate:7.0f} {difference.max():11.1e} "
            f"{np.median(difference):9.1e}"
        )


if __name__ == "__main__":
    main()
