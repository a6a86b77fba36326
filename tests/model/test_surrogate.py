"""Receivers rolled out alone: against loops, against one step, against the rollouts that they stand for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model import surrogate
from pyro_nri.model.receivers import code_types, structure_of
from pyro_nri.model.surrogate import surrogate_likelihood
from pyro_nri.scenes import edges
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parents[2] / "data" / "models"


def by_hand(model, scenes):
    """Log-likelihoods ``[B, N, R]``, one prediction after the other."""
    types = code_types(model.num_edge_types, scenes.num_entities)
    total = torch.zeros(scenes.num_scenes, scenes.num_entities, len(types), dtype=torch.double)
    none = torch.zeros(scenes.num_scenes, edges.num_edges(scenes.num_entities), dtype=torch.long)
    scored = model.trajectory(scenes, none).scored
    incoming = edges.incoming_edges(scenes.num_entities)
    for b, receiver, code in np.ndindex(*total.shape):
        path, seen = scenes.trajectory[b].clone(), scenes.observation_mask[b]
        for frame in range(1, scenes.num_frames):  # what was not seen stays where it was last
            path[frame] = torch.where(seen[frame, :, None], path[frame], path[frame - 1])
        structure = torch.zeros(edges.num_edges(scenes.num_entities), dtype=torch.long)
        structure[incoming[receiver]] = types[code]
        kind = None if scenes.entity_kind is None else scenes.entity_kind[b]
        predicted = path[0]
        context = model.geometry(path[None], scenes.edge_mask[b]) if model.noise.uses_context else None
        for frame in range(scenes.num_frames - 1):
            state = path[frame].clone()
            if frame % model.horizon:
                state[receiver] = predicted[receiver]
            predicted = model.dynamics.step(state, structure, edge_mask=scenes.edge_mask[b], entity_kind=kind)
            own = None if context is None else context[0, frame]
            log_prob = model.noise(predicted, own).log_prob(scenes.trajectory[b, frame + 1])[receiver]
            total[b, receiver, code] += torch.where(scored[b, frame, receiver], log_prob, 0.0)
    return total


@pytest.mark.parametrize("horizon", [2, 3, 4, 9])
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, {}),
        ({"noise": "student_t"}, {"missing": 0.2, "padded": [1]}),
        ({"num_edge_types": 3, "num_entity_kinds": 2}, {"num_scenes": 2, "kinds": 2}),
        ({"no_interaction": True}, {"num_scenes": 2, "num_entities": 4}),
    ],
)
def test_every_receiver_by_itself(make_model, make_scenes, options, size, horizon):
    model, scenes = make_model(horizon=horizon, **options), make_scenes(num_frames=8, **size)
    with torch.no_grad():
        found = surrogate_likelihood(model, scenes, model.likelihood(scenes))
        torch.testing.assert_close(found.table, by_hand(model, scenes))
    assert not found.is_density
    assert found.is_cached


def test_recordings_of_a_group_are_added_and_chunks_do_not_matter(make_model, make_scenes, monkeypatch):
    model, scenes = make_model(horizon=3), make_scenes(groups=["a", "b", "a", "c"])
    each = by_hand(model, scenes)
    with torch.no_grad():
        found = surrogate_likelihood(model, scenes, model.likelihood(scenes)).table
        torch.testing.assert_close(found, torch.stack([each[0] + each[2], each[1], each[3]]))
        monkeypatch.setattr(surrogate, "chunk_size", lambda floats, device: 1)  # one scene and one code at a time
        again = surrogate_likelihood(model, scenes, model.likelihood(scenes)).table
        torch.testing.assert_close(again, found, rtol=1e-13, atol=0)


def test_the_power_of_the_likelihood_counts(make_model, make_scenes):
    model, scenes = make_model(horizon=3), make_scenes()
    with torch.no_grad():
        density = surrogate_likelihood(model, scenes, model.likelihood(scenes, kind="forward")).table
        model.density_power.weight.fill_(0.5)
        believed = model.likelihood(scenes)
        power = model.density_power(scenes.transition_mask)
        assert abs(float(power.mean()) - 1) > 0.1
        torch.testing.assert_close(surrogate_likelihood(model, scenes, believed).table, density * power[..., None])
        torch.testing.assert_close(
            surrogate_likelihood(model, scenes, model.likelihood(scenes, kind="forward")).table, density
        )


def test_one_step_is_the_likelihood_itself(make_model, make_scenes):
    model, scenes = make_model(), make_scenes(missing=0.2)
    with torch.no_grad():
        found = surrogate_likelihood(model, scenes, model.likelihood(scenes, cache="none"))
        torch.testing.assert_close(found.table, model.likelihood(scenes, cache="table").table)


def test_where_codes_are_many_one_step_is_left(make_model, make_scenes, monkeypatch):
    model, scenes = make_model(horizon=3), make_scenes()
    monkeypatch.setattr(surrogate, "MAX_ROLLOUTS", 3 * 4 - 1)
    with torch.no_grad():
        found = surrogate_likelihood(model, scenes, model.likelihood(scenes))
        torch.testing.assert_close(found.table, make_model().likelihood(scenes).table)
    assert model.horizon == 3


def test_nearer_to_rollouts_than_one_step():
    """Springs: what a changed edge does to a rollout of ten frames, told by either."""
    checkpoint = load_checkpoint(MODELS / "springs5.pt")
    model = checkpoint.model
    model.horizon = 10
    scenes = simulate("springs", 10, num_frames=21, measurement_noise=0.02, seed=0)
    with torch.no_grad():
        rollouts = model.likelihood(scenes)
        truth = torch.tensor(checkpoint.alignment).argsort()[scenes.edge_type][None]
        changed = torch.stack([torch.where(torch.arange(20) == edge, 1 - truth[0], truth[0]) for edge in range(20)])
        wanted = (rollouts.log_likelihood(changed) - rollouts.log_likelihood(truth)).flatten()
        alone = surrogate_likelihood(model, scenes, rollouts)
        change = (alone.log_likelihood(changed) - alone.log_likelihood(truth)).flatten()
        model.horizon = 1
        one_step = model.likelihood(scenes, kind="forward")
        short = (one_step.log_likelihood(changed) - one_step.log_likelihood(truth)).flatten()
    assert np.corrcoef(wanted, change)[0, 1] > 0.99
    assert (wanted - change).abs().median() < 0.3 * wanted.abs().median()
    assert (wanted - change).abs().median() < 0.5 * (wanted - short).abs().median()


def test_without_noise_the_truth_is_likeliest():
    checkpoint = load_checkpoint(MODELS / "springs5.pt")
    model = checkpoint.model
    model.horizon = 10
    scenes = simulate("springs", 5, num_frames=31, seed=0)
    with torch.no_grad():
        found = surrogate_likelihood(model, scenes, model.likelihood(scenes))
    types = torch.tensor(checkpoint.alignment)[structure_of(found.table.argmax(-1), 2)]
    assert torch.equal(types, scenes.edge_type)


def test_paths_that_run_away_are_impossible_but_no_error(make_model, make_scenes):
    model, scenes = make_model(horizon=3), make_scenes()
    with torch.no_grad():
        likelihood = model.likelihood(scenes)
        model.dynamics.units.change_scale.fill_(1e200)
        found = surrogate_likelihood(model, scenes, likelihood).table
    assert found.isfinite().all()
    assert found.min() < -1e29
