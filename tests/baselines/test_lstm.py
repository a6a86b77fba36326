"""Recurrent networks: what the joint form can know and the single one cannot."""

import pytest
import torch

from pyro_nri.baselines.lstm import fit_lstm
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.simulate import simulate
from tests.baselines.conftest import follow_the_leader


def follower_error(lstm):
    test = follow_the_leader(200, seed=9)
    path = lstm.predict(test, start=5, num_steps=1)
    return float((path[:, 0, 1] - test.trajectory[:, 6, 1]).square().mean())


@pytest.mark.slow
@pytest.mark.statistical
def test_only_the_joint_form_sees_whom_an_entity_follows():
    """Where the leader is has variance 1, and the single form cannot know it."""
    train, options = follow_the_leader(300, seed=0), {"width": 8, "num_steps": 100, "learning_rate": 1e-2, "seed": 0}
    assert follower_error(fit_lstm(train, form="joint", **options)) < 0.2
    assert follower_error(fit_lstm(train, form="single", **options)) > 1 - 4 * (2 / 200) ** 0.5


@pytest.mark.parametrize("form", ["single", "joint"])
def test_prediction_feeds_itself_and_sees_nothing_later(springs, form):
    lstm = fit_lstm(springs, form=form, width=8, num_steps=2, seed=0)
    path = lstm.predict(springs, start=10, num_steps=4)
    states = springs.trajectory[:, :11].float()
    for step in range(4):  # the whole history anew at every step
        with torch.no_grad():
            following, _, _ = lstm(states)
        torch.testing.assert_close(path[:, step], following[:, -1])
        states = torch.cat([states, following[:, -1:]], 1)
    assert torch.equal(path, lstm.predict(springs.frames(0, 11), start=10, num_steps=4))


def test_the_single_form_serves_any_number_of_entities_and_leaves_padding_out(springs):
    two = simulate("springs", 3, num_entities=2, num_frames=24, seed=4, first_scene=50)
    both = concatenate([springs, two])
    lstm = fit_lstm(both, width=8, num_steps=2, seed=0)
    path = lstm.predict(both, start=5, num_steps=2)
    torch.testing.assert_close(path[12:, :, :2], lstm.predict(two, start=5, num_steps=2))
    prepared, scale = both.to(torch.float32), torch.ones(4)
    kept = lstm.loss(prepared, scale)
    prepared.trajectory[12:, :, 2] = 100.0  # where nothing exists
    torch.testing.assert_close(lstm.loss(prepared, scale), kept)


def test_the_same_seed_gives_the_same_network_and_touches_no_global_generator(springs):
    before = torch.get_rng_state()
    first, second, third = (fit_lstm(springs, width=8, num_steps=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    paths = [each.predict(springs, start=3, num_steps=2) for each in (first, second, third)]
    assert torch.equal(paths[0], paths[1])
    assert not torch.equal(paths[0], paths[2])


def test_refuses(springs):
    with pytest.raises(ValueError, match="form must be single or joint"):
        fit_lstm(springs, form="both", seed=0)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        fit_lstm(springs, num_steps=0, seed=0)
    joint = fit_lstm(springs, form="joint", width=8, num_steps=1, seed=0)
    with pytest.raises(ValueError, match="reads 3 entities, found 5"):
        joint.predict(simulate("springs", 2, seed=0), start=3, num_steps=1)
    with pytest.raises(ValueError, match="use the single form"):
        joint.last_states(springs)
