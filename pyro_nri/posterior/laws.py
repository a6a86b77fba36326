"""Learned force laws as a table: each law over distance, with an interval, and where data stand behind it."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.learning.law_continuation import resolved_from
from pyro_nri.scenes.oscillators import coupling_force
from pyro_nri.scenes.particles import coulomb_force, spring_force

Floats = NDArray[np.float64]
Law = Callable[[Floats], Floats]

#: What a point of a law needs to count as covered: so many scenes that speak about it, in effect.
MIN_SCENES = 3.0
#: Standard error of the best cubic spline beside a smooth curve, as a share of the fourth difference of coefficients:
#: 9 of 10 places between knots lie within 1.645 of it (the error is a Bernoulli polynomial, de Boor 1978).
SPLINE_ERROR = 1 / 1270
#: Largest relative error of a force that comes from the path within a frame; steeper forces have integrated paths.
PATH_ERROR = 1e-3

#: Laws of the simulated systems, by true edge type; positive = away from the sender.
TRUE_LAWS: dict[str, tuple[Law, ...]] = {
    "springs": (lambda distance: 0.0 * distance, spring_force),
    "charged": (lambda distance: coulomb_force(distance, -1), lambda distance: coulomb_force(distance, 1)),
    "kuramoto": (lambda difference: 0.0 * difference, coupling_force),
}


def laws_frame(checkpoint: Checkpoint, num_points: int = 200, interval: float = 0.9) -> pd.DataFrame:
    """The learned laws, one row for each edge type and point.

    The interval joins what three errors do: scenes that happen to be few (bootstrap, widened by Student's t for the
    effective number of scenes at the point), the spline between its knots, and the path between two frames, by its
    order in the time step. It is pointwise, and holds given the family of laws: forces along the separation that
    depend on nothing but distance and type.

    Args:
        checkpoint: a model with pair forces.
        num_points: number of points for each type, evenly spaced in log distance, or in the phase difference.
        interval: probability that an interval is to hold.

    Returns:
        Columns ``edge_type``, the learned type; ``aligned_type``, the true type that it stands for (-1: none), where
        the model knows; ``quantity``, "distance" or "phase difference", and ``distance``, its value, raw units;
        ``force`` on the receiver, positive = away from the sender (for phases: what is added to the rate), raw units:
        the median of the drawn laws, else the law of the model; ``low`` and ``high``, NaN where laws were not drawn;
        ``num_scenes``, the effective number of scenes that speak about this point; ``covered``, whether they are at
        least 3 and frames resolve the motion there (half a turn of two entities around each other, or half an
        oscillation, takes longer than a frame, here and at all larger distances).

    Raises:
        ValueError: the model has other dynamics, or an argument is out of range.
    """
    dynamics = checkpoint.model.on("cpu").dynamics
    if not isinstance(dynamics, PairForces):
        raise ValueError(f"laws belong to a model with pair forces, found dynamics {checkpoint.spec.dynamics!r}")
    if num_points < 2:
        raise ValueError(f"num_points must be at least 2, found {num_points}")
    if not 0 < interval < 1:
        raise ValueError(f"interval must be a probability between 0 and 1, found {interval}")
    laws, num_types = dynamics.laws, dynamics.num_edge_types
    grid = laws.points().double()
    place = torch.linspace(0, 1, num_points, dtype=torch.float64)
    points = grid[0] + place * (grid[-1] - grid[0]) if laws.circular else grid[0] * (grid[-1] / grid[0]) ** place
    distance = points.numpy()
    num_scenes = np.zeros((num_types, num_points))
    draws = checkpoint.law_draws
    if draws is None or checkpoint.law_support is None:
        with torch.no_grad():
            force = laws(points).T.double().numpy()  # [K, M]
        low = high = np.full_like(force, np.nan)
    else:
        for k, support in enumerate(checkpoint.law_support.double().numpy()):
            num_scenes[k] = np.interp(place, np.linspace(0, 1, len(support)), support)
        drawn = _evaluate(laws, draws, points)  # [R, K, M]
        force = np.median(drawn, axis=0)
        shares = ((1 - interval) / 2, (1 + interval) / 2)
        below, above = np.abs(np.quantile(drawn, shares, axis=0) - force)
        deviate = stats.norm.ppf(shares[1])
        widen = stats.t.ppf(shares[1], np.maximum(num_scenes - 1, 1)) / deviate
        error = deviate * _systematic_error(laws, draws, points, force, float(dynamics.time_step))
        low, high = force - np.hypot(widen * below, error), force + np.hypot(widen * above, error)
    covered, time_step = num_scenes >= MIN_SCENES, float(dynamics.time_step)
    if not laws.circular:
        for k in range(num_types):
            some = num_scenes[k] > 0
            covered[k] &= distance > resolved_from(points[some], torch.from_numpy(force[k][some]), time_step)
    columns = {
        "edge_type": np.repeat(np.arange(num_types), num_points),
        "quantity": np.full(num_types * num_points, "phase difference" if laws.circular else "distance"),
        "distance": np.tile(distance, num_types),
        "force": force.ravel(),
        "low": low.ravel(),
        "high": high.ravel(),
        "num_scenes": num_scenes.ravel(),
        "covered": covered.ravel(),
    }
    frame = pd.DataFrame(columns)
    frame.attrs["interval"] = interval
    if checkpoint.alignment is not None:
        frame.insert(1, "aligned_type", np.asarray(checkpoint.alignment)[frame["edge_type"]])
    return frame


def _evaluate(laws: ForceLaws, coefficient: Tensor, points: Tensor) -> Floats:
    """Laws ``[*batch, P]`` at distances or angles ``[M]``: forces ``[*batch, M]``."""
    index, weight = laws.basis(points)
    value = (coefficient[..., index] * weight).sum(-1)
    return np.asarray(value if laws.circular else value / points)


def _systematic_error(laws: ForceLaws, draws: Tensor, points: Tensor, force: Floats, time_step: float) -> Floats:
    """Standard error of the median law that all scenes share, ``[K, M]``."""
    coefficient = draws.median(0).values.numpy()  # [K, P]
    padded = np.pad(coefficient, ((0, 0), (2, 2)), mode="wrap" if laws.circular else "edge")
    bend = np.abs(np.diff(padded, n=4, axis=1))  # [K, P]
    if not laws.circular:
        bend[:, :2], bend[:, -2:] = bend[:, 2:3], bend[:, -3:-2]
    index, _ = laws.basis(points)
    spline = SPLINE_ERROR * bend[:, index[:, 1:3].numpy()].max(-1)
    if laws.circular:
        return np.asarray(spline)
    distance = points.numpy()
    steep = np.abs(np.gradient(force, distance, axis=1)) * time_step**2 / 12
    # The path is a cubic one: what it leaves out is of the next order in the time step.
    path = np.minimum(steep**2, PATH_ERROR) * np.abs(force)
    return np.asarray(np.hypot(spline / distance, path))
