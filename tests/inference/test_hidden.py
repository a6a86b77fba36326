"""Hidden entities: posterior against a grid, recovery without any hidden path, their number, sharding, bad input."""

import copy
import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.inference.draws import RecordedDraws
from pyro_nri.inference.hidden import HiddenTarget, sample, search
from pyro_nri.inference.hidden_edges import make_rest
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parents[2] / "data" / "models"


@pytest.fixture(scope="module")
def springs():
    return load_model(MODELS / "springs5.pt").model


def line_model(stiffness, noise):
    """Springs on a line, with normal noise of known size."""
    spec = ModelSpec(2, state_names=("x", "vx"), dynamics="pair-forces", noise="normal")
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    laws = model.dynamics.laws
    laws.low.fill_(math.log(0.02))
    laws.high.fill_(math.log(20.0))
    points = laws.points()
    index, weight = laws.basis(points)
    basis = torch.zeros(len(points), laws.splines.shape[1]).double().scatter_add(1, index, weight.double())
    values = torch.stack([0 * points, -stiffness * points**2], -1).double()
    laws.set_splines(torch.linalg.lstsq(basis, values).solution.T)
    model.dynamics.time_step.fill_(0.1)
    model.impulse_noise.change_scale.fill_(1.0)
    model.impulse_noise.log_relative_scale.data.fill_(math.log(noise))
    model.prior.type_logits.data.copy_(torch.tensor([0.4, 0.0]))
    return model


def line_scene(model, num_frames=13):
    """Two recorded particles and one hidden on a line."""
    state = torch.tensor([[[0.0, 0.2], [1.5, -0.3], [0.8, 0.5]]], dtype=torch.float64)
    matrix = torch.zeros(3, 3, dtype=torch.long)
    matrix[2, 0] = matrix[2, 1] = matrix[0, 2] = 1
    frames = [state]
    for _ in range(num_frames - 1):
        frames.append(model.dynamics.step(frames[-1], edges.from_matrix(matrix)[None]))
    trajectory = torch.stack(frames, 1)[:, :, :2]
    return Scenes.from_arrays(trajectory, time_step=0.1, state_names=("x", "vx"))


def test_posterior_and_log_marginal_are_those_of_a_grid():
    model = line_model(0.4, noise=0.05)
    scenes = line_scene(model)
    prior = model.prior(torch.ones(1, 6, dtype=torch.bool))
    rest = make_rest(prior, 2)
    with torch.no_grad():
        target = HiddenTarget(HiddenLikelihood(model, scenes, 1), rest)
        coarse = HiddenTarget(target.likelihood.searched(), rest)
        stream = Stream(0, keys(scenes.scene_names), 4)
        found = search(coarse, target, stream.one())
        drawn = sample(target, found, stream, num_draws=1500, num_warmup=100)
        axis = torch.linspace(-4.5, 4.5, 181, dtype=torch.float64)
        state = torch.cartesian_prod(axis, axis)[:, None, None]  # [Q, 1, 1, 2]
        densities = []
        for code in itertools.product(range(2), repeat=2):
            into = torch.tensor(code).view(1, 1, 1, 2).expand(len(state), 1, 1, 2)
            densities.append(target.log_density(state, into)[:, 0])
        density = torch.stack(densities)  # [4, Q]
    log_marginal = density.flatten().logsumexp(0) + 2 * math.log(float(axis[1] - axis[0]))
    error = float(drawn.integral.log_error)
    assert error < 0.1
    assert abs(float(drawn.integral.log_value - log_marginal)) < 4 * error + 0.01
    weight = (density - density.flatten().logsumexp(0)).exp()
    mean = torch.einsum("kq,qd->d", weight, state[:, 0, 0])
    sd = (torch.einsum("kq,qd->d", weight, state[:, 0, 0].square()) - mean**2).sqrt()
    effective = min(float(drawn.integral.effective), 3000) / 2
    found_mean = drawn.hidden_state[:, :, 0, 0].mean((0, 1))
    assert ((found_mean - mean).abs() < 4.5 * sd / math.sqrt(effective)).all()
    assert sd.min() > 0.02  # a posterior with a width, not a point
    pull = weight.view(2, 2, -1).sum(-1)  # types of 0 -> hidden, 1 -> hidden
    matrix = edges.to_matrix(drawn.edge_type[:, :, 0])
    for sender, exact in ((0, pull[1].sum()), (1, pull[:, 1].sum())):
        share = (matrix[..., sender, 2] == 1).double().mean()
        assert abs(float(share - exact)) < 4.5 * math.sqrt(float(exact * (1 - exact)) / effective) + 0.01


