"""Gravity: Kepler's orbits, conservation laws, order of the integrator, and which edges pull."""

import math

import pytest
import torch

from pyro_nri.dynamics.gravity import STAGES, Gravity
from pyro_nri.dynamics.rollout import rollout

PLANE = ("x", "y", "vx", "vy", "gm")
SPACE = ("x", "y", "z", "vx", "vy", "vz", "gm")


def three_bodies():
    """A heavy one and two that turn around it, in space, at rest as a whole."""
    state = torch.tensor(
        [[0.0, 0, 0, 0, 0, 0, 1], [1, 0, 0.1, 0, 1, 0.05, 0.001], [-3, 0.2, 0, 0.05, -0.57, 0, 0.003]],
        dtype=torch.float64,
    )
    mean = (state[:, 3:6] * state[:, 6:]).sum(0) / state[:, 6].sum()
    state[:, 3:6] -= mean
    return state


def conserved(state):
    """Energy, momentum and angular momentum, with G = 1, summed pair by pair."""
    position, velocity, mass = state[..., :3], state[..., 3:6], state[..., 6]
    energy = (mass * velocity.square().sum(-1)).sum(-1) / 2
    for i in range(3):
        for j in range(i):
            energy = energy - mass[..., i] * mass[..., j] / (position[..., i, :] - position[..., j, :]).norm(dim=-1)
    momentum = (mass[..., None] * velocity).sum(-2)
    angular = (mass[..., None] * torch.linalg.cross(position, velocity)).sum(-2)
    return energy, momentum, angular


def test_conservation_laws():
    state = three_bodies()
    everything = torch.ones(6, dtype=torch.long)
    path = rollout(Gravity(SPACE, time_step=0.25), state, everything, 400)  # 16 turns of the inner body
    before, after = conserved(state), conserved(path)
    assert float((after[0] - before[0]).abs().max() / before[0].abs()) < 1e-7
    assert float((after[1] - before[1]).abs().max()) < 1e-14
    assert float((after[2] - before[2]).abs().max()) < 1e-14
    assert torch.equal(path[..., 6], state[:, 6].expand(400, 3))
    # Without the way back of one pair, momentum is not conserved.
    lame = everything.clone()
    lame[0] = 0
    other = conserved(rollout(Gravity(SPACE, time_step=0.25), state, lame, 400))
    assert float((other[1] - before[1]).abs().max()) > 1e-4


def test_ellipse_of_kepler():
    """Eccentricity 0.5, semi-major axis 1, G M = 1, from the perihelion: E - e sin E = t."""
    e = 0.5
    state = torch.tensor([[0, 0, 0, 0, 1], [1 - e, 0, 0, math.sqrt((1 + e) / (1 - e)), 0]], dtype=torch.float64)
    path = rollout(Gravity(PLANE, time_step=0.1, num_substeps=2), state, torch.tensor([1, 1]), 126)  # two turns
    time = 0.1 * torch.arange(1, 127, dtype=torch.float64)
    anomaly = time.clone()
    for _ in range(50):
        anomaly = anomaly - (anomaly - e * anomaly.sin() - time) / (1 - e * anomaly.cos())
    wanted = torch.stack([anomaly.cos() - e, math.sqrt(1 - e**2) * anomaly.sin()], -1)
    torch.testing.assert_close(path[:, 1, :2], wanted, atol=1e-7, rtol=0)


def test_sixth_order():
    state, everything = three_bodies(), torch.ones(6, dtype=torch.long)
    ends = [rollout(Gravity(SPACE, time_step=4.0, num_substeps=n), state, everything, 1)[0] for n in (8, 16, 128)]
    coarse, fine = ((end - ends[2]).abs().max() for end in ends[:2])
    assert 40 < float(coarse / fine) < 100  # 2^6 = 64
    assert sum(STAGES) == pytest.approx(1, abs=1e-15)


def test_rounds_of_messages_are_leapfrogs():
    """The contract's rounds converge to the same motion as the composed step."""
    gravity = Gravity(SPACE, time_step=0.1, num_substeps=20)
    state, structure = three_bodies(), torch.tensor([1, 0, 1, 1, 1, 0])
    step = gravity.step(state, structure)
    rounds = super(Gravity, gravity).step(state, structure)
    torch.testing.assert_close(rounds, step, atol=1e-7, rtol=0)
    torch.testing.assert_close(gravity.messages(state)[:, 1], gravity.messages(state, torch.ones(6).long()))
    assert not gravity.messages(state)[:, 0].any()


def test_only_receivers_of_an_edge_are_pulled():
    gravity = Gravity(PLANE, time_step=0.1)
    state = torch.tensor([[0.0, 0, 0, 0.2, 5], [1, 0, 0, 0, 5]], dtype=torch.float64)
    moved = gravity.step(state, torch.tensor([1, 0]))  # the first pulls the second
    torch.testing.assert_close(moved[0], torch.tensor([0, 0.02, 0, 0.2, 5], dtype=torch.float64))
    assert moved[1, 2] < -0.4
    still = gravity.step(state, torch.tensor([1, 1]), edge_mask=torch.tensor([False, False]))
    torch.testing.assert_close(still[1], state[1])


def test_batches_of_states_and_structures():
    gravity = Gravity(PLANE, time_step=0.2)
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64)
    structure = torch.randint(2, (7, 1, 6), generator=generator)
    every = gravity.step(state, structure)
    assert every.shape == (7, 4, 3, 5)
    for s in range(7):
        for b in range(4):
            torch.testing.assert_close(every[s, b], gravity.step(state[b], structure[s, 0]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state_names": ("x", "y", "vx", "vy")}, "positions, their velocities and gm"),
        ({"state_names": ("x", "vx", "gm", "hue")}, "positions, their velocities and gm"),
        ({"time_step": 0.0}, "time_step must be positive"),
        ({"num_substeps": 0}, "num_substeps must be at least 1"),
        ({"softening": -1.0}, "softening must be 0 or more"),
    ],
)
def test_bad_input(change, said):
    options = {"state_names": PLANE, "time_step": 0.1, **change}
    with pytest.raises(ValueError, match=said):
        Gravity(options.pop("state_names"), **options)
