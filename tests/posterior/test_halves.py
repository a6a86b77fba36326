"""Halves of scenes: their Bayes factor against sums over all structures; entities that do not interact are told."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nri.fitting import fit
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.halves import compare_halves
from pyro_nri.posterior.objections import objections
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def scenes():
    return simulate("springs", 4, num_entities=3, num_frames=9, seed=0)


def untrained(scenes, **choices):
    spec = ModelSpec(2, state_names=scenes.state_names, **choices)
    model = build_model(spec, torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    return model


@pytest.mark.parametrize("dynamics", ["message-passing", "pair-forces"])
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_by_sums_over_all_structures(scenes, dynamics, prior):
    """Log sum_z p(z) p(first | z) p(second | z) - log sum_z p(z) p(first | z) - log sum_z p(z) p(second | z)."""
    model = untrained(scenes, dynamics=dynamics, prior=prior)
    frame = compare_halves(model, scenes)
    assert frame["scene"].tolist() == list(scenes.group_names)
    structures = torch.tensor(list(itertools.product((0, 1), repeat=6)))[:, None].expand(-1, 4, -1)
    with torch.no_grad():
        log_prior = model.structure_prior(scenes).log_prob(structures).double()
        first, second = (
            model.likelihood(part).log_likelihood(structures) for part in (scenes.frames(0, 4), scenes.frames(4, 9))
        )
    one = (log_prior + first + second).logsumexp(0)
    two = (log_prior + first).logsumexp(0) + (log_prior + second).logsumexp(0)
    np.testing.assert_allclose(frame["log_bayes_factor"], one - two, rtol=1e-5, atol=1e-6)
    assert (frame["contradict"] == (frame["log_bayes_factor"] < -math.log(20))).all()
    for row, each in enumerate(frame["agree"]):
        best = [(log_prior + part)[:, row].exp() @ structures[:, row].double() for part in (first, second)]
        total = [(log_prior + part)[:, row].exp().sum() for part in (first, second)]
        most = [edge / whole > 0.5 for edge, whole in zip(best, total, strict=True)]
        assert each == pytest.approx(float((most[0] == most[1]).double().mean()))


def test_the_power_is_left_out(scenes):
    model = untrained(scenes, dynamics="pair-forces")
    before = compare_halves(model, scenes)["log_bayes_factor"]
    model.impulse_power.weight.copy_(torch.tensor([-2.0, 0, 0, 0, 0]))
    model.impulse_power.lost.fill_(0.1)
    np.testing.assert_array_equal(compare_halves(model, scenes)["log_bayes_factor"], before)


def test_true_laws_agree_and_entities_of_other_scenes_contradict():
    """Entities of different scenes put together do not interact: the halves say so, and no truth is needed."""
    scenes = simulate("springs", 40, num_entities=4, num_frames=40, seed=1)
    choices = {"spec": ModelSpec(2, dynamics="pair-forces"), "num_steps": 40, "law_bootstrap": 0, "seed": 0}
    right = fit(scenes, **choices)
    assert right.training["halves"] == {"contradict": 0, "scenes": 40}
    assert objections(right) == []
    assert float(right.model.impulse_power.chance[0]) < 0.02
    path = np.stack([np.roll(scenes.trajectory[:, :, n].numpy(), n, axis=0) for n in range(4)], axis=2)
    wrong = fit(replace(scenes, trajectory=torch.from_numpy(path), initial_state=None, edge_type=None), **choices)
    assert wrong.training["halves"]["contradict"] > 20
    halves, strangers = objections(wrong)
    assert "contradict each other on its structure in" in halves
    assert strangers.startswith("entities of other scenes would explain the motion of")
    assert float(wrong.model.impulse_power.chance[0]) > 0.7
    new = simulate("springs", 20, num_entities=4, num_frames=40, seed=2)
    new = replace(new, trajectory=torch.stack([new.trajectory[:, :, n].roll(n, 0) for n in range(4)], dim=2))
    expected = []
    for _ in range(2):
        with torch.no_grad():
            found = enumerate_posterior(wrong.model.likelihood(new), wrong.model.structure_prior(new)).edge_probability
        expected.append(float(found.amax(-1).mean()))
        wrong.model.impulse_power.chance.zero_()
    assert expected[0] < 0.65  # the posterior says so too
    assert expected[1] > 0.75
    other = compare_halves(wrong, simulate("springs", 5, num_entities=4, num_frames=40, seed=2))
    assert len(other) == 5


@pytest.mark.parametrize(("contradict", "says"), [(0, False), (9, False), (14, True), (100, True)])
def test_chance_is_allowed(scenes, contradict, says):
    """Of 100 scenes 5 may contradict each other, 12 are beyond three standard errors."""
    checkpoint = Checkpoint(
        ModelSpec(2), untrained(scenes), training={"halves": {"contradict": contradict, "scenes": 100}}
    )
    assert bool(objections(checkpoint)) == says


def test_models_that_were_not_halved_say_nothing(scenes):
    assert objections(Checkpoint(ModelSpec(2), untrained(scenes))) == []


def test_refusals(scenes):
    with pytest.raises(ValueError, match="scenes must have 4 frames or more to be halved, found 3"):
        compare_halves(untrained(scenes), scenes.frames(0, 3))
    with pytest.raises(ValueError, match="needs horizon 1 and few types and entities; found horizon 3, 2 types, 3"):
        compare_halves(untrained(scenes, horizon=3), scenes)
    many = simulate("springs", 2, num_entities=7, num_frames=9, seed=0)
    with pytest.raises(ValueError, match="structures are too many to list"):
        compare_halves(untrained(many, prior="symmetric"), many)


def test_training_of_scenes_too_short_is_not_halved():
    short = simulate("springs", 4, num_entities=3, num_frames=3, seed=0)
    assert "halves" not in fit(short, num_edge_types=2, num_steps=2, seed=0).training
