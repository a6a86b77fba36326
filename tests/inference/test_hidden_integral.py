"""How likely frames are, whatever the path of what is hidden: closed forms, a particle filter written another way."""

import math

import numpy as np
import pytest
import torch

from pyro_nri.inference import hidden_integral
from pyro_nri.inference.hidden_integral import integrate_paths, log_integral
from pyro_nri.inference.hidden_smoothing import climb
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model.hidden_motion import HiddenMotion
from pyro_nri.scenes.simulate import simulate
from tests.inference.test_hidden_smoothing import MODELS, hide, line_motion


def integral_of(motion, mode, seed=0, name="scene", **sizes):
    with torch.no_grad():
        return integrate_paths(motion, mode, Stream(seed, keys([name]), 2), **sizes)


def noisy_motion(noise, num_frames, scale, soft=math.inf):
    """Springs on a line, softer when they are long; all frames have noise, those of the hidden one too."""
    motion, _, true = line_motion(noise, num_frames, scale)
    square = motion.dynamics.laws.points() ** 2
    motion.table = torch.stack([0 * square, -0.4 * square / (1 + square / soft)])
    generator = torch.Generator().manual_seed(7)
    state = torch.cat([motion.recorded[:, 0], true[:, 0] * motion.scale + motion.offset], -2)
    frames = [state]
    with torch.no_grad():
        for _ in range(num_frames - 1):
            here = motion.frames(0, 1)
            here.recorded = state[:, None, :2]
            hidden = (state[:, None, 2:] - motion.offset) / motion.scale
            state = here.predict(hidden)[0][:, 0]
            change = torch.randn(state.shape, generator=generator, dtype=torch.float64)
            if noise == "student_t":
                change = change / (torch._standard_gamma(torch.full_like(change, 2.0), generator=generator) / 2).sqrt()
            state = state + scale * change
            frames.append(state)
        motion.recorded = torch.stack(frames, 1)[:, :, :2]
        start = (torch.stack(frames, 1)[:, :, 2:] - motion.offset) / motion.scale
        return motion, climb(motion, start, num_steps=30)[0]


