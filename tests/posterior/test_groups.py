"""Differences between groups: closed forms where structures are certain, and no shrinkage where they are not."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy import stats

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior import motifs
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.groups import compare_groups, split_groups
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes import edges

SURE = 1e4  # information at which nothing is in doubt
COLUMNS = (
    *("quantity", "type", "group_a", "group_b", "effect", "low", "high", "p_value", "p_adjusted"),
    *("num_scenes_a", "num_scenes_b"),
)


def rows(frame, type_=1):
    return frame[frame["type"] == type_].set_index("quantity")


def scene_numbers(linked, num_entities):
    """Moments of each scene that the quantities are made of."""
    return pd.DataFrame(
        {
            "edges": linked.sum(1),
            "mutual": motifs.num_mutual(linked, num_entities),
            "in": motifs.num_stars(linked, num_entities, "in"),
            "out": motifs.num_stars(linked, num_entities, "out"),
            "transitive": motifs.num_transitive(linked, num_entities),
            "cycles": motifs.num_cycles(linked, num_entities),
        }
    )


def summaries(linked, num_entities):
    number = num_entities * (num_entities - 1)
    m = scene_numbers(linked, num_entities).mean()
    density = m["edges"] / number
    degree = m["edges"] / num_entities
    binomial = (num_entities - 1) * density * (1 - density)
    spread = {end: (2 * m[end] + m["edges"]) / num_entities - degree**2 for end in ("in", "out")}
    return {
        "density": density,
        "degree": degree,
        "reciprocity": (2 * m["mutual"] / m["edges"] - density) / (1 - density),
        "in-degree dispersion": spread["in"] / binomial,
        "out-degree dispersion": spread["out"] / binomial,
        "transitive triads": m["transitive"] / (number * (num_entities - 2)),
        "cyclic triads": m["cycles"] / (number * (num_entities - 2) / 3),
    }


@pytest.fixture(scope="module")
def certain(studies):
    rng = np.random.default_rng(0)
    structures = [studies.draw_structures(rng, n, 4, rate, r) for n, rate, r in ((12, 0.3, 0.1), (9, 0.6, 0.5))]
    trees = [studies.exact_posterior(structure, SURE, rng, weight=(0.9, 0.1)) for structure in structures]
    return structures, trees, compare_groups(*trees, names=("sparse", "dense"), num_permutations=500)


def test_certain_structures_have_their_own_numbers(certain):
    structures, _, frame = certain
    found = rows(frame)["effect"]
    a, b = (summaries(structure == 1, 4) for structure in structures)
    for name, value in a.items():
        # The base measure of triads is drawn, but at the maximum its mean is that of the data.
        assert found[name] == pytest.approx(value - b[name], abs=1e-4 if "triads" not in name else 5e-3), name
    assert rows(frame, 0)["effect"]["density"] == pytest.approx(-found["density"])
    assert rows(frame, 0)["effect"]["reciprocity"] == pytest.approx(found["reciprocity"], abs=1e-4)


def test_columns_and_files(certain, tmp_path):
    _, _, frame = certain
    assert tuple(frame.columns) == COLUMNS
    assert frame.index.equals(pd.RangeIndex(len(frame)))
    assert (frame["low"] <= frame["effect"]).all()
    assert (frame["effect"] <= frame["high"]).all()
    assert (frame["p_adjusted"] >= frame["p_value"]).all()
    assert frame["p_adjusted"].to_numpy() == pytest.approx(stats.false_discovery_control(frame["p_value"]))
    assert set(frame["group_a"]) == {"sparse"}
    assert (frame["num_scenes_b"] == 9).all()
    for suffix in ("csv", "parquet"):
        write_frame(frame, tmp_path / f"comparison.{suffix}")
        pd.testing.assert_frame_equal(read_frame(tmp_path / f"comparison.{suffix}"), frame)


def test_density_of_certain_structures_is_welchs_test(certain, studies):
    """Exact p-value of the studentised permutation test, and an interval near Welch's."""
    structures, _, frame = certain
    a, b = (structure.mean(1) for structure in structures)
    welch = stats.ttest_ind(a, b, equal_var=False)
    low, high = welch.confidence_interval(0.95)
    row = rows(frame).loc["density"]
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=0.02)
    few = [studies.exact_posterior(structure[:5], SURE, np.random.default_rng(0)) for structure in structures]
    exact = compare_groups(*few, quantities=("density",), types=(1,), num_permutations=252)["p_value"][0]

    def statistic(x, y, axis):
        return np.abs(stats.ttest_ind(x, y, axis=axis, equal_var=False).statistic)

    wanted = stats.permutation_test((a[:5], b[:5]), statistic, alternative="greater", n_resamples=np.inf).pvalue
    assert exact == pytest.approx(wanted)


