from collections import Counter

import numpy as np
import pandas as pd
import pytest

from pyro_nri.posterior.frames import edges_frame
from pyro_nri.posterior.graph_statistics import distances_frame, edge_counts_frame


def as_table(numbers):
    """Probabilities of whole numbers by a loop."""
    return {value: count / len(numbers) for value, count in Counter(map(int, numbers)).items()}


def rows(frame, scene, name):
    part = frame[frame["scene"] == scene]
    return dict(zip(part[name].tolist(), part["probability"], strict=True))


def test_numbers_of_edges(make_tree, unequal):
    tree = make_tree(scenes=unequal)
    draws = tree["posterior/edge_type"].values
    found = edge_counts_frame(tree, 1)
    for scene, own in (("shoal", slice(0, 12)), ("other", slice(12, 18))):
        wanted = as_table([int(z.sum()) for chain in draws[..., own] for z in chain])
        assert rows(found, scene, "num_edges") == pytest.approx(wanted)
    zeros = edge_counts_frame(tree, 0, ["other"])
    assert rows(zeros, "other", "num_edges") == pytest.approx(
        {6 - number: share for number, share in rows(found, "other", "num_edges").items()}
    )


def test_distances_to_the_truth_and_to_a_table(make_tree, make_scenes):
    scenes = make_scenes(2)
    tree = make_tree(scenes=scenes, type_alignment=[1, 0])
    draws, truth = tree["posterior/edge_type"].values, scenes.edge_type.numpy()
    found = distances_frame(tree)
    for g in range(2):
        own = draws[..., 6 * g : 6 * g + 6]
        wanted = as_table([sum(1 - k != t for k, t in zip(z, truth[g], strict=True)) for c in own for z in c])
        assert rows(found, str(g), "distance") == pytest.approx(wanted)
    pd.testing.assert_frame_equal(distances_frame(tree, scenes), found)
    # The same graphs as a table, in the posterior's own labels and another order.
    table = edges_frame(tree, wide=True).assign(edge_type=1 - truth.ravel()).sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(distances_frame(tree, table), found)
    assert distances_frame(tree, table, ["1"])["scene"].unique().tolist() == ["1"]


@pytest.mark.statistical
def test_errors_of_shares(make_tree):
    edge_type = np.random.default_rng(0).random((4, 500, 1, 2)) < 0.3
    found = edge_counts_frame(make_tree(edge_type), 1)
    p = found["probability"]
    np.testing.assert_allclose(found["mcse"], np.sqrt(p * (1 - p) / 2000), rtol=0.2)


def test_bad_arguments(make_tree, make_scenes):
    tree = make_tree()
    with pytest.raises(ValueError, match="edge_type must be between 0 and 1, found 2"):
        edge_counts_frame(tree, 2)
    with pytest.raises(ValueError, match="the posterior holds no draw"):
        edge_counts_frame(make_tree(np.zeros((2, 0, 1, 6), np.int8)), 1)
    table = edges_frame(tree, wide=True)
    with pytest.raises(ValueError, match="reference must have a column 'receiver', found scene, sender, edge_type"):
        distances_frame(tree, table[["scene", "sender", "edge_type"]])
    with pytest.raises(ValueError, match="reference has no edge from '0' to '1' in scene '0'"):
        distances_frame(tree, table.iloc[1:])
    with pytest.raises(ValueError, match="an edge comes twice"):
        distances_frame(tree, pd.concat([table, table]))
    with pytest.raises(ValueError, match="the posterior does not know the true structures"):
        distances_frame(make_tree(scenes=make_scenes(edge_type=None)))
