"""NRI as Pyro SVI: its relaxation, its bound, and posteriors that can be enumerated."""

from dataclasses import replace

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_nri.baselines.decoders import GraphDecoder
from pyro_nri.baselines.refinement import Refined
from pyro_nri.baselines.relaxation import RelaxedTypes
from pyro_nri.baselines.variational import Variational, fit_variational
from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.noise import NormalNoise
from pyro_nri.model.priors import make_prior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes import edges
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


class Push(AbstractDynamics):
    """Every edge of type 1 pushes its receiver by one: states are linear in the structure."""

    num_edge_types, state_size, num_entity_kinds = 2, 1, 1

    def fit_scaling(self, scenes):
        pass

    def messages(self, state, structure=None):
        push = torch.tensor([[0.0], [1.0]], dtype=state.dtype)
        every = push.expand(*state.shape[:-2], edges.num_edges(state.shape[-2]), 2, 1)
        return every if structure is None else push[structure]

    def update(self, state, summed, entity_kind=None):
        return state + summed


def toy(num_scenes=60, *, prior="independent", num_frames=3, scale=1.0, seed=0):
    """Two entities that may push each other, and noise that leaves it in doubt."""
    random = torch.Generator().manual_seed(seed)
    truth = torch.randint(2, (num_scenes, 2), generator=random)
    if prior == "symmetric":
        truth[:, 1] = truth[:, 0]
    steps = truth[:, edges.incoming_edges(2)[:, 0]][:, None] + scale * torch.randn(
        num_scenes, num_frames - 1, 2, generator=random
    )
    path = torch.cat([torch.zeros(num_scenes, 1, 2), steps.cumsum(1)], 1)
    scenes = Scenes.from_arrays(path[..., None], edge_type=truth)
    model = SceneModel(Push(), NormalNoise(1), make_prior(prior, 2, learn_weights=False), state_names=("s0",))
    with torch.no_grad():
        model.noise.log_relative_scale.fill_(torch.tensor(scale).log())
    model.double()
    encoder = Encoder(2, 1, width=8, generator=random).double()
    return model, encoder, scenes


def exact(model, scenes):
    prior = model.structure_prior(model.prepare(scenes))
    return enumerate_posterior(model.likelihood(scenes, cache="none"), prior).edge_probability


# --- the relaxation --------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize("hard", [False, True])
def test_the_largest_weight_is_a_draw_of_the_type(hard):
    logits = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.double)
    random = torch.Generator().manual_seed(0)
    drawn = RelaxedTypes(logits, 0.5, hard=hard, tied=False, random=random).sample((4000,))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(4000, 1, dtype=torch.double))
    found = torch.nn.functional.one_hot(drawn.argmax(-1), 3).double().mean((0, 1))
    expected = logits[0].softmax(-1)
    assert ((found - expected).abs() < 4 * (expected * (1 - expected) / 4000).sqrt()).all()
    assert ((drawn == 0) | (drawn == 1)).all() == hard


def test_tied_draws_are_alike_at_both_edges_of_a_pair():
    logits = torch.zeros(5, 6, 2)
    drawn = RelaxedTypes(logits, 0.5, hard=False, tied=True, random=torch.Generator().manual_seed(0)).sample()
    assert torch.equal(drawn, drawn[:, edges.reverse_edges(3)])
    single = RelaxedTypes(logits, 0.5, hard=False, tied=False, random=torch.Generator().manual_seed(0)).sample()
    assert not torch.allclose(single, single[:, edges.reverse_edges(3)])