@pytest.mark.statistical
def test_averages_shrink_and_ours_do_not(studies):
    rng = np.random.default_rng(1)
    structures = [studies.draw_structures(rng, 150, 5, rate, 0.0) for rate in (0.2, 0.5)]
    truth = structures[0].mean() - structures[1].mean()
    trees = [studies.exact_posterior(structure, 1.0, rng) for structure in structures]
    naive = edge_probability(trees[0])[0][:, 1].mean() - edge_probability(trees[1])[0][:, 1].mean()
    assert abs(naive) < 0.45 * abs(truth)  # the control: this is what must not come out
    row = rows(compare_groups(*trees, quantities=("density",), num_permutations=99)).loc["density"]
    assert row["low"] <= truth <= row["high"]
    assert row["effect"] == pytest.approx(truth, abs=(row["high"] - row["low"]) / 2)
    assert row["high"] < naive  # averages lie outside
    assert row["p_value"] == pytest.approx(0.01)


@pytest.mark.statistical
def test_draws_without_exact_receivers_do_not_shrink_either(studies):
    rng = np.random.default_rng(2)
    structures = [studies.draw_structures(rng, 100, 4, rate, 0.0) for rate in (0.35, 0.6)]
    trees = [studies.exact_posterior(structure, 3.0, rng, num_draws=1000, receivers=False) for structure in structures]
    truth = structures[0].mean() - structures[1].mean()
    frame = compare_groups(*trees, quantities=("density", "reciprocity"), types=(1,), num_permutations=99)
    row = rows(frame).loc["density"]
    naive = edge_probability(trees[0])[0][:, 1].mean() - edge_probability(trees[1])[0][:, 1].mean()
    assert row["effect"] == pytest.approx(truth, abs=0.04)
    assert naive > truth + 0.05


def test_the_prior_does_not_matter(studies):
    """One view of the same scenes, under two priors: the same estimate."""
    structures = [studies.draw_structures(np.random.default_rng(3), 60, 4, rate, 0.0) for rate in (0.3, 0.5)]
    effects = []
    for weight in ((0.5, 0.5), (0.9, 0.1)):
        rng = np.random.default_rng(4)
        trees = [studies.exact_posterior(structure, 2.0, rng, weight=weight) for structure in structures]
        effects.append(compare_groups(*trees, quantities=("density",), num_permutations=9)["effect"][1])
    # The noise of the views is the same, as draws of structures do not come in between.
    assert effects[0] == pytest.approx(effects[1], abs=0.03)


def test_a_type_that_no_scene_has(studies):
    rng = np.random.default_rng(5)
    trees = [studies.exact_posterior(np.zeros((6, 12), int), SURE, rng) for _ in range(2)]
    frame = rows(compare_groups(*trees))
    assert frame.loc["density", "effect"] == pytest.approx(0, abs=1e-6)
    bound = 1 - 0.025 ** (1 / 72)
    assert (frame.loc["density", "low"], frame.loc["density", "high"]) == pytest.approx((-bound, bound), abs=1e-4)
    assert frame.loc["density", "p_value"] == 1


def test_pairs_that_are_all_mutual_do_not_differ_by_rounding(studies):
    rng = np.random.default_rng(11)
    structures = [studies.draw_structures(rng, 20, 4, rate, 1.0) for rate in (0.3, 0.6)]
    trees = [studies.exact_posterior(structure, SURE, rng) for structure in structures]
    row = rows(compare_groups(*trees, quantities=("reciprocity",), num_permutations=99)).loc["reciprocity"]
    assert row["effect"] == pytest.approx(0, abs=1e-6)
    assert row["p_value"] == 1
    one_way = [20 * 12 * rate * (1 - rate) for rate in (structure.mean() for structure in structures)]
    bounds = [1 - 0.025 ** (1 / number) for number in one_way]  # all of each group's one-way pairs are missing
    assert (row["low"], row["high"]) == pytest.approx((-bounds[0], bounds[1]), abs=1e-4)


