"""How likely recorded frames are, whatever the paths of hidden entities near the laws.

The path is nearly normal around its mode, which gives Laplace's approximation. Particles say what it leaves out: they
are drawn from the normal distribution, the last frame first, each frame given the one that follows, and are weighed and
resampled in each frame by what the density of the transition is there, over the linearised one. Their mean weights
are unbiased however wrong the approximation is (Del Moral 2004, "Feynman-Kac Formulae", section 7.4).
"""

import math

import torch
from torch import Tensor

from pyro_nri.inference.block_tridiagonal import Factor, factorise, log_volume, solve
from pyro_nri.inference.hidden_smoothing import normal_equations
from pyro_nri.inference.laplace import FREEDOM, Integral
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden_motion import HiddenMotion, Linearised

#: Independent populations of particles, whose spread is the error, and particles in each.
NUM_ISLANDS, NUM_PARTICLES = 8, 32


def log_integral(motion: HiddenMotion, mode: Tensor) -> Tensor:
    """Laplace's approximation of the log integral over paths around a mode ``[R, T, N_hidden, D]``: ``[R]``."""
    near = motion.linearise(mode)
    factor = factorise(*normal_equations(near, near.weight)[1:])
    size = mode[0].numel()
    # Where rounding spoils a block its diagonal stands for it: a rough value, but no reason to give a path up.
    return motion.log_density(mode) + size / 2 * math.log(2 * math.pi) - log_volume(factor).sum(-1)


def integrate_paths(
    motion: HiddenMotion,
    mode: Tensor,
    stream: Stream,
    *,
    num_particles: int = NUM_PARTICLES,
    num_islands: int = NUM_ISLANDS,
) -> Integral:
    """The log integral over paths.

    Args:
        motion: of R rows.
        mode: what is linearised at, ``[R, T, N_hidden, D]``, scaled units.
        stream: of any chains, R keys.
        num_particles: in each population.
        num_islands: populations, two at least.

    Returns:
        Log of the mean over populations ``[R]``, its standard error by their spread, and how many of them make it up.
        Where no particle is possible, -inf. Where rounding spoils the normal distribution, Laplace's rough value, of
        unknown error: inf.

    Raises:
        ValueError: there are fewer than two populations.
    """
    if num_islands < 2:
        raise ValueError(f"num_islands must be 2 or more, found {num_islands}: their spread is the error")
    near = motion.linearise(mode)
    # Where noise is Student-t, of its scale rather than of its curvature at 0, which is narrower than it is.
    near = near._replace(weight=near.weight * motion.unit_share(near.residual.shape[-1]))
    slope, diagonal, above = normal_equations(near, near.weight)
    factor = factorise(diagonal, above)
    mean = solve(factor, slope)
    num_rows, num_frames, size = mean.shape
    shape = (num_islands, num_particles, num_rows)
    stream = stream.one().child("particles")
    log_weight = torch.zeros(shape, dtype=mean.dtype)
    log_value = _log_peak(motion, near, mean) + num_frames * size / 2 * math.log(2 * math.pi)
    log_value = (log_value - log_volume(factor).sum(-1)).expand(num_islands, num_rows)
    later: Tensor | None = None
    for frame in reversed(range(num_frames)):
        each = 2 * size + 2
        uniform = stream.uniform(frame, num_islands * (num_particles * each + 1))[0]  # [R, ...]
        uniform = uniform.view(num_rows, num_islands, -1).movedim(0, 1)  # [I, R, ...]
        if later is not None:
            later, log_weight, gain = _resampled(later, log_weight, uniform[..., -1])
            log_value = log_value + gain
        parts = uniform[..., :-1].unflatten(-1, (num_particles, each)).transpose(1, 2)  # [I, M, R, each]
        white, log_ratio = _heavy(parts)
        change = mean[:, frame] + _conditional(
            factor, frame, white, None if later is None else later - mean[:, frame + 1]
        )
        log_weight = log_weight + log_ratio
        if later is not None:
            log_weight = log_weight + _log_share(motion, near, frame, change, later)
        later = change
    log_value = log_value + log_weight.logsumexp(1) - math.log(num_particles)  # [I, R]
    found = _over_islands(log_value)
    if not factor.failed.any():
        return found
    return Integral(
        torch.where(factor.failed, log_integral(motion, mode), found.log_value),
        torch.where(factor.failed, torch.inf, found.log_error),
        torch.where(factor.failed, 0.0, found.effective),
    )


