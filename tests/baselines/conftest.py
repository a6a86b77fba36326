"""Scenes whose answers are known."""

import pytest
import torch

from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="session")
def springs():
    """Three particles, 24 frames, with their truth."""
    return simulate("springs", 12, num_entities=3, num_frames=24, seed=3)


def follow_the_leader(num_scenes, *, seed, num_frames=8):
    """Entity 0 jumps at random; entity 1 is next where entity 0 is now; one state variable of variance 1."""
    leader = torch.randn(num_scenes, num_frames, generator=torch.Generator().manual_seed(seed))
    follower = torch.cat([torch.zeros(num_scenes, 1), leader[:, :-1]], 1)
    return Scenes.from_arrays(torch.stack([leader, follower], -1)[..., None])


def planted_pair(num_scenes, *, seed, num_entities=4, num_frames=30):
    """Random walks; those of the two ends of type 1 share most of their steps. Pairs are disjoint, so that they can."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_scenes, num_frames, num_entities, 2, generator=random)
    edge_type = torch.zeros(num_scenes, num_entities, num_entities, dtype=torch.long)
    for b in range(num_scenes):
        i, j = torch.randperm(num_entities, generator=random)[:2].tolist()
        steps[b, :, j] = 0.95 * steps[b, :, i] + 0.05 * steps[b, :, j]
        edge_type[b, i, j] = edge_type[b, j, i] = 1
    off = ~torch.eye(num_entities, dtype=torch.bool)
    return Scenes.from_arrays(steps.cumsum(1), edge_type=edge_type[:, off], state_names=("a", "b"))
