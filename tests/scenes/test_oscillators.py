"""Phase oscillators: against other solvers, against what the equation conserves, against ACD's own files."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.integrate import solve_ivp

from pyro_nri.scenes import edges
from pyro_nri.scenes.oscillators import coupling_force
from pyro_nri.scenes.phase_features import read_phase_features
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "kuramoto"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(),
    reason="needs the files of ACD's generator in ../shared/reference/kuramoto, which stay outside the repository",
)
Floats = NDArray[np.float64]


def by_receiver(scenes: Scenes) -> NDArray[np.int64]:
    assert scenes.edge_type is not None
    return edges.to_matrix(scenes.edge_type).transpose(-1, -2).numpy()


def plain_rate(phase: Floats, omega: Floats, coupled: NDArray[np.int64]) -> Floats:
    """Rates ``[N]``; ``coupled[receiver, sender]``."""
    rate = omega.copy()
    for i in range(len(phase)):
        for j in range(len(phase)):
            if coupled[i, j]:
                rate[i] += math.sin(phase[j] - phase[i])
    return rate


def plain_loop(state: Floats, coupled: NDArray[np.int64], num_frames: int, spacing: int = 10) -> Floats:
    """Frames ``[T, N, 3]`` from the state ``[N, 3]`` on, by Runge-Kutta steps of 0.01."""
    phase, omega = state[:, 0].copy(), state[:, 2]
    frames = []
    for frame in range(num_frames):
        for _ in range(spacing if frame else 0):
            k1 = plain_rate(phase, omega, coupled)
            k2 = plain_rate(phase + 0.005 * k1, omega, coupled)
            k3 = plain_rate(phase + 0.005 * k2, omega, coupled)
            k4 = plain_rate(phase + 0.01 * k3, omega, coupled)
            phase = phase + 0.01 * (k1 / 6 + k2 / 3 + k3 / 3 + k4 / 6)
        frames.append(np.stack([phase, plain_rate(phase, omega, coupled), omega], axis=-1))
    return np.stack(frames)


# --- the path --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [{}, {"symmetric": False}, {"frame_spacing": 3, "num_entities": 4}])
def test_equals_the_plain_loop(arguments: dict[str, Any]) -> None:
    scenes = simulate("kuramoto", 3, num_frames=6, seed=11, **arguments)
    for b, coupled in enumerate(by_receiver(scenes)):
        state = scenes.trajectory[b].numpy()
        expected = plain_loop(state[0], coupled, 6, arguments.get("frame_spacing", 10))
        np.testing.assert_allclose(state, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize(("num_entities", "accuracy"), [(5, 3e-6), (60, 3e-4)])
def test_solves_the_equation(num_entities: int, accuracy: float) -> None:
    """An adaptive solver of high order; from 21 oscillators on, steps are divided."""
    scenes = simulate("kuramoto", 2, num_entities=num_entities, num_frames=20, symmetric=False, seed=3)
    for b, coupled in enumerate(by_receiver(scenes).astype(np.float64)):
        state = scenes.trajectory[b].numpy()

        def rate(_: float, phase: Floats, coupled: Floats = coupled, omega: Floats = state[0, :, 2]) -> Floats:
            return omega + (coupled * np.sin(phase[None, :] - phase[:, None])).sum(1)

        times = 0.1 * np.arange(20)
        solved = solve_ivp(rate, (0, times[-1]), state[0, :, 0], "DOP853", times, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(state[..., 0], solved.y.T, atol=accuracy, rtol=0)
        np.testing.assert_allclose(state[..., 1], [rate(0, phase) for phase in state[..., 0]], atol=1e-9, rtol=0)


def test_frame_0_is_the_drawn_start() -> None:
    states = simulate("kuramoto", 400, num_frames=2, seed=5).trajectory.numpy()
    phase, omega = states[:, 0, :, 0], states[:, 0, :, 2]
    assert (phase >= 0).all()
    assert (phase < 2 * np.pi).all()
    assert (omega >= 1).all()
    assert (omega < 10).all()
    assert stats.kstest(phase[:, 1] / (2 * np.pi), "uniform").pvalue > 0.001
    assert stats.kstest((omega[:, 1] - 1) / 9, "uniform").pvalue > 0.001
    assert abs(stats.spearmanr(phase[:, 2], omega[:, 2])[0]) < 4 / math.sqrt(400)
    assert (states[:, 0, :, 2] == states[:, 1, :, 2]).all()


def test_free_oscillators_turn_at_their_own_rate() -> None:
    states = simulate("kuramoto", 5, link_probability=0.0, seed=1).trajectory.numpy()
    time = 0.1 * np.arange(49)[:, None]
    np.testing.assert_allclose(states[..., 1], states[..., 2], atol=1e-14, rtol=0)
    np.testing.assert_allclose(states[..., 0], states[:, :1, :, 0] + states[..., 2] * time, atol=1e-10, rtol=0)


def test_mutual_coupling_keeps_the_mean_rate() -> None:
    states = simulate("kuramoto", 20, seed=2).trajectory.numpy()
    np.testing.assert_allclose(states[..., 1].mean(2), states[..., 2].mean(2), atol=1e-12, rtol=0)
    one_way = simulate("kuramoto", 20, symmetric=False, seed=2).trajectory.numpy()
    assert np.abs(one_way[..., 1].mean(2) - one_way[..., 2].mean(2)).max() > 0.1


def test_two_coupled_oscillators_lock_when_their_frequencies_are_close() -> None:
    """Their phase difference d obeys d' = D - 2 sin d, D the difference of frequencies: |D| < 2 ends at asin(D / 2)."""
    states = simulate("kuramoto", 300, num_entities=2, num_frames=400, link_probability=1.0, seed=6).trajectory.numpy()
    apart = states[:, -1, 0] - states[:, -1, 1]
    near = np.abs(apart[:, 2]) < 1.8
    assert near.sum() > 50
    np.testing.assert_allclose(np.sin(apart[near, 0]), apart[near, 2] / 2, atol=1e-6)
    assert np.abs(apart[~near & (np.abs(apart[:, 2]) > 2.2), 0]).min() > 2 * np.pi


