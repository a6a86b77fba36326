"""Noise of a measurement: as it is given, and as recordings and laws say."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_nri.inference.noise_scale import LEAST_ESTIMATE, NUM_FRAMES, estimate_noise, noise_scale
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.scenes.simulate import simulate

SCALE = torch.tensor([0.02, 0.01, 0.03, 0.005], dtype=torch.float64)
NUM_WINDOWS = 24


@pytest.fixture(scope="module", autouse=True)
def short_searches():
    """Windows are short and easy: few searches will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nri.inference.noisy_search.WINDOWS", (1.0, 1.0))
        patch.setattr("pyro_nri.inference.noisy_joint.NUM_ANNEALED", 60)
        patch.setattr("pyro_nri.inference.noise_scale.NUM_WINDOWS", NUM_WINDOWS)
        yield


@pytest.fixture(scope="module")
def model():
    return load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "springs5.pt").model


@pytest.fixture(scope="module")
def exact():
    return simulate("springs", 8, num_entities=4, num_frames=16, seed=8)


def test_what_is_given():
    assert noise_scale(0.1, 3).tolist() == [0.1] * 3
    assert noise_scale((0.1, 0.2), 2).tolist() == [0.1, 0.2]


@pytest.mark.slow
@pytest.mark.statistical
def test_each_state_variable_has_its_own(model, exact):
    random = torch.randn(exact.trajectory.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy = replace(exact, trajectory=exact.trajectory + SCALE * random)
    found = estimate_noise(model, noisy, seed=0)
    # The middle one of 24 windows, each of which has 4 x 6 numbers of which 4 x 2 fix where its path begins.
    error = 1.25 / (2 * (4 * NUM_FRAMES - 8) * NUM_WINDOWS) ** 0.5
    assert (found / SCALE).log().abs().max() < 4 * error
    assert torch.equal(found, estimate_noise(model, noisy, seed=0))
    # Recorded states that jump belong to other windows than the middle one.
    jump = noisy.trajectory.clone()
    jump[0, 8:] += 1.0
    other = estimate_noise(model, replace(noisy, trajectory=jump), seed=0)
    assert (other / SCALE).log().abs().max() < 4 * error


@pytest.mark.slow
def test_without_noise_there_is_none(model, exact):
    least = LEAST_ESTIMATE * model.score_scale.double()
    found = estimate_noise(model, exact, seed=0)
    assert (found >= least).all()
    assert (found < 1e-5).all()


def test_no_window_with_every_entity(model, exact):
    seen = exact.observation_mask.clone()
    seen[:, ::3, 0] = False
    with pytest.raises(ValueError, match="cannot be estimated: no 6 frames in a row have every entity; give it"):
        estimate_noise(model, replace(exact, observation_mask=seen), seed=0)
