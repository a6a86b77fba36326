"""Pictures show the numbers that they are of; how they look was judged by eye. Graphs of structures: test_plots.py."""

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from pyro_nri.posterior.calibration import reliability_table
from pyro_nri.posterior.calibration_plots import plot_reliability
from pyro_nri.posterior.chain_plots import plot_ranks, plot_split_frequencies, plot_trace
from pyro_nri.posterior.edge_plots import plot_edge_counts, plot_edge_probabilities, plot_structure_probabilities
from pyro_nri.posterior.figures import COLOURS, MARKERS, SHADES
from pyro_nri.posterior.frames import edges_frame, structures_frame
from pyro_nri.posterior.graph_statistics import edge_counts_frame
from pyro_nri.posterior.track_plots import plot_predictions, plot_tracks
from pyro_nri.posterior.truth import known_edges

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def heights(ax):
    return [bar.get_height() for bar in ax.patches]


def labels_below(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# --- probabilities ---------------------------------------------------------------------------------------------------
def test_heat_map_has_the_sender_in_the_row(make_tree, unequal):
    tree = make_tree(scenes=unequal)
    axes = plot_edge_probabilities(tree, 1)
    assert [ax.get_title() for ax in axes] == ["scene shoal", "scene other"]
    matrix = axes[1].images[0].get_array()
    frame = edges_frame(tree, ["other"]).query("edge_type == 1")
    row, column = (frame[end].map({"e": 0, "f": 1, "g": 2}) for end in ("sender", "receiver"))
    np.testing.assert_array_equal(np.asarray(matrix)[row, column], frame["probability"])
    assert np.isnan(np.diag(np.asarray(matrix).astype(float))).all()
    assert [text.get_text() for text in axes[1].get_yticklabels()] == ["e", "f", "g"]
    known = known_edges(tree)
    assert len(axes[1].lines) == (known.true_edge_type[12:] == known.alignment[1]).sum()
    assert labels_below(axes[0].figure) == ["truly type 1"]


def test_heat_map_never_writes_0_or_100_for_what_is_neither(make_tree):
    probability = np.full((1, 6, 2), 0.5)
    probability[0, :3, 1] = 1e-9, 0, 0.9999
    (ax,) = plot_edge_probabilities(make_tree(np.zeros((1, 4, 1, 6), np.int8), edge_probability=probability), 1)
    assert [text.get_text() for text in ax.texts] == ["<1", "0", ">99", "50", "50", "50"]


def test_bars_of_structures(make_tree):
    edge_type = np.zeros((2, 50, 1, 2), np.int8)
    edge_type[:, :15, 0, 0] = 1
    edge_type[:, 10:15, 0, 1] = 1
    tree = make_tree(edge_type, type_names=["none", "spring"])
    (ax,) = plot_structure_probabilities(tree, num_top=2)
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([*structures_frame(tree)["probability"][:2], 0.1])
    labels = [text.get_text() for text in ax.get_yticklabels()]
    assert labels == ["most probable", "0 \N{RIGHTWARDS ARROW} 1: spring", "all others"]
    (ax,) = plot_structure_probabilities(tree)
    assert len(ax.patches) == 3  # nothing is left over


def test_numbers_of_edges(make_tree, make_scenes):
    scenes = make_scenes(2, edge_type=[[0, 1, 0, 1, 1, 1]] * 2)
    tree = make_tree(scenes=scenes, type_alignment=[0, 1])
    axes = plot_edge_counts(tree, 1, scenes=["1", "0"])
    assert [ax.get_title() for ax in axes] == ["scene 1", "scene 0"]
    frame = edge_counts_frame(tree, 1)
    assert heights(axes[0]) == frame[frame["scene"] == "1"]["probability"].tolist()
    assert axes[0].lines[0].get_xdata()[0] == 4


def test_reliability(make_tree, make_scenes):
    known = known_edges(make_tree(scenes=make_scenes(20)))
    table = reliability_table(known, edge_type=1, num_replicates=20)
    ax = plot_reliability(table)
    points = next(line for line in ax.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(points.get_xydata(), table[["mean_probability", "share_right"]])
    assert [text.get_text() for text in ax.texts][:-1] == table["num_edges"].astype(str).tolist()
    several = plot_reliability({"a": table, "b": table})
    assert [text.get_text() for text in several.get_legend().get_texts()] == ["calibrated", "a", "b"]
    with pytest.raises(ValueError, match="column 'chance_error' is missing"):
        plot_reliability(table.drop(columns="chance_error"))
    with pytest.raises(ValueError, match="found no row"):
        plot_reliability(table.iloc[:0])


# --- chains ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def stuck(make_tree):
    """Edge 0 -> 2 is at another type in each chain, 0 -> 1 moves, the others never do."""
    edge_type = np.zeros((2, 40, 1, 6), np.int8)
    edge_type[1, :, 0, 1] = 1
    edge_type[:, ::2, 0, 0] = 1
    return make_tree(edge_type)


def test_trace_shows_what_chains_disagree_about_first(stuck):
    ax = plot_trace(stuck, "0", max_edges=2)
    shown = ax.images[0].get_array()
    assert shown.shape == (2 * 3 - 1, 40)
    np.testing.assert_array_equal(np.asarray(shown[:2]), [[0] * 40, [1] * 40])
    np.testing.assert_array_equal(np.asarray(shown[3]), [1, 0] * 20)
    assert shown.mask[2].all()
    assert [text.get_text()[-1] for text in ax.get_yticklabels()] == ["2", "1"]


@pytest.mark.statistical
def test_ranks_are_level_where_chains_agree(make_tree, stuck):
    edge_type = np.random.default_rng(0).integers(0, 2, (4, 1000, 1, 6))
    axes = plot_ranks(make_tree(edge_type), "0", 1)
    steps = np.array([patch.get_data().values for ax in axes for patch in ax.patches if hasattr(patch, "get_data")])
    assert steps.shape == (6 * 4, 10)
    assert steps.sum(1) == pytest.approx(100)
    inside = np.abs(steps - 10) < 2.6 * np.sqrt(10 * 90 / 1000)
    assert inside.mean() > 0.97
    edges = plot_ranks(stuck, "0", 1, max_edges=1)
    low, high = (patch.get_data().values for patch in edges[0].patches if hasattr(patch, "get_data"))
    assert (low[:5] == 20).all()
    assert (high[5:] == 20).all()


def test_split_frequencies_name_the_worst_edge(stuck, make_tree):
    ax = plot_split_frequencies(stuck)
    points = [line.get_xydata() for line in ax.lines if line.get_linestyle() == "None"]
    np.testing.assert_array_equal(points[0], [[0.5, 0.5], [0, 1], *[[0, 0]] * 4])
    assert ax.get_title() == "largest difference 1.00: scene 0, 0 \N{RIGHTWARDS ARROW} 2\nin chains 0 and 1"
    alone = np.zeros((1, 40, 1, 6), np.int8)
    alone[:, 20:, 0, 3] = 1
    assert "in halves 0 and 1" in plot_split_frequencies(make_tree(alone)).get_title()
    agreeing = plot_split_frequencies(make_tree(np.zeros((2, 8, 1, 6), np.int8)))
    assert agreeing.get_title() == "largest difference 0.00"


# --- motion ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def paths(make_scenes):
    """Predictions of the last two frames of the recordings of ``make_scenes``, half a unit beside what was observed."""
    scenes = make_scenes(2)
    seen = scenes.trajectory[:, 4:].numpy()
    axes = ("recording", "frame", "entity", "state")
    names = {"entity_name": (("recording", "entity"), np.array(scenes.entity_names, dtype=str))}
    return xr.Dataset(
        {"mean": (axes, seen + 0.5), "low": (axes, seen), "high": (axes, seen + 2.0), **names},
        coords={"recording": list(scenes.scene_names), "frame": [4, 5], "state": list(scenes.state_names)},
        attrs={"start": 3, "interval": 0.9},
    )


def test_predictions_and_what_was_observed(paths, make_scenes):
    axes = plot_predictions(paths, "1", scenes=make_scenes(2), states=["y", "vx"], num_before=2)
    assert axes.shape == (2,)
    trajectory = make_scenes(2).trajectory[1].numpy()
    lines = [line for line in axes[0].lines if line.get_linestyle() != "None" and len(line.get_xdata()) == 2]
    mean = [line.get_ydata() for line in lines if line.get_xdata()[0] == 4]
    np.testing.assert_allclose(np.stack(mean, 1), trajectory[4:, :, 1] + 0.5)
    dots = [line for line in axes[1].lines if line.get_linestyle() == "None"]
    np.testing.assert_allclose(dots[2].get_xydata(), np.stack([np.arange(1, 6), trajectory[1:, 2, 2]], 1))
    assert len(axes[0].collections) == 3
    assert labels_below(axes[0].figure) == ["0", "1", "2", "90 % of draws", "observed"]


def test_tracks_in_the_plane(paths, make_scenes):
    ax = plot_tracks(paths, "0", scenes=make_scenes(2))
    assert len(ax.patches) == 2 * 3
    trajectory = make_scenes(2).trajectory[0].numpy()
    ellipse = ax.patches[0]
    np.testing.assert_allclose(ellipse.get_center(), trajectory[4, 0, :2] + 1)
    assert (ellipse.width, ellipse.height) == pytest.approx((2, 2))
    assert "observed" in labels_below(ax.figure)
    assert "observed" not in labels_below(plot_tracks(paths, "0").figure)


# --- all of them -----------------------------------------------------------------------------------------------------
EVERY = {
    "edge probabilities": lambda tree, **given: plot_edge_probabilities(tree, 1, scenes=["0"], axes=given["ax"]),
    "structures": lambda tree, **given: plot_structure_probabilities(tree, scenes=["0"], axes=given["ax"]),
    "edge counts": lambda tree, **given: plot_edge_counts(tree, 1, scenes=["0"], axes=given["ax"]),
    "trace": lambda tree, **given: plot_trace(tree, "0", **given),
    "ranks": lambda tree, **given: plot_ranks(tree, "0", 1, max_edges=1, axes=given["ax"]),
    "split frequencies": plot_split_frequencies,
    "reliability": lambda tree, **given: plot_reliability(
        reliability_table(known_edges(tree), num_replicates=5), **given
    ),
}


@pytest.mark.parametrize("draw", EVERY.values(), ids=EVERY)
def test_given_axes_are_used_and_named(make_tree, draw):
    figure = Figure()
    given = figure.subplots()
    found = draw(make_tree(), ax=given)
    assert np.atleast_1d(np.asarray(found, dtype=object)).tolist() == [given]
    assert given.get_xlabel()
    figure.savefig("/dev/null", format="png")


def test_pictures_can_be_read_in_grey():
    """Shades darken all the way; colours come with markers, of which no two are alike."""
    luminance = mpl.colormaps[SHADES](np.linspace(0, 1, 20))[:, :3] @ [0.299, 0.587, 0.114]
    assert (np.diff(luminance) < -0.01).all()
    assert len(set(MARKERS)) == len(set(COLOURS)) == 7
    assert abs(np.subtract(*[np.dot(to_rgb(c), [0.299, 0.587, 0.114]) for c in COLOURS[:2]])) > 0.1


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda t: plot_edge_probabilities(t, 2), "edge_type must be between 0 and 1, found 2"),
        (lambda t: plot_edge_counts(t, 0, scenes=["9"]), "the posterior has no scene '9'"),
        (lambda t: plot_structure_probabilities(t, scenes=["9"]), "the posterior has no scene '9'"),
        (lambda t: plot_trace(t, "9"), "the posterior has no scene '9'"),
        (lambda t: plot_ranks(t, "0", 1, num_bins=60), "ranks need at least 60 draws of each chain, found 50"),
        (lambda t: plot_ranks(t, "0", 7), "edge_type must be between 0 and 1, found 7"),
        (lambda t: plot_ranks(t, "0", 1, axes=Figure().subplots()), "axes must have one entry for each of 6 edges"),
    ],
)
def test_bad_arguments_are_named(make_tree, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(make_tree())


def test_bad_arguments_of_predictions(paths, make_scenes):
    with pytest.raises(ValueError, match="the predictions have no recording '7'"):
        plot_tracks(paths, "7")
    with pytest.raises(ValueError, match="states must be among x, y, vx, vy, found 'z'"):
        plot_predictions(paths, "0", states=["z"])
    with pytest.raises(ValueError, match="scenes have no recording '0'"):
        plot_predictions(paths, "0", scenes=make_scenes(scene_names=["a", "b", "c"]))
    with pytest.raises(ValueError, match="tracks need states with x and y, found a, b, c, d"):
        plot_tracks(paths.assign_coords(state=list("abcd")), "0")


@pytest.mark.parametrize(
    "draw", [lambda t: plot_trace(t, "0"), plot_split_frequencies, lambda t: plot_ranks(t, "0", 1)]
)
def test_no_draws(make_tree, draw):
    with pytest.raises(ValueError, match="the posterior holds no draw, at least one is needed"):
        draw(make_tree(np.zeros((2, 0, 1, 6), np.int8)))
