"""Springs and charges: against a plain loop, against conservation laws, against NRI's own files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from pyro_nri.scenes import edges, particles
from pyro_nri.scenes.particles import coulomb_force, spring_force
from pyro_nri.scenes.readers import read_nri
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "nri"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="needs NRI's own files in ../shared/reference/nri, which stay outside the repository"
)


def plain_loop(
    x: NDArray[np.float64],
    v: NDArray[np.float64],
    pull: NDArray[np.float64],
    system: str,
    num_frames: int,
    spacing: int = 100,
    box: float = 5.0,
) -> NDArray[np.float64]:
    """Frames ``[T, N, 4]`` from ``x``, ``v`` ``[N, 2]`` on; ``pull[receiver, sender]`` is a stiffness, or a sign."""
    x, v = x.copy(), v.copy()
    num_entities = len(x)
    frames = [np.concatenate([x, v], axis=-1)]
    for _ in range(num_frames - 1):
        for _ in range(spacing):
            force = np.zeros((num_entities, 2))
            for i in range(num_entities):
                for j in range(num_entities):
                    if i != j:
                        apart = x[i] - x[j]
                        if system == "springs":
                            force[i] -= pull[i, j] * apart
                        else:
                            force[i] += pull[i, j] * apart / math.hypot(*apart) ** 3
            v += 0.001 * np.clip(force, -100, 100)
            x += 0.001 * v
            for i, d in zip(*np.nonzero(np.abs(x) > box), strict=True):
                wall = math.copysign(box, x[i, d])
                x[i, d] = 2 * wall - x[i, d]
                v[i, d] = -math.copysign(v[i, d], wall)
        frames.append(np.concatenate([x, v], axis=-1))
    return np.stack(frames)


def again(scenes: Scenes, pull: NDArray[np.float64], system: str, **arguments: Any) -> NDArray[np.float64]:
    start = scenes.initial_state.numpy()  # type: ignore[union-attr]
    return np.stack(
        [
            plain_loop(state[:, :2], state[:, 2:], matrix, system, scenes.num_frames, **arguments)
            for state, matrix in zip(start, pull, strict=True)
        ]
    )


def types_by_receiver(scenes: Scenes) -> NDArray[np.int64]:
    assert scenes.edge_type is not None
    return edges.to_matrix(scenes.edge_type).transpose(-1, -2).numpy()


# --- the path --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("box", [5.0, 1.0])
def test_springs_equal_the_plain_loop(symmetric: bool, box: float) -> None:
    stiffness = np.array([0.0, 0.05, 0.8])
    scenes = simulate(
        "springs",
        4,
        num_entities=3,
        num_frames=8,
        spring_types=stiffness.tolist(),
        symmetric=symmetric,
        box=box,
        seed=11,
    )
    expected = again(scenes, stiffness[types_by_receiver(scenes)], "springs", box=box)
    np.testing.assert_allclose(scenes.trajectory.numpy(), expected, atol=1e-9, rtol=0)
    if box == 1.0:
        speed_change = np.sign(expected[:, 1:, :, 2:]) != np.sign(expected[:, :-1, :, 2:])
        assert speed_change.any()  # walls were hit, so the path by sub-steps was taken


def test_springs_clip_like_the_plain_loop() -> None:
    stiffness = np.array([0.0, 400.0])
    scenes = simulate("springs", 3, num_entities=3, num_frames=4, spring_types=[0, 400], seed=5)
    expected = again(scenes, stiffness[types_by_receiver(scenes)], "springs")
    np.testing.assert_allclose(scenes.trajectory.numpy(), expected, atol=1e-9, rtol=0)


def test_charged_equals_the_plain_loop() -> None:
    # Early frames and few particles: close encounters amplify the rounding in which the two differ.
    scenes = simulate("charged", 4, num_entities=3, num_frames=5, seed=21)
    sign = (2 * types_by_receiver(scenes) - 1).astype(np.float64)
    np.testing.assert_allclose(scenes.trajectory.numpy(), again(scenes, sign, "charged"), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("system", "speed"), [("springs", 0.5), ("charged", 0.5)])
def test_first_frame_is_one_spacing_after_the_drawn_start(system: str, speed: float) -> None:
    """With one sub-step between frames, frame 0 is the start after one kick and one drift."""
    scenes = simulate(system, 3, num_frames=2, frame_spacing=1, box=math.inf, seed=9)
    types = types_by_receiver(scenes)
    state = scenes.trajectory[:, 0].numpy()
    start = state[..., :2] - 0.001 * state[..., 2:]
    for b in range(3):
        apart = start[b, :, None] - start[b, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            cube = np.nan_to_num((2 * types[b] - 1) / (apart**2).sum(-1) ** 1.5, posinf=0, neginf=0)
        force = ((-0.1 * types[b] if system == "springs" else cube)[..., None] * apart).sum(1)
        velocity = state[b, :, 2:] - 0.001 * np.clip(force, -100, 100)
        np.testing.assert_allclose(np.hypot(*velocity.T), speed, atol=1e-9)
    assert scenes.time_step == 0.001


def test_spring_energy_is_kept() -> None:
    """Leapfrog keeps E within (omega dt)²/4: omega² <= N k = 0.5, dt = 0.001, so 1.3e-7; ten times that is allowed.

    Its velocities lie half a sub-step before the positions: half a kick brings them together. Walls keep the energy of
    the continuous motion, but break that of the discrete one by O(dt) of a kick, so the box is open.
    """
    scenes = simulate("springs", 50, num_frames=99, box=math.inf, link_probability=1.0, seed=1)
    stiffness = 0.1 * types_by_receiver(scenes)[:, None]
    x, v = scenes.trajectory[..., :2].numpy(), scenes.trajectory[..., 2:].numpy()
    apart = x[:, :, :, None] - x[:, :, None]
    v = v - 0.0005 * (stiffness[..., None] * apart).sum(3)
    energy = (v**2).sum((2, 3)) / 2 + (stiffness * (apart**2).sum(-1)).sum((2, 3)) / 4
    drift = np.abs(energy / energy[:, :1] - 1)
    assert drift.max() < 10 * 0.5 * 0.001**2 / 4


def test_charged_energy_is_kept_without_close_encounters() -> None:
    """Two equal charges only fly apart: here dt² / r³ bounds the relative error, about 1e-6 from r = 1 on."""
    scenes = simulate("charged", 300, num_entities=2, num_frames=20, box=math.inf, seed=1)
    assert scenes.edge_type is not None
    x, v = scenes.trajectory[..., :2].numpy(), scenes.trajectory[..., 2:].numpy()
    apart = x[:, :, 0] - x[:, :, 1]
    distance = np.linalg.norm(apart, axis=-1)
    calm = (scenes.edge_type[:, 0] == 1).numpy() & (distance.min(1) > 1)
    assert calm.sum() > 50
    half_kick = 0.0005 * apart / distance[..., None] ** 3
    v = v + np.stack([half_kick, -half_kick], axis=2)
    energy = (v**2).sum((2, 3)) / 2 + 1 / distance
    assert np.abs(energy / energy[:, :1] - 1)[calm].max() < 1e-5


@pytest.mark.parametrize("system", ["springs", "charged"])
def test_momentum_is_kept(system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(particles, "MAX_FORCE", math.inf)  # a clipped force has no exact counterpart
    momentum = simulate(system, 20, num_frames=10, box=math.inf, seed=3).trajectory[..., 2:].sum(2)
    torch.testing.assert_close(momentum, momentum[:, :1].expand_as(momentum), atol=1e-8, rtol=0)


def test_walls_reflect_and_keep_the_speed() -> None:
    scenes = simulate("springs", 100, num_frames=200, link_probability=0.0, box=1.0, seed=4)
    x, v = scenes.trajectory[..., :2], scenes.trajectory[..., 2:]
    assert x.abs().max() <= 1.0
    assert (v[:, 1:].sign() != v[:, :-1].sign()).any(1).double().mean() > 0.9  # walls were met
    torch.testing.assert_close(v.abs(), v[:, :1].abs().expand_as(v), atol=1e-12, rtol=0)
    torch.testing.assert_close(v.norm(dim=-1), torch.full_like(v[..., 0], 0.5), atol=1e-12, rtol=0)
    charged = simulate("charged", 20, num_frames=30, box=1.5, seed=4)
    assert charged.trajectory[..., :2].abs().max() <= 1.5


# --- structures ------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0.5, 0.5]),
        ({"link_probability": 0.2}, [0.8, 0.2]),
        ({"spring_types": (0.0, 0.05, 0.1)}, [1 / 3, 1 / 3, 1 / 3]),
        ({"spring_types": (0.0, 0.05, 0.1), "link_probability": 0.6}, [0.4, 0.3, 0.3]),
        ({"link_probability": 0.0}, [1.0, 0.0]),
        ({"link_probability": 1.0}, [0.0, 1.0]),
    ],
)
def test_share_of_spring_types(arguments: dict[str, Any], expected: list[float]) -> None:
    types = simulate("springs", 1000, num_frames=2, frame_spacing=1, seed=12, **arguments).edge_type
    assert types is not None
    assert torch.equal(types, types[:, edges.reverse_edges(5)])
    pair = types[:, edges.pairs(5)[:, 0]]
    for k, probability in enumerate(expected):
        # Pairs are independent: binomial standard error, four of them.
        error = math.sqrt(probability * (1 - probability) / pair.numel())
        assert (pair == k).double().mean().item() == pytest.approx(probability, abs=4 * error + 1e-12)


def test_directed_springs_differ_by_direction() -> None:
    types = simulate("springs", 200, num_frames=2, frame_spacing=1, symmetric=False, seed=1).edge_type
    assert types is not None
    differ = (types != types[:, edges.reverse_edges(5)]).double().mean().item()
    assert differ == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(2000))


def test_charges_make_consistent_signs() -> None:
    types = simulate("charged", 500, num_frames=2, frame_spacing=1, seed=1).edge_type
    assert types is not None
    sign = edges.to_matrix(2 * types - 1, fill=1)
    charge = sign[:, 0]
    assert torch.equal(charge[:, :, None] * charge[:, None], sign)
    same_share = (types[:, 0] == 1).double().mean().item()
    assert same_share == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(500))


# --- against NRI's files ---------------------------------------------------------------------------------------------
@needs_reference
@pytest.mark.statistical
@pytest.mark.parametrize("system", ["springs", "charged"])
def test_same_distribution_as_nri(system: str) -> None:
    """Two-sample tests with one number for each scene, so that the sample is independent; p > 0.001 each."""
    theirs = read_nri(REFERENCE, system=f"{system}5", split="train")
    ours = simulate(system, 400, seed=31)

    def numbers(scenes: Scenes, frame: int) -> dict[str, NDArray[np.float64]]:
        x, v = scenes.trajectory[..., :2], scenes.trajectory[..., 2:]
        assert scenes.edge_type is not None
        return {
            "velocity change": (v[:, frame + 1, 0] - v[:, frame, 0]).norm(dim=-1).numpy(),
            "speed": v[:, frame, 1].norm(dim=-1).numpy(),
            "x": x[:, frame, 2, 0].numpy(),
            "y": x[:, frame, 3, 1].numpy(),
            "distance": (x[:, frame, 0] - x[:, frame, 4]).norm(dim=-1).numpy(),
            "share": (scenes.edge_type == 1).double().mean(1).numpy(),
        }

    for frame in (0, 20, 47):
        mine, other = numbers(ours, frame), numbers(theirs, frame)
        for name, sample in mine.items():
            pvalue = stats.ks_2samp(sample, other[name]).pvalue
            assert pvalue > 0.001, (name, frame, pvalue)


@needs_reference
@pytest.mark.parametrize("system", ["springs", "charged"])
def test_nri_files_follow_this_law(system: str) -> None:
    """From a frame of NRI's own file the plain loop gives the next frame: force law, order of steps and all."""
    theirs = read_nri(REFERENCE, system=f"{system}5", split="test")
    types = types_by_receiver(theirs)
    for scene in (0, 1):
        pull = 0.1 * types[scene] if system == "springs" else 2.0 * types[scene] - 1
        state = theirs.trajectory[scene, 10].numpy()
        found = plain_loop(state[:, :2], state[:, 2:], pull, system, 2)[1]
        np.testing.assert_allclose(found, theirs.trajectory[scene, 11].numpy(), atol=1e-9, rtol=0)


def test_force_laws() -> None:
    np.testing.assert_allclose(spring_force([0.0, 2.0]), [0.0, -0.2])
    np.testing.assert_allclose(spring_force(2.0, 0.05), -0.1)
    np.testing.assert_allclose(coulomb_force([1.0, 2.0]), [1.0, 0.25])
    np.testing.assert_allclose(coulomb_force(2.0, -1), -0.25)