def test_hard_draws_have_the_gradient_of_soft_ones():
    gradients = []
    for hard in (False, True):
        logits = torch.zeros(1, 2, requires_grad=True)
        RelaxedTypes(logits, 0.7, hard=hard, tied=False, random=torch.Generator().manual_seed(3)).rsample()[
            0, 0
        ].backward()
        gradients.append(logits.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().sum() > 0


# --- the bound -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_bound_is_likelihood_less_divergence(prior):
    """With draws of 0 and 1 the bound of each draw is known: log-likelihood of that structure less the divergence."""
    model, encoder, scenes = toy(prior=prior)
    found = Variational(model, encoder, hard=True)
    prepared = model.prepare(scenes)
    guide = pyro.poutine.trace(found.guide).get_trace(prepared)
    program = pyro.poutine.trace(pyro.poutine.replay(found.program, trace=guide)).get_trace(prepared)
    structure = guide.nodes["edge_weight"]["value"].argmax(-1)
    likelihood = model.log_likelihood(scenes, structure[None])[0]
    program.compute_log_prob()
    torch.testing.assert_close(program.nodes["trajectory"]["log_prob"], likelihood)
    q = torch.distributions.Categorical(logits=found.logits(prepared))
    p = torch.distributions.Categorical(logits=torch.zeros(2, dtype=torch.double))
    divergence = torch.distributions.kl_divergence(q, p).sum(-1)
    if prior == "symmetric":
        divergence = divergence / 2
        assert (structure[:, 0] == structure[:, 1]).all()
    bound = program.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(bound, likelihood.sum() - divergence.sum())
    found.random.manual_seed(5)
    loss = found.loss(prepared)
    found.random.manual_seed(5)
    num_values = 60 * 2 * 2  # scenes, transitions, entities
    assert float(loss.detach()) == pytest.approx(Trace_ELBO().loss(found.program, found.guide, prepared) / num_values)


@pytest.mark.statistical
def test_bound_lies_below_the_evidence_and_meets_it_at_the_posterior():
    model, encoder, scenes = toy()
    found = Variational(model, encoder, hard=True)
    prepared = model.prepare(scenes)
    prior = model.structure_prior(prepared)
    evidence = enumerate_posterior(model.likelihood(scenes, cache="none"), prior).log_marginal.sum()
    posterior = exact(model, scenes)

    def bound(logits):
        with torch.no_grad():
            values = torch.stack([-found.loss(prepared, logits) * 240 for _ in range(225)])
        return float(values.mean()), float(values.std()) / 15

    mean, error = bound(posterior.log())
    assert mean == pytest.approx(float(evidence), abs=4 * error)
    assert bound(torch.zeros_like(posterior))[0] < float(evidence) - 4 * error


# --- posteriors that can be enumerated -------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_refined_guide_recovers_the_enumerated_posterior(prior):
    model, encoder, scenes = toy(prior=prior)
    expected = exact(model, scenes)
    assert ((expected > 0.1) & (expected < 0.9)).double().mean() > 0.3  # the problem is one of doubt
    found = Variational(model, encoder, hard=True, temperature=0.1)
    refined = Refined(found, num_steps=500, learning_rate=0.03, seed=0).edge_probability(scenes)
    difference = refined[..., 1] - expected[..., 1]
    assert float(difference.abs().mean()) < 0.06  # what the draws of 250 steps leave
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / 60**0.5
    assert float((found.edge_probability(scenes)[..., 1] - expected[..., 1]).abs().mean()) > 0.15  # before


@pytest.mark.slow
@pytest.mark.statistical
def test_trained_guide_recovers_the_enumerated_posterior():
    """The encoder alone is trained, as the law is known; other scenes than it was trained on."""
    model, encoder, scenes = toy(200, seed=1)
    encoder.fit_scaling(scenes)
    found = Variational(model, encoder, hard=True, temperature=0.2)
    optimizer, prepared = torch.optim.Adam(encoder.parameters(), lr=0.01), model.prepare(scenes)
    for _ in range(250):
        optimizer.zero_grad()
        found.loss(prepared).backward()
        optimizer.step()
    _, _, others = toy(100, seed=2)
    difference = found.edge_probability(others)[..., 1] - exact(model, others)[..., 1]
    assert float(difference.abs().mean()) < 0.08
    assert abs(float(difference.mean())) < 0.03


def test_refining_does_not_change_the_baseline_and_repeats_itself():
    model, encoder, scenes = toy(5)
    found = Variational(model, encoder)
    before = found.edge_probability(scenes)
    refined = Refined(found, num_steps=3)
    first = refined.edge_probability(scenes)
    assert torch.equal(first, refined.edge_probability(scenes))
    assert torch.equal(before, found.edge_probability(scenes))
    assert not torch.allclose(first, before)


# --- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"decoder": "rnn", "hard": True},
        {"encoder": "mlp", "num_frames": 12, "variance": 5e-5},
        {"encoder": "cnn", "spec": ModelSpec(2, prior="symmetric", horizon=5, noise="geometric")},
        {"spec": ModelSpec(3, no_interaction=True, noise="normal")},
    ],
)
def test_training_lowers_the_loss(springs, options):
    size = {} if "spec" in options else {"num_edge_types": 2}
    before = torch.get_rng_state(), sorted(pyro.get_param_store().keys())
    found = fit_variational(springs, **size, **options, num_steps=25, seed=0)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == sorted(pyro.get_param_store().keys())
    losses = found.training_done.losses
    assert len(losses) == 25
    assert sum(losses[-5:]) < sum(losses[:5])
    read = springs.frames(0, options.get("num_frames"))
    probability = found.edge_probability(read)
    torch.testing.assert_close(probability.sum(-1), torch.ones(12, 6, dtype=torch.double))
    path = found.predict(springs, start=12, num_steps=3, structure=probability.argmax(-1))
    assert path.shape == (12, 3, 3, 4)
    assert path.isfinite().all()


