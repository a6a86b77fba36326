"""The encoder: any number of frames and entities, permutations, missing frames, groups; alone and with couplings."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference.encoder import Encoder, learned_q, log_q
from pyro_nri.scenes import edges
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


# --- couplings -------------------------------------------------------------------------------------------------------
@pytest.fixture
def make_coupled(make_encoder):
    def make(num_types=2):
        """All weights random."""
        encoder = make_encoder(num_types)
        encoder.add_coupling(rank=3, generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in encoder.coupling.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        return encoder

    return make


def log_probs(joint, num_types):
    """Of all types of each receiver's edges, ``[R, G, N]``."""
    num_senders = joint.event_shape[0]
    every = torch.tensor(list(itertools.product(range(num_types), repeat=num_senders)))
    return joint.log_prob(every[:, None, None].expand(-1, *joint.batch_shape, -1))


@pytest.mark.parametrize(("num_frames", "num_entities"), [(2, 2), (3, 5), (40, 3)])
def test_joint_distributions_for_any_number_of_frames_and_entities(make_coupled, make_scenes, num_frames, num_entities):
    scenes = make_scenes(num_scenes=4, num_entities=num_entities, num_frames=num_frames)
    edge, joint = make_coupled(3).incoming(scenes)
    assert edge.batch_shape == (4, num_entities * (num_entities - 1))
    assert (joint.batch_shape, joint.event_shape) == ((4, num_entities), (num_entities - 1,))
    total = log_probs(joint, 3).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_fresh_couplings_change_nothing(make_encoder, make_scenes):
    encoder, scenes = make_encoder(), make_scenes()
    before = encoder(scenes).logits
    encoder.add_coupling(generator=torch.Generator().manual_seed(0))
    assert torch.equal(encoder(scenes).logits, before)
    _, joint = encoder.incoming(scenes)
    assert not joint.coupling.any()
    assert encoder.rank == 8


def test_joint_distributions_do_not_see_other_scenes_or_padding(make_coupled, make_scenes):
    small, encoder = make_scenes(num_scenes=3, num_entities=3), make_coupled()
    _, alone = encoder.incoming(small)
    assert alone.coupling.abs().max() > 0.1
    for b in range(3):
        one = encoder.incoming(small[b])[1]
        torch.testing.assert_close(log_probs(one, 2)[:, 0], log_probs(alone, 2)[:, b], rtol=1e-9, atol=1e-9)
    large = Scenes.from_arrays(make_scenes(num_scenes=1, num_entities=5).trajectory, scene_names=["large"])
    _, padded = encoder.incoming(concatenate([small, large]))
    every = torch.tensor(list(itertools.product(range(2), repeat=2)))
    with_zeros = torch.nn.functional.pad(every, (0, 2))[:, None, None]
    found = padded[:3, :3].log_prob(with_zeros.expand(-1, 3, 3, -1))
    torch.testing.assert_close(found, log_probs(alone, 2), rtol=1e-9, atol=1e-9)
    beyond = torch.nn.functional.pad(every, (0, 2), value=1)[:, None, None].expand(-1, 3, 3, -1)
    assert (padded[:3, :3].log_prob(beyond) == -torch.inf).all()


def test_groups_sum_bases_and_couplings(make_coupled, make_scenes):
    """Two recordings of one system: logits given the types drawn before add up."""
    encoder, scenes = make_coupled(), make_scenes(num_scenes=3, groups=["b", "a", "b"])
    edge_q, joint = learned_q(encoder, scenes)
    torch.testing.assert_close(edge_q, log_q(encoder, scenes))
    assert (joint.batch_shape, joint.base.dtype) == ((2, 3), torch.double)
    assert not joint.base.requires_grad
    embedding = encoder._embedding(scenes)[:, edges.incoming_edges(3)]
    order = joint.order[[0, 1, 0]]
    _, each = encoder.coupling(embedding, order, torch.ones(3, 3, 2, dtype=torch.bool))
    second = order.argsort(-1)[..., None, :] < order.argsort(-1)[..., :, None]
    each = each * second[..., :, None, :, None]
    torch.testing.assert_close(joint.coupling[0], (each[0] + each[2]).detach())
    torch.testing.assert_close(joint.coupling[1], each[1].detach())


def test_the_best_known_sender_is_drawn_first(make_coupled, make_scenes):
    encoder, scenes = make_coupled(), make_scenes(num_entities=4)
    edge, joint = encoder.incoming(scenes)
    known = edge.probs.amax(-1)[:, edges.incoming_edges(4)].gather(-1, joint.order)
    assert (known.diff(dim=-1) <= 1e-12).all()


def test_tied_joint_distributions_use_both_directions(make_coupled, make_scenes):
    scenes, encoder = make_scenes(num_entities=4), make_coupled()
    with torch.no_grad():
        encoder.coupling.shift.weights[-1].zero_()
        encoder.coupling.shift.biases[-1].zero_()
    edge, joint = encoder.incoming(scenes, tied=True)
    both = edge.logits + edge.logits[:, edges.reverse_edges(4)]
    torch.testing.assert_close(joint.base.log_softmax(-1), (both / 2).log_softmax(-1)[:, edges.incoming_edges(4)])


def test_every_weight_of_couplings_learns(make_coupled, make_scenes):
    encoder = make_coupled()
    _, joint = encoder.incoming(make_scenes())
    joint.log_prob(torch.ones(3, 3, 2, dtype=torch.long)).sum().backward()
    for name, parameter in encoder.coupling.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_couplings_are_asked_for_in_words(make_encoder, make_scenes):
    encoder, generator = make_encoder(), torch.Generator()
    assert encoder.rank is None
    assert learned_q(encoder, make_scenes())[1] is None
    with pytest.raises(ValueError, match="no couplings yet; distil it"):
        encoder.incoming(make_scenes())
    with pytest.raises(ValueError, match="rank must be at least 1, found 0"):
        encoder.add_coupling(0, generator=generator)
    encoder.add_coupling(generator=generator)
    with pytest.raises(ValueError, match="has couplings already"):
        encoder.add_coupling(generator=generator)


def test_weights_come_from_the_generator():
    before = torch.get_rng_state()
    one, same, other = (Encoder(2, 2, generator=torch.Generator().manual_seed(s)).state_dict() for s in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(torch.get_rng_state(), before)
