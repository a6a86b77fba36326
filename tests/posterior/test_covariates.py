import numpy as np
import pytest
from scipy import stats

from pyro_nri.posterior.comparison_table import COLUMNS
from pyro_nri.posterior.covariates import compare_covariate
from pyro_nri.posterior.probability import edge_probability

SURE = 1e4


def test_certain_structures_give_least_squares_and_spearman(studies):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 10, 25)
    structure = studies.draw_structures(rng, 25, 4, 0.2 + 0.05 * x[:, None], 0.0)
    tree = studies.exact_posterior(structure, SURE, rng)
    frame = compare_covariate(tree, x, name="temperature", quantities=("density",), types=(1,), num_permutations=999)
    assert tuple(frame.columns) == COLUMNS
    slope, rank = frame.iloc[0], frame.iloc[1]
    share = structure.mean(1)
    assert slope["effect"] == pytest.approx(stats.linregress(x, share).slope, abs=1e-5)
    assert rank["effect"] == pytest.approx(stats.spearmanr(x, share).statistic, abs=1e-6)
    half = 1.96 * np.sqrt((1 + rank["effect"] ** 2 / 2) / 22)
    centre = np.arctanh(rank["effect"])
    assert np.arctanh([rank["low"], rank["high"]]) == pytest.approx([centre - half, centre + half], abs=1e-4)
    assert (frame["p_value"] < 0.01).all()
    assert frame["quantity"].tolist() == ["density slope", "density rank correlation"]
    assert frame[["group_a", "group_b", "num_scenes_a", "num_scenes_b"]].iloc[0].tolist() == ["temperature", "", 25, 0]


@pytest.mark.statistical
def test_weak_data_do_not_shrink_a_slope(studies):
    rng = np.random.default_rng(1)
    x = rng.uniform(-1, 1, 300)
    structure = studies.draw_structures(rng, 300, 5, 0.4 + 0.25 * x[:, None], 0.0)
    tree = studies.exact_posterior(structure, 1.0, rng)
    row = compare_covariate(tree, x, quantities=("density",), types=(1,), num_permutations=99).iloc[0]
    averages = np.polyfit(x, edge_probability(tree)[0][:, 1].reshape(300, -1).mean(1), 1)[0]
    assert averages < 0.5 * 0.25
    assert row["low"] <= 0.25 <= row["high"]
    assert averages < row["low"]


def test_other_quantities_have_slopes(studies):
    rng = np.random.default_rng(2)
    x = np.linspace(0, 1, 20)
    tree = studies.exact_posterior(studies.draw_structures(rng, 20, 4, 0.4, 0.0), SURE, rng)
    frame = compare_covariate(tree, x, types=(1,), num_permutations=99)
    assert len(frame) == 2 * 7
    assert frame[["effect", "low", "high", "p_value"]].notna().all(axis=None)


def test_refusals(studies):
    rng = np.random.default_rng(3)
    tree = studies.exact_posterior(studies.draw_structures(rng, 5, 3, 0.5, 0.0), SURE, rng)
    for covariate, sentence in (
        ([1.0, 2.0], "covariate must have a finite number for each of 5 scenes"),
        ([1.0, 2.0, np.nan, 1.0, 1.0], "covariate must have a finite number"),
        ([1.0] * 5, "covariate must take different values"),
    ):
        with pytest.raises(ValueError, match=sentence):
            compare_covariate(tree, covariate)
