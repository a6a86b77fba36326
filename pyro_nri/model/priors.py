"""Which structures are likely before any motion was seen."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_nri.scenes import edges


class StructureDistribution(dist.TorchDistribution):
    """Edges with given type weights; either each edge on its own, or both edges of a pair tied together.

    Batch shape ``[*batch]``, event shape ``[E]``, values long. An edge with a padded end has type 0 with certainty.

    Args:
        type_log_weight: normalised log weights of the types, ``[K]``.
        edge_mask: bool ``[*batch, E]``.
        tied: whether z_ij = z_ji (symmetric structures).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self, type_log_weight: Tensor, edge_mask: Tensor, *, tied: bool = False, validate_args: bool | None = None
    ) -> None:
        self.type_log_weight = type_log_weight
        self.edge_mask = edge_mask
        self.tied = tied
        super().__init__(edge_mask.shape[:-1], edge_mask.shape[-1:], validate_args=validate_args)

    @property
    def num_edge_types(self) -> int:
        """K."""
        return self.type_log_weight.shape[-1]

    @property
    def support(self) -> constraints.Constraint:
        """Types 0 to K - 1 for each edge."""
        return constraints.independent(constraints.integer_interval(0, self.num_edge_types - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StructureDistribution":
        """The same distribution with a larger batch shape."""
        mask = self.edge_mask.expand(*batch_shape, *self.event_shape)
        return StructureDistribution(self.type_log_weight, mask, tied=self.tied, validate_args=False)

    def edge_log_weight(self) -> Tensor:
        """Log weight of each type at each edge, ``[*batch, E, K]``: [0, -inf, ...] where an end is padding."""
        absent = torch.full_like(self.type_log_weight, -torch.inf)
        absent[0] = 0
        return torch.where(self.edge_mask[..., None], self.type_log_weight, absent)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw structures, long ``[*sample, *batch, E]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        with torch.no_grad():
            drawn = torch.multinomial(self.type_log_weight.exp(), shape.numel(), replacement=True).reshape(shape)
        return self._from_free(drawn)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Structures by inverting the distribution function: uniforms ``[*batch, E]`` to long ``[*batch, E]``."""
        cumulative = self.type_log_weight.detach().double().exp().cumsum(0)[:-1].contiguous()
        return self._from_free(torch.searchsorted(cumulative, uniform.double().contiguous(), right=True))

    def _from_free(self, drawn: Tensor) -> Tensor:
        if self.tied:
            first = edges.pairs(edges.num_entities_of(self.event_shape[0]))[:, 0]
            owner = edges.pair_of_edge(edges.num_entities_of(self.event_shape[0]))
            drawn = drawn[..., first.to(drawn.device)][..., owner.to(drawn.device)]
        return drawn * self.edge_mask

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability ``[*batch]`` of structures ``[*batch, E]``; -inf off the support."""
        weight = self.edge_log_weight()
        shape = torch.broadcast_shapes(weight.shape[:-1], value.shape)
        chosen = weight.expand(*shape, -1).gather(-1, value.long().expand(shape)[..., None]).squeeze(-1)
        if not self.tied:
            return chosen.sum(-1)
        num_entities = edges.num_entities_of(self.event_shape[0])
        one_of_pair = edges.pairs(num_entities)[:, 0].to(value.device)
        unequal = (value != value[..., edges.reverse_edges(num_entities).to(value.device)]).any(-1)
        total = chosen[..., one_of_pair].sum(-1)
        return torch.where(unequal, torch.full_like(total, -torch.inf), total)


class AbstractPrior(nn.Module, ABC):
    """Prior over structures with type weights that training may adapt.

    Args:
        num_edge_types: K.
        learn_weights: whether the weights of the types are learned; equal and fixed otherwise.

    Raises:
        ValueError: K is below 1.
    """

    #: Whether both edges of a pair always have one type, so that moves must change them together.
    tied: bool

    def __init__(self, num_edge_types: int, *, learn_weights: bool = True) -> None:
        super().__init__()
        if num_edge_types < 1:
            raise ValueError(f"num_edge_types must be at least 1, found {num_edge_types}")
        self.num_edge_types = num_edge_types
        self.learn_weights = learn_weights
        self.type_logits = nn.Parameter(torch.zeros(num_edge_types), requires_grad=learn_weights)

    @abstractmethod
    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        """Distribution of the structures of scenes whose existing edges are ``edge_mask``, bool ``[*batch, E]``."""


class IndependentPrior(AbstractPrior):
    """Each edge has its type independently of all others."""

    tied = False

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        return StructureDistribution(self.type_logits.log_softmax(-1), edge_mask, validate_args=False)


class SymmetricPrior(AbstractPrior):
    """Both edges of a pair have one type, z_ij = z_ji; pairs are independent."""

    tied = True

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        return StructureDistribution(self.type_logits.log_softmax(-1), edge_mask, tied=True, validate_args=False)


PRIORS: dict[str, type[AbstractPrior]] = {"independent": IndependentPrior, "symmetric": SymmetricPrior}


def make_prior(name: str, num_edge_types: int, *, learn_weights: bool = True) -> AbstractPrior:
    """Prior by name: "independent" or "symmetric".

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PRIORS:
        raise ValueError(f"prior must be one of {', '.join(PRIORS)}, found {name!r}")
    return PRIORS[name](num_edge_types, learn_weights=learn_weights)