def test_single_edges(studies):
    rng = np.random.default_rng(6)
    structures = [(rng.random((40, 6)) < rate).astype(int) for rate in ([0.5] * 6, [0.9, *[0.5] * 5])]
    trees = [studies.exact_posterior(structure, SURE, rng, entity_names=["x", "y", "z"]) for structure in structures]
    frame = compare_groups(*trees, quantities=("edges", "density"), num_permutations=999)
    single = frame[frame["quantity"].str.startswith("edge ") & (frame["type"] == 1)].reset_index(drop=True)
    assert single["quantity"].tolist() == [f"edge {s} -> {r}" for s, r in ("xy", "xz", "yx", "yz", "zx", "zy")]
    wanted = structures[0].mean(0) - structures[1].mean(0)
    assert single["effect"].to_numpy() == pytest.approx(wanted, abs=1e-4)
    assert single["p_adjusted"].idxmin() == 0
    is_single = frame["quantity"].str.startswith("edge ")
    for family in (is_single, ~is_single):
        part = frame[family]
        assert part["p_adjusted"].to_numpy() == pytest.approx(stats.false_discovery_control(part["p_value"]))


@pytest.mark.statistical
def test_tied_pairs(studies, make_draws, make_scenes):
    """Draws under a symmetric prior, made by hand: pairs are linked with known odds."""
    rng = np.random.default_rng(7)
    both, trees, truth = edges.pairs(4).numpy(), [], []
    for rate in (0.3, 0.6):
        pair = rng.random((50, 6)) < rate
        ratio = 4 * np.where(pair, 1, -1) + np.sqrt(8) * rng.normal(size=pair.shape)  # log likelihood of a link
        probability = 1 / (1 + np.exp(-ratio - np.log(0.4 / 0.6)))
        drawn = (rng.random((1, 400, 50, 6)) < probability).astype(np.int8)
        edge_type = np.zeros((1, 400, 50, 12), np.int8)
        edge_type[..., both[:, 0]] = edge_type[..., both[:, 1]] = drawn
        scenes = make_scenes(50, 4)
        trees.append(to_datatree(make_draws(scenes, edge_type, prior=PriorRecord("symmetric", (0.6, 0.4))), scenes))
        truth.append(pair.mean())
    frame = rows(compare_groups(*trees, num_permutations=99))
    assert frame.index.tolist() == ["density", "degree", "degree dispersion", "triangles"]
    assert frame.loc["density", "effect"] == pytest.approx(truth[0] - truth[1], abs=0.04)
    low, high = frame.loc["triangles", ["low", "high"]]
    assert low <= 0.3**3 - 0.6**3 <= high


def test_scenes_of_unequal_sizes(studies):
    rng = np.random.default_rng(8)
    small = [studies.draw_structures(rng, 8, 3, rate, 0.0) for rate in (0.3, 0.6)]
    large = [studies.draw_structures(rng, 5, 5, rate, 0.0) for rate in (0.3, 0.6)]
    trees = [studies.exact_posterior(structure, SURE, rng) for structure in (*small, *large)]
    labels = np.repeat(["a", "b", "a", "b"], [8, 8, 5, 5])
    frame = rows(split_groups(trees, labels, num_permutations=99))
    share = [(s.sum() + t.sum()) / (s.size + t.size) for s, t in zip(small, large, strict=True)]
    assert frame.loc["density", "effect"] == pytest.approx(share[0] - share[1], abs=1e-5)
    possible = 8 * 6 + 5 * 60
    count = [
        motifs.num_transitive(s == 1, 3).sum() + motifs.num_transitive(t == 1, 5).sum()
        for s, t in zip(small, large, strict=True)
    ]
    assert frame.loc["transitive triads", "effect"] == pytest.approx((count[0] - count[1]) / possible, abs=5e-3)
    assert frame.loc["density", "num_scenes_a"] == 13


