"""Closed-form laws against the simulator's constants, and noise against scales that were planted."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.dynamics.force_laws import NUM_SPLINES
from pyro_nri.learning import laws as laws_file
from pyro_nri.learning.law_regression import fit_noise
from pyro_nri.learning.laws import fit_forward_noise, fit_laws
from pyro_nri.model.noise import make_noise
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.particles import MAX_FORCE, SUBSTEP
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


def make_model(scenes, **options):
    spec = ModelSpec(2, **({"dynamics": "pair-forces", "state_names": scenes.state_names} | options))
    model = build_model(spec, torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    return model


def distances(scenes, edge_type, low=0.01, high=0.99):
    """Distances of pairs of a type, between these quantiles of those that occur."""
    pairs = [(i, j) for i in range(scenes.num_entities) for j in range(scenes.num_entities) if i != j]
    position = scenes.trajectory[..., :2]
    apart = torch.stack([(position[:, :, i] - position[:, :, j]).norm(dim=-1) for i, j in pairs], 1)  # [B, E, T]
    ends = apart[scenes.edge_type == edge_type].flatten().quantile(torch.tensor([low, high]).double())
    return torch.linspace(float(ends[0]), float(ends[1]), 200, dtype=torch.double)


# --- laws given structures -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", ["normal", "student_t", "geometric"])
def test_the_law_of_springs(noise):
    """Type 0 does nothing, type 1 pulls with 0.1 r: within 0.001 of the force at r = 1 where data lie."""
    scenes = simulate("springs", 20, num_frames=40, seed=0)
    model = make_model(scenes, noise=noise)
    found = fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(1, 1), seed=0)
    assert torch.equal(found.structure, scenes.edge_type)
    assert found.median_residual < 3e-4
    for k, law in enumerate((lambda r: 0 * r, lambda r: -0.1 * r)):
        r = distances(scenes, k)
        assert (model.dynamics.laws(r)[:, k] - law(r)).abs().max() < 1e-4
    assert model.dynamics.laws.is_fitted


@pytest.mark.slow
@pytest.mark.statistical
def test_the_law_of_charges():
    """Coulomb's law from twenty scenes, close encounters and all; the median residual acceleration is small."""
    scenes = simulate("charged", 20, seed=0)
    model = make_model(scenes)
    found = fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(2, 6), seed=0)
    assert found.median_residual < 1e-3
    for k, sign in enumerate((-1, 1)):
        r = distances(scenes, k, 0.1, 0.99)
        relative = model.dynamics.laws(r)[:, k] / (sign * r**-2) - 1
        assert relative.abs().max() < 0.02
        assert relative.abs().mean() < 1e-3
    # new scenes, structures unknown
    new = simulate("charged", 10, seed=1)
    table = model.likelihood(new).table  # [G, N, K ** (N - 1)]
    digits = [[int(new.edge_type[b, e]) for e in range(20)] for b in range(10)]
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    right = 0
    for b, j in np.ndindex(10, 5):
        types = dict(zip(pairs, digits[b], strict=True))
        code = int("".join(str(types[i, j]) for i in range(5) if i != j), 2)
        right += int(table[b, j].argmax()) == code
    assert right >= 46


@pytest.mark.parametrize("lag", [SUBSTEP / 2, -0.002])
def test_the_lag_of_a_clock_is_found(lag):
    """The simulator's velocities are half a sub-step older than its positions; without that, laws are off by 1e-4."""
    whole = simulate("springs", 12, num_entities=3, num_frames=300, frame_spacing=10, seed=0)
    path = whole.trajectory.clone()
    # the velocities of another moment, by the parabola through three frames 0.01 apart
    before, now, after = path[:, :-2, :, 2:], path[:, 1:-1, :, 2:], path[:, 2:, :, 2:]
    share = (SUBSTEP / 2 - lag) / whole.time_step
    path[:, 1:-1, :, 2:] = now + share * (after - before) / 2 + share**2 * (after - 2 * now + before) / 2
    scenes = Scenes.from_arrays(path[:, 10:290:10], time_step=0.1, edge_type=whole.edge_type)
    model = make_model(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(2, 0), seed=0)
    assert float(model.dynamics.clock_lag) == pytest.approx(lag, rel=0.02)
    points = torch.linspace(0.3, 1.5, 100, dtype=torch.double)
    assert (model.dynamics.laws(points)[:, 1] + 0.1 * points).abs().median() < 2e-6
    # and the forward model knows of it: a frame is foretold to what its sub-steps leave
    step = model.dynamics.step(scenes.trajectory[:, :-1], scenes.edge_type[:, None])
    assert (step - scenes.trajectory[:, 1:]).abs().median() < 1e-6