def _log_peak(motion: HiddenMotion, near: Linearised, mean: Tensor) -> Tensor:
    """Log of the linearised density at its mean ``[R, T, P]``, transitions without their constants: ``[R]``."""
    left = near.residual - torch.einsum("rtndp,rtp->rtnd", near.jacobian, mean[:, :-1])
    change = mean.view_as(near.path)
    left[..., -change.shape[-2] :, :] += change[:, 1:] * near.scale
    return motion.log_start(near.path + change) - (near.weight * left.square()).sum((-1, -2, -3)) / 2


def _heavy(uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Student-t draws ``[*batch, P]``, and the log of the standard normal density there over theirs, ``[*batch]``.

    Their tails are heavier than those of normal ones: what noise without a normal's tails does is weighed less wildly.
    """
    size = uniform.shape[-1] // 2 - 1
    square = -2 * torch.log1p(-uniform[..., 2 * size :]).sum(-1) / FREEDOM
    white = normals(uniform[..., : 2 * size]) / square.sqrt()[..., None]
    far = white.square().sum(-1)
    constant = math.lgamma((FREEDOM + size) / 2) - math.lgamma(FREEDOM / 2) - size / 2 * math.log(FREEDOM / 2)
    return white, (FREEDOM + size) / 2 * torch.log1p(far / FREEDOM) - far / 2 - constant


def _conditional(factor: Factor, frame: int, white: Tensor, later: Tensor | None) -> Tensor:
    """Deviations of one frame from its mean, given those of the next: ``[*batch, R, P]``."""
    rest = white[..., None]
    if later is not None:
        rest = rest - factor.link[frame] @ later[..., None]
    change: Tensor = torch.linalg.solve_triangular(factor.root[frame].mT, rest, upper=True)
    return change.squeeze(-1)


def _log_share(motion: HiddenMotion, near: Linearised, frame: int, change: Tensor, later: Tensor) -> Tensor:
    """Log density of one transition over the linearised one, for changes ``[*batch, R, P]`` of its two states."""
    both = torch.stack([change, later], -2)
    path = near.path[:, frame : frame + 2] + both.unflatten(-1, near.path.shape[-2:])
    part = motion.frames(frame, frame + 2)
    exact = part.log_density(path) - part.log_start(path)
    left = near.residual[:, frame] - torch.einsum("rndp,...rp->...rnd", near.jacobian[:, frame], change)
    hidden = later.unflatten(-1, near.path.shape[-2:]) * near.scale
    left = torch.cat([left[..., : -hidden.shape[-2], :], left[..., -hidden.shape[-2] :, :] + hidden], -2)
    share = exact + (near.weight[:, frame] * left.square()).sum((-1, -2)) / 2
    return torch.where(share.isfinite(), share, -torch.inf)


def _resampled(value: Tensor, log_weight: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Systematic resampling of populations of which less than half are effective.

    Args:
        value: ``[I, M, R, P]``.
        log_weight: ``[I, M, R]``.
        uniform: ``[I, R]``.

    Returns:
        Values, log weights, and the log of the mean weights that were taken out ``[I, R]``.
    """
    num_particles = value.shape[1]
    total = log_weight.logsumexp(1)
    share = (log_weight - total[:, None]).exp()
    due = ~(share.square().sum(1) * num_particles < 2) & total.isfinite()
    place = (torch.arange(num_particles)[:, None] + uniform[:, None]) / num_particles  # [I, M, R]
    cumulative = share.cumsum(1).movedim(1, -1).contiguous()
    index = (
        torch.searchsorted(cumulative, place.movedim(1, -1).contiguous()).clamp(max=num_particles - 1).movedim(-1, 1)
    )
    taken = value.gather(1, index[..., None].expand_as(value))
    gain = torch.where(due, total - math.log(num_particles), 0.0)
    value = torch.where(due[:, None, :, None], taken, value)
    return value, torch.where(due[:, None], 0.0, log_weight), gain


def _over_islands(log_value: Tensor) -> Integral:
    """The mean over populations ``[I, R]``."""
    count = len(log_value)
    top = log_value.amax(0).clamp(min=torch.finfo(log_value.dtype).min)
    share = (log_value - top).exp()
    mean = share.mean(0)
    error = share.std(0) / math.sqrt(count) / mean
    effective = share.sum(0).square() / share.square().sum(0)
    possible = mean > 0
    return Integral(
        torch.where(possible, top + mean.log(), -torch.inf),
        torch.where(possible, error, torch.inf),
        torch.where(possible, effective, 0.0),
    )