def filtered(motion, noise, scale, seed, count=40_000):
    """The same by a particle filter that only knows predictions: the first frame from its prior, then onward."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 1, 1, 1, 2, generator=generator, dtype=torch.float64)
    total = 0.0
    with torch.no_grad():
        for frame in range(motion.num_frames - 1):
            predicted = motion.frames(frame, frame + 1).predict(hidden)[0][:, 0, 0]  # [count, 3, D]
            apart = (motion.recorded[0, frame + 1] - predicted[:, :2]) / scale
            if noise == "student_t":
                each = torch.distributions.StudentT(torch.tensor(4.0, dtype=torch.float64)).log_prob(apart)
            else:
                each = -(apart.square() + math.log(2 * math.pi)) / 2
            weight = (each - math.log(scale)).sum((-1, -2))
            total += float(weight.logsumexp(0)) - math.log(count)
            index = torch.multinomial(weight.softmax(0), count, replacement=True, generator=generator)
            change = torch.randn(count, 1, 2, generator=generator, dtype=torch.float64)
            if noise == "student_t":
                change = change / (torch._standard_gamma(torch.full_like(change, 2.0), generator=generator) / 2).sqrt()
            after = predicted[index, 2:] + scale * change
            hidden = ((after - motion.offset) / motion.scale)[:, None, None]
    return total


def test_linear_motion_with_normal_noise_has_the_integral_of_a_normal_density():
    motion, mode = noisy_motion("normal", 6, 0.05)
    with torch.no_grad():
        precision = -torch.func.hessian(lambda x: motion.log_density(x.view(1, 6, 1, 2))[0])(mode.flatten())
        exact = motion.log_density(mode)[0] + 6 * math.log(2 * math.pi) - torch.linalg.slogdet(precision).logabsdet / 2
        torch.testing.assert_close(log_integral(motion, mode)[0], exact, atol=5e-3, rtol=0)
        # Wherever it is linearised.
        away = mode + 0.3
    for path in (mode, away):
        found = integral_of(motion, path, num_particles=200)
        assert float(found.log_error[0]) < 0.05
        assert abs(float(found.log_value[0] - exact)) < 4.5 * float(found.log_error[0])


@pytest.mark.parametrize(("num_frames", "soft"), [(5, math.inf), (24, math.inf), (24, 1.0)])
def test_robust_noise_agrees_with_a_particle_filter(num_frames, soft):
    motion, mode = noisy_motion("student_t", num_frames, 0.1, soft)
    other = torch.tensor([filtered(motion, "student_t", 0.1, seed) for seed in range(4)])
    found = integral_of(motion, mode)
    error = math.hypot(float(found.log_error[0]), float(other.std()) / 2)
    assert abs(float(found.log_value[0]) - float(other.mean())) < 4.5 * error
    # Without the particles it is off by more than that: normal tails are not those of the noise.
    with torch.no_grad():
        assert abs(float(log_integral(motion, mode)[0]) - float(other.mean())) > 4.5 * error


def test_its_error_is_what_runs_differ_by():
    motion, mode = noisy_motion("student_t", 12, 0.1)
    runs = [integral_of(motion, mode, seed) for seed in range(40)]
    value = torch.stack([run.log_value[0] for run in runs])
    error = torch.stack([run.log_error[0] for run in runs]).square().mean().sqrt()
    assert 0.6 < float(value.std() / error) < 1.6  # 40 runs of 8 populations: a tenth of error each, and heavy tails


@pytest.mark.slow
def test_the_error_holds_for_charges_in_the_plane():
    checkpoint = load_model(MODELS / "charged5.pt")
    whole = simulate("charged", 2, num_entities=6, num_frames=10, seed=4)
    structure = torch.as_tensor(np.argsort(checkpoint.alignment))[whole.edge_type]
    motion = HiddenMotion(checkpoint.model, hide(whole, 4), 2, structure).refined(5)
    true = (whole.trajectory[:, :, 4:].double() - motion.offset) / motion.scale
    with torch.no_grad():
        mode, _ = climb(motion, true, num_steps=16)
        runs = [integrate_paths(motion, mode, Stream(seed, keys(["a", "b"]), 1)) for seed in range(16)]
        many = integrate_paths(motion, mode, Stream(99, keys(["a", "b"]), 1), num_particles=400)
    value, error = (torch.stack([getattr(run, name) for run in runs]) for name in ("log_value", "log_error"))
    spread = (value.std(0) / error.square().mean(0).sqrt()).square().mean().sqrt()
    assert 0.5 < float(spread) < 1.7  # two scenes of 16 runs: a fifth of error, and heavy tails
    assert (value.mean(0) - many.log_value).abs().max() < 4.5 * math.hypot(0.5 / 4, float(many.log_error.max()))
    assert (error.mean(0) < 0.5).all()


def test_a_scene_has_the_same_integral_whatever_is_beside_it():
    motion, mode = noisy_motion("student_t", 6, 0.1)
    both = motion[torch.zeros(2, dtype=torch.long)]
    with torch.no_grad():
        beside = integrate_paths(both, mode.expand(2, -1, -1, -1), Stream(0, keys(["one", "other"]), 3))
    for place, name in enumerate(["one", "other"]):
        alone = integral_of(motion, mode, name=name)
        torch.testing.assert_close(beside.log_value[place], alone.log_value[0])
    assert beside.log_value[0] != beside.log_value[1]


def test_where_rounding_spoils_the_normal_distribution_laplace_stands_in(monkeypatch):
    motion, mode = noisy_motion("student_t", 4, 0.1)
    exact = hidden_integral.factorise

    def spoilt(diagonal, above):
        factor = exact(diagonal, above)
        return factor._replace(failed=torch.ones_like(factor.failed))

    monkeypatch.setattr(hidden_integral, "factorise", spoilt)
    found = integral_of(motion, mode)
    with torch.no_grad():
        assert torch.equal(found.log_value, log_integral(motion, mode))
    assert float(found.log_error[0]) == math.inf


def test_one_population_says_nothing_of_its_error():
    motion, mode = noisy_motion("student_t", 4, 0.1)
    with pytest.raises(ValueError, match="num_islands must be 2 or more, found 1"):
        integral_of(motion, mode, num_islands=1)


def test_what_is_impossible_has_no_finite_integral(monkeypatch):
    motion, mode = noisy_motion("student_t", 4, 0.1)
    monkeypatch.setattr(hidden_integral, "_log_share", lambda *_: torch.tensor(-math.inf))
    found = integral_of(motion, mode)
    assert float(found.log_value[0]) == -math.inf
    assert float(found.log_error[0]) == math.inf
