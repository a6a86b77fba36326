"""Distillation: joint proposals learned from posterior draws, with a model that is only read."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.cross_fitting import cross_fit
from pyro_nri.fitting import fit
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint, new_checkpoint
from pyro_nri.learning.distill import MIN_FRAMES, Distillation, distill, draw_posterior, losses, random_window
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes import edges
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

STATE = {"state_names": ("x", "vx"), "noise": "normal"}


def random_walks(num_scenes=6, num_entities=3, num_frames=8, **options):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(num_scenes, num_frames, num_entities, 2, generator=generator, dtype=torch.double)
    return Scenes.from_arrays(steps.cumsum(1), **options)


def make(scenes, *, encoder_width=16, seed=0, **choices):
    found = new_checkpoint(ModelSpec(2, **{**STATE, **choices}), encoder_width=encoder_width, seed=seed)
    found.model.fit_scaling(scenes)
    if found.encoder is not None:
        found.encoder.fit_scaling(scenes)
    return found


def same_weights(one, other):
    before, after = one.state_dict(), other.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# --- what is learned -------------------------------------------------------------------------------------------------
def exactly_one(scenes):
    """A posterior in which exactly one of the two senders of each receiver is linked, either alike."""
    table = torch.full((scenes.num_groups, 3, 4), -9.0, dtype=torch.double)
    table[..., [1, 2]] = 0.0  # codes of types (0, 1) and (1, 0)
    return ReceiverTable(table, 2, scenes.edge_mask)


@pytest.mark.slow
def test_two_edges_of_which_exactly_one_is_linked():
    """No independent distribution comes below the sum of the edges' entropies; the distilled one does."""
    scenes = random_walks()
    found = make(scenes)
    found.model.likelihood = lambda scenes, **_: exactly_one(scenes)
    log_code = enumerate_posterior(exactly_one(scenes), found.model.structure_prior(scenes)).log_code  # [G, N, 4]
    every = torch.tensor(list(itertools.product(range(2), repeat=2)))[:, None, None].expand(-1, 6, 3, -1)

    def cross_entropy(checkpoint):
        log_q = checkpoint.encoder.incoming(scenes)[1].log_prob(every).movedim(0, -1)
        return float(-(log_code.exp() * log_q).sum(-1).mean().detach())

    entropy = -(log_code.exp() * log_code).sum(-1).mean()
    independent = 2 * np.log(2)  # of the best one: either edge is linked with probability 1/2
    found.encoder.add_coupling(generator=torch.Generator().manual_seed(0))
    assert cross_entropy(found) > independent - 1e-6
    distilled = distill(found, scenes, num_steps=150, seed=0)
    assert cross_entropy(distilled) < float(entropy) + 0.1 < independent - 0.5


