"""Drawn laws against the simulator's constants, against other data sets, and against what cannot be known."""

import copy

import numpy as np
import pytest
import torch

from pyro_nri.dynamics.force_laws import NUM_POINTS, NUM_SPLINES
from pyro_nri.learning.law_bootstrap import bootstrap_laws
from pyro_nri.learning.laws import fit_laws
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


def fitted(scenes, num_rounds=(1, 1), **options):
    """A model whose laws are fitted to scenes with their true structures."""
    spec = ModelSpec(2, **({"dynamics": "pair-forces", "state_names": scenes.state_names} | options))
    model = build_model(spec, torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    fit_laws(model, scenes, structure=scenes.edge_type, num_rounds=num_rounds, seed=0)
    return model


def forces(model, draws, points):
    """Drawn laws at distances, or angles, by tabulating each: ``[R, K, M]``."""
    laws = copy.deepcopy(model.dynamics.laws)
    found = []
    for draw in draws:
        laws.set_splines(draw)
        found.append(laws(points).T)
    return torch.stack(found)


@pytest.fixture(scope="module")
def noisy():
    """A simulator of small scenes with measurement noise, and a model of 40 of them."""

    def make(num_scenes, seed=0):
        return simulate("springs", num_scenes, num_entities=3, num_frames=20, measurement_noise=0.02, seed=seed)

    return make, fitted(make(40))


# --- laws ------------------------------------------------------------------------------------------------------------
def test_springs_are_known_to_five_digits():
    scenes = simulate("springs", 15, num_entities=3, num_frames=30, seed=0)
    model = fitted(scenes)
    found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=20, seed=0)
    assert found.draws.shape == (20, 2, NUM_SPLINES)
    assert found.draws.dtype == torch.float64
    assert found.support.shape == (2, NUM_POINTS)
    points = torch.linspace(0.3, 1.5, 100, dtype=torch.double)
    drawn = forces(model, found.draws, points).median(0).values
    assert (drawn[1] + 0.1 * points).abs().median() < 1e-5
    assert drawn[0].abs().max() < 1e-5


def test_oscillators():
    scenes = simulate("kuramoto", 12, num_entities=3, num_frames=20, seed=0)
    model = fitted(scenes)
    found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=10, seed=0)
    angle = torch.linspace(-3, 3, 50, dtype=torch.double)
    drawn = forces(model, found.draws, angle)
    torch.testing.assert_close(drawn[:, 1], angle.sin().expand(10, -1), rtol=0, atol=1e-3)
    assert found.support.min() > 1


@pytest.mark.statistical
def test_intervals_shrink_with_the_root_of_the_number_of_scenes(noisy):
    make, model = noisy
    points = torch.linspace(0.5, 1.5, 20, dtype=torch.double)
    width = []
    for num_scenes in (25, 100):
        scenes = make(num_scenes, seed=1)
        found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=100, seed=0)
        width.append(float(forces(model, found.draws, points).std(0).log().mean().exp()))
    # the standard deviation of 100 draws is known to 7 %, and 20 points are some 5 independent ones
    assert width[0] / width[1] == pytest.approx(2, rel=0.25)


@pytest.mark.slow
@pytest.mark.statistical
def test_nine_of_ten_intervals_hold_the_true_law(noisy):
    make, model = noisy
    points = torch.linspace(0.4, 1.6, 30, dtype=torch.double)
    truth = torch.stack([0 * points, -0.1 * points])
    holds = []
    for seed in range(10):
        scenes = make(25, seed=10 + seed)
        found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=60, seed=seed)
        drawn = forces(model, found.draws, points)
        low, high = drawn.quantile(torch.tensor([0.05, 0.95]).double(), dim=0)
        holds.append(((low <= truth) & (truth <= high)).double().mean().item())
    # 2 laws of about 6 independent places, 10 times: a standard error of 0.03
    assert np.mean(holds) == pytest.approx(0.88, abs=0.075)


def test_unknown_structures_widen_nothing_where_they_are_certain():
    scenes = simulate("springs", 12, num_entities=3, num_frames=25, seed=0)
    model = fitted(scenes)
    known = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=5, seed=0)
    inferred = bootstrap_laws(model, scenes, num_replicates=5, seed=0)
    points = torch.linspace(0.5, 1.2, 20, dtype=torch.double)
    torch.testing.assert_close(
        forces(model, known.draws, points), forces(model, inferred.draws, points), rtol=0, atol=1e-4
    )


