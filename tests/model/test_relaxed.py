"""Relaxed types against ridge regression by hand, and a decoder of receivers with many senders."""

import numpy as np
import pytest
import torch

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.inference import metropolis
from pyro_nri.inference.particle_gibbs import ParticleGibbs
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model import relaxed as relaxed_file
from pyro_nri.model.noise import NormalNoise
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.relaxed import pooled, relax
from pyro_nri.scenes import edges


def problem(num_types, *, num_scenes=2, num_frames=9, num_entities=3, noise=0.1, seed=0):
    """Impulses, features and the types that made the targets."""
    random = torch.Generator().manual_seed(seed)
    shape = (num_scenes, num_frames - 1, num_entities, num_entities - 1, num_types, 2)
    impulses = torch.randn(shape, generator=random, dtype=torch.double)
    types = torch.randint(num_types, (num_scenes, num_entities, num_entities - 1), generator=random)
    index = types[:, None, :, :, None, None].expand(*shape[:4], 1, 2)
    target = impulses.gather(-2, index).squeeze(-2).sum(-2)
    target = target + noise * torch.randn(target.shape, generator=random, dtype=torch.double)
    mask = torch.rand(shape[:3], generator=random) > 0.2
    return impulses, ImpulseFeatures(target, mask, torch.zeros(*shape[:3], 0), ()), types


def normal_noise(scale):
    noise = NormalNoise(2).double()
    with torch.no_grad():
        noise.change_scale.fill_(scale)
        noise.log_relative_scale.fill_(0.0)
    return noise


@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("groups", [[0, 1], [0, 0]])
def test_first_round_is_ridge_regression(monkeypatch, num_types, groups):
    """Least squares with the moments of a type drawn with equal probabilities as the prior, row by row."""
    monkeypatch.setattr(relaxed_file, "NUM_ROUNDS", 1)
    impulses, features, _ = problem(num_types)
    found = relax(impulses, features, normal_noise(0.1), torch.tensor(groups))
    share, num_free = 1 / num_types, num_types - 1
    prior = np.linalg.inv(np.diag([share] * num_free) - share**2)
    shifted = features.target - impulses[..., 0, :].sum(3)
    for group, receiver in ((0, 0), (0, 2)):
        rows, targets, weights = [], [], []
        for b in [scene for scene, each in enumerate(groups) if each == group]:
            variance = float(shifted[b, :, receiver][features.mask[b, :, receiver]].square().mean())
            for t in range(8):
                if features.mask[b, t, receiver]:
                    for axis in range(2):
                        base = impulses[b, t, receiver, :, 0, axis]
                        rows.append((impulses[b, t, receiver, :, 1:, axis] - base[:, None]).flatten().numpy())
                        targets.append(float(features.target[b, t, receiver, axis] - base.sum()))
                        weights.append(1 / variance)
        rows, targets, weights = np.array(rows), np.array(targets), np.array(weights)
        system = (rows.T * weights) @ rows + np.kron(np.eye(2), prior)
        right = (rows.T * weights) @ targets + np.kron(np.eye(2), prior) @ np.full(2 * num_free, share)
        np.testing.assert_allclose(found.mean[group, receiver].flatten(), np.linalg.solve(system, right), rtol=1e-8)
        np.testing.assert_allclose(
            found.precision[group, receiver].reshape(2 * num_free, -1), system, rtol=1e-8, atol=1e-8
        )


def test_pooling_single_scenes_puts_them_in_the_order_of_their_groups():
    impulses, features, _ = problem(2, num_scenes=4)
    parts = relax(impulses, features, normal_noise(0.1))
    for one, other in zip(pooled(parts, torch.tensor([2, 0, 3, 1])), parts, strict=True):
        assert torch.equal(one, other[[1, 3, 0, 2]])