@pytest.mark.slow
@pytest.mark.statistical
def test_how_the_simulator_moves_is_found():
    """It caps each component of the force on a charge at 100 and leaps a hundred times a frame; springs know no cap."""
    scenes = simulate("charged", 40, seed=3)
    model = make_model(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(2, 6), seed=0)
    dynamics = model.dynamics
    assert float(dynamics.force_limit) == pytest.approx(MAX_FORCE, rel=1e-3)
    assert int(dynamics.leapfrog_steps) == round(scenes.time_step / SUBSTEP)
    assert float(dynamics.clock_lag) == pytest.approx(SUBSTEP / 2, rel=1e-12)
    assert dynamics.for_rollouts().num_substeps == 100
    # so that the motion is followed through close encounters, and the law is known there
    step = dynamics.for_rollouts().step(scenes.trajectory[:, :-1], scenes.edge_type[:, None])
    assert ((step - scenes.trajectory[:, 1:]).abs().amax((2, 3)) < 1e-2).double().mean() > 0.98
    r = torch.linspace(0.03, 0.3, 50, dtype=torch.double)
    assert (dynamics.laws(r)[:, 0] * r**2 + 1).abs().max() < 1e-2
    calm = simulate("springs", 20, seed=3)
    model = make_model(calm)
    fit_laws(model, calm, structure=calm.edge_type, num_rounds=(1, 3), seed=0)
    assert model.dynamics.force_limit == math.inf


def test_the_law_of_oscillators():
    scenes = simulate("kuramoto", 5, num_frames=30, seed=0)
    model = make_model(scenes)
    found = fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(1, 1), seed=0)
    assert found.median_residual < 1e-5
    angle = torch.linspace(-9, 9, 300, dtype=torch.double)
    wanted = torch.stack([torch.zeros_like(angle), angle.sin()], -1)
    torch.testing.assert_close(model.dynamics.laws(angle), wanted, rtol=0, atol=5e-5)


def test_no_interaction_stays_none():
    scenes = simulate("springs", 5, num_entities=4, num_frames=20, seed=0)
    model = make_model(scenes, no_interaction=True)
    fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(1, 0), seed=0)
    assert not model.dynamics.laws.splines[0].any()
    r = distances(scenes, 1, 0.05, 0.95)
    torch.testing.assert_close(model.dynamics.laws(r)[:, 1], -0.1 * r, rtol=0, atol=1e-3)


def test_missing_states_and_padding():
    """They thin the data and bias nothing."""
    whole = simulate("springs", 20, num_entities=4, num_frames=30, seed=0)
    seen = torch.rand(20, 30, 4, generator=torch.Generator().manual_seed(0)) > 0.03
    large = torch.cat([whole.trajectory, torch.full((20, 30, 1, 4), 7.0)], 2)
    present = torch.tensor([True] * 4 + [False]).expand(20, 5)
    scenes = Scenes.from_arrays(
        large,
        time_step=whole.time_step,
        observation_mask=torch.nn.functional.pad(seen, (0, 1)),
        entity_mask=present,
    )
    types = torch.zeros(20, 20, dtype=torch.long)
    inside = torch.tensor([4 not in (i, j) for i in range(5) for j in range(5) if i != j])
    types[:, inside] = whole.edge_type
    model = make_model(scenes)
    fit_laws(model, scenes, structure=types, num_rounds=(1, 1), seed=0)
    r = distances(whole, 1, 0.02, 0.98)
    torch.testing.assert_close(model.dynamics.laws(r)[:, 1], -0.1 * r, rtol=0, atol=2e-4)


def test_shared_structures():
    """One structure for the windows of a scene: the same law as from the whole, and structures of groups."""
    whole = simulate("springs", 6, num_entities=4, num_frames=21, seed=0)
    windows = whole.windows(10)
    scenes = windows.share_structure({name: name.split("[")[0] for name in windows.scene_names})
    assert scenes.num_groups == 6
    one, other = make_model(whole), make_model(whole)
    fit_laws(one, whole, structure=whole.edge_type, num_rounds=(2, 0), seed=0)
    found = fit_laws(other, scenes, structure=whole.edge_type, num_rounds=(2, 0), seed=0)
    assert found.structure.shape == (6, 12)
    r = distances(whole, 1, 0.02, 0.98)
    torch.testing.assert_close(one.dynamics.laws(r), other.dynamics.laws(r), rtol=1e-4, atol=1e-7)


# --- structures unknown ----------------------------------------------------------------------------------------------
@pytest.fixture
def roughly_right():
    """A model whose laws come from the structures of three scenes; and other scenes."""

    def make():
        few = simulate("springs", 3, num_entities=4, num_frames=20, seed=0)
        scenes = simulate("springs", 12, num_entities=4, num_frames=30, seed=1)
        model = make_model(scenes)
        fit_laws(model, few, structure=few.edge_type, num_rounds=(1, 0), seed=0)
        return model, scenes

    return make


