"""Do probabilities mean what they say: of the edges given 90 %, are nine in ten right?"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.align import apply_alignment
from pyro_nri.posterior.bootstrap import Score, as_score, replicate_totals, sum_by_scene
from pyro_nri.posterior.scores import NUM_BINS, SMALLEST, UNCERTAIN, score_edges
from pyro_nri.posterior.truth import KnownEdges, known_edges
from pyro_nri.scenes.scenes import Scenes

OVER, UNDER, NO_SIGN, UNKNOWN = "over-confident", "under-confident", "no sign of either", "cannot be told"
#: Temperatures that are tried, evenly in their logarithms.
TEMPERATURES = 2.0 ** np.linspace(-4, 4, 65)
_CHANCE = 2.0  # standard errors by chance beyond which a difference is one
_CHANCE_ALONE = 4.0  # with one scene, of which nothing says how much its edges hang together
_FEW = 50  # fewer uncertain edges say little
_CHUNK_EDGES = 2**14


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether probabilities of edge types can be taken at their word.

    Attributes:
        direction: "over-confident", "under-confident", "no sign of either" or "cannot be told".
        verdict: one sentence.
        table: see :func:`reliability_table`.
        scores: each ``{"value", "low", "high"}``: ``edge_accuracy``, ``expected_accuracy`` and
            ``excess_confidence`` (the second minus the first); ``log_score``, ``expected_log_score`` (what the
            posterior expects of itself, minus its mean entropy) and ``excess_log_score``; ``temperature``, see
            :func:`best_temperature`; ``ece``, ``ece_uncertain``.
        num_scenes: scenes scored.
        num_edges: edges scored.
        num_uncertain_edges: those of them where no type has probability 0.98 or more.
    """

    direction: str
    verdict: str
    table: pd.DataFrame
    scores: dict[str, Score]
    num_scenes: int
    num_edges: int
    num_uncertain_edges: int

    def __str__(self) -> str:
        return self.verdict


def calibration(
    tree: xr.DataTree,
    truth: Scenes | None = None,
    *,
    alignment: ArrayLike | None = None,
    num_replicates: int = 1000,
    seed: int = 0,
) -> Calibration:
    """Compare the probabilities of a posterior with the truth, and say whether they are too sure or not sure enough.

    The posterior itself foretells how many of its most probable types are right and what its log score is. It is
    *over-confident* if it does worse than it foretells in either, by more than twice the standard error that there is
    if it is calibrated and edges are independent, and with a 95 % bootstrap interval over scenes that does not hold
    zero (edges of a scene hang together). *Under-confident* is the same the other way round.

    Args:
        tree: a posterior.
        truth: scenes with ``edge_type``, matched by names; default: the truth that the posterior carries.
        alignment: true type of each inferred type or -1, ``[K]``; default: as in :func:`score`.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the truth is not known, or lacks a scene or an entity of the posterior.
    """
    known = known_edges(tree, truth, alignment)
    return edge_calibration(known, num_replicates=num_replicates, seed=seed)


def edge_calibration(known: KnownEdges, *, num_replicates: int = 1000, seed: int = 0) -> Calibration:
    """As :func:`calibration`, for probabilities of any method."""
    labels = known.alignment
    inferred = np.maximum(known.probability, SMALLEST)
    logarithm = np.log(inferred)
    confidence, hit = known.probability.max(1), _called(known) == known.true_edge_type
    expected_log = (known.probability * logarithm).sum(1)
    of_truth = known.probability @ (labels[:, None] == np.arange(known.true_edge_type.max() + 1))
    log_score = np.log(np.maximum(of_truth[np.arange(len(hit)), known.true_edge_type], SMALLEST))
    excess = np.stack([confidence - hit, expected_log - log_score], axis=1)
    chance = np.stack(
        [confidence * (1 - confidence), (known.probability * logarithm**2).sum(1) - expected_log**2], axis=1
    )
    columns = np.concatenate([np.ones((len(hit), 1)), excess, expected_log[:, None]], axis=1)
    sums = sum_by_scene(columns, known.scene)
    totals = replicate_totals(sums, num_replicates, seed)
    names = ("excess_confidence", "excess_log_score", "expected_log_score")
    own = {name: as_score(totals[:, i] / totals[:, 0], len(sums)) for i, name in enumerate(names, start=1)}
    plain = score_edges(*known[:3], alignment=labels, num_replicates=num_replicates, seed=seed)
    wanted = ("edge_accuracy", "expected_accuracy", "log_score", "ece", "ece_uncertain")
    scores = {name: plain[name] for name in wanted} | own
    scores["temperature"] = best_temperature(known, num_replicates=num_replicates, seed=seed)
    error = np.sqrt(chance.sum(0)) / len(hit)
    found = [_sign(own[name], float(e), len(sums)) for name, e in zip(names[:2], error, strict=True)]
    num_uncertain = int((confidence < UNCERTAIN).sum())
    direction = NO_SIGN if {1, -1} <= set(found) or not any(found) else OVER if 1 in found else UNDER
    if direction == NO_SIGN and not num_uncertain:
        direction = UNKNOWN
    verdict = _verdict(direction, scores, num_uncertain)
    table = reliability_table(known, num_replicates=num_replicates, seed=seed)
    return Calibration(direction, verdict, table, scores, len(sums), len(hit), num_uncertain)


