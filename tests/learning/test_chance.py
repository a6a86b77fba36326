"""What is explained by chance: shares and curves against known mixtures; scenes put together or in disorder."""

from dataclasses import replace

import pytest
import torch

from pyro_nri.learning import chance
from pyro_nri.learning.chance import (
    among_strangers,
    chance_curve,
    explanations,
    fit_chance,
    in_another_order,
    share_of_chance,
    shrink_type_weights,
)
from pyro_nri.learning.laws import fit_laws
from pyro_nri.model.impulse_power import believed_table, explained
from pyro_nri.model.priors import IndependentPrior
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.simulate import simulate


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def springs():
    scenes = simulate("springs", 12, num_entities=4, num_frames=30, seed=0)
    model = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, seed=0)
    return model, scenes


# --- strangers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shift", [1, 2, 4])
def test_all_entities_come_from_different_scenes(springs, shift):
    _, scenes = springs
    number = torch.arange(7)[:, None].expand(-1, 4)
    mask = scenes.observation_mask[:7].clone()
    mask[2, 5, 1] = False
    marked = replace(
        scenes[:7], trajectory=number[:, None, :, None] + 0.0 * scenes.trajectory[:7], observation_mask=mask
    )
    moved = among_strangers(marked, shift)
    source = moved.trajectory[:, 0, :, 0]
    assert all(len(set(row)) == 4 for row in source.tolist())
    for n in range(4):
        assert source[:, n].tolist() == [(b + n * shift) % 7 for b in range(7)]
    assert (~moved.observation_mask).nonzero().tolist() == [[(2 - shift) % 7, 5, 1]]
    assert moved.edge_type is None
    assert moved.structure_group == moved.scene_names


def test_frames_change_places_together(springs):
    _, scenes = springs
    mask = scenes.observation_mask.clone()
    mask[3, 7, 1] = False
    number = torch.arange(30.0, dtype=torch.float64)[:, None, None] + 100 * torch.arange(4)[:, None]
    marked = replace(scenes, trajectory=number + 0 * scenes.trajectory, observation_mask=mask)
    moved = in_another_order(marked, torch.Generator().manual_seed(0))
    frame = moved.trajectory[:, :, 0, 0]
    assert all(sorted(row) == list(range(30)) for row in frame.tolist())
    assert len({tuple(row) for row in frame.tolist()}) == 12
    torch.testing.assert_close(moved.trajectory[:, :, 3, 2], frame + 300)
    scene, place, entity = (~moved.observation_mask).nonzero()[0].tolist()
    assert (scene, entity, float(frame[scene, place])) == (3, 1, 7.0)


# --- share and curve -------------------------------------------------------------------------------------------------
def studies(share, difference, num_studies=300, num_receivers=200):
    """Shares found where that share of receivers is like strangers and the others are explained better."""
    found = []
    for seed in range(num_studies):
        own, others = normal(seed, 7, num_receivers).split([1, 6])
        difficulty = 5 * normal(num_studies + seed, num_receivers)  # of a receiver's path, whoever is there
        own[0, int(share * num_receivers) :] += difference
        found.append(share_of_chance(own[0] + difficulty, others + difficulty))
    return torch.stack(found)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_the_share_of_a_known_mixture(share):
    """Though paths differ in difficulty; a little low, being the smaller of two."""
    found = studies(share, 20.0)
    error = 3 * float(found.std()) / len(found) ** 0.5 + 1e-9
    assert share * 0.8 - error < found.mean() < share + error


def test_if_all_are_like_strangers_the_share_is_near_one():
    """A fifth of 200 receivers, weighted by spreads: standard error 0.2, cut off at 1."""
    found = studies(1.0, 0.0)
    assert (found <= 1).all()
    assert found.median() > 0.9


def test_receivers_on_whom_nobody_acts_do_not_count():
    """Own explanations and others agree but for rounding: which is the poorest says nothing."""
    own, others = normal(0, 7, 200).split([1, 6])
    own, others = own[0], others
    own[50:] += 20
    own[:50], others[:, :50] = 1e-9 * own[:50], 1e-9 * others[:, :50]
    assert share_of_chance(own, others) < 1e-12


def test_the_curve_is_the_ratio_of_two_normal_densities():
    """Own N(2, 1), strangers N(0, 1): log ratio 2 - 2 x."""
    own, others = 2 + normal(0, 4000), normal(1, 6, 4000)
    _, intercept, slope = chance_curve(own, others)
    assert float(slope) == pytest.approx(-2, abs=0.15)
    assert float(intercept) == pytest.approx(2, abs=0.15)
    _, intercept, slope = chance_curve(own, others + 100)  # strangers explain better: the ratio does not rise
    assert -1e-2 < float(slope) <= 0


