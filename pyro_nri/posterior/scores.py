"""How good a posterior is where the truth is known, each figure with a bootstrap interval over scenes.

A score is ``{"value": v, "low": l, "high": h}``: the figure for all scenes and its 95 % percentile interval when whole
scenes are drawn again with replacement (edges of one scene are not independent). One scene alone gives no interval: its
``low`` and ``high`` are None.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.align import aligned_probability, apply_alignment, fit_alignment, many_to_one_alignment
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

NUM_BINS = 15
UNCERTAIN = 0.98  # an edge is uncertain while no type has this probability
Score = dict[str, float | None]


def score(
    tree: xr.DataTree,
    truth: Scenes,
    *,
    alignment: ArrayLike | None = None,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Score the edges of a posterior against known structures.

    Scenes and entities are matched by their names, not by their places. Type labels are aligned by ``alignment``, else
    by the one that the posterior carries from its training scenes, else by one fitted on the scored scenes themselves.

    Args:
        tree: a posterior.
        truth: scenes with ``edge_type``; it may have more scenes than the posterior.
        alignment: true type of each inferred type or -1, ``[K]``.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        The scores of :func:`score_edges`, and ``estimator`` (of the probabilities: "exact", "rao-blackwell", "counts").
        ``alignment`` says "given", "from the training scenes" or "fitted on the scored scenes".

    Raises:
        ValueError: the truth is not known, or lacks a scene or an entity of the posterior.
    """
    true_edge_type = match_truth(tree, truth)
    probability, estimator = edge_probability(tree)
    constant = group(tree, "constant_data")
    origin = "given"
    if alignment is None and "type_alignment" in constant:
        alignment, origin = constant["type_alignment"].values, "from the training scenes"
    result = score_edges(
        probability,
        true_edge_type,
        constant["scene_index"].values,
        alignment=alignment,
        num_replicates=num_replicates,
        seed=seed,
    )
    if alignment is not None:
        result["alignment"] = origin
    return {**result, "estimator": estimator}


