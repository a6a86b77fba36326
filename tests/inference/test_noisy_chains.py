"""Chains of the noisy program against a grid, against linear algebra, and by simulation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.gravity import Gravity
from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.inference.noisy_chains import infer_latents
from pyro_nri.inference.noisy_modes import default_starts, find_modes, first_guess, least_squares, mixture_around
from pyro_nri.model.measurement import MeasurementNoise, StateMeasurement
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.priors import make_prior
from pyro_nri.model.starts import AbstractStart, ScaledStart
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

STATE = ("x", "vx")


class Springs(AbstractDynamics):
    """Springs on a line; in scaled units the path is linear in the latents."""

    def __init__(self, stiffness=0.5):
        super().__init__()
        self.stiffness = stiffness
        self.num_edge_types, self.state_size, self.num_entity_kinds, self.num_substeps = 2, 2, 1, 2

    def fit_scaling(self, scenes):
        pass

    def messages(self, state, structure=None):
        n = state.shape[-2]
        pull = self.stiffness * (state[..., edges.senders(n), :1] - state[..., edges.receivers(n), :1])
        if structure is None:
            return torch.stack([torch.zeros_like(pull), pull], -2)
        return pull * (structure == 1)[..., None]

    def update(self, state, summed, entity_kind=None):
        velocity = state[..., 1:] + 0.25 * summed
        return torch.cat([state[..., :1] + 0.25 * velocity, velocity], -1)


def springs_model(num_hidden=1, scale=(0.05, 0.05)):
    scaling = Scaling(torch.zeros(2).double(), torch.tensor([1.0, 0.5]).double())
    return NoisyModel(
        Springs(),
        make_prior("independent", 2),
        ScaledStart(scaling, num_hidden=num_hidden),
        MeasurementNoise(torch.tensor(scale)),
        StateMeasurement(STATE),
    )


def drawn(model, num_scenes, num_frames, structure, seed):
    """Scenes and their latents from the program: two observed entities."""
    generator = torch.Generator().manual_seed(seed)
    size = model.num_latents(2)
    latents = torch.randn(num_scenes, size, generator=generator).double()
    blank = Scenes.from_arrays(torch.zeros(num_scenes, num_frames, 2, 2), state_names=STATE)
    with torch.no_grad():
        clean = model.predict(blank, structure, model.unpack(latents, 2))
    noise = torch.randn(clean.shape, generator=generator).double() * model.noise.scale
    return replace(blank, trajectory=clean + noise), latents


LINKED = torch.tensor([0, 1, 0, 1, 1, 1])  # the hidden one and either observed one pull each other


def test_log_marginal_and_moments_of_a_linear_program():
    model = springs_model()
    structure = LINKED.expand(5, -1)
    scenes, _ = drawn(model, 5, 9, structure, seed=0)
    found = infer_latents(
        model, scenes, structure, seed=0, num_chains=40, num_draws=20, num_warmup=10, num_importance=2000
    )
    with torch.no_grad():
        basis = torch.eye(6).double()[:, None].expand(6, 5, 6)
        design = model.predict(scenes, structure, model.unpack(basis, 2)).flatten(2)  # [6, B, T * N * M]
    variance = model.noise.scale.square().expand(9, 2, 2).flatten()
    draws = found.value.flatten(0, 1)
    for b in range(5):
        a, y = design[:, b].T, scenes.trajectory[b].flatten()
        covariance = a @ a.T + torch.diag(variance)
        exact = stats.multivariate_normal(torch.zeros(36), covariance.detach()).logpdf(y)
        assert abs(float(found.log_marginal.log_value[b]) - exact) < 4 * float(found.log_marginal.log_error[b])
        posterior = torch.linalg.inv(torch.eye(6) + a.T @ (a / variance[:, None])).detach()
        mean = posterior @ (a.T @ (y / variance))
        spread = posterior.diagonal().sqrt()
        standard = (draws[:, b].mean(0) - mean) / spread
        assert float(standard.abs().max()) < 0.2  # some 400 independent draws
        ratio = torch.cov(draws[:, b].T).diagonal() / spread.square()
        assert float(ratio.log().abs().max()) < 0.4
    assert float(found.log_marginal.log_error.max()) < 0.05
    assert bool((found.langevin_rate > 0.3).all())
    assert bool((found.independent_rate > 0.3).all())


class MassStart(AbstractStart):
    """A known planet moves by the pull of a known place whose log mass is the only latent."""

    num_hidden = 1

    def shapes(self, num_entities):
        return {"hidden_parameter": (1,)}

    def forward(self, latents):
        log_mass = latents["hidden_parameter"][..., 0]
        blank = torch.zeros_like(log_mass)
        planet = torch.stack([blank + 1, blank, blank, blank + 1, blank], -1)
        still = torch.stack([blank + 3, blank + 2, blank, blank, blank], -1)
        hidden = torch.stack([blank, blank, blank, blank, log_mass.exp()], -1)
        return torch.stack([planet, still, hidden], -2)


def mass_problem(scale=0.05):
    names = ("x", "y", "vx", "vy", "gm")
    model = NoisyModel(
        Gravity(names, time_step=0.5),
        make_prior("independent", 2),
        MassStart(),
        MeasurementNoise(torch.full((2,), scale)),
        StateMeasurement(names, ("x", "y")),
    )
    structure = torch.zeros(3, 3, dtype=torch.long)
    structure[2, 0] = 1  # the hidden mass pulls the planet
    structure = edges.from_matrix(structure)[None]
    blank = Scenes.from_arrays(torch.zeros(1, 4, 2, 2), state_names=("x", "y"))
    truth = torch.tensor([[0.4]]).double()
    clean = model.predict(blank, structure, model.unpack(truth, 2))
    noise = scale * torch.randn(clean.shape, generator=torch.Generator().manual_seed(3)).double()
    return model, replace(blank, trajectory=clean + noise), structure


@pytest.mark.statistical
@pytest.mark.parametrize("scale", [0.05, 1.0])
def test_one_number_against_a_grid(scale):
    """A strongly curved case where data say much, and where they say little."""
    model, scenes, structure = mass_problem(scale)
    grid = torch.linspace(-6, 6, 24001).double()
    problem = least_squares(model, scenes, structure)
    with torch.no_grad():
        log_density = torch.cat([problem.log_density(part[:, None]) for part in grid.split(6000)])
    exact = float(log_density.logsumexp(0) + math.log(12 / 24000))
    mass = (log_density - log_density.logsumexp(0)).exp().cumsum(0)
    starts = torch.tensor([-1.0, 0.0, 1.0]).double().reshape(3, 1, 1)
    found = infer_latents(
        model, scenes, structure, seed=1, num_chains=500, num_draws=1, num_warmup=6, num_importance=3000, starts=starts
    )
    assert abs(float(found.log_marginal.log_value) - exact) < 4 * float(found.log_marginal.log_error)
    assert float(found.log_marginal.log_error) < 0.05
    last = found.value[:, -1, 0, 0].contiguous()
    rank = mass[torch.searchsorted(grid, last).clamp(max=24000)]
    assert stats.kstest(rank, "uniform").pvalue > 1e-3
    # A wrong noise is found out.
    model.noise.log_scale += math.log(2)
    wrong = infer_latents(
        model, scenes, structure, seed=1, num_chains=500, num_draws=1, num_warmup=6, num_importance=9, starts=starts
    )
    rank = mass[torch.searchsorted(grid, wrong.value[:, -1, 0, 0].contiguous()).clamp(max=24000)]
    if scale < 0.1:
        assert stats.kstest(rank, "uniform").pvalue < 1e-4


@pytest.mark.statistical
def test_ranks_of_the_truth_are_uniform():
    """Simulation-based calibration (Talts and others 2018): truth from the prior, its rank among posterior draws."""
    model = springs_model()
    structure = LINKED.expand(250, -1)
    scenes, truth = drawn(model, 250, 6, structure, seed=2)

    def ranks(scale):
        judge = springs_model(scale=(scale, scale))
        found = infer_latents(
            judge, scenes, structure, seed=0, num_chains=19, num_draws=1, num_warmup=5, num_starts=2, num_importance=9
        )
        return (found.value[:, -1] < truth).sum(0)  # [B, P], 0 to 19

    calibrated = ranks(0.05)
    for p in range(truth.shape[1]):
        counts = np.bincount(calibrated[:, p], minlength=20).reshape(10, 2).sum(1)
        assert stats.chisquare(counts).pvalue > 1e-3 / truth.shape[1]
    boastful = ranks(0.02)[:, 4]  # the hidden entity's place, by a noise that is too small
    assert stats.chisquare(np.bincount(boastful, minlength=20).reshape(10, 2).sum(1)).pvalue < 1e-6


def test_draws_of_a_scene_do_not_depend_on_the_others():
    model = springs_model()
    structure = LINKED.expand(3, -1)
    scenes, _ = drawn(model, 3, 6, structure, seed=0)
    options = {"seed": 0, "num_chains": 2, "num_draws": 3, "num_warmup": 4, "num_starts": 3, "num_importance": 20}
    whole = infer_latents(model, scenes, structure, **options)
    part = infer_latents(model, scenes[[2]], structure[:1], **options)
    torch.testing.assert_close(part.value[:, :, 0], whole.value[:, :, 2])
    torch.testing.assert_close(part.log_marginal.log_value[0], whole.log_marginal.log_value[2])
    other = infer_latents(model, scenes[[2]], structure[:1], **{**options, "seed": 1})
    assert not torch.equal(other.value, part.value)


def test_starts_are_near_and_modes_are_modes():
    model = springs_model(scale=(0.01, 0.01))
    structure = LINKED.expand(4, -1)
    scenes, truth = drawn(model, 4, 12, structure, seed=1)
    guess = first_guess(scenes) / torch.tensor([1.0, 0.5])
    assert float((guess.flatten(1) - truth[:, :4]).abs().max()) < 0.2
    starts = default_starts(model, scenes, structure, 3, seed=0)
    assert starts.shape == (3, 4, 6)
    modes = find_modes(model, scenes, structure, starts)
    torch.testing.assert_close(modes.value[:, 0], modes.value[:, 2], atol=1e-6, rtol=0)
    problem = least_squares(model, scenes, structure)
    best = modes.value[:, 0].detach().requires_grad_()
    (slope,) = torch.autograd.grad(problem.log_density(best).sum(), best)
    assert float((slope[:, None] @ torch.linalg.solve(modes.precision[:, 0], slope[..., None])).max()) < 1e-6
    mixture = mixture_around(modes)
    assert mixture.centre.shape == (4, 3, 6)


def test_missing_frames_do_not_count():
    model = springs_model()
    scenes, _ = drawn(model, 2, 8, LINKED.expand(2, -1), seed=0)
    seen = scenes.observation_mask.clone()
    seen[:, 5:, 0] = False
    seen[1, :, 1] = False
    blind = replace(scenes, observation_mask=seen)
    changed = replace(blind, trajectory=torch.where(seen[..., None], scenes.trajectory, 99.0))
    value = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)).double()
    one, two = (least_squares(model, each, LINKED.expand(2, -1)) for each in (blind, changed))
    assert torch.equal(one.log_density(value), two.log_density(value))
    latents = {name: part[None] for name, part in model.unpack(value, 2).items()}
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(value).sum(-1)
    joint = model.log_likelihood(blind, LINKED.expand(1, 2, -1), latents)[0] + normal
    torch.testing.assert_close(one.log_density(value), joint)
    assert bool((first_guess(blind)[1, 1] == 0).all())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_chains": 0}, "num_chains must be at least 1"),
        ({"structure": torch.zeros(2, 5, dtype=torch.long)}, r"structure must have shape \[2, 6\], found \[2, 5\]"),
        ({"starts": torch.zeros(1, 2, 4)}, r"starts must have shape \[M, 2, 6\]"),
    ],
)
def test_bad_input(options, said):
    model = springs_model()
    scenes, _ = drawn(model, 2, 5, LINKED.expand(2, -1), seed=0)
    with pytest.raises(ValueError, match=said):
        infer_latents(model, scenes, **{"structure": LINKED, "seed": 0, **options})
