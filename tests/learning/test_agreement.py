"""The power of a density: its objective by brute force, models that are too sure or too unsure, what is left alone."""

import numpy as np
import pyro
import pytest
import torch

from pyro_nri.fitting import fit
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.learning import agreement
from pyro_nri.learning.agreement import fit_power
from pyro_nri.learning.checkpoint import load_checkpoint, save_checkpoint
from pyro_nri.model.power import DensityPower, power_of_frames
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def trained():
    """Springs, learned a little: errors of the motion repeat from frame to frame."""
    scenes = simulate("springs", 40, num_entities=4, num_frames=30, seed=0)
    return fit(scenes, num_edge_types=2, num_steps=150, seed=0), scenes


def test_a_power_by_hand():
    power = DensityPower()
    mask = torch.ones(2, 12, 3, dtype=torch.bool)
    mask[1, 4:, 2] = False
    assert power.is_one
    assert power(mask).tolist() == [[1.0] * 3] * 2
    power.weight.copy_(torch.tensor([0.5, -0.25]))
    assert not power.is_one
    expected = np.exp(0.5 - 0.25 * np.log(np.array([[12, 12, 12], [12, 12, 4]]) / 48))
    np.testing.assert_allclose(power(mask), expected, rtol=1e-6)
    assert power_of_frames(torch.tensor([0]), power.weight.double()).isfinite().all()


@pytest.mark.parametrize("cache", ["table", "messages", "none"])
def test_likelihoods_are_raised_to_it_and_are_no_density_any_more(trained, cache):
    checkpoint, scenes = trained
    model, some = checkpoint.model, scenes[:5]
    structure = torch.stack([some.edge_type, 1 - some.edge_type])
    with torch.no_grad():
        density = model.likelihood(some, kind="forward", cache=cache)
        believed = model.likelihood(some, cache=cache)
    assert density.is_density
    assert not believed.is_density
    power = model.density_power(model.prepare(some).transition_mask)
    expected = power * density.receiver_terms(structure)
    torch.testing.assert_close(believed.receiver_terms(structure), expected, rtol=1e-5, atol=1e-3)
    first = (structure[:1], believed.receiver_terms(structure[:1]))
    other = structure[:1].clone()
    other[0, 2] = structure[1, 2]
    moved = believed.receiver_terms(other, first)
    torch.testing.assert_close(moved, believed.receiver_terms(other), rtol=1e-5, atol=1e-3)
    with torch.no_grad():  # the program itself is the density
        torch.testing.assert_close(
            density.log_likelihood(structure), model.log_likelihood(some, structure), rtol=1e-4, atol=1e-2
        )


def test_the_objective_is_largest_at_the_power_found(trained, monkeypatch):
    """Log sum over codes of both halves' probabilities, by a grid and a loop over scenes, receivers and windows."""
    checkpoint, scenes = trained
    model = checkpoint.model
    monkeypatch.setattr(agreement, "LENGTHS", ())
    monkeypatch.setattr(agreement, "PRIOR_SCALE", (100.0, 1e-3))  # a constant power
    before = model.density_power.weight.clone()
    fit_power(model, scenes)
    found = float(model.density_power.weight[0])
    first, second = scenes.frames(0, 15), scenes.frames(15, 30)
    with torch.no_grad():
        tables = [model.likelihood(part, kind="forward", cache="table").table.numpy() for part in (first, second)]

    def objective(log_power):
        total = 0.0
        for scene in range(40):
            for receiver in range(4):
                halves = [np.exp(log_power) * table[scene, receiver] for table in tables]
                halves = [np.exp(half - half.max()) / np.exp(half - half.max()).sum() for half in halves]
                total += np.log(sum(a * b for a, b in zip(*halves, strict=True)))
        return total

    grid = np.linspace(found - 1, found + 1, 21)
    assert abs(grid[np.argmax([objective(each) for each in grid])] - found) < 0.11
    model.density_power.weight.copy_(before)


@pytest.mark.parametrize("factor", [0.25, 1.0, 4.0])
def test_wrong_scales_of_the_noise_are_made_good(factor):
    """Scenes drawn from the program, then a noise scale wrong by a factor: log-likelihoods are wrong by its square."""
    model = build_model(ModelSpec(2, noise="normal"), torch.Generator().manual_seed(0))
    start = simulate("springs", 200, num_entities=3, num_frames=30, seed=0)
    model.fit_scaling(start)
    pyro.set_rng_seed(0)
    with torch.no_grad():
        model.noise.log_relative_scale.fill_(0.0)  # a transition says little of the structure
        drawn = torch.cat([model.prepare(start).trajectory[:, :1], model(start, condition=False)], dim=1)
        model.noise.log_relative_scale.fill_(float(np.log(factor)))
    scenes = Scenes.from_arrays(drawn, time_step=start.time_step)
    fit_power(model, scenes)
    assert float(model.density_power(scenes.transition_mask).mean()) == pytest.approx(factor**2, rel=0.35)


def test_new_scenes_are_believed_as_far_as_they_may_be(trained):
    """Few frames: the density is too sure of itself, its power is not, and the log score is better."""
    checkpoint, _ = trained
    new = simulate("springs", 150, num_entities=4, num_frames=5, seed=9)
    right, expected, score = {}, {}, {}
    for kind in ("forward", "auto"):
        with torch.no_grad():
            likelihood = checkpoint.model.likelihood(new, kind=kind)
            prior = checkpoint.model.structure_prior(checkpoint.model.prepare(new))
            edge = enumerate_posterior(likelihood, prior).edge_probability
        truth = torch.tensor(checkpoint.alignment).argsort()[new.edge_type]
        right[kind] = float((edge.argmax(-1) == truth).double().mean())
        expected[kind] = float(edge.amax(-1).mean())
        score[kind] = float(edge.gather(-1, truth[..., None]).clamp(min=1e-12).log().mean())
    assert score["auto"] > score["forward"]
    assert abs(expected["auto"] - right["auto"]) < abs(expected["forward"] - right["forward"])


def test_what_is_left_alone(trained, monkeypatch):
    checkpoint, scenes = trained
    model = checkpoint.model
    before = model.density_power.weight.clone()
    assert before[1] <= 0  # never grows with frames
    fit_power(model, scenes.frames(0, 3))
    assert model.density_power.is_one
    long = build_model(ModelSpec(2, horizon=3), torch.Generator().manual_seed(0))
    fit_power(long, scenes)
    assert long.density_power.is_one
    rounds = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
    rounds.dynamics.num_substeps = 2  # what an entity does depends on the senders of its senders
    fit_power(rounds, scenes)
    assert rounds.density_power.is_one
    pair = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    assert pair.density_power is None
    fit_power(pair, scenes)
    model.density_power.weight.copy_(before)
    monkeypatch.setattr(agreement, "MAX_CODES", 4)
    fit_power(model, scenes)
    assert torch.equal(model.density_power.weight, before)


def test_files_keep_it_and_older_ones_have_none(trained, tmp_path):
    checkpoint, _ = trained
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    again = load_checkpoint(tmp_path / "model.pt")
    assert torch.equal(again.model.density_power.weight, checkpoint.model.density_power.weight)
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    del content["model"]["density_power.weight"]
    torch.save(content, tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").model.density_power.is_one
