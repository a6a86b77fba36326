"""Decoders of mixed types: with weights of 0 and 1 they are the dynamics themselves."""

import pytest
import torch
from torch.nn.functional import one_hot

from pyro_nri.baselines.decoders import GraphDecoder, RecurrentDecoder
from pyro_nri.dynamics.rollout import rollout, teacher_forcing
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def scenes(springs):
    """Some with a particle less, in float64."""
    return concatenate([springs[:3], simulate("springs", 2, num_entities=2, num_frames=24, seed=1, first_scene=50)])


@pytest.fixture(scope="module", params=["message-passing", "no interaction", "pair-forces"])
def dynamics(request, springs):
    family = request.param if request.param == "pair-forces" else "message-passing"
    spec = ModelSpec(3, dynamics=family, no_interaction=request.param == "no interaction", num_substeps=2)
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    model.fit_scaling(springs)
    return model.dynamics


@pytest.mark.parametrize("horizon", [1, 5, 23])
def test_hard_weights_are_the_dynamics(scenes, dynamics, horizon):
    structure = torch.randint(3, (5, 6), generator=torch.Generator().manual_seed(1)) * scenes.edge_mask
    decoder, weight = GraphDecoder(dynamics), one_hot(structure, 3).double()
    with torch.no_grad():
        found = decoder(scenes, weight, horizon=horizon)
        path = decoder.rollout(scenes, weight, start=4, num_steps=3)
        options = {"edge_mask": scenes.edge_mask}
        forced = teacher_forcing(dynamics, scenes.trajectory, structure, horizon=horizon, **options)
        rolled = rollout(dynamics, scenes.trajectory[:, 4], structure, 3, **options)
    present = scenes.entity_mask[:, None].expand(-1, 23, -1)
    torch.testing.assert_close(found[present], forced[present])
    torch.testing.assert_close(path[present[:, :3]], rolled[present[:, :3]])


def test_mixed_weights_lie_between(scenes, dynamics):
    """Halfway between two types at one edge: the sums of messages are halfway, seen before the node module."""
    decoder = GraphDecoder(dynamics)
    first = one_hot(torch.zeros(5, 6, dtype=torch.long), 3).double()
    second = one_hot(torch.ones(5, 6, dtype=torch.long), 3).double()
    seen = []
    update = dynamics.update
    dynamics.update = lambda state, summed, kind=None: seen.append(summed) or update(state, summed, kind)
    with torch.no_grad():
        for weight in (first, second, (first + second) / 2):
            seen.append(None)
            decoder(scenes, weight, horizon=1)
    del dynamics.update
    starts = [place + 1 for place, value in enumerate(seen) if value is None]
    one, other, between = (seen[place] for place in starts)
    torch.testing.assert_close(between, (one + other) / 2)


@pytest.fixture(scope="module", params=[False, True])
def recurrent(request, springs):
    made = RecurrentDecoder(2, 4, width=8, no_interaction=request.param, generator=torch.Generator().manual_seed(0))
    made.fit_scaling(springs)
    return made.double()


def test_recurrent_rollout_is_a_restart_at_every_frame_until_the_last(scenes, recurrent):
    weight = torch.rand(5, 6, 2, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    with torch.no_grad():
        forced = recurrent(scenes, weight, horizon=1)
        path = recurrent.rollout(scenes, weight, start=9, num_steps=2)
        later = scenes.frames(0, 10)
        assert torch.equal(path, recurrent.rollout(later, weight, start=9, num_steps=2))
    torch.testing.assert_close(path[:, 0], forced[:, 9])
    assert not torch.allclose(path[:, 1], forced[:, 10])


def test_recurrent_messages_run_along_edges(scenes, recurrent):
    """Entity 0 feels a change of the path of entity 1 through the edge 1 > 0 alone."""
    weight = torch.zeros(3, 6, 2, dtype=torch.double)
    moved = scenes[:3].frames(0, 8)
    moved.trajectory[:, :, 1] += 1.0
    changes = []
    for edge in (None, 2):  # 0>1, 0>2, 1>0, 1>2, 2>0, 2>1
        if edge is not None:
            weight[:, edge, 1] = 1.0
        with torch.no_grad():
            kept = recurrent(scenes[:3].frames(0, 8), weight, horizon=1)
            changes.append((recurrent(moved, weight, horizon=1) - kept).abs().amax((0, 1, 3)))
    assert changes[0][0] == 0
    assert changes[1][0] > 0
    assert changes[1][2] == 0
