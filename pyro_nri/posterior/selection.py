"""Which of several models foretells best, and how many types of edge there are: held-out scores in one table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray

from pyro_nri.inference.heldout import held_out_score, split_frames
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes

Fitted = Checkpoint | SceneModel


def compare_models(
    models: Mapping[str, Fitted | Ensemble | Sequence[Fitted]],
    scenes: Scenes,
    *,
    num_search_frames: int | None = None,
    num_draws: int = 16,
    kind: str = "forward",
    seed: int,
) -> pd.DataFrame:
    """Held-out scores of models that may differ in anything: noise, boundary, dynamics, number of types.

    Each model infers the structures from the first frames and is scored on the later ones by its forward density, see
    :func:`~pyro_nri.inference.heldout.held_out_score`. A model may be given as several fits, trained from other seeds
    or on other scenes (an ensemble is one): its score is their mean, and how much they differ goes into the standard
    error. With one fit each, the table says which *fitted* model foretells better, and a difference that another
    training would turn round may look sure. That matters most for data without measurement noise, where scores resolve
    errors as small as those of the numerical integration.

    Args:
        models: for each name a trained model, or several fits of it as a list or an ensemble.
        scenes: B scenes in G structure groups that no model was trained on.
        num_search_frames: how many first frames the structures are inferred from; half of them by default.
        num_draws: drawn structures that a forecast averages over.
        kind: likelihood of the later frames; one that is no density is refused.
        seed: fixes the draws.

    Returns:
        One row for each model: ``name``; ``num_edge_types``; ``num_fits``; ``score``, nats summed over structures;
        ``per_scene``, its mean over structures; ``difference`` to the best score, its ``standard_error`` and the
        ``median_difference`` over structures (a few violent scenes can dominate the sum; where both disagree in sign,
        they do); ``chosen``, see :func:`choose_num_types`.

    Raises:
        ValueError: nothing to compare, a model does not fit the scenes or was trained on some of them, models score
            different frames, or the likelihood is no density.
    """
    if not models:
        raise ValueError("models is empty, at least one is needed")
    fits = {name: _list(each) for name, each in models.items()}
    if empty := [name for name, each in fits.items() if not each]:
        raise ValueError(f"model {empty[0]!r} has no fit, at least one is needed")
    _, late = split_frames(scenes, num_search_frames)
    counts = {name: [_check_fits(name, fit, scenes, late) for fit in each] for name, each in fits.items()}
    if len(wanted := {count for each in counts.values() for count in each}) > 1:
        raise ValueError(
            f"models of different horizons score different frames where states are missing: from {min(wanted)} to "
            f"{max(wanted)} of them; compare models of one horizon"
        )
    num_types = {}
    for name, each in fits.items():
        found = {_model(fit).num_edge_types for fit in each}
        if len(found) != 1:
            raise ValueError(f"fits of model {name!r} must have one number of edge types, found {sorted(found)}")
        num_types[name] = found.pop()
    scores = {
        name: np.stack(
            [
                held_out_score(
                    _model(fit),
                    scenes,
                    num_search_frames=num_search_frames,
                    num_draws=num_draws,
                    kind=kind,
                    encoder=fit.encoder if isinstance(fit, Checkpoint) else None,
                    seed=seed,
                )
                for fit in each
            ]
        )
        for name, each in fits.items()
    }
    return score_table(scores, num_types)


def score_table(scores: Mapping[str, ArrayLike], num_edge_types: Mapping[str, int]) -> pd.DataFrame:
    """The table of :func:`compare_models` from scores.

    Args:
        scores: held-out scores by name, ``[G]`` or, of R fits, ``[R, G]``; structures in the same order everywhere.
        num_edge_types: number of edge types by name.
    """
    each = {name: _fits(values) for name, values in scores.items()}
    best = max(each.values(), key=lambda values: float(values.mean(0).sum()))
    rows = []
    for name, values in each.items():
        difference, error = paired_difference(values, best)
        with np.errstate(invalid="ignore"):
            median = float(np.median(values.mean(0) - best.mean(0)))
        total = float(values.mean(0).sum())
        rows.append(
            {
                "name": name,
                "num_edge_types": num_edge_types[name],
                "num_fits": len(values),
                "score": total,
                "per_scene": total / values.shape[1],
                "difference": difference,
                "standard_error": error,
                "median_difference": median,
            }
        )
    frame = pd.DataFrame(rows)
    near = _is_near(frame["difference"].to_numpy(), frame["standard_error"].to_numpy())
    order = frame[near].sort_values(["num_edge_types", "score"], ascending=[True, False], kind="stable")
    return frame.assign(chosen=frame.index == order.index[0])


def choose_num_types(scores: Mapping[int, ArrayLike], *, num_errors: float = 2.0) -> int:
    """The smallest number of edge types whose score is within two standard errors of the best.

    Args:
        scores: held-out scores for each K, ``[G]`` or, of R fits, ``[R, G]``; structures in the same order everywhere.
        num_errors: standard errors of the paired difference that do not count.

    Raises:
        ValueError: there are no scores, or their shapes differ.

    >>> choose_num_types({1: [-9.0, -8.0, -9.0], 2: [0.0, 1.0, 0.0], 3: [0.1, 0.9, 0.2]})
    2
    """
    if not scores:
        raise ValueError("scores is empty, at least one number of edge types is needed")
    each = {count: _fits(scores[count]) for count in sorted(scores)}
    best = max(each.values(), key=lambda values: float(values.mean(0).sum()))
    for count, values in each.items():
        difference, error = paired_difference(values, best)
        if bool(_is_near(np.array(difference), np.array(error), num_errors)):
            return count
    raise AssertionError("the best is near itself")


def paired_difference(score: ArrayLike, best: ArrayLike) -> tuple[float, float]:
    r"""Difference of two summed scores of the same structures, and its standard error.

    With paired differences :math:`d_g` of scores averaged over fits, :math:`\sum_g d_g` and :math:`\sqrt{G \, s_d^2 +
    V + V'}`: the structures are a sample, and where there are several fits, V is the variance of their mean sum.

    Args:
        score: ``[G]`` or, of R fits, ``[R, G]``.
        best: the same of another model; its number of fits may differ.

    Returns:
        Difference and standard error; 0 and 0 of a score to itself, a standard error of NaN where there is one
        structure or the difference is not finite.

    Raises:
        ValueError: the scores are not of the same structures.
    """
    one, other = _fits(score), _fits(best)
    if one.shape[1] != other.shape[1]:
        raise ValueError(f"scores must be of the same structures, found {one.shape[1]} and {other.shape[1]} of them")
    if np.array_equal(one, other):
        return 0.0, 0.0
    with np.errstate(invalid="ignore"):
        difference = one.mean(0) - other.mean(0)  # [G]
        total = float(difference.sum())
    if len(difference) < 2 or not np.isfinite(difference).all():
        return total, float("nan")
    variance = len(difference) * difference.var(ddof=1)
    variance += sum(fits.sum(1).var(ddof=1) / len(fits) for fits in (one, other) if len(fits) > 1)
    return total, float(np.sqrt(variance))


def _list(model: Fitted | Ensemble | Sequence[Fitted]) -> list[Fitted]:
    if isinstance(model, Ensemble):
        return list(model.members)
    return [model] if isinstance(model, Checkpoint | SceneModel) else list(model)


def _fits(values: ArrayLike) -> NDArray[np.float64]:
    """Scores as ``[R, G]``."""
    array = np.atleast_2d(np.asarray(values, np.float64))
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"scores must have shape [G] or [R, G], found {list(array.shape)}")
    return array


def _is_near(difference: NDArray[np.float64], error: NDArray[np.float64], num_errors: float = 2.0) -> NDArray[np.bool_]:
    near: NDArray[np.bool_] = (difference == 0) | (difference + num_errors * error >= 0)
    return near


def _check_fits(name: str, fit: Fitted, scenes: Scenes, late: Scenes) -> int:
    """Number of scored states of the later frames.

    Raises:
        ValueError: the model was made for other states or another time step, or was trained on some of the scenes.
    """
    model = _model(fit)
    try:
        prepared = model.prepare(late)
    except ValueError as error:
        raise ValueError(f"model {name!r} does not fit the scenes: {error}") from error
    if model.geometry.applies:
        learned = float(model.geometry.time_step)
        if abs(scenes.time_step - learned) > 1e-5 * learned:
            raise ValueError(
                f"model {name!r} does not fit the scenes: their frames are {scenes.time_step:g} apart, it was trained "
                f"on frames {learned:g} apart"
            )
    if isinstance(fit, Checkpoint) and (seen := set(fit.training_scenes) & set(scenes.fingerprints)):
        raise ValueError(
            f"model {name!r} was trained on {len(seen)} of these scenes, so their score would not be held out; give "
            f"other scenes"
        )
    structure = torch.zeros(late.num_scenes, late.num_edges, dtype=torch.long)
    return int(model.trajectory(prepared, structure.to(prepared.trajectory.device)).scored.sum())


def _model(fit: Fitted) -> SceneModel:
    return fit.model if isinstance(fit, Checkpoint) else fit
