"""How far rollouts are from what was observed."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.bootstrap import Score, as_score


def rollout_errors(
    predictions: ArrayLike,
    observed: ArrayLike,
    *,
    start: int,
    scale: ArrayLike,
    steps: Sequence[int] = (1, 10, 20),
    observation_mask: ArrayLike | None = None,
) -> dict[int, NDArray[np.float64]]:
    """Scaled squared error of a rollout in each scene, at some steps.

    The published protocol scales positions, and velocities, to [-1, 1] by one minimum and one maximum of each over the
    training set: ``scale`` is then half of maximum minus minimum (offsets cancel in an error).

    Args:
        predictions: ``[B, H, N, D]``, raw units; ``predictions[:, h]`` is meant for frame ``start + 1 + h``.
        observed: ``[B, T, N, D]``, raw units.
        start: the observed frame from which the rollout started.
        scale: ``[D]``, raw units.
        steps: steps ahead, from 1.
        observation_mask: bool ``[B, T, N]``; default: everything was seen.

    Returns:
        For each step the mean over seen entities and the D scaled state variables, ``[B]``: NaN where no entity was
        seen at that frame, infinite where a prediction is not finite.

    Raises:
        ValueError: shapes do not agree, or a step is beyond the predictions or the frames.
    """
    guess, data, unit = (np.asarray(values, np.float64) for values in (predictions, observed, scale))
    if guess.ndim != 4 or data.ndim != 4 or guess.shape[0] != data.shape[0] or guess.shape[2:] != data.shape[2:]:
        raise ValueError(
            f"predictions and observed must have shapes [B, H, N, D] and [B, T, N, D], found {list(guess.shape)} and "
            f"{list(data.shape)}"
        )
    if unit.shape != data.shape[3:] or not (unit > 0).all():
        raise ValueError(f"scale must be positive and have shape {list(data.shape[3:])}, found {list(unit.shape)}")
    mask = np.ones(data.shape[:3], bool) if observation_mask is None else np.asarray(observation_mask, bool)
    if mask.shape != data.shape[:3]:
        raise ValueError(f"observation_mask must have shape {list(data.shape[:3])}, found {list(mask.shape)}")
    result = {}
    for step in steps:
        if not 1 <= step <= guess.shape[1] or not 0 <= start + step < data.shape[1]:
            raise ValueError(
                f"steps must lie within {guess.shape[1]} predictions and the {data.shape[1] - 1 - start} frames after "
                f"frame {start}, found {step}"
            )
        seen = mask[:, start + step]
        difference = np.where(seen[..., None], guess[:, step - 1] - data[:, start + step], 0) / unit
        error = (difference**2).mean(-1)
        error = np.where(np.isfinite(error), error, np.inf)
        count = seen.sum(-1)
        result[step] = np.where(count > 0, error.sum(-1) / np.maximum(count, 1), np.nan)
    return result


def rollout_scores(
    errors: Mapping[int, NDArray[np.float64]], *, num_replicates: int = 1000, seed: int = 0
) -> dict[str, Score]:
    """Mean and median over scenes of rollout errors: one wrong edge dominates a mean.

    Args:
        errors: for each step the error of each scene, ``[B]``; NaN scenes are left out.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        ``mse_1`` (mean) and ``mse_1_median`` and so on for each step.
    """
    result = {}
    for step, values in errors.items():
        kept = np.asarray(values)[~np.isnan(values)]
        rng = np.random.default_rng(seed)
        for name, statistic in ((f"mse_{step}", np.mean), (f"mse_{step}_median", np.median)):
            replicates = [float(statistic(kept))] if len(kept) else [np.nan]
            if len(kept) > 1:
                chosen = (rng.integers(len(kept), size=len(kept)) for _ in range(num_replicates))
                replicates += [float(statistic(kept[rows])) for rows in chosen]
            result[name] = as_score(np.array(replicates), len(kept))
    return result
