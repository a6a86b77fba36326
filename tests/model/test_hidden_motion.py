"""Density of the motion of hidden entities: frame by frame with the program's own step and noise."""

import math
from pathlib import Path

import pytest
import torch

from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model.hidden_motion import HiddenMotion
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODEL = Path(__file__).parents[2] / "data" / "models" / "charged5.pt"


@pytest.fixture(scope="module")
def case():
    checkpoint = load_model(MODEL)
    whole = simulate("charged", 2, num_entities=4, num_frames=6, seed=5)
    recorded = Scenes.from_arrays(whole.trajectory[:, :, :3], time_step=whole.time_step)
    structure = torch.randint(0, 2, whole.edge_type.shape, generator=torch.Generator().manual_seed(0))
    motion = HiddenMotion(checkpoint.model, recorded, 1, structure)
    path = (whole.trajectory[:, :, 3:].double() - motion.offset) / motion.scale
    return checkpoint.model, whole, motion, path


def test_density_is_the_program_s_for_every_frame_and_entity(case):
    model, whole, motion, path = case
    path = path + 1e-3 * torch.randn(path.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(path[:, 0]).sum((-1, -2))
    for frame in range(5):
        state, after = (
            torch.cat([whole.trajectory[:, t, :3].double(), path[:, t] * motion.scale + motion.offset], 1)
            for t in (frame, frame + 1)
        )
        with torch.no_grad():
            predicted = model.dynamics.step(state, motion.structure)
            context = model.geometry(state, torch.ones(1, edges.num_edges(4), dtype=torch.bool))
            expected = expected + model.noise(predicted, context).log_prob(after).sum(-1)
    with torch.no_grad():
        torch.testing.assert_close(motion.log_density(path), expected, rtol=1e-6, atol=1e-4)


def test_changes_of_a_path_move_residuals_by_the_jacobian(case):
    _, _, motion, path = case
    with torch.no_grad():
        near = motion.linearise(path)
        change = 1e-5 * torch.randn(path.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        moved, _ = motion.residual(path + change)
    expected = near.residual - torch.einsum("rtndp,rtp->rtnd", near.jacobian, change[:, :-1].flatten(-2))
    expected[:, :, 3:] += change[:, 1:] * motion.scale
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-8)


def test_time_runs_back_to_where_it_came_from(case):
    _, whole, motion, path = case
    true = motion.under(torch.as_tensor(load_model(MODEL).alignment).argsort()[whole.edge_type]).refined(5)
    turned = true.turned()
    with torch.no_grad():
        torch.testing.assert_close(turned.turned_path(turned.turned_path(path)), path)
        forth, _ = true.residual(path)
        back, _ = turned.residual(turned.turned_path(path))
    assert forth.abs().median() < 1e-6
    assert back.abs().median() < 1e-6  # of the same laws, so as small
    assert motion.under(1 - true.structure).residual(path)[0].abs().median() > 1e-4  # and not of other ones


def test_wide_noise_is_that_of_the_data_with_larger_scales_or_the_normal_distribution(case):
    _, _, motion, path = case
    with torch.no_grad():
        residual, context = motion.residual(path)
        scale = motion.unit_precision(residual, context).rsqrt()
        square = (residual / scale / 10).square().sum(-1)  # [R, T - 1, N + N_hidden]
        forgiving, strict = motion.widened(10.0), motion.widened(10.0, is_forgiving=False)
        normal = torch.distributions.Normal(0.0, 10 * scale).log_prob(residual) + math.log(2 * math.pi) / 2
        expected = normal.sum((-1, -2, -3)) + motion.log_start(path)
        torch.testing.assert_close(strict.log_density(path), expected, rtol=1e-4, atol=1e-3)
        # Student-t vectors of 4 degrees of freedom and 4 variables.
        log_norm = math.lgamma(4.0) - math.lgamma(2.0) - 2 * math.log(4 * math.pi)
        each = log_norm - (10 * scale).log().sum(-1) - 4 * torch.log1p(square / 4)
        expected = each.sum((-1, -2)) + motion.log_start(path)
        torch.testing.assert_close(forgiving.log_density(path), expected, rtol=1e-4, atol=1e-3)
        near = strict.linearise(path)
        torch.testing.assert_close(near.weight, near.unit)
    assert (forgiving.linearise(path).weight < near.unit * 2.0).all()
    assert motion.noise is not forgiving.noise


def test_states_behind_a_wall_are_those_before_it(case):
    _, _, motion, path = case
    behind = path.clone()
    wall = (motion.dynamics.high.double()[0] - motion.offset[0]) / motion.scale[0]
    behind[:, 2, 0, 0] = 2 * wall - path[:, 2, 0, 0]
    behind[:, 2, 0, 2] = (path[:, 2, 0, 2] * motion.scale[2] + motion.offset[2]).abs() / motion.scale[2]
    with torch.no_grad():
        moved = motion.inside(behind)
        assert (motion.inside(path) == path).all()
        torch.testing.assert_close(moved[:, 2, 0, 0], path[:, 2, 0, 0], rtol=0, atol=1e-9)
        assert (moved[:, 2, 0, 2] * motion.scale[2] + motion.offset[2] < 0).all()
        ahead, behind = (motion.predict(each)[0][:, 2] for each in (moved, behind))
        assert ((ahead[:, 3:] - behind[:, 3:]).abs() < 0.05).all()
    others = [t for t in range(6) if t != 2]
    assert (moved[:, others] == path[:, others]).all()
