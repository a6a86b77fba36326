"""Distributions of structures: what they sample, score and list."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_nri.model.labelings import Labelings
from pyro_nri.scenes import edges


class StructureDistribution(dist.TorchDistribution):
    """Distribution of the structures of scenes.

    Batch shape ``[*batch]``, event shape ``[E]``, values long. An edge with a padded end has type 0 with certainty.

    Args:
        num_edge_types: K.
        edge_mask: existing edges, bool ``[*batch, E]``.

    Attributes:
        tied: whether z_ij = z_ji always, so that both edges of a pair must move together.
        factorises: whether all edges are independent.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False
    tied: bool
    factorises: bool

    def __init__(self, num_edge_types: int, edge_mask: Tensor, validate_args: bool | None = None) -> None:
        self.num_edge_types = num_edge_types
        self.edge_mask = edge_mask
        super().__init__(edge_mask.shape[:-1], edge_mask.shape[-1:], validate_args=validate_args)

    @property
    def num_entities(self) -> int:
        """N."""
        return edges.num_entities_of(self.event_shape[0])

    @property
    def support(self) -> constraints.Constraint:
        """Types 0 to K - 1 for each edge; not all of these have positive probability."""
        return constraints.independent(constraints.integer_interval(0, self.num_edge_types - 1), 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "StructureDistribution":
        """The same distribution with a larger batch shape."""
        return self.with_edge_mask(self.edge_mask.expand(*batch_shape, *self.event_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw structures, long ``[*sample, *batch, E]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_uniform(torch.rand(shape, dtype=torch.float64, device=self.edge_mask.device))

    @abstractmethod
    def with_edge_mask(self, edge_mask: Tensor) -> "StructureDistribution":
        """The same distribution for scenes whose existing edges are ``edge_mask``, bool ``[*batch, E]``."""

    @abstractmethod
    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Structures as a function of uniform numbers in [0, 1): ``[*batch, E]`` to long ``[*batch, E]``."""

    @abstractmethod
    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability ``[*batch]`` of structures ``[*batch, E]``; -inf off the support."""

    @property
    @abstractmethod
    def choices(self) -> tuple[int, int]:
        """Number of values of what a structure is made of, and number of these parts: (K, E) for independent edges."""

    @property
    @abstractmethod
    def type_probability(self) -> Tensor:
        """Probability of each type at any one edge that exists, float64 ``[K]``."""

    @abstractmethod
    def list_structures(self) -> Tensor:
        """Every structure that some element of the batch may have, each once, long ``[J, E]``."""


class EdgeDistribution(StructureDistribution):
    """Edges with given type weights; either each edge on its own, or both edges of a pair tied together.

    Args:
        type_log_weight: normalised log weights of the types, ``[K]``.
        edge_mask: bool ``[*batch, E]``.
        tied: whether z_ij = z_ji (symmetric structures).
    """

    def __init__(
        self, type_log_weight: Tensor, edge_mask: Tensor, *, tied: bool = False, validate_args: bool | None = None
    ) -> None:
        self.type_log_weight = type_log_weight
        self.tied = tied
        self.factorises = not tied
        super().__init__(type_log_weight.shape[-1], edge_mask, validate_args)

    def with_edge_mask(self, edge_mask: Tensor) -> "EdgeDistribution":
        return EdgeDistribution(self.type_log_weight, edge_mask, tied=self.tied, validate_args=False)

    def edge_log_weight(self) -> Tensor:
        """Log weight of each type at each edge, ``[*batch, E, K]``: [0, -inf, ...] where an end is padding."""
        return _masked_weight(self.type_log_weight, self.edge_mask)

    def conditional_log_weight(self, structure: Tensor, edge: Tensor) -> Tensor:
        """Log prior of each type at some edges given all others, up to a constant for each edge.

        If the prior is tied, the reverse edge takes the type too.

        Args:
            structure: long ``[C, G, E]``, one for each element of a batch ``[G]``.
            edge: numbers of M edges, long ``[C, G, M]``.

        Returns:
            float64 ``[C, G, M, K]``.
        """
        return _at_edges(self.edge_log_weight(), edge)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        cumulative = self.type_log_weight.detach().double().exp().cumsum(0)[:-1].contiguous()
        drawn = torch.searchsorted(cumulative, uniform.double().contiguous(), right=True)
        if self.tied:
            drawn = _both_edges(drawn[..., _first_edges(self.num_entities, drawn.device)])
        return drawn * self.edge_mask

    def log_prob(self, value: Tensor) -> Tensor:
        weight = self.edge_log_weight()
        shape = torch.broadcast_shapes(weight.shape[:-1], value.shape)
        chosen = weight.expand(*shape, -1).gather(-1, value.long().expand(shape)[..., None]).squeeze(-1)
        if not self.tied:
            return chosen.sum(-1)
        total = chosen[..., _first_edges(self.num_entities, value.device)].sum(-1)
        return torch.where(_is_tied(value), total, torch.full_like(total, -torch.inf))

    @property
    def choices(self) -> tuple[int, int]:
        return self.num_edge_types, self.event_shape[0] // (2 if self.tied else 1)

    @property
    def type_probability(self) -> Tensor:
        return self.type_log_weight.detach().double().softmax(-1)

    def list_structures(self) -> Tensor:
        every = _all_choices(*self.choices).to(self.edge_mask.device)
        return _both_edges(every) if self.tied else every


class SparseDistribution(StructureDistribution):
    """Both edges of a pair have one type; how many pairs interact (type 1 or higher) is Beta-Bernoulli.

    Each of the P existing pairs interacts with probability rho, ``rho ~ Beta(a, b)`` for the whole structure; an
    interacting pair has each of the types 1 to K - 1 alike. With rho integrated out and m interacting pairs,
    ``p(z) = B(a + m, b + P - m) / B(a, b) / (K - 1)^m``.

    Args:
        num_edge_types: K.
        edge_mask: bool ``[*batch, E]``.
        concentration: (a, b).
    """

    tied = True
    factorises = False

    def __init__(
        self,
        num_edge_types: int,
        edge_mask: Tensor,
        *,
        concentration: tuple[float, float] = (1.0, 1.0),
        validate_args: bool | None = None,
    ) -> None:
        self.concentration = concentration
        super().__init__(num_edge_types, edge_mask, validate_args)

    def with_edge_mask(self, edge_mask: Tensor) -> "SparseDistribution":
        return SparseDistribution(self.num_edge_types, edge_mask, concentration=self.concentration, validate_args=False)

    def edge_log_weight(self) -> Tensor:
        """The part of the log probability that is a sum over pairs: log weight of each type, ``[*batch, E, K]``."""
        weight = torch.full((self.num_edge_types,), -math.log(self.num_edge_types - 1), dtype=torch.float64)
        weight[0] = 0
        return _masked_weight(weight.to(self.edge_mask.device), self.edge_mask)

    def count_log_weight(self, number: Tensor) -> Tensor:
        """The other part, for numbers m of interacting pairs ``[*batch, R]``; -inf beyond P."""
        a, b = (torch.tensor(x, dtype=torch.float64, device=number.device) for x in self.concentration)
        total = self.edge_mask.sum(-1, keepdim=True) // 2  # existing pairs
        rest = total - number
        beta = (a + number).lgamma() + (b + rest.clamp(min=0)).lgamma() - (a + b + total).lgamma()
        beta = beta - (a.lgamma() + b.lgamma() - (a + b).lgamma())
        return torch.where(rest >= 0, beta, torch.full_like(beta, -torch.inf))

    def conditional_log_weight(self, structure: Tensor, edge: Tensor) -> Tensor:
        """As :meth:`EdgeDistribution.conditional_log_weight`; it counts the interacting pairs among the others."""
        interacts = structure > 0
        others = interacts.sum(-1, keepdim=True) // 2 - interacts.gather(-1, edge).long()  # [C, G, M]
        number = others[..., None] + (torch.arange(self.num_edge_types, device=edge.device) > 0)  # [C, G, M, K]
        counted = self.count_log_weight(number.flatten(-2)).reshape(number.shape)
        return _at_edges(self.edge_log_weight(), edge) + counted

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Pair after pair from its conditional given the pairs before (Pólya's urn), by inversion.

        The first edge of a pair decides whether it interacts, the second one how.
        """
        both = edges.pairs(self.num_entities).to(uniform.device)
        exists = self.edge_mask[..., both[:, 0]]  # [*batch, pairs]
        num_seen = torch.zeros(uniform.shape[:-1], dtype=torch.float64, device=uniform.device)
        num_interacting = num_seen.clone()
        drawn = torch.zeros((*uniform.shape[:-1], len(both)), dtype=torch.long, device=uniform.device)
        a, b = self.concentration
        for pair, (first, second) in enumerate(both.tolist()):
            interacts = uniform[..., first] < (a + num_interacting) / (a + b + num_seen)
            interacts = interacts & exists[..., pair]
            which = (uniform[..., second] * (self.num_edge_types - 1)).long().clamp(max=self.num_edge_types - 2)
            drawn[..., pair] = torch.where(interacts, 1 + which, 0)
            num_interacting = num_interacting + interacts
            num_seen = num_seen + exists[..., pair]
        return _both_edges(drawn)

    def log_prob(self, value: Tensor) -> Tensor:
        first = _first_edges(self.num_entities, value.device)
        types = value[..., first].long()
        is_type = (types >= 0) & (types < self.num_edge_types) & ((types == 0) | self.edge_mask[..., first])
        number = (types > 0).sum(-1, keepdim=True)
        total = (self.count_log_weight(number) - number.double() * math.log(self.num_edge_types - 1)).squeeze(-1)
        return torch.where(_is_tied(value) & is_type.all(-1), total, torch.full_like(total, -torch.inf))

    @property
    def choices(self) -> tuple[int, int]:
        return self.num_edge_types, self.event_shape[0] // 2

    @property
    def type_probability(self) -> Tensor:
        a, b = self.concentration
        share = torch.full((self.num_edge_types,), a / (a + b) / (self.num_edge_types - 1), dtype=torch.float64)
        share[0] = b / (a + b)
        return share

    def list_structures(self) -> Tensor:
        return _both_edges(_all_choices(*self.choices).to(self.edge_mask.device))


class ChargesDistribution(StructureDistribution):
    """One label per entity, all alike and independent; the labels of its ends fix the type of an edge.

    The probability of a structure is the share of labelings that give it.

    Args:
        table: type of an edge by the labels of sender and receiver, long ``[L, L]``.
        num_edge_types: K.
        edge_mask: bool ``[*batch, E]``.
    """

    factorises = False

    def __init__(
        self, table: Tensor, num_edge_types: int, edge_mask: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.table = table
        self.tied = bool((table == table.T).all())
        super().__init__(num_edge_types, edge_mask, validate_args)

    @property
    def num_labels(self) -> int:
        """L."""
        return len(self.table)

    @property
    def entity_mask(self) -> Tensor:
        """Entities with an edge, bool ``[*batch, N]``; the labels of others mean nothing."""
        return edges.to_matrix(self.edge_mask).any(-1)

    def with_edge_mask(self, edge_mask: Tensor) -> "ChargesDistribution":
        return ChargesDistribution(self.table, self.num_edge_types, edge_mask, validate_args=False)

    def structure_of(self, labels: Tensor) -> Tensor:
        """Structures ``[*batch, E]`` of entities with labels ``[*batch, N]``."""
        return self._unmasked(labels) * self.edge_mask

    def _unmasked(self, labels: Tensor) -> Tensor:
        sender = edges.senders(self.num_entities).to(labels.device)
        receiver = edges.receivers(self.num_entities).to(labels.device)
        return self.table[labels[..., sender], labels[..., receiver]]

    def labelings(self, structure: Tensor) -> Labelings:
        """The labelings that give structures ``[*batch, E]``."""
        return Labelings(self.table, structure.long(), self.edge_mask)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Entity n has the label that the n-th number picks; there may be N numbers or more for each structure."""
        labels = (uniform[..., : self.num_entities] * self.num_labels).long().clamp(max=self.num_labels - 1)
        return self.structure_of(labels)

    def log_prob(self, value: Tensor) -> Tensor:
        value = value.expand(torch.broadcast_shapes(value.shape, self.edge_mask.shape))
        total = self.entity_mask.sum(-1).double() * math.log(self.num_labels)
        log_prob = self.labelings(value).log_count - total
        is_padded = ((value != 0) & ~self.edge_mask).any(-1)
        return torch.where(is_padded, torch.full_like(log_prob, -torch.inf), log_prob)

    @property
    def choices(self) -> tuple[int, int]:
        return self.num_labels, self.num_entities

    @property
    def type_probability(self) -> Tensor:
        count = torch.bincount(self.table.flatten(), minlength=self.num_edge_types)
        return count.double() / self.table.numel()

    def list_structures(self) -> Tensor:
        labels = _all_choices(*self.choices).to(self.edge_mask.device)
        masks = self.edge_mask.reshape(-1, *self.event_shape).unique(dim=0)
        every = self._unmasked(labels)
        distinct: Tensor = torch.cat([every * mask for mask in masks]).unique(dim=0)
        return distinct


#: Distributions whose edges (pairs, if tied) can each have any type whatever the others have.
PairwiseDistribution = EdgeDistribution | SparseDistribution


def _masked_weight(weight: Tensor, edge_mask: Tensor) -> Tensor:
    """Log weights of the types, ``[K]``, at existing edges; only type 0 elsewhere: ``[*batch, E, K]``."""
    absent = torch.full_like(weight, -torch.inf)
    absent[0] = 0
    return torch.where(edge_mask[..., None], weight, absent)


def _at_edges(weight: Tensor, edge: Tensor) -> Tensor:
    """Log weights of the types ``[G, E, K]`` at edges ``[C, G, M]``: ``[C, G, M, K]``."""
    group = torch.arange(len(weight), device=edge.device)[:, None]
    return weight.detach().double()[group, edge]


def _first_edges(num_entities: int, device: torch.device) -> Tensor:
    """One edge of each pair, long ``[N (N - 1) / 2]``."""
    return edges.pairs(num_entities)[:, 0].to(device)


def _both_edges(types: Tensor) -> Tensor:
    """Structures ``[*batch, E]`` whose pairs have the types ``[*batch, E / 2]``."""
    return types[..., edges.pair_of_edge(edges.num_entities_of(2 * types.shape[-1])).to(types.device)]


def _is_tied(value: Tensor) -> Tensor:
    """Whether both edges of all pairs agree, bool ``[*batch]``."""
    reverse = edges.reverse_edges(edges.num_entities_of(value.shape[-1])).to(value.device)
    return (value == value[..., reverse]).all(-1)


def _all_choices(num_values: int, num_parts: int) -> Tensor:
    """Every way to give values to parts, long ``[num_values ** num_parts, num_parts]``."""
    place = num_values ** torch.arange(num_parts - 1, -1, -1)
    return torch.arange(num_values**num_parts)[:, None] // place % num_values