def hide(whole, num_observed):
    return Scenes.from_arrays(
        whole.trajectory[:, :, :num_observed], time_step=whole.time_step, scene_names=whole.scene_names
    )


@pytest.fixture(scope="module")
def whole():
    simulated = simulate("springs", 12, num_entities=6, seed=31, num_frames=30)
    pulls = edges.to_matrix(simulated.edge_type)[:, 5, :5].sum(-1)
    return simulated[pulls >= 2][:3]


@pytest.fixture(scope="module")
def found(springs, whole):
    return infer_hidden(springs, hide(whole, 5), 1, num_chains=2, num_draws=60, num_warmup=40, seed=0)


def test_path_and_all_edges_are_found_without_a_hidden_path(springs, whole, found):
    scale = springs.score_scale
    path = torch.as_tensor(found.hidden.path).mean(0)[:, 0]
    error = ((path - whole.trajectory[:, :, 5]) / scale).square().mean((1, 2))
    assert (error < 1e-6).all()
    alignment = torch.tensor(load_model(MODELS / "springs5.pt").alignment)
    types = alignment[torch.as_tensor(found.edge_type).long()].double().mean((0, 1)).round().long()
    assert torch.equal(types, whole.edge_type)
    assert found.log_marginal.shape == (3,)
    assert (found.hidden.num_hidden == 1).all()


def test_results_do_not_depend_on_other_scenes(springs, whole, found):
    alone = infer_hidden(springs, hide(whole[1:2], 5), 1, num_chains=2, num_draws=60, num_warmup=40, seed=0)
    assert (alone.edge_type == found.edge_type[:, :, 1:2]).all()
    assert abs(alone.hidden.state - found.hidden.state[:, :, 1:2]).max() < 1e-9


def test_number_of_hidden_entities(springs, whole):
    nothing = simulate("springs", 2, num_entities=4, seed=32, num_frames=20)
    one = hide(simulate("springs", 8, num_entities=5, seed=33, num_frames=20), 4)
    pulls = edges.to_matrix(simulate("springs", 8, num_entities=5, seed=33).edge_type)[:, 4, :4].sum(-1)
    one = one[pulls >= 2][:1]
    options = {"num_chains": 1, "num_draws": 40, "num_warmup": 20, "seed": 0}
    without = infer_hidden(springs, hide(nothing, 4), "auto", **options)
    assert without.hidden.num_hidden.tolist() == [0, 0]
    assert (without.hidden.probability[0] > 0.9).all()
    assert (without.hidden.unexplained < 3).all()  # one more changes nothing
    several = infer_hidden(springs, one, "auto", **options)
    assert several.hidden.num_hidden.tolist() == [1]
    assert several.hidden.probability[1, 0] > 0.9
    assert several.hidden.unexplained[0, 0] > 20
    assert several.hidden.unexplained[1, 0] < 3


def test_a_law_around_zero_is_no_evidence(springs, whole):
    """One more entity that pulls on nothing costs the prior of not pulling, whatever errors its law has."""
    off = copy.deepcopy(springs)
    table = off.dynamics.laws.fitted_table
    table[0] = 1e-6 * table[1].abs().max() * torch.linspace(0, 1, table.shape[1]) ** 4
    nothing = hide(simulate("springs", 1, num_entities=4, seed=32, num_frames=20), 4)
    drawn = infer_hidden(off, nothing, "auto", num_chains=1, num_draws=40, num_warmup=20, seed=0)
    lost = drawn.hidden.log_marginal[0, 0] - drawn.hidden.log_marginal[1, 0]
    # Four edges that do not pull; one that pulls hardly adds to that.
    assert abs(lost - 4 * math.log(2)) < 0.2 + 4 * drawn.hidden.log_marginal_error[1, 0]


@pytest.mark.parametrize("number", [0, 1, "auto"])
def test_every_recorded_state_is_needed(springs, whole, number):
    scenes = hide(whole[:1], 5)
    seen = scenes.observation_mask.clone()
    seen[0, 3, 2] = False
    with pytest.raises(ValueError, match=r"the others in every frame, scene '.*' lacks a state at frame 3"):
        infer_hidden(springs, dataclasses.replace(scenes, observation_mask=seen), number, seed=0)


