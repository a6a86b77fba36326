"""Warm-up on wide noise: it finds structures that no temperature leads to, and leaves the draws alone."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.inference.chains import make_chains
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_model
from pyro_nri.model import impulse_cache
from pyro_nri.model.impulse import impulse_table
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import structure_of
from pyro_nri.scenes.simulate import simulate

MODEL = Path(__file__).parents[2] / "data" / "models" / "springs5.pt"


@pytest.fixture
def model():
    checkpoint = load_model(MODEL)
    checkpoint.model.prior = make_prior("independent", 2, learn_weights=False).double()
    return checkpoint.model


def springs(num_scenes=3, num_entities=4, **options):
    return simulate("springs", num_scenes, num_entities=num_entities, seed=3, **options)


def test_blunt_likelihoods_are_tables_of_wide_noise(model):
    scenes = springs()
    dynamics, noise, power = model.impulse_parts
    with torch.no_grad():
        cache = model.likelihood(scenes, cache="messages")
        for share, blunt in zip(impulse_cache.BLUNT, cache.blunted(), strict=True):
            table = impulse_table(dynamics, noise.blunted(share), power, scenes)
            code = torch.randint(0, 8, (5, 3, 4), generator=torch.Generator().manual_seed(0))
            structure = structure_of(code.flatten(0, 1), 2).view(5, 3, -1)
            torch.testing.assert_close(blunt.receiver_terms(structure), table.receiver_terms(structure))
            assert not torch.equal(blunt.relaxed.precision, cache.relaxed.precision)
        assert cache.noise is noise
        assert noise.blunted(1e-2).scale.min() > 1e3 * noise.scale.max()


def test_noise_that_is_wide_is_not_blunted(model):
    with torch.no_grad():
        model.impulse_noise.log_relative_scale.fill_(np.log(2e-4))
        scenes = springs()
        assert len(model.likelihood(scenes, cache="messages").blunted()) == 2  # by 1e-2 and 1e-3
        model.impulse_noise.log_relative_scale.fill_(np.log(0.1))
        assert model.likelihood(scenes, cache="messages").blunted() == []
        assert model.likelihood(scenes, cache="table").blunted() == []


def test_draws_are_of_the_posterior_itself(model, monkeypatch):
    monkeypatch.setattr(impulse_cache, "BLUNT", (3.0, 1.0))
    with torch.no_grad():
        model.impulse_noise.log_relative_scale.fill_(np.log(0.2))  # wide enough to leave edges in doubt
        model.impulse_noise.context_weight.zero_()
        scenes = springs(num_frames=4)
        exact = enumerate_posterior(model.likelihood(scenes, cache="table"), model.structure_prior(scenes))
    draws = infer(model, scenes, method="mcmc", cache="messages", num_chains=8, num_warmup=60, num_draws=600, seed=0)
    assert (draws.warmup.temperature[:29] > 1).all()
    assert (draws.warmup.temperature[30:] == 1).all()
    probability = exact.edge_probability[..., 1].numpy()
    found = (draws.edge_type == 1).mean((0, 1))
    assert ((probability > 0.1) & (probability < 0.9)).sum() > 3
    chains = (draws.edge_type == 1).mean(1)
    error = chains.std(0, ddof=1) / np.sqrt(8) + 1 / 4800
    assert (np.abs(found - probability) / error < 6).all()  # 36 edges, errors of eight chains
    # Densities of the first half of warm-up are those of the blunt targets, all later ones of the posterior.
    with torch.no_grad():
        for part, is_own in ((slice(30), False), (slice(30, 60), True)):
            drawn = torch.as_tensor(draws.warmup.edge_type[:, part]).flatten(0, 1).long()
            joint = model.likelihood(scenes, cache="messages").log_likelihood(drawn)
            joint = joint + model.structure_prior(scenes).log_prob(drawn)
            values = draws.warmup.log_joint[:, part]
            assert np.allclose(joint.view(values.shape).numpy(), values, rtol=1e-6) is is_own


@pytest.mark.parametrize("stop", [4, 9, 14, 21])
def test_an_interrupted_search_goes_on_as_if_nothing_had_been(model, stop):
    scenes, options = springs(), {"method": "mcmc", "cache": "messages", "num_warmup": 20, "num_draws": 6, "seed": 1}
    whole = infer(model, scenes, **options)
    kept = []

    def writer(draws):
        kept.append(draws)
        done = draws.warmup.edge_type.shape[1] + draws.edge_type.shape[1]
        if done >= stop:
            raise KeyboardInterrupt

    infer(model, scenes, on_segment=writer, segment_draws=1, **options)
    again = infer(model, scenes, resume=kept[-1], **options)
    for name in ("edge_type", "log_joint", "accepted"):
        np.testing.assert_allclose(getattr(again, name), getattr(whole, name), rtol=1e-12)
        np.testing.assert_allclose(getattr(again.warmup, name), getattr(whole.warmup, name), rtol=1e-12)


def test_scenes_do_not_feel_one_another(model):
    scenes, options = springs(), {"method": "mcmc", "cache": "messages", "num_warmup": 20, "num_draws": 5, "seed": 1}
    whole, alone = infer(model, scenes, **options), infer(model, scenes[1:2], **options)
    np.testing.assert_array_equal(whole.edge_type[:, :, 1:2], alone.edge_type)
    np.testing.assert_array_equal(whole.warmup.edge_type[:, :, 1:2], alone.warmup.edge_type)


@pytest.mark.slow
def test_it_finds_what_temperature_does_not(model, monkeypatch):
    """Without noise whole combinations of edges are right or wrong together; guesses of all edges find them at once."""
    model.prior = make_prior("symmetric", 2, learn_weights=False).double()
    scenes = springs(1, 30, link_probability=0.17)
    truth = torch.as_tensor(load_model(MODEL).alignment).argsort()[scenes.edge_type]
    wrong = {}
    with torch.no_grad():
        likelihood, prior = model.likelihood(scenes), model.structure_prior(scenes)
        for start, guesses in ((1.0, True), (1.0, False), (1000.0, False)):
            if not guesses:
                monkeypatch.setattr(impulse_cache.ImpulseCache, "likely_types", lambda self: None)
            chains = make_chains(
                likelihood,
                prior,
                group_names=scenes.group_names,
                proposal="auto",
                log_q=None,
                num_chains=2,
                num_warmup=160,
                start_temperature=start,
                seed=0,
            )
            assert len(chains.blunt) == (4 if start > 1 else 0)
            for _ in range(160):
                chains.step()
            wrong[start, guesses] = float((chains.structure != truth).double().mean())
    assert wrong[1.0, True] < 0.02
    assert wrong[1000.0, False] < 0.02
    assert wrong[1.0, False] > 0.05  # the negative control