def score_edges(
    probability: ArrayLike,
    true_edge_type: ArrayLike,
    scene: ArrayLike,
    *,
    alignment: ArrayLike | None = None,
    num_replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    r"""Score probabilities of edge types, of a posterior or of any other method.

    With :math:`p_{mk}` the probability of type k at edge m in the labels of the truth, :math:`y_{mk}` one for the true
    type and else zero, and spare inferred types as columns of their own that are never true:

    - ``edge_accuracy``: share of edges whose most probable type is the true one (ties: the lowest inferred type).
    - ``edge_accuracy_many_to_one``: the same after the many-to-one alignment, always fitted on these edges.
    - ``expected_accuracy``: mean of :math:`\max_k p_{mk}`, the accuracy that the posterior itself expects.
    - ``brier``: mean over edges of :math:`\sum_k (p_{mk} - y_{mk})^2`, 0 to 2 (for K = 2 twice the binary score).
    - ``log_score``: mean log probability of the true type, raised to at least log 2.2e-16; larger is better.
    - ``ece``: expected calibration error of the most probable type: :math:`\sum_b |\sum_{m \in b} (hit_m - \max_k
      p_{mk})| / M` over 15 equal bins b of :math:`\max_k p_{mk}`; ``ece_uncertain``: over edges where no type has
      probability 0.98 or more (None if there are none).
    - ``ece_if_calibrated``, ``ece_uncertain_if_calibrated``: what these errors would be on average by chance alone if
      every probability were right and edges were independent; few edges in a bin make them large.

    Args:
        probability: ``[M, K]``.
        true_edge_type: ``[M]``.
        scene: number of the scene of each edge, ``[M]``, from 0.
        alignment: true type of each inferred type or -1, ``[K]``; default: one-to-one, fitted on these edges.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        The scores above; ``num_scenes``, ``num_edges``, ``num_uncertain_edges``; ``alignment`` ("given" or "fitted on
        the scored scenes") and ``type_alignment``, the K numbers used.

    Raises:
        ValueError: shapes do not agree.
    """
    inferred, truth, owner = np.asarray(probability, np.float64), np.asarray(true_edge_type), np.asarray(scene)
    if inferred.ndim != 2 or not (truth.shape == owner.shape == inferred.shape[:1]) or not truth.size:
        raise ValueError(
            f"probability, true_edge_type and scene must have shapes [M, K], [M], [M] with M of at least 1, found "
            f"{list(inferred.shape)}, {list(truth.shape)}, {list(owner.shape)}"
        )
    num_edges, num_types = inferred.shape
    fitted = alignment is None
    best = inferred.argmax(1)
    if alignment is None:
        alignment = fit_alignment(best, truth, num_edge_types=num_types)
    labels = np.asarray(alignment, np.int64)
    several = many_to_one_alignment(best, truth, num_edge_types=num_types)
    num_true_types = int(max(truth.max(), labels.max())) + 1
    aligned = aligned_probability(inferred, labels, num_true_types)
    confidence, of_truth = inferred.max(1), aligned[np.arange(num_edges), truth]
    hit = apply_alignment(best, labels) == truth
    uncertain = confidence < UNCERTAIN
    columns = np.stack(
        [
            np.ones(num_edges),
            hit,
            apply_alignment(best, several) == truth,
            confidence,
            (aligned**2).sum(1) - 2 * of_truth + 1,
            np.log(np.maximum(of_truth, np.finfo(np.float64).eps)),
            uncertain,
        ],
        axis=-1,
    )
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gap = np.zeros((num_edges, 2 * NUM_BINS))
    gap[np.arange(num_edges), bins] = hit - confidence
    gap[np.arange(num_edges), NUM_BINS + bins] = (hit - confidence) * uncertain
    sums = _sum_by_scene(np.concatenate([columns, gap], axis=1), owner)
    num_all, num_gap = columns.shape[1], columns.shape[1] + NUM_BINS
    totals = _replicate_totals(sums, num_replicates, seed)
    names = ("edge_accuracy", "edge_accuracy_many_to_one", "expected_accuracy", "brier", "log_score")
    result: dict[str, Any] = {
        name: _score(totals[:, i] / totals[:, 0], len(sums)) for i, name in enumerate(names, start=1)
    }
    result["ece"] = _score(np.abs(totals[:, num_all:num_gap]).sum(1) / totals[:, 0], len(sums))
    with np.errstate(invalid="ignore"):
        result["ece_uncertain"] = _score(np.abs(totals[:, num_gap:]).sum(1) / totals[:, 6], len(sums))
    chance = confidence * (1 - confidence)
    return {
        **result,
        "ece_if_calibrated": _expected_gap(chance, bins) / num_edges,
        "ece_uncertain_if_calibrated": _expected_gap(chance * uncertain, bins) / max(int(uncertain.sum()), 1),
        "num_scenes": len(sums),
        "num_edges": num_edges,
        "num_uncertain_edges": int(uncertain.sum()),
        "alignment": "fitted on the scored scenes" if fitted else "given",
        "type_alignment": labels.tolist(),
    }


def _expected_gap(variance: NDArray[np.float64], bins: NDArray[np.int64]) -> float:
    """Sum over bins of the expected absolute value of a normal variable with the variance that the bin sums up to."""
    return float(np.sqrt(2 / np.pi * np.bincount(bins, variance, minlength=NUM_BINS)).sum())


def match_truth(tree: xr.DataTree, truth: Scenes) -> NDArray[np.int64]:
    """True type of each edge of the posterior, ``[M]``, found by scene and entity names.

    A scene of the posterior is looked up in ``truth`` by the names of its recordings, and if none is there by its own
    name, as a scene or as a group.

    Raises:
        ValueError: the truth is not known, lacks a scene or an entity, or differs between recordings of one scene.
    """
    if truth.edge_type is None:
        raise ValueError("truth has no edge types to score against")
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    groups = constant["structure_group"].values.tolist()
    recordings = constant["recording"].values.tolist()
    row = {name: b for b, name in enumerate(truth.scene_names)}
    first_of_group = dict(zip(truth.group_names, truth.group_first_scene, strict=True))
    found: dict[str, list[int]] = {name: [] for name in dict.fromkeys(groups)}
    for name, recording in zip(groups, recordings, strict=True):
        if recording in row:
            found[name].append(row[recording])
    true_types, own_entities = truth.edge_type.cpu().numpy(), constant["entity_name"].values.tolist()
    chosen, place = np.zeros(len(found), np.int64), np.full((len(found), constant.sizes["entity"]), -1)
    for g, (name, rows) in enumerate(found.items()):
        if not rows:
            rows = [b for b in (row.get(name), first_of_group.get(name)) if b is not None]
        if not rows:
            raise ValueError(f"truth has no scene {name!r}, which the posterior has")
        chosen[g] = rows[0]
        if (true_types[rows] != true_types[rows[0]]).any():
            raise ValueError(
                f"truth has different edge types for recordings of scene {name!r}, which share a structure"
            )
        number = {entity: n for n, entity in enumerate(truth.entity_names[rows[0]]) if entity}
        for n, entity in enumerate(own_entities[groups.index(name)]):
            if entity and entity not in number:
                raise ValueError(f"truth has no entity {entity!r} in scene {name!r}, which the posterior has")
            place[g, n] = number.get(entity, -1)
    scene, edge = posterior["scene_index"].values, posterior["edge_index"].values
    num_entities = constant.sizes["entity"]
    sender, receiver = edges.senders(num_entities).numpy()[edge], edges.receivers(num_entities).numpy()[edge]
    number_of = edges.edge_number(truth.num_entities).numpy()
    matched = true_types[chosen[scene], number_of[place[scene, sender], place[scene, receiver]]]
    return np.asarray(matched, np.int64)


# --- rollouts --------------------------------------------------------------------------------------------------------
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
            result[name] = _score(np.array(replicates), len(kept))
    return result


# --- bootstrap -------------------------------------------------------------------------------------------------------
def _sum_by_scene(columns: NDArray[np.float64], scene: NDArray[np.integer]) -> NDArray[np.float64]:
    """Sum edges ``[M, P]`` over each scene that occurs, ``[G, P]``."""
    names, owner = np.unique(scene, return_inverse=True)
    sums = np.zeros((len(names), columns.shape[1]))
    np.add.at(sums, owner, columns)
    return sums


def _replicate_totals(sums: NDArray[np.float64], num_replicates: int, seed: int) -> NDArray[np.float64]:
    """Totals ``[1 + R, P]``: over all scenes, then over scenes drawn with replacement, the same for every column."""
    rng, num_scenes = np.random.default_rng(seed), len(sums)
    totals = np.empty((1 + num_replicates, sums.shape[1]))
    totals[0] = sums.sum(0)
    for r in range(1, 1 + num_replicates):
        weight = np.bincount(rng.integers(num_scenes, size=num_scenes), minlength=num_scenes)
        totals[r] = weight @ sums
    return totals


def _score(values: NDArray[np.float64], num_scenes: int) -> Score:
    """Score from the figure itself, followed by its replicates, ``[1 + R]``; undefined replicates are left out."""
    defined = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]):
        return {"value": None, "low": None, "high": None}
    if num_scenes < 2 or not len(defined):
        return {"value": float(values[0]), "low": None, "high": None}
    low, high = np.quantile(defined, [0.025, 0.975])
    return {"value": float(values[0]), "low": float(low), "high": float(high)}
