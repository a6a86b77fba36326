"""Permutation tests of functions of scenes' mean moments, and the adjustment of many p-values."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
# A function of mean moments, [*batch, R] to [*batch].
Summary = Callable[[Floats], Floats]
# Labels of scenes that are held at once, as floats.
_CHUNK_LABELS = 2**22
# Smaller differences come from where a search ended.
_ROUNDING = 1e-6
# Smaller differences of rates come from draws of structures where scenes do not differ, such as all pairs of all
# scenes mutual.
_NEGLIGIBLE = 5e-4


def benjamini_hochberg(p_value: ArrayLike) -> Floats:
    """Adjusted p-values of one family: the false discovery rate at which each is rejected. NaN is left out.

    >>> benjamini_hochberg([0.01, 0.04, 0.03, 0.5]).round(4).tolist()
    [0.04, 0.0533, 0.0533, 0.5]
    """
    values = np.asarray(p_value, np.float64)
    result = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(-values[known], kind="stable")]  # largest first
    scaled = values[order] * len(order) / np.arange(len(order), 0, -1)
    result[order] = np.minimum.accumulate(np.minimum(scaled, 1.0))
    return result


def gradient(summary: Summary, mean: Floats) -> Floats:
    """Gradient of a summary at mean moments ``[*batch, R]``, by central differences."""
    columns = []
    for r in range(mean.shape[-1]):
        step = 1e-5 * np.maximum(np.abs(mean[..., r]), 1e-3)
        up, down = mean.copy(), mean.copy()
        up[..., r] += step
        down[..., r] -= step
        columns.append((summary(up) - summary(down)) / (2 * step))
    return np.stack(columns, axis=-1)


def relabellings(
    is_a: NDArray[np.bool_], num_permutations: int, rng: np.random.Generator
) -> tuple[Iterator[NDArray[np.bool_]], bool]:
    """Other ways to give the labels of two groups to the scenes, in chunks of bool ``[R, G]``.

    Returns:
        The chunks, and whether they are all there are (the labels as they are among them), else random ones.
    """
    num_scenes, num_a = len(is_a), int(is_a.sum())
    every = math.comb(num_scenes, num_a) <= num_permutations
    step = max(1, _CHUNK_LABELS // num_scenes)

    def chunks() -> Iterator[NDArray[np.bool_]]:
        if every:
            labels = np.zeros((math.comb(num_scenes, num_a), num_scenes), bool)
            for row, chosen in enumerate(combinations(range(num_scenes), num_a)):
                labels[row, chosen] = True
            yield labels
            return
        for start in range(0, num_permutations, step):
            size = min(step, num_permutations - start)
            order = np.argsort(rng.random((size, num_scenes), np.float32), axis=1)
            yield order < num_a

    return chunks(), every


def label_p_values(
    tests: Sequence[tuple[Summary, Floats]],
    is_a: NDArray[np.bool_],
    *,
    num_permutations: int,
    rng: np.random.Generator,
) -> Floats:
    """Two-sided permutation p-values of differences between two groups of scenes.

    The statistic is the difference in units of its own standard error: exact where scenes are exchangeable under the
    null, and right in the long run where groups have one summary but differ otherwise (Chung & Romano 2013). All
    relabellings are used where there are no more than asked for, else random ones and the labels themselves, so that
    a p-value is never 0. Every test sees the same relabellings.

    Args:
        tests: what is compared, of mean moments, and the moments of all scenes, ``[G, R]``, computed without looking at
            the labels.
        is_a: which scenes are in the first group, ``[G]``.
        num_permutations: random relabellings.
        rng: where they come from.

    Returns:
        One p-value for each test, NaN where the difference is undefined.
    """
    prepared = [_prepare(summary, moments, is_a) for summary, moments in tests]
    observed = [float(statistic(is_a[None])[0]) for statistic in prepared]
    chunks, every = relabellings(is_a, num_permutations, rng)
    number, larger = 0, np.zeros(len(tests), np.int64)
    for labels in chunks:
        number += len(labels)
        numbers = labels.astype(np.float64)
        larger += [_at_least(statistic(numbers), value) for statistic, value in zip(prepared, observed, strict=True)]
    share = larger / number if every else (1 + larger) / (1 + number)
    return np.where(np.isnan(observed), np.nan, share)


def _prepare(summary: Summary, moments: Floats, is_a: NDArray[np.bool_]) -> Callable[[NDArray[Any]], Floats]:
    """The studentised difference as a function of labels ``[R, G]``."""
    centre, size = moments.mean(0), moments.shape[1]
    centred = moments - centre
    products = (centred[:, :, None] * centred[:, None, :]).reshape(len(moments), -1)
    columns = np.concatenate([centred, products], axis=1)
    whole, num_a = columns.sum(0), int(is_a.sum())

    def statistic(labels: NDArray[Any]) -> Floats:
        sums = labels @ columns
        values, variances = [], []
        for total, count in ((sums, num_a), (whole - sums, len(moments) - num_a)):
            shift = total[:, :size] / count
            spread = (total[:, size:] / count).reshape(-1, size, size) - shift[:, :, None] * shift[:, None, :]
            mean = centre + shift
            slope = gradient(summary, mean)
            variance = np.einsum("br,brs,bs->b", slope, spread, slope)
            values.append(summary(mean))
            variances.append(np.maximum(variance, 0) / max(count - 1, 1))
        return studentised(values[0] - values[1], variances[0] + variances[1], _NEGLIGIBLE)

    return statistic


def studentised(difference: Floats, variance: Floats, negligible: float = _ROUNDING) -> Floats:
    """Differences in units of their errors; 0 for negligible ones, infinite for others without any spread."""
    size = np.abs(difference)
    tiny = _ROUNDING * (1 + size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = size / np.sqrt(variance)
    return np.where(size <= negligible * (1 + size), 0.0, np.where(variance <= tiny**2, np.inf, ratio))


def _at_least(values: Floats, observed: float) -> int:
    """How many statistics are at least the observed one; ties count, and so does NaN."""
    return int((~(values < observed * (1 - 1e-9))).sum())


def sign_p_value(difference: Floats, *, num_permutations: int, rng: np.random.Generator) -> float:
    """Two-sided p-value of the mean of paired differences ``[G]``: each pair may be turned round.

    All 2^G ways are used where there are no more than asked for, else random ones.
    """
    size, number = np.abs(difference), len(difference)
    observed = abs(float(difference.sum()))
    if 2**number <= num_permutations:
        signs = 1 - 2 * (np.arange(2**number)[:, None] >> np.arange(number) & 1)
        return _at_least(np.abs(signs @ size), observed) / len(signs)
    larger, step = 0, max(1, _CHUNK_LABELS // number)
    for start in range(0, num_permutations, step):
        signs = 1 - 2 * rng.integers(0, 2, (min(step, num_permutations - start), number))
        larger += _at_least(np.abs(signs @ size), observed)
    return (1 + larger) / (1 + num_permutations)


def slope_p_value(x: Floats, y: Floats, *, num_permutations: int, rng: np.random.Generator) -> float:
    """Two-sided permutation p-value of a slope, in units of an error that allows for unequal variances.

    The covariate is dealt anew to the scenes (DiCiccio & Romano 2017): right where y does not depend on x at all, and
    in the long run where they are uncorrelated.
    """
    centred, own = x - x.mean(), y - y.mean()

    def statistic(dealt: Floats) -> Floats:
        product = dealt * own
        return studentised(product.sum(-1), ((product - product.mean(-1, keepdims=True)) ** 2).sum(-1))

    observed = float(statistic(centred[None])[0])
    larger, step = 0, max(1, _CHUNK_LABELS // len(x))
    for start in range(0, num_permutations, step):
        size = min(step, num_permutations - start)
        dealt = rng.permuted(np.broadcast_to(centred, (size, len(x))), axis=1)
        larger += _at_least(statistic(dealt), observed)
    return (1 + larger) / (1 + num_permutations)
