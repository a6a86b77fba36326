import itertools
import json

import numpy as np
import pytest
import scoringrules
from sklearn.metrics import accuracy_score, average_precision_score, brier_score_loss, f1_score, log_loss, roc_auc_score

from pyro_nri.posterior.rollout_errors import rollout_errors, rollout_scores
from pyro_nri.posterior.scores import score, score_edges
from pyro_nri.posterior.truth import match_truth

CONFIDENT, NUM_SCENES, NUM_EDGES = 0.2, 100, 12


def calibrated(num_types=3, seed=0):
    """Probabilities and truths drawn from them; ``[M, K]``, ``[M]`` and the scene of each edge."""
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.full(num_types, CONFIDENT), NUM_SCENES * NUM_EDGES)
    truth = (rng.random((len(probability), 1)) > probability.cumsum(1)).sum(1)
    return probability, truth, np.repeat(np.arange(NUM_SCENES), NUM_EDGES)


def value(result, name):
    return result[name]["value"]


@pytest.mark.parametrize("num_types", [2, 3])
def test_scores_agree_with_scikit_learn(num_types):
    probability, truth, scene = calibrated(num_types)
    found = score_edges(probability, truth, scene, alignment=range(num_types))
    assert value(found, "edge_accuracy") == pytest.approx(accuracy_score(truth, probability.argmax(1)))
    assert value(found, "log_score") == pytest.approx(-log_loss(truth, probability))
    brier = brier_score_loss(truth, probability, scale_by_half=False, labels=range(num_types))
    assert value(found, "brier") == pytest.approx(brier)
    assert value(found, "expected_accuracy") == pytest.approx(probability.max(1).mean())
    for k in range(num_types):
        is_type = truth == k
        assert value(found, f"f1_type_{k}") == pytest.approx(f1_score(is_type, probability.argmax(1) == k))
        assert value(found, f"auroc_type_{k}") == pytest.approx(roc_auc_score(is_type, probability[:, k]))
        precision = average_precision_score(is_type, probability[:, k])
        assert value(found, f"average_precision_type_{k}") == pytest.approx(precision)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("num_types", [2, 3])
def test_scores_agree_with_scoringrules(num_types):
    """Its scores are of one event each: Brier adds up over types, the log score is that of what happened."""
    probability, truth, scene = calibrated(num_types, seed=1)
    found = score_edges(probability, truth, scene, alignment=range(num_types))
    flags = np.eye(num_types)[truth]
    brier = scoringrules.brier_score(flags, probability).sum(1).mean()
    assert value(found, "brier") == pytest.approx(brier)
    happened = probability[np.arange(len(truth)), truth]
    assert value(found, "log_score") == pytest.approx(-scoringrules.log_score(np.ones(len(truth)), happened).mean())


def slow_calibration_error(confidence, hit):
    edges, total = np.linspace(0, 1, 16), 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    return total


def test_calibration_error():
    probability, truth, scene = calibrated()
    found = score_edges(probability, truth, scene, alignment=range(3))
    confidence, hit = probability.max(1), probability.argmax(1) == truth
    assert value(found, "ece") == pytest.approx(slow_calibration_error(confidence, hit))
    uncertain = confidence < 0.98
    assert found["num_uncertain_edges"] == uncertain.sum()
    wanted = slow_calibration_error(confidence[uncertain], hit[uncertain])
    assert value(found, "ece_uncertain") == pytest.approx(wanted)


def test_overconfidence_is_seen():
    probability, truth, scene = calibrated()
    sharp = probability**4 / (probability**4).sum(1, keepdims=True)
    honest, boastful = (score_edges(p, truth, scene, alignment=range(3)) for p in (probability, sharp))
    assert value(boastful, "ece") > 2 * value(honest, "ece")
    assert value(boastful, "log_score") < value(honest, "log_score")
    assert value(boastful, "expected_accuracy") > value(boastful, "edge_accuracy") + 0.02


