"""The power of the impulse likelihood: from simulated scenes, and from halves of scenes that contradict each other."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_nri.dynamics import integrated_paths
from pyro_nri.dynamics.integrated_paths import STIFF, force_changes
from pyro_nri.learning import calibration
from pyro_nri.learning.calibration import calibrate, noise_scales, residual_scales, simulate_again, some_of_each
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.learning.laws import fit_laws
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.simulate import simulate

MODEL = Path(__file__).parent.parent.parent / "data" / "models" / "charged5.pt"


def fitted(scenes):
    """Pair forces whose laws were fitted to given structures."""
    model = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, seed=0)
    return model


@pytest.fixture(scope="module")
def springs():
    scenes = simulate("springs", 12, num_entities=4, num_frames=30, measurement_noise=0.01, seed=0)
    return fitted(scenes), scenes


@pytest.fixture(scope="module")
def charged():
    scenes = simulate("charged", 12, num_entities=4, num_frames=30, seed=0)
    return fitted(scenes), scenes


def test_measurement_noise_is_found_in_residuals(springs):
    """Positions and velocities have the noise that was simulated, within a third; there is no process noise."""
    model, scenes = springs
    measured, process = residual_scales(model, scenes, scenes.edge_type)
    assert ((measured / 0.01 - 1).abs() < 0.35).all()
    assert (process < 0.01).all()


def test_what_forces_make_of_measurement_noise_is_no_process_noise():
    """Close charges turn a wrong place into a wrong change of velocity, which residuals alone cannot tell from more."""
    checkpoint = load_checkpoint(MODEL)
    model = checkpoint.model
    scenes = simulate("charged", 60, num_entities=5, num_frames=30, measurement_noise=0.01, seed=3)
    structure = torch.tensor(checkpoint.alignment).argsort()[scenes.edge_type]
    _, apparent = residual_scales(model, scenes, structure)
    measured, process = noise_scales(model, scenes, structure, seed=0)
    assert ((measured / 0.01 - 1).abs() < 0.1).all()
    assert (apparent[2:] > 0.004).all()
    assert (process[:2] == 0).all()
    assert (process[2:] < apparent[2:] / 1.8).all()  # what is left comes from the closest of all


def test_without_measurement_noise_residuals_say_all(charged):
    model, scenes = charged
    found, apparent = (
        noise_scales(model, scenes, scenes.edge_type, seed=0),
        residual_scales(model, scenes, scenes.edge_type),
    )
    torch.testing.assert_close(found, apparent, rtol=0, atol=0)


def test_scenes_are_simulated_from_the_laws_given(springs):
    model, scenes = springs
    scales = residual_scales(model, scenes, scenes.edge_type)
    before = model.dynamics.laws.fitted_table.clone()
    own = simulate_again(model, scenes, scenes.edge_type, scales, seed=1)
    assert own.num_scenes == len(scenes.scene_names) * calibration.NUM_LAWS * calibration.NUM_STARTS
    assert len(set(own.scene_names)) == own.num_scenes
    again = simulate_again(model, scenes, scenes.edge_type, scales, laws=model.dynamics.laws.splines[None], seed=1)
    torch.testing.assert_close(again.trajectory, own.trajectory)
    none = torch.zeros_like(model.dynamics.laws.splines)[None]
    straight = simulate_again(model, scenes, scenes.edge_type, scales, laws=none, seed=1).trajectory
    velocity = straight[..., 2:].diff(dim=1).abs()  # no force, no walls: only measurement noise changes it
    assert velocity.median() < 0.03
    assert torch.equal(model.dynamics.laws.fitted_table, before)
    groups = {tuple(each) for each in scenes.edge_type.tolist()}
    assert {tuple(each) for each in own.edge_type.tolist()} == groups


def test_hard_and_easy_scenes_stand_for_all(charged, monkeypatch):
    model, scenes = charged
    dynamics = model.dynamics
    scales = residual_scales(model, scenes, scenes.edge_type)
    every = simulate_again(model, scenes, scenes.edge_type, scales, seed=0)
    hard = (force_changes(dynamics, dynamics.features(every), every) > STIFF).flatten(1).any(-1)
    assert 0 < hard.sum() < len(hard)
    monkeypatch.setattr(calibration, "MAX_HARD", 5)
    monkeypatch.setattr(calibration, "MAX_INFERRED", 12)
    some, importance = some_of_each(dynamics, every)
    assert some.num_scenes == 12
    kept = (force_changes(dynamics, dynamics.features(some), some) > STIFF).flatten(1).any(-1)
    assert kept.sum() == 5
    assert importance[kept].sum() == pytest.approx(float(hard.sum()))
    assert importance[~kept].sum() == pytest.approx(float((~hard).sum()))


def test_each_kind_of_scene_stands_for_all_of_its_kind(charged, monkeypatch):
    """With a bound so low that several scenes have a path that may be lost."""
    model, scenes = charged
    every = simulate_again(model, scenes, scenes.edge_type, residual_scales(model, scenes, scenes.edge_type), seed=0)

    def kinds(some):
        change = force_changes(model.dynamics, model.dynamics.features(some), some)
        fast = (change > 0.01).any(-1).double().mean(1).amax(-1) > calibration.OFTEN
        return torch.where((change > STIFF).flatten(1).any(-1), 1 + fast, 0)

    for name, value in {"FAST": 0.01, "MAX_FAST": 3, "MAX_HARD": 4, "MAX_INFERRED": 12}.items():
        monkeypatch.setattr(calibration, name, value)
    number = kinds(every).bincount(minlength=3)
    assert (number > torch.tensor([5, 4, 3])).all()
    some, importance = some_of_each(model.dynamics, every)
    assert kinds(some).bincount().tolist() == [5, 4, 3]
    for kind in range(3):
        assert float(importance[kinds(some) == kind].sum()) == pytest.approx(float(number[kind]))


def test_losses_that_are_not_found_become_less_probable(charged, monkeypatch):
    """Where no path is fast the probability stays; where fast paths are not lost it falls."""
    model, scenes = charged
    calibrate(model, scenes, scenes.edge_type, seed=0)
    start = float(torch.tensor(calibration.START[-1]).sigmoid())
    assert float(model.impulse_power.lost) == pytest.approx(start, rel=1e-3)
    for module in (calibration, integrated_paths):
        monkeypatch.setattr(module, "FAST", 0.003)
    calibrate(model, scenes, scenes.edge_type, seed=0)
    assert float(model.impulse_power.lost) < 0.9 * start
    model.impulse_power.weight.zero_()
    model.impulse_power.lost.zero_()


def test_the_power_never_grows_with_frames_and_losses_are_drawn_to_one_in_six(charged):
    """Whatever the free numbers are; the start is a power near 1 that falls slowly."""
    for seed in range(20):
        free = 3 * torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weight, lost = calibration.belief(free)
        assert weight[2] <= 0
        assert weight[2] + weight[3] <= 0
        assert 0 < lost < 1
    weight, lost = calibration.belief(torch.tensor(calibration.START))
    assert weight[[0, 1, 4]].tolist() == [0, 0, 0]
    assert -0.3 < float(weight[2]) < 0
    assert float(lost) == pytest.approx(1 / 6, rel=0.02)
    model, scenes = charged
    calibrate(model, scenes, scenes.edge_type, seed=0)
    weight = model.impulse_power.weight
    assert weight[2] <= 0
    assert weight[2] + weight[3] <= 0
    assert 0.02 < float(model.impulse_power.lost) < 0.5
    model.impulse_power.weight.zero_()
    model.impulse_power.lost.zero_()


def test_halves_that_contradict_each_other_lower_the_power(springs):
    """The second half of each scene is taken from a scene of other structure: nothing else says that this is so."""
    model, scenes = springs
    other = scenes.trajectory.roll(1, 0)
    middle = scenes.num_frames // 2
    mixed = torch.cat([scenes.trajectory[:, :middle], other[:, middle:]], dim=1)
    powers = []
    for trajectory in (scenes.trajectory, mixed):
        calibrate(model, replace(scenes, trajectory=trajectory), scenes.edge_type, seed=0)
        features = model.dynamics.features(scenes)
        powers.append(float(model.impulse_parts[2](features).median()))
    assert powers[1] < 0.5 * powers[0]


def test_one_or_two_frames_have_no_halves(springs):
    model, scenes = springs
    for number in (2, 3):
        calibrate(model, scenes.frames(0, number), scenes.edge_type, seed=0)
        assert model.impulse_parts[2].weight.isfinite().all()


def test_scenes_without_a_complete_frame_leave_the_power(springs):
    model, scenes = springs
    model.impulse_parts[2].weight.fill_(0.25)
    mask = scenes.observation_mask.clone()
    mask[:, :, 0] = False
    scales = residual_scales(model, scenes, scenes.edge_type)
    assert simulate_again(model, replace(scenes, observation_mask=mask), scenes.edge_type, scales, seed=0) is None
    calibrate(model, replace(scenes, observation_mask=mask), scenes.edge_type, seed=0)
    assert (model.impulse_parts[2].weight == 0.25).all()
