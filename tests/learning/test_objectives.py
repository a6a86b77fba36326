"""What training evaluates on a batch, against the model's own tables and densities."""

import pytest
import torch

from pyro_nri.learning import objectives
from pyro_nri.learning.objectives import ForwardObjective, ImpulseObjective
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

GROUPS = ["a", "b", "a", "c", "d", "b"]


def charges(*, groups=None, missing=0.05, padded=(4,)):
    scenes = simulate("charged", 6, num_entities=3, num_frames=8, seed=0)
    entity_mask = torch.ones(6, 3, dtype=torch.bool)
    entity_mask[list(padded), -1] = False
    seen = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(0)) >= missing
    return Scenes.from_arrays(
        scenes.trajectory,
        time_step=scenes.time_step,
        observation_mask=seen,
        entity_mask=entity_mask,
        structure_group=groups,
    )


def make_model(scenes, **options):
    spec = ModelSpec(2, **({"dynamics": "pair-forces", "boundary": 5.0, "num_substeps": 2} | options))
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    model.fit_scaling(scenes)
    return model


def structures(num, seed=0):
    return torch.randint(2, (num, 6), generator=torch.Generator().manual_seed(seed))


#: Members of two or three whole groups, in an order of their own, and how many groups they are.
MEMBERS = {"single": (None, [5, 0, 2], 3), "shared": (GROUPS, [3, 0, 2, 4], 3)}


@pytest.fixture(params=MEMBERS)
def part(request):
    groups, members, num_groups = MEMBERS[request.param]
    scenes = charges(groups=groups, padded=() if groups else (4,))
    return scenes, members, num_groups


@pytest.mark.parametrize("dynamics", ["message-passing", "pair-forces"])
def test_forward_loss_is_the_negative_log_joint_for_each_scored_number(part, dynamics):
    scenes, members, num_groups = part
    model = make_model(scenes, dynamics=dynamics, noise="student_t")
    structure = structures(num_groups)
    found = ForwardObjective(model, scenes, model.prepare(scenes)).loss(members, structure)
    some = scenes[members]
    wanted = -model.log_joint(some, structure[None]).sum() / (some.transition_mask.sum() * 4)
    torch.testing.assert_close(found, wanted)
    assert found.requires_grad


def test_forward_likelihood_is_the_models(part):
    scenes, members, num_groups = part
    model = make_model(scenes, dynamics="message-passing")
    likelihood = ForwardObjective(model, scenes, scenes).likelihood(members, "table")
    every = structures(5 * num_groups).view(5, num_groups, 6)
    wanted = model.log_likelihood(scenes[members], every).detach()
    torch.testing.assert_close(likelihood.log_likelihood(every), wanted)
    assert likelihood.is_density


@pytest.mark.parametrize("noise", ["normal", "student_t", "geometric"])
@pytest.mark.parametrize("kept", [True, False])
def test_impulse_likelihood_is_the_models(part, noise, kept, monkeypatch):
    """On cubic paths, as long as laws are networks; whether features are kept or made anew."""
    scenes, members, num_groups = part
    monkeypatch.setattr(objectives, "MAX_KEPT_SCENES", 400 if kept else 2)
    model = make_model(scenes, noise=noise)
    objective = ImpulseObjective(model, scenes, scenes)
    wanted = model.likelihood(scenes[members], kind="impulse", cache="table")
    for _ in range(2):  # the second time from what was kept
        table = objective.likelihood(members, "table")
        assert not table.is_density
        torch.testing.assert_close(table.table, wanted.table, rtol=1e-9, atol=1e-9)
        assert torch.equal(table.edge_mask, wanted.edge_mask)
    assert len(objective.kept) == int(kept)
    messages = objective.likelihood(members, "messages")
    every = structures(5 * num_groups).view(5, num_groups, 6)
    torch.testing.assert_close(messages.log_likelihood(every), wanted.log_likelihood(every), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("noise", ["normal", "geometric"])
def test_impulse_loss_is_the_composite_likelihood_and_the_prior(part, noise):
    scenes, members, num_groups = part
    model = make_model(scenes, noise=noise)
    structure = structures(num_groups)
    some = scenes[members]
    found = ImpulseObjective(model, scenes, scenes).loss(members, structure)
    total = model.likelihood(some, kind="impulse").log_likelihood(structure[None]).sum()
    total = total + model.structure_prior(some).log_prob(structure).sum()
    # two axes of each receiver whose frame is complete at both ends
    number = 2 * int((some.transition_mask & some.complete_frame[:, 1:, None]).sum())
    assert found.item() == pytest.approx(-total.item() / number, rel=1e-9)
    found.backward()
    for module in (model.dynamics, model.impulse_noise, model.prior):
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())


def test_search_and_scoring_frames():
    """Structures are judged by the search frames, modules by the scoring frames."""
    scenes = charges(missing=0.0, padded=())
    model = make_model(scenes)
    search, scoring = scenes.frames(0, 4), scenes.frames(3, 8)
    objective = ImpulseObjective(model, search, scoring)
    members = [1, 4]
    wanted = model.likelihood(search[members], kind="impulse").table
    torch.testing.assert_close(objective.likelihood(members, "table").table, wanted)
    structure = structures(2)
    alone = ImpulseObjective(model, scoring, scoring).loss(members, structure)
    torch.testing.assert_close(objective.loss(members, structure), alone)
    assert len(objective.kept) == 2
