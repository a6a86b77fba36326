import builtins

import numpy as np
import pandas as pd
import pytest

from pyro_nri.posterior.calibration import reliability_table
from pyro_nri.posterior.convergence import chain_modes
from pyro_nri.posterior.diagnostics import diagnostics_frame, edge_diagnostics
from pyro_nri.posterior.frames import edges_frame, read_frame, structures_frame, write_frame
from pyro_nri.posterior.graph_statistics import distances_frame, edge_counts_frame
from pyro_nri.posterior.inclusion import bayes_factors_frame
from pyro_nri.posterior.parts import scene_parts
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.storage import open_posterior, write_posterior
from pyro_nri.posterior.truth import known_edges
from pyro_nri.posterior.uncertainty import uncertainty_frame

EVERY = {
    "edges": edges_frame,
    "edges, wide": lambda tree: edges_frame(tree, wide=True),
    "structures": structures_frame,
    "diagnostics": diagnostics_frame,
    "uncertainty": uncertainty_frame,
    "Bayes factors": lambda tree: bayes_factors_frame(tree, prior_probability=[0.5, 0.5]),
    "edge counts": lambda tree: edge_counts_frame(tree, 1),
    "distances": distances_frame,
    "modes": chain_modes,
    "reliability": lambda tree: reliability_table(known_edges(tree), num_replicates=20),
}


def test_edges_frame(make_tree, unequal):
    tree = make_tree(scenes=unequal)
    frame = edges_frame(tree)
    assert frame.columns.tolist() == [
        *("scene", "sender", "receiver", "edge_type", "probability", "mcse", "r_hat", "ess", "map", "estimator")
    ]
    assert frame.loc[[0, 1, 2], ["scene", "sender", "receiver", "edge_type"]].to_numpy().tolist() == [
        ["shoal", "a", "b", 0],
        ["shoal", "a", "b", 1],
        ["shoal", "a", "c", 0],
    ]
    probability, _ = edge_probability(tree)
    found = edge_diagnostics(tree["posterior/edge_type"].values, 2)
    np.testing.assert_array_equal(frame["probability"], probability.ravel())
    np.testing.assert_array_equal(frame["r_hat"], found.r_hat.ravel())
    np.testing.assert_array_equal(frame["ess"], found.ess.ravel())
    assert (frame.groupby(["scene", "sender", "receiver"])["map"].sum() == 1).all()
    assert frame.loc[frame["map"], "probability"].min() >= 0.5
    assert set(frame["estimator"]) == {"counts"}


def test_exact_probabilities_have_no_monte_carlo_error(make_tree):
    frame = edges_frame(make_tree(edge_probability=np.full((3, 6, 2), 0.5), method="exact"))
    assert (frame["mcse"] == 0).all()
    assert set(frame["estimator"]) == {"exact"}


def test_structures_frame(make_tree):
    edge_type = np.zeros((2, 10, 2, 2), np.int8)
    edge_type[0, :7, 0] = [1, 0]
    edge_type[1, 0, 0] = [0, 1]
    log_joint = np.arange(40.0).reshape(2, 10, 2)
    tree = make_tree(edge_type, log_joint=log_joint)
    frame = structures_frame(tree)
    assert frame.columns.tolist() == ["scene", "structure", "probability", "log_joint", "mcse", "estimator"]
    assert frame["scene"].tolist() == ["0", "0", "0", "1"]
    assert frame["structure"].tolist() == ["00", "10", "01", "00"]
    np.testing.assert_allclose(frame["probability"], [0.6, 0.35, 0.05, 1])
    assert frame["log_joint"][1] == log_joint[0, :7, 0].mean()
    assert structures_frame(tree, num_top=1)["structure"].tolist() == ["00", "00"]
    with pytest.raises(ValueError, match="num_top must be at least 1"):
        structures_frame(tree, num_top=0)


def test_many_types_are_separated_by_blanks(make_tree):
    edge_type = np.full((1, 5, 1, 2), 11, np.int8)
    edge_type[..., 1] = 0
    assert structures_frame(make_tree(edge_type, num_edge_types=12))["structure"].tolist() == ["11 0"]


def test_no_draws_no_structures(make_tree):
    frame = structures_frame(make_tree(np.zeros((2, 0, 1, 6), np.int8)))
    assert len(frame) == 0
    assert frame["probability"].dtype == np.float64


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("of", EVERY.values(), ids=EVERY)
def test_frames_come_back(make_tree, make_scenes, tmp_path, suffix, of):
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 40, 3, 6))
    edge_type[:, :, 0], edge_type[1, :, 1] = 0, 1  # NaN and inf in the frames
    edge_type[0, :, 1] = 0
    scenes = make_scenes(scene_names=["007", "NA", "1e5"], entity_names=["01", "nan", "x,y"])
    frame = of(make_tree(edge_type, scenes))
    path = tmp_path / f"frame{suffix}"
    write_frame(frame, path)
    pd.testing.assert_frame_equal(read_frame(path), frame, check_exact=True)
    assert list(tmp_path.iterdir()) == [path]