def test_oscillators_have_no_number_of_hidden_ones_but_none():
    scenes = simulate("kuramoto", 1, num_entities=3, num_frames=6, seed=0)
    model = build_model(ModelSpec(2, state_names=scenes.state_names, dynamics="pair-forces"), torch.Generator())
    model.dynamics.time_step.fill_(scenes.time_step)
    drawn = infer_hidden(model, scenes, 0, num_chains=1, num_draws=4, seed=0)
    assert np.isnan(drawn.hidden.unexplained).all()


def test_known_structures_are_kept(springs, whole):
    given = whole.edge_type[:1]
    drawn = infer_hidden(springs, hide(whole[:1], 5), 1, structure=given, num_draws=30, num_warmup=20, seed=0)
    assert (torch.as_tensor(drawn.edge_type).long() == given).all()
    path = torch.as_tensor(drawn.hidden.path).mean(0)[:, 0]
    assert ((path - whole.trajectory[:1, :, 5]) / springs.score_scale).square().mean() < 1e-6


def test_a_wrong_law_explains_less(springs, whole):
    wrong = copy.deepcopy(springs)
    wrong.dynamics.laws.fitted_table.mul_(1.1)
    options = {"num_chains": 1, "num_draws": 20, "num_warmup": 10, "seed": 0}
    right = infer_hidden(springs, hide(whole[:1], 5), 1, **options)
    other = infer_hidden(wrong, hide(whole[:1], 5), 1, **options)
    assert other.log_marginal[0] < right.log_marginal[0] - 1000


def test_a_run_goes_on_where_it_was_interrupted(springs, whole, found):
    options = {"num_chains": 2, "num_draws": 60, "num_warmup": 40, "seed": 0}
    part = infer_hidden(springs, hide(whole[:2], 5), 1, **options)
    seen = []
    both = infer_hidden(springs, hide(whole, 5), 1, resume=part, on_chunk=seen.append, **options)
    assert (both.edge_type == found.edge_type).all()
    assert both.complete
    assert len(seen) == 1
    with pytest.raises(ValueError, match="its seed is 0, this run has 1"):
        infer_hidden(springs, hide(whole, 5), 1, resume=part, **options | {"seed": 1})
    with pytest.raises(ValueError, match="without hidden entities"):
        infer_hidden(springs, hide(whole, 5), 1, resume=dataclasses.replace(part, hidden=None), **options)
    noisy = dataclasses.replace(part, recorded=RecordedDraws(np.zeros((2, 60, 2, 5, 4)), np.full(4, 0.1)))
    with pytest.raises(ValueError, match="took the recorded states for noisy"):
        infer_hidden(springs, hide(whole, 5), 1, resume=noisy, **options)


def test_bad_input_is_named(springs, whole):
    scenes = hide(whole, 5)
    options = {"seed": 0}
    with pytest.raises(ValueError, match="num_hidden must be 0, 1, 2 or 'auto', found 3"):
        infer_hidden(springs, scenes, 3, **options)
    with pytest.raises(ValueError, match="at least 5 frames, found 4"):
        infer_hidden(springs, scenes.frames(0, 4), 1, **options)
    with pytest.raises(ValueError, match="num_draws must be at least 1, found 0"):
        infer_hidden(springs, scenes, 1, num_draws=0, **options)
    with pytest.raises(ValueError, match="cannot be 'auto'"):
        infer_hidden(springs, scenes, "auto", structure=whole.edge_type, **options)
    with pytest.raises(ValueError, match="num_hidden is 0: there is nothing left to infer"):
        infer_hidden(springs, scenes, 0, structure=whole.edge_type[:, :20], **options)
    with pytest.raises(ValueError, match=r"structure must be long \[3, 30\]"):
        infer_hidden(springs, scenes, 1, structure=whole.edge_type[:, :20], **options)
    with pytest.raises(ValueError, match="must not share structures"):
        infer_hidden(springs, scenes.share_structure("all"), 1, **options)
    with pytest.raises(ValueError, match="other dynamics"):
        infer_hidden(build_model(ModelSpec(2), torch.Generator().manual_seed(0)), scenes, 1, **options)
    crowd = simulate("springs", 1, num_entities=13, num_frames=6, seed=0)
    with pytest.raises(ValueError, match="8192 codes"):
        infer_hidden(springs, crowd, 1, **options)
