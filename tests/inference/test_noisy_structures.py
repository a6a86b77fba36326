"""Structures and noise of the noisy program against linear algebra."""

import itertools

import pytest
import torch
from scipy import stats

from pyro_nri.inference.noisy_chains import fit_noise
from pyro_nri.inference.noisy_structures import infer_structures
from pyro_nri.model.measurement import MeasurementNoise
from pyro_nri.model.priors import make_prior
from pyro_nri.scenes import edges
from tests.inference.test_noisy_chains import LINKED, drawn, springs_model

SCALE = 0.3


def hidden_links():
    """The four structures in which the third, hidden entity is linked to neither, one or both of two that are not."""
    matrices = torch.zeros(4, 3, 3, dtype=torch.long)
    for place, (first, second) in enumerate(itertools.product((0, 1), repeat=2)):
        matrices[place, 0, 2] = matrices[place, 2, 0] = first
        matrices[place, 1, 2] = matrices[place, 2, 1] = second
    return edges.from_matrix(matrices)


def exact_log_marginal(model, scenes, structure):
    """Normal densities of the recordings, whose means are linear in standard normal latents: ``[B]``."""
    num_scenes = scenes.num_scenes
    basis = torch.eye(6).double()[:, None].expand(6, num_scenes, 6)
    with torch.no_grad():
        design = model.predict(scenes, structure.expand(num_scenes, -1), model.unpack(basis, 2)).flatten(2)
    variance = model.noise.scale.detach().square().expand(scenes.num_frames, 2, 2).flatten()
    found = []
    for b in range(num_scenes):
        covariance = design[:, b].T @ design[:, b] + torch.diag(variance)
        found.append(stats.multivariate_normal(cov=covariance).logpdf(scenes.trajectory[b].flatten()))
    return torch.tensor(found)


@pytest.mark.statistical
def test_structures_against_linear_algebra():
    model = springs_model(scale=(SCALE, SCALE))
    candidates = hidden_links()
    scenes, _ = drawn(model, 6, 6, candidates[[0, 1, 2, 3, 3, 1]], seed=0)
    found = infer_structures(
        model, scenes, candidates, seed=0, num_chains=40, num_draws=40, num_starts=1, num_importance=1500
    )
    exact = torch.stack([exact_log_marginal(model, scenes, structure) for structure in candidates])
    error = (found.log_marginal.log_value - exact).abs() / found.log_marginal.log_error
    assert float(error.max()) < 4
    probability = exact.softmax(0)  # the prior is the same for all
    assert float((found.probability - probability).abs().max()) < 0.05
    assert float(probability.max(0).values.min()) < 0.7  # some are in doubt
    frequency = torch.nn.functional.one_hot(found.candidate, 4).double().mean((0, 1)).T
    between = torch.nn.functional.one_hot(found.candidate, 4).double().mean(1).std(0).T / 40**0.5  # over chains
    assert float(((frequency - probability).abs() / between.clamp(min=0.005)).max()) < 4
    assert bool((found.rate > 0.1).all())


def test_known_structures_are_found():
    model = springs_model(scale=(0.01, 0.01))
    candidates = hidden_links()
    truth = torch.tensor([0, 1, 2, 3, 1])
    scenes, _ = drawn(model, 5, 9, candidates[truth], seed=1)
    found = infer_structures(model, scenes, candidates, seed=0, num_chains=2, num_draws=5, num_starts=1)
    assert torch.equal(found.probability.argmax(0), truth)
    assert bool((found.candidate == truth).all())
    assert found.value.shape == (2, 5, 5, 6)


@pytest.mark.statistical
def test_noise_is_learned():
    model = springs_model(scale=(0.05, 0.2))
    scenes, _ = drawn(model, 20, 8, LINKED.expand(20, -1), seed=0)
    learner = springs_model()
    learner.noise = MeasurementNoise(torch.tensor([1.0, 1.0]).double(), learn=True)
    fit_noise(learner, scenes, LINKED, seed=0)
    ratio = learner.noise.scale.detach() / torch.tensor([0.05, 0.2])
    assert float(ratio.log().abs().max()) < 4 / (2 * 20 * (16 - 3)) ** 0.5  # 16 numbers of a kind, 3 latents
    with pytest.raises(ValueError, match="learn=True"):
        fit_noise(model, scenes, LINKED, seed=0)


@pytest.mark.parametrize(
    ("candidates", "said"),
    [
        (torch.zeros(2, 5, dtype=torch.long), r"candidates must have shape \[J, 6\], found \[2, 5\]"),
        (torch.full((1, 6), 2), "candidates must hold types 0 to 1, found 2 to 2"),
        (torch.tensor([[0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]), "candidate 1 is impossible under the prior"),
    ],
)
def test_bad_input(candidates, said):
    model = springs_model()
    model.prior = make_prior("symmetric", 2)
    scenes, _ = drawn(model, 2, 5, LINKED.expand(2, -1), seed=0)
    with pytest.raises(ValueError, match=said):
        infer_structures(model, scenes, candidates, seed=0)
