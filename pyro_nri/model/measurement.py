"""What is measured of a path, and how precisely."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class AbstractMeasurement(nn.Module, ABC):
    """Numbers that are read off a path at each frame.

    Attributes:
        observed_names: M names of the numbers measured of each entity: the state variables of the scenes.
    """

    observed_names: tuple[str, ...]

    @abstractmethod
    def forward(self, path: Tensor) -> Tensor:
        """What would be measured without noise.

        Args:
            path: ``[*batch, T, N + N_hidden, D]``, raw units, hidden entities last.

        Returns:
            ``[*batch, T, N + N_hidden, M]``; only observed entities are compared with data.
        """


class StateMeasurement(AbstractMeasurement):
    """Some of the state variables, or all.

    Args:
        state_names: D names of the state variables of the dynamics.
        observed_names: M of them; default: all.

    Raises:
        ValueError: a measured variable is not among the state variables.
    """

    def __init__(self, state_names: tuple[str, ...], observed_names: tuple[str, ...] | None = None) -> None:
        super().__init__()
        self.observed_names = state_names if observed_names is None else observed_names
        if unknown := [name for name in self.observed_names if name not in state_names]:
            raise ValueError(f"observed_names must be among {', '.join(state_names)}, found {unknown[0]}")
        self.columns = [state_names.index(name) for name in self.observed_names]

    def forward(self, path: Tensor) -> Tensor:
        return path[..., self.columns]


class DirectionMeasurement(AbstractMeasurement):
    """Direction in which an entity is seen from another one: a unit vector, in radians near itself.

    Args:
        state_names: D names of the state variables of the dynamics.
        origin: number of the entity from which the others are seen.

    Example:
        >>> seen = DirectionMeasurement(("x", "y", "vx", "vy"), origin=0)
        >>> path = torch.tensor([[[1.0, 1, 0, 0], [1, 3, 0, 0]]])
        >>> seen(path)[0, 1].tolist()
        [0.0, 1.0]
    """

    def __init__(self, state_names: tuple[str, ...], origin: int = 0) -> None:
        super().__init__()
        self.columns = [d for d, name in enumerate(state_names) if f"v{name}" in state_names]
        if not self.columns:
            raise ValueError(f"state_names must hold positions and their velocities, found {', '.join(state_names)}")
        self.observed_names = tuple(f"d{state_names[d]}" for d in self.columns)
        self.origin = origin

    def forward(self, path: Tensor) -> Tensor:
        position = path[..., self.columns]
        apart = position - position[..., self.origin : self.origin + 1, :]
        # The origin itself has no direction: 0, without a division by 0 on the way back.
        square = apart.square().sum(-1, keepdim=True)
        return apart / torch.where(square > 0, square, torch.ones_like(square)).sqrt()


class MeasurementNoise(nn.Module):
    """Independent normal noise on every number that is measured.

    Args:
        scale: standard deviation of each of the M numbers, raw units, ``[M]``.
        learn: whether it is a parameter to be learned (by :func:`pyro_nri.inference.noisy_chains.fit_noise`, or any
            optimiser), or known.

    Raises:
        ValueError: a standard deviation is not positive.
    """

    def __init__(self, scale: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        self.log_scale: Tensor
        if scale.ndim != 1 or not bool((scale > 0).all()):
            raise ValueError(f"scale must be a list of positive standard deviations, found {scale.tolist()}")
        if learn:
            self.register_parameter("log_scale", nn.Parameter(scale.log()))
        else:
            self.register_buffer("log_scale", scale.log())

    @property
    def scale(self) -> Tensor:
        """Standard deviations, raw units, ``[M]``."""
        return self.log_scale.exp()

    def forward(self, prediction: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """Distribution of recordings.

        Args:
            prediction: ``[*batch, T, N, M]``, raw units.
            seen: what was measured, bool ``[*batch, T, N]``.

        Returns:
            A distribution with event shape ``[T, N, M]``; what was not measured does not count.
        """
        each = dist.Normal(prediction, self.scale, validate_args=False).mask(seen[..., None])
        recording: dist.TorchDistribution = each.to_event(3)
        return recording