def test_an_edge_acts_on_its_receiver_only() -> None:
    scenes = simulate("kuramoto", 60, num_entities=2, num_frames=2, symmetric=False, seed=4)
    assert scenes.edge_type is not None
    states = scenes.trajectory[:, 0].numpy()
    pulled = np.abs(states[..., 1] - states[..., 2]) > 1e-12  # [B, receiver]
    assert (pulled[:, 1] == (scenes.edge_type[:, 0] == 1).numpy()).all()  # edge 0 is 0 -> 1
    assert (pulled[:, 0] == (scenes.edge_type[:, 1] == 1).numpy()).all()


def test_coupling_force() -> None:
    np.testing.assert_allclose(coupling_force([0.0, np.pi / 2, -np.pi / 2]), [0, 1, -1])
    np.testing.assert_allclose(coupling_force(np.pi / 6, 0.5), 0.25)
    scenes = simulate("kuramoto", 1, num_entities=2, num_frames=2, link_probability=1.0, seed=0)
    (first, second) = scenes.trajectory[0, 0].numpy()
    assert first[1] - first[2] == pytest.approx(coupling_force(second[0] - first[0]), abs=1e-12)


# --- structures ------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("probability", [None, 0.2])
def test_share_of_links(symmetric: bool, probability: float | None) -> None:
    types = simulate(
        "kuramoto", 1000, num_frames=2, frame_spacing=1, link_probability=probability, symmetric=symmetric, seed=12
    ).edge_type
    assert types is not None
    share = 0.5 if probability is None else probability
    pairs = types[:, edges.pairs(5)]  # [B, P, 2]
    assert torch.equal(pairs[..., 0], pairs[..., 1]) == symmetric
    for side in (0, 1):
        error = math.sqrt(share * (1 - share) / pairs[..., side].numel())
        assert pairs[..., side].double().mean().item() == pytest.approx(share, abs=4 * error)
    if not symmetric:
        both = share**2
        error = math.sqrt(both * (1 - both) / pairs[..., 0].numel())
        assert (pairs.sum(-1) == 2).double().mean().item() == pytest.approx(both, abs=4 * error)


# --- against ACD's files ---------------------------------------------------------------------------------------------
@needs_reference
@pytest.mark.statistical
def test_same_distribution_as_acd() -> None:
    """Two-sample tests with one number for each scene, so that the sample is independent; p > 0.001 each."""
    theirs = read_phase_features(REFERENCE, split="train")
    ours = simulate("kuramoto", 400, seed=31)

    def numbers(scenes: Scenes, frame: int) -> dict[str, Floats]:
        assert scenes.edge_type is not None
        phase, rate, omega = scenes.trajectory[:, frame].permute(2, 0, 1).numpy()
        return {
            "phase": phase[:, 0] % (2 * np.pi),
            "turned": phase[:, 1] - scenes.trajectory[:, 0, 1, 0].numpy(),
            "rate": rate[:, 2],
            "pull": np.abs(rate - omega).max(1),
            "omega": omega[:, 3],
            "order": np.abs(np.exp(1j * phase).mean(1)),
            "share": (scenes.edge_type == 1).double().mean(1).numpy(),
        }

    for frame in (0, 20, 48):
        mine, other = numbers(ours, frame), numbers(theirs, frame)
        for name, sample in mine.items():
            pvalue = stats.ks_2samp(sample, other[name]).pvalue
            assert pvalue > 0.001, (name, frame, pvalue)


@needs_reference
@pytest.mark.parametrize("split", ["train", "test"])
def test_acd_files_follow_this_law(split: str) -> None:
    """From frame 0 of the generator's own file, the plain loop gives the next frames."""
    theirs = read_phase_features(REFERENCE, split=split)
    types = by_receiver(theirs)
    for scene in range(5):
        state = theirs.trajectory[scene, :6].numpy()
        expected = plain_loop(state[0], types[scene], 6)
        np.testing.assert_allclose(state[..., 0], expected[..., 0], atol=1e-4, rtol=0)
        np.testing.assert_allclose(state[..., 1], expected[..., 1], atol=0.02, rtol=0)
        wrong = plain_loop(state[0], 1 - types[scene], 6)
        assert np.abs(state[..., 0] - wrong[..., 0]).max() > 0.1


@needs_reference
@pytest.mark.statistical
def test_acd_files_begin_with_the_drawn_start() -> None:
    """Linked phases have no relation at the start; one frame of coupling would bring their mean cosine to about 0.1."""
    scenes = [read_phase_features(REFERENCE, split=split) for split in ("train", "valid", "test")]
    assert all(part.edge_type is not None for part in scenes)
    linked = torch.cat([part.edge_type[:, edges.pairs(5)[:, 0]] for part in scenes]).numpy() == 1  # type: ignore[index]
    low, high = np.triu_indices(5, 1)
    share = []
    for frame in (0, 1):
        phase = np.concatenate([part.trajectory[:, frame, :, 0].numpy() for part in scenes])
        share.append(np.cos(phase[:, low] - phase[:, high])[linked].mean())
    error = math.sqrt(0.5 / linked.sum())
    assert share[0] == pytest.approx(0, abs=4 * error)
    assert share[1] - share[0] == pytest.approx(0.1, abs=0.03)
