"""Velocities by finite differences: orders, gaps, ends, names."""

import numpy as np
import pytest
import torch

from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.scenes.velocities import with_velocities


def positions(
    values: object, *, time_step: float = 0.1, mask: object = None, names: tuple[str, ...] = ("x",)
) -> Scenes:
    """One scene of two alike entities that move as ``values`` ``[T]``."""
    x = torch.as_tensor(values, dtype=torch.float64)[None, :, None, None].expand(1, -1, 2, len(names))
    seen = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)[None, :, None].expand(1, -1, 2)
    return Scenes.from_arrays(x, time_step=time_step, observation_mask=seen, state_names=names)


def naive(x: list[float], seen: list[bool], step: float) -> list[float | None]:
    """The rule again, one frame at a time."""
    result: list[float | None] = []

    def there(t: int) -> bool:
        return 0 <= t < len(x) and seen[t]

    for t in range(len(x)):
        if not seen[t]:
            result.append(None)
        elif there(t - 1) and there(t + 1):
            result.append((x[t + 1] - x[t - 1]) / (2 * step))
        elif there(t + 1):
            result.append(
                (-1.5 * x[t] + 2 * x[t + 1] - 0.5 * x[t + 2]) / step if there(t + 2) else (x[t + 1] - x[t]) / step
            )
        elif there(t - 1):
            result.append(
                (1.5 * x[t] - 2 * x[t - 1] + 0.5 * x[t - 2]) / step if there(t - 2) else (x[t] - x[t - 1]) / step
            )
        else:
            result.append(None)
    return result


@pytest.mark.parametrize("seed", range(6))
def test_against_one_frame_at_a_time(seed: int) -> None:
    generator = np.random.default_rng(seed)
    num_scenes, num_frames, num_entities = 3, [2, 3, 4, 7, 12, 20][seed], 4
    x = generator.normal(size=(num_scenes, num_frames, num_entities, 2))
    seen = generator.random((num_scenes, num_frames, num_entities)) < 0.7
    present = np.ones((num_scenes, num_entities), dtype=bool)
    present[1, 3] = False
    scenes = Scenes.from_arrays(x, time_step=0.25, observation_mask=seen, entity_mask=present, state_names=("x", "y"))
    moving = with_velocities(scenes)
    for b in range(num_scenes):
        for n in range(num_entities):
            for d in range(2):
                mask = scenes.observation_mask[b, :, n].tolist()
                expected = naive(x[b, :, n, d].tolist(), mask, 0.25)
                assert moving.observation_mask[b, :, n].tolist() == [v is not None for v in expected]
                found = moving.trajectory[b, :, n, 2 + d].tolist()
                assert found == pytest.approx([0.0 if v is None else v for v in expected], abs=1e-12)
    kept = moving.observation_mask[..., None]
    assert torch.equal(moving.trajectory[..., :2], torch.where(kept, scenes.trajectory, 0.0))


def test_everything_else_stays() -> None:
    springs = simulate("springs", 4, num_frames=6, seed=1)
    scenes = Scenes.from_arrays(
        springs.trajectory[..., :2],
        time_step=springs.time_step,
        state_names=("x", "y"),
        edge_type=springs.edge_type,
        structure_group=["a", "a", "b", "b"],
        entity_kind=[0, 1, 0, 1, 0],
        initial_state=springs.trajectory[:, 0, :, :2],
    )
    moving = with_velocities(scenes)
    assert moving.state_names == ("x", "y", "vx", "vy")
    assert moving.initial_state is None
    assert torch.equal(moving.edge_type, scenes.edge_type)  # type: ignore[arg-type]
    assert torch.equal(moving.entity_kind, scenes.entity_kind)  # type: ignore[arg-type]
    assert (moving.structure_group, moving.time_step) == (scenes.structure_group, scenes.time_step)
    assert moving.observation_mask.all()
    assert with_velocities(scenes.to(torch.float32)).trajectory.dtype == torch.float32
    # NRI's velocities lie half a sub-step before its positions; force times that is far less than the error here.
    torch.testing.assert_close(moving.trajectory[..., 2:], springs.trajectory[..., 2:], atol=0.02, rtol=0)


def test_order_of_accuracy() -> None:
    """Half the step, a quarter of the error; half the error where there are only two frames in a row."""

    def errors(num_frames: int, mask: list[bool] | None = None) -> np.ndarray:
        step = 0.8 / (num_frames - 1)
        time = step * np.arange(num_frames)
        moving = with_velocities(positions(np.sin(time), time_step=step, mask=mask))
        return (moving.trajectory[0, :, 0, 1].numpy() - np.cos(time))[moving.observation_mask[0, :, 0]]

    coarse, fine = np.abs(errors(41)), np.abs(errors(81))
    assert coarse[20] / fine[40] == pytest.approx(4, rel=0.02)
    assert coarse[0] / fine[0] == pytest.approx(4, rel=0.05)
    assert coarse[-1] / fine[-1] == pytest.approx(4, rel=0.05)
    step = 0.02
    assert fine[40] == pytest.approx((step / 2) ** 2 / 6 * np.cos(0.4), rel=0.02)
    two = [np.abs(errors(n, [True, True] + [False] * (n - 2)))[1] for n in (41, 81)]
    assert two[1] == pytest.approx(step / 4 * np.sin(step / 2), rel=0.4)
    quadratic = with_velocities(positions([0.0, 1.0, 4.0, 9.0, 16.0], time_step=1.0))
    assert quadratic.trajectory[0, :, 0, 1].tolist() == [0, 2, 4, 6, 8]


def test_a_lonely_state_becomes_unobserved() -> None:
    moving = with_velocities(positions([1.0, 2, 3, 4, 5], mask=[True, False, True, True, False]))
    assert moving.observation_mask[0, :, 0].tolist() == [False, False, True, True, False]
    assert moving.trajectory[0, 0].eq(0).all()
    assert moving.trajectory[0, 2:4, 0, 1].tolist() == pytest.approx([10, 10])


def test_oscillators_from_phases_alone() -> None:
    states = simulate("kuramoto", 50, seed=2)
    phases = Scenes.from_arrays(states.trajectory[..., :1], time_step=0.1, state_names=["phi"])
    moving = with_velocities(phases)
    assert moving.state_names == ("phi", "vphi")
    error = (moving.trajectory[..., 1] - states.trajectory[..., 1]).abs()
    assert error.median() < 0.01


@pytest.mark.parametrize(
    ("names", "found"), [(("x", "vx"), "found the velocity vx among"), (("vx", "y", "x"), "found the velocity vx")]
)
def test_velocities_are_not_made_twice(names: tuple[str, ...], found: str) -> None:
    with pytest.raises(ValueError, match=found) as caught:
        with_velocities(positions([0.0, 1.0, 2.0], names=names))
    assert "\n" not in str(caught.value)
    moving = with_velocities(positions([0.0, 1.0, 2.0], names=("x", "voltage")))
    assert moving.state_names == ("x", "voltage", "vx", "vvoltage")
    with pytest.raises(ValueError, match="vx, vvoltage"):
        with_velocities(moving)