def test_chance_mixes_a_receiver_with_ignorance():
    """Probability s exp(a + b x) of equal codes, x the mean likelihood a frame; by NumPy-free arithmetic."""
    table = 3 * normal(0, 2, 3, 8)
    covariates = torch.zeros(2, 3, 5, dtype=torch.float64)
    covariates[..., 0], covariates[..., 2] = 1, torch.tensor(10 / 48).log()
    curve = torch.tensor([0.4, 0.1, -0.5], dtype=torch.float64)
    zero = torch.zeros(5, dtype=torch.float64)
    found = believed_table(table, covariates, zero, zero[0], chance=curve).softmax(-1)
    each = table.exp().mean(-1).log() / 10
    torch.testing.assert_close(explained(table, covariates), each)
    probability = (0.4 * (0.1 - 0.5 * each).exp())[..., None]
    torch.testing.assert_close(found, (1 - probability) * table.softmax(-1) + probability / 8)
    none = believed_table(table, covariates, zero, zero[0], chance=zero[:3])
    assert torch.equal(none, believed_table(table, covariates, zero, zero[0]))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_edges_that_mean_nothing_do_not_tell_how_frequent_types_are(share):
    learned, fixed = IndependentPrior(3), IndependentPrior(3, learn_weights=False)
    weights = torch.tensor([0.7, 0.2, 0.1])
    for prior in (learned, fixed):
        prior.type_logits.data.copy_(weights.log() + 2)  # whatever the sum of the logits
        shrink_type_weights(prior, share)
    expected = (1 - share) * weights + share / 3
    assert torch.allclose(learned.type_logits.softmax(-1), expected, atol=1e-6)
    assert torch.allclose(fixed.type_logits, weights.log() + 2)


# --- of a model ------------------------------------------------------------------------------------------------------
def test_scenes_that_interact_and_scenes_put_together(springs):
    """Under the true laws no receiver is like strangers; in a set half of which is put together, half are."""
    model, scenes = springs
    assert max(fit_chance(model, scenes, seed=0).values()) < 0.02
    assert float(model.impulse_power.chance[0]) < 0.02
    apart = among_strangers(scenes, 5)
    both = replace(
        scenes[[*range(12), *range(12)]],
        trajectory=torch.cat([scenes.trajectory, apart.trajectory]),
        scene_names=tuple(map(str, range(24))),
        structure_group=tuple(map(str, range(24))),
    )
    found = fit_chance(model, both, seed=0)
    assert found["order"] < 0.02
    share, intercept, slope = model.impulse_power.chance.tolist()
    assert 0.25 < share < 0.75
    probability = (share * (intercept + slope * explanations(model, both)).exp()).clamp(max=1)
    linked = scenes.edge_type.bool()
    acted_on = torch.zeros(12, 4, dtype=torch.bool)
    for scene, edge in linked.nonzero().tolist():
        acted_on[scene, [(s, r) for s in range(4) for r in range(4) if r != s][edge][1]] = True
    assert probability[:12][acted_on].mean() < 0.25  # one stranger in eight is explained: no sender acts on it
    assert probability[12:][explanations(model, both)[12:] < 0].mean() > 0.8
    model.impulse_power.chance.zero_()


def test_frames_in_disorder(springs):
    """Nothing moves from one frame to the next: another order would do as well.

    All receivers of a scene are explained well or poorly together: a share from 12 scenes has a standard error of 0.3.
    """
    model, scenes = springs
    shares = []
    for seed in range(8):
        disorder = in_another_order(scenes, torch.Generator().manual_seed(seed))
        found = fit_chance(model, disorder, seed=seed)
        assert float(model.impulse_power.chance[0]) == pytest.approx(max(found.values()))
        assert fit_chance(model, disorder, seed=seed) == found
        shares.append(found["order"])
    assert sum(shares) / 8 > 0.5
    model.impulse_power.chance.zero_()


def test_what_cannot_be_asked(springs, monkeypatch):
    model, scenes = springs
    for part in (scenes[:3], scenes[:1]):
        assert set(fit_chance(model, part, seed=0)) == {"order"}
    assert set(fit_chance(model, scenes.frames(0, 2), seed=0)) == {"strangers"}
    assert fit_chance(model, scenes[:1].frames(0, 2), seed=0) == {}
    monkeypatch.setattr(chance, "MAX_CODES", 4)
    model.impulse_power.chance.fill_(0.5)
    assert fit_chance(model, scenes, seed=0) == {}
    assert model.impulse_power.chance.tolist() == [0, 0, 0]


def test_phases_are_not_put_in_another_order():
    """A velocity of phases follows from the phases of its own frame: in any order, and it means something."""
    scenes = simulate("kuramoto", 8, num_entities=3, num_frames=20, seed=0)
    model = build_model(ModelSpec(2, scenes.state_names, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, seed=0)
    disorder = in_another_order(scenes, torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, others = explanations(model, scenes), explanations(model, disorder)
    assert float((others.median() - own.median()).abs()) < 0.2 * float(own.median().abs())
    found = fit_chance(model, scenes, seed=0)
    assert set(found) == {"strangers"}
    assert found["strangers"] < 0.1


def test_receivers_without_sender_or_frame_are_left_out(springs):
    model, scenes = springs
    observed = scenes.observation_mask.clone()
    observed[0] = False  # paths need everyone: no frame counts
    observed[1, :, 3] = False
    exists = scenes.entity_mask.clone()
    exists[1, 3] = False
    part = replace(scenes, observation_mask=observed, entity_mask=exists)
    assert explanations(model, part).isnan().nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [0, 3], [1, 3]]
    fit_chance(model, part, seed=0)
    assert model.impulse_power.chance.isfinite().all()
    model.impulse_power.chance.zero_()
