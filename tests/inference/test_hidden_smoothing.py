"""Draws of paths near the laws: against closed forms, importance sampling, and charged scenes that run free astray."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference import hidden_draws, hidden_smoothing
from pyro_nri.inference.hidden_draws import draw_paths
from pyro_nri.inference.hidden_rough import hopeful
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.inference.hidden_smoothing import best_paths, climb, improve, normal_equations
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model.hidden_motion import MOST_UNEXPLAINED, HiddenMotion
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parents[2] / "data" / "models"


def hide(whole, num_observed):
    return Scenes.from_arrays(
        whole.trajectory[:, :, :num_observed], time_step=whole.time_step, scene_names=whole.scene_names
    )


def line_motion(noise, num_frames, scale):
    """Two recorded springs on a line and a hidden one that pulls on both."""
    spec = ModelSpec(2, state_names=("x", "vx"), dynamics="pair-forces", noise=noise)
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    laws = model.dynamics.laws
    laws.low.fill_(math.log(1e-5))  # closer than it ever gets: entities pass through one another
    laws.high.fill_(math.log(20.0))
    points = laws.points()
    index, weight = laws.basis(points)
    basis = torch.zeros(len(points), laws.splines.shape[1]).double().scatter_add(1, index, weight.double())
    values = torch.stack([0 * points, -0.4 * points**2], -1).double()
    laws.set_splines(torch.linalg.lstsq(basis, values).solution.T)
    model.dynamics.num_substeps = 2
    model.dynamics.time_step.fill_(0.1)
    model.noise.change_scale.fill_(1.0)
    model.noise.log_relative_scale.data.fill_(math.log(scale))
    matrix = torch.zeros(3, 3, dtype=torch.long)
    matrix[2, 0] = matrix[2, 1] = matrix[0, 2] = 1
    state = torch.tensor([[[0.0, 0.2], [1.5, -0.3], [0.8, 0.5]]], dtype=torch.float64)
    frames = [state]
    for _ in range(num_frames - 1):
        frames.append(model.dynamics.step(frames[-1], edges.from_matrix(matrix)[None]).detach())
    recorded = torch.stack(frames, 1)[:, :, :2]
    scenes = Scenes.from_arrays(recorded, time_step=0.1, state_names=("x", "vx"))
    motion = HiddenMotion(model, scenes, 1, edges.from_matrix(matrix)[None])
    return motion, scenes, (torch.stack(frames, 1)[:, :, 2:] - motion.offset) / motion.scale


def test_draws_of_linear_motion_have_the_moments_of_the_normal_distribution():
    motion, scenes, _ = line_motion("normal", 6, 0.05)
    with torch.no_grad():
        zero = torch.zeros(1, 6, 1, 2, dtype=torch.float64)
        mode, _ = climb(motion, zero, num_steps=6)
        # All numbers of the path at once, by the Hessian of the log density itself.
        precision = -torch.func.hessian(lambda x: motion.log_density(x.view(1, 6, 1, 2))[0])(mode.flatten())
        drawn = draw_paths(motion, mode, Stream(0, keys(scenes.scene_names), 50), num_draws=40)
    covariance = torch.linalg.inv(precision)
    sd = covariance.diagonal().sqrt()
    value = drawn.path.flatten(0, 1).flatten(1)  # [2000, 12]
    assert drawn.accepted.double().mean() > 0.95
    assert ((value.mean(0) - mode.flatten()).abs() < 4.5 * sd / math.sqrt(2000)).all()
    torch.testing.assert_close(value.std(0), sd, rtol=4.5 / math.sqrt(4000), atol=0)
    correlation = torch.corrcoef(value.T)
    exact = covariance / sd / sd[:, None]
    assert ((correlation - exact).abs() < 4.5 * (1 - exact.square() + 0.02) / math.sqrt(2000)).all()


def test_stretches_of_linear_motion_are_always_accepted_and_leave_the_rest():
    motion, _, true = line_motion("normal", 20, 0.05)
    with torch.no_grad():
        near = motion.linearise(true)
        weight = torch.ones_like(near.unit).expand(7, *near.unit.shape)
        normal = hidden_draws._Normal(near.path, *normal_equations(near, near.unit * weight))
        path = true + 0.1 * torch.randn(7, *true.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        now = hidden_draws._Now(path, *motion.residual(path))
        for step in range(6):
            stretch = hidden_draws._stretches(20, step)
            assert 5 < stretch.sum() < 15
            assert not (stretch[1:] & stretch[:-1].any(-1, keepdim=True) & ~stretch[:-1]).any()  # none beside another
            white = torch.randn(7, 1, 40, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            # The table of the law interpolates: residuals are linear to 4e-4 scales of the noise, densities to 0.02.
            unlucky = torch.full((7, 1, stretch.shape[1]), 0.98, dtype=torch.float64)
            after, accepted = hidden_draws._moved(motion, normal, now, stretch, weight, white, unlucky)
            assert accepted.all()
            same = (after.path == now.path).all(-1).all(-1)
            assert torch.equal(same, ~stretch.any(-1).expand(same.shape))
            torch.testing.assert_close(after.residual, motion.residual(after.path)[0])
            now = after


@pytest.mark.parametrize("moves", ["whole paths and stretches", "stretches alone"])
def test_draws_under_robust_noise_agree_with_importance_sampling(moves, monkeypatch):
    if moves == "stretches alone":
        exact = hidden_draws._moved

        def never_whole(motion, normal, now, stretch, weight, white, uniform):
            return exact(motion, normal, now, stretch, weight, white, torch.inf * uniform if stretch.all() else uniform)

        monkeypatch.setattr(hidden_draws, "_moved", never_whole)
        monkeypatch.setattr(hidden_draws, "STRETCH_FRAMES", 1)
        monkeypatch.setattr(hidden_draws, "SHIFT", 1)
    motion, scenes, _ = line_motion("student_t", 2, 0.3)
    with torch.no_grad():
        mode, _ = climb(motion, torch.zeros(1, 2, 1, 2, dtype=torch.float64), num_steps=20)
        drawn = draw_paths(motion, mode, Stream(0, keys(scenes.scene_names), 200), num_draws=40)
        assert drawn.whole.any() == (moves != "stretches alone")
        generator = torch.Generator().manual_seed(0)
        many = 400_000
        # The first frame from its prior, the second from Student-t noise about its prediction.
        first = torch.randn(many, 1, 1, 1, 2, generator=generator, dtype=torch.float64)
        predicted = motion.frames(0, 1).predict(first)[0][..., 2:, :]
        spread = torch._standard_gamma(torch.full_like(predicted, 2.0), generator=generator) / 2
        noise = torch.randn(predicted.shape, generator=generator, dtype=torch.float64) / spread.sqrt()
        second = predicted + 0.3 * noise
        path = torch.cat([first, second], -3)  # [many, 1, 2, 1, 2]
        residual, context = motion.residual(path)
        seen = motion.noise(torch.zeros_like(residual), context).log_prob(residual)[..., :2].sum((-1, -2))[:, 0]
    weight = seen.softmax(0)
    value, exact = drawn.path.flatten(0, 1).flatten(1), path.flatten(1)
    effective = 1 / float(weight.square().sum())
    mean = weight @ exact
    variance = weight @ (exact - mean).square()
    error = (variance * (1 / effective + 1 / 2000)).sqrt()
    assert ((value.mean(0) - mean).abs() < 4.5 * error).all()
    tail = ((exact - mean).abs() > 1.5 * variance.sqrt()).double()
    share = weight @ tail
    found = ((value - mean).abs() > 1.5 * variance.sqrt()).double().mean(0)
    assert ((found - share).abs() < 4.5 * (share * (1 / effective + 1 / 2000)).sqrt()).all()


def test_a_frame_that_went_wrong_is_mended_and_good_ones_stay():
    motion, _, true = line_motion("student_t", 12, 1e-4)
    with torch.no_grad():
        good, density = climb(motion, true, num_steps=10)
        bad = good.clone()
        bad[:, 0] += 0.3
        before = motion.log_density(bad)
        mended, after = improve(motion, bad)
        same, stays = improve(motion, good)
    assert float(before) < float(density) - 10
    torch.testing.assert_close(mended, good, atol=1e-2, rtol=0)
    assert float(after) > float(density) - 0.1
    torch.testing.assert_close(same, good, atol=1e-2, rtol=0)
    assert float(stays) >= float(density)


def test_a_path_that_breaks_twice_is_made_whole():
    motion, _, true = line_motion("student_t", 16, 1e-4)
    with torch.no_grad():
        good, density = climb(motion, true, num_steps=10)
        broken = good.clone()
        broken[:, 5:11] += 0.5
        stretches = hidden_smoothing._stretches(motion, broken)
        mended, after = improve(motion, broken)
    assert stretches == [(5, 11), (0, 5), (11, 16)]
    torch.testing.assert_close(mended, good, atol=1e-2, rtol=0)
    assert float(after) > float(density) - 0.1


def test_a_path_that_nothing_mends_stays_as_it_is(monkeypatch):
    motion, _, true = line_motion("student_t", 6, 1e-4)
    monkeypatch.setattr(hidden_smoothing, "BREAK", 0.0)  # every frame is a stretch of its own, each is tried once
    monkeypatch.setattr(hidden_smoothing, "NUM_STRETCHES", 100)
    with torch.no_grad():
        good, density = climb(motion, true, num_steps=10)
        same, stays = improve(motion, good)
    torch.testing.assert_close(same, good, atol=1e-2, rtol=0)
    assert float(stays) >= float(density)


def test_a_path_is_followed_from_a_good_stretch_to_both_ends():
    motion, _, true = line_motion("student_t", 14, 1e-4)
    with torch.no_grad():
        good, _ = climb(motion, true, num_steps=10)
        lost = torch.full_like(good, 3.0)
        lost[:, 5:10] = good[:, 5:10]
        followed = hidden_smoothing._followed(motion, lost[:, 5:10], 5)
    torch.testing.assert_close(followed, good, atol=1e-2, rtol=0)


@pytest.mark.slow
def test_charged_paths_that_break_are_made_whole(charged):
    checkpoint = load_model(MODELS / "charged5.pt")
    known = torch.as_tensor(checkpoint.alignment).argsort()[charged.edge_type]
    motion = HiddenMotion(checkpoint.model, hide(charged, 4), 1, known)
    with torch.no_grad():
        true = (charged.trajectory[:, :, 4:].double() - motion.offset) / motion.scale
        good, density = climb(motion, true, num_steps=16)
        broken = good.clone()
        broken[:, 4:9, ..., :2] += 0.1
        stays = climb(motion, broken, num_steps=16)[1]
        mended, after = improve(motion, broken)
    assert float(stays) < float(density) - 100  # the negative control: small steps stay where they are
    assert float(after) > float(density) - 1
    torch.testing.assert_close(mended, good, atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def charged():
    """A charge that meets others closely, and one that is taken away."""
    whole = simulate("charged", 40, num_entities=5, seed=500, num_frames=14)
    position = whole.trajectory[..., :2]
    closest = (position[:, :, 4:] - position[:, :, :4]).norm(dim=-1).amin((1, 2))
    return whole[(closest > 0.15) & (closest < 0.3)][:1]


@pytest.mark.slow
def test_intervals_of_charged_paths_hold_the_truth_after_close_encounters(charged):
    checkpoint = load_model(MODELS / "charged5.pt")
    known = torch.as_tensor(checkpoint.alignment).argsort()[charged.edge_type]
    drawn = infer_hidden(
        checkpoint.model, hide(charged, 4), 1, structure=known, num_chains=2, num_draws=40, num_warmup=20, seed=0
    )
    path = torch.as_tensor(drawn.hidden.path)[:, :, 0]  # [R, B, T, D]
    true = charged.trajectory[:, :, 4].double()
    error = ((path.mean(0) - true) / checkpoint.model.score_scale).square().mean((1, 2))
    low, high = path.quantile(0.05, 0), path.quantile(0.95, 0)
    inside = ((low <= true) & (true <= high)).double().mean((1, 2))
    assert error.max() < 1e-6
    assert inside.mean() > 0.6
    torch.testing.assert_close(
        torch.as_tensor(drawn.hidden.state)[..., 0, :].mean((0, 1)), true[:, 0], atol=1e-3, rtol=0
    )
    # A path is held for one draw or several; where it is held nothing was proposed, and it stays the same.
    state = drawn.hidden.state[:, :, :, 0]
    changed = (np.diff(state, axis=1) != 0).any(-1)
    assert drawn.proposed[:, 0].all()
    assert (drawn.proposed[:, 1:] | ~changed).all()
    assert (drawn.proposed | ~drawn.accepted).all()
    # Under edges that are not those of the data the same path is out of the question.
    wrong = known.clone()
    wrong[:, -1] = 1 - wrong[:, -1]
    recorded = hide(charged, 4)
    motions = [HiddenMotion(checkpoint.model, recorded, 1, each) for each in (known, wrong)]
    at = (true[:, :, None] - motions[0].offset) / motions[0].scale
    with torch.no_grad():
        right, other = (climb(motion, at, num_steps=8)[1] for motion in motions)
    assert (right > other + 100).all()


def test_draws_of_a_scene_do_not_depend_on_others():
    motion, _, true = line_motion("student_t", 4, 0.1)
    with torch.no_grad():
        every = motion[torch.zeros(2, dtype=torch.long)]
        stream = Stream(0, keys(["one", "other"]), 3)
        both = draw_paths(every, true.expand(2, -1, -1, -1), stream, num_draws=3)
        alone = draw_paths(motion, true, Stream(0, keys(["other"]), 3), num_draws=3)
    torch.testing.assert_close(both.path[:, :, 1:], alone.path)
    assert (both.path[:, :, 0] != both.path[:, :, 1]).any()


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_numbers_of_hidden_charges_are_told_apart(number):
    checkpoint = load_model(MODELS / "charged5.pt")
    whole = simulate("charged", 1, num_entities=4 + number, seed=40 + number, num_frames=7)
    drawn = infer_hidden(checkpoint.model, hide(whole, 4), "auto", num_chains=2, num_draws=10, seed=0)
    hidden = drawn.hidden
    assert hidden.num_hidden.tolist() == [number]
    assert hidden.probability[number, 0] > 0.99
    assert np.isfinite(hidden.log_marginal).all()
    assert np.isfinite(drawn.log_marginal_error).all()
    assert hidden.unexplained[number, 0] < 3 < MOST_UNEXPLAINED
    assert (hidden.unexplained[:number] > 2 * MOST_UNEXPLAINED).all()
    # Fewer hidden ones leave hundreds of nats unexplained.
    assert (hidden.log_marginal[:number] < hidden.log_marginal[number] - 100).all()


def test_numbers_that_explain_less_are_given_up():
    """A number whose path breaks stays, unless another one explains the frames and is ahead."""
    few, many = MOST_UNEXPLAINED / 2, 4 * MOST_UNEXPLAINED
    evidence = torch.tensor([[0.0, 0.0, 5.0, -5.0], [-90.0, -90.0, 0.0, 0.0]])
    unexplained = torch.tensor([[few, many, many, many], [many, many, few, few]])
    kept = [[True, True, True, False], [False, True, True, True]]
    assert hopeful(evidence, unexplained).tolist() == kept
    both = torch.full((2, 4), few)
    assert hopeful(evidence, both).all()
    assert hopeful(torch.full((1, 2), -torch.inf), torch.full((1, 2), torch.inf)).all()


def test_what_a_path_leaves_unexplained_is_nothing_for_exact_motion():
    motion, _, true = line_motion("student_t", 8, 0.1)
    with torch.no_grad():
        torch.testing.assert_close(motion.unexplained(true), torch.zeros(1, dtype=torch.float64))
        broken = true.clone()
        broken[:, 4] += 1.0
        residual, _ = motion.residual(broken)
        noise = torch.distributions.StudentT(4.0, 0.0, motion.noise.scale.double())
        lost = noise.log_prob(torch.zeros(2, dtype=torch.float64)) - noise.log_prob(residual)
        torch.testing.assert_close(motion.unexplained(broken), lost.sum((1, 2, 3)) / (7 * 3))


@pytest.mark.parametrize("frame", [0, 5, 9])
def test_paths_are_followed_from_any_frame(frame):
    motion, _, true = line_motion("student_t", 12, 1e-3)
    near = true[:, frame] + 0.01 * torch.tensor([1.0, -1.0])
    start = torch.cat([near, near + 2.0, near - 2.0])
    with torch.no_grad():
        path, row = best_paths(motion[torch.zeros(3, dtype=torch.long)], start, 1, frame)
        wanted, density = climb(motion, true, num_steps=20)
        assert motion.log_density(path) > density - 1e-3
    torch.testing.assert_close(path, wanted, rtol=0, atol=1e-3)
    assert row.shape == (1,)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_draws_are_calibrated(share):
    """Simulation-based calibration (Talts and others 2018): hidden starts from the prior, noise in every frame.

    A control that takes noise for smaller than it is fails.
    """
    num_rows, num_frames, scale = 300, 6, 0.1
    one, _, _ = line_motion("student_t", num_frames, scale)
    motion = one[torch.zeros(num_rows, dtype=torch.long)]
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(num_rows, 1, 2, generator=generator, dtype=torch.float64)  # scaled units
    state = torch.cat([motion.recorded[:, 0], hidden * motion.scale + motion.offset], -2)
    states = [state]
    with torch.no_grad():
        for _ in range(num_frames - 1):
            here = motion.frames(0, 1)
            here.recorded = state[:, None, :2]
            state = here.predict(((state[:, 2:] - motion.offset) / motion.scale)[:, None])[0][:, 0]
            spread = torch._standard_gamma(torch.full_like(state, 2.0), generator=generator) / 2
            state = state + scale * torch.randn(state.shape, generator=generator, dtype=torch.float64) / spread.sqrt()
            states.append(state)
        motion.recorded = torch.stack(states, 1)[:, :, :2]
        true = (torch.stack(states, 1)[:, :, 2:] - motion.offset) / motion.scale
        believed = motion if share == 1.0 else motion.widened(share)
        mode, _ = climb(believed, torch.zeros_like(true), num_steps=20)
        stream = Stream(0, keys([str(row) for row in range(num_rows)]), 4)
        drawn = draw_paths(believed, mode, stream, num_draws=25).path.flatten(0, 1)  # [100, R, ...]
    rank = (drawn < true).sum(0)  # 0 to 100
    counts = [
        np.bincount((rank[:, frame, 0, d] * 10 // 101).numpy(), minlength=10) for frame in (0, 3, 5) for d in (0, 1)
    ]
    worst = min(stats.chisquare(each).pvalue for each in counts)
    assert worst > 1e-3 / len(counts) if share == 1.0 else worst < 1e-6
