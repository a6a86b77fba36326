"""The feature view of oscillators and the way back: round trips, ACD's own files, bad files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from pyro_nri.scenes import edges
from pyro_nri.scenes.phase_features import (
    from_phase_features,
    phase_features,
    read_phase_features,
    write_phase_features,
)
from pyro_nri.scenes.readers import read_scenes
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "kuramoto"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(),
    reason="needs the files of ACD's generator in ../shared/reference/kuramoto, which stay outside the repository",
)
Floats = NDArray[np.float64]


def law(scenes: Scenes) -> Floats:
    """dphi/dt that the equation gives to the phases, ``[B, T, N]``."""
    assert scenes.edge_type is not None
    phase, omega = scenes.trajectory[..., 0].numpy(), scenes.trajectory[..., 2].numpy()
    coupled = edges.to_matrix(scenes.edge_type).numpy()[:, None]  # [B, 1, sender, receiver]
    return omega + (coupled * np.sin(phase[..., :, None] - phase[..., None, :])).sum(2)


# --- the view --------------------------------------------------------------------------------------------------------
def test_features_by_hand() -> None:
    """Every step of the generator is seen, so its forward difference can be taken from the phases themselves."""
    fine = simulate("kuramoto", 20, num_frames=491, frame_spacing=1, seed=3).trajectory.numpy().transpose(0, 2, 1, 3)
    scenes = simulate("kuramoto", 20, num_frames=49, seed=3)
    features = phase_features(scenes)
    assert features.dtype == np.float32
    assert features.shape == (20, 5, 49, 4)
    phase = fine[:, :, :-1:10, 0]
    difference = (fine[:, :, 1::10, 0] - phase) / 0.01
    assert scenes.edge_type is not None
    incoming = edges.to_matrix(scenes.edge_type).sum(1).numpy() > 0

    def scaled(values: Floats) -> Floats:
        low, high = values.min(-1, keepdims=True), values.max(-1, keepdims=True)
        return 2 * (values - low) / (high - low) - 1

    np.testing.assert_allclose(features[incoming][..., 0], scaled(difference[incoming]), atol=3e-3)
    assert np.median(np.abs(features[incoming][..., 0] - scaled(difference[incoming])).max(-1)) < 1e-5
    assert not features[~incoming][..., 0].any()
    assert (~incoming).any()
    np.testing.assert_allclose(features[..., 1], np.sin(phase), atol=1e-6)
    np.testing.assert_allclose(features[..., 2], scaled(phase), atol=1e-6)
    np.testing.assert_allclose(features[..., 3], (fine[:, :, :-1:10, 2] - 1) / 4.5 - 1, atol=1e-6)


def test_oscillators_without_links_are_found_without_the_truth() -> None:
    scenes = simulate("kuramoto", 30, num_frames=10, seed=4)
    unlabelled = Scenes.from_arrays(scenes.trajectory, time_step=0.1, state_names=scenes.state_names)
    np.testing.assert_array_equal(phase_features(unlabelled), phase_features(scenes))


# --- the way back ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "num_frames", "cut"),
    [({}, 100, 49), ({}, 100, 99), ({}, 49, 49), ({"symmetric": False}, 49, 49), ({"num_entities": 10}, 49, 49)],
)
def test_raw_units_come_back(arguments: dict[str, Any], num_frames: int, cut: int) -> None:
    scenes = simulate("kuramoto", 100, num_frames=num_frames, seed=6, **arguments)
    back = from_phase_features(phase_features(scenes)[:, :, :cut])
    error = np.abs(back - scenes.trajectory[:, :cut].numpy())  # [B, T, N, 3]
    assert error[..., 0].max() < 5e-6
    assert error[..., 2].max() < 1e-6
    assert np.sqrt((error[..., 1] ** 2).mean()) < 1e-4
    assert np.median(error[..., 1].max(1)) < 5e-5  # of an oscillator, over its frames
    assert error[..., 1].max() < 0.02


@pytest.mark.parametrize("num_frames", [5, 6, 8, 12])
def test_short_recordings_come_back(num_frames: int) -> None:
    scenes = simulate("kuramoto", 200, num_frames=num_frames, seed=7)
    error = np.abs(from_phase_features(phase_features(scenes)) - scenes.trajectory.numpy())
    assert error[..., 0].max() < 5e-6
    assert np.median(error[..., 1].max(1)) < 5e-3


def test_the_unit_of_time_is_the_callers() -> None:
    features = phase_features(simulate("kuramoto", 5, seed=8))
    slow, fast = from_phase_features(features, time_step=1.0), from_phase_features(features, time_step=0.1)
    np.testing.assert_allclose(10 * slow[..., 1], fast[..., 1], rtol=1e-9)
    np.testing.assert_array_equal(slow[..., [0, 2]], fast[..., [0, 2]])


def test_noise_does_not_lead_astray() -> None:
    scenes = simulate("kuramoto", 50, measurement_noise=0.02, seed=9)
    error = from_phase_features(phase_features(scenes)) - scenes.trajectory.numpy()
    assert np.abs(error[..., 0]).max() < 5e-6
    assert np.sqrt((error[..., 1] ** 2).mean()) < 0.3


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", ["receiver", "sender"])
def test_round_trip_of_directed_edges(rows: str, tmp_path: Path) -> None:
    scenes = simulate("kuramoto", 6, num_frames=20, symmetric=False, seed=5)
    assert scenes.edge_type is not None
    write_phase_features(scenes, tmp_path, system="kuramoto5", split="valid", rows=rows)
    again = read_phase_features(tmp_path, system="kuramoto5", split="valid", rows=rows)
    assert torch.equal(again.edge_type, scenes.edge_type)  # type: ignore[arg-type]
    assert again.scene_names[:2] == ("valid-0", "valid-1")
    assert again.state_names == ("phi", "vphi", "omega")
    torch.testing.assert_close(again.trajectory[..., 0], scenes.trajectory[..., 0], atol=5e-6, rtol=0)
    # The file itself, read by hand: who acts on whom.
    matrix = np.load(tmp_path / "edges_valid_kuramoto5.npy")
    types = edges.to_matrix(scenes.edge_type).numpy()
    assert (matrix == (types.transpose(0, 2, 1) if rows == "receiver" else types)).all()
    assert (matrix != matrix.transpose(0, 2, 1)).any()
    other = read_phase_features(tmp_path, split="valid", rows="sender" if rows == "receiver" else "receiver")
    assert torch.equal(other.edge_type[:, edges.reverse_edges(5)], scenes.edge_type)  # type: ignore[index]
    # The equation agrees with the one orientation and not with the other.
    rate = again.trajectory[..., 1].numpy()
    assert np.abs(law(again) - rate).max() < 0.02 < 0.5 < np.abs(law(other) - rate).max()


def test_read_scenes_finds_features(tmp_path: Path) -> None:
    scenes = simulate("kuramoto", 3, num_frames=10, seed=1)
    write_phase_features(scenes, tmp_path, system="kuramoto5", split="train")
    found = read_scenes(tmp_path)
    assert torch.equal(found.trajectory, read_phase_features(tmp_path).trajectory)
    assert read_scenes(tmp_path, split="train", system="kuramoto5", time_step=0.2).time_step == 0.2
    write_phase_features(scenes, tmp_path, system="kuramoto5", split="test")
    with pytest.raises(ValueError, match="those that fit are kuramoto5 test, kuramoto5 train"):
        read_scenes(tmp_path)


@pytest.mark.parametrize(
    ("part", "array", "message"),
    [
        ("feat", np.zeros((2, 5, 10)), r"must have shape \[sims, n, T, 4\], found \[2, 5, 10\]"),
        ("feat", np.zeros((2, 5, 10, 3)), r"must have shape \[sims, n, T, 4\], found \[2, 5, 10, 3\]"),
        ("feat", np.zeros((2, 5, 4, 4)), "with at least 5 frames"),
        ("feat", np.full((2, 5, 10, 4), np.nan), "features must be finite"),
        ("feat", np.random.default_rng(0).random((2, 5, 10, 4)), "oscillator . must be the sine of a phase"),
        ("feat", np.zeros((2, 4, 10, 4)), r"must have shape \[2, 4, 4\] to fit feat, found \[2, 5, 5\]"),
        ("feat", np.array(["a"]), "an array of real numbers"),
        ("edges", np.full((2, 5, 5), 0.5), "whole numbers that name edge types, found 0.5"),
    ],
)
def test_bad_arrays(part: str, array: NDArray[Any], message: str, tmp_path: Path) -> None:
    write_phase_features(simulate("kuramoto", 2, num_frames=10, seed=0), tmp_path, system="k", split="train")
    np.save(tmp_path / f"{part}_train_k.npy", array)
    with pytest.raises(ValueError, match=message) as caught:
        read_phase_features(tmp_path, system="k")
    assert "\n" not in str(caught.value)


def test_bad_files_and_scenes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"feat_train_kuramoto5.npy' does not exist; phase features are a folder"):
        read_phase_features(tmp_path)
    scenes = simulate("kuramoto", 2, num_frames=10, seed=0)
    write_phase_features(scenes, tmp_path, system="kuramoto5", split="train")
    with pytest.raises(ValueError, match="rows must be 'receiver' or 'sender', found 'column'"):
        read_phase_features(tmp_path, rows="column")
    (tmp_path / "edges_train_kuramoto5.npy").unlink()
    with pytest.raises(ValueError, match=r"does not exist; it belongs to feat_train_kuramoto5\.npy"):
        read_phase_features(tmp_path)
    with pytest.raises(ValueError, match="of the state phi, vphi, omega, found x, y, vx, vy"):
        phase_features(simulate("springs", 1, num_frames=2, seed=0))
    with pytest.raises(ValueError, match="shared structures"):
        write_phase_features(scenes.share_structure("all"), tmp_path, system="k", split="train")
    with pytest.raises(ValueError, match="cannot hold padded entities or missing frames"):
        phase_features(scenes.windows(4))


# --- ACD's own files -------------------------------------------------------------------------------------------------
@needs_reference
@pytest.mark.parametrize(("split", "size"), [("train", (200, 49)), ("valid", (100, 49)), ("test", (100, 99))])
def test_acd_own_files_are_understood(split: str, size: tuple[int, int]) -> None:
    features = np.load(REFERENCE / f"feat_{split}_kuramoto5.npy")
    scenes = read_scenes(REFERENCE, split=split)
    assert (scenes.num_scenes, scenes.num_frames, scenes.num_entities) == (*size, 5)
    phase, rate, omega = scenes.trajectory.numpy().transpose(3, 0, 2, 1)
    np.testing.assert_allclose(np.sin(phase), features[..., 1], atol=5e-6)
    assert (omega >= 1).all()
    assert (omega < 10).all()
    # Where nothing pulls, the slope of phi, found from its sine, is the natural frequency, found from its scaling.
    free = (features[..., 0] == 0).all(-1)
    np.testing.assert_allclose(rate[free], omega[free], atol=2e-6)
    # Everywhere else the equation gives the rate.
    error = np.abs(law(scenes).transpose(0, 2, 1) - rate)
    assert np.sqrt((error**2).mean()) < 1e-3
    assert np.median(error.max(-1)) < 1e-4
    # Euler-Maclaurin: the integral of the rate is the change of the phase.
    slope = np.gradient(rate, 0.1, axis=-1, edge_order=2)
    integral = 0.1 * (rate.sum(-1) - (rate[..., 0] + rate[..., -1]) / 2) - 0.01 / 12 * (slope[..., -1] - slope[..., 0])
    mean_error = np.abs(integral - (phase[..., -1] - phase[..., 0])) / (0.1 * (size[1] - 1))
    assert np.median(mean_error) < 1e-4
    assert mean_error.max() < 5e-3


@needs_reference
@pytest.mark.statistical
def test_features_have_the_distribution_of_acd() -> None:
    """A number for each scene, so that the sample is independent; p > 0.001 each."""
    theirs = np.load(REFERENCE / "feat_train_kuramoto5.npy")
    ours = phase_features(simulate("kuramoto", 400, num_frames=100, seed=32))[:, :, :49]
    for feature in range(4):
        for frame in (0, 20, 48):
            pvalue = stats.ks_2samp(ours[:, 1, frame, feature], theirs[:, 1, frame, feature]).pvalue
            assert pvalue > 0.001, (feature, frame, pvalue)
        spread = stats.ks_2samp(np.ptp(ours[:, 2, :, feature], axis=-1), np.ptp(theirs[:, 2, :, feature], axis=-1))
        assert feature == 3 or spread.pvalue > 0.001, feature


@needs_reference
def test_acd_features_are_those_of_its_start() -> None:
    """From frame 0 alone, Runge-Kutta steps and our view make its whole test file again, while rounding allows."""
    features = np.load(REFERENCE / "feat_test_kuramoto5.npy")
    scenes = read_phase_features(REFERENCE, split="test")
    assert scenes.edge_type is not None
    coupled = edges.to_matrix(scenes.edge_type).transpose(1, 2).numpy()  # [B, receiver, sender]
    phase, omega = scenes.trajectory[:, 0, :, 0].numpy(), scenes.trajectory[:, 0, :, 2].numpy()

    def rate(phase: Floats) -> Floats:
        return omega + (coupled * np.sin(phase[:, None, :] - phase[:, :, None])).sum(-1)

    frames = []
    for frame in range(100):  # the extremes are those of 100 frames
        for _ in range(10 if frame else 0):
            k1 = rate(phase)
            k2 = rate(phase + 0.005 * k1)
            k3 = rate(phase + 0.005 * k2)
            phase = phase + 0.01 / 6 * (k1 + 2 * k2 + 2 * k3 + rate(phase + 0.01 * k3))
        frames.append(np.stack([phase, rate(phase), omega], axis=-1))
    again = Scenes.from_arrays(
        np.stack(frames, axis=1), time_step=0.1, state_names=scenes.state_names, edge_type=scenes.edge_type
    )
    error = np.abs(phase_features(again)[:, :, :99] - features).max((1, 2, 3))  # by scene
    assert np.median(error) < 1e-3
    assert (error < 0.05).mean() > 0.9
