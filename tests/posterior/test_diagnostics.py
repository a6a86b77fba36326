import json
import warnings

import arviz as az
import numpy as np
import pytest
import xarray as xr

from pyro_nri.posterior import diagnostics
from pyro_nri.posterior.diagnostics import (
    CONSTANT,
    DISAGREEING,
    MOVING,
    diagnostics_frame,
    edge_diagnostics,
    quantity_diagnostics,
    summarize,
)


def markov(num_chains, num_draws, num_edges, num_types, seed=0):
    """Chains that stay where they are for a while, some much longer than others, int8 ``[C, S, M]``."""
    rng = np.random.default_rng(seed)
    stay = np.linspace(0, 0.95, num_edges)
    values = np.empty((num_chains, num_draws, num_edges), np.int8)
    values[:, 0] = rng.integers(0, num_types, (num_chains, num_edges))
    for s in range(1, num_draws):
        new = rng.integers(0, num_types, (num_chains, num_edges))
        values[:, s] = np.where(rng.random((num_chains, num_edges)) < stay, values[:, s - 1], new)
    return values


def arviz_of(values):
    """R-hat, effective sample size and Monte Carlo error by ArviZ, each ``[M]``, of ``[C, S, M]``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(
            np.array([float(statistic(values[..., m].astype(float))) for m in range(values.shape[-1])])
            for statistic in (az.rhat, az.ess, az.mcse)
        )


@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("num_draws", [50, 401])
def test_indicators_agree_with_arviz(num_draws, num_types):
    edge_type = markov(4, num_draws, 25, num_types)
    found = edge_diagnostics(edge_type, num_types)
    for k in range(num_types):
        moving = found.kind[:, k] == MOVING
        assert moving.sum() > 20
        wanted = arviz_of(edge_type[..., moving] == k)
        for ours, theirs in zip(found[1:], wanted, strict=True):
            np.testing.assert_allclose(ours[moving, k], theirs, rtol=1e-8)


@pytest.mark.parametrize("num_chains", [1, 3])
def test_other_quantities_agree_with_arviz(num_chains):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((num_chains, 101, 12)).cumsum(1) * 0.1 + rng.standard_normal((num_chains, 101, 12))
    values[..., 6:] = values[..., 6:].round()  # ties
    found = quantity_diagnostics(values)
    for ours, theirs in zip(found[1:], arviz_of(values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-8)


def test_booleans_need_no_ranks():
    values = markov(4, 100, 10, 2) == 1
    for plain, ranked in zip(quantity_diagnostics(values), quantity_diagnostics(values.astype(float)), strict=True):
        np.testing.assert_allclose(plain, ranked, rtol=1e-10)


@pytest.mark.parametrize(("num_chains", "num_draws"), [(1, 100), (2, 3), (2, 0)])
def test_too_few_chains_or_draws(num_chains, num_draws):
    edge_type = np.resize(np.array([0, 1, 1], np.int8), (num_chains, num_draws, 2))
    found = edge_diagnostics(edge_type, 2)
    assert np.isnan(found.r_hat).all()
    assert np.isnan(found.ess).all() == (num_draws < 4)


def test_chunks_do_not_matter(monkeypatch):
    edge_type = markov(2, 60, 30, 3)
    whole = edge_diagnostics(edge_type, 3)
    monkeypatch.setattr(diagnostics, "_CHUNK_VALUES", 1)
    for ours, theirs in zip(edge_diagnostics(edge_type, 3), whole, strict=True):
        np.testing.assert_allclose(ours, theirs)


def stuck():
    """Two scenes, two chains: in scene 0 edge 1 is stuck at another type in each chain and edge 2 moves."""
    edge_type = np.zeros((2, 40, 2, 6), np.int8)
    edge_type[1, :, 0, 1] = 1
    edge_type[:, ::2, 0, 2] = 1
    edge_type[:, :, 1, 3] = 1
    return edge_type


def test_three_kinds():
    found = edge_diagnostics(stuck().reshape(2, 40, 12), 2)
    wanted = np.full(12, CONSTANT)
    wanted[[1, 2]] = DISAGREEING, MOVING
    np.testing.assert_array_equal(found.kind, np.stack([wanted, wanted], -1))
    np.testing.assert_array_equal(np.isinf(found.r_hat[:, 0]), wanted == DISAGREEING)
    np.testing.assert_array_equal(np.isnan(found.r_hat[:, 0]), wanted == CONSTANT)
    np.testing.assert_array_equal(np.isfinite(found.ess[:, 0]), wanted == MOVING)


def test_chains_in_different_modes_are_found_though_one_of_them_moves():
    """Of three types one chain visits two, the other sits in the third: no indicator may hide that."""
    edge_type = np.zeros((2, 40, 1), np.int8)
    edge_type[0, ::2] = 1
    edge_type[1] = 2
    assert edge_diagnostics(edge_type, 3).kind.tolist() == [[MOVING, MOVING, DISAGREEING]]


def test_frame_counts_edges_by_scene(make_tree):
    frame = diagnostics_frame(make_tree(stuck()))
    assert frame.columns.tolist() == [
        *("scene", "num_edges", "num_moving", "num_constant", "num_disagreeing"),
        *("r_hat_max", "ess_min", "acceptance_rate"),
    ]
    assert frame["scene"].tolist() == ["0", "1"]
    assert frame.iloc[:, 1:5].to_numpy().tolist() == [[6, 1, 4, 1], [6, 0, 6, 0]]
    assert frame["r_hat_max"][0] == np.inf
    assert np.isnan(frame["r_hat_max"][1])
    assert frame["ess_min"].notna().tolist() == [True, False]


def test_frame_with_unequal_scenes(make_tree, unequal):
    tree = make_tree(scenes=unequal)
    frame = diagnostics_frame(tree)
    assert frame["scene"].tolist() == ["shoal", "other"]
    assert frame["num_edges"].tolist() == [12, 6]
    stats = tree["sample_stats"].to_dataset()
    rate = stats["accepted"].sum(("chain", "draw")) / stats["proposed"].sum(("chain", "draw"))
    np.testing.assert_allclose(frame["acceptance_rate"], rate)


def test_summary_of_a_good_run(make_tree):
    tree = make_tree(markov(4, 1000, 12, 2)[..., :6].reshape(4, 1000, 2, 3)[..., [0, 1, 2, 0, 1, 2]])
    verdict = summarize(tree)
    assert verdict["passed"], verdict["problems"]
    assert verdict["num_moving"] == verdict["num_edges"] == 12
    assert set(verdict["acceptance_rate_by_move"]) == {"single edge", "receiver"}
    json.dumps(verdict, allow_nan=False)


def test_summary_says_what_is_wrong(make_tree):
    verdict = summarize(make_tree(stuck(), complete=False))
    assert not verdict["passed"]
    told = " ".join(verdict["problems"])
    assert "interrupted" in told
    assert "1 edges are constant within each chain but not the same in all" in told


def test_exact_draws_have_no_acceptance(make_tree):
    tree = make_tree(method="exact", move_names=())
    assert not {"accepted", "proposed", "move_kind"} & set(tree["sample_stats"].variables)
    for each in (tree, as_earlier_versions_wrote_it(tree)):
        verdict = summarize(each, ess_limit=10, r_hat_limit=2)
        assert verdict["passed"]
        assert verdict["acceptance_rate"] is None
        assert set(verdict["acceptance_rate_by_move"].values()) <= {None}
        assert diagnostics_frame(each)["acceptance_rate"].isna().all()


def as_earlier_versions_wrote_it(tree):
    """Every draw of an exact posterior was an accepted step."""
    stats, constant = tree["sample_stats"].to_dataset(), tree["constant_data"].to_dataset()
    every = (("chain", "draw", "scene"), np.ones(stats["log_joint"].shape, bool))
    kind = (("chain", "draw"), np.zeros(stats["temperature"].shape, np.int8))
    parts = {f"/{name}": node.to_dataset() for name, node in tree.children.items()}
    parts["/sample_stats"] = stats.assign(accepted=every, proposed=every, move_kind=kind)
    parts["/constant_data"] = constant.assign_coords(move=["exact"])
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=tree.attrs), **parts})


def test_few_draws_of_an_exact_posterior_are_no_problem(make_tree):
    """They are independent: nothing has to converge, though these have different edges in each chain."""
    edge_type = np.zeros((4, 1, 1, 6), np.int8)
    edge_type[1:] = 1
    assert summarize(make_tree(edge_type, method="exact"))["problems"] == []
    assert summarize(make_tree(edge_type, method="exact", complete=False))["problems"] != []
    assert len(summarize(make_tree(edge_type))["problems"]) == 2


def test_values_must_be_finite():
    with pytest.raises(ValueError, match="values must be finite"):
        quantity_diagnostics(np.full((2, 10, 1), np.nan))
    with pytest.raises(ValueError, match=r"values must have shape \[C, S"):
        quantity_diagnostics(np.zeros(10))
