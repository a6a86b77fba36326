import numpy as np
import pytest
from scipy import stats

from pyro_nri.posterior.intervals import difference_interval, group_interval, jackknife_error, slope_interval


def test_real_numbers_have_students_interval():
    x = np.random.default_rng(0).normal(3, 2, 12)
    wanted = stats.ttest_1samp(x, 0).confidence_interval(0.9)
    found = group_interval(x.mean(), stats.sem(x), 12, level=0.9)
    assert found == pytest.approx((wanted.low, wanted.high))


def test_jackknife_of_a_mean_and_of_a_ratio():
    rng = np.random.default_rng(1)
    x = rng.gamma(3, 1, (15, 2))
    without = (x.sum(0) - x) / 14
    assert jackknife_error(lambda m: m[..., 0], without) == pytest.approx(stats.sem(x[:, 0]))
    ratio = np.array([np.delete(x[:, 0], g).sum() / np.delete(x[:, 1], g).sum() for g in range(15)])
    wanted = np.sqrt(14 / 15 * ((ratio - ratio.mean()) ** 2).sum())
    assert jackknife_error(lambda m: m[..., 0] / m[..., 1], without) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("scale", "value", "there", "back"),
    [
        ("share", 0.1, stats.logistic.ppf, stats.logistic.cdf),
        ("positive", 2.0, np.log, np.exp),
        ("correlation", -0.4, np.arctanh, np.tanh),
        ("cube", 0.05, np.cbrt, lambda root: root**3),
    ],
)
def test_scales_without_bounds(scale, value, there, back):
    step = 1e-6
    slope = (there(value + step) - there(value - step)) / (2 * step)
    half = stats.t.ppf(0.975, 9) * 0.03 * slope
    wanted = back(there(value) - half), back(there(value) + half)
    assert group_interval(value, 0.03, 10, level=0.95, scale=scale) == pytest.approx(wanted, rel=1e-6)


def test_a_share_of_nothing_has_the_exact_upper_bound():
    low, high = group_interval(0.0, 0.0, 10, level=0.95, scale="share", num_units=200)
    exact = stats.binomtest(0, 200).proportion_ci(0.95, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high))
    assert group_interval(1.0, 0.0, 10, level=0.95, scale="share", num_units=200) == pytest.approx((1 - high, 1))
    found = group_interval(1.0, 0.0, 10, level=0.95, scale="correlation", num_units=200)
    assert found == pytest.approx((1 - high, 1))
    assert group_interval(0.0, 0.0, 10, level=0.95, scale="cube")[1] == pytest.approx(1 - 0.025 ** (1 / 10))


def test_no_interval_of_one_scene():
    assert np.isnan(group_interval(0.3, np.nan, 1, level=0.95)).all()
    assert np.isnan(difference_interval((0.3, np.nan, np.nan), (0.2, 0.1, 0.3))[1:]).all()


def test_differences_are_newcombes():
    """Newcombe (1998), method 10 without continuity correction, table II, case (a): 56/70 - 48/80."""
    low = stats.binomtest(56, 70).proportion_ci(method="wilson"), stats.binomtest(48, 80).proportion_ci(method="wilson")
    a, b = ((value, each.low, each.high) for value, each in zip((56 / 70, 48 / 80), low, strict=True))
    assert difference_interval(a, b) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_slope_and_its_robust_interval():
    """HC3 by its matrix formula."""
    rng = np.random.default_rng(2)
    x = rng.uniform(0, 2, 25)
    y = 1 + 3 * x + rng.normal(0, 0.2 + x)
    design = np.stack([np.ones(25), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    coefficient = bread @ design.T @ y
    hat = np.einsum("ij,jk,ik->i", design, bread, design)
    meat = design.T @ (design * (((y - design @ coefficient) / (1 - hat)) ** 2)[:, None])
    error = np.sqrt((bread @ meat @ bread)[1, 1])
    half = stats.t.ppf(0.975, 23) * error
    found = slope_interval(x, y, 0.95)
    assert found == pytest.approx((coefficient[1], coefficient[1] - half, coefficient[1] + half))
    assert found[0] == pytest.approx(stats.linregress(x, y).slope)
    assert np.isnan(slope_interval(np.ones(5), np.arange(5.0), 0.95)).all()


def test_fitted_parameters_take_degrees_of_freedom():
    low, high = group_interval(0.3, 0.1, 12, level=0.9, num_fitted=3)
    half = stats.t.ppf(0.95, 9) * 0.1 * np.sqrt(11 / 9)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half))
    assert np.isfinite(group_interval(0.3, 0.1, 3, level=0.9, num_fitted=3)).all()
