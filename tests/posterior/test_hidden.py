"""Hidden entities in the posterior file, in tables and in pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pyro_nri.inference.draws import Draws, HiddenDraws
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import scenes_of, to_datatree, to_draws
from pyro_nri.posterior.frames import edges_frame, read_frame, write_frame
from pyro_nri.posterior.hidden_frames import hidden_frame, num_hidden_frame
from pyro_nri.posterior.hidden_plots import NUM_PATHS, animate_hidden, plot_hidden
from pyro_nri.posterior.predictions import predict
from pyro_nri.posterior.report import report_html
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.scenes.scenes import Scenes

NUM_FRAMES, NUM_DRAWS = 6, 8
UNEXPLAINED = np.array([[60.0, 50.0], [40.0, 2.5], [30.4, 2.0]])  # two hidden entities do not explain scene a either


@pytest.fixture
def scenes():
    trajectory = np.random.default_rng(0).standard_normal((2, NUM_FRAMES, 3, 4))
    return Scenes.from_arrays(trajectory, time_step=0.1, scene_names=["a", "b"], entity_names=["x", "y", "z"])


@pytest.fixture
def draws():
    """Scene a has two hidden entities, scene b one."""
    random = np.random.default_rng(1)
    edge_type = random.integers(0, 2, (2, NUM_DRAWS, 2, 20)).astype(np.int8)
    state = random.standard_normal((2, NUM_DRAWS, 2, 2, 4))
    path = random.standard_normal((100, 2, 2, NUM_FRAMES, 4))
    state[:, :, 1, 1], path[:, 1, 1] = np.nan, np.nan
    matrix = np.zeros((5, 5), bool)
    matrix[:4, :4] = True
    present = matrix[~np.eye(5, dtype=bool)]
    edge_type[:, :, 1] *= present
    shape = (2, NUM_DRAWS, 2)
    log_marginal = np.array([[-20.0, -30.0], [-10.0, -10.0], [-9.0, -13.0]])
    return Draws(
        edge_type=edge_type,
        log_joint=random.standard_normal(shape),
        accepted=random.random(shape) < 0.5,
        proposed=np.ones(shape, bool),
        move_kind=np.zeros(NUM_DRAWS, np.int8),
        temperature=np.ones(NUM_DRAWS),
        move_names=("hidden state and edges",),
        num_edge_types=2,
        group_names=("a", "b"),
        method="mcmc",
        seed=0,
        num_evaluations=100,
        log_marginal=np.array([-9.0, -10.0]),
        log_marginal_error=np.array([0.1, 0.2]),
        hidden=HiddenDraws(state, path, np.array([2, 1]), (0, 1, 2), log_marginal, 0.1 * np.ones((3, 2)), UNEXPLAINED),
    )


@pytest.fixture
def tree(draws, scenes):
    return to_datatree(draws, scenes)


def test_file_round_trip(tree, draws, tmp_path):
    write_posterior(tree, tmp_path / "posterior.nc")
    again = to_draws(read_posterior(tmp_path / "posterior.nc"))
    for name in ("state", "path", "num_hidden", "log_marginal", "log_marginal_error", "unexplained"):
        assert np.array_equal(getattr(again.hidden, name), getattr(draws.hidden, name), equal_nan=True)
    assert again.hidden.numbers == (0, 1, 2)
    assert np.array_equal(again.edge_type, draws.edge_type)
    assert scenes_of(tree).entity_names == (("x", "y", "z", "hidden 1", "hidden 2"), ("x", "y", "z", "hidden 1", ""))


def test_edges_of_hidden_entities_are_among_all_others(tree):
    frame = edges_frame(tree)
    pairs = frame[frame["edge_type"] == 0].groupby("scene").size()
    assert pairs.to_dict() == {"a": 20, "b": 12}
    assert ((frame["sender"] == "hidden 1") & (frame["receiver"] == "y")).sum() == 4


def test_hidden_frame(tree, draws, tmp_path):
    frame = hidden_frame(tree, interval=0.5)
    assert list(frame) == ["scene", "entity", "frame", "state", "mean", "sd", "low", "high"]
    assert len(frame) == 3 * NUM_FRAMES * 4
    row = frame.query("scene == 'a' and entity == 'hidden 2' and frame == 3 and state == 'vy'").iloc[0]
    values = draws.hidden.path[:, 0, 1, 3, 3]
    wanted = [values.mean(), values.std(ddof=1), np.quantile(values, 0.25), np.quantile(values, 0.75)]
    assert row[["mean", "sd", "low", "high"]].tolist() == pytest.approx(wanted)
    assert frame.notna().all(axis=None)
    write_frame(frame, tmp_path / "hidden.csv")
    assert read_frame(tmp_path / "hidden.csv").equals(frame)


def test_num_hidden_frame(tree):
    frame = num_hidden_frame(tree)
    assert frame["num_hidden"].tolist() == [0, 1, 2] * 2
    assert frame["chosen"].tolist() == [False, False, True, False, True, False]
    assert frame["unexplained"].tolist() == UNEXPLAINED.T.ravel().tolist()
    of_a = frame[frame["scene"] == "a"]
    assert of_a["probability"].sum() == pytest.approx(1)
    assert of_a["probability"].iloc[2] == pytest.approx(1 / (1 + np.exp(-1) + np.exp(-11)))


def test_a_scene_that_no_number_explains_does_not_pass(draws, scenes):
    told = "In 1 of 2 scenes the hidden entities that draws have do not explain the motion: scene a; up to 30 nats"
    found = check(to_datatree(draws, scenes))
    assert any(told in problem for problem in found.problems)
    assert found.table["unexplained"].tolist() == [30.4, 2.5]
    assert any("missed by the search" in sentence for sentence in found.advice)
    explained = replace(draws.hidden, unexplained=UNEXPLAINED / 10)
    found = check(to_datatree(replace(draws, hidden=explained), scenes))
    assert not any("explain the motion" in problem for problem in found.problems)
    assert not any("missed by the search" in sentence for sentence in found.advice)


def test_a_number_of_unknown_error_does_not_pass(draws, scenes):
    error = draws.hidden.log_marginal_error.copy()
    error[1, 1] = np.inf  # of the number that scene b has
    error[0] = np.inf  # too improbable: no matter
    told = "In 1 of 2 scenes nothing is known of the error of the log marginal"
    found = check(to_datatree(replace(draws, hidden=replace(draws.hidden, log_marginal_error=error)), scenes))
    assert any(told in problem and "scene b" in problem for problem in found.problems)
    assert not any(told in problem for problem in check(to_datatree(draws, scenes)).problems)


def test_a_file_that_does_not_know_what_is_unexplained(draws, scenes, tmp_path):
    """One of before, or of recordings with noise."""
    older = to_datatree(replace(draws, hidden=replace(draws.hidden, unexplained=None)), scenes)
    write_posterior(older, tmp_path / "older.nc")
    again = read_posterior(tmp_path / "older.nc")
    assert to_draws(again).hidden.unexplained is None
    assert num_hidden_frame(again)["unexplained"].isna().all()
    assert "unexplained" not in check(again).table


def test_pictures(tree, tmp_path):
    axes = plot_hidden(tree)
    assert axes.get_title() == "scene a"
    assert len(axes.get_lines()) >= 2 * NUM_PATHS + 3
    assert {text.get_text() for text in axes.texts} == {"x", "y", "z", "hidden 1", "hidden 2"}
    fewer = plot_hidden(tree, "b", hidden_type=0)
    assert len(fewer.get_lines()) < len(axes.get_lines())
    axes.figure.savefig(tmp_path / "hidden.png")
    animate_hidden(tree, tmp_path / "film.gif", hidden_type=0)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == NUM_FRAMES


def test_bad_input_is_named(tree, draws, scenes):
    with pytest.raises(ValueError, match="no scene 'c'"):
        plot_hidden(tree, "c")
    with pytest.raises(ValueError, match=r"path must end in \.gif, found 'film.mp4'"):
        animate_hidden(tree, "film.mp4")
    with pytest.raises(ValueError, match="interval must lie between 0 and 1, found 90"):
        hidden_frame(tree, interval=90)
    with pytest.raises(ValueError, match="hidden_type must be between 0 and 1, found 2"):
        plot_hidden(tree, hidden_type=2)

    plain = to_datatree(replace(draws, edge_type=draws.edge_type[..., :6], hidden=None), scenes)
    for function in (hidden_frame, num_hidden_frame, plot_hidden):
        with pytest.raises(ValueError, match="without hidden entities"):
            function(plain)


def test_report_tells_of_hidden_entities(tree):
    page, _ = report_html(tree, num_replicates=10)
    assert "Is something unseen acting?" in page
    assert "Most probable number, in scenes: 1 in 1, 2 in 1." in page
    assert "recorded tracks in grey" in page


def test_predictions_are_refused(tree, scenes):
    model = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="do not roll out with hidden entities"):
        predict(model, tree, scenes, start=2, num_steps=2)
