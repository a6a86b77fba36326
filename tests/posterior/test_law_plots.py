import matplotlib as mpl
import numpy as np
import pytest

from pyro_nri.posterior.law_plots import plot_laws, write_law_plot
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def labels(ax):
    return [text.get_text() for text in ax.figure.legends[0].get_texts()]


def test_one_panel_for_each_law(planted):
    frame = laws_frame(planted("springs"))
    axes = plot_laws(frame)
    assert [ax.get_title() for ax in axes] == ["type 0", "type 1"]
    assert {ax.get_xlabel() for ax in axes} == {"distance (units of the data)"}
    assert "force" in axes[0].get_ylabel()
    assert labels(axes[0]) == ["learned law", "90 % interval", "continued without data", "not covered by data"]
    assert axes[0].get_legend() is None  # below the panels, never over data
    whole = axes[1].lines[2]
    np.testing.assert_allclose(whole.get_ydata(), frame.loc[frame["edge_type"] == 1, "force"])


def test_the_law_breaks_where_no_data_lie(planted):
    frame = laws_frame(planted("springs"), num_points=40)
    frame["covered"] = (frame["distance"] > 0.2) & (frame["distance"] < 2)
    (ax, _) = plot_laws(frame)
    x, y = ax.lines[2].get_data()
    assert (np.isfinite(y) == ((x > 0.2) & (x < 2))).all()
    continued = ax.lines[1].get_xdata()
    assert 0.1 < continued.min() < 0.2 < 2 < continued.max() < 3.1


def test_true_laws_follow_the_alignment(planted):
    checkpoint = planted("springs")
    checkpoint.alignment = [1, -1]
    frame = laws_frame(checkpoint)
    axes = plot_laws(frame, TRUE_LAWS["springs"])
    assert [ax.get_title() for ax in axes] == ["type 0 (true type 1)", "type 1"]
    assert labels(axes[0])[-1] == "true law"
    x, y = axes[0].lines[3].get_data()
    np.testing.assert_allclose(y, -0.1 * x)
    assert len(axes[1].lines) == 3  # type 1 stands for no true one
    del frame["aligned_type"]
    assert len(plot_laws(frame, TRUE_LAWS["springs"])[1].lines) == 4


@pytest.mark.parametrize(
    ("system", "scales"), [("springs", "linear"), ("charged", "log symlog"), ("kuramoto", "linear")]
)
def test_scales_are_chosen_by_the_forces(planted, system, scales):
    axes = plot_laws(laws_frame(planted(system)), names=["one", "other"])
    for ax in axes:
        assert (ax.get_xscale(), ax.get_yscale()) == (scales.split()[0], scales.split()[-1])
    assert [ax.get_title() for ax in axes] == ["one", "other"]
    assert axes[0].get_ylim() == axes[1].get_ylim()
    if system == "charged":  # both signs
        assert axes[0].get_ylim()[0] < -10
        assert axes[0].get_ylim()[1] > 10


def test_without_intervals(planted, tmp_path):
    checkpoint = planted("charged")
    checkpoint.law_draws = None
    axes = plot_laws(laws_frame(checkpoint))
    assert not [label for label in labels(axes[0]) if "interval" in label]
    axes[0].figure.savefig(tmp_path / "laws.png")


def test_given_axes(planted):
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, 2)
    axes = plot_laws(laws_frame(planted("springs")), axes=grid)
    assert axes.tolist() == grid.tolist()
    assert not figure.legends


def test_file(planted, tmp_path):
    frame = laws_frame(planted("charged"))
    write_law_plot(frame, tmp_path / "new" / "laws.png", TRUE_LAWS["charged"])
    assert (tmp_path / "new" / "laws.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="'xyz' is not supported"):
        write_law_plot(frame, tmp_path / "laws.xyz")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_bad_input(planted):
    frame = laws_frame(planted("springs"))
    with pytest.raises(ValueError, match="column 'covered' is missing"):
        plot_laws(frame.drop(columns="covered"))
    with pytest.raises(ValueError, match="at least one law, found no row"):
        plot_laws(frame[:0])
    with pytest.raises(ValueError, match="names must have one entry for each of 2 types, found 1"):
        plot_laws(frame, names=["one"])
    (ax, _) = plot_laws(frame)
    with pytest.raises(ValueError, match="axes must have one entry for each of 2 types, found 1"):
        plot_laws(frame, axes=ax)
