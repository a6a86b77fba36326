"""One protocol for all methods: alignment from training scenes, frames that may be seen, errors against NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nri.baselines.baseline import AbstractBaseline
from pyro_nri.baselines.lstm import Lstm
from pyro_nri.baselines.refinement import Refined
from pyro_nri.baselines.static import Static
from pyro_nri.rivals import METHODS, SHARED, alignment_of, fit_method, fit_methods, score_method
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def train():
    return simulate("springs", 10, num_entities=3, num_frames=24, seed=1)


@pytest.fixture(scope="module")
def test_scenes():
    return simulate("springs", 6, num_entities=3, num_frames=40, seed=2)


class Oracle(AbstractBaseline):
    """Knows every structure and calls the types by each other's names; it notes the frames that it was shown."""

    infers_structure = True
    predicts_motion = True

    def __init__(self, *, uses_labels=False):
        self.uses_labels = uses_labels
        self.shown = []

    def edge_probability(self, scenes):
        self.shown.append(scenes.num_frames)
        swapped = 1 - scenes.edge_type
        return torch.nn.functional.one_hot(swapped, 2).double() * 0.8 + 0.1

    def predict(self, scenes, *, start, num_steps, structure=None):
        assert torch.equal(structure, 1 - scenes.edge_type)
        return scenes.trajectory[:, start + 1 : start + 1 + num_steps] + torch.tensor([1.0, 0.0, 0.0, 2.0])


def test_types_are_renamed_by_training_scenes_alone(train, test_scenes):
    oracle = Oracle()
    assert alignment_of(oracle, train) == [1, 0]
    found = score_method(oracle, train, test_scenes, start=20, steps=(1, 5))
    assert found["edge_accuracy"] == 1.0
    assert found["expected_accuracy"] == pytest.approx(0.9)
    assert oracle.shown == [24, 20, 24]  # training scenes, then frames 0 to 19 of the others
    other = replace(train, edge_type=1 - train.edge_type)  # training scenes that name types otherwise
    oracle.edge_probability = lambda scenes: Oracle().edge_probability(other if len(scenes) == 10 else scenes)
    assert score_method(oracle, train, test_scenes, start=20, steps=(1,))["edge_accuracy"] == 0.0
    assert score_method(Oracle(uses_labels=True), train, test_scenes, start=20, steps=(1,))["edge_accuracy"] == 0.0


def test_errors_are_in_units_of_half_the_range_of_training_scenes(train, test_scenes):
    found = score_method(Oracle(), train, test_scenes, start=20, steps=(1, 5))
    positions, velocities = train.trajectory[..., :2].numpy(), train.trajectory[..., 2:].numpy()
    expected = (2 / np.ptp(positions)) ** 2 / 4 + (2 * 2 / np.ptp(velocities)) ** 2 / 4
    for name in ("mse_1", "mse_1_median", "mse_5", "mse_5_low", "mse_5_high"):
        assert found[name] == pytest.approx(expected), name
    still = score_method(Static(), train, test_scenes, start=20, steps=(3,))
    change = (test_scenes.trajectory[:, 23] - test_scenes.trajectory[:, 20]).numpy()
    scale = np.repeat([np.ptp(positions) / 2, np.ptp(velocities) / 2], 2)
    each = ((change / scale) ** 2).mean((1, 2))
    assert (still["mse_3"], still["mse_3_median"]) == pytest.approx((each.mean(), np.median(each)))
    assert "edge_accuracy" not in still


@pytest.mark.parametrize("name", ["lstm_single", "true_graph", "variational", "supervised", "paper"])
def test_every_method_is_scored(train, test_scenes, name):
    for method, found in fit_methods(name, train, num_steps=2, seed=0).items():
        assert method in METHODS
        if isinstance(found, Refined):
            found.num_steps = 2
        row = score_method(found, train, test_scenes, start=20, steps=(1, 5))
        assert found.infers_structure == ("edge_accuracy" in row)
        assert found.predicts_motion == ("mse_5_median_high" in row)
        for score in ("edge_accuracy", "mse_1"):
            if score in row:
                assert 0 <= row[f"{score}_low"] <= row[score] <= row[f"{score}_high"]


def test_one_training_serves_for_two(train):
    assert set(SHARED.values()) < set(METHODS)
    found = fit_methods("lstm_single", train, num_steps=2, seed=0)
    assert list(found) == ["lstm_single", "correlation_lstm"]
    alone = fit_method("correlation_lstm", train, num_steps=2, seed=0)
    assert found["correlation_lstm"].threshold == alone.threshold
    joint = fit_methods("lstm_joint", train, num_steps=2, seed=0)
    assert list(joint) == ["lstm_joint"]
    assert isinstance(joint["lstm_joint"], Lstm)


def test_refuses(train, test_scenes):
    with pytest.raises(ValueError, match="method must be one of static"):
        fit_method("search", train, seed=0)
    with pytest.raises(ValueError, match="test must have known structures"):
        score_method(Static(), train, replace(test_scenes, edge_type=None))
    with pytest.raises(ValueError, match="an alignment needs training scenes"):
        alignment_of(Oracle(), replace(train, edge_type=None))
    with pytest.raises(ValueError, match="start must be a frame from 0 to 39, found 49"):
        score_method(Static(), train, test_scenes)