def test_labels_split_one_posterior_as_two_files_do(certain, studies):
    structures, _, _ = certain
    whole = studies.exact_posterior(np.concatenate(structures), SURE, np.random.default_rng(0))
    order = np.random.default_rng(1).permutation(21)
    labels = np.array(["b sparse"] * 12 + ["c dense"] * 9)
    shuffled = studies.exact_posterior(np.concatenate(structures)[order], SURE, np.random.default_rng(0))
    both = ((whole, labels), (shuffled, labels[order]))
    frames = [split_groups(tree, own, quantities=("density", "reciprocity")) for tree, own in both]
    assert frames[0]["group_a"].unique().tolist() == ["b sparse"]
    for frame in frames:
        a, b = (summaries(structure == 1, 4) for structure in structures)
        assert rows(frame)["effect"]["reciprocity"] == pytest.approx(a["reciprocity"] - b["reciprocity"], abs=1e-4)
    three = split_groups(whole, np.arange(21) % 3, quantities=("density",), types=(1,))
    assert list(zip(three["group_a"], three["group_b"], strict=True)) == [("0", "1"), ("0", "2"), ("1", "2")]
    assert three["p_adjusted"].to_numpy() == pytest.approx(stats.false_discovery_control(three["p_value"]))


def test_types_of_another_model(studies):
    """Types that are numbered otherwise are matched by alignments, by hand, or not at all."""
    rng = np.random.default_rng(9)
    structures = [studies.draw_structures(rng, 10, 3, rate, 0.0) for rate in (0.3, 0.6)]
    a = studies.exact_posterior(structures[0], SURE, rng)
    b = studies.exact_posterior(1 - structures[1], SURE, rng)
    wanted = structures[0].mean() - structures[1].mean()
    options = {"quantities": ("density",), "types": (1,), "num_permutations": 9}
    a.attrs["model_fingerprint"], b.attrs["model_fingerprint"] = "one", "other"
    with pytest.raises(ValueError, match="of different models, whose types are numbered arbitrarily"):
        compare_groups(a, b, **options)
    assert compare_groups(a, b, relabel=[1, 0], **options)["effect"][0] == pytest.approx(wanted, abs=1e-5)

    def align(tree, alignment):
        tree["constant_data"] = xr.DataTree(
            tree["constant_data"].to_dataset().assign(type_alignment=("type", alignment))
        )

    align(a, [1, 0])
    align(b, [0, 1])
    assert compare_groups(a, b, **options)["effect"][0] == pytest.approx(wanted, abs=1e-5)
    align(b, [0, -1])  # a spare type stands for nothing
    with pytest.raises(ValueError, match="or give relabel"):
        compare_groups(a, b, **options)
    with pytest.raises(ValueError, match="relabel must hold each of the types 0 to 1 once"):
        compare_groups(a, b, relabel=[1, 1], **options)


def test_refusals(studies, certain, make_tree):
    _, (a, b), _ = certain
    one = make_tree(np.zeros((1, 1, 3, 12), np.int8), prior=PriorRecord("independent", (0.5, 0.5)))
    with pytest.raises(ValueError, match="b holds 1 draw, at least two are needed"):
        compare_groups(a, one)
    broken = a.copy()
    del broken["constant_data"]
    with pytest.raises(ValueError, match="a is not a whole posterior: the posterior has no group 'constant_data'"):
        compare_groups(broken, b)
    for options, sentence in (
        ({"quantities": ("weather",)}, "quantities must be among"),
        ({"quantities": ()}, "quantities is empty"),
        ({"types": (2,)}, "types must be between 0 and 1, found 2"),
        ({"level": 1.5}, "level must lie between 0 and 1"),
        ({"num_permutations": 0}, "num_permutations must be at least 1"),
    ):
        with pytest.raises(ValueError, match=sentence):
            compare_groups(a, b, **options)
    other = studies.exact_posterior(np.zeros((3, 6), int), SURE, np.random.default_rng(0))
    with pytest.raises(ValueError, match="need scenes of the same entities, scene '0' has others"):
        compare_groups(a, other, quantities=("edges",))
    with pytest.raises(ValueError, match="labels must have one entry for each of 12 scenes"):
        split_groups(a, ["x"])
    with pytest.raises(ValueError, match="labels must make at least two groups, found one, 'x'"):
        split_groups(a, ["x"] * 12)


def test_one_scene_has_no_interval(studies):
    rng = np.random.default_rng(10)
    trees = [studies.exact_posterior(studies.draw_structures(rng, n, 4, 0.5, 0.0), SURE, rng) for n in (1, 8)]
    row = compare_groups(*trees, quantities=("density",), types=(1,)).iloc[0]
    assert np.isfinite(row["effect"])
    assert np.isnan(row[["low", "high"]].to_numpy(float)).all()
    assert 1 / 9 - 1e-9 <= row["p_value"] <= 1
