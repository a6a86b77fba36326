"""Thresholds of correlations, on pairs that were planted and against a search by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nri.baselines.correlation import correlations, fit_correlation
from pyro_nri.baselines.lstm import fit_lstm
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from tests.baselines.conftest import planted_pair


def accuracy(baseline, scenes):
    return float((baseline.edge_probability(scenes).argmax(-1) == scenes.edge_type).double().mean())


def test_a_planted_pair_is_found():
    found = fit_correlation(planted_pair(60, seed=0))
    assert accuracy(found, planted_pair(60, seed=1)) > 0.97  # of which 5 in 6 are of type 0


def test_a_planted_pair_is_found_by_what_an_lstm_holds():
    train = planted_pair(60, seed=0)
    found = fit_correlation(train, lstm=fit_lstm(train, num_steps=20, width=16, seed=0))
    assert accuracy(found, planted_pair(60, seed=1)) > 0.93


@pytest.mark.statistical
def test_wrong_labels_teach_nothing():
    """Labels dealt to other scenes: what is left is the share of the commoner type, 5 in 6."""
    train = planted_pair(200, seed=0)
    found = fit_correlation(replace(train, edge_type=train.edge_type[torch.arange(200) - 1]))
    assert accuracy(found, planted_pair(60, seed=1)) == pytest.approx(5 / 6, abs=4 * (5 / 36 / (60 * 6)) ** 0.5)


def test_correlation_is_that_of_numpy():
    scenes = planted_pair(3, seed=2)
    units = StateUnits(2).double()
    units.fit(scenes)
    found = edges.to_matrix(correlations(scenes, units), fill=1.0)
    for b in range(3):
        rows = units(scenes.trajectory[b]).transpose(0, 1).flatten(1)
        np.testing.assert_allclose(found[b], np.corrcoef(rows), atol=1e-12)


def test_missing_frames_are_left_out():
    scenes = planted_pair(2, seed=2)
    seen = torch.ones(2, 30, 4, dtype=torch.bool)
    seen[:, 20:, 1] = False
    units = StateUnits(2).double()
    units.fit(scenes)
    whole = Scenes.from_arrays(scenes.trajectory, observation_mask=seen, state_names=("a", "b"))
    short = scenes.frames(0, 20)
    touched = (edges.senders(4) == 1) | (edges.receivers(4) == 1)
    torch.testing.assert_close(correlations(whole, units)[:, touched], correlations(short, units)[:, touched])
    torch.testing.assert_close(correlations(whole, units)[:, ~touched], correlations(scenes, units)[:, ~touched])


def test_the_threshold_is_the_best_of_all():
    train = planted_pair(10, seed=4)
    noisy = train.edge_type.clone()
    noisy[::3] = 1 - noisy[::3]
    train = replace(train, edge_type=noisy)
    found = fit_correlation(train)
    value, truth = correlations(train, found.units).flatten(), noisy.flatten()
    best = 0
    for threshold in [*value.tolist(), 2.0]:
        sides = (value > threshold, value <= threshold)
        best = max(best, sum(max(int((truth[side] == k).sum()) for k in range(2)) for side in sides))
    assert accuracy(found, train) == pytest.approx(best / len(truth))
    above = value > found.threshold
    expected = (int(truth[above].sum()) + 0.5) / (int(above.sum()) + 1)
    assert float(found.log_share[1, 1].exp()) == pytest.approx(expected)


def test_refuses():
    scenes = planted_pair(4, seed=0)
    with pytest.raises(ValueError, match="needs scenes whose structures are known"):
        fit_correlation(replace(scenes, edge_type=None))
    with pytest.raises(ValueError, match="num_edge_types must be at least 2"):
        fit_correlation(scenes, num_edge_types=1)
