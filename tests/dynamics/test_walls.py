"""Walls found from motion: where some were put, and none where there are none."""

import numpy as np
import pytest
import torch

from pyro_nri.dynamics.walls import estimate_walls
from pyro_nri.scenes.simulate import simulate

INF = float("inf")


def motion(low, high, *, num_scenes=10, num_frames=60, dt=0.1, seed=0):
    """Straight motion between elastic walls (-inf, inf for none), two axes: positions and velocities by mirrors."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(-1, 1, (num_scenes, 1, 4, 2)), rng.normal(0, 1, (num_scenes, 1, 4, 2))
    position = start + speed * dt * np.arange(num_frames)[None, :, None, None]
    velocity = np.broadcast_to(speed, position.shape).copy()
    for _ in range(20):
        for side, walls in ((-1, low), (1, high)):
            for axis, wall in enumerate(walls):
                if np.isfinite(wall):
                    beyond = side * (position[..., axis] - wall) > 0
                    position[..., axis] = np.where(beyond, 2 * wall - position[..., axis], position[..., axis])
                    velocity[..., axis] = np.where(beyond, -velocity[..., axis], velocity[..., axis])
    return torch.from_numpy(position), torch.from_numpy(velocity)


def found(position, velocity, dt=0.1, mask=None):
    if mask is None:
        mask = torch.ones(len(position), position.shape[1] - 1, position.shape[2], dtype=torch.bool)
    low, high = estimate_walls(position, velocity, mask, dt)
    return low.tolist(), high.tolist()


def of_scenes(scenes):
    return found(scenes.trajectory[..., :2], scenes.trajectory[..., 2:], scenes.time_step, scenes.transition_mask)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((-2.0, -2.0), (2.0, 2.0)),  # a square around the origin
        ((-1.5, -3.0), (2.5, 1.2)),  # any box
        ((-1.2, -INF), (INF, INF)),  # one wall, and open space beyond
        ((-INF, -INF), (INF, 1.4)),
        ((-1.2, -1.2), (INF, INF)),  # a corner
        ((-1.2, -INF), (1.2, INF)),  # a channel around the origin
        ((-INF, -INF), (INF, INF)),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_straight_motion_between_walls(low, high, seed):
    found_low, found_high = found(*motion(low, high, seed=seed))
    assert found_low == pytest.approx(low, abs=1e-9)
    assert found_high == pytest.approx(high, abs=1e-9)


def test_one_wall_is_no_box_even_where_nothing_goes_far():
    """Entities come, bounce off the left wall and are lost from sight before they are anywhere else."""
    rng = np.random.default_rng(0)
    place, speed = rng.uniform(0, 0.09, (50, 1)), -rng.uniform(1, 2, (50, 1))
    free = -1 + place + speed * 0.1 * np.arange(-2, 3)  # the wall stands at -1
    position, velocity = np.where(free < -1, -2 - free, free), np.where(free < -1, -speed, speed)
    states = [torch.from_numpy(np.stack([x, 0 * x], -1))[:, :, None] for x in (position, velocity)]
    low, high = found(*states)
    assert low == pytest.approx([-1.0, -INF], abs=1e-9)
    assert high == [INF, INF]


def test_nothing_was_seen_outside():
    position, velocity = motion((-1.5, -3.0), (2.5, 1.2))
    low, high = (torch.tensor(walls) for walls in found(position, velocity))
    assert (position >= low - 1e-12).all()
    assert (position <= high + 1e-12).all()


@pytest.mark.parametrize("box", [3.0, 5.0])
def test_box_of_charges(box):
    low, high = of_scenes(simulate("charged", 20, box=box, seed=0))
    assert low == pytest.approx([-box] * 2, abs=2e-4)  # of the way of a frame, about 0.1
    assert high == pytest.approx([box] * 2, abs=2e-4)


def test_few_bounces_of_all_walls_together_show_a_square():
    """A single scene of charges sees the walls a few times each at most; they agree about one square."""
    scenes = simulate("charged", 3, seed=2)
    low, high = of_scenes(scenes)
    assert low + high == pytest.approx([-5.0] * 2 + [5.0] * 2, abs=1e-3)


@pytest.mark.parametrize("noise", [0.001, 0.01])
def test_noise(noise):
    """Noise moves each wall by no more than a few standard deviations."""
    low, high = of_scenes(simulate("charged", 50, seed=0, measurement_noise=noise))
    assert low == pytest.approx([-5.0] * 2, abs=3 * noise + 1e-3)
    assert high == pytest.approx([5.0] * 2, abs=3 * noise + 1e-3)


# --- negative controls -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("system", ["springs", "charged"])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_free_motion_has_no_walls(system, noise):
    """Springs turn back and charges swing round each other, everywhere: never a wall."""
    for seed in range(3):
        scenes = simulate(system, 40, box=INF, seed=seed, measurement_noise=noise)
        assert of_scenes(scenes) == ([-INF] * 2, [INF] * 2)


def test_a_thrown_ball_turns_without_a_wall():
    """Many throws to the same height: a turn that the motion itself explains is no bounce."""
    rng = np.random.default_rng(0)
    time = 0.1 * np.arange(50)[None, :] + rng.uniform(0, 0.1, (300, 1))
    position = 1 - (time - 2.5) ** 2
    position, velocity = (torch.from_numpy(x)[:, :, None, None] for x in (position, -2 * (time - 2.5)))
    assert found(position, velocity) == ([-INF], [INF])


def test_two_bounces_are_not_enough():
    position, velocity = motion((-1.5, -INF), (INF, INF), num_scenes=1)
    position, velocity = position[:, :, :2], velocity[:, :, :2]
    turned = (velocity[:, 1:] != velocity[:, :-1]).any(-1)
    assert 1 <= int(turned.sum()) <= 2
    assert found(position, velocity) == ([-INF] * 2, [INF] * 2)


def test_frames_that_were_not_seen_do_not_count():
    """Masked transitions hold zeros: they look like jumps to the origin."""
    position, velocity = motion((-2.0, -2.0), (2.0, 2.0), num_scenes=20)
    seen = torch.rand(position.shape[:3], generator=torch.Generator().manual_seed(0)) > 0.1
    position, velocity = (torch.where(seen[..., None], x, 0.0) for x in (position, velocity))
    mask = seen[:, :-1] & seen[:, 1:]
    low, high = found(position, velocity, mask=mask)
    assert low + high == pytest.approx([-2.0] * 2 + [2.0] * 2, abs=1e-9)
    assert found(position, velocity, mask=torch.zeros_like(mask)) == ([-INF] * 2, [INF] * 2)
