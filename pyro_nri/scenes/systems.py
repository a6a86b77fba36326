"""What a simulated system is, and what it is told about the scenes that are wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """What a system needs to know about the scenes that are wanted; see :func:`pyro_nri.scenes.simulate.simulate`.

    A system reads only the entries that belong to it.
    """

    num_entities: int
    num_frames: int
    frame_spacing: int
    box: float
    spring_types: tuple[float, ...]
    link_probability: float
    symmetric: bool


@dataclass(frozen=True)
class System:
    """One kind of simulated system.

    Attributes:
        state_names: names of the D state variables.
        substep: time of one sub-step.
        frame_spacing: default number of sub-steps between two frames.
        run: from one random generator for each of B scenes and the setting to a noise-free trajectory ``[B, T, N, D]``
            and edge types ``[B, N, N]`` (row = sender). It draws the same numbers from a generator whatever stands
            beside it, and before it knows how many frames are wanted.
        options: arguments of ``simulate`` that not every system has and this one has.
        known_states: state variables that are constants known without error: measurement noise leaves them alone.
    """

    state_names: tuple[str, ...]
    substep: float
    frame_spacing: int
    run: Callable[[Sequence[np.random.Generator], Setting], tuple[Floats, NDArray[np.int64]]]
    options: tuple[str, ...]
    known_states: tuple[str, ...] = ()
