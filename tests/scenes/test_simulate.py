"""What holds for every simulated system: seeds, noise, names, arguments; and the committed scenes."""

import hashlib
import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.scenes import simulate as simulation
from pyro_nri.scenes.readers import read_nri
from pyro_nri.scenes.simulate import simulate

ROOT = Path(__file__).parents[2]
SYSTEMS = list(simulation.SYSTEMS)


# --- random numbers --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_scene_does_not_depend_on_its_neighbours(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {"num_frames": 4 if system == "charged" else 30, "measurement_noise": 0.1, "seed": 8}
    if system == "springs":
        arguments["box"] = 1.5  # some scenes go by sub-steps
    whole = simulate(system, 23, **arguments)
    parts = [simulate(system, 1, first_scene=0, **arguments), simulate(system, 22, first_scene=1, **arguments)]
    monkeypatch.setattr(simulation, "_CHUNK_SCENES", 7)
    parts.append(simulate(system, 23, **arguments))
    for part in parts:
        where = [whole.scene_names.index(name) for name in part.scene_names]
        assert torch.equal(part.trajectory, whole[where].trajectory)
        assert torch.equal(part.edge_type, whole[where].edge_type)  # type: ignore[arg-type]
        assert torch.equal(part.initial_state, whole[where].initial_state)  # type: ignore[arg-type]


def test_seeds_and_scenes_differ() -> None:
    scenes = simulate("springs", 50, num_frames=2, seed=0)
    other = simulate("springs", 50, num_frames=2, seed=1)
    starts = torch.cat([scenes.trajectory[:, 0], other.trajectory[:, 0]]).flatten(1)
    assert len(starts.unique(dim=0)) == 100
    assert torch.equal(scenes.trajectory, simulate("springs", 50, num_frames=2, seed=0).trajectory)


@pytest.mark.parametrize("system", SYSTEMS)
def test_longer_scenes_begin_alike_and_global_generators_are_left_alone(system: str) -> None:
    before = torch.get_rng_state(), str(np.random.get_state())  # noqa: NPY002 - the global one is what is looked at
    long = simulate(system, 3, num_frames=12, measurement_noise=0.2, seed=6)
    short = simulate(system, 3, num_frames=5, measurement_noise=0.2, seed=6)
    assert torch.equal(long.trajectory[:, :5], short.trajectory)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == str(np.random.get_state())  # noqa: NPY002


@pytest.mark.statistical
def test_measurement_noise_is_added_to_the_noise_free_path() -> None:
    clean = simulate("springs", 200, num_frames=20, seed=7)
    noisy = simulate("springs", 200, num_frames=20, measurement_noise=0.3, seed=7)
    noise = noisy.trajectory - clean.trajectory
    # The standard error of the standard deviation of n numbers is 0.3 / sqrt(2 n); four of them.
    for d in range(4):
        part = noise[..., d].numpy()
        assert part.std() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * part.size))
        assert part.mean() == pytest.approx(0, abs=4 * 0.3 / math.sqrt(part.size))
    assert stats.kstest(noise[:, 3, 2, 1].numpy() / 0.3, "norm").pvalue > 0.001
    assert torch.equal(noisy.initial_state, clean.trajectory[:, 0])  # type: ignore[arg-type]
    assert torch.equal(noisy.edge_type, clean.edge_type)  # type: ignore[arg-type]


@pytest.mark.statistical
def test_known_constants_are_measured_without_noise() -> None:
    clean = simulate("kuramoto", 100, num_frames=20, seed=7)
    noisy = simulate("kuramoto", 100, num_frames=20, measurement_noise=0.3, seed=7)
    noise = (noisy.trajectory - clean.trajectory).numpy()
    assert (noise[..., 2] == 0).all()
    for d in range(2):
        assert noise[..., d].std() == pytest.approx(0.3, abs=4 * 0.3 / math.sqrt(2 * noise[..., d].size))
    correlation = np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]
    assert correlation == pytest.approx(0, abs=4 / math.sqrt(noise[..., 0].size))
    assert torch.equal(noisy.initial_state, clean.trajectory[:, 0])  # type: ignore[arg-type]