@pytest.mark.slow
def test_the_proposal_comes_closer_to_the_posterior_of_other_scenes():
    found = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "springs5.pt")
    options = {"num_entities": 4, "num_frames": 20, "measurement_noise": 0.01}
    scenes, others = (simulate("springs", 60, seed=seed, **options) for seed in (1, 2))
    distilled = distill(found, scenes, num_steps=100, seed=0)
    window = others.frames(0, 6)
    drawn = draw_posterior(found.model, window, 50, seed=5)
    before = copy.deepcopy(found.encoder)
    before.add_coupling(generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = (losses(encoder, window, drawn, tied=False) for encoder in (before, distilled.encoder))
    assert new[0] < 0.7 * old[0]
    assert new[1] < 0.7 * old[1]
    options = {"method": "mcmc", "proposal": "neural", "num_chains": 4, "num_draws": 300, "num_warmup": 50, "seed": 0}
    rates = [infer(each.model, window, encoder=each.encoder, **options) for each in (found, distilled)]
    assert rates[1].accepted.mean() > 1.1 * rates[0].accepted.mean()


def test_losses_are_those_of_the_definition():
    scenes = random_walks(structure_group=list("aabbcc"))
    encoder = make(scenes).encoder.double()
    encoder.add_coupling(generator=torch.Generator().manual_seed(0))
    drawn = torch.randint(2, (5, 3, 6), generator=torch.Generator().manual_seed(0))
    drawn[..., edges.incoming_edges(3)[0]] = 1  # the first receiver is in no doubt
    joint_loss, edge_loss = losses(encoder, scenes, drawn, tied=False)
    edge, joint = encoder.incoming(scenes)
    each = -edge.log_prob(drawn).mean(0)[:, edges.incoming_edges(3)].sum(-1)  # [G, N]; couplings are zero yet
    differ = (
        torch.tensor(
            [
                [(drawn[s, g][i] != drawn[s - 1, g][i]).any() for s in range(5) for i in [into]]
                for g in range(3)
                for into in edges.incoming_edges(3)
            ]
        )
        .double()
        .mean(-1)
        .reshape(3, 3)
    )
    weight = 0.2 + differ
    torch.testing.assert_close(joint_loss, (weight * each).sum() / weight.sum() / 2)
    torch.testing.assert_close(edge_loss, each.mean() / 2)
    assert (differ[:, 0] == 0).all()
    assert joint.batch_shape == (3, 3)


def test_gradients_are_finite_in_double_precision():
    seen = torch.rand(6, 8, 3, generator=torch.Generator().manual_seed(1)) > 0.2
    present = torch.ones(6, 3, dtype=torch.bool)
    present[0, 2] = False
    scenes = random_walks(observation_mask=seen, entity_mask=present)
    found = make(scenes)
    for tied in (False, True):
        encoder = copy.deepcopy(found.encoder).double()
        encoder.add_coupling(generator=torch.Generator().manual_seed(0))
        drawn = torch.randint(2, (4, 6, 6), generator=torch.Generator().manual_seed(0)) * scenes.edge_mask
        sum(losses(encoder, scenes, drawn, tied=tied)).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad.isfinite().all(), name


# --- windows and draws -----------------------------------------------------------------------------------------------
def test_windows_have_any_length_and_place():
    scenes = random_walks(num_scenes=1, num_frames=40)
    windows = [random_window(scenes, torch.Generator().manual_seed(seed)) for seed in range(300)]
    lengths = np.array([window.num_frames for window in windows])
    assert lengths.min() == MIN_FRAMES
    assert 36 < lengths.max() <= 40
    assert 0.35 < (lengths < np.sqrt(MIN_FRAMES * 40)).mean() < 0.65
    assert random_window(scenes.frames(0, 2), torch.Generator()).num_frames == 2


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("choices", "num_chains"), [({}, 0), ({"prior": "symmetric"}, 0), ({"horizon": 3}, 4), ({"prior": "charges"}, 0)]
)
def test_draws_are_those_of_the_posterior(choices, num_chains, monkeypatch):
    """Exact ones independent of each other, those of chains nearly so: edge probabilities within five errors."""
    scenes = random_walks(num_scenes=2)
    model = make(scenes, **choices).model
    if choices.get("prior") == "charges":
        model.prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    made = []
    monkeypatch.setattr(
        "pyro_nri.learning.distill.make_chains",
        lambda *args, make_chains=draw_posterior.__globals__["make_chains"], **kwargs: (
            made.append(kwargs["num_chains"]) or make_chains(*args, **kwargs)
        ),
    )
    num_draws = 160 if num_chains else 800
    drawn = draw_posterior(model, scenes, num_draws, seed=0)
    assert drawn.shape == (num_draws, 2, 6)
    assert made == [num_chains] * bool(num_chains)
    expected = enumerate_posterior(model.likelihood(scenes), model.structure_prior(scenes)).edge_probability[..., 1]
    error = (expected * (1 - expected) / (40 if num_chains else 800)).sqrt()
    assert ((drawn == 1).double().mean(0) - expected).abs().sub(5 * error + 0.002).max() < 0
    assert not torch.equal(drawn, draw_posterior(model, scenes, num_draws, seed=0, number=1))


# --- what is left as it was ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("num_entities", "choices"), [(3, {}), (4, {"prior": "symmetric"}), (3, {"horizon": 4})])
def test_modules_noise_and_prior_are_untouched(num_entities, choices):
    scenes = random_walks(num_entities=num_entities)
    found = make(scenes, **choices)
    before = copy.deepcopy(found)
    global_state = torch.get_rng_state()
    distilled = distill(found, scenes, num_steps=6, num_draws=4, seed=1)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert same_weights(distilled.model, before.model)
    assert distilled.fingerprint == before.fingerprint
    assert same_weights(found.model, before.model)
    assert same_weights(found.encoder, before.encoder)
    assert found.encoder.rank is None
    assert "distillation" not in found.training
    assert not same_weights(distilled.encoder, before.encoder)
    assert distilled.training["distillation"]["num_steps"] == 6
    assert [p.requires_grad for p in distilled.model.parameters()] == [
        p.requires_grad for p in found.model.parameters()
    ]