def test_pooled_weights_are_those_of_all_rows(monkeypatch):
    """Where every row has the same weight, exactly."""
    monkeypatch.setattr(relaxed_file, "NUM_ROUNDS", 1)
    impulses, features, _ = problem(3)
    features.target.copy_(features.target * (features.target.square().mean((1, 3), keepdim=True)).rsqrt())
    features = ImpulseFeatures(features.target, features.mask | True, features.context, ())
    impulses[..., 0, :] = 0.0  # so that the first round weighs rows by targets alone
    together = relax(impulses, features, normal_noise(0.1), torch.tensor([0, 0]))
    found = pooled(relax(impulses, features, normal_noise(0.1)), torch.tensor([0, 0]))
    for one, other in zip(found, together, strict=True):
        torch.testing.assert_close(one, other)


def test_scenes_beside_it_do_not_change_a_scene():
    """Bit for bit: what is drawn along relaxed weights is the same however scenes are sharded."""
    impulses, features, _ = problem(2, num_scenes=3)
    features.target[1] *= 1e3
    together = relax(impulses, features, normal_noise(0.1))
    for b in range(3):
        own = ImpulseFeatures(*(each[b : b + 1] for each in (features.target, features.mask, features.context)), ())
        alone = relax(impulses[b : b + 1], own, normal_noise(0.1))
        for found, wanted in zip(alone, together, strict=True):
            assert torch.equal(found[0], wanted[b])


@pytest.mark.parametrize("num_types", [1, 2, 3])
def test_types_are_found_despite_wild_frames(num_types):
    impulses, features, types = problem(num_types, num_scenes=3, num_frames=40, noise=0.01)
    features.target[:, ::7] += 5  # a seventh of all frames is wrong
    found = relax(impulses, features, normal_noise(0.01))
    assert torch.equal(found.types(), types)


@pytest.mark.parametrize(("num_types", "num_entities"), [(2, 12), (3, 7)])
def test_what_only_a_joint_draw_finds(num_types, num_entities):
    """Slow motions that look alike: rounding the weights one by one goes wrong, drawing one after another does not."""
    impulses, features, types = problem(num_types, num_scenes=1, num_frames=31, num_entities=num_entities)
    random = torch.Generator().manual_seed(1)
    place, degree = torch.arange(30)[:, None] / 30, torch.arange(14)
    waves = 0.1**degree * torch.cos(torch.pi * degree * place)  # [T - 1, 14], higher ones ever smaller
    share = torch.randn(*impulses.shape[2:], 14, generator=random, dtype=torch.double)
    impulses = torch.einsum("td,neksd->tneks", waves.double(), share)[None]
    index = types[:, None, :, :, None, None].expand(*impulses.shape[:4], 1, 2)
    target = impulses.gather(-2, index).squeeze(-2).sum(-2)
    target = target + 1e-3 * torch.randn(target.shape, generator=random, dtype=torch.double)
    features = ImpulseFeatures(target, features.mask | True, features.context, ())
    found = relax(impulses, features, normal_noise(1e-3))
    rounded = (found.types() == types).double().mean()
    mask = torch.ones(1, edges.num_edges(num_entities), dtype=torch.bool)
    prior = make_prior("independent", num_types).double()(mask)

    class Quadratic(AbstractLikelihood):
        """Of impulses under normal noise."""

        num_edge_types, edge_mask, relaxed = prior.num_edge_types, mask, found

        def receiver_terms(self, structure, known=None):
            incoming = structure[:, 0, edges.incoming_edges(num_entities)]  # [C, N, N - 1]
            index = incoming[:, None, :, :, None, None].expand(-1, impulses.shape[1], -1, -1, 1, 2)
            summed = impulses.expand(len(structure), *impulses.shape[1:]).gather(-2, index).squeeze(-2).sum(-2)
            return -((target - summed) / 1e-3).square().sum((1, 3))[:, None] / 2

    likelihood = Quadratic()
    moves, score = ParticleGibbs(prior, likelihood), StructureTarget(likelihood, prior)
    state = metropolis.init({"edge_type": torch.zeros(4, 1, mask.shape[1], dtype=torch.long)}, score)
    for step in range(4):
        state, _ = metropolis.step(state, Stream(0, keys(["a"]), 4), step, proposal=moves, target=score)
    likeliest = state.latents["edge_type"][state.score.log_joint[:, 0].argmax(), 0]
    best = (likeliest[edges.incoming_edges(num_entities)] == types[0]).double().mean()
    assert rounded < 0.95
    assert best > rounded + 0.03
