"""Temperature by step."""

import math
from collections.abc import Callable
from typing import NamedTuple

Schedule = Callable[[int], float]


def constant(temperature: float = 1.0) -> Schedule:
    """The same temperature at every step."""
    return lambda step: temperature


def geometric(start: float, end: float, num_steps: int) -> Schedule:
    """From ``start`` to ``end`` by equal ratios within ``num_steps`` steps, then ``end``.

    Raises:
        ValueError: a temperature is not positive or ``num_steps`` is below 1.

    >>> schedule = geometric(16.0, 1.0, 5)
    >>> [schedule(step) for step in range(6)]
    [16.0, 8.0, 4.0, 2.0, 1.0, 1.0]
    """
    if start <= 0 or end <= 0:
        raise ValueError(f"temperatures must be positive, found {start} and {end}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, found {num_steps}")

    def schedule(step: int) -> float:
        share = min(1.0, step / max(1, num_steps - 1))
        return float(start * (end / start) ** share)

    return schedule


def falling_target(progress: float, fall: float) -> float:
    """Wanted share of accepted moves among those that make the fit worse: falls from exp(-1).

    It falls by a factor e whenever ``progress`` grows by ``fall``. In the paper's released code ``progress`` counts
    passes over all scenes and ``fall`` is 160.
    """
    return math.exp(-1.0 - progress / fall)


class AdaptiveTemperature(NamedTuple):
    """The paper's annealing (its released code): keep the rate of accepted worsening moves near a falling target.

    Attributes:
        temperature: current temperature.
        rate: factor by which the temperature moves at each update.
    """

    temperature: float
    rate: float = 1.1

    def update(self, num_accepted_worse: int, num_worse: int, target: float) -> "AdaptiveTemperature":
        """Heat when too few worsening moves were accepted, cool when too many; unchanged when there were none."""
        if num_worse == 0:
            return self
        too_few = num_accepted_worse / num_worse < target
        return self._replace(temperature=self.temperature * (self.rate if too_few else 1 / self.rate))