# --- what surrounds it -----------------------------------------------------------------------------------------------
def test_names_units_and_dtype() -> None:
    scenes = simulate("springs", 2, first_scene=40, num_frames=3, frame_spacing=50, dtype=torch.float32, seed=0)
    assert scenes.scene_names == ("40", "41")
    assert scenes.state_names == ("x", "y", "vx", "vy")
    assert scenes.time_step == pytest.approx(0.05)
    assert scenes.trajectory.dtype == torch.float32
    scenes = simulate("kuramoto", 2, num_frames=3, frame_spacing=5, seed=0)
    assert scenes.state_names == ("phi", "vphi", "omega")
    assert scenes.time_step == pytest.approx(0.05)


@pytest.mark.parametrize("system", SYSTEMS)
def test_frame_spacing_is_the_systems_own(system: str) -> None:
    scenes = simulate(system, 2, num_frames=3, seed=0)
    spacing = simulation.SYSTEMS[system].frame_spacing
    assert scenes.time_step == pytest.approx(0.1)
    assert torch.equal(scenes.trajectory, simulate(system, 2, num_frames=3, frame_spacing=spacing, seed=0).trajectory)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    simulate("springs", 2, num_frames=2, seed=0)
    assert capsys.readouterr() == ("", "")
    simulate("springs", 2, num_frames=2, seed=0, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "scene" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"system": "pendulum"}, "system must be one of charged, kuramoto, springs, found 'pendulum'"),
        ({"num_scenes": 0}, "num_scenes must be a whole number of at least 1, found 0"),
        ({"num_scenes": 1.5}, "num_scenes must be a whole number"),
        ({"num_entities": 1}, "num_entities must be a whole number of at least 2, found 1"),
        ({"num_frames": 1}, "num_frames must be a whole number of at least 2, found 1"),
        ({"frame_spacing": 0}, "frame_spacing must be a whole number of at least 1"),
        ({"first_scene": -1}, "first_scene must be a whole number of at least 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"measurement_noise": -0.1}, "measurement_noise must be a standard deviation of at least 0, found -0.1"),
        ({"measurement_noise": math.nan}, "measurement_noise must be"),
        ({"link_probability": 1.1}, "link_probability must lie between 0 and 1, found 1.1"),
        ({"link_probability": math.nan}, "link_probability must lie"),
        ({"spring_types": [0.1]}, "at least two stiffnesses"),
        ({"spring_types": [0.0, -0.1]}, "stiffnesses of 0 or more"),
        ({"box": 0.5}, "box must be at least 1"),
        ({"box": math.nan}, "box must be at least 1"),
        (
            {"system": "charged", "link_probability": 0.5},
            "link_probability belongs to springs, kuramoto, found it with",
        ),
        ({"system": "charged", "symmetric": False}, "symmetric belongs to springs, kuramoto, found it with 'charged'"),
        ({"system": "kuramoto", "box": 5.0}, "box belongs to springs, charged, found it with 'kuramoto'"),
        ({"system": "kuramoto", "spring_types": [0, 1]}, "spring_types belongs to springs, found it with 'kuramoto'"),
        ({"system": "kuramoto", "link_probability": 2}, "link_probability must lie between 0 and 1, found 2"),
    ],
)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    bad: dict[str, Any] = {"system": "springs", "num_scenes": 1, "seed": 0} | arguments
    with pytest.raises(ValueError, match=message) as caught:
        simulate(**bad)
    assert "\n" not in str(caught.value)


# --- data/springs5 ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_committed_scenes_are_those_of_the_command(split: str) -> None:
    specification = importlib.util.spec_from_file_location("make", ROOT / "data" / "make.py")
    assert specification is not None
    assert specification.loader is not None
    make = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(make)
    committed = read_nri(ROOT / "data" / "springs5", split=split)
    num_scenes, num_frames, _ = make.SPLITS[split]
    assert (committed.num_scenes, committed.num_frames) == (num_scenes, num_frames)
    few = make.make(split, 5)
    torch.testing.assert_close(committed[:5].trajectory, few.trajectory, rtol=1e-12, atol=1e-12)
    assert torch.equal(committed[:5].edge_type, few.edge_type)  # type: ignore[arg-type]


def test_committed_splits_share_no_scene() -> None:
    starts = [
        read_nri(ROOT / "data" / "springs5", split=split).trajectory[:, 0] for split in ("train", "valid", "test")
    ]
    digests = [hashlib.sha256(start.numpy().tobytes()).digest() for start in torch.cat(starts)]
    assert len(set(digests)) == len(digests) == 350
