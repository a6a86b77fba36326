import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_nri.posterior.plots import plot_structures

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def arrows(ax):
    return [patch for patch in ax.patches if type(patch).__name__ == "Polygon"]


def crosses(ax):
    return sum(line.get_marker() == "x" for line in ax.lines) // 2


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_one_panel_for_each_scene(make_tree, unequal, tmp_path):
    axes = plot_structures(make_tree(scenes=unequal))
    assert axes.shape == (2,)
    assert [ax.get_title() for ax in axes] == ["scene shoal", "scene other"]
    assert [texts(ax) for ax in axes] == [["a", "b", "c", "d"], ["e", "f", "g"]]
    assert [len(arrows(ax)) for ax in axes] == [12, 6]
    axes[0].figure.savefig(tmp_path / "structures.png")


def test_wrong_edges_are_marked(make_scenes, make_tree):
    scenes = make_scenes(2, edge_type=[[0, 1, 0, 1, 0, 1]] * 2)
    edge_type = np.broadcast_to(scenes.edge_type.numpy(), (2, 10, 2, 6)).copy()
    edge_type[:, :, 1, 0] = 1
    axes = plot_structures(make_tree(edge_type, scenes))
    assert [crosses(ax) for ax in axes] == [0, 1]
    assert "wrong" in [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    # Flipped labels are no errors.
    assert [crosses(ax) for ax in plot_structures(make_tree(1 - edge_type, scenes))] == [0, 1]


def test_hidden_type_leaves_only_other_arrows(make_tree):
    probability = np.tile([0.99, 0.01], (1, 6, 1))
    probability[0, 2] = [0.2, 0.8]
    probability[0, 3] = [0.7, 0.3]  # not the most probable, but far from impossible
    tree = make_tree(np.zeros((1, 4, 1, 6), np.int8), edge_probability=probability, type_names=["none", "spring"])
    (ax,) = plot_structures(tree, hidden_type=0)
    assert len(arrows(ax)) == 2
    widths = sorted(line.get_linewidth() for line in ax.lines if line.get_marker() == "None")
    assert widths[0] < widths[1]
    assert "none" not in [text.get_text() for text in ax.figure.legends[0].get_texts()]


def test_given_axes_are_used(make_tree):
    figure = Figure()
    given = figure.subplots(1, 3)
    axes = plot_structures(make_tree(), scenes=["2", "0"], axes=given)
    assert axes.tolist() == given[:2].tolist()
    assert [ax.get_title() for ax in axes] == ["scene 2", "scene 0"]
    assert not figure.legends
    with pytest.raises(ValueError, match="axes must have one entry for each of 3 scenes, found 1"):
        plot_structures(make_tree(), axes=given[0])


@pytest.mark.parametrize("layout", ["position", "circle"])
def test_entities_do_not_touch(make_tree, make_scenes, layout):
    scenes = make_scenes(1, 6, trajectory=np.zeros((1, 3, 6, 4)))  # all at one place
    (ax,) = plot_structures(make_tree(scenes=scenes), layout=layout)
    circles = [patch for patch in ax.patches if type(patch).__name__ == "Circle"]
    centres = np.array([circle.center for circle in circles])
    distance = np.linalg.norm(centres[:, None] - centres, axis=-1) + 10 * np.eye(6)
    assert distance.min() > 2 * circles[0].radius


def test_states_without_positions_are_drawn_on_a_circle(make_tree, make_scenes):
    scenes = make_scenes(1, 3, state_names=["phi", "omega", "a", "b"])
    (ax,) = plot_structures(make_tree(scenes=scenes))
    centres = np.array([patch.center for patch in ax.patches if type(patch).__name__ == "Circle"])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 0.85)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scenes": ["9"]}, "the posterior has no scene '9'"),
        ({"layout": "spiral"}, "layout must be"),
        ({"hidden_type": 2}, "hidden_type must be between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(make_tree, arguments, message):
    with pytest.raises(ValueError, match=message):
        plot_structures(make_tree(), **arguments)