def test_variance_is_fixed_in_scaled_units(springs):
    found = fit_variational(springs, 2, variance=4e-4, num_steps=3, seed=0)
    torch.testing.assert_close(found.model.noise.scale, 0.02 * found.model.score_scale, rtol=1e-3, atol=0)


def test_the_same_seed_gives_the_same_networks(springs):
    found = [fit_variational(springs, 2, num_steps=3, seed=seed).edge_probability(springs) for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_prediction_is_under_the_most_probable_structure_of_earlier_frames(springs):
    found = fit_variational(springs, 2, num_steps=3, seed=0)
    structure = found.edge_probability(springs.frames(0, 15)).argmax(-1)
    path = found.predict(springs, start=15, num_steps=4)
    expected = found.model.predict(springs, structure[None], start=15, num_steps=4)[0]
    torch.testing.assert_close(path, expected)
    later = replace(springs, trajectory=springs.trajectory.clone())
    later.trajectory[:, 16:] = 100.0
    assert torch.equal(path, found.predict(later, start=15, num_steps=4))


def test_refuses(springs):
    for options, sentence in (
        ({}, "give either num_edge_types or spec"),
        ({"num_edge_types": 2, "decoder": "gnn"}, "decoder must be one of mlp, rnn"),
        ({"num_edge_types": 2, "temperature": 0.0}, "temperature must be positive"),
        ({"num_edge_types": 2, "variance": -1.0}, "variance must be positive"),
        ({"num_edge_types": 2, "num_frames": 50}, "num_frames must be from 2 to 24, found 50"),
        ({"spec": ModelSpec(2, prior="sparse")}, "must be independent or symmetric, found SparsePrior"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit_variational(springs, **options, seed=0)
    model, encoder, _ = toy()
    for name in ("num_steps", "learning_rate"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            Refined(Variational(model, encoder, GraphDecoder(model.dynamics)), **{name: 0})


# --- scenes of other kinds -------------------------------------------------------------------------------------------
def test_padding_changes_nothing(springs):
    two = simulate("springs", 3, num_entities=2, num_frames=24, seed=4, first_scene=50)
    found = fit_variational(springs, 2, num_steps=2, seed=0)
    both = concatenate([springs, two])
    torch.testing.assert_close(found.edge_probability(both)[12:, [0, 2]], found.edge_probability(two))
    path = found.predict(both, start=12, num_steps=3)[12:, :, :2]
    torch.testing.assert_close(path, found.predict(two, start=12, num_steps=3))
    prepared, alone = found.model.prepare(both[12:]), found.model.prepare(two)
    logits = found.logits(prepared)
    torch.testing.assert_close(found.divergence(prepared, logits), found.divergence(alone, found.logits(alone)))
    weight = logits.exp()
    whole = found.trajectory(prepared, weight).log_prob(prepared.trajectory[:, 1:])
    torch.testing.assert_close(whole, found.trajectory(alone, weight[:, [0, 2]]).log_prob(alone.trajectory[:, 1:]))


def test_recordings_of_one_structure_share_their_draws(springs):
    halves = Scenes.from_arrays(
        torch.cat([springs.trajectory[:4, :12], springs.trajectory[:4, 12:]]),
        structure_group=[*"abcd", *"abcd"],
        time_step=0.1,
    )
    found = fit_variational(halves, 2, batch_size=2, num_steps=3, seed=0)
    assert found.edge_probability(halves).shape == (4, 6, 2)
    assert found.predict(halves, start=8, num_steps=2).shape == (8, 2, 3, 4)
    prepared = found.model.prepare(halves)
    weight = pyro.poutine.trace(found.guide).get_trace(prepared).nodes["edge_weight"]["value"]
    assert weight.shape == (4, 6, 2)
    refined = Refined(found, num_steps=2)
    assert refined.edge_probability(halves).shape == (4, 6, 2)


def test_missing_frames_are_not_scored(springs):
    seen = torch.ones(12, 24, 3, dtype=torch.bool)
    seen[:, 10, 1] = False
    gaps = replace(springs, observation_mask=seen)
    wild = replace(gaps, trajectory=springs.trajectory.clone())
    wild.trajectory[:, 10, 1] = 100.0
    found = fit_variational(gaps, 2, num_steps=2, seed=0)
    losses = []
    for scenes in (gaps, wild):
        found.random.manual_seed(0)
        losses.append(float(found.loss(found.model.prepare(scenes)).detach()))
    assert losses[0] == pytest.approx(losses[1])
