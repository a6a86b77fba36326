"""The scan for hidden entities that everything feels: its structures, its blunt noise, and whether it finds charges."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from pyro_nri.inference import hidden_scan
from pyro_nri.inference.hidden_scan import feels_everything, scan, structures_of_labels
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

MODELS = Path(__file__).parents[2] / "data" / "models"


@pytest.fixture(scope="module")
def whole():
    return simulate("charged", 4, num_entities=6, num_frames=20, seed=77)


def likelihood_of(whole, num_hidden, system="charged"):
    recorded = Scenes.from_arrays(
        whole.trajectory[:, :, : whole.num_entities - num_hidden],
        time_step=whole.time_step,
        scene_names=whole.scene_names,
    )
    return HiddenLikelihood(load_model(MODELS / f"{system}5.pt").model, recorded, num_hidden)


def test_structures_of_labels_by_loops():
    found = {tuple(structure) for structure in structures_of_labels(4).tolist()}
    expected = set()
    for labels, alike in itertools.product(itertools.product((0, 1), repeat=4), (0, 1)):
        matrix = [[alike if labels[i] == labels[j] else 1 - alike for j in range(4)] for i in range(4)]
        expected.add(tuple(edges.from_matrix(torch.tensor(matrix)).tolist()))
    assert found == expected
    assert len(structures_of_labels(4)) == len(expected) == 16


def test_charges_are_felt_everywhere_and_springs_are_not(whole):
    assert feels_everything(likelihood_of(whole, 1))
    springs = simulate("springs", 1, num_entities=3, num_frames=8, seed=0)
    assert not feels_everything(likelihood_of(springs, 1, "springs"))


def test_blunted_noise_is_student_t_with_a_share_of_the_typical_impulse(whole):
    likelihood = likelihood_of(whole, 1)
    blunt = likelihood.blunted(0.3)
    size = torch.where(likelihood.mask[..., None], likelihood.target.abs(), torch.nan).flatten(1)
    scale = 0.3 * np.nanquantile(size.numpy(), 0.5, axis=1, method="lower")  # [B]
    residual = torch.randn(likelihood.target.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = blunt.log_prob(residual)
    for scene, receiver in itertools.product(range(4), range(5)):
        law = scipy.stats.multivariate_t(np.zeros(2), scale[scene] ** 2 * np.eye(2), df=4)
        each = law.logpdf(residual[scene, :, receiver].numpy())
        expected = each[likelihood.mask[scene, :, receiver].numpy()].sum()
        assert float(found[scene, receiver]) == pytest.approx(expected, rel=1e-9)
    moved = residual.clone().requires_grad_()
    blunt.noise(torch.zeros_like(moved), blunt.context).log_prob(moved).sum().backward()
    weight = torch.where(blunt.mask[..., None], -moved.grad / residual, torch.zeros_like(residual))
    torch.testing.assert_close(blunt.precision(residual), weight)
    assert likelihood.noise is not blunt.noise


@pytest.mark.parametrize("num_hidden", [1, 2])
def test_hidden_charges_are_found(whole, num_hidden):
    """Among the guesses is one close to the truth in most scenes; random draws are far from it."""
    likelihood = likelihood_of(whole, num_hidden)
    with torch.no_grad():
        state, into = scan(likelihood.searched(), Stream(0, keys(whole.scene_names), 1))
    assert state.shape[1:] == (4, num_hidden, 4)
    assert into.shape == (*state.shape[:3], 5)
    truth = (whole.trajectory[:, 0, -num_hidden:].double() - likelihood.offset) / likelihood.scale

    def nearest(guess):
        orders = itertools.permutations(range(num_hidden))
        each = [((guess[:, :, list(order), :2] - truth[..., :2]) ** 2).sum((-1, -2)) for order in orders]
        return torch.stack(each).amin((0, 1))

    assert int((nearest(state) < 0.01).sum()) >= 3
    random = torch.randn(state.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert int((nearest(random) < 0.01).sum()) <= 1


def test_a_scene_is_scanned_alike_beside_others(whole, monkeypatch):
    monkeypatch.setattr(hidden_scan, "NUM_DRAWS", 512)
    together = likelihood_of(whole, 1).searched()
    with torch.no_grad():
        state, into = scan(together, Stream(3, keys(whole.scene_names), 1))
        alone = whole[torch.tensor([2])]
        again, into_again = scan(likelihood_of(alone, 1).searched(), Stream(3, keys(alone.scene_names), 1))
    torch.testing.assert_close(again[:, 0], state[:, 2], rtol=1e-6, atol=1e-8)
    assert torch.equal(into_again[:, 0], into[:, 2])
