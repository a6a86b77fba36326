"""Paths of hidden entities against the motion of whole scenes, and their impulses against what observed ones feel."""

import pytest
import torch

from pyro_nri.dynamics.hidden_paths import HiddenPaths
from pyro_nri.dynamics.rollout import rollout
from pyro_nri.model.impulse import chosen_impulses
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def whole_scenes(dynamics, num_hidden, *, num_scenes=3, num_frames=12, num_entities=4, seed=0, spread=1.0):
    """Scenes moved by the dynamics themselves, and their structures."""
    generator = torch.Generator().manual_seed(seed)
    total = num_entities + num_hidden
    start = spread * torch.randn(num_scenes, total, 4, generator=generator, dtype=torch.float64)
    structure = torch.randint(2, (num_scenes, edges.num_edges(total)), generator=generator)
    moved = rollout(dynamics, start, structure, num_frames - 1)
    return torch.cat([start[:, None], moved], 1), structure


def weights_into_hidden(structure, num_observed):
    matrix = edges.to_matrix(structure).long()
    weight = torch.nn.functional.one_hot(matrix, 2).double()  # [B, sender, receiver, K]
    return weight.transpose(1, 2)[:, num_observed:]


@pytest.fixture
def springs(make_pair_forces):
    return make_pair_forces(lambda r: 0 * r, lambda r: -0.4 * r, num_substeps=40)


@pytest.mark.parametrize("num_hidden", [1, 2])
def test_paths_and_impulses_are_those_of_the_whole_scene(springs, num_hidden):
    trajectory, structure = whole_scenes(springs, num_hidden)
    observed = Scenes.from_arrays(trajectory[:, :, :4], time_step=0.1)
    found = HiddenPaths(springs, observed, num_steps=2)(trajectory[:, 0, 4:], weights_into_hidden(structure, 4))
    assert found.state.shape == (3, 12, num_hidden, 4)
    torch.testing.assert_close(found.state, trajectory[:, :, 4:], atol=2e-5, rtol=0)
    features = springs.features(observed)
    incoming = structure[:, edges.incoming_edges(4 + num_hidden)][:, :4]
    impulses = torch.cat([features.impulses(springs.laws), found.impulses], 3)
    left = features.target - chosen_impulses(impulses, incoming)
    assert left.abs().max() < 1e-4
    # the negative control: without the hidden entities the motion is not explained
    alone = features.target - chosen_impulses(impulses[:, :, :, :3], incoming[..., :3])
    assert alone.abs().max() > 0.1


def test_error_falls_with_the_fourth_power_of_the_step(make_pair_forces):
    exact = make_pair_forces(lambda r: 0 * r, lambda r: -9.0 * r, num_substeps=20)
    trajectory, structure = whole_scenes(exact, 1, num_frames=4)
    still = trajectory.clone()
    still[:, :, :4] = trajectory[:, :1, :4]
    still[:, :, :4, 2:] = 0  # observed entities that do not move, so that cubic paths are exact
    observed = Scenes.from_arrays(still[:, :, :4], time_step=0.1)
    weight = weights_into_hidden(structure, 4)
    start = trajectory[:, 0, 4:]
    reference = HiddenPaths(exact, observed, num_steps=32)(start, weight).state
    error = [
        float((HiddenPaths(exact, observed, num_steps=n)(start, weight).state - reference).abs().max()) for n in (2, 4)
    ]
    assert 12 < error[0] / error[1] < 20


def test_walls_reflect(make_pair_forces):
    free = make_pair_forces(lambda r: 0 * r, lambda r: 0 * r, boundary=1.0)
    trajectory = torch.zeros(1, 20, 2, 4, dtype=torch.float64)
    start = torch.tensor([[[0.9, 0.0, 0.5, 0.0]]], dtype=torch.float64)
    weight = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    path = HiddenPaths(free, Scenes.from_arrays(trajectory, time_step=0.1), num_steps=2)(start, weight).state
    x = path[0, :, 0, 0]
    assert x.max() <= 1.0 + 1e-12
    assert float(x[4]) == pytest.approx(0.9, abs=1e-9)  # 0.1 there and 0.1 back at speed 0.5
    assert float(path[0, 10, 0, 2]) == -0.5


def test_some_scenes_and_first_frames_are_parts_of_the_whole(springs):
    trajectory, structure = whole_scenes(springs, 1)
    paths = HiddenPaths(springs, Scenes.from_arrays(trajectory[:, :, :4], time_step=0.1), num_steps=2)
    weight, start = weights_into_hidden(structure, 4), trajectory[:, 0, 4:]
    whole = paths(start, weight)
    index = torch.tensor([2, 0])
    some = paths[index](start[index], weight[index])
    assert torch.equal(some.state, whole.state[index])
    first = paths.first_frames(5)(start, weight)
    assert torch.equal(first.state, whole.state[:, :6])
    assert torch.equal(first.impulses, whole.impulses[:, :5])
    several = paths(start.expand(4, -1, -1, -1), weight)  # one row of structures, four of states
    torch.testing.assert_close(several.state[3], whole.state, rtol=0, atol=1e-12)


def test_phases_and_missing_states_are_refused(springs, make_pair_forces):
    trajectory, _ = whole_scenes(springs, 0)
    seen = torch.ones(3, 12, 4, dtype=torch.bool)
    seen[1, 7, 2] = False
    with pytest.raises(ValueError, match="scene '1' lacks a state at frame 7"):
        HiddenPaths(springs, Scenes.from_arrays(trajectory, time_step=0.1, observation_mask=seen), num_steps=2)
    phases = make_pair_forces(lambda a: a.sin(), lambda a: a.cos(), state_names=("phi", "vphi", "omega"))
    with pytest.raises(ValueError, match="phase oscillators"):
        HiddenPaths(phases, Scenes.from_arrays(trajectory[..., :3], time_step=0.1), num_steps=2)


def test_a_type_without_force_exerts_none(make_pair_forces):
    """What a law around 0 has learned is error, and would explain the errors of others."""
    nothing = make_pair_forces(lambda r: 1e-7 * r, lambda r: -0.4 * r, num_substeps=40)
    trajectory, structure = whole_scenes(nothing, 1)
    observed = Scenes.from_arrays(trajectory[:, :, :4], time_step=0.1)
    found = HiddenPaths(nothing, observed, num_steps=2)(trajectory[:, 0, 4:], weights_into_hidden(structure, 4))
    assert (found.impulses[..., 0, :] == 0).all()
    assert (found.impulses[..., 1, :] != 0).all()
    weak = make_pair_forces(lambda r: 0.01 * r, lambda r: -0.4 * r, num_substeps=40)
    found = HiddenPaths(weak, observed, num_steps=2)(trajectory[:, 0, 4:], weights_into_hidden(structure, 4))
    assert (found.impulses != 0).all()
