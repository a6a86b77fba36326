"""Types of models are matched by what they say about edges."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.learning.checkpoint import new_checkpoint
from pyro_nri.learning.matching import match_models, match_types
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.simulate import simulate


def probabilities(num_edges, num_types, seed, sharpness=2.0):
    random = np.random.default_rng(seed)
    weight = np.exp(sharpness * random.normal(size=(num_edges, num_types)))
    return weight / weight.sum(-1, keepdims=True)


@pytest.mark.parametrize("num_types", [1, 2, 3, 4])
def test_permuted_copies_are_matched_back(num_types):
    first = probabilities(60, num_types, seed=num_types)
    orders = list(itertools.permutations(range(num_types)))
    # Type k of the copy is type order[k] of the first model.
    found = match_types(np.stack([first, *(first[:, order] for order in orders)]))
    assert found.labels == (tuple(range(num_types)), *orders)
    assert found.agreement == pytest.approx([1.0] * (1 + len(orders)))


def test_noisy_copies_are_matched_back_and_the_agreement_is_counted():
    first = probabilities(200, 3, seed=0, sharpness=3.0)
    other = 0.8 * first + 0.2 * probabilities(200, 3, seed=1)
    found = match_types(np.stack([first, other[:, [2, 0, 1]]]))
    assert found.labels == ((0, 1, 2), (2, 0, 1))
    share = (first.argmax(1) == other.argmax(1)).mean()
    assert 0.8 < share < 1
    assert found.agreement == pytest.approx([share, share])


def test_a_bad_first_model_does_not_set_the_others_apart():
    good = probabilities(100, 3, seed=0, sharpness=4.0)
    bad = np.full((100, 3), 1 / 3) + 1e-6 * probabilities(100, 3, seed=5)
    found = match_types(np.stack([bad, good, good[:, [1, 2, 0]], good[:, [2, 1, 0]]]))
    assert found.labels[0] == (0, 1, 2)
    one, two, three = (np.array(labels) for labels in found.labels[1:])
    assert (two == one[[1, 2, 0]]).all()
    assert (three == one[[2, 1, 0]]).all()


def test_no_interaction_stays_type_zero():
    first = probabilities(50, 3, seed=2)
    found = match_types(np.stack([first, first[:, [1, 2, 0]]]), keep_first=True)
    assert found.labels[1][0] == 0
    assert sorted(found.labels[1]) == [0, 1, 2]
    swapped = match_types(np.stack([first, first[:, [0, 2, 1]]]), keep_first=True)
    assert swapped.labels[1] == (0, 2, 1)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"probability must have shape \[M, R, K\], found \[4, 2\]"):
        match_types(np.ones((4, 2)))


@pytest.mark.parametrize("prior", ["independent", "symmetric"])
@pytest.mark.parametrize("dynamics", ["message-passing", "pair-forces"])
def test_models_with_permuted_modules(dynamics, prior):
    """The same modules under other numbers: posteriors agree, so types are found again, without any truth."""
    scenes = simulate("springs", 3, num_entities=3, num_frames=8, seed=1)
    scenes = scenes.share_structure(["a", "b", "b"])
    spec = ModelSpec(3, dynamics=dynamics, prior=prior)
    one, other = (new_checkpoint(spec, seed=0) for _ in range(2))
    for each in (one, other):
        each.model.fit_scaling(scenes)
        with torch.no_grad():
            each.model.prior.type_logits.copy_(torch.tensor([0.0, 0.3, -0.4]))
    order = [2, 0, 1]
    library = "laws.networks" if dynamics == "pair-forces" else "edge_modules"
    with torch.no_grad():
        for name, value in other.model.named_parameters():
            if library in name:
                value.copy_(value[order])
        other.model.prior.type_logits.copy_(other.model.prior.type_logits[order])
    found = match_models([one, other], scenes, seed=0)
    assert found.labels == ((0, 1, 2), tuple(order))
    assert found.agreement == pytest.approx([1.0, 1.0])
    assert match_models([one], scenes, seed=0) == (((0, 1, 2),), (1.0,))
