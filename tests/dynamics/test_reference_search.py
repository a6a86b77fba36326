"""Structures for paths through close encounters: the truth is found from wrong starts, scene by scene."""

import pytest
import torch

from pyro_nri.dynamics.reference_search import doubtful_scenes, improve
from pyro_nri.scenes import edges
from pyro_nri.scenes.particles import MAX_FORCE, SUBSTEP
from pyro_nri.scenes.simulate import simulate


@pytest.fixture
def charges(make_pair_forces):
    """The dynamics of the simulator, and scenes with close encounters between attracting charges."""
    scenes = simulate("charged", 60, seed=6)
    dynamics = make_pair_forces(lambda r: -(r**-2), lambda r: r**-2, low=1e-3, boundary=5.0)
    dynamics.clock_lag.fill_(SUBSTEP / 2)
    dynamics.force_limit.fill_(MAX_FORCE)
    dynamics.leapfrog_steps.fill_(100)
    dynamics.length.fill_(0.1)
    sender, receiver = edges.senders(5), edges.receivers(5)
    closest = (scenes.trajectory[:, :, sender, :2] - scenes.trajectory[:, :, receiver, :2]).norm(dim=-1).amin(1)
    scenes = scenes[(closest.amin(-1) < 0.1).nonzero().squeeze(-1)[:4]]
    assert scenes.num_scenes == 4
    return dynamics, scenes


def wrong(structure, number):
    """Both edges of some pairs have the other type."""
    structure = structure.clone()
    pairs = edges.pairs(5)[torch.tensor([0, 4, 7])[:number]].flatten()
    structure[:, pairs] = 1 - structure[:, pairs]
    return structure


def test_the_truth_is_not_doubtful_and_stays(charges):
    dynamics, scenes = charges
    features = dynamics.features(scenes)
    assert len(doubtful_scenes(dynamics, features, scenes, scenes.edge_type)) == 0
    assert torch.equal(improve(dynamics, features, scenes, [scenes.edge_type]), scenes.edge_type)


@pytest.mark.slow
def test_wrong_structures_are_doubtful_and_mended(charges):
    dynamics, scenes = charges
    features = dynamics.features(scenes)
    start = wrong(scenes.edge_type, 3)
    doubtful = doubtful_scenes(dynamics, features, scenes, start)
    assert len(doubtful) >= 2
    found = improve(dynamics, features, scenes, [start, torch.zeros_like(start)])
    before, after = ((each[doubtful] != scenes.edge_type[doubtful]).double().mean() for each in (start, found))
    assert float(before) == pytest.approx(0.3)
    assert float(after) < 0.15  # types that no hard frame tells of may stay
    assert len(doubtful_scenes(dynamics, features, scenes, found)) < len(doubtful)
    for b in range(scenes.num_scenes):  # each scene by itself
        part = scenes[b : b + 1]
        alone = improve(dynamics, dynamics.features(part), part, [start[b : b + 1], torch.zeros_like(start[:1])])
        assert torch.equal(alone[0], found[b])


def test_scenes_that_no_structure_explains_are_left(charges):
    """Every entity from another scene: gaps nearly everywhere."""
    dynamics, scenes = charges
    trajectory = torch.stack([scenes.trajectory[:, :, n].roll(n, 0) for n in range(4)], 2)
    mixed = scenes.__class__.from_arrays(trajectory * 0.05, time_step=0.1, state_names=scenes.state_names)
    structure = torch.zeros(4, 12, dtype=torch.long)
    assert len(doubtful_scenes(dynamics, dynamics.features(mixed), mixed, structure)) == 0


def test_calm_scenes_have_nothing_to_search(make_pair_forces):
    scenes = simulate("springs", 3, seed=0)
    dynamics = make_pair_forces(lambda r: 0 * r, lambda r: -0.1 * r, boundary=5.0)
    features = dynamics.features(scenes)
    start = 1 - scenes.edge_type
    assert len(doubtful_scenes(dynamics, features, scenes, start)) == 0
    assert torch.equal(improve(dynamics, features, scenes, [start]), start)
