"""Permutation tests against scipy's, exact where all relabellings are used."""

import itertools

import numpy as np
import pytest
from scipy import stats

from pyro_nri.posterior.permutation import (
    benjamini_hochberg,
    gradient,
    label_p_values,
    relabellings,
    sign_p_value,
    slope_p_value,
)


def mean_of(m):
    return m[..., 0]


def ratio_of(m):
    with np.errstate(divide="ignore", invalid="ignore"):
        return m[..., 0] / m[..., 1]


def test_benjamini_hochberg_is_scipys():
    p_value = np.random.default_rng(0).random(30) ** 2
    p_value[[3, 7]] = p_value[5]
    assert benjamini_hochberg(p_value) == pytest.approx(stats.false_discovery_control(p_value))
    with_gaps = np.insert(p_value, [0, 10], np.nan)
    assert benjamini_hochberg(with_gaps)[~np.isnan(with_gaps)] == pytest.approx(stats.false_discovery_control(p_value))
    assert np.isnan(benjamini_hochberg(with_gaps)[[0, 11]]).all()
    assert benjamini_hochberg([]).shape == (0,)


@pytest.mark.parametrize("seed", range(4))
def test_every_relabelling_is_scipys_exact_test(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0.7, 1, 4), rng.normal(0, 3, 5)

    def welch(a, b, axis):
        return np.abs(stats.ttest_ind(a, b, axis=axis, equal_var=False).statistic)

    wanted = stats.permutation_test((x, y), welch, vectorized=True, alternative="greater", n_resamples=np.inf)
    moments, is_a = np.concatenate([x, y])[:, None], np.arange(9) < 4
    found = label_p_values([(mean_of, moments)], is_a, num_permutations=126, rng=rng)
    assert found == pytest.approx([wanted.pvalue])
    many = label_p_values([(mean_of, moments)], is_a, num_permutations=125, rng=rng)  # one too few: random ones
    assert many == pytest.approx([wanted.pvalue], abs=4 * np.sqrt(0.25 / 125))


def test_ratio_is_studentised_by_its_own_error():
    """The statistic of a ratio of means is the delta method's, computed here by hand."""
    rng = np.random.default_rng(1)
    moments, is_a = rng.gamma(5, 1, (8, 2)), np.arange(8) < 4

    def statistic(labels):
        parts = []
        for own in (moments[labels], moments[~labels]):
            ratio = own[:, 0].sum() / own[:, 1].sum()
            parts.append((ratio, ((own[:, 0] - ratio * own[:, 1]) ** 2).mean() / own[:, 1].mean() ** 2 / 3))
        return abs(parts[0][0] - parts[1][0]) / np.sqrt(parts[0][1] + parts[1][1])

    chunks, every = relabellings(is_a, 70, rng)
    assert every
    values = np.array([statistic(labels) for labels in next(chunks)])
    wanted = (values >= statistic(is_a) * (1 - 1e-9)).mean()
    found = label_p_values([(ratio_of, moments), (mean_of, moments)], is_a, num_permutations=70, rng=rng)
    assert found[0] == pytest.approx(wanted)


def test_no_difference_and_no_spread():
    is_a = np.arange(8) < 4
    same, apart = np.ones((8, 1)), is_a[:, None].astype(float)
    tests, rng = [(mean_of, same), (mean_of, apart)], np.random.default_rng(0)
    found = label_p_values(tests, is_a, num_permutations=100, rng=rng)
    assert found == pytest.approx([1, 2 / 70])  # all one against all the other: the smallest p-value there is
    undefined = label_p_values([(ratio_of, np.zeros((8, 2)))], is_a, num_permutations=100, rng=np.random.default_rng(0))
    assert np.isnan(undefined).all()


def test_p_value_is_never_zero_and_seeded():
    moments = np.concatenate([np.arange(20), np.arange(20) + 1000.0])[:, None]
    is_a = np.arange(40) < 20
    found = [
        label_p_values([(mean_of, moments)], is_a, num_permutations=99, rng=np.random.default_rng(0)) for _ in range(2)
    ]
    assert found[0] == found[1] == pytest.approx([0.01])


def test_signs_are_scipys():
    difference = np.random.default_rng(3).normal(0.4, 1, 9)
    wanted = stats.permutation_test((difference,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_p_value(difference, num_permutations=512, rng=np.random.default_rng(0)) == pytest.approx(wanted.pvalue)
    random = sign_p_value(difference, num_permutations=511, rng=np.random.default_rng(0))
    assert random == pytest.approx(wanted.pvalue, abs=4 * np.sqrt(0.25 / 511))


@pytest.mark.statistical
def test_slope_p_value_is_that_of_all_dealings():
    """The statistic written out: covariance by the standard error of its terms."""
    rng = np.random.default_rng(4)
    x = rng.uniform(-1, 1, 6)
    y = 0.4 * x + rng.normal(0, 1, 6)

    def statistic(dealt):
        terms = (np.array(dealt) - x.mean()) * (y - y.mean())
        return abs(terms.sum()) / np.sqrt(((terms - terms.mean()) ** 2).sum())

    every = np.array([statistic(dealt) for dealt in itertools.permutations(x)])
    wanted = (every >= statistic(x) - 1e-9).mean()
    found = slope_p_value(x, y, num_permutations=4000, rng=rng)
    assert found == pytest.approx(wanted, abs=4 * np.sqrt(wanted * (1 - wanted) / 4000) + 1 / 4000)
    long = np.linspace(-1, 1, 30)
    assert slope_p_value(long, 5 * long, num_permutations=99, rng=rng) == pytest.approx(0.01)


def test_gradient_of_a_ratio():
    mean = np.array([[2.0, 4.0], [3.0, 1.0]])
    assert gradient(ratio_of, mean) == pytest.approx(np.array([[1 / 4, -2 / 16], [1, -3]]), rel=1e-6)


@pytest.mark.statistical
def test_unequal_variances_keep_the_level_and_the_plain_difference_does_not():
    """Few noisy scenes against many quiet ones: the studentised test is right, an unstudentised one is not."""
    rng = np.random.default_rng(5)
    is_a = np.arange(60) < 10
    p_value, plain = [], []
    for _ in range(300):
        x = np.where(is_a, rng.normal(0, 4, 60), rng.normal(0, 1, 60))
        p_value.append(label_p_values([(mean_of, x[:, None])], is_a, num_permutations=199, rng=rng)[0])
        labels = np.argsort(rng.random((199, 60)), axis=1) < 10
        sums = np.abs(labels @ x / 10 - (x.sum() - labels @ x) / 50)
        plain.append((1 + (sums >= abs(x[is_a].mean() - x[~is_a].mean())).sum()) / 200)
    for level in (0.05, 0.1, 0.2):
        error = np.sqrt(level * (1 - level) / 300)
        assert (np.array(p_value) <= level).mean() <= level + 3 * error + 0.03  # right in the long run, not at n = 10
        assert (np.array(plain) <= level).mean() > level + 6 * error


def test_a_negligible_difference_without_spread_is_none():
    rng = np.random.default_rng(0)
    is_a = np.arange(20) < 10
    for gap, certain in ((2e-4, False), (0.1, True)):
        moments = (1 - gap * is_a + 1e-6 * rng.standard_normal(20))[:, None]
        (p_value,) = label_p_values([(lambda m: m[..., 0], moments)], is_a, num_permutations=99, rng=rng)
        assert p_value == (0.01 if certain else 1.0)