def test_uncertain_structures_are_drawn(noisy):
    """Windows of three frames say little about an edge: intervals are wider than those of known structures."""
    make, model = noisy
    scenes = make(60).frames(0, 3)
    points = torch.linspace(0.6, 1.4, 20, dtype=torch.double)
    width = [
        forces(model, bootstrap_laws(model, scenes, structure=given, num_replicates=60, seed=0).draws, points).std(0)
        for given in (scenes.edge_type, None)
    ]
    assert width[1][1].median() > 1.05 * width[0][1].median()


def test_no_interaction_stays_none():
    scenes = simulate("springs", 12, num_entities=3, num_frames=15, seed=0)
    model = fitted(scenes, no_interaction=True)
    found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=5, seed=0)
    assert not found.draws[:, 0].any()
    assert found.draws[:, 1].any()
    assert not found.support[0].any()


def test_missing_states_and_padding(noisy):
    """A fourth entity that is not there, at one place with another, and holes in the data: laws stay what they are."""
    make, model = noisy
    whole = make(12)
    seen = torch.rand(12, 20, 3, generator=torch.Generator().manual_seed(0)) > 0.03
    padded = torch.cat([whole.trajectory, whole.trajectory[:, :, :1]], 2)
    scenes = Scenes.from_arrays(
        padded,
        time_step=whole.time_step,
        observation_mask=torch.nn.functional.pad(seen, (0, 1)),
        entity_mask=torch.tensor([True, True, True, False]).expand(12, 4),
    )
    inside = torch.tensor([3 not in (i, j) for i in range(4) for j in range(4) if i != j])
    types = torch.zeros(12, 12, dtype=torch.long)
    types[:, inside] = whole.edge_type
    found = bootstrap_laws(model, scenes, structure=types, num_replicates=40, seed=0)
    points = torch.linspace(0.5, 1.2, 10, dtype=torch.double)
    drawn = forces(model, found.draws, points)[:, 1]
    assert ((drawn.mean(0) + 0.1 * points).abs() < 4 * drawn.std(0)).all()
    assert found.support.max() <= 12


# --- what is resampled -----------------------------------------------------------------------------------------------
def test_support_counts_scenes(noisy):
    """Never more than there are; none where no two entities ever were."""
    make, model = noisy
    scenes = make(40)
    found = bootstrap_laws(model, scenes, structure=scenes.edge_type, num_replicates=2, seed=0)
    assert 10 < found.support.max() <= 40
    position = scenes.trajectory[..., :2]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    apart = torch.stack([(position[:, :, i] - position[:, :, j]).norm(dim=-1) for i, j in pairs], 1)  # [B, E, T]
    furthest = apart[scenes.edge_type == 1].max()
    laws = model.dynamics.laws
    knot = torch.exp((laws.high - laws.low) / (NUM_SPLINES - 3))
    beyond = laws.points() > 1.01 * knot * furthest  # paths within a frame may lead a little further
    assert beyond.any()
    assert not found.support[1, beyond].any()
    assert found.support[1, (laws.points() > 0.5) & (laws.points() < furthest)].all()


@pytest.mark.parametrize(("num_scenes", "most"), [(12, 12), (4, 12), (1, 3)])
def test_scenes_or_stretches_are_resampled_where_structures_are_shared(noisy, num_scenes, most):
    """Twelve scenes of one structure: scenes; four: three stretches of six frames each; one: stretches of five."""
    make, model = noisy
    scenes = make(num_scenes).share_structure("all")
    found = bootstrap_laws(model, scenes, structure=scenes.edge_type[:1], num_replicates=20, seed=0)
    assert most / 3 < found.support.max() <= most + 1e-4
    assert found.draws.std(0).max() > 0


def test_the_seed_fixes_everything_and_nothing_else_changes(noisy):
    make, model = noisy
    scenes = make(12)
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    one, same, other = (bootstrap_laws(model, scenes, num_replicates=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.draws, same.draws)
    assert torch.equal(one.support, same.support)
    assert not torch.equal(one.draws, other.draws)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- refused ---------------------------------------------------------------------------------------------------------
def test_bad_input(noisy):
    make, model = noisy
    scenes = make(2)
    with pytest.raises(ValueError, match="num_replicates must be at least 1, found 0"):
        bootstrap_laws(model, scenes, num_replicates=0, seed=0)
    for spec in (ModelSpec(2), ModelSpec(2, dynamics="pair-forces")):
        with pytest.raises(ValueError, match="needs pair forces whose laws are fitted"):
            bootstrap_laws(build_model(spec, torch.Generator().manual_seed(0)), scenes, seed=0)
