"""One door to comparisons, on the ten lines that a user would write, and on many simulated studies."""

import re

import numpy as np
import pandas as pd
import pytest

import pyro_nri.posterior.comparison as comparison
from pyro_nri.posterior.comparison import compare_posteriors, comparison_frame
from pyro_nri.posterior.comparison_table import COLUMNS
from pyro_nri.posterior.distances import scene_distances
from pyro_nri.posterior.groups import compare_groups, split_groups
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.posterior.subsets import add_columns, scene_values
from pyro_nri.scenes.simulate import simulate
from pyro_nri.scenes.tables import to_dataframe

SURE = 1e4


@pytest.fixture
def tree(studies):
    rng = np.random.default_rng(0)
    structure = np.concatenate([studies.draw_structures(rng, 6, 3, rate, 0.0) for rate in (0.3, 0.7)])
    return studies.exact_posterior(structure, SURE, rng, scene_names=[f"s{b}" for b in range(12)])


@pytest.fixture
def table():
    """As a long table of trajectories would have it: several rows for each scene, in another order."""
    rows = pd.DataFrame({"scene": [f"s{b}" for b in range(12)][::-1], "mood": ["good"] * 6 + ["bad"] * 6})
    rows["load"] = np.linspace(2, 1, 12)
    rows["dose"] = [1, 2] * 6
    return pd.concat([rows.assign(time=t) for t in range(3)], ignore_index=True)


def test_groups(tree, table):
    options = {"quantities": ("density",), "num_permutations": 99}
    frame = comparison_frame(tree, by="mood", table=table, **options)
    pd.testing.assert_frame_equal(frame, split_groups(tree, ["bad"] * 6 + ["good"] * 6, **options))
    dose = comparison_frame(tree, by="dose", table=table, **options)
    assert dose[["group_a", "group_b"]].iloc[0].tolist() == ["1", "2"]  # two numbers are two groups
    slope = comparison_frame(tree, by="load", table=table, **options)
    assert slope["quantity"].unique().tolist() == ["density slope", "density rank correlation"]
    both = comparison_frame(tree, tree, names=("one", "other"), **options)
    assert both["effect"].to_numpy() == pytest.approx(0)
    pd.testing.assert_frame_equal(both, compare_groups(tree, tree, names=("one", "other"), **options))


def test_columns_are_kept_in_the_file(tree, table, tmp_path):
    write_posterior(add_columns(tree, table), tmp_path / "posterior.nc")
    again = read_posterior(tmp_path / "posterior.nc")
    assert scene_values(again, "mood").tolist() == ["bad"] * 6 + ["good"] * 6
    assert scene_values(again, "load") == pytest.approx(np.linspace(1, 2, 12))
    assert "time" not in again["constant_data"].variables  # it changes within a scene
    assert "mood" not in tree["constant_data"].variables


def test_columns_of_recordings_that_share_a_structure(make_tree, unequal):
    tree = make_tree(scenes=unequal)  # Monday and Tuesday share "shoal"
    named = pd.DataFrame({"scene": ["shoal", "other"], "water": ["salt", "fresh"]})
    assert scene_values(add_columns(tree, named), "water").tolist() == ["salt", "fresh"]
    recordings = pd.DataFrame({"scene": ["Monday", "other", "Tuesday"], "warm": [1.0, 2.0, 3.0]})
    with pytest.raises(ValueError, match="column 'warm' differs between recordings that share the structure 'shoal'"):
        scene_values(add_columns(tree, recordings), "warm")


