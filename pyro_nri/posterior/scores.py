"""How good a posterior is where the truth is known, each figure with a bootstrap interval over scenes.

A score is ``{"value": v, "low": l, "high": h}``: the figure for all scenes and its 95 % percentile interval when whole
scenes are drawn again with replacement (edges of one scene are not independent). One scene alone gives no interval: its
``low`` and ``high`` are None.
"""

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.align import aligned_probability, apply_alignment, fit_alignment, many_to_one_alignment
from pyro_nri.posterior.bootstrap import as_score, replicate_totals, sum_by_scene
from pyro_nri.posterior.ranking import ranking_scores
from pyro_nri.posterior.truth import known_edges
from pyro_nri.scenes.scenes import Scenes

NUM_BINS = 15
UNCERTAIN = 0.98  # an edge is uncertain while no type has this probability
SMALLEST = float(np.finfo(np.float64).eps)  # probabilities below are raised to this before logarithms are taken


def score(
    tree: xr.DataTree,
    truth: Scenes | None = None,
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
        truth: scenes with ``edge_type``; it may have more scenes than the posterior. Default: the truth that the
            posterior carries.
        alignment: true type of each inferred type or -1, ``[K]``.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        The scores of :func:`score_edges`, and ``estimator`` (of the probabilities: "exact", "rao-blackwell", "counts").
        ``alignment`` says "given", "from the training scenes" or "fitted on the scored scenes".

    Raises:
        ValueError: the truth is not known, or lacks a scene or an entity of the posterior.
    """
    known = known_edges(tree, truth, alignment)
    result = score_edges(
        known.probability,
        known.true_edge_type,
        known.scene,
        alignment=known.alignment,
        num_replicates=num_replicates,
        seed=seed,
    )
    return {**result, "alignment": known.origin, "estimator": known.estimator}


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
    - ``f1_type_k``, for each true type k: :math:`2 TP / (2 TP + FP + FN)` of the most probable types; the empty graph
      has an accuracy of 95 % where one edge in twenty is linked, and an F1 of 0.
    - ``auroc_type_k``, ``average_precision_type_k``: of :math:`p_{mk}`, see :mod:`~pyro_nri.posterior.ranking`.
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
    called = apply_alignment(best, labels)
    hit = called == truth
    uncertain = confidence < UNCERTAIN
    columns = np.stack(
        [
            np.ones(num_edges),
            hit,
            apply_alignment(best, several) == truth,
            confidence,
            (aligned**2).sum(1) - 2 * of_truth + 1,
            np.log(np.maximum(of_truth, SMALLEST)),
            uncertain,
        ],
        axis=-1,
    )
    bins = np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gap = np.zeros((num_edges, 2 * NUM_BINS))
    gap[np.arange(num_edges), bins] = hit - confidence
    gap[np.arange(num_edges), NUM_BINS + bins] = (hit - confidence) * uncertain
    kinds = np.arange(num_true_types)
    agreed = (called[:, None] == kinds) & (truth[:, None] == kinds)  # [M, L]
    claimed = (called[:, None] == kinds) * 1.0 + (truth[:, None] == kinds)
    sums = sum_by_scene(np.concatenate([columns, gap, agreed, claimed], axis=1), owner)
    num_all, num_gap = columns.shape[1], columns.shape[1] + NUM_BINS
    num_binned = num_gap + NUM_BINS
    totals = replicate_totals(sums, num_replicates, seed)
    names = ("edge_accuracy", "edge_accuracy_many_to_one", "expected_accuracy", "brier", "log_score")
    result: dict[str, Any] = {
        name: as_score(totals[:, i] / totals[:, 0], len(sums)) for i, name in enumerate(names, start=1)
    }
    result["ece"] = as_score(np.abs(totals[:, num_all:num_gap]).sum(1) / totals[:, 0], len(sums))
    with np.errstate(invalid="ignore"):
        result["ece_uncertain"] = as_score(np.abs(totals[:, num_gap:num_binned]).sum(1) / totals[:, 6], len(sums))
        both, either = np.split(totals[:, num_binned:], 2, axis=1)
        for k in kinds.tolist():
            result[f"f1_type_{k}"] = as_score(2 * both[:, k] / either[:, k], len(sums))
    for k in kinds.tolist():
        ranked = ranking_scores(aligned[:, k], truth == k, owner, num_replicates=num_replicates, seed=seed)
        result[f"auroc_type_{k}"], result[f"average_precision_type_{k}"] = ranked
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
