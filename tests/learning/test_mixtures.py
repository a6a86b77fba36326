"""The posterior of an ensemble is the mean of its models' posteriors, without those that saw the scene."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nri.inference.chains import Chains
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Ensemble, new_checkpoint
from pyro_nri.learning.mixtures import infer_ensemble, mix, relabel, trained_on, unseen
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import to_datatree, to_draws
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.simulate import simulate

SPEC = ModelSpec(3, noise="normal")
MCMC = {"method": "mcmc", "num_chains": 2, "num_draws": 6, "num_warmup": 4, "seed": 3}
EXACT = {"method": "exact", "num_chains": 2, "num_draws": 7, "seed": 3}


@pytest.fixture(scope="module")
def scenes():
    """Four recordings in three groups; the last has one entity more, so the others are padded."""
    small = simulate("springs", 3, num_entities=2, num_frames=6, seed=1)
    large = replace(simulate("springs", 1, num_entities=3, num_frames=6, seed=2), scene_names=("large",))
    both = concatenate([small, replace(large, structure_group=("large",))])
    return replace(both, edge_type=None).share_structure(["0", "shared", "shared", "large"])


@pytest.fixture(scope="module")
def members(scenes):
    found = []
    for seed in range(3):
        member = new_checkpoint(SPEC, encoder_width=8, seed=seed)
        member.model.fit_scaling(scenes)
        member.encoder.fit_scaling(scenes)
        found.append(member)
    return found


def with_training_scenes(members, names):
    return [replace(member, training_scenes=tuple(own)) for member, own in zip(members, names, strict=True)]


@pytest.mark.parametrize("options", [EXACT, MCMC], ids=["exact", "mcmc"])
def test_edge_probabilities_are_the_mean_over_relabelled_models(scenes, members, options):
    labels = [[0, 1, 2], [1, 2, 0], [2, 1, 0]]
    found = infer_ensemble(Ensemble(members, labels), scenes, **options)
    exists = scenes.edge_mask[scenes.group_first_scene].numpy()
    mean = np.zeros(found.edge_probability.shape)
    for member, own in zip(members, labels, strict=True):
        draws = infer(member.model, scenes, encoder=member.encoder, **options)
        for k, name in enumerate(own):
            mean[..., name] += draws.edge_probability[..., k] / 3
    np.testing.assert_allclose(found.edge_probability[exists], mean[exists], atol=1e-12)
    assert (found.edge_probability[~exists] == [1, 0, 0]).all()
    assert (found.edge_type[:, :, ~exists] == 0).all()
    assert found.log_marginal is None
    assert (found.warmup is not None) == (options["method"] == "mcmc")
    assert found.group_names == scenes.group_names


def test_the_prior_of_a_mixture_is_the_mean_and_receivers_are_not_kept(scenes, members):
    weights = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])
    own = [replace(member, model=copy.deepcopy(member.model)) for member in members[:2]]
    for member, weight in zip(own, weights, strict=True):
        member.model.prior.type_logits.data = torch.tensor(weight).log()
    labels = [[0, 1, 2], [1, 2, 0]]
    found = infer_ensemble(Ensemble(own, labels), scenes, **EXACT)
    moved = np.empty((2, 3))
    for each, weight, label in zip(moved, weights, labels, strict=True):
        each[label] = weight
    assert found.prior.name == "independent"
    assert found.prior.type_probability == pytest.approx(moved.mean(0))
    assert found.receiver_probability is None


def test_draws_come_from_the_models_in_equal_parts(scenes, members):
    where = [scenes, scenes[1:], scenes]
    options = {**EXACT, "num_draws": 30}
    parts = [infer(member.model, part, **options) for member, part in zip(members, where, strict=True)]
    parts = [replace(part, edge_type=np.full_like(part.edge_type, m)) for m, part in enumerate(parts)]
    every = np.arange(3)
    found = mix([(parts[0], every), (parts[1], every[1:]), (parts[2], every)], scenes.group_names, seed=0)
    assert (found.edge_type == found.edge_type[:1, :, :, :1]).all()  # chains and edges of a draw are of one model
    model = found.edge_type[0, :, :, 0]  # [S, G]
    assert [np.bincount(model[:, g], minlength=3).tolist() for g in range(3)] == [
        [15, 0, 15],
        [10, 10, 10],
        [10, 10, 10],
    ]
    assert (model[:, 1] != model[:, 2]).any()  # each structure has an order of its own
    for m, part in enumerate(parts):
        own = np.broadcast_to(model == m, found.log_joint.shape)[..., -part.log_joint.shape[-1] :]
        assert (found.log_joint[..., -own.shape[-1] :][own] == part.log_joint[own]).all()


def test_copies_of_one_model_give_its_own_draws(scenes, members):
    for options in (EXACT, MCMC):
        wanted = infer(members[0].model, scenes, encoder=members[0].encoder, **options)
        found = infer_ensemble(Ensemble([members[0]] * 3), scenes, **options)
        for name in ("edge_type", "log_joint", "accepted", "proposed", "move_kind", "temperature"):
            np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
        np.testing.assert_allclose(found.edge_probability, wanted.edge_probability, atol=1e-12)
        assert found.move_names == wanted.move_names


def test_results_are_bit_identical_and_do_not_depend_on_other_scenes(scenes, members):
    ensemble = Ensemble(members, [[0, 1, 2], [1, 0, 2], [0, 2, 1]])
    one, same = (infer_ensemble(ensemble, scenes, **MCMC) for _ in range(2))
    np.testing.assert_array_equal(one.edge_type, same.edge_type)
    np.testing.assert_array_equal(one.edge_probability, same.edge_probability)
    alone = infer_ensemble(ensemble, scenes[1:3], **MCMC)
    np.testing.assert_array_equal(one.edge_type[:, :, 1], alone.edge_type[:, :, 0])
    other = infer_ensemble(ensemble, scenes, **{**MCMC, "seed": 4})
    assert (one.edge_type != other.edge_type).any()


def test_models_that_saw_a_scene_are_left_out(scenes, members):
    names = scenes.fingerprints
    # The group "shared" is seen through one of its two recordings; "large" was seen by every model.
    seen = with_training_scenes(members, [[names[0], names[3]], [names[2], names[3]], [names[3]]])
    ensemble = Ensemble(seen)
    usable = torch.tensor([[False, True, False], [True, False, False], [True, True, False]])
    assert torch.equal(unseen(ensemble, scenes), usable)
    assert trained_on(ensemble, scenes).tolist() == [False, False, False, True]
    assert trained_on(seen[1], scenes).tolist() == [False, False, True, True]
    found = infer_ensemble(ensemble, scenes, **EXACT).edge_probability
    each = np.stack([infer(member.model, scenes, **EXACT).edge_probability for member in members])
    for g, chosen in enumerate(([1, 2], [0, 2], [0, 1, 2])):
        np.testing.assert_allclose(found[g], each[chosen, g].mean(0), atol=1e-12)
    cut = scenes.frames(2, 6)  # known again by the whole recordings alone
    assert unseen(ensemble, cut).all()
    assert torch.equal(unseen(ensemble, cut, names), usable)
    by_cut = infer_ensemble(ensemble, cut, fingerprints=names, **EXACT).edge_probability
    one, two = (infer(members[m].model, cut, **EXACT).edge_probability for m in (1, 2))
    np.testing.assert_allclose(by_cut[0], (one[0] + two[0]) / 2, atol=1e-12)


def test_relabelling_and_back(scenes, members):
    draws = infer(members[0].model, scenes, **MCMC)
    exists = scenes.edge_mask[scenes.group_first_scene].numpy()
    there = relabel(draws, [1, 2, 0], exists)
    np.testing.assert_array_equal(there.edge_type[..., exists], (draws.edge_type[..., exists] + 1) % 3)
    assert tuple(there.prior.type_probability[k] for k in (1, 2, 0)) == draws.prior.type_probability
    back = relabel(there, [2, 0, 1], exists)
    np.testing.assert_array_equal(back.edge_type, draws.edge_type)
    np.testing.assert_array_equal(back.edge_probability, draws.edge_probability)
    np.testing.assert_array_equal(back.warmup.edge_type, draws.warmup.edge_type)


def test_there_and_back_as_a_tree(scenes, members):
    draws = infer_ensemble(Ensemble(members, [[0, 1, 2], [1, 2, 0], [0, 1, 2]]), scenes, **MCMC)
    back = to_draws(to_datatree(draws, scenes))
    np.testing.assert_array_equal(back.edge_type, draws.edge_type)
    np.testing.assert_array_equal(back.edge_probability, draws.edge_probability)


def test_what_does_not_fit_an_ensemble(scenes, members):
    ensemble = Ensemble(members)
    with pytest.raises(ValueError, match="on_segment goes with a single model, found an ensemble of 3"):
        infer_ensemble(ensemble, scenes, on_segment=print, **EXACT)
    with pytest.raises(ValueError, match="fingerprints must have one entry for each of 4 scenes, found 1"):
        infer_ensemble(ensemble, scenes, fingerprints=["a"], **EXACT)
    with pytest.raises(ValueError, match="members must hold at least one model"):
        Ensemble([])
    with pytest.raises(ValueError, match="models of different kinds"):
        Ensemble([members[0], new_checkpoint(ModelSpec(2), seed=0)])
    for labels in ([[0, 1, 2]], [[0, 1, 1]] * 3, [[0, 1]] * 3):
        with pytest.raises(ValueError, match="labels must be 3 permutations of 3 types"):
            Ensemble(members, labels)


def test_an_interruption_leaves_nothing_half_mixed(scenes, members, monkeypatch):
    record, calls = Chains.record, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return record(self, *arguments)

    monkeypatch.setattr(Chains, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        infer_ensemble(Ensemble(members), scenes, **MCMC)
