import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from pyro_nri.posterior.bootstrap import scene_weights
from pyro_nri.posterior.ranking import ranking_scores


def edges(num_scenes=30, num_edges=6, seed=0):
    rng = np.random.default_rng(seed)
    positive = rng.random(num_scenes * num_edges) < 0.3
    value = np.round(rng.normal(positive, 1.0), 1)  # ties
    return value, positive, np.repeat(np.arange(num_scenes), num_edges)


def test_areas_agree_with_scikit_learn():
    value, positive, scene = edges()
    area, precision = ranking_scores(value, positive, scene, num_replicates=0)
    assert area["value"] == pytest.approx(roc_auc_score(positive, value))
    assert precision["value"] == pytest.approx(average_precision_score(positive, value))


def test_intervals_are_quantiles_of_scikit_learn_on_drawn_scenes():
    value, positive, scene = edges()
    found = ranking_scores(value, positive, scene, num_replicates=50, seed=3)
    weights = list(scene_weights(30, 50, 3))[1:]
    for score, oracle in zip(found, (roc_auc_score, average_precision_score), strict=True):
        each = [oracle(positive, value, sample_weight=weight[scene]) for weight in weights]
        assert [score["low"], score["high"]] == pytest.approx(np.quantile(each, [0.025, 0.975]))


def test_order_of_edges_and_scale_do_not_matter():
    value, positive, scene = edges()
    order = np.random.default_rng(1).permutation(len(value))
    again = ranking_scores(np.exp(value)[order], positive[order], scene[order], num_replicates=20)
    for one, other in zip(ranking_scores(value, positive, scene, num_replicates=20), again, strict=True):
        assert one == pytest.approx(other)


def test_equal_values_are_chance():
    _, positive, scene = edges()
    area, precision = ranking_scores(np.ones(len(scene)), positive, scene, num_replicates=0)
    assert (area["value"], precision["value"]) == (0.5, positive.mean())


@pytest.mark.parametrize("all_are", [True, False])
def test_one_kind_alone_cannot_be_ranked(all_are):
    for score in ranking_scores([0.2, 0.5], [all_are, all_are], [0, 1], num_replicates=5):
        assert score == {"value": None, "low": None, "high": None}
