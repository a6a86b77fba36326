"""Held-out scores of a linear system that is computed by hand, and what may not be asked."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.inference.heldout import distinct, held_out_score, split_frames
from pyro_nri.inference.run import infer
from pyro_nri.model.noise import NormalNoise
from pyro_nri.model.priors import IndependentPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

SCALE = 0.3 * (1 + 1e-6)  # with the floor of all scales


class Pulls(AbstractDynamics):
    """One number each; an edge of type k moves its receiver by ``stiffness[k]`` of the way to its sender."""

    state_size = 1
    num_entity_kinds = 1

    def __init__(self, stiffness):
        super().__init__()
        self.stiffness = torch.tensor(stiffness, dtype=torch.double)
        self.num_edge_types = len(stiffness)

    def fit_scaling(self, scenes):
        pass

    def messages(self, state, structure=None):
        num_entities = state.shape[-2]
        sender, receiver = edges.senders(num_entities), edges.receivers(num_entities)
        apart = state[..., sender, :] - state[..., receiver, :]
        if structure is None:
            return apart[..., None, :] * self.stiffness[:, None]
        return apart * self.stiffness[structure][..., None]

    def update(self, state, summed, entity_kind=None):
        return state + summed


def toy(stiffness=(0.0, 0.5), weights=None, scale=0.3):
    model = SceneModel(Pulls(stiffness), NormalNoise(1), IndependentPrior(len(stiffness)), state_names=("s0",)).double()
    with torch.no_grad():
        model.noise.change_scale.fill_(scale)
        if weights is not None:
            model.prior.type_logits.copy_(torch.tensor(weights, dtype=torch.double).log())
    return model


def walks(num_scenes=4, num_frames=7, num_entities=2, seed=0, groups=None):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_scenes, num_frames, num_entities, 1, generator=generator, dtype=torch.double)
    return Scenes.from_arrays(0.5 * steps.cumsum(1), structure_group=groups)


def log_density(frames, types, stiffness=(0.0, 0.5), scale=SCALE):
    """Frames 1 to T - 1 given frame 0, of two entities in plain arithmetic; ``types`` of edges 0 → 1 and 1 → 0."""
    frames, total = np.asarray(frames)[..., 0], 0.0
    for now, then in itertools.pairwise(frames):
        mean = [
            now[0] + stiffness[types[1]] * (now[1] - now[0]),
            now[1] + stiffness[types[0]] * (now[0] - now[1]),
        ]
        total += sum(
            -0.5 * ((x - m) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
            for x, m in zip(then, mean, strict=True)
        )
    return total


def test_score_of_given_draws_by_hand():
    """The draws are those of ``infer`` on the early frames; their mean density of the late ones is made in NumPy."""
    model, scenes = toy(), walks()
    found = held_out_score(model, scenes, num_search_frames=4, num_draws=5, seed=3)
    draws = infer(model, scenes.frames(0, 4), num_chains=5, num_draws=1, seed=3).edge_type[:, 0]
    for g in range(4):
        late = scenes.trajectory[g, 3:].numpy()
        density = [np.exp(log_density(late, draws[c, g])) for c in range(5)]
        assert found[g] == pytest.approx(np.log(np.mean(density)), abs=1e-9)


@pytest.mark.statistical
def test_score_is_the_posterior_predictive_density():
    """With many draws: all four structures, weighted by their posterior given the early frames."""
    weights = [0.7, 0.3]
    model, scenes = toy(weights=weights), walks(num_frames=5)
    num_draws = 4000
    found = held_out_score(model, scenes, num_search_frames=3, num_draws=num_draws, seed=0)
    for g in range(4):
        early, late = scenes.trajectory[g, :3].numpy(), scenes.trajectory[g, 2:].numpy()
        structures = list(itertools.product(range(2), repeat=2))
        posterior = np.array([np.exp(log_density(early, z)) * weights[z[0]] * weights[z[1]] for z in structures])
        posterior /= posterior.sum()
        density = np.array([np.exp(log_density(late, z)) for z in structures])
        mean = posterior @ density
        error = np.sqrt(posterior @ (density - mean) ** 2 / num_draws)
        assert abs(np.exp(found[g]) - mean) < 4 * error + 1e-12


@pytest.mark.statistical
def test_forecast_integrates_to_one_whatever_the_draws_are():
    """The last frame on a grid: a forecast that is sure of wrong structures is a density all the same."""
    model = toy(weights=[0.1, 0.9])
    grid = np.linspace(-4, 4, 41)
    last = np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2)
    early = np.array([[0.0, 1.0], [0.1, 0.8], [-0.2, 0.9]])
    frames = np.concatenate([np.broadcast_to(early, (len(last), 3, 2)), last[:, None]], axis=1)
    scores = held_out_score(model, Scenes.from_arrays(frames[..., None]), num_search_frames=3, num_draws=200, seed=0)
    assert np.exp(scores).sum() * (grid[1] - grid[0]) ** 2 == pytest.approx(1, abs=0.03)


def test_groups_are_scored_together():
    scenes = walks(6, groups=["a", "b", "a", "c", "b", "a"])
    model = toy()
    found = held_out_score(model, scenes, num_search_frames=4, num_draws=3, seed=1)
    draws = infer(model, scenes.frames(0, 4), num_chains=3, num_draws=1, seed=1).edge_type[:, 0]
    members = {0: [0, 2, 5], 1: [1, 4], 2: [3]}
    for g, rows in members.items():
        late = [sum(log_density(scenes.trajectory[b, 3:], draws[c, g]) for b in rows) for c in range(3)]
        assert found[g] == pytest.approx(np.log(np.mean(np.exp(late))), abs=1e-8)


@pytest.mark.statistical
def test_a_copied_type_changes_nothing():
    """K = 3 whose types 1 and 2 are one law with half the weight each foretells as K = 2 does."""
    scenes, num_draws = walks(20), 500
    two = held_out_score(toy(), scenes, num_draws=num_draws, seed=0)
    three = held_out_score(toy((0.0, 0.5, 0.5), [0.5, 0.25, 0.25]), scenes, num_draws=num_draws, seed=0)
    difference = three - two
    assert abs(difference.sum()) < 4 * np.sqrt(len(scenes)) * difference.std(ddof=1)
    assert np.abs(difference).max() < 0.3


def test_the_composite_likelihood_is_refused_in_words():
    scenes = simulate("springs", 2, num_entities=3, num_frames=6, seed=0)
    model = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    assert np.isfinite(held_out_score(model, scenes, seed=0)).all()
    for kind in ("impulse", "auto"):
        with pytest.raises(ValueError, match=r"a held-out score needs a density .* no noises, boundaries, dynamics or"):
            held_out_score(model, scenes, kind=kind, seed=0)
    with pytest.raises(ValueError, match="this model has other dynamics"):
        held_out_score(toy(), walks(), kind="impulse", seed=0)


def test_frames_are_split():
    scenes = walks(num_frames=7)
    early, late = split_frames(scenes)
    assert (early.num_frames, late.num_frames) == (4, 4)
    torch.testing.assert_close(early.trajectory[:, -1], late.trajectory[:, 0])
    for number in (1, 7, 0):
        with pytest.raises(ValueError, match=f"at least 2 and at most 6, found {number}"):
            held_out_score(toy(), scenes, num_search_frames=number, seed=0)
    with pytest.raises(ValueError, match="num_draws must be at least 1, found 0"):
        held_out_score(toy(), scenes, num_draws=0, seed=0)


def test_a_broken_forecast_is_said():
    class Breaks(Pulls):
        def update(self, state, summed, entity_kind=None):
            return torch.where(state > 100, torch.nan, state + summed)

    model, scenes = toy(), walks()
    model.dynamics = Breaks((0.0, 0.5)).double()
    scenes.trajectory[2, 5] = 1000.0
    with pytest.raises(ValueError, match="the forward density of scene '2' is not a number"):
        held_out_score(model, scenes, seed=0)


def test_distinct():
    draws = np.array([[[0, 1], [1, 1]], [[0, 0], [1, 1]], [[0, 0], [1, 1]]], dtype=np.int8)
    structure, count = distinct(draws)
    assert count.tolist() == [[2, 3], [1, 0]]
    assert structure[:, 0].tolist() == [[0, 0], [0, 1]]
    assert structure[0, 1].tolist() == [1, 1]
