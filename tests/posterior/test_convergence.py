import json
import statistics
import warnings
from collections import Counter
from itertools import combinations, product

import arviz as az
import numpy as np
import pandas as pd
import pytest

import pyro_nri as nri
from pyro_nri.cli import main
from pyro_nri.inference.draws import Replicas
from pyro_nri.posterior.convergence import chain_modes, check, graph_distance_ess, split_frequencies
from pyro_nri.posterior.diagnostics import diagnostics_frame, quantity_diagnostics, summarize
from pyro_nri.posterior.frames import read_frame
from pyro_nri.posterior.storage import write_posterior

SENTENCE = "Do not trust this run yet: in 1 of 2 scenes chains sit in different modes."


def markov(num_chains, num_draws, num_scenes, *, stay=0.8, num_types=2, num_edges=6, seed=0):
    """Chains of independent edges that keep a type for a while, all with the same law, int8 ``[C, S, G, E]``."""
    rng = np.random.default_rng(seed)
    shape = (num_chains, num_scenes, num_edges)
    weights = rng.dirichlet(np.full(num_types, 0.5), shape[1:]).cumsum(-1)
    values = np.empty((num_draws, *shape), np.int8)
    for s in range(num_draws):
        new = (rng.random(shape)[..., None] > weights).sum(-1).clip(max=num_types - 1)
        values[s] = new if s == 0 else np.where(rng.random(shape) < stay, values[s - 1], new)
    return values.swapaxes(0, 1)


def stuck(num_chains=4, num_draws=200):
    """Two scenes; edges 0 to 2 of scene 1 have type 1 in the last two chains alone, edge 5 is free everywhere."""
    edge_type = np.zeros((num_chains, num_draws, 2, 6), np.int8)
    edge_type[2:, :, 1, :3] = 1
    edge_type[..., 5] = np.random.default_rng(1).integers(0, 2, edge_type.shape[:3])
    return edge_type


def scenes_by_hand(tree):
    """Draws of each scene as tuples, ``[scene][chain][draw]``."""
    posterior = tree["posterior"].to_dataset()
    for g in range(tree["sample_stats"].sizes["scene"]):
        own = posterior["edge_type"].values[:, :, posterior["scene_index"].values == g]
        yield [[tuple(draw) for draw in chain] for chain in own.tolist()]


def hamming(one, other):
    return sum(a != b for a, b in zip(one, other, strict=True))


# --- each table against loops ----------------------------------------------------------------------------------------
@pytest.fixture(params=["two types", "three types", "unequal", "one chain"])
def varied(request, make_tree, unequal):
    if request.param == "unequal":
        return make_tree(markov(3, 41, 2, num_edges=12), unequal)
    num_types = 3 if request.param == "three types" else 2
    return make_tree(markov(1 if request.param == "one chain" else 3, 41, 3, num_types=num_types), num_edge_types=3)


def test_split_frequencies_by_hand(varied):
    frame = split_frequencies(varied)
    assert frame.columns.tolist() == ["scene", "mean_deviation", "max_deviation", "num_edges"]
    assert frame["scene"].tolist() == varied["sample_stats"]["scene"].values.tolist()
    for row, chains in zip(frame.itertuples(), scenes_by_hand(varied), strict=True):
        parts = [chains[0][:20], chains[0][-20:]] if len(chains) == 1 else chains
        deviations = []
        for e in range(len(chains[0][0])):
            by_type = [[sum(draw[e] == k for draw in part) / len(part) for part in parts] for k in range(3)]
            if any(max(shares) > 0.05 and min(shares) < 0.95 for shares in by_type):
                deviations.append(max(statistics.stdev(shares) for shares in by_type))
        assert row.num_edges == len(deviations) > 0
        assert row.mean_deviation == pytest.approx(statistics.mean(deviations))
        assert row.max_deviation == pytest.approx(max(deviations))


