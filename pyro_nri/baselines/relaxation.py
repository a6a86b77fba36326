"""Edge types as weights that gradients pass through: the Gumbel-softmax relaxation."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_nri.scenes import edges


class RelaxedTypes(dist.TorchDistribution):
    """Gumbel-softmax draws of edge types, from a random source of their own.

    Args:
        logits: ``[*batch, E, K]``.
        temperature: of the softmax.
        hard: whether draws are 0 or 1, with the gradient of the soft ones (straight through).
        tied: whether both edges of a pair share one draw; their logits must be alike.
        random: source of the draws.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = True

    def __init__(self, logits: Tensor, temperature: float, *, hard: bool, tied: bool, random: torch.Generator) -> None:
        self.logits = logits
        self.temperature = temperature
        self.hard = hard
        self.tied = tied
        self.random = random
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Weights that sum to one at each edge."""
        return constraints.independent(constraints.simplex, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "RelaxedTypes":
        """The same distribution with a larger batch shape."""
        logits = self.logits.expand(*batch_shape, *self.event_shape)
        return RelaxedTypes(logits, self.temperature, hard=self.hard, tied=self.tied, random=self.random)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Weights ``[*sample, *batch, E, K]``, differentiable in the logits."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, generator=self.random, dtype=torch.float64)
        if self.tied:
            first = edges.pairs(edges.num_entities_of(shape[-2]))
            uniform[..., first[:, 1], :] = uniform[..., first[:, 0], :]
        gumbel = -(-uniform.clamp(min=1e-300).log()).clamp(min=1e-300).log()
        soft = ((self.logits + gumbel.to(self.logits)) / self.temperature).softmax(-1)
        if not self.hard:
            return soft
        one_hot = nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
        return one_hot + (soft - soft.detach())  # in this order exactly 0 or 1

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Weights without gradients."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero: the divergence from the prior is a term of its own."""
        return self.logits.new_zeros(value.shape[:-2])