def reliability_table(
    known: KnownEdges,
    *,
    edge_type: int | None = None,
    num_bins: int = NUM_BINS,
    num_replicates: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How often edges are right, by the probability that they were given.

    Args:
        known: from :func:`~pyro_nri.posterior.truth.known_edges`.
        edge_type: a true type: its probability is compared with how often it is the true one. Default: the probability
            of the most probable type, and how often that is right.
        num_bins: number of bins of equal width between 0 and 1.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        One row for each bin that holds an edge: ``bin_low``, ``bin_high``; ``num_edges``, ``num_scenes``;
        ``mean_probability``; ``share_right`` and its bootstrap interval ``low``, ``high`` (NaN with edges of one
        scene); ``chance_error``, the standard error that ``share_right`` would have if the probabilities were right and
        edges independent.

    Raises:
        ValueError: ``num_bins`` is smaller than 1, or no inferred type stands for ``edge_type``.
    """
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, found {num_bins}")
    if edge_type is None:
        value, right = known.probability.max(1), _called(known) == known.true_edge_type
    else:
        mine = known.alignment == edge_type
        if not mine.any():
            raise ValueError(f"edge_type must be one of {sorted(set(known.alignment.tolist()))}, found {edge_type}")
        value, right = known.probability[:, mine].sum(1), known.true_edge_type == edge_type
    place = np.minimum((value * num_bins).astype(np.int64), num_bins - 1)
    columns = np.zeros((len(value), 2, num_bins))
    columns[np.arange(len(value)), 0, place] = 1
    columns[np.arange(len(value)), 1, place] = right
    sums = sum_by_scene(columns.reshape(len(value), -1), known.scene)
    count, hits = np.split(replicate_totals(sums, num_replicates, seed), 2, axis=1)
    with np.errstate(invalid="ignore"):
        share = hits / count
    rows = []
    for b in np.flatnonzero(count[0]):
        inside = place == b
        num_scenes = len(np.unique(known.scene[inside]))
        found = as_score(share[:, b], num_scenes)
        rows.append(
            {
                "bin_low": b / num_bins,
                "bin_high": (b + 1) / num_bins,
                "num_edges": int(count[0, b]),
                "num_scenes": num_scenes,
                "mean_probability": value[inside].mean(),
                "share_right": share[0, b],
                "low": np.nan if found["low"] is None else found["low"],
                "high": np.nan if found["high"] is None else found["high"],
                "chance_error": np.sqrt((value[inside] * (1 - value[inside])).sum()) / count[0, b],
            }
        )
    return pd.DataFrame(rows)


def best_temperature(known: KnownEdges, *, num_replicates: int = 1000, seed: int = 0) -> Score:
    r"""Temperature T that makes the log score of :math:`p_{mk}^{1 / T}` (normalised at each edge) largest.

    Above 1 the probabilities are too sure and flatter ones would have done better, below 1 they are not sure enough.
    Found on a grid between 1/16 and 16, refined by a parabola; a figure at either end means "that or beyond", as for
    edges that are all certain and right.

    Args:
        known: from :func:`~pyro_nri.posterior.truth.known_edges`.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.
    """
    columns = np.empty((len(known.scene), len(TEMPERATURES)))
    logarithm = np.log(np.maximum(known.probability, SMALLEST))
    below = logarithm - logarithm.max(1, keepdims=True)
    for start in range(0, len(columns), _CHUNK_EDGES):
        part = slice(start, start + _CHUNK_EDGES)
        mine = known.alignment == known.true_edge_type[part, None]
        for t, temperature in enumerate(TEMPERATURES):
            tempered = np.exp(below[part] / temperature)
            columns[part, t] = np.log(np.maximum((tempered * mine).sum(1) / tempered.sum(1), SMALLEST))
    sums = sum_by_scene(columns, known.scene)
    totals = replicate_totals(sums, num_replicates, seed)  # [1 + R, temperatures]
    return as_score(TEMPERATURES[0] * 2.0 ** (_peak(totals) * np.log2(TEMPERATURES[1] / TEMPERATURES[0])), len(sums))


def _peak(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Place of the largest value in each row, between grid points by a parabola through it and its neighbours."""
    place = values.argmax(1)
    inner = np.clip(place, 1, values.shape[1] - 2)
    left, middle, right = (np.take_along_axis(values, (inner + d)[:, None], 1)[:, 0] for d in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.divide(left - right, 2 * bend, out=np.zeros(len(bend)), where=bend < 0)
    return np.asarray(np.where(inner == place, inner + np.clip(shift, -0.5, 0.5), place))


def _called(known: KnownEdges) -> NDArray[np.int64]:
    return apply_alignment(known.probability.argmax(1), known.alignment)


def _sign(excess: Score, error: float, num_scenes: int) -> int:
    """1 if too sure, -1 if not sure enough, 0 if there is no telling."""
    value, low, high = excess["value"] or 0.0, excess["low"], excess["high"]
    if low is None or high is None:
        return int(np.sign(value)) if abs(value) > _CHANCE_ALONE * error else 0
    if abs(value) <= _CHANCE * error:
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def _verdict(direction: str, scores: dict[str, Score], num_uncertain: int) -> str:
    right, expected = (100 * float(scores[name]["value"] or 0) for name in ("edge_accuracy", "expected_accuracy"))
    figures = f"{right:.2f} % of the edges are right where it expects {expected:.2f} %"
    if direction == OVER:
        return f"This posterior is over-confident: {figures}; its best temperature is {_temperature(scores)}."
    if direction == UNDER:
        return f"This posterior is under-confident: {figures}; its best temperature is {_temperature(scores)}."
    if direction == UNKNOWN:
        return f"No edge is in doubt, so calibration cannot be told: {figures}."
    sentence = f"Nothing says that this posterior is over- or under-confident: {figures}"
    if num_uncertain < _FEW:
        return f"{sentence}; but only {num_uncertain} edges are in doubt, which says little."
    return f"{sentence}; its best temperature is {_temperature(scores)}."


def _temperature(scores: dict[str, Score]) -> str:
    found = scores["temperature"]
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
