"""Intervals and permutation tests of functions of scenes' mean moments."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import expit

Floats = NDArray[np.float64]
# A function of mean moments, [*batch, R] to [*batch].
Summary = Callable[[Floats], Floats]
# Labels of scenes that are held at once, as floats.
_CHUNK_LABELS = 2**22


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


def jackknife_error(summary: Summary, without: Floats) -> float:
    """Standard error of a summary from mean moments without each scene in turn, ``[G, R]``; NaN for one scene."""
    values = summary(without)
    return float(np.sqrt(((values - values.mean()) ** 2).sum() * (len(values) - 1) / len(values)))


def group_interval(
    value: float, error: float, num_scenes: int, *, level: float, scale: str = "real", num_units: float = 0.0
) -> tuple[float, float]:
    """Student's interval of one group's number, made on a scale where it has no bounds.

    Args:
        value: the number.
        error: its standard error; NaN gives no interval.
        num_scenes: scenes that it comes from.
        level: of the interval.
        scale: "share" (0 to 1, log odds), "positive" (logarithm), "correlation" (-1 to 1, artanh) or "real".
        num_units: independent trials behind a share, for the interval of Clopper & Pearson where it is 0 or 1.
    """
    if math.isnan(value) or math.isnan(error) or num_scenes < 2:
        return math.nan, math.nan
    quantile = float(stats.t.ppf((1 + level) / 2, num_scenes - 1))
    tiny = 1e-6
    if scale == "share":
        if min(value, 1 - value) < tiny:
            width = 1 - ((1 - level) / 2) ** (1 / max(num_units, num_scenes))
            return (0.0, width) if value < 0.5 else (1 - width, 1.0)
        half = quantile * error / (value * (1 - value))
        centre = math.log(value / (1 - value))
        return float(expit(centre - half)), float(expit(centre + half))
    if scale == "positive" and value > tiny:
        half = quantile * error / value
        return value * math.exp(-half), value * math.exp(min(half, 50.0))
    if scale == "correlation" and abs(value) < 1 - tiny:
        half = quantile * error / (1 - value**2)
        return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
    return value - quantile * error, value + quantile * error


def difference_interval(
    a: tuple[float, float, float], b: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Difference of two independent numbers and its interval, from each one's ``(value, low, high)``.

    The intervals are put together as Newcombe (1998) does it for shares (the method of variance estimates recovery), so
    that their asymmetry is kept.
    """
    (value, low, high), (other, other_low, other_high) = a, b
    effect = value - other
    return (
        effect,
        effect - math.hypot(value - low, other_high - other),
        effect + math.hypot(high - value, other - other_low),
    )


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
        return studentised(values[0] - values[1], variances[0] + variances[1])

    return statistic


def studentised(difference: Floats, variance: Floats) -> Floats:
    """Differences in units of their errors; 0 for no difference, infinite for one without any spread."""
    size = np.abs(difference)
    tiny = 1e-12 * (1 + size)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = size / np.sqrt(variance)
    return np.where(size <= tiny, 0.0, np.where(variance <= tiny**2, np.inf, ratio))


def _at_least(values: Floats, observed: float) -> int:
    """How many statistics are at least the observed one; ties count, and so does NaN."""
    return int((~(values < observed * (1 - 1e-9))).sum())


def slope_interval(x: Floats, y: Floats, level: float) -> tuple[float, float, float]:
    """Least-squares slope and its interval, robust to unequal variances (HC3); NaN where x does not vary."""
    centred = x - x.mean()
    scale = float(centred @ centred)
    if scale == 0 or len(x) < 3:
        return math.nan, math.nan, math.nan
    slope = float(centred @ y) / scale
    residual = y - y.mean() - slope * centred
    leverage = 1 / len(x) + centred**2 / scale
    error = math.sqrt(float((centred**2 * (residual / np.maximum(1 - leverage, 1e-9)) ** 2).sum())) / scale
    half = float(stats.t.ppf((1 + level) / 2, len(x) - 2)) * error
    return slope, slope - half, slope + half


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