def test_groups_padding_and_missing_frames():
    """Everything that scenes may be: one step is finite, and draws keep type 0 at edges that do not exist."""
    small = random_walks(structure_group=list("aabbcd"))
    seen = torch.rand(2, 8, 5, generator=torch.Generator().manual_seed(1)) > 0.1
    large = random_walks(num_scenes=2, num_entities=5, observation_mask=seen, scene_names=["x", "y"])
    scenes = concatenate([small, large])
    found = make(scenes)
    distilled = distill(found, scenes, num_steps=8, batch_size=4, seed=0)
    assert np.isfinite(distilled.training["distillation"]["loss"])
    drawn = draw_posterior(found.model, scenes, 20, seed=0)
    assert drawn.shape == (20, 6, 20)
    assert not drawn[:, ~scenes.edge_mask[scenes.group_first_scene]].any()


def test_every_model_of_an_ensemble_is_distilled():
    scenes = simulate("springs", 4, num_entities=3, num_frames=8, seed=0)
    ensemble = cross_fit(scenes, num_folds=2, spec=ModelSpec(2), num_steps=2, distill_steps=2, seed=0)
    assert [member.encoder.rank for member in ensemble.members] == [8, 8]


def test_seeds_fix_the_result():
    scenes = random_walks()
    found = make(scenes)
    one, same, other = (distill(found, scenes, num_steps=9, seed=seed).encoder for seed in (0, 0, 1))
    assert same_weights(one, same)
    assert not same_weights(one, other)


def test_distilled_again_it_goes_on():
    scenes = random_walks()
    once = distill(make(scenes), scenes, num_steps=5, seed=0)
    twice = distill(once, scenes, num_steps=1, learning_rate=1e-9, seed=1)
    for name, value in once.encoder.state_dict().items():
        torch.testing.assert_close(twice.encoder.state_dict()[name], value)


def test_training_distils_at_its_end_and_resumes():
    scenes = simulate("springs", 6, num_entities=3, num_frames=12, seed=5)
    kept = []
    options = {"num_steps": 4, "distill_steps": 5, "seed": 0}
    whole = fit(scenes, 2, save=kept.append, save_every=0.0, **options)
    plain = fit(scenes, 2, num_steps=4, seed=0)
    assert whole.encoder.rank == 8
    assert plain.encoder.rank is None
    assert same_weights(whole.model, plain.model)
    for checkpoint in (kept[2], kept[-1]):  # in the middle of training, and at its end
        assert checkpoint.encoder.rank is None
        resumed = fit(scenes, 2, resume=checkpoint, **options)
        assert same_weights(resumed.encoder, whole.encoder)
        assert same_weights(resumed.model, whole.model)


# --- refused ---------------------------------------------------------------------------------------------------------
def test_bad_input():
    scenes = random_walks()
    found = make(scenes)
    for name, value in (("num_steps", 0), ("batch_size", 0), ("num_draws", -1), ("rank", 0)):
        with pytest.raises(ValueError, match=f"^{name} must be at least 1, found {value}$"):
            distill(found, scenes, **{"num_steps": 3, "seed": 0, name: value})
    for name, value in (("minutes", 0), ("learning_rate", 0.0), ("learning_rate", float("nan"))):
        with pytest.raises(ValueError, match=f"^{name} must be positive, found {value}$"):
            distill(found, scenes, seed=0, **{name: value})
    with pytest.raises(ValueError, match="no encoder, which is what distillation trains"):
        distill(make(scenes, encoder_width=None), scenes, num_steps=3, seed=0)
    with pytest.raises(ValueError, match="distill_steps must be 0 or more, found -1"):
        fit(scenes, 2, distill_steps=-1, seed=0)
    with pytest.raises(ValueError, match="state variables"):
        distill(found, simulate("springs", 2, num_entities=3, num_frames=5, seed=0), num_steps=3, seed=0)
    with pytest.raises(ValueError, match="table"):
        distill(make(scenes, prior="charges"), scenes, num_steps=3, seed=0)


def test_an_encoder_of_another_kind():
    scenes = random_walks()
    found, other = make(scenes), new_checkpoint(ModelSpec(3, **STATE), seed=0)
    found.encoder = other.encoder
    with pytest.raises(ValueError, match="the encoder is made for 3 types of edge, the model has 2"):
        distill(found, scenes, num_steps=3, seed=0)
    found.encoder = new_checkpoint(ModelSpec(2), seed=0).encoder
    with pytest.raises(ValueError, match="the encoder is made for 4 state variables, the model has 2"):
        distill(found, scenes, num_steps=3, seed=0)
    with pytest.raises(ValueError, match="no couplings to train"):
        Distillation(other.model, other.encoder, scenes, seed=0)
