"""Trees and tables of the noisy program."""

import arviz as az
import numpy as np
import pytest

from pyro_nri.inference.noisy_chains import infer_latents
from pyro_nri.posterior.paths import latents_tree, paths_frame
from tests.inference.test_noisy_chains import LINKED, STATE, drawn, springs_model


@pytest.fixture(scope="module")
def found():
    model = springs_model()
    scenes, truth = drawn(model, 2, 5, LINKED.expand(2, -1), seed=0)
    draws = infer_latents(model, scenes, LINKED, seed=0, num_chains=2, num_draws=30, num_warmup=5, num_importance=20)
    return model, scenes, truth, draws


def test_tree_names_sites_and_scenes(found):
    model, scenes, _, draws = found
    tree = latents_tree(model, scenes, draws)
    posterior = tree["posterior"]
    assert posterior["initial_state"].shape == (2, 30, 2, 2, 2)
    assert posterior["hidden_state"].dims[:3] == ("chain", "draw", "scene")
    np.testing.assert_array_equal(posterior["hidden_state"].values.reshape(2, 30, 2, 2), draws.value[..., 4:])
    np.testing.assert_array_equal(tree["sample_stats"]["log_joint"], draws.log_density)
    np.testing.assert_array_equal(tree["constant_data"]["log_marginal"], draws.log_marginal.log_value)
    assert float(az.rhat(posterior["hidden_state"].to_dataset()).to_array().max()) < 1.3


def test_paths_hold_truth_and_names(found):
    model, scenes, truth, draws = found
    table = paths_frame(model, scenes, LINKED, draws.value, STATE, num_frames=7)
    assert len(table) == 2 * 7 * 3 * 2
    assert table["entity"].unique().tolist() == ["0", "1", "hidden 0"]
    assert table.groupby("entity")["hidden"].first().tolist() == [False, False, True]
    path = model.path(scenes, LINKED.expand(2, -1), model.unpack(truth, 2), 7)
    clean = path.flatten().numpy()
    assert np.abs(table["median"] - clean).max() < 1
    inside = (table["low"] <= clean) & (clean <= table["high"])
    assert inside.mean() > 0.5
    wide = paths_frame(model, scenes, LINKED, draws.value, STATE, num_frames=7, interval=0.99)
    assert ((wide["low"] <= table["low"]) & (wide["high"] >= table["high"])).all()
    last = paths_frame(model, scenes, LINKED, draws.value, STATE)
    assert last["time"].max() == 4 * scenes.time_step
    every = model.path(scenes, LINKED.expand(2, -1), model.unpack(draws.value.flatten(0, 1), 2))
    np.testing.assert_allclose(last["mean"], every.mean(0).flatten().detach().numpy())


def test_bad_input(found):
    model, scenes, _, draws = found
    with pytest.raises(ValueError, match="state_names must have 2 entries, found 1"):
        paths_frame(model, scenes, LINKED, draws.value, ("x",))
    with pytest.raises(ValueError, match="interval must be between 0 and 1"):
        paths_frame(model, scenes, LINKED, draws.value, STATE, interval=1.0)
