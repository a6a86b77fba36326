"""How far the next state may lie from its prediction."""

from abc import ABC, abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

#: Scales never fall below this share of the typical frame-to-frame change: float32 predicts no better.
SCALE_FLOOR = 1e-6


class AbstractNoise(nn.Module, ABC):
    """Distribution of the next state given its prediction; D independent variables with learned scales.

    Args:
        state_size: D.
    """

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.log_relative_scale = nn.Parameter(torch.zeros(state_size))
        self.register_buffer("change_scale", torch.ones(state_size))
        self.change_scale: Tensor

    def fit_scaling(self, change_scale: Tensor) -> None:
        """Start from scales as large as the typical frame-to-frame change ``[D]``, raw units."""
        self.change_scale.copy_(change_scale)

    @property
    def scale(self) -> Tensor:
        """Scale of each state variable, raw units, ``[D]``."""
        return self.change_scale * (self.log_relative_scale.exp() + SCALE_FLOOR)

    @abstractmethod
    def forward(self, prediction: Tensor, state: Tensor) -> dist.TorchDistribution:
        """Distribution of the next state.

        Args:
            prediction: ``[*batch, D]``, raw units.
            state: the state that was predicted from, ``[*batch, D]``; noise that depends on geometry looks at it.

        Returns:
            A distribution with batch shape ``[*batch]`` and event shape ``[D]``.
        """


class NormalNoise(AbstractNoise):
    """Gaussian noise."""

    def forward(self, prediction: Tensor, state: Tensor) -> dist.TorchDistribution:
        independent: dist.TorchDistribution = dist.Normal(prediction, self.scale, validate_args=False).to_event(1)
        return independent


class StudentTNoise(AbstractNoise):
    """Student-t noise: a few violent frames (a wall, a close encounter) do not drown the quiet ones.

    Args:
        state_size: D.
        degrees_of_freedom: fixed; 4 by default.
    """

    def __init__(self, state_size: int, degrees_of_freedom: float = 4.0) -> None:
        super().__init__(state_size)
        self.degrees_of_freedom = degrees_of_freedom

    def forward(self, prediction: Tensor, state: Tensor) -> dist.TorchDistribution:
        each = dist.StudentT(self.degrees_of_freedom, prediction, self.scale, validate_args=False)
        independent: dist.TorchDistribution = each.to_event(1)
        return independent


NOISES: dict[str, type[AbstractNoise]] = {"normal": NormalNoise, "student_t": StudentTNoise}


def make_noise(name: str, state_size: int) -> AbstractNoise:
    """Noise by name: "normal" or "student_t".

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, found {name!r}")
    return NOISES[name](state_size)
