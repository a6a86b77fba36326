"""Laws at distances that no data resolve: there a law goes on as the power of the distance that it has been so far.

Two entities that pull each other turn around each other within a frame or two when they are close, and those that repel
each other never come close. What a regression reads there is an artefact of paths that nobody saw. Rollouts and
integrated paths need a force there all the same.
"""

import math

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws

#: A coefficient is resolved where its standard error is below this share of it, and a law from the first run of so many
#: resolved ones on: where it changes its sign a single coefficient is small.
RESOLVED, RUN = 0.02, 3
#: Where the best known one of the window has at most the second share as its standard error, with what such errors are
#: found to be too small by, coefficients are those of the line up to the last one whose error is above the first share.
KEPT, SHARP = 1e-5, 1e-4
#: Range of log distance, above the place where a law is lost, that says which power of the distance it is.
WINDOW = 1.5
#: With fewer resolved coefficients than this in the window a law is left as it is.
MIN_COEFFICIENTS = 5
#: Tried for how much too small standard errors are, and for how far the slope over log distance changes from one spline
#: to the next.
INFLATION, BEND = torch.logspace(0, 1.5, 6).double(), torch.logspace(-8, -1, 15).double()
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


def continue_laws(laws: ForceLaws, coefficient: Tensor, covariance: Tensor, time_step: float) -> Tensor:
    """Splines of ``r f(r)`` whose unresolved lower end goes on as a power of the distance.

    A spline whose coefficients form a geometric series is a power of the distance. So the logarithms of resolved
    coefficients are taken for a line that bends little from one to the next and was seen with errors; how much it bends
    is read off them (restricted maximum likelihood), and the line says what is not resolved.

    Args:
        laws: say where splines are; over distances.
        coefficient: fitted, ``[*batch, K, NUM_SPLINES]``.
        covariance: of each law's coefficients, ``[K, NUM_SPLINES, NUM_SPLINES]``.
        time_step: of a frame.

    Returns:
        ``[*batch, K, NUM_SPLINES]``; laws without a resolved stretch of one sign as they were.
    """
    result, lost_below = _continued(laws, coefficient, covariance, 0.0), 0.0
    for _ in range(MAX_PASSES):  # a law that was too weak there turns entities faster once it goes on
        median = result.reshape(-1, *result.shape[-2:]).median(0).values
        distance = _knots(laws).exp()
        if (reached := resolved_from(distance, median / distance, time_step)) <= lost_below:
            break
        result, lost_below = _continued(laws, coefficient, covariance, reached), reached
    return result


def _continued(laws: ForceLaws, coefficient: Tensor, covariance: Tensor, lost_below: float) -> Tensor:
    """One pass of :func:`continue_laws`, with the distance up to which nothing is resolved."""
    place, result = _knots(laws), coefficient.clone()
    size = round(WINDOW / float(place[1] - place[0]))
    batch, flat = coefficient.reshape(-1, *coefficient.shape[-2:]), result.view(-1, *coefficient.shape[-2:])
    center = batch.median(0).values
    for k in range(int(laws.no_interaction), len(center)):
        variance = covariance[k].diagonal()
        error = torch.where((variance > 0) & (place.exp() > lost_below), variance.abs().sqrt(), torch.inf)
        relative = error / center[k].abs()
        lost = ~(relative <= RESOLVED)
        starts = (~lost).unfold(0, RUN, 1).all(-1).nonzero()
        first = int(starts.min()) if len(starts) else 0
        if first == 0:
            continue
        seen = first + (~lost[first : first + size]).nonzero().squeeze(-1)
        values = center[k, seen]
        if len(seen) < MIN_COEFFICIENTS or bool((values.sign() != values[0].sign()).any()):
            continue
        spread = covariance[k][seen][:, seen] / (values[:, None] * values)
        every = batch[:, k, seen]
        usable = (every.sign() == values.sign()).all(-1)
        inflation, line = _line(values.abs().log(), spread, seen)
        if line is None:
            continue
        error = inflation * relative[seen]
        replaced = seen[(error > KEPT) & (error.min() < SHARP)]
        until = int(replaced.max()) + 1 if len(replaced) else first
        told = (line @ every.abs().clamp(min=1e-300).log().T).T.exp() * values[0].sign()
        flat[usable, k, :until] = told[usable, :until]
    return result


def _line(value: Tensor, error: Tensor, place: Tensor) -> tuple[float, Tensor | None]:
    """How to read a line that bends a little off some of its values.

    Args:
        value: ``[M]``.
        error: their covariance, ``[M, M]``.
        place: where they stand on it, ascending integers, ``[M]``.

    Returns:
        How much too small standard errors are, and what gives the line at places 0 to the last one, ``[L, M]``; None
        where the covariance is none.
    """
    ramp = torch.arange(int(place[-1]) + 1, dtype=value.dtype).flip(0)  # its slope changes from the upper end on
    walk = (ramp[:, None] - ramp - 1).clamp(min=0)  # twice summed: [L, L]
    scatter, basis = walk @ walk.T, torch.stack([torch.ones_like(ramp), ramp], -1)
    floor = 1e-24 * torch.eye(len(value), dtype=value.dtype)
    best: float = -math.inf
    chosen: tuple[float, Tensor | None] = (1.0, None)
    for inflation in INFLATION:
        for bend in BEND:
            system = inflation**2 * error + bend**2 * scatter[place][:, place] + floor
            scale = system.diagonal().rsqrt()
            root, failed = torch.linalg.cholesky_ex(scale[:, None] * system * scale + 1e12 * floor)
            if failed:
                continue
            design = scale[:, None] * basis[place]
            known = design.T @ torch.cholesky_solve(design, root)  # [2, 2]
            read = torch.linalg.solve(known, torch.cholesky_solve(design, root).T * scale)  # line's two numbers, [2, M]
            left = (value - basis[place] @ (read @ value)) * scale
            misfit = left @ torch.cholesky_solve(left[:, None], root)[:, 0]
            spread = 2 * root.diagonal().log().sum() - 2 * scale.log().sum() + known.logdet()
            if (score := -float(misfit + spread)) > best:
                rest = torch.eye(len(value)).to(value) - basis[place] @ read
                bent = bend**2 * scatter[:, place] * scale @ torch.cholesky_solve(scale[:, None] * rest, root)
                best, chosen = score, (float(inflation), basis @ read + bent)
    return chosen


def _knots(laws: ForceLaws) -> Tensor:
    """Log distance at which each spline is largest, ``[NUM_SPLINES]``."""
    low, high = float(laws.low), float(laws.high)
    return low + (torch.arange(NUM_SPLINES, dtype=torch.float64) - 1) * (high - low) / (NUM_SPLINES - 3)
