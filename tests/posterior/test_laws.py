"""Tables of laws whose draws are planted, so that every interval is known."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.dynamics.force_laws import NUM_POINTS
from pyro_nri.learning.checkpoint import load_checkpoint, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame

SPREAD = 0.01


def test_columns(planted):
    frame = laws_frame(planted("springs"), num_points=50)
    assert frame.columns.tolist() == [
        *("edge_type", "quantity", "distance", "force", "low", "high", "num_scenes", "covered")
    ]
    assert frame["edge_type"].tolist() == [0] * 50 + [1] * 50
    assert set(frame["quantity"]) == {"distance"}
    for _, part in frame.groupby("edge_type"):
        np.testing.assert_allclose(part["distance"], np.geomspace(0.05, 20, 50), rtol=1e-12)
    assert frame.attrs["interval"] == 0.9


@pytest.mark.parametrize("interval", [0.5, 0.9])
def test_forces_and_intervals(planted, interval):
    """Draws are the law plus g / r with g normal: so are the intervals, with Student's t for 20 scenes."""
    frame = laws_frame(planted("springs", num_scenes=20.0), interval=interval)
    for k, law in enumerate(TRUE_LAWS["springs"]):
        part = frame[frame["edge_type"] == k]
        r = part["distance"].to_numpy()
        np.testing.assert_allclose(part["force"], law(r), atol=1e-5 * 20)
        half = stats.t(19).ppf((1 + interval) / 2) * SPREAD / r
        np.testing.assert_allclose(part["high"] - part["force"], half, rtol=0.02)
        np.testing.assert_allclose(part["force"] - part["low"], half, rtol=0.02)


def test_covered_is_where_three_scenes_speak(planted):
    checkpoint = planted("springs")
    checkpoint.law_support[0] = torch.linspace(0, 6, NUM_POINTS)
    frame = laws_frame(checkpoint, num_points=101)
    part = frame[frame["edge_type"] == 0]
    np.testing.assert_allclose(part["num_scenes"], np.linspace(0, 6, 101), atol=1e-5)
    assert part["covered"].tolist() == [False] * 50 + [True] * 51
    assert frame.loc[frame["edge_type"] == 1, "covered"].all()


def test_few_scenes_widen(planted):
    wide, wider = (laws_frame(planted("springs", num_scenes=n)) for n in (50.0, 4.0))
    ratio = (wider["high"] - wider["low"]) / (wide["high"] - wide["low"])
    np.testing.assert_allclose(ratio, stats.t(3).ppf(0.95) / stats.t(49).ppf(0.95), rtol=1e-3)


def test_what_frames_do_not_resolve_is_not_covered(planted):
    """Two charges of unit mass circle each other in two frames of 0.1 at r = (2 (dt / pi)²) ** (1/3) = 0.127."""
    frame = laws_frame(planted("charged"), num_points=500)
    limit = (2 * (0.1 / math.pi) ** 2) ** (1 / 3)
    for _, part in frame.groupby("edge_type"):
        assert part.loc[part["covered"], "distance"].min() == pytest.approx(limit, rel=0.02)


def test_paths_and_knots_leave_an_error_that_no_draw_shows(planted):
    """Without any spread the interval holds the spline's own error, and that of the path where forces are steep."""
    frame = laws_frame(planted("charged", spread=0.0), num_points=400)
    half = (frame["high"] - frame["low"]).to_numpy() / 2
    r, force = frame["distance"].to_numpy(), frame["force"].to_numpy()
    assert ((np.abs(force) - r**-2 < half) | ~frame["covered"]).mean() > 0.9
    steep = (r > 0.5) & (r < 1)
    expected = stats.norm.ppf(0.95) * (2 * r**-3 * 0.01 / 12) ** 2 * np.abs(force)
    np.testing.assert_allclose(half[steep], expected[steep], rtol=0.1)
    assert (half[r > 5] < 1e-6).all()


def test_phases(planted):
    frame = laws_frame(planted("kuramoto"), num_points=33)
    assert set(frame["quantity"]) == {"phase difference"}
    part = frame[frame["edge_type"] == 1]
    np.testing.assert_allclose(part["distance"], np.linspace(-np.pi, np.pi, 33), atol=1e-6)
    np.testing.assert_allclose(part["force"], np.sin(part["distance"]), atol=2e-3)
    np.testing.assert_allclose(
        part["high"] - part["force"], stats.t(19).ppf(0.95) * SPREAD, rtol=0.02
    )  # of f itself, not of r f
    assert frame["covered"].all()


def test_alignment(planted):
    checkpoint = planted("springs")
    checkpoint.alignment = [1, -1]
    frame = laws_frame(checkpoint, num_points=2)
    assert frame.columns[1] == "aligned_type"
    assert frame["aligned_type"].tolist() == [1, 1, -1, -1]


def test_without_draws(planted):
    checkpoint = planted("springs")
    checkpoint.law_draws = checkpoint.law_support = None
    frame = laws_frame(checkpoint)
    part = frame[frame["edge_type"] == 1]
    np.testing.assert_allclose(part["force"], -0.1 * part["distance"], rtol=1e-3, atol=1e-5)
    assert frame[["low", "high"]].isna().all(axis=None)
    assert not frame["covered"].any()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_file_and_back(planted, tmp_path, suffix):
    checkpoint = planted("charged")
    checkpoint.alignment = [1, 0]
    frame = laws_frame(checkpoint)
    write_frame(frame, tmp_path / f"laws.{suffix}")
    back = read_frame(tmp_path / f"laws.{suffix}")
    assert back.dtypes.astype(str).tolist() == frame.dtypes.astype(str).tolist()
    assert back.equals(frame)


def test_model_file_and_back(planted, tmp_path):
    checkpoint = planted("springs")
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    assert laws_frame(load_checkpoint(tmp_path / "model.pt")).equals(laws_frame(checkpoint))


def test_bad_input(planted):
    checkpoint = planted("springs")
    with pytest.raises(ValueError, match="num_points must be at least 2, found 1"):
        laws_frame(checkpoint, num_points=1)
    for interval in (0, 1, float("nan")):
        with pytest.raises(ValueError, match="interval must be a probability between 0 and 1"):
            laws_frame(checkpoint, interval=interval)
    with pytest.raises(ValueError, match="laws belong to a model with pair forces, found dynamics 'message-passing'"):
        laws_frame(new_checkpoint(ModelSpec(2), seed=0))
