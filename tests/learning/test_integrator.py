"""The cap on forces and the sub-steps of a simulator are found from the frames in which forces change fast."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_nri.dynamics.integrated_paths import hard_frames
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.learning.integrator import fit_integrator
from pyro_nri.scenes.particles import MAX_FORCE, SUBSTEP
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def charges():
    """Learned laws of charges, and new scenes with their learned types, those with the most hard frames first."""
    checkpoint = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "charged5.pt")
    dynamics, _, _ = checkpoint.model.impulse_parts
    scenes = simulate("charged", 60, seed=6)
    scenes = replace(scenes, edge_type=torch.tensor(checkpoint.alignment).argsort()[scenes.edge_type])
    hard = hard_frames(dynamics, dynamics.features(scenes), scenes)
    return dynamics, scenes[hard.sum(1).argsort(descending=True)]


@pytest.mark.parametrize("num_scenes", [1, 6])  # of one scene nothing is known of the spread over scenes
def test_what_the_simulator_does_is_found(charges, num_scenes):
    dynamics, scenes = charges
    scenes = scenes[:num_scenes]
    row = hard_frames(dynamics, dynamics.features(scenes), scenes).nonzero()
    assert len(row) > 20
    dynamics.force_limit.fill_(torch.inf)
    dynamics.leapfrog_steps.zero_()
    dynamics.clock_lag.fill_(SUBSTEP / 2)
    fit_integrator(dynamics, scenes, row, scenes.edge_type)
    assert int(dynamics.leapfrog_steps) == round(scenes.time_step / SUBSTEP)
    assert float(dynamics.force_limit) == pytest.approx(MAX_FORCE, rel=0.01)


def test_few_hard_frames_tell_nothing(charges):
    dynamics, scenes = charges
    dynamics.force_limit.fill_(torch.inf)
    dynamics.leapfrog_steps.zero_()
    row = hard_frames(dynamics, dynamics.features(scenes[:1]), scenes[:1]).nonzero()[:19]
    fit_integrator(dynamics, scenes[:1], row, scenes.edge_type[:1])
    assert not dynamics.force_limit.isfinite()
    assert int(dynamics.leapfrog_steps) == 0
