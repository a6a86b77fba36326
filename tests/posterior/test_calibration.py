import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from pyro_nri.posterior.calibration import (
    NO_SIGN,
    OVER,
    UNDER,
    UNKNOWN,
    best_temperature,
    calibration,
    edge_calibration,
    reliability_table,
)
from pyro_nri.posterior.truth import KnownEdges

NUM_SCENES, NUM_EDGES = 150, 12


def known(probability, truth, scene=None, alignment=None):
    scene = np.repeat(np.arange(NUM_SCENES), NUM_EDGES) if scene is None else np.asarray(scene)
    labels = np.arange(probability.shape[1]) if alignment is None else np.asarray(alignment)
    return KnownEdges(np.asarray(probability, float), np.asarray(truth), scene, labels, "given", "exact")


def tempered(temperature, num_types=2, seed=0, num_scenes=NUM_SCENES):
    """Truths drawn from probabilities, which are then reported at a temperature; below 1 they boast."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(0, 2, (num_scenes * NUM_EDGES, num_types))
    truth = (rng.random((len(logit), 1)) > softmax(logit, axis=1).cumsum(1)).sum(1)
    return known(softmax(logit / temperature, axis=1), truth, np.repeat(np.arange(num_scenes), NUM_EDGES))


# --- verdict ---------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize(("temperature", "direction"), [(0.4, OVER), (1, NO_SIGN), (2.5, UNDER)])
@pytest.mark.parametrize("num_types", [2, 3])
def test_direction(temperature, direction, num_types):
    found = edge_calibration(tempered(temperature, num_types), num_replicates=200)
    assert found.direction == direction
    assert direction in str(found) or direction == NO_SIGN
    assert (found.scores["temperature"]["value"] - 1) * (1 - temperature) >= 0


@pytest.mark.statistical
def test_calibrated_posteriors_are_rarely_blamed():
    """Twice 2.5 % for each of two figures that hang together."""
    edges = [tempered(1, seed=s, num_scenes=40) for s in range(60)]
    blamed = sum(edge_calibration(each, num_replicates=50).direction != NO_SIGN for each in edges)
    assert blamed <= 6 + 3 * np.sqrt(60 * 0.1 * 0.9)


def test_scenes_that_hang_together_are_no_overconfidence():
    """20 of 40 scenes are all right, the others all wrong, at 0.58: for edges that is a sign, for scenes none."""
    right = np.repeat(np.arange(40) % 2, NUM_EDGES)
    probability = np.tile([0.58, 0.42], (len(right), 1))
    scene = np.repeat(np.arange(40), NUM_EDGES)
    together = edge_calibration(known(probability, 1 - right, scene), num_replicates=200)
    alone = edge_calibration(known(probability, 1 - right, np.arange(len(right))), num_replicates=200)
    assert (together.direction, alone.direction) == (NO_SIGN, OVER)
    assert together.scores["excess_confidence"]["value"] == pytest.approx(0.08)


def test_certain_edges():
    """All right: nothing can be told, though every replicate is better than expected. Some wrong: too sure."""
    sure = np.tile([0.9995, 0.0005], (NUM_SCENES * NUM_EDGES, 1))
    truth = np.zeros(len(sure), int)
    assert edge_calibration(known(sure, truth), num_replicates=50).direction == UNKNOWN
    truth[::20] = 1
    found = edge_calibration(known(sure, truth), num_replicates=50)
    assert found.direction == OVER
    assert found.verdict.startswith("This posterior is over-confident: 95.00 % of the edges are right where it expects")


def test_one_scene_needs_more():
    few = known(np.tile([0.9, 0.1], (20, 1)), (np.arange(20) % 5 == 0) * 1, np.zeros(20, int))
    found = edge_calibration(few, num_replicates=10)
    assert found.direction == NO_SIGN
    assert found.scores["excess_confidence"] == pytest.approx({"value": 0.1, "low": None, "high": None}, nan_ok=True)
    assert "only 20 edges are in doubt" in found.verdict
    wrong = known(np.tile([0.9, 0.1], (20, 1)), np.ones(20, int), np.zeros(20, int))
    assert edge_calibration(wrong, num_replicates=10).direction == OVER


# --- temperature -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [0.4, 1, 3])
@pytest.mark.parametrize("num_types", [2, 4])
def test_best_temperature_agrees_with_an_optimiser(temperature, num_types):
    edges = tempered(temperature, num_types)

    def loss(log_temperature):
        logit = np.log(edges.probability) / np.exp(log_temperature)
        return -np.log(softmax(logit, axis=1))[np.arange(len(logit)), edges.true_edge_type].sum()

    wanted = np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded", options={"xatol": 1e-8}).x)
    found = best_temperature(edges, num_replicates=100)
    assert found["value"] == pytest.approx(wanted, rel=2e-3)
    assert found["low"] < 1 / temperature < found["high"]


def test_temperature_of_edges_that_are_all_right_has_no_bound():
    edges = known(np.tile([0.9, 0.1], (20, 1)), np.zeros(20, int), np.arange(20))
    assert best_temperature(edges, num_replicates=5)["value"] == 1 / 16


def test_types_that_share_a_true_type_and_spare_ones():
    """Two types are one to the truth: tempering acts before they are added. A spare type is never right."""
    probability = np.array([[0.5, 0.3, 0.2]])
    edges = known(probability, [0], [0], [0, 0, -1])
    assert best_temperature(edges, num_replicates=0)["value"] == 1 / 16
    edges = known(probability, [1], [0], [0, 0, -1])
    found = edge_calibration(edges, num_replicates=0)
    assert found.scores["log_score"]["value"] == pytest.approx(np.log(np.finfo(float).eps))


# --- table -----------------------------------------------------------------------------------------------------------
def test_table_agrees_with_scikit_learn():
    edges = tempered(0.5)
    found = reliability_table(edges, edge_type=1, num_bins=10, num_replicates=50)
    share, mean = calibration_curve(edges.true_edge_type, edges.probability[:, 1], n_bins=10)
    np.testing.assert_allclose(found["share_right"], share)
    np.testing.assert_allclose(found["mean_probability"], mean)
    assert found["num_edges"].sum() == NUM_SCENES * NUM_EDGES
    assert (found["low"] <= found["share_right"]).all()
    assert (found["high"] >= found["share_right"]).all()


def test_table_of_the_most_probable_type_adds_up_to_the_calibration_error():
    edges = tempered(0.5, 3)
    found = edge_calibration(edges, num_replicates=5)
    gap = (found.table["share_right"] - found.table["mean_probability"]).abs()
    assert np.average(gap, weights=found.table["num_edges"]) == pytest.approx(found.scores["ece"]["value"])


@pytest.mark.statistical
def test_chance_error_is_the_spread_of_calibrated_tables():
    rows = [reliability_table(tempered(1, seed=s), num_bins=2, num_replicates=0).iloc[-1] for s in range(100)]
    standard = [(row["share_right"] - row["mean_probability"]) / row["chance_error"] for row in rows]
    assert np.std(standard) == pytest.approx(1, abs=3 / np.sqrt(200))


def test_bad_arguments():
    edges = tempered(1)
    with pytest.raises(ValueError, match="num_bins must be at least 1, found 0"):
        reliability_table(edges, num_bins=0)
    with pytest.raises(ValueError, match=r"edge_type must be one of \[0, 1\], found 2"):
        reliability_table(edges, edge_type=2)


# --- of a posterior --------------------------------------------------------------------------------------------------
def test_of_a_posterior_with_the_truth_that_it_carries(make_tree, make_scenes):
    scenes = make_scenes(40)
    rng = np.random.default_rng(0)
    truth = scenes.edge_type.numpy()
    wrong = rng.random(truth.shape) < 0.3
    draws = np.broadcast_to(np.where(wrong, 1 - truth, truth), (2, 50, *truth.shape)).copy()
    flip = rng.random(draws.shape) < 0.05
    tree = make_tree(np.where(flip, 1 - draws, draws), scenes)
    found = calibration(tree, num_replicates=100)
    assert found.direction == OVER
    again = calibration(tree, scenes, alignment=[0, 1], num_replicates=100)
    assert again.scores == found.scores
    with pytest.raises(ValueError, match="the posterior does not know the true structures"):
        calibration(make_tree(scenes=make_scenes(edge_type=None)))
