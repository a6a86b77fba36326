"""Constants between raw and scaled units, against plain minima, maxima and means of lists."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from pyro_nri.dynamics.scaling import (
    Scaling,
    beyond_training,
    fit_change_scale,
    fit_scaling,
    fit_standardisation,
    state_groups,
)
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (("x", "y", "vx", "vy"), [[0, 1], [2, 3]]),
        (("x", "vx"), [[0], [1]]),
        (("vx", "x", "mass"), [[1], [0], [2]]),
        (("s0", "s1", "s2"), [[0], [1], [2]]),
        (("phi", "vphi", "v"), [[0], [1], [2]]),
    ],
)
def test_groups_of_state_variables(names, groups):
    assert state_groups(names) == groups


@pytest.fixture
def scenes():
    generator = torch.Generator().manual_seed(0)
    trajectory = torch.randn(3, 5, 3, 4, generator=generator, dtype=torch.double) * torch.tensor([1.0, 4, 0.1, 0.2])
    observed = torch.rand(3, 5, 3, generator=generator) > 0.15
    entity_mask = torch.tensor([[True] * 3, [True] * 3, [True, True, False]])
    trajectory[~observed] = 1e6  # what was not seen must not count
    return Scenes.from_arrays(trajectory, observation_mask=observed, entity_mask=entity_mask)


def seen_states(scenes):
    return [
        scenes.trajectory[b, t, n].tolist()
        for b in range(3)
        for t in range(5)
        for n in range(3)
        if scenes.observation_mask[b, t, n]
    ]


def test_min_max_over_what_was_observed(scenes):
    offset, scale = fit_scaling(scenes)
    states = seen_states(scenes)
    for group in ([0, 1], [2, 3]):
        values = [state[d] for state in states for d in group]
        for d in group:
            assert float(offset[d]) == pytest.approx((max(values) + min(values)) / 2, rel=1e-12)
            assert float(scale[d]) == pytest.approx((max(values) - min(values)) / 2, rel=1e-12)


def test_mean_and_standard_deviation_over_what_was_observed(scenes):
    mean, deviation = fit_standardisation(scenes)
    states = seen_states(scenes)
    for group in ([0, 1], [2, 3]):
        values = [state[d] for state in states for d in group]
        for d in group:
            assert float(mean[d]) == pytest.approx(statistics.fmean(values), rel=1e-9)
            assert float(deviation[d]) == pytest.approx(statistics.pstdev(values), rel=1e-9)


def test_root_mean_square_change_over_transitions_that_can_be_scored(scenes):
    found = fit_change_scale(scenes)
    squares = {d: [] for d in range(4)}
    for b in range(3):
        for t in range(4):
            present = [n for n in range(3) if scenes.entity_mask[b, n]]
            if not all(scenes.observation_mask[b, t, n] for n in present):
                continue
            for n in present:
                if scenes.observation_mask[b, t + 1, n]:
                    for d in range(4):
                        step = float(scenes.trajectory[b, t + 1, n, d] - scenes.trajectory[b, t, n, d])
                        squares[d].append(step**2)
    for group in ([0, 1], [2, 3]):
        values = [square for d in group for square in squares[d]]
        for d in group:
            assert float(found[d]) == pytest.approx(math.sqrt(sum(values) / len(values)), rel=1e-12)


def test_constant_states_keep_scale_one():
    still = Scenes.from_arrays(torch.full((1, 4, 2, 4), 3.0))
    offset, scale = fit_scaling(still)
    assert offset.tolist() == [3.0] * 4
    assert scale.tolist() == [1.0] * 4
    assert fit_standardisation(still).scale.tolist() == [1.0] * 4
    assert fit_change_scale(still).tolist() == [1.0] * 4


def test_nothing_fully_observed():
    mask = torch.ones(1, 3, 2, dtype=torch.bool)
    mask[:, :2, 0] = False
    with pytest.raises(ValueError, match="no transition is fully observed"):
        fit_change_scale(Scenes.from_arrays(torch.zeros(1, 3, 2, 4), observation_mask=mask))


@pytest.mark.parametrize(("factor", "said"), [(1.0, False), (2.0, False), (0.1, False), (1000.0, True), (1e-3, True)])
def test_other_units_are_noticed(factor, said):
    train, new = (simulate("springs", 20, num_entities=3, num_frames=20, seed=seed) for seed in (0, 1))
    found = beyond_training(fit_scaling(train), replace(new, trajectory=factor * new.trajectory))
    assert (found is not None) == said
    if said:
        assert "The units may differ" in found


def test_charged_scenes_with_close_encounters_are_ordinary():
    train, new = (simulate("charged", 20, seed=seed) for seed in (0, 1))
    assert beyond_training(fit_scaling(train), new) is None
    assert beyond_training(fit_scaling(train), new.frames(0, 2)) is None


def test_other_state_variables_are_left_to_the_model():
    scenes = simulate("springs", 2, num_frames=5, seed=0)
    assert beyond_training(Scaling(torch.zeros(2), torch.ones(2)), scenes) is None
