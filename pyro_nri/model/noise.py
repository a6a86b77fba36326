"""How far the next state may lie from its prediction."""

import copy
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

#: Scales never fall below this share of the typical frame-to-frame change: float32 predicts no better.
SCALE_FLOOR = 1e-6
#: Degrees of freedom of Student-t noise.
DEGREES_OF_FREEDOM = 4.0


class AbstractNoise(nn.Module, ABC):
    """Distribution of D variables given their prediction, with learned scales.

    Args:
        size: D.
        context_size: F, length of what the scale may depend on; ignored by noise whose scale is fixed.
    """

    def __init__(self, size: int, context_size: int = 0) -> None:
        super().__init__()
        self.context_size = context_size
        self.log_relative_scale = nn.Parameter(torch.zeros(size))
        self.register_buffer("change_scale", torch.ones(size))
        self.change_scale: Tensor

    #: Whether the scale depends on a context.
    uses_context: ClassVar[bool] = False
    #: Share of the typical change below which no scale falls.
    floor: float = SCALE_FLOOR

    def fit_scaling(self, change_scale: Tensor, context: Tensor | None = None) -> None:
        """Start from scales as large as the typical change.

        Args:
            change_scale: typical change of each variable, raw units, ``[D]``.
            context: contexts that occur, ``[R, F]``, by which they are standardised.
        """
        self.change_scale.copy_(change_scale)

    def blunted(self, share: float) -> "AbstractNoise":
        """A copy whose scales are at least this share of the typical change."""
        other = copy.deepcopy(self)
        other.floor = share
        return other

    @property
    def scale(self) -> Tensor:
        """Scale of each variable where nothing else is known, raw units, ``[D]``."""
        return self.change_scale * (self.log_relative_scale.exp() + self.floor)

    @abstractmethod
    def forward(self, prediction: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        """Distribution of the variables.

        Args:
            prediction: ``[*batch, D]``, raw units.
            context: ``[*batch, F]``, for noise that uses it.

        Returns:
            A distribution with batch shape ``[*batch]`` and event shape ``[D]``.
        """

    @abstractmethod
    def precision(self, residual: Tensor, context: Tensor | None = None) -> Tensor:
        """Weights that turn a maximum-likelihood fit into least squares: ``-(d log p / d residual) / residual``.

        For Student-t noise this is also the mean precision of its Gaussian scale mixture given the residual.

        Args:
            residual: ``[*batch, D]``, raw units.
            context: ``[*batch, F]``.

        Returns:
            ``[*batch, D]``.
        """

    @abstractmethod
    def mixture_shape(self, size: int) -> float | None:
        """Shape of the gamma law of the precision given the residual, for noise that is a scale mixture; else None."""


class NormalNoise(AbstractNoise):
    """Gaussian noise."""

    def forward(self, prediction: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        independent: dist.TorchDistribution = dist.Normal(prediction, self.scale, validate_args=False).to_event(1)
        return independent

    def precision(self, residual: Tensor, context: Tensor | None = None) -> Tensor:
        return self.scale.pow(-2).expand_as(residual)

    def mixture_shape(self, size: int) -> float | None:
        return None


class StudentTNoise(AbstractNoise):
    """Student-t noise: a few violent frames (a wall, a close encounter) do not drown the quiet ones."""

    def forward(self, prediction: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        each = dist.StudentT(DEGREES_OF_FREEDOM, prediction, self.scale, validate_args=False)
        independent: dist.TorchDistribution = each.to_event(1)
        return independent

    def precision(self, residual: Tensor, context: Tensor | None = None) -> Tensor:
        freedom = DEGREES_OF_FREEDOM
        return (freedom + 1) / (freedom * self.scale.square() + residual.square())

    def mixture_shape(self, size: int) -> float | None:
        return (DEGREES_OF_FREEDOM + 1) / 2


class VectorStudentT(dist.TorchDistribution):
    """Student-t vector: D variables with their own scales, violent together or not at all.

    Args:
        df: degrees of freedom.
        loc: ``[*batch, D]``.
        scale: ``[*batch, D]``; broadcasts with ``loc``.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, df: float, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.df = df
        self.loc = loc
        self.scale = scale
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Any real vector."""
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VectorStudentT":
        """The same distribution with a larger batch shape."""
        shape = (*torch.Size(batch_shape), *self.event_shape)
        return VectorStudentT(self.df, self.loc.expand(shape), self.scale.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``[*batch]``."""
        size, df = self.event_shape[0], self.df
        square = ((value - self.loc) / self.scale).square().sum(-1)
        constant = math.lgamma((df + size) / 2) - math.lgamma(df / 2) - size / 2 * math.log(df * math.pi)
        return constant - self.scale.log().sum(-1) - (df + size) / 2 * torch.log1p(square / df)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw vectors, ``[*sample, *batch, D]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            normal = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            half = torch.full(shape[:-1], self.df / 2, dtype=self.loc.dtype, device=self.loc.device)
            weight = torch._standard_gamma(half) / (self.df / 2)
            return self.loc + self.scale * normal / weight[..., None].sqrt()


class GeometricNoise(AbstractNoise):
    """Student-t noise whose scale follows the geometry of the frame: closest approach, distance to a wall, speed.

    All D variables of an entity are violent together. The log scale is linear in the standardised context.
    """

    uses_context = True

    def __init__(self, size: int, context_size: int = 0) -> None:
        super().__init__(size, context_size)
        self.context_weight = nn.Parameter(torch.zeros(context_size))
        self.register_buffer("context_mean", torch.zeros(context_size))
        self.register_buffer("context_scale", torch.ones(context_size))
        self.context_mean: Tensor
        self.context_scale: Tensor

    def fit_scaling(self, change_scale: Tensor, context: Tensor | None = None) -> None:
        super().fit_scaling(change_scale)
        if context is None:
            raise ValueError("geometric noise needs contexts to standardise, found none")
        mean, spread = context.double().mean(0), context.double().std(0)
        self.context_mean.copy_(mean)
        self.context_scale.copy_(torch.where(spread > 1e-9, spread, torch.ones_like(spread)))

    def _scale(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError("geometric noise needs the context of each prediction, found none")
        # Contexts far beyond those of training would give scales without any support in data.
        standard = ((context - self.context_mean) / self.context_scale).clamp(-8, 8)
        log_factor = standard @ self.context_weight
        return self.change_scale * ((self.log_relative_scale + log_factor[..., None]).exp() + self.floor)

    def forward(self, prediction: Tensor, context: Tensor | None = None) -> dist.TorchDistribution:
        return VectorStudentT(DEGREES_OF_FREEDOM, prediction, self._scale(context), validate_args=False)

    def precision(self, residual: Tensor, context: Tensor | None = None) -> Tensor:
        scale, freedom = self._scale(context), DEGREES_OF_FREEDOM
        square = (residual / scale).square().sum(-1, keepdim=True)
        return (freedom + residual.shape[-1]) / (freedom + square) / scale.square()

    def mixture_shape(self, size: int) -> float | None:
        return (DEGREES_OF_FREEDOM + size) / 2


class GivenScaleNoise(GeometricNoise):
    """Student-t noise whose scale is its context, ``[*batch, 1]``: nothing is learned. For searches on blunt data."""

    def _scale(self, context: Tensor | None) -> Tensor:
        if context is None:
            raise ValueError("noise of a given scale needs the scale of each prediction, found none")
        return context.expand(*context.shape[:-1], len(self.change_scale))


NOISES: dict[str, type[AbstractNoise]] = {
    "normal": NormalNoise,
    "student_t": StudentTNoise,
    "geometric": GeometricNoise,
}


def make_noise(name: str, size: int, context_size: int = 0) -> AbstractNoise:
    """Noise by name: "normal", "student_t" or "geometric".

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, found {name!r}")
    return NOISES[name](size, context_size)