def test_chains_of_one_mode_are_text(make_tree, tmp_path):
    """The only chain is called "0", which is no number."""
    frame = chain_modes(make_tree(np.zeros((1, 10, 2, 6), np.int8)))
    write_frame(frame, tmp_path / "modes.csv")
    assert read_frame(tmp_path / "modes.csv")["chains"].tolist() == ["0", "0"]


@pytest.mark.parametrize("method", ["mcmc", "exact"])
@pytest.mark.parametrize("of", [name for name in EVERY if name not in ("distances", "modes", "reliability")])
def test_frames_of_parts_of_a_file_are_those_of_the_whole(make_tree, tmp_path, monkeypatch, of, method):
    known = {"edge_probability": np.full((7, 6, 2), 0.5), "log_marginal": np.zeros(7)} if method == "exact" else {}
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 20, 7, 6))
    tree = make_tree(edge_type, method=method, **known)
    whole = EVERY[of](tree)
    write_posterior(tree, tmp_path / "posterior.nc")
    monkeypatch.setattr(scene_parts, "__defaults__", (2 * 20 * 6 * 3,))
    with open_posterior(tmp_path / "posterior.nc") as opened:
        pd.testing.assert_frame_equal(EVERY[of](opened), whole, check_exact=True)
        assert not opened["posterior/edge_type"].variable._in_memory or of == "diagnostics"


@pytest.mark.parametrize("of", [edges_frame, structures_frame, uncertainty_frame])
def test_frames_of_some_scenes(make_tree, of):
    tree = make_tree()
    whole = of(tree)
    wanted = whole[whole["scene"].isin(["0", "2"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(of(tree, scenes=["2", "0"]), wanted)
    with pytest.raises(ValueError, match="the posterior has no scene '3'"):
        of(tree, scenes=["3"])


@pytest.mark.parametrize("num_types", [2, 3])
def test_wide_view(make_tree, num_types):
    tree = make_tree(num_edge_types=num_types)
    long, wide = edges_frame(tree), edges_frame(tree, wide=True)
    keys = ["scene", "sender", "receiver"]
    for k in range(num_types):
        np.testing.assert_array_equal(wide[f"probability_{k}"], long.query("edge_type == @k")["probability"])
    pd.testing.assert_frame_equal(
        wide[[*keys, "edge_type"]], long.query("map")[[*keys, "edge_type"]].reset_index(drop=True)
    )
    by_edge = long.groupby(keys, sort=False)
    for name, worst in (("mcse", "max"), ("r_hat", "max"), ("ess", "min")):
        np.testing.assert_array_equal(wide[name], by_edge[name].agg(worst))
    assert "map" not in wide


def test_probabilities_of_structures_of_an_enumerated_posterior(make_tree):
    """Two draws of three are of the less probable structure; its log joint knows better."""
    edge_type = np.array([[[[0, 1]], [[0, 1]], [[1, 1]]]], np.int8)
    log_joint = np.log([0.1, 0.1, 0.9]).reshape(1, 3, 1) - 7
    known = {"log_joint": log_joint, "log_marginal": np.array([-7.0]), "edge_probability": np.full((1, 2, 2), 0.5)}
    frame = structures_frame(make_tree(edge_type, method="exact", **known))
    assert frame["structure"].tolist() == ["11", "01"]
    np.testing.assert_allclose(frame["probability"], [0.9, 0.1])
    assert frame["mcse"].tolist() == [0, 0]
    assert set(frame["estimator"]) == {"exact"}
    counted = structures_frame(make_tree(edge_type, log_joint=log_joint))
    assert counted["structure"].tolist() == ["01", "11"]
    assert set(counted["estimator"]) == {"counts"}


@pytest.mark.statistical
def test_errors_of_structures(make_tree):
    edge_type = np.random.default_rng(0).integers(0, 2, (4, 500, 1, 2))
    frame = structures_frame(make_tree(edge_type))
    p = frame["probability"]
    np.testing.assert_allclose(frame["mcse"], np.sqrt(p * (1 - p) / 2000), rtol=0.2)


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in \.csv or \.parquet"):
        write_frame(pd.DataFrame({"a": [1]}), tmp_path / "frame.xlsx")


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="parquet files need pyarrow"):
        write_frame(pd.DataFrame({"a": [1]}), tmp_path / "frame.parquet")


def test_many_scenes_are_quick(make_tree):
    """2,000 scenes of 20 edges; a loop over edges would take minutes."""
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 20, 2000, 20), dtype=np.int8)
    tree = make_tree(edge_type)
    assert len(edges_frame(tree)) == 80_000
    assert len(structures_frame(tree, num_top=1)) == 2000
