"""Noise of the recording in impulses: neighbours share it, so that it is taken out of a whole series together.

A change of velocity is the difference of two recorded velocities, and each of these enters two changes with opposite
signs. Taken for independent, the errors of the changes hide slow forces that the velocities plainly show; whitened by
their covariance they do not. Frames in which the path is uncertain stand apart.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.scenes.scenes import Scenes

#: Normal quantile that makes a median of sizes a standard deviation.
MEDIAN = 0.6745
#: Noise counts from this share on of the mean squared change that is seen.
SHARE = 5e-3
#: Standard deviation of what laws leave unexplained in each change, as a share of that of the noise.
UNEXPLAINED = 0.02
#: Frames that are whitened together at most.
MAX_STRETCH = 64
#: Positions and velocities disagree by more than so many standard deviations of noise where a path is uncertain.
DISAGREEMENT = 6.0


def recorded_noise(position: Tensor, velocity: Tensor, seen: Tensor, time_step: float) -> tuple[float, float]:
    """Standard deviations of the noise of positions and of velocities; 0 and 0 where the motion hides it.

    Third differences of a smooth motion are small, those of noise are not.

    Args:
        position: ``[B, T, N, S]``, raw units.
        velocity: the same.
        seen: which changes are seen at both ends, bool ``[B, T - 1, N]``.
        time_step: of a frame.
    """
    third = velocity.diff(n=3, dim=1)
    whole = seen[:, 2:] & seen[:, 1:-1] & seen[:, :-2] if seen.shape[1] > 2 else seen[:, :0]
    if not whole.any():
        return 0.0, 0.0
    noise = float(third[whole].abs().median()) / MEDIAN / 20**0.5
    change = float(velocity.diff(dim=1)[seen].abs().median()) / MEDIAN
    if 2 * noise**2 < SHARE * change**2:
        return 0.0, 0.0
    way = time_step * (velocity[:, :-1] + velocity[:, 1:]) / 2
    disagreement = float((position.diff(dim=1) - way)[seen].abs().median()) / MEDIAN
    return max(disagreement**2 - (time_step * noise) ** 2 / 2, 0.0) ** 0.5 / 2**0.5, noise


def whitened(
    features: ImpulseFeatures,
    laws: ForceLaws,
    scenes: Scenes,
    noise: tuple[float, float],
    own_error: Tensor,
    bounced: Tensor,
) -> ImpulseFeatures:
    """Features whose targets and impulses are those of independent errors, as large as the noise of one change.

    Args:
        features: of changes as they are.
        laws: say how much the errors of positions matter, once they are fitted.
        scenes: B scenes in raw units.
        noise: from :func:`recorded_noise`.
        own_error: by how much positions and velocities disagree, ``[B, T - 1, N]``.
        bounced: where a wall turned the velocity, bool ``[B, T - 1, N]``.
    """
    of_position, of_velocity = noise
    dt, size = scenes.time_step, 2**0.5 * of_velocity / scenes.time_step
    spread = torch.full_like(own_error, UNEXPLAINED * size)
    if laws.is_fitted:
        block = features.blocks[0]
        exists = (block.direction != 0).any(-1).any(-1)
        slope = (laws.slope(block.coordinate.amin(-1)) * exists).square().sum(-1).sqrt()  # [B, T - 1, N]
        spread = spread + of_position * slope
    expected = (2 * of_position**2 + (dt * of_velocity) ** 2 / 2) ** 0.5
    spread = spread + 6 / dt**2 * (own_error - DISAGREEMENT * expected).clamp(min=0)
    mask = features.mask
    variance = torch.where(mask, spread.square() + size**2, size**2)
    joined = mask[:, 1:] & mask[:, :-1] & ~bounced[:, 1:] & ~bounced[:, :-1]
    shared = torch.nn.functional.pad(torch.where(joined, -(size**2) / 2, 0.0), (0, 0, 1, 0))  # with the one before
    length = min(mask.shape[1], MAX_STRETCH)
    parts = [stretches(each, length, fill) for each, fill in ((variance, size**2), (shared, 0.0))]  # [B, N, J, L]
    below = torch.diag_embed(parts[1][..., 1:], -1)
    covariance = torch.diag_embed(parts[0]) + below + below.mT
    identity = torch.eye(length, dtype=covariance.dtype, device=covariance.device)
    mixing = size * torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
    return replace(features, target=features.mixed(features.target, mixing), mixing=mixing)


def stretches(value: Tensor, length: int, fill: float) -> Tensor:
    """Values of frames ``[B, T - 1, N]`` as stretches of a length, the last one filled up: ``[B, N, J, L]``."""
    missing = -value.shape[1] % length
    whole = torch.nn.functional.pad(value, (0, 0, 0, missing), value=fill)
    return whole.transpose(1, 2).reshape(len(value), value.shape[2], -1, length)
