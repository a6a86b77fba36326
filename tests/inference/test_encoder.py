"""The encoder: any number of frames and entities, permutations, missing frames, groups."""

import numpy as np
import pytest
import torch

from pyro_nri.inference.encoder import Encoder, log_q
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes


def ordered_pairs(num_entities):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


@pytest.mark.parametrize(("num_frames", "num_entities"), [(2, 2), (3, 5), (40, 3)])
@pytest.mark.parametrize("num_types", [2, 3])
def test_any_number_of_frames_and_entities(make_encoder, make_scenes, num_frames, num_entities, num_types):
    scenes = make_scenes(num_scenes=4, num_entities=num_entities, num_frames=num_frames)
    q = make_encoder(num_types)(scenes)
    assert q.batch_shape == (4, num_entities * (num_entities - 1))
    assert q.probs.shape[-1] == num_types
    assert q.logits.isfinite().all()
    assert q.probs.std() > 1e-3


def test_permutation_equivariance(make_encoder, make_scenes):
    scenes, encoder = make_scenes(num_entities=4), make_encoder(3)
    order = [2, 0, 3, 1]
    moved = Scenes.from_arrays(scenes.trajectory[:, :, order])
    before, after = encoder(scenes).logits, encoder(moved).logits
    pairs = ordered_pairs(4)
    renamed = [pairs.index((order[i], order[j])) for i, j in pairs]
    torch.testing.assert_close(after, before[:, renamed], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(before[:, renamed], before, atol=1e-3)  # edges do differ


def test_direction_matters(make_encoder, make_scenes):
    logits = make_encoder()(make_scenes(num_entities=2)).logits
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-4)


def test_scenes_do_not_see_each_other(make_encoder, make_scenes):
    scenes, encoder = make_scenes(num_scenes=5), make_encoder()
    together = encoder(scenes).logits
    for b in range(5):
        torch.testing.assert_close(encoder(scenes[b]).logits[0], together[b], rtol=1e-10, atol=1e-10)


def test_padding_changes_nothing(make_encoder, make_scenes):
    small, encoder = make_scenes(num_scenes=2, num_entities=3), make_encoder()
    large = Scenes.from_arrays(make_scenes(num_scenes=1, num_entities=5).trajectory, scene_names=["large"])
    padded = encoder(concatenate([small, large])).logits
    pairs = ordered_pairs(5)
    kept = [pairs.index(pair) for pair in ordered_pairs(3)]
    torch.testing.assert_close(padded[:2, kept], encoder(small).logits, rtol=1e-10, atol=1e-10)


def test_missing_frames_are_ignored(make_encoder, make_scenes):
    """Only transitions between complete frames count: cutting the others out changes nothing."""
    encoder, whole = make_encoder(), make_scenes(num_scenes=1, num_frames=9)
    seen = torch.ones(1, 9, 3, dtype=torch.bool)
    seen[0, 6:, 1] = False
    missing = Scenes.from_arrays(whole.trajectory, observation_mask=seen)
    torch.testing.assert_close(encoder(missing).logits, encoder(whole.frames(0, 6)).logits)
    nothing = Scenes.from_arrays(whole.trajectory, observation_mask=seen & False)
    assert encoder(nothing).logits.isfinite().all()


def test_groups_sum_evidence(make_encoder, make_scenes):
    encoder, scenes = make_encoder(3), make_scenes(num_scenes=4, groups=["b", "a", "b", "b"])
    found = log_q(encoder, scenes)
    assert found.shape == (2, 6, 3)
    assert found.dtype == torch.double
    each = encoder(scenes).probs.detach().numpy()
    product = each[0] * each[2] * each[3]
    np.testing.assert_allclose(found[0].exp(), product / product.sum(-1, keepdims=True), rtol=1e-9)
    np.testing.assert_allclose(found[1].exp(), each[1], rtol=1e-9)
    assert not found.requires_grad


def test_scaling_makes_units_irrelevant(make_scenes):
    scenes = make_scenes()
    other = Scenes.from_arrays(1000 * scenes.trajectory + torch.tensor([7.0, -3.0]))
    logits = []
    for each in (scenes, other):
        encoder = Encoder(2, 2, width=16, generator=torch.Generator().manual_seed(0)).double()
        encoder.fit_scaling(each)
        logits.append(encoder(each).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-8, atol=1e-8)


def test_every_weight_learns(make_encoder, make_scenes):
    encoder = make_encoder()
    encoder(make_scenes()).log_prob(torch.ones(3, 6, dtype=torch.long)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_scenes_in_another_dtype_are_taken(make_encoder, make_scenes):
    single, scenes = make_encoder().float(), make_scenes()
    assert single(scenes).logits.dtype == torch.float
    torch.testing.assert_close(single(scenes).probs.double(), make_encoder()(scenes).probs, atol=1e-4, rtol=1e-3)


def test_weights_come_from_the_generator():
    before = torch.get_rng_state()
    one, same, other = (Encoder(2, 2, generator=torch.Generator().manual_seed(s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)
