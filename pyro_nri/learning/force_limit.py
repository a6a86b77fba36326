"""Whether forces are limited: simulators often cap each component of the total force, so that no sub-step is too long.

Where two entities come close, a cap decides where they go. It is found by trial: the frames in which forces change fast
are integrated under several limits, and the limit whose ends of frames are closest to the observed ones is taken if it
explains them better than none.
"""

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from pyro_nri.dynamics.integrated_paths import frame_errors, largest_force
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.scenes.scenes import Scenes

#: Limits that are tried, from the largest force that occurs downwards, and the smallest as a share of it.
NUM_LIMITS, SMALLEST = 12, 0.02
#: How far in logarithm from a limit found before a new one is looked for.
NEARBY = 0.1
#: Frames that are looked at, at least and at most.
MIN_FRAMES, MAX_FRAMES = 20, 600
#: Gain in nats over all frames that a limit must bring, and its mean over scenes in standard errors. Laws were fitted
#: without a limit and have taken up what they can of it, so that more cannot be asked.
GAIN, CLEAR = 10.0, 1.0
#: Errors far below this share of the typical way of a frame count alike: orbits are chaotic.
FLOOR = 0.1


def fit_force_limit(dynamics: PairForces, scenes: Scenes, row: Tensor, structure: Tensor) -> None:
    """Set the limit of forces that explains the hard frames best, or none, in place.

    Args:
        dynamics: with laws that are about right; a limit that it has is where the search begins.
        scenes: raw units.
        row: number of scene and frame of the frames to look at, long ``[R, 2]``.
        structure: long ``[B, E]``.
    """
    if len(row) < MIN_FRAMES:
        return
    row = row[:: -(-len(row) // MAX_FRAMES)]
    floor = FLOOR * float(dynamics.length)

    def loss(limit: float) -> Tensor:
        """How badly each frame is explained, ``[R]``: that of Cauchy errors, as single ends may be anywhere."""
        dynamics.force_limit.fill_(limit)
        gap = frame_errors(dynamics, scenes, row, structure)
        return (gap.square() + floor**2).log().sum(-1) * dynamics.num_axes / 2

    def total(log_limit: float) -> float:
        return float(loss(math.exp(log_limit)).sum())

    before = float(dynamics.force_limit)
    without = loss(math.inf)
    if math.isfinite(before):
        best, width = math.log(before), NEARBY
    else:
        largest = largest_force(dynamics, scenes, row, structure)
        tried = torch.linspace(0, math.log(SMALLEST), NUM_LIMITS + 1)[1:].add(math.log(largest)).tolist()
        best, width = min(tried, key=total), -math.log(SMALLEST) / NUM_LIMITS
    found = minimize_scalar(total, bounds=(best - width, best + width), method="bounded", options={"xatol": 1e-3})
    limit = math.exp(found.x)
    gain = (without - loss(limit)).double()
    by_scene = gain.new_zeros(scenes.num_scenes).index_add(0, row[:, 0], gain)[row[:, 0].unique()]
    error = float(by_scene.std()) * math.sqrt(len(by_scene))  # of the sum
    is_clear = float(gain.sum()) > max(GAIN, CLEAR * error)
    dynamics.force_limit.fill_(limit if is_clear else math.inf)
