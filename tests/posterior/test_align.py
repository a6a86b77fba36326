import itertools

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from pyro_nri.posterior.align import (
    aligned_probability,
    apply_alignment,
    confusion,
    fit_alignment,
    many_to_one_alignment,
)

SIZES = [(2, 2), (3, 3), (4, 2), (2, 4)]


@pytest.mark.parametrize(("num_types", "num_true"), SIZES)
def test_confusion_counts(num_types, num_true):
    rng = np.random.default_rng(0)
    inferred, truth = rng.integers(0, num_types, 200), rng.integers(0, num_true, 200)
    size = max(num_types, num_true)
    wanted = confusion_matrix(inferred, truth, labels=range(size))[:num_types, :num_true]
    np.testing.assert_array_equal(confusion(inferred, truth, num_types, num_true), wanted)
    np.testing.assert_allclose(confusion(np.eye(num_types)[inferred], truth, num_types, num_true), wanted)


@pytest.mark.parametrize(("num_types", "num_true"), SIZES)
def test_no_one_to_one_relabelling_is_better(num_types, num_true):
    rng = np.random.default_rng(1)
    for _ in range(20):
        inferred, truth = rng.integers(0, num_types, 30), rng.integers(0, num_true, 30)
        alignment = fit_alignment(inferred, truth, num_edge_types=num_types, num_true_types=num_true)
        used = alignment[alignment >= 0]
        assert len(set(used.tolist())) == len(used) == min(num_types, num_true)
        labels = [*range(num_true), *[-1] * max(num_types - num_true, 0)]
        best = max((np.array(each)[inferred] == truth).sum() for each in itertools.permutations(labels, num_types))
        assert (apply_alignment(inferred, alignment) == truth).sum() == best


def test_many_to_one_takes_each_majority():
    inferred, truth = [0, 0, 0, 1, 1, 2, 2, 2], [1, 1, 0, 1, 1, 0, 0, 1]
    assert many_to_one_alignment(inferred, truth, num_edge_types=4).tolist() == [1, 1, 0, -1]


def test_aligned_probability_adds_up():
    probability = np.random.default_rng(2).dirichlet(np.ones(4), 5)
    aligned = aligned_probability(probability, [1, -1, 1, -1], 3)
    assert aligned.shape == (5, 5)
    np.testing.assert_allclose(aligned[:, 1], probability[:, 0] + probability[:, 2])
    np.testing.assert_allclose(aligned[:, 3:], probability[:, [1, 3]])
    np.testing.assert_array_equal(aligned[:, [0, 2]], 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_alignment([0, 2], [0, 1], num_edge_types=2), "inferred must be between 0 and 1"),
        (lambda: fit_alignment([0.5, 1.0], [0, 1], num_edge_types=2), "must hold whole numbers"),
        (lambda: fit_alignment([0, 1, 1], [0, 1], num_edge_types=2), r"inferred must have shape \[2\] or \[2, 2\]"),
        (lambda: aligned_probability(np.ones((3, 2)), [0, 1, 2], 2), r"alignment must have shape \[2\]"),
        (lambda: aligned_probability(np.ones((3, 2)), [0, 2], 2), "names the true type 2"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