def test_only_settled_edges_are_left_out(make_tree):
    edge_type = np.zeros((2, 100, 1, 6), np.int8)
    edge_type[0, :5, 0, 0] = 1  # 5 % and 0: rare in all chains
    edge_type[:, 5:, 0, 1] = 1  # 95 % in both
    edge_type[0, :6, 0, 2] = 1  # 6 % in one chain
    edge_type[1, :, 0, 3] = 1  # never, and always
    edge_type[1, 3:, 0, 4] = 1  # never, and 97 %
    row = split_frequencies(make_tree(edge_type)).iloc[0]
    assert row["num_edges"] == 3
    assert row["max_deviation"] == pytest.approx(np.sqrt(0.5))
    assert row["mean_deviation"] == pytest.approx((0.06 + 1 + 0.97) / np.sqrt(2) / 3)
    row = split_frequencies(make_tree(edge_type[..., [0, 0, 0, 1, 1, 1]])).iloc[0]
    assert row["num_edges"] == 0
    assert np.isnan(row[["mean_deviation", "max_deviation"]].to_numpy(float)).all()


def test_graph_distance_ess_by_hand(varied):
    frame = graph_distance_ess(varied)
    assert frame.columns.tolist() == ["scene", "num_structures", "graph_ess_median", "graph_ess_min"]
    for row, chains in zip(frame.itertuples(), scenes_by_hand(varied), strict=True):
        draws = [draw for chain in chains for draw in chain]
        counts = Counter(draws)
        most = min(draw for draw, count in counts.items() if count == max(counts.values()))
        references = [draws[int(len(draws) * part)] for part in (0.125, 0.375, 0.625, 0.875)] + [most]
        values = []
        for reference in references:
            distance = np.array([[hamming(draw, reference) for draw in chain] for chain in chains], float)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values.append(float(az.ess(distance)))
        assert row.num_structures == len(counts) > 1
        assert row.graph_ess_median == pytest.approx(statistics.median(values))
        assert row.graph_ess_min == pytest.approx(min(values))


def test_graphs_that_never_move_have_no_ess(make_tree):
    edge_type = np.zeros((3, 30, 2, 6), np.int8)
    edge_type[2, :, 1, 0] = 1
    frame = graph_distance_ess(make_tree(edge_type))
    assert frame["num_structures"].tolist() == [1, 2]
    assert np.isnan(frame["graph_ess_median"][0])
    assert frame["graph_ess_median"][1] == frame["graph_ess_min"][1] == 3  # a draw for each chain


def modes_by_hand(chains, num_types):
    """Modes by the words of the docstring: loops, frequencies as dictionaries, a search through the pairs."""
    num_draws = len(chains[0])

    def share(part):
        return {draw: count / len(part) for draw, count in Counter(part).items()}

    def common(one, other):
        one, other = share(one), share(other)
        return sum(min(one[draw], other[draw]) for draw in one.keys() & other.keys())

    def differ(one, other, e):
        pairs = [(x, y) for (s, x), (t, y) in product(enumerate(one), enumerate(other)) if one is not other or s != t]
        return sum(x[e] != y[e] for x, y in pairs) / len(pairs)

    def apart(one, other):
        if common(one, other) >= 0.05:
            return False
        chance = 2 / num_draws**0.5
        half = num_draws // 2
        spread = sum(1 - common(chain[:half], chain[half:]) for chain in (one, other))
        return 1 - common(one, other) > spread + chance or any(
            differ(one, other, e) > differ(one, one, e) + differ(other, other, e) + chance for e in range(len(one[0]))
        )

    mode = list(range(len(chains)))
    for _ in chains:
        for a, b in combinations(range(len(chains)), 2):
            if not apart(chains[a], chains[b]):
                mode[a] = mode[b] = min(mode[a], mode[b])
    return mode


def distances_by_hand(chains, mode):
    def mean(one, other):
        same = one is other
        values = [hamming(x, y) for (s, x), (t, y) in product(enumerate(one), enumerate(other)) if not same or s != t]
        return statistics.mean(values)

    several = len(set(mode)) > 1
    pairs = [(a, b) for a, b in combinations(range(len(chains)), 2) if not several or mode[a] != mode[b]]
    between = statistics.mean([mean(chains[a], chains[b]) for a, b in pairs]) if pairs else np.nan
    return between, statistics.mean([mean(chain, chain) for chain in chains])


