"""Chains over structures and latents of the noisy program against linear algebra, structure by structure."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference.noisy_joint import Fits, init, step
from pyro_nri.inference.noisy_modes import default_starts
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.measurement import MeasurementNoise
from pyro_nri.scenes import edges
from tests.inference.test_noisy_chains import drawn, springs_model
from tests.inference.test_noisy_structures import exact_log_marginal

EVERY = torch.tensor(list(itertools.product((0, 1), repeat=6)))  # of two observed entities and a hidden one
SCALE = 0.1


def run(model, scenes, reference, *, num_chains, num_draws, num_warmup, seed=0):
    """Structures ``[C, S, B, E]``, latents ``[C, S, B, P]``, and the share of accepted steps."""
    prior = model.prior(model.edge_mask(scenes))
    starts = default_starts(model, scenes, reference, 3, seed)
    references = reference.expand(len(starts), *reference.shape)
    stream = Stream(seed, keys(scenes.scene_names), num_chains)
    moves = make_proposal("uniform", prior, seed=seed)
    fits = Fits(model, scenes, prior, references, starts)
    state = init(fits, prior.from_uniform(stream.child("start").uniform(0, 6)), stream)
    kept = []
    for number in range(num_warmup + num_draws):
        state = step(state, fits, moves, stream, number)
        kept.append(state)
    kept = kept[num_warmup:]
    structure, value = (torch.stack([getattr(each, name) for each in kept], 1) for name in ("structure", "value"))
    return structure, value, torch.stack([each.accepted for each in kept]).double().mean()


def exact_posterior(model, scenes):
    """Probability of each of the 64 structures in each scene, ``[64, B]``."""
    prior = model.prior(model.edge_mask(scenes))
    log_prior = torch.stack([prior.log_prob(each.expand(scenes.num_scenes, -1)) for each in EVERY]).detach()
    return (torch.stack([exact_log_marginal(model, scenes, each) for each in EVERY]) + log_prior).softmax(0)


@pytest.fixture(scope="module")
def problem():
    model = springs_model(scale=(SCALE, SCALE))
    truth = torch.tensor([[0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0], [0] * 6])
    scenes, _ = drawn(model, 4, 8, truth, seed=5)
    return model, scenes, exact_posterior(model, scenes)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("reference", ["likely", "wrong"])
def test_structures_against_linear_algebra(problem, reference):
    """The reference decides how well steps are aimed, not where the chain goes."""
    model, scenes, exact = problem
    assert float(exact.amax(0).min()) < 0.6  # some scenes are in doubt
    chosen = EVERY[exact.argmax(0)]
    if reference == "wrong":
        chosen[:, [0, 3]] = 1 - chosen[:, [0, 3]]
    structure, _, accepted = run(model, scenes, chosen, num_chains=60, num_draws=60, num_warmup=20)
    assert float(accepted) > (0.1 if reference == "likely" else 0.01)
    number = (structure * 2 ** torch.arange(5, -1, -1)).sum(-1)  # [C, S, B], the place in EVERY
    frequency = torch.nn.functional.one_hot(number, 64).double().mean(1)  # [C, B, 64]
    error = (frequency.std(0) / 60**0.5).clamp(min=0.004)
    assert float(((frequency.mean(0) - exact.T).abs() / error).max()) < 4.5


@pytest.mark.slow
@pytest.mark.statistical
def test_latents_given_a_structure_against_linear_algebra(problem):
    model, scenes, exact = problem
    b = int(exact.amax(0).argmax())
    place = int(exact[:, b].argmax())
    structure, value, _ = run(model, scenes, EVERY[exact.argmax(0)], num_chains=60, num_draws=60, num_warmup=20, seed=1)
    here = (structure[:, :, b] == EVERY[place]).all(-1)
    draws = value[:, :, b][here]
    with torch.no_grad():
        basis = torch.eye(6).double()[:, None].expand(6, 4, 6)
        design = model.predict(scenes, EVERY[place].expand(4, -1), model.unpack(basis, 2)).flatten(2)[:, b].T
    precision = torch.eye(6) + design.T @ design / SCALE**2
    mean = torch.linalg.solve(precision, design.T @ scenes.trajectory[b].flatten() / SCALE**2)
    spread = torch.linalg.inv(precision).diagonal().sqrt()
    assert len(draws) > 300
    assert float(((draws.mean(0) - mean) / spread).abs().max()) < 0.25  # steps are accepted one time in three
    assert float((draws.std(0) / spread).log().abs().max()) < 0.2


@pytest.mark.slow
@pytest.mark.statistical
def test_a_wrong_noise_is_found_out(problem):
    """Negative control: the same comparison, with twice the noise in the chain."""
    _, scenes, exact = problem
    wrong = springs_model(scale=(SCALE, SCALE))
    wrong.noise = MeasurementNoise(torch.full((2,), 2 * SCALE).double())
    structure, _, _ = run(wrong, scenes, EVERY[exact.argmax(0)], num_chains=60, num_draws=30, num_warmup=10)
    number = (structure * 2 ** torch.arange(5, -1, -1)).sum(-1)
    frequency = torch.nn.functional.one_hot(number, 64).double().mean(1)
    error = (frequency.std(0) / 60**0.5).clamp(min=0.004)
    assert float(((frequency.mean(0) - exact.T).abs() / error).max()) > 8


def test_a_chain_does_not_depend_on_the_others(problem):
    model, scenes, exact = problem
    chosen = EVERY[exact.argmax(0)]
    sizes = {"num_draws": 4, "num_warmup": 1}
    whole, values, _ = run(model, scenes, chosen, num_chains=3, **sizes)
    part, some, _ = run(model, scenes[[2]], chosen[[2]], num_chains=2, **sizes)
    assert torch.equal(whole[:2, :, [2]], part)
    torch.testing.assert_close(values[:2, :, [2]], some)


def test_the_stand_in_is_exact_at_the_reference_and_near_it(problem):
    """Paths are linear in the latents, so at the reference it is the evidence; one edge off it is close to it."""
    model, scenes, exact = problem
    chosen = EVERY[exact.argmax(0)]
    prior = model.prior(model.edge_mask(scenes))
    fits = Fits(model, scenes, prior, chosen.expand(2, -1, -1), default_starts(model, scenes, chosen, 2, 0))
    found = fits.stand_in(EVERY[:, None].expand(-1, 4, -1))  # [64, B]
    wanted = exact.log()
    own = exact.argmax(0)
    apart = (found - found.gather(0, own[None])) - (wanted - wanted.gather(0, own[None]))
    one_off = (EVERY[:, None] != chosen).sum(-1) == 1
    assert float(apart[one_off].abs().median()) < 1
    order = [np.corrcoef(found[:, b], wanted[:, b])[0, 1] for b in range(4)]
    assert min(order) > 0.6
    assert edges.num_edges(3) == EVERY.shape[1]