def test_structures_are_inferred_and_the_seed_fixes_everything(roughly_right):
    results = []
    for seed in (0, 0):
        model, scenes = roughly_right()
        before = torch.get_rng_state()
        found = fit_laws(model, scenes, num_rounds=(1, 1), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        results.append((model.state_dict(), found))
    assert (results[0][1].structure == scenes.edge_type).double().mean() > 0.97
    assert torch.equal(results[0][1].structure, results[1][1].structure)
    assert results[0][1].median_residual == results[1][1].median_residual
    for name, value in results[0][0].items():
        assert torch.equal(value, results[1][0][name]), name


def test_type_weights_follow_the_posterior(roughly_right):
    """Four of five edges are springs; the learned weights say so."""
    model, _ = roughly_right()
    scenes = simulate("springs", 40, num_entities=4, num_frames=20, seed=3, link_probability=0.8)
    found = fit_laws(model, scenes, num_rounds=(2, 0), seed=0)
    share = model.prior.type_logits.detach().softmax(-1)
    linked = (found.structure == 1).double().mean()
    assert float(share[1]) == pytest.approx(float(linked), abs=0.01)
    assert float(share[1]) == pytest.approx(0.8, abs=4 * math.sqrt(0.8 * 0.2 / 240))  # 40 * 6 pairs


def test_only_some_scenes_are_used(roughly_right, monkeypatch):
    monkeypatch.setattr(laws_file, "MAX_SCENES", 4)
    model, scenes = roughly_right()
    found = fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=(1, 0), seed=0)
    assert found.structure.shape == (4, 12)
    assert found.scenes.num_scenes == 4
    place = [scenes.scene_names.index(name) for name in found.scenes.scene_names]
    assert torch.equal(found.structure, scenes.edge_type[place])
    again = fit_laws(roughly_right()[0], scenes, num_rounds=(1, 0), seed=0)
    assert again.scenes.scene_names == found.scenes.scene_names


def test_other_dynamics_are_refused():
    scenes = simulate("springs", 2, num_entities=3, num_frames=5, seed=0)
    with pytest.raises(ValueError, match="this model has other dynamics"):
        fit_laws(build_model(ModelSpec(2), torch.Generator().manual_seed(0)), scenes, seed=0)


# --- noise -----------------------------------------------------------------------------------------------------------
def planted(name):
    noise = make_noise(name, 2, 3).double()
    noise.fit_scaling(torch.tensor([0.5, 2.0]), torch.tensor([[-1.0, -1, -1], [0, 0, 0], [1, 1, 1]]))
    with torch.no_grad():
        noise.log_relative_scale.copy_(torch.tensor([-1.0, 0.7]))
        if name == "geometric":
            noise.context_weight.copy_(torch.tensor([0.5, -0.3, 0.0]))
    return noise


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["normal", "student_t", "geometric"])
def test_noise_recovers_planted_scales(name):
    """Within four standard errors, from the curvature of the log-likelihood; masked residuals are ignored."""
    truth, num = planted(name), 8000
    torch.manual_seed(0)
    context = torch.randn(num, 3, dtype=torch.double)
    residual = truth(torch.zeros(num, 2, dtype=torch.double), context).sample()
    mask = torch.rand(num) > 0.1
    spoiled = torch.where(mask[:, None], residual, torch.full_like(residual, 1e6))
    found = planted(name)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
    fit_noise(found, spoiled, context, mask)
    names = [name for name, _ in truth.named_parameters()]
    sizes = [parameter.numel() for parameter in truth.parameters()]
    wanted = torch.cat([parameter.detach() for parameter in truth.parameters()])

    def loss(flat):
        values = dict(zip(names, flat.split(sizes), strict=True))
        distribution = torch.func.functional_call(truth, values, (torch.zeros_like(residual[mask]), context[mask]))
        return -distribution.log_prob(residual[mask]).sum()

    error = torch.autograd.functional.hessian(loss, wanted).inverse().diagonal().sqrt()
    estimate = torch.cat([parameter.detach() for parameter in found.parameters()])
    assert error.max() < 0.05
    assert ((estimate - wanted).abs() < 4 * error).all()
    # and it is the maximum
    gradient = torch.autograd.functional.jacobian(loss, estimate) * error
    assert gradient.abs().max() < 0.3


@pytest.mark.statistical
def test_forward_noise_is_that_of_one_step_predictions():
    """Standardised residuals of the fitted density are Student-t."""
    scenes = simulate("springs", 10, num_entities=4, num_frames=30, seed=0, measurement_noise=0.01)
    model = make_model(scenes, noise="student_t")
    model.dynamics.laws.set_splines(torch.zeros(2, NUM_SPLINES, dtype=torch.double))
    fit_forward_noise(model, scenes, scenes.edge_type)
    model.noise.requires_grad_(False)
    predicted = torch.stack(
        [model.dynamics.step(scenes.trajectory[:, t], scenes.edge_type) for t in range(29)], 1
    )  # no force: straight on
    residual = scenes.trajectory[:, 1:] - predicted
    straight = scenes.trajectory[:, :-1, :, :2] + 0.1 * scenes.trajectory[:, :-1, :, 2:]
    torch.testing.assert_close(predicted[..., :2], straight)
    for d in range(4):
        # the quantile at which a t variable with 4 degrees of freedom has half of its mass, within some per cent
        half = stats.t(4).ppf(0.75) * float(model.noise.scale[d])
        assert float((residual[..., d].abs() < half).double().mean()) == pytest.approx(0.5, abs=0.05)
