"""Laws at distances that no data resolve: there a law goes on as the power of the distance that it has been so far.

Two entities that pull each other turn around each other within a frame or two when they are close, and those that repel
each other never come close. What a regression reads there is an artefact of paths that nobody saw. Rollouts and
integrated paths need a force there all the same.
"""

import math

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws

#: A coefficient is resolved where its standard error is below this share of it, there and at all larger distances.
RESOLVED = 0.02
#: The power is that of the law over this range of log distance above the place where it is lost.
WINDOW = 1.0
#: Steepest powers of ``r f(r)``; with fewer resolved coefficients than this in the window a law is left as it is.
STEEPEST, MIN_COEFFICIENTS = 12.0, 5
#: No coefficient weighs more than one that is known to 1e-3: laws are seldom powers to more than that.
MAX_WEIGHT = 1e6
MAX_PASSES = 3


def resolved_from(distance: Tensor, force: Tensor, time_step: float) -> float:
    """Distance up to which two entities that pull each other go around in less than two frames; 0 for none.

    Args:
        distance: ``[M]``, raw units.
        force: on each of them, under one law or several, ``[*laws, M]``.
        time_step: of a frame.
    """
    turns = 2 * force.abs() / distance * time_step**2 > math.pi**2
    lost = distance.expand_as(turns)[turns]
    return float(lost.max()) if len(lost) else 0.0


def continue_laws(laws: ForceLaws, coefficient: Tensor, error: Tensor, time_step: float) -> Tensor:
    """Splines of ``r f(r)`` whose unresolved lower end goes on as a power of the distance.

    A spline whose coefficients form a geometric series is a power of the distance.

    Args:
        laws: say where splines are; over distances.
        coefficient: fitted, ``[*batch, K, NUM_SPLINES]``.
        error: standard errors of coefficients, ``[K, NUM_SPLINES]``.
        time_step: of a frame.

    Returns:
        ``[*batch, K, NUM_SPLINES]``; laws without a resolved stretch of one sign as they were.
    """
    result, lost_below = _continued(laws, coefficient, error, 0.0), 0.0
    for _ in range(MAX_PASSES):  # a law that was too weak there turns entities faster once it goes on
        median = result.reshape(-1, *result.shape[-2:]).median(0).values
        distance = _knots(laws).exp()
        if (reached := resolved_from(distance, median / distance, time_step)) <= lost_below:
            break
        result, lost_below = _continued(laws, coefficient, error, reached), reached
    return result


def _continued(laws: ForceLaws, coefficient: Tensor, error: Tensor, lost_below: float) -> Tensor:
    """One pass of :func:`continue_laws`, with the distance up to which nothing is resolved."""
    place, result = _knots(laws), coefficient.clone()
    step = float(place[1] - place[0])
    batch, flat = coefficient.reshape(-1, *coefficient.shape[-2:]), result.view(-1, *coefficient.shape[-2:])
    center = batch.median(0).values
    for k in range(int(laws.no_interaction), len(center)):
        relative = torch.where(place.exp() <= lost_below, torch.inf, error[k] / center[k].abs())
        lost, best = relative > RESOLVED, int(relative.argmin())
        below = lost[:best].nonzero()
        if len(below) == 0:
            continue
        first = int(below.max()) + 1
        window = slice(first, first + round(WINDOW / step))
        values = center[k, window]
        weight = (values / error[k, window]).square().clamp(max=MAX_WEIGHT) * ~lost[window]
        if int((weight > 0).sum()) < MIN_COEFFICIENTS or bool((values.sign() != values[0].sign()).any()):
            continue
        every = batch[:, k, window]
        usable = (every.sign() == values.sign()).all(-1)
        x = place[window] - (weight * place[window]).sum() / weight.sum()
        logs = every.abs().clamp(min=1e-300).log()
        power = ((weight * x * logs).sum(-1) / (weight * x * x).sum()).clamp(-STEEPEST, STEEPEST)
        away = place[:first] - place[first]
        flat[usable, k, :first] = (every[:, :1] * (power[:, None] * away).exp())[usable]
    return result


def _knots(laws: ForceLaws) -> Tensor:
    """Log distance at which each spline is largest, ``[NUM_SPLINES]``."""
    low, high = float(laws.low), float(laws.high)
    return low + (torch.arange(NUM_SPLINES, dtype=torch.float64) - 1) * (high - low) / (NUM_SPLINES - 3)