def test_chain_modes_by_hand(make_tree, varied):
    rng = np.random.default_rng(3)
    edge_type = markov(5, 40, 12, num_types=3, stay=0.5)
    edge_type[..., 3:] = 0
    for g in range(12):  # from chains that agree to chains that are all stuck somewhere
        where = rng.integers(0, 3, (5, g // 2))
        edge_type[:, :, g, : g // 2] = np.where(
            rng.random((5, 40, g // 2)) < 0.1, edge_type[:, :, g, : g // 2], where[:, None]
        )
    found = set()
    for tree in (varied, make_tree(edge_type, num_edge_types=3)):
        frame = chain_modes(tree)
        log_joint = tree["sample_stats"]["log_joint"].values
        for g, (row, chains) in enumerate(zip(frame.itertuples(), scenes_by_hand(tree), strict=True)):
            mode = modes_by_hand(chains, 3)
            parts = [[c for c in range(len(mode)) if mode[c] == first] for first in sorted(set(mode))]
            assert row.chains == " | ".join(",".join(map(str, part)) for part in parts)
            assert row.num_modes == len(parts)
            means = [log_joint[part, :, g].mean() for part in parts]
            assert row.log_joint_gap == pytest.approx(max(means) - min(means))
            between, within = distances_by_hand(chains, mode)
            assert row.expected_distance_between == pytest.approx(between, nan_ok=True)
            assert row.expected_distance_within == pytest.approx(within)
            found.add(row.num_modes)
    assert {1, 2, 3} <= found


def test_a_scene_does_not_depend_on_others(make_tree):
    edge_type = np.concatenate([markov(4, 60, 3), stuck(4, 60)], axis=2)
    rng = np.random.default_rng(2)
    log_joint = rng.standard_normal((4, 60, 5))
    never = np.zeros((4, 60, 5), bool)
    whole = check(make_tree(edge_type, log_joint=log_joint, accepted=never, proposed=never)).table
    for g in range(5):
        one = {"log_joint": log_joint[..., [g]], "accepted": never[..., [g]], "proposed": never[..., [g]]}
        alone = check(make_tree(edge_type[:, :, [g]], **one)).table
        pd.testing.assert_frame_equal(
            alone.drop(columns="scene"), whole.drop(columns="scene").iloc[[g]].reset_index(drop=True), rtol=1e-12
        )


# --- which chains are in one mode ------------------------------------------------------------------------------------
def test_one_chain_that_crosses_makes_two_modes_one(make_tree):
    edge_type = np.zeros((3, 100, 1, 6), np.int8)
    edge_type[2, ..., :3] = 1
    assert chain_modes(make_tree(edge_type))["chains"].tolist() == ["0,1 | 2"]
    edge_type[1, 40:60, :, :3] = 1
    assert chain_modes(make_tree(edge_type))["chains"].tolist() == ["0,1,2"]
    assert not check(make_tree(edge_type)).passed  # R-hat finds that they do not agree
    edge_type[1, 42:] = 0  # two draws of a hundred, such as the end of the warm-up, are no bridge
    assert chain_modes(make_tree(edge_type))["chains"].tolist() == ["0,1 | 2"]


def test_edges_that_move_do_not_hide_one_that_is_stuck(make_tree):
    edge_type = np.random.default_rng(4).integers(0, 2, (2, 400, 1, 20)).astype(np.int8)
    edge_type[..., 0] = [[[0]], [[1]]]
    row = chain_modes(make_tree(edge_type)).iloc[0]
    assert row["expected_distance_between"] < 1.2 * row["expected_distance_within"]  # whole graphs hide it
    assert row["chains"] == "0 | 1"


@pytest.mark.statistical
def test_chains_that_agree_are_in_one_mode(make_tree):
    """10,800 times two chains are compared at an edge.

    Of 40 effective draws two frequencies around 1/2 must lie 0.65 apart to be told apart, 5.8 standard errors. Of 16
    independent draws, 14 must differ: the probability is at most 2.5e-7.
    """
    assert (chain_modes(make_tree(markov(4, 200, 300, stay=0.67)))["num_modes"] == 1).all()
    assert (chain_modes(make_tree(markov(4, 16, 300, stay=0)))["num_modes"] == 1).all()


def test_type_codes_hide_what_indicators_and_modes_show(make_tree):
    """Chain 0 visits types 0, 2 and 4, chain 1 types 1 and 3.

    Codes have the same mean rank, and so have their distances from the median: even the folded R-hat sees nothing.
    """
    edge_type = np.zeros((2, 400, 1, 6), np.int8)
    edge_type[0, :, 0, 0] = np.resize([0, 2, 4, 2], 400)
    edge_type[1, :, 0, 0] = np.resize([1, 3], 400)
    codes = edge_type[:, :, 0, 0]
    assert float(az.rhat(codes.astype(float))) < 1.01
    assert quantity_diagnostics(codes).r_hat < 1.01
    tree = make_tree(edge_type, num_edge_types=5)
    assert summarize(tree)["r_hat_max"] > 1.2
    assert chain_modes(tree)["chains"].tolist() == ["0 | 1"]
    assert not check(tree).passed


def test_no_single_edge_need_tell_modes_apart(make_tree):
    """Two edges that are alike in chain 0 and opposite in chain 1, each with frequency 1/2: no indicator sees it."""
    rng = np.random.default_rng(5)
    edge_type = np.zeros((2, 400, 1, 6), np.int8)
    edge_type[..., 0] = np.stack([rng.permutation(np.resize([0, 1], 400)) for _ in range(2)])[..., None]
    edge_type[..., 1] = edge_type[..., 0] ^ np.array([0, 1], np.int8)[:, None, None]
    tree = make_tree(edge_type)
    assert summarize(tree)["passed"]
    assert split_frequencies(tree)["max_deviation"][0] == pytest.approx(0)
    result = check(tree)
    assert not result.passed
    assert result.verdict == "Do not trust this run yet: in 1 of 1 scenes chains sit in different modes."


# --- verdicts --------------------------------------------------------------------------------------------------------
def test_stuck_chains(make_tree):
    log_joint = np.zeros((4, 200, 2))
    log_joint[2:, :, 1] = -12.5
    tree = make_tree(stuck(), log_joint=log_joint)
    result = check(tree)
    assert not result.passed
    assert result.verdict == SENTENCE
    assert result.problems[0] == (
        "In 1 of 2 scenes chains sit in different modes: scene 1 has chains 0,1 | 2,3; "
        "the mean log joints of modes of one scene differ by up to 12.5."
    )
    assert list(result.problems[1:]) == summarize(tree)["problems"]  # word by word, and nothing that follows from modes
    assert result.advice == ("Let chains cross between modes by parallel tempering: infer(num_replicas=8).",)
    assert result.table["chains"].tolist() == ["0,1,2,3", "0,1 | 2,3"]
    assert result.table["num_modes"].tolist() == [1, 2]
    assert result.table["log_joint_gap"].tolist() == [0, 12.5]
    wanted = [3 + 0.5, 0.5]  # three edges apart, and one that is free
    assert result.table.iloc[1][["expected_distance_between", "expected_distance_within"]].tolist() == pytest.approx(
        wanted, abs=0.01
    )
    assert str(result).splitlines() == [
        *(SENTENCE, "Problems:", *(f"  {problem}" for problem in result.problems)),
        *("What to do:", f"  {result.advice[0]}"),
    ]


def test_only_some_scenes_are_named(make_tree):
    edge_type = np.tile(stuck()[:, :, 1:], (1, 1, 5, 1))
    problem = check(make_tree(edge_type)).problems[0]
    assert "In 5 of 5 scenes" in problem
    assert "scene 2 has chains 0,1 | 2,3, and others;" in problem
    assert "scene 3" not in problem


def test_more_replicas_than_there_were(make_tree):
    ladder = Replicas(
        inverse_temperature=np.linspace(1, 0, 6)[:, None].repeat(2, 1),
        rejection=np.zeros((5, 2)),
        num_steps=1,
        log_up=np.zeros((5, 4, 2)),
        log_down=np.zeros((5, 4, 2)),
        edge_type=np.zeros((6, 4, 2, 6), np.int8),
    )
    assert "infer(num_replicas=12)" in check(make_tree(stuck(), replicas=ladder)).advice[0]


@pytest.mark.statistical
def test_chains_that_mix_pass(make_tree):
    tree = make_tree(markov(4, 2000, 40, stay=0.5))
    result = check(tree)
    assert result.passed, str(result)
    least = result.table[["ess_min", "graph_ess_median"]].min(axis=None)
    assert result.verdict == (
        f"Trust this run: in 40 of 40 scenes its 4 chains agree, with {least:.0f} effective draws or more."
    )
    assert str(result) == result.verdict
    assert result.problems == result.advice == ()
    columns = ["scene", "num_edges", "mean_deviation", "graph_ess_median", "num_modes", "num_edges_compared"]
    assert set(columns) <= set(result.table.columns)
    assert result.table.columns[0] == "scene"
    assert result.table.columns.is_unique
    frames = (diagnostics_frame(tree), graph_distance_ess(tree), chain_modes(tree))
    for frame in frames:
        assert result.table[frame.columns].equals(frame)
    # Where chains agree, draws of two are as far from each other as those of one.
    ratio = result.table["expected_distance_between"] / result.table["expected_distance_within"]
    assert ratio.to_numpy() == pytest.approx(1, abs=0.03)


def test_where_nothing_moves_there_is_no_number(make_tree):
    result = check(make_tree(np.ones((2, 50, 3, 6), np.int8)))
    assert (result.passed, str(result)) == (True, "Trust this run: in 3 of 3 scenes its 2 chains agree.")


@pytest.mark.statistical
def test_slow_chains_are_to_run_for_longer(make_tree):
    tree = make_tree(markov(4, 500, 6, stay=0.9))
    tree.attrs["thin"] = 3
    result = check(tree)
    assert (result.table["num_modes"] == 1).all()
    assert "The smallest effective sample size" in " ".join(result.problems)
    slow = result.table["graph_ess_median"]
    assert result.problems[-1] == (
        f"In {(slow < 400).sum()} of 6 scenes whole structures have effective sample sizes below 400, "
        f"the smallest is {slow.min():.0f}."
    )
    times = int(np.ceil(400 / result.table[["ess_min", "graph_ess_median"]].min(axis=None)))
    assert times > 2
    told = f"Run {times} times as long: infer(num_draws={500 * times}) or infer(thin={3 * times})."
    assert result.advice[-1] == told
    assert check(tree, r_hat_limit=2, ess_limit=10).passed


def test_drift_asks_for_warm_up(make_tree, make_scenes, make_draws):
    """All chains come from the same start at other times, and come to agree."""
    edge_type = np.random.default_rng(6).integers(0, 2, (4, 1000, 1, 6)).astype(np.int8)
    for c in range(4):
        edge_type[c, : 150 * (c + 1), 0, 0] = 0
    result = check(make_tree(edge_type))
    assert result.table["num_modes"].tolist() == [1]
    assert "The largest R-hat is" in result.problems[0]
    assert result.verdict.startswith("Do not trust this run yet: the largest R-hat is")
    assert result.verdict.endswith(", above 1.05.")
    assert result.advice[0] == "Warm up for longer: infer(num_warmup=1000)."
    warmup = make_draws(make_scenes(1), np.zeros((4, 700, 1, 6), np.int8))
    assert check(make_tree(edge_type, warmup=warmup)).advice[0] == "Warm up for longer: infer(num_warmup=1400)."


def test_one_chain(make_tree):
    result = check(make_tree(stuck()[:1]))
    assert result.verdict == "Do not trust this run yet: one chain cannot show that chains agree; run at least two."
    assert result.advice == ("Run several chains: infer(num_chains=4).",)
    assert result.table["chains"].tolist() == ["0", "0"]
    assert result.table["expected_distance_between"].isna().all()
    assert (result.table["max_deviation"] < 0.2).all()
    changed = stuck()[:1]
    changed[:, 100:, 1, :2] = 1
    assert split_frequencies(make_tree(changed))["max_deviation"][1] == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize("num_chains", [1, 4])
@pytest.mark.parametrize("num_draws", [0, 1, 2, 3])
def test_too_few_draws(make_tree, num_chains, num_draws):
    result = check(make_tree(stuck(4, num_draws)[-num_chains:]))
    assert not result.passed
    assert result.verdict == (
        f"Do not trust this run yet: {num_draws} draw{' is' if num_draws == 1 else 's are'} too few to diagnose, "
        f"4 are needed."
    )
    several = ("Run several chains: infer(num_chains=4).",) if num_chains == 1 else ()
    assert result.advice == (*several, "Draw more: infer(num_draws=500).")
    assert (result.table["num_modes"] == 1).all()
    assert result.table[["ess_min", "graph_ess_median", "graph_ess_min"]].isna().all(axis=None)
    assert result.table["expected_distance_within"].isna().all() == (num_draws < 2)
    assert result.table["expected_distance_between"].isna().all() == (num_draws < 1 or num_chains == 1)


def test_exact_draws_are_independent(make_tree):
    nothing = np.zeros((2, 20, 2), bool)
    edge_type = stuck()[1:3, :20]  # by themselves the draws would fail
    result = check(make_tree(edge_type, method="exact", accepted=nothing, proposed=nothing))
    assert result.passed
    assert "its draws are independent" in str(result)
    assert result.problems == result.advice == ()
    assert not check(make_tree(edge_type, accepted=nothing, proposed=nothing)).passed


def test_interrupted(make_tree):
    result = check(make_tree(np.zeros((4, 100, 1, 6), np.int8), complete=False))
    assert result.verdict.startswith("Do not trust this run yet: the run was interrupted")
    assert result.advice == ("Go on with the interrupted run: infer(resume=draws) with the arguments that it had.",)


def test_scenes_with_unequal_numbers_of_entities(make_tree, unequal):
    edge_type = np.zeros((4, 100, 2, 12), np.int8)
    edge_type[1, :, 1, 0] = 1  # an edge of the smaller scene
    table = check(make_tree(edge_type, unequal)).table
    assert table["scene"].tolist() == ["shoal", "other"]
    assert table["chains"].tolist() == ["0,1,2,3", "0,2,3 | 1"]
    assert table["num_edges"].tolist() == [12, 6]
    assert table["num_edges_compared"].tolist() == [0, 1]
    assert table["expected_distance_between"].tolist() == [0, 1]


def test_front_door():
    assert nri.check is check
    assert (nri.split_frequencies, nri.graph_distance_ess) == (split_frequencies, graph_distance_ess)
    assert nri.chain_modes is chain_modes


# --- the command -----------------------------------------------------------------------------------------------------
@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def test_diagnose(make_tree, run, tmp_path):
    tree = make_tree(stuck())
    write_posterior(tree, tmp_path / "p.nc")
    wanted = check(tree)
    code, out, err = run("diagnose", tmp_path / "p.nc", "--json", "--out", tmp_path / "new" / "table.csv")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result.pop("wrote") == str(tmp_path / "new" / "table.csv")
    assert result.pop("r_hat_max") == "inf"  # JSON has no infinity
    for name, worst in (("max_deviation", "max"), ("ess_min", "min"), ("graph_ess_min", "min")):
        assert result.pop(name) == pytest.approx(getattr(wanted.table[name], worst)())
    assert result == {
        "verdict": SENTENCE,
        "passed": False,
        "problems": list(wanted.problems),
        "advice": list(wanted.advice),
        "method": "mcmc",
        "num_scenes": 2,
        "num_chains": 4,
        "num_draws": 200,
        "num_edges": 12,
        "num_moving": 2,
        "num_disagreeing": 3,
        "scenes_with_several_modes": 1,
    }
    table = read_frame(tmp_path / "new" / "table.csv")
    assert table.columns.tolist() == wanted.table.columns.tolist()
    assert table["chains"].tolist() == ["0,1,2,3", "0,1 | 2,3"]
    assert table["max_deviation"].tolist() == wanted.table["max_deviation"].tolist()
    code, out, _ = run("diagnose", tmp_path / "p.nc")
    assert code == 0
    for sentence in (wanted.verdict, *wanted.problems, *wanted.advice):
        assert sum(line.endswith(f" {sentence}") for line in out.splitlines()) == 1


def test_diagnose_a_run_that_passes(make_tree, run, tmp_path):
    write_posterior(make_tree(np.zeros((2, 20, 1, 6), np.int8)), tmp_path / "p.nc")
    code, out, err = run("diagnose", tmp_path / "p.nc", "--json")
    result = json.loads(out)
    assert (code, err, result["passed"], result["problems"], result["advice"]) == (0, "", True, [], [])
    assert result["ess_min"] is result["r_hat_max"] is result["max_deviation"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["p.nc"]


def test_diagnose_bad_input(make_tree, run, tmp_path):
    code, out, err = run("diagnose", tmp_path / "none.nc")
    assert (code, out, err) == (2, "", f"pyro-nri: there is no posterior file {tmp_path / 'none.nc'}\n")
    write_posterior(make_tree(np.zeros((2, 0, 1, 6), np.int8)), tmp_path / "p.nc")
    code, out, err = run("diagnose", tmp_path / "p.nc")
    assert (code, out) == (2, "")
    assert "holds no draw yet" in err
    write_posterior(make_tree(stuck()), tmp_path / "p.nc")
    code, out, err = run("diagnose", tmp_path / "p.nc", "--out", tmp_path / "table.xlsx")
    assert (code, out) == (2, "")
    assert "must end in .csv or .parquet" in err
    assert [path.name for path in tmp_path.iterdir()] == ["p.nc"]
