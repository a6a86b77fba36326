"""Predictions as a table, and whether structures help to predict. Predictions themselves: test_cli.py."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.learning.checkpoint import Ensemble, load_checkpoint
from pyro_nri.posterior.predictions import predict, predictions_frame, structure_value
from pyro_nri.scenes.simulate import simulate

MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "springs5.pt"


@pytest.fixture
def checkpoint():
    return load_checkpoint(MODEL)


@pytest.fixture
def springs(make_tree, checkpoint):
    """A model of springs, six scenes whose types are called as it calls them, and draws of the true structures."""
    scenes = simulate("springs", 6, num_entities=3, num_frames=12, seed=0)
    scenes = replace(scenes, edge_type=torch.tensor(np.argsort(checkpoint.alignment))[scenes.edge_type])
    edge_type = np.broadcast_to(scenes.edge_type.numpy(), (2, 5, 6, 6)).copy()
    return checkpoint.model, make_tree(edge_type, scenes), scenes


def test_true_structures_predict_and_those_of_other_scenes_do_not(springs):
    model, tree, scenes = springs
    found = structure_value(model, tree, scenes, start=1, num_steps=10)
    assert found["recording"].tolist() == list(scenes.scene_names)
    same = (scenes.edge_type == scenes.edge_type.roll(-1, 0)).all(1).numpy()
    assert (found["error"][same] == found["error_of_others"][same]).all()
    assert (found["error"][~same] < 0.1 * found["error_of_others"][~same]).all()
    assert (~same).sum() >= 4


def test_with_the_wrong_structures_it_is_the_other_way_round(springs, make_tree):
    """Each scene has the structure of the one before it, and the next one has its own."""
    model, _, scenes = springs
    truth = scenes.edge_type.roll(1, 0).numpy()
    tree = make_tree(np.broadcast_to(truth, (2, 5, 6, 6)).copy(), scenes)
    found = structure_value(model, tree, scenes, start=1, num_steps=10)
    differ = (scenes.edge_type != scenes.edge_type.roll(1, 0)).any(1).numpy()
    assert (found["error"][differ] > 10 * found["error_of_others"][differ]).all()


def test_scenes_of_one_size_alone_have_no_other(springs):
    model, tree, scenes = springs
    found = structure_value(model, tree, scenes[:1], start=1, num_steps=3)
    assert found["error"].tolist() == found["error_of_others"].tolist()


def test_table_of_predictions(springs):
    model, tree, scenes = springs
    paths = predict(model, tree, scenes, start=2, num_steps=4)
    frame = predictions_frame(paths)
    assert frame.columns.tolist() == ["recording", "frame", "entity", "state", "mean", "low", "high"]
    assert len(frame) == 6 * 4 * 3 * 4
    row = frame.query("recording == '3' and frame == 5 and entity == '1' and state == 'vy'").iloc[0]
    wanted = paths.sel(recording="3", frame=5, entity=1, state="vy")
    assert [row["mean"], row["low"], row["high"]] == [float(wanted[part]) for part in ("mean", "low", "high")]


def test_padded_entities_are_no_rows(make_tree, unequal, planted):
    model = planted("springs").model
    paths = predict(model, make_tree(scenes=unequal), unequal, start=0, num_steps=2)
    assert predictions_frame(paths).groupby("recording", sort=False)["entity"].nunique().tolist() == [4, 3, 4]


def with_laws(checkpoint, factors):
    """The checkpoint with draws of its laws: the fitted ones times each factor."""
    splines = checkpoint.model.dynamics.laws.splines.double()
    return replace(checkpoint, law_draws=torch.stack([factor * splines for factor in factors]))


def test_draws_of_laws_that_are_the_fitted_ones_change_nothing(springs, checkpoint):
    model, tree, scenes = springs
    alone = predict(model, tree, scenes, start=2, num_steps=6)
    found = predict(with_laws(checkpoint, [1.0] * 7), tree, scenes, start=2, num_steps=6, num_draws=5)
    for name in ("mean", "low", "high"):
        np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=1e-9)
    assert "laws" in found.attrs["conditioning"]
    assert "laws" not in alone.attrs["conditioning"]
    assert (alone["high"] - alone["low"]).max() < 1e-12  # one structure, laws taken for known


def test_spread_and_mean_are_those_of_paths_under_each_set_of_laws(springs, checkpoint):
    """Each path is simulated by a model of its own whose only laws are the drawn ones."""
    _, tree, scenes = springs
    factors = [0.7, 0.9, 1.0, 1.2, 1.4]
    several = with_laws(checkpoint, factors)
    found = predict(several, tree, scenes, start=2, num_steps=6, num_draws=5, interval=0.5)
    paths = []
    for splines in several.law_draws:
        model = copy.deepcopy(checkpoint.model)
        model.dynamics.laws.set_splines(splines)
        paths.append(predict(model, tree, scenes, start=2, num_steps=6)["mean"].values)
    np.testing.assert_allclose(found["mean"], np.mean(paths, 0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["low"], np.quantile(paths, 0.25, axis=0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["high"], np.quantile(paths, 0.75, axis=0), rtol=0, atol=1e-9)
    assert np.ptp(paths, 0).max() > 0.01


def test_structures_and_laws_are_drawn_together(springs, checkpoint, make_tree):
    """Half of the draws have no edge: as many paths go straight, whatever their laws."""
    _, _, scenes = springs
    edge_type = scenes.edge_type.numpy()
    nothing = np.full_like(edge_type, checkpoint.alignment.index(0))
    tree = make_tree(np.stack([np.stack([edge_type, nothing])] * 2), scenes)
    found = predict(with_laws(checkpoint, [0.9, 1.1]), tree, scenes, start=2, num_steps=1, num_draws=4)
    free = predict(checkpoint.model, make_tree(np.stack([nothing] * 2)[:, None], scenes), scenes, start=2, num_steps=1)
    linked = predict(
        checkpoint.model, make_tree(np.stack([edge_type] * 2)[:, None], scenes), scenes, start=2, num_steps=1
    )
    np.testing.assert_allclose(found["mean"], (free["mean"] + linked["mean"]) / 2, rtol=0, atol=1e-6)


def test_an_ensemble_is_refused_in_a_sentence(springs, checkpoint):
    _, tree, scenes = springs
    with pytest.raises(ValueError, match="predictions need one model, found an ensemble of 2; choose a member"):
        predict(Ensemble([checkpoint, checkpoint]), tree, scenes, start=2, num_steps=1)


@pytest.mark.parametrize("number", [0, -1])
def test_at_least_one_draw(springs, number):
    with pytest.raises(ValueError, match=f"num_draws must be at least 1, found {number}"):
        predict(*springs, start=2, num_steps=1, num_draws=number)
