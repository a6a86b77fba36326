"""Paired standard errors, the smallest number of types, and what a comparison refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_nri.inference.heldout import held_out_score
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.selection import choose_num_types, compare_models, paired_difference, score_table
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


def make_model(num_edge_types=2, *, seed=0, scale=1.0, **options):
    options = {"state_names": ("x", "vx"), "noise": "normal"} | options
    model = build_model(ModelSpec(num_edge_types, **options), torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        model.noise.change_scale.fill_(scale)
    return model


def walks(num_scenes=6, num_frames=7, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_scenes, num_frames, 3, 2, generator=generator, dtype=torch.double)
    return Scenes.from_arrays(steps.cumsum(1), **options)


def test_paired_difference_by_hand():
    score, best = [1.0, 2.0, 6.0, 3.0], [2.0, 2.0, 9.0, 3.5]
    each = [-1.0, 0.0, -3.0, -0.5]
    mean = sum(each) / 4
    error = (4 * sum((d - mean) ** 2 for d in each) / 3) ** 0.5
    assert paired_difference(score, best) == pytest.approx((-4.5, error))
    assert paired_difference(best, best) == (0.0, 0.0)


def test_what_scenes_have_in_common_cancels():
    """Scores of two models vary a hundred times more between scenes than between models."""
    random = np.random.default_rng(0)
    scene, difference = 100 * random.standard_normal(400), 1 + random.standard_normal(400)
    total, error = paired_difference(scene + difference, scene)
    assert total == pytest.approx(difference.sum())
    assert error == pytest.approx(20, rel=0.1)


@pytest.mark.statistical
def test_standard_error_covers():
    """Over repeated sets of scenes the true difference is within two standard errors about 95 times of 100."""
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        total, error = paired_difference(0.3 + random.standard_t(5, 100), np.zeros(100))
        inside += abs(total - 30) < 2 * error
    assert 0.92 < inside / 400 < 0.98


@pytest.mark.statistical
def test_standard_error_knows_that_trainings_differ():
    """Two models that are equally good on average, each trained five times with luck: z-scores as they should be."""
    random = np.random.default_rng(2)
    z, naive = [], []
    for _ in range(400):
        one, other = (
            random.standard_normal((5, 1)) + 0.5 * random.standard_normal((5, 50)) for _ in range(2)
        )  # luck of the training, the same on all scenes
        total, error = paired_difference(one, other)
        z.append(total / error)
        total, error = paired_difference(one[0], other[0])
        naive.append(total / error)
    assert 0.85 < np.std(z) < 1.35
    assert np.std(naive) > 5


def test_fits_by_hand():
    one, other = np.array([[1.0, 2.0, 4.0], [3.0, 2.0, 2.0]]), np.array([0.0, 1.0, 1.0])
    each = one.mean(0) - other
    sums = one.sum(1)
    wanted = 3 * each.var(ddof=1) + ((sums[0] - sums[1]) ** 2 / 2) / 2
    assert paired_difference(one, other) == pytest.approx((each.sum(), wanted**0.5))


def test_no_error_without_a_sample():
    assert np.isnan(paired_difference([1.0], [2.0])[1])
    total, error = paired_difference([-np.inf, 0.0], [1.0, 2.0])
    assert total == -np.inf
    assert np.isnan(error)
    with pytest.raises(ValueError, match="same structures, found 2 and 3"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match=r"shape \[G\] or \[R, G\], found \[1, 1, 2\]"):
        paired_difference([[[1.0, 2.0]]], [1.0, 2.0])


@pytest.mark.parametrize("planted", [1, 2, 3, 4])
def test_planted_number_of_types(planted):
    """The score rises steeply up to the true number; more types gain one and a half standard errors, then nothing."""
    random = np.random.default_rng(planted)
    scene, noise = 50 * random.standard_normal(100), random.standard_normal(100)
    noise -= noise.mean()
    spare = noise + 1.5 * noise.std(ddof=1) / 10
    scores = {k: scene + 5.0 * min(k, planted) + (spare if k > planted else 0) for k in range(1, 6)}
    assert choose_num_types(scores) == planted
    assert choose_num_types(dict(reversed(scores.items()))) == planted
    assert choose_num_types(scores, num_errors=1.4) == planted + 1


def test_number_of_types_at_the_edge():
    best, worse = np.zeros(4), np.array([-1.0, -2.0, -3.0, -2.0])
    error = (4 * np.var(worse, ddof=1)) ** 0.5
    assert choose_num_types({2: worse, 3: best}, num_errors=8 / error + 1e-6) == 2
    assert choose_num_types({2: worse, 3: best}, num_errors=8 / error - 1e-6) == 3
    assert choose_num_types({2: np.full(4, -np.inf), 3: best}) == 3
    assert choose_num_types({2: np.full(4, -np.inf), 3: np.full(4, -np.inf)}) == 2
    with pytest.raises(ValueError, match="scores is empty"):
        choose_num_types({})


def test_table_of_scores():
    scores = {"big": [1.0, 2.0, 3.1], "small": [1.0, 2.1, 2.95], "bad": [-50.0, -51.0, -49.0]}
    table = score_table(scores, {"big": 3, "small": 2, "bad": 1})
    assert table.name.tolist() == ["big", "small", "bad"]
    assert table.chosen.tolist() == [False, True, False]
    assert table.score.tolist() == pytest.approx([6.1, 6.05, -150])
    assert table.per_scene.tolist() == pytest.approx([6.1 / 3, 6.05 / 3, -50])
    assert table.difference.tolist() == pytest.approx([0, -0.05, -156.1])
    assert table.median_difference.tolist() == pytest.approx([0, 0, -52.1])
    of_equals = score_table(scores, dict.fromkeys(scores, 2))
    assert of_equals.chosen.tolist() == [True, False, False]  # as many types: the best score


def test_models_are_scored_as_one_by_one():
    models = {
        "two": make_model(2),
        "three": make_model(3, seed=1, scale=2.0),
        "twice": [make_model(2), make_model(2, seed=5)],
    }
    scenes = walks()
    table = compare_models(models, scenes, num_search_frames=3, num_draws=8, seed=4)
    each = [
        held_out_score(m, scenes, num_search_frames=3, num_draws=8, seed=4)
        for m in (*list(models.values())[:2], models["twice"][1])
    ]
    assert table.score.tolist() == pytest.approx([each[0].sum(), each[1].sum(), (each[0] + each[2]).sum() / 2])
    assert table.num_edge_types.tolist() == [2, 3, 2]
    assert table.num_fits.tolist() == [1, 1, 2]
    best = int(np.argmax(table.score))
    assert table.difference[best] == table.standard_error[best] == 0
    assert table.chosen.sum() == 1


def test_an_ensemble_is_several_fits():
    spec = ModelSpec(2, state_names=("x", "vx"), noise="normal")
    members = [Checkpoint(spec, make_model(seed=seed)) for seed in (0, 5)]
    scenes = walks()
    table = compare_models({"list": members, "ensemble": Ensemble(members)}, scenes, seed=0)
    assert table.num_fits.tolist() == [2, 2]
    assert table.score[0] == table.score[1]


def test_composite_is_refused():
    scenes = simulate("springs", 2, num_entities=3, num_frames=6, seed=0)
    model = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    with pytest.raises(ValueError, match="the impulse likelihood is a composite one"):
        compare_models({"a": model}, scenes, kind="impulse", seed=0)


def test_models_that_do_not_fit_are_refused():
    scenes, model = walks(), make_model()

    def refused(match, models, scenes=scenes):
        with pytest.raises(ValueError, match=match):
            compare_models(models, scenes, seed=0)

    refused("models is empty", {})
    refused("model 'a' has no fit", {"a": []})
    refused(
        r"model 'b' does not fit the scenes: .* state variables y, vy, the scenes have x, vx",
        {"a": model, "b": make_model(state_names=("y", "vy"))},
    )
    refused(
        "model 'a' does not fit the scenes: their frames are 0.5 apart, it was trained on frames 1 apart",
        {"a": model},
        walks(time_step=0.5),
    )
    refused(r"fits of model 'a' must have one number of edge types, found \[2, 3\]", {"a": [model, make_model(3)]})
    spec = ModelSpec(2, state_names=("x", "vx"), noise="normal")
    known = Checkpoint(spec, model, training_scenes=(scenes.fingerprints[1], "another"))
    refused("model 'a' was trained on 1 of these scenes", {"a": known})
    compare_models({"a": replace(known, training_scenes=("another",))}, scenes, seed=0)


def test_horizons_score_other_frames_where_some_are_missing():
    seen = torch.ones(6, 7, 3, dtype=torch.bool)
    models = {"1": make_model(), "2": make_model(horizon=2)}
    assert len(compare_models(models, walks(observation_mask=seen), seed=0)) == 2
    seen[0, 4, 0] = False
    with pytest.raises(ValueError, match="different horizons score different frames"):
        compare_models(models, walks(observation_mask=seen), seed=0)
