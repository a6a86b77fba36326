"""Intervals of groups' numbers, of their differences, and of slopes."""

import math

import numpy as np
from scipy import stats
from scipy.special import expit

from pyro_nri.posterior.permutation import Floats, Summary


def jackknife_error(summary: Summary, without: Floats) -> float:
    """Standard error of a summary from mean moments without each scene in turn, ``[G, R]``; NaN for one scene."""
    values = summary(without)
    return float(np.sqrt(((values - values.mean()) ** 2).sum() * (len(values) - 1) / len(values)))


def group_interval(
    value: float,
    error: float,
    num_scenes: int,
    *,
    level: float,
    scale: str = "real",
    num_units: float = 0.0,
    num_fitted: int = 1,
) -> tuple[float, float]:
    """Student's interval of one group's number, made on a scale where it has no bounds.

    Args:
        value: the number.
        error: its standard error; NaN gives no interval.
        num_scenes: scenes that it comes from.
        level: of the interval.
        scale: "share" (0 to 1, log odds), "cube" (a share that goes with the third power of a density, cube root),
            "positive" (logarithm), "correlation" (-1 to 1, artanh) or "real".
        num_units: independent trials behind the number, for the interval of Clopper & Pearson where a share is 0 or 1,
            or a correlation 1.
        num_fitted: parameters fitted to the scenes, degrees of freedom that they no longer have.
    """
    if math.isnan(value) or math.isnan(error) or num_scenes < 2:
        return math.nan, math.nan
    freedom = max(num_scenes - num_fitted, 1)
    quantile = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt((num_scenes - 1) / freedom)
    tiny = 1e-6
    width = 1 - ((1 - level) / 2) ** (1 / max(num_units, num_scenes))
    if scale in ("share", "cube") and min(value, 1 - value) < tiny:
        return (0.0, width) if value < 0.5 else (1 - width, 1.0)
    if scale == "correlation" and value > 1 - tiny:
        return 1 - width, 1.0
    if scale == "share":
        half = quantile * error / (value * (1 - value))
        centre = math.log(value / (1 - value))
        return float(expit(centre - half)), float(expit(centre + half))
    if scale == "cube" and value > tiny:
        root = value ** (1 / 3)
        half = quantile * error / (3 * root**2)
        return max(root - half, 0.0) ** 3, (root + half) ** 3
    if scale == "positive" and value > tiny:
        half = quantile * error / value
        return value * math.exp(-half), value * math.exp(min(half, 50.0))
    if scale == "correlation" and value > -1 + tiny:
        half = quantile * error / (1 - value**2)
        return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
    return value - quantile * error, value + quantile * error


def difference_interval(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
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
