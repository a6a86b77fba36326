"""What simulators do beside their laws: a cap on forces, and the sub-steps in which they move.

Simulators often cap each component of the total force, so that no sub-step is too long, and a leapfrog's velocities are
those of half a sub-step before its positions, so that the clock lag tells how long a sub-step is. Where two entities
come close, both decide where they go. They are found by trial: the frames in which forces change fast are integrated
with and without, and what brings their ends closest to the observed ones is taken if that is clearly better.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nri.dynamics.integrated_paths import frame_errors, largest_forces
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.scenes.scenes import Scenes

#: Limits that are tried one beside another: of the first grid, then of each that lies closer around the best one.
NUM_LIMITS, NUM_CLOSER = 24, 9
#: How often a grid lies closer, under the broad loss and then under the fine one.
BROAD, FINE = 1, 7
#: Frames that are looked at, at least and at most.
MIN_FRAMES, MAX_FRAMES = 20, 400
#: Gain in nats over all frames that a limit must bring, and its mean over scenes in standard errors. Laws were fitted
#: without a limit and have taken up what they can of it, so that more cannot be asked.
GAIN, CLEAR = 10.0, 1.0
#: Errors far below this share of the typical way of a frame count alike: orbits are chaotic. Then, near the best limit,
#: small errors tell it more closely.
FLOOR, FINE_FLOOR = 0.1, 1e-4
#: Sub-steps of a frame that a clock lag may stand for.
SUBSTEPS = range(10, 1001)


def fit_integrator(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> None:
    """Set the limit of forces that explains the hard frames best, or none, and the sub-steps of paths, in place.

    Args:
        dynamics: with laws that are about right.
        scenes: raw units.
        row: number of scene and frame of the frames to look at, long ``[R, 2]``.
        structure: long ``[B, E]``.
    """
    if len(row) < MIN_FRAMES:
        return
    row = row[:: -(-len(row) // MAX_FRAMES)]
    trial = _Trial(dynamics, scenes, row, structure)
    low, high = trial.range_of_limits()
    limit = trial.best_limit(torch.linspace(math.log(low), math.log(high), NUM_LIMITS, dtype=torch.float64))
    if not trial.is_clear(trial.loss([math.inf]) - trial.loss([limit])):
        limit = math.inf
    dynamics.force_limit.fill_(limit)
    lag, duration = float(dynamics.clock_lag), float(dynamics.time_step)
    num_steps = round(duration / (2 * lag)) if lag > 0 else 0
    if num_steps in SUBSTEPS and num_steps != int(dynamics.leapfrog_steps):
        before, loss = int(dynamics.leapfrog_steps), trial.loss([limit])
        dynamics.leapfrog_steps.fill_(num_steps)
        dynamics.clock_lag.fill_(duration / (2 * num_steps))
        if math.isfinite(limit):
            limit = trial.best_limit(torch.linspace(-0.1, 0.1, NUM_CLOSER, dtype=torch.float64) + math.log(limit))
        if trial.is_clear(loss - trial.loss([limit])):
            dynamics.force_limit.fill_(limit)
        else:
            dynamics.leapfrog_steps.fill_(before)
            dynamics.clock_lag.fill_(lag)


class _Trial:
    """How well motion from the start of each frame ends where its end was seen."""

    def __init__(self, dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> None:
        self.dynamics, self.scenes, self.row, self.structure = dynamics, scenes, row, structure
        self.length = float(dynamics.length)

    def loss(self, limits: Sequence[float], floor: float = FLOOR, row: Tensor | None = None) -> Tensor:
        """How badly each frame, or each of R given ones, is explained under each of L limits, ``[L, R]``.

        It is that of Cauchy errors, as single ends may be anywhere.
        """
        limit, row = self.dynamics.force_limit.new_tensor(limits), self.row if row is None else row
        gap = frame_errors(self.dynamics, self.scenes, row, self.structure, limit)  # [L, R, N]
        return (gap.square() + (floor * self.length) ** 2).log().sum(-1) * self.dynamics.num_axes / 2

    def range_of_limits(self) -> tuple[float, float]:
        """From the mean force that one frame in ten exceeds to the largest force that occurs."""
        scene, frame = self.row.unbind(-1)
        velocity = self.scenes.trajectory.double()[..., self.dynamics.velocities]
        change = (velocity[scene, frame + 1] - velocity[scene, frame]).norm(dim=-1)
        low = float(change.quantile(0.9)) / self.scenes.time_step
        return low, 1.1 * max(float(self.peaks().max()), low)

    def peaks(self) -> Tensor:
        """Largest force in each frame without a limit, ``[R]``: no limit above it matters."""
        return largest_forces(self.dynamics, self.scenes, self.row, self.structure)

    def best_limit(self, log_limits: Tensor) -> float:
        """The best of a grid, then of grids that lie closer and closer around it, the last ones by small errors."""
        peaks = self.peaks()
        for number in range(1 + BROAD + FINE):
            limits = log_limits.exp().tolist()
            loss = self.loss(limits, FLOOR if number <= BROAD else FINE_FLOOR, self.row[peaks >= limits[0]]).sum(-1)
            best, width = log_limits[loss.argmin()], log_limits[1] - log_limits[0]
            log_limits = best + width * torch.linspace(-1, 1, NUM_CLOSER, dtype=log_limits.dtype)
        return math.exp(float(best))

    def is_clear(self, gain: Tensor) -> bool:
        """Whether a gain in nats for each frame ``[1, R]`` is large and, of several scenes, clear over them."""
        place, gain = self.row[:, 0], gain[0].double()
        by_scene = gain.new_zeros(self.scenes.num_scenes).index_add(0, place, gain)[place.unique()]
        error = float(by_scene.std()) * math.sqrt(len(by_scene)) if len(by_scene) > 1 else 0.0  # of the sum
        return float(gain.sum()) > max(GAIN, CLEAR * error)
