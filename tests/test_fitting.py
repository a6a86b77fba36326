"""fit(): one call from scenes to a model, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from pyro_nri.fitting import fit
from pyro_nri.inference.chains import Chains
from pyro_nri.inference.run import infer
from pyro_nri.learning.bouncegrad import BounceGrad
from pyro_nri.learning.checkpoint import new_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def springs():
    return simulate("springs", 6, num_entities=3, num_frames=12, seed=5)


def test_a_finished_training_is_not_resumed(springs):
    found = fit(springs, 2, num_steps=3, seed=0)
    with pytest.raises(ValueError, match="finished training"):
        fit(springs, 2, num_steps=3, seed=0, resume=found)


def test_what_was_saved_does_not_change_and_resumes_to_the_same_model(springs):
    kept = []
    whole = fit(springs, 2, num_steps=6, seed=0, save=kept.append, save_every=0.0)
    middle = next(checkpoint for checkpoint in kept if checkpoint.training["num_steps"] == 3)
    resumed = fit(springs, 2, num_steps=6, seed=0, resume=middle)
    assert middle.training["num_steps"] == 3
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert resumed.alignment == whole.alignment


def test_a_batch_without_any_complete_transition_is_no_divergence(springs):
    seen = torch.ones(6, 12, 3, dtype=torch.bool)
    seen[0, ::2, 0] = False
    seen[0, 1::2, 1] = False
    scenes = replace(springs, observation_mask=seen)
    assert not scenes.transition_mask[0].any()
    found = fit(scenes, 2, num_steps=12, batch_size=1, seed=0)
    assert all(torch.isfinite(value).all() for value in found.model.state_dict().values())


def test_only_settled_structures_count(springs):
    found = new_checkpoint(ModelSpec(num_edge_types=2), seed=0)
    found.model.fit_scaling(springs)
    trainer = BounceGrad(found.model, springs, batch_size=2, num_steps=12, seed=0)
    assert not trainer.settled.any()
    for _ in range(12):
        trainer.step()
    assert trainer.settled.sum() == 6
    trainer.step(torch.tensor([0, 1]))
    assert trainer.settled[:2].all()


def test_states_too_far_from_zero_are_refused(springs):
    far = replace(springs, trajectory=springs.trajectory + 5e6)
    with pytest.raises(ValueError, match="state x is so far from 0"):
        fit(far, 2, num_steps=1, seed=0)


def test_fingerprints_do_not_depend_on_padding_or_names(springs):
    larger = simulate("springs", 1, num_entities=4, num_frames=12, seed=6)
    renamed = Scenes.from_arrays(larger.trajectory, time_step=larger.time_step, scene_names=["large"])
    padded = concatenate([replace(springs, edge_type=None, initial_state=None), renamed])
    assert padded.fingerprints[:6] == springs.fingerprints
    assert len(set(padded.fingerprints)) == 7


def test_an_interrupted_shard_interrupts_the_run(springs, monkeypatch):
    found = fit(springs, 2, num_steps=2, seed=0)
    record, calls = Chains.record, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return record(self, *arguments)

    monkeypatch.setattr(Chains, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        infer(found.model, springs, method="mcmc", num_shards=2, num_draws=100, num_warmup=50, seed=0)


def test_laws_are_drawn_if_wanted(springs):
    spec = ModelSpec(2, dynamics="pair-forces")
    drawn, none = (fit(springs, spec=spec, num_steps=3, seed=0, law_bootstrap=number) for number in (4, 0))
    assert drawn.law_draws.shape[:2] == (4, 2)
    assert drawn.law_support.shape[0] == 2
    assert (none.law_draws, none.law_support) == (None, None)
    assert all(torch.equal(value, none.model.state_dict()[name]) for name, value in drawn.model.state_dict().items())