@pytest.mark.statistical
def test_interval_is_that_of_scenes_not_edges():
    """All edges of a scene right or all wrong: the standard error follows from the number of scenes."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(NUM_SCENES) < 0.8, NUM_EDGES)
    probability = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9])
    found = score_edges(
        probability, np.zeros(len(right), int), np.repeat(np.arange(NUM_SCENES), NUM_EDGES), alignment=[0, 1]
    )["edge_accuracy"]
    share = right.mean()
    assert found["value"] == share
    error = np.sqrt(share * (1 - share) / NUM_SCENES)
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_spare_types_count_as_wrong():
    probability = np.eye(3)[[0, 0, 1, 2]]
    found = score_edges(probability, [1, 1, 0, 0], [0, 0, 1, 1])
    assert found["alignment"] == "fitted on the scored scenes"
    assert found["type_alignment"][0] == 1
    assert -1 in found["type_alignment"]
    assert value(found, "edge_accuracy") == 0.75
    assert value(found, "edge_accuracy_many_to_one") == 1
    assert value(found, "brier") == 0.5


def test_one_scene_has_no_interval_and_sure_edges_no_calibration():
    found = score_edges(np.eye(2)[[0, 1]], [0, 1], [0, 0])
    assert found["edge_accuracy"] == {"value": 1.0, "low": None, "high": None}
    assert value(found, "ece_uncertain") is None


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"must have shapes \[M, K\], \[M\], \[M\]"):
        score_edges(np.ones((3, 2)), [0, 1], [0, 0, 0])


# --- posterior against truth -----------------------------------------------------------------------------------------
def right_draws(scenes, num_draws=20):
    truth = scenes.edge_type[scenes.group_first_scene].numpy()
    return np.broadcast_to(truth, (2, num_draws, *truth.shape)).astype(np.int8)


def test_names_match_not_places(unequal, make_tree, make_scenes):
    tree = make_tree(right_draws(unequal), unequal)
    found = score(tree, unequal, alignment=[0, 1])
    assert value(found, "edge_accuracy") == 1
    assert found["estimator"] == "counts"
    assert (found["num_scenes"], found["num_edges"], found["alignment"]) == (2, 18, "given")
    # The same truth, with scenes and entities in another order and one more entity of the other scene.
    entity = [3, 1, 0, 2]
    matrix = np.zeros((3, 4, 4), int)
    for b in range(3):
        matrix[b][~np.eye(4, dtype=bool)] = unequal.edge_type[b]
    shuffled = matrix[:, entity][:, :, entity][:, ~np.eye(4, dtype=bool)]
    names = [["d", "b", "a", "c"], ["new", "f", "e", "g"], ["d", "b", "a", "c"]]
    truth = make_scenes(
        3, 4, edge_type=shuffled[[2, 1, 0]], entity_names=names, scene_names=["Tuesday", "other", "Monday"]
    )
    np.testing.assert_array_equal(match_truth(tree, truth), match_truth(tree, unequal))


def test_truth_may_name_the_group_only(unequal, make_tree, make_scenes):
    tree = make_tree(right_draws(unequal), unequal)
    one_each = unequal[[0, 1]]
    truth = make_scenes(
        2, 4, edge_type=one_each.edge_type, entity_names=one_each.entity_names, scene_names=["shoal", "other"],
        entity_mask=one_each.entity_mask,
    )  # fmt: skip
    np.testing.assert_array_equal(match_truth(tree, truth), match_truth(tree, unequal))


def test_alignment_comes_from_the_training_scenes(make_scenes, make_tree):
    scenes = make_scenes(5)
    flipped = 1 - right_draws(scenes)
    found = score(make_tree(flipped, scenes, type_alignment=[1, 0]), scenes)
    assert (value(found, "edge_accuracy"), found["alignment"]) == (1, "from the training scenes")
    found = score(make_tree(flipped, scenes, type_alignment=[0, 1]), scenes)
    assert value(found, "edge_accuracy") == 0
    found = score(make_tree(flipped, scenes), scenes)
    assert (value(found, "edge_accuracy"), found["alignment"]) == (1, "fitted on the scored scenes")


def test_truth_that_does_not_fit_is_refused(make_scenes, make_tree):
    scenes = make_scenes(3)
    tree = make_tree(right_draws(scenes), scenes)
    with pytest.raises(ValueError, match="no edge types"):
        score(tree, make_scenes(3, edge_type=None))
    with pytest.raises(ValueError, match="truth has no scene '2'"):
        score(tree, scenes[:2])
    with pytest.raises(ValueError, match="truth has no entity '2' in scene '0'"):
        score(tree, make_scenes(3, entity_names=["0", "1", "two"]))
    shared = make_scenes(2, edge_type=[[0] * 6] * 2).share_structure("all")
    with pytest.raises(ValueError, match="different edge types for recordings of scene 'all'"):
        score(make_tree(scenes=shared), make_scenes(2, edge_type=[[0] * 6, [1] * 6]))


# --- rollouts --------------------------------------------------------------------------------------------------------
def test_rollout_errors():
    rng = np.random.default_rng(0)
    observed, scale = rng.standard_normal((4, 30, 3, 2)), np.array([5.0, 2.0])
    offset = rng.standard_normal((4, 20, 3, 2))
    errors = rollout_errors(observed[:, 6:26] + offset, observed, start=5, scale=scale)
    assert list(errors) == [1, 10, 20]
    np.testing.assert_allclose(errors[10], ((offset[:, 9] / scale) ** 2).mean((1, 2)))


def test_unseen_entities_are_left_out_and_lost_predictions_are_not():
    observed, guess = np.zeros((3, 4, 2, 1)), np.ones((3, 2, 2, 1))
    seen = np.ones((3, 4, 2), bool)
    seen[0, 2, 0] = False
    guess[0, 0, 0] = 100
    seen[1, 2] = False
    guess[2, 0, 0] = np.nan
    errors = rollout_errors(guess, observed, start=1, scale=[1.0], steps=[1], observation_mask=seen)[1]
    np.testing.assert_array_equal(errors, [1, np.nan, np.inf])


def test_rollout_scores():
    errors = np.append(np.random.default_rng(0).exponential(size=200), np.nan)
    found = rollout_scores({10: errors})
    assert found["mse_10"]["value"] == pytest.approx(np.nanmean(errors))
    assert found["mse_10_median"]["value"] == pytest.approx(np.nanmedian(errors))
    for interval in found.values():
        assert interval["low"] < interval["value"] < interval["high"]
    assert rollout_scores({1: np.array([np.nan])})["mse_1"] == {"value": None, "low": None, "high": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [3]}, "steps must lie within 2 predictions"),
        ({"start": 3}, "the 0 frames after frame 3"),
        ({"scale": [1.0, 2.0]}, r"scale must be positive and have shape \[1\]"),
        ({"predictions": np.zeros((3, 2, 1, 1))}, "predictions and observed must have shapes"),
        ({"observation_mask": np.ones((3, 4))}, "observation_mask must have shape"),
    ],
)
def test_bad_rollouts_are_refused(changes, message):
    arguments = {"predictions": np.zeros((3, 2, 2, 1)), "observed": np.zeros((3, 4, 2, 1)), "start": 1, "scale": [1.0]}
    with pytest.raises(ValueError, match=message):
        rollout_errors(**{"steps": [1], **arguments, **changes})
