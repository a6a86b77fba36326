"""Chains over structures and latents of the noisy program against linear algebra, structure by structure."""

import itertools

import pytest
import torch

from pyro_nri.inference.noisy_joint import Fits, State, init, step
from pyro_nri.inference.noisy_modes import default_starts, density_of
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.streams import Stream, keys
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
def test_structures_against_linear_algebra(problem):
    model, scenes, exact = problem
    assert float(exact.amax(0).min()) < 0.6  # some scenes are in doubt
    structure, _, accepted = run(model, scenes, EVERY[exact.argmax(0)], num_chains=60, num_draws=60, num_warmup=20)
    assert float(accepted) > 0.1
    number = (structure * 2 ** torch.arange(5, -1, -1)).sum(-1)  # [C, S, B], the place in EVERY
    frequency = torch.nn.functional.one_hot(number, 64).double().mean(1)  # [C, B, 64]
    error = (frequency.std(0) / 60**0.5).clamp(min=0.004)
    assert float(((frequency.mean(0) - exact.T).abs() / error).max()) < 4.5


def exact_latents(model, scenes, structure, generator):
    """Posterior draws of latents given structures ``[C, B, E]``, by linear algebra: ``[C, B, P]``."""
    draws = torch.empty(*structure.shape[:2], 6).double()
    for z in structure.flatten(0, 1).unique(dim=0):
        with torch.no_grad():
            basis = torch.eye(6).double()[:, None].expand(6, scenes.num_scenes, 6)
            expanded = z.expand(scenes.num_scenes, -1)
            design = model.predict(scenes, expanded, model.unpack(basis, 2)).flatten(2).permute(1, 2, 0)  # [B, R, P]
        scale = model.noise.scale.repeat(scenes.num_frames * 2)[:, None]
        scaled = design / scale
        precision = torch.eye(6) + scaled.mT @ scaled
        mean = torch.linalg.solve(precision, scaled.mT @ (scenes.trajectory.flatten(1)[..., None] / scale)).squeeze(-1)
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        normal = torch.randn(draws.shape, generator=generator).double()
        here = (structure == z).all(-1)
        draws[here] = (mean + (root @ normal[..., None]).squeeze(-1))[here]
    return draws


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("noise", [1.0, 4.0])
def test_the_posterior_stays_as_it_is_whatever_the_reference(problem, noise):
    """Exact draws stay exact draws after some steps, even around wrong references; with other noise they do not."""
    model, scenes, exact = problem
    number, generator = 300, torch.Generator().manual_seed(0)
    structure = EVERY[torch.multinomial(exact.T, number, replacement=True, generator=generator).T]  # [C, B, E]
    value = exact_latents(model, scenes, structure, generator)
    judged = springs_model(scale=(noise * SCALE, noise * SCALE))
    reference = EVERY[exact.argmax(0)]
    reference[:, 0] = 1 - reference[:, 0]
    references = torch.stack([EVERY[exact.argmax(0)], reference])
    prior = judged.prior(judged.edge_mask(scenes))
    fits = Fits(judged, scenes, prior, references, default_starts(judged, scenes, reference, 2, 0))
    stream = Stream(0, keys(scenes.scene_names), number)
    moves = make_proposal("uniform", prior, seed=0)
    with torch.no_grad():
        log_joint = density_of(judged, scenes, structure)(value) + prior.log_prob(structure).double()
    log_proposal = fits.mixtures(structure).log_prob(value.flatten(0, 1)).reshape(number, 4)
    state = State(structure, value, log_joint, log_proposal, torch.ones(number, 4, dtype=torch.bool))
    moved = 0.0
    for place in range(12):
        state = step(state, fits, moves, stream, place)
        moved += float(state.accepted.double().mean())
    assert moved > 0.5
    frequency = (state.structure[:, :, None] == EVERY).all(-1).double().mean(0)  # [B, 64]
    error = (exact.T * (1 - exact.T) / number).sqrt() + 1e-3
    if noise == 1.0:
        assert float(((frequency - exact.T).abs() / error).max()) < 4.5
    else:
        assert float(((frequency - exact.T).abs() / error).max()) > 6


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


def test_a_chain_does_not_depend_on_the_others(problem):
    model, scenes, exact = problem
    chosen = EVERY[exact.argmax(0)]
    sizes = {"num_draws": 4, "num_warmup": 1}
    whole, values, _ = run(model, scenes, chosen, num_chains=3, **sizes)
    part, some, _ = run(model, scenes[[2]], chosen[[2]], num_chains=2, **sizes)
    assert torch.equal(whole[:2, :, [2]], part)
    torch.testing.assert_close(values[:2, :, [2]], some)


def test_the_stand_in_is_the_evidence_at_the_references(problem):
    """Paths are linear in the latents, so at references the stand-in is the evidence up to a constant."""
    model, scenes, exact = problem
    two = exact.topk(2, 0).indices  # [2, B]
    prior, references = model.prior(model.edge_mask(scenes)), EVERY[two]
    fits = Fits(model, scenes, prior, references, default_starts(model, scenes, references[0], 2, 0))
    found = fits.stand_in(references)
    wanted = exact.gather(0, two).log()
    torch.testing.assert_close(found[1] - found[0], wanted[1] - wanted[0], atol=1e-3, rtol=1e-3)