def test_same_scenes(studies):
    structure = np.random.default_rng(1).integers(0, 2, (8, 6))
    a, b = (studies.exact_posterior(structure, 1.0, np.random.default_rng(seed)) for seed in (1, 2))
    frame = comparison_frame(a, b, mode="same-scenes", names=("old", "new"))
    assert tuple(frame.columns) == COLUMNS
    found = frame[frame["type"] != 0].set_index("quantity")
    p, q = (edge_probability(tree)[0].reshape(8, 6, 2)[..., 1] for tree in (a, b))
    assert found.loc["density", "effect"] == pytest.approx((p - q).mean())
    assert found.loc["edge probability distance", "effect"] == pytest.approx(np.abs(p - q).mean())
    distances = scene_distances(a, b)
    assert found.loc["total variation", "effect"] == pytest.approx(distances["total_variation"].mean())
    # For edges as indicators the excess is the squared distance of the probabilities, two indicators each, halved.
    assert found.loc["excess graph distance", "effect"] == pytest.approx(((p - q) ** 2).sum(1).mean())
    assert found["p_value"].notna().tolist() == [True, False, False, False, False]
    same = compare_posteriors(a, a).set_index("quantity")
    assert same["effect"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert same.loc["density", "p_value"].to_numpy() == pytest.approx(1)


def test_refusals(tree, table):
    for arguments, options, sentence in (
        ((tree,), {}, "one posterior is no two groups: give another one, or by"),
        ((tree,), {"mode": "same-scenes"}, "mode 'same-scenes' compares two posteriors, found one"),
        ((tree, tree), {"mode": "same-scenes", "by": "mood"}, "by goes with mode 'groups'"),
        ((tree, tree), {"mode": "each"}, "mode must be one of same-scenes, groups, found 'each'"),
        ((tree,), {"table": table}, "table goes with by"),
        ((tree,), {"by": "mood"}, "the posterior has no column 'mood' of its scenes, only recording, structure_group"),
        ((tree,), {"by": "mood", "table": table[["mood"]]}, "table has no column 'scene', its columns are mood"),
        ((tree,), {"by": "mood", "table": table.iloc[1:2]}, "table has no scene 's0', which the posterior has"),
        ((tree,), {"by": "time", "table": table[["scene", "time"]]}, "no column beside 'scene' that is constant"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            comparison_frame(*arguments, **options)


@pytest.mark.slow
def test_ten_lines_of_two_tables(tmp_path, monkeypatch):
    """The code at the head of the file, on tables of three entities."""
    monkeypatch.chdir(tmp_path)
    for name, seed, rate in (("control", 3, 0.3), ("treated", 4, 0.7)):
        scenes = simulate("springs", 20, num_entities=3, num_frames=10, seed=seed, link_probability=rate)
        to_dataframe(scenes).to_csv(f"{name}.csv", index=False)
    (block,) = re.findall(r"```python\n(.*?)```", comparison.__doc__, flags=re.DOTALL)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(block.replace("seed=0)\nposterior", "seed=0, num_steps=20, law_bootstrap=0)\nposterior"), names)
    frame = names["frame"]
    assert tuple(frame.columns) == COLUMNS
    assert set(frame["group_a"]) == {"control"}
    assert frame["num_scenes_b"].unique().tolist() == [10]


# --- many studies ----------------------------------------------------------------------------------------------------
NUM_STUDIES = 60


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("rate", "is_null"), [(0.35, True), (0.55, False)])
def test_short_study(studies, rate, is_null):
    """Level and cover as promised, and power, from posteriors in which half of the density's information is lost."""
    low, high, effect, p_value, naive = [], [], [], [], []
    for study in range(NUM_STUDIES):
        rng = np.random.default_rng([7, study])
        structures = [studies.draw_structures(rng, 20, 4, own, 0.0) for own in (0.35, rate)]
        trees = [studies.exact_posterior(structure, 4.0, rng, num_draws=2) for structure in structures]
        row = compare_groups(*trees, quantities=("density",), types=(1,), num_permutations=199, seed=study).iloc[0]
        for values, name in ((low, "low"), (high, "high"), (effect, "effect"), (p_value, "p_value")):
            values.append(row[name])
        naive.append(edge_probability(trees[0])[0][:, 1].mean() - edge_probability(trees[1])[0][:, 1].mean())
    truth = 0.35 - rate
    covered = np.mean((np.array(low) <= truth) & (truth <= np.array(high)))
    assert covered >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / NUM_STUDIES)
    assert np.mean(effect) == pytest.approx(truth, abs=4 * np.std(effect) / np.sqrt(NUM_STUDIES))
    if is_null:
        for level in (0.01, 0.05, 0.1, 0.2, 0.5):
            error = np.sqrt(level * (1 - level) / NUM_STUDIES)
            assert np.mean(np.array(p_value) <= level) <= level + 3 * error
        assert np.mean(np.array(p_value) <= 0.5) >= 0.5 - 4 * np.sqrt(0.25 / NUM_STUDIES)
    else:
        assert np.mean(np.array(p_value) <= 0.05) > 0.9
        assert abs(np.mean(naive)) < 0.85 * abs(truth)
