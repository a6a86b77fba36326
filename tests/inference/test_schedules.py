"""Temperatures by step."""

import math

import pytest

from pyro_nri.inference.schedules import AdaptiveTemperature, constant, falling_target, geometric


def test_constant():
    assert [constant()(step) for step in (0, 5)] == [1.0, 1.0]
    assert constant(3.0)(99) == 3.0


def test_geometric_falls_by_equal_ratios():
    schedule = geometric(81.0, 1.0, 5)
    assert [schedule(step) for step in range(8)] == pytest.approx([81, 27, 9, 3, 1, 1, 1, 1])
    rising = geometric(1.0, 8.0, 4)
    assert [rising(step) for step in range(5)] == pytest.approx([1, 2, 4, 8, 8])


def test_geometric_ends_exactly():
    assert all(geometric(10.0, 1.0, num)(step) == 1.0 for num in (2, 7, 100) for step in range(num - 1, num + 50))


def test_geometric_of_one_step_starts_where_it_starts():
    assert geometric(5.0, 1.0, 1)(0) == 5.0
    assert geometric(5.0, 1.0, 1)(1) == 1.0


@pytest.mark.parametrize("arguments", [(0.0, 1.0, 3), (1.0, -1.0, 3), (1.0, 1.0, 0)])
def test_bad_schedules(arguments):
    with pytest.raises(ValueError, match="must be"):
        geometric(*arguments)


def test_falling_target():
    """The paper's released code: exp(-1 - step / 160)."""
    assert falling_target(0, 160) == pytest.approx(math.exp(-1))
    assert falling_target(160, 160) == pytest.approx(math.exp(-2))
    assert falling_target(80, 160) == pytest.approx(math.exp(-1.5))


def test_adaptive_temperature():
    start = AdaptiveTemperature(2.0)
    assert start.update(1, 10, 0.3).temperature == pytest.approx(2.2)  # too few accepted: hotter
    assert start.update(5, 10, 0.3).temperature == pytest.approx(2 / 1.1)  # too many: colder
    assert start.update(0, 0, 0.3) == start
    assert AdaptiveTemperature(1.0, rate=2.0).update(0, 1, 0.5).temperature == 2.0
    assert start.temperature == 2.0


def test_adaptive_temperature_finds_its_target():
    """A move that is worse by 3 nats is accepted with probability exp(-3 / T): T settles near 3 / log(1 / target)."""
    state, target = AdaptiveTemperature(100.0), 0.25
    visited = []
    for _ in range(200):
        state = state.update(round(1000 * math.exp(-3 / state.temperature)), 1000, target)
        visited.append(state.temperature)
    wanted = 3 / math.log(4)
    assert all(wanted / 1.1**1.01 < temperature < wanted * 1.1**1.01 for temperature in visited[100:])
