"""Sums over the edges into observed entities, given the path of hidden ones and the edges into those.

The path depends on the edges into hidden entities alone. Given it the rest of the structure is a matter of receiver
tables: summed out exactly, drawn exactly, whatever the prior, where it can be listed.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_nri.inference.exact import MAX_STRUCTURES, code_log_prior
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import code_types, codes_of
from pyro_nri.model.structures import EdgeDistribution, StructureDistribution
from pyro_nri.scenes import edges


class AbstractRest(ABC):
    """The edges into the N observed entities of B scenes, beside edges into N_hidden hidden ones.

    Tables are ``[*batch, B, N, K ** L]`` and edges into hidden entities long ``[*batch, B, N_hidden, L]``, where
    ``L = N + N_hidden - 1`` senders; edges into observed entities come back as long ``[*batch, B, N, L]``.

    Attributes:
        is_open: whether there is anything to infer about edges into hidden entities.
    """

    is_open: bool = True

    @abstractmethod
    def log_sum(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        """Log of the sum over the rest of prior times likelihood, ``[*batch, B]``; -inf off the prior's support."""

    @abstractmethod
    def most_likely(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        """The most probable rest."""

    @abstractmethod
    def draw(self, table: Tensor, into_hidden: Tensor, uniform: Tensor) -> Tensor:
        """Exact draws of the rest from uniform numbers ``[*batch, B, N]``."""

    @abstractmethod
    def draw_into(self, uniform: Tensor) -> Tensor:
        """Prior draws of the edges into hidden entities, from uniform numbers ``[*batch, B, E]``."""

    @abstractmethod
    def log_prior_into(self, into_hidden: Tensor) -> Tensor:
        """Log prior of the edges into hidden entities, ``[*batch, B]``."""

    @abstractmethod
    def log_weight(self, table: Tensor, incoming: Tensor, into_hidden: Tensor) -> Tensor:
        """Log prior plus likelihood of whole structures, ``[*batch, B]``: one term of :meth:`log_sum`."""

    def project(self, into_hidden: Tensor) -> Tensor:
        """The nearest edges into hidden entities that the prior admits."""
        return into_hidden


def make_rest(prior: StructureDistribution, num_observed: int, given: Tensor | None = None) -> AbstractRest:
    """The rest of structures under a prior, or of given structures.

    Args:
        prior: of all entities, hidden ones last, batch ``[B]``.
        num_observed: N.
        given: structures that are known, long ``[B, E]``.

    Raises:
        ValueError: the prior is neither independent nor short enough to list.
    """
    if given is not None:
        return GivenRest(given, num_observed, prior.num_edge_types)
    if isinstance(prior, EdgeDistribution) and prior.factorises:
        return FactorisedRest(prior, num_observed)
    num_values, num_parts = prior.choices
    if num_values**num_parts > MAX_STRUCTURES:
        raise ValueError(
            f"hidden entities under a prior that ties edges need its structures listed, and {num_values}^{num_parts} "
            f"are too many; use a model with the independent prior"
        )
    return ListedRest(prior, num_observed)


def incoming_of(structure: Tensor) -> Tensor:
    """Types of the edges into each entity, long ``[*batch, N + N_hidden, L]``."""
    return structure.long()[..., edges.incoming_edges(edges.num_entities_of(structure.shape[-1]))]


def structure_from(incoming: Tensor, into_hidden: Tensor) -> Tensor:
    """Structures ``[*batch, E]`` from the edges into observed and into hidden entities."""
    return edges.from_incoming(torch.cat([incoming, into_hidden], -2))


class FactorisedRest(AbstractRest):
    """Independent edges: receivers one by one."""

    def __init__(self, prior: EdgeDistribution, num_observed: int) -> None:
        self.prior = prior
        weight = prior.edge_log_weight().detach().double()  # [B, E, K]
        incoming = weight[:, edges.incoming_edges(prior.num_entities)]  # [B, N + N_hidden, L, K]
        self.into_weight = incoming[:, num_observed:]
        self.code_prior = code_log_prior(prior)[:, :num_observed]  # [B, N, K ** L]
        self.types = code_types(prior.num_edge_types, prior.num_entities)
        self.num_observed = num_observed

    def log_prior_into(self, into_hidden: Tensor) -> Tensor:
        weight = self.into_weight.expand(*into_hidden.shape, -1)
        return weight.gather(-1, into_hidden[..., None]).squeeze(-1).sum((-1, -2))

    def log_sum(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        return (table + self.code_prior).logsumexp(-1).sum(-1) + self.log_prior_into(into_hidden)

    def log_weight(self, table: Tensor, incoming: Tensor, into_hidden: Tensor) -> Tensor:
        codes = codes_of(structure_from(incoming, into_hidden), self.prior.num_edge_types)[
            ..., : self.num_observed, None
        ]
        each = (table + self.code_prior).gather(-1, codes.expand(*table.shape[:-1], 1)).squeeze(-1)
        return each.sum(-1) + self.log_prior_into(into_hidden)

    def project(self, into_hidden: Tensor) -> Tensor:
        return torch.where(self.into_weight.isfinite().sum(-1) > 1, into_hidden, 0)  # padded senders have type 0

    def most_likely(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        return self.types[(table + self.code_prior).argmax(-1)]

    def draw(self, table: Tensor, into_hidden: Tensor, uniform: Tensor) -> Tensor:
        return self.types[categorical((table + self.code_prior).softmax(-1), uniform)]

    def draw_into(self, uniform: Tensor) -> Tensor:
        return incoming_of(self.prior.from_uniform(uniform))[..., self.num_observed :, :]


class GivenRest(AbstractRest):
    """Known structures: nothing to sum."""

    is_open = False

    def __init__(self, structure: Tensor, num_observed: int, num_edge_types: int) -> None:
        incoming = incoming_of(structure)
        self.incoming, self.into = incoming[:, :num_observed], incoming[:, num_observed:]
        self.codes = codes_of(structure, num_edge_types)[:, :num_observed]

    def log_prior_into(self, into_hidden: Tensor) -> Tensor:
        fits = (into_hidden == self.into).all(-1).all(-1)
        return torch.where(fits, 0.0, -torch.inf).double()

    def log_sum(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        chosen = table.gather(-1, self.codes[..., None].expand(*table.shape[:-1], 1)).squeeze(-1)
        return chosen.sum(-1) + self.log_prior_into(into_hidden)

    def log_weight(self, table: Tensor, incoming: Tensor, into_hidden: Tensor) -> Tensor:
        return self.log_sum(table, into_hidden)

    def project(self, into_hidden: Tensor) -> Tensor:
        return self.into.expand_as(into_hidden)

    def most_likely(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        return self.incoming.expand(*table.shape[:-1], -1)

    def draw(self, table: Tensor, into_hidden: Tensor, uniform: Tensor) -> Tensor:
        return self.most_likely(table, into_hidden)

    def draw_into(self, uniform: Tensor) -> Tensor:
        return self.into.expand(*uniform.shape[:-1], *self.into.shape[-2:])


class ListedRest(AbstractRest):
    """Priors that tie edges: all structures, sorted by their edges into hidden entities.

    All scenes must have the same entities.
    """

    def __init__(self, prior: StructureDistribution, num_observed: int) -> None:
        if not bool((prior.edge_mask == prior.edge_mask[:1]).all()):
            raise ValueError("hidden entities under a prior that ties edges need scenes with equally many entities")
        self.prior, self.num_observed = prior, num_observed
        structures = prior.list_structures()
        log_prior = prior.with_edge_mask(prior.edge_mask[:1]).log_prob(structures[:, None]).detach().double()[:, 0]
        incoming = incoming_of(structures)
        patterns, number = incoming[:, num_observed:].flatten(1).unique(dim=0, return_inverse=True)
        size = int(number.bincount().max())
        self.place = prior.num_edge_types ** torch.arange(patterns.shape[1])
        self.pattern_code, order = (patterns * self.place).sum(-1).sort()
        self.patterns = patterns[order]
        rank = order.argsort()[number]
        block = torch.full((len(patterns), size), -1)
        by_pattern = rank.argsort(stable=True)
        start = torch.cat([torch.zeros(1, dtype=torch.long), rank.bincount().cumsum(0)[:-1]])
        within = torch.arange(len(rank)) - start[rank[by_pattern]]
        block[rank[by_pattern], within] = by_pattern
        self.block = block.clamp(min=0)  # [patterns, J']
        codes = codes_of(structures, prior.num_edge_types)[:, :num_observed]
        self.codes = codes[self.block]  # [patterns, J', N]
        self.log_prior = torch.where(block >= 0, log_prior[self.block], -torch.inf)
        self.incoming = incoming[:, :num_observed]

    def _pattern(self, into_hidden: Tensor) -> tuple[Tensor, Tensor]:
        code = (into_hidden.flatten(-2) * self.place).sum(-1)
        place = torch.searchsorted(self.pattern_code, code).clamp(max=len(self.pattern_code) - 1)
        return place, self.pattern_code[place] == code

    def _log_joint(self, table: Tensor, into_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Pattern of each row ``[*batch, B]`` and log prior plus likelihood of its structures ``[*batch, B, J']``."""
        pattern, known = self._pattern(into_hidden)
        total = self.log_prior[pattern]
        for receiver in range(self.num_observed):
            total = total + table[..., receiver, :].gather(-1, self.codes[pattern][..., receiver])
        return pattern, torch.where(known[..., None], total, -torch.inf)

    def log_prior_into(self, into_hidden: Tensor) -> Tensor:
        pattern, known = self._pattern(into_hidden)
        return torch.where(known, self.log_prior[pattern].logsumexp(-1), -torch.inf)

    def log_sum(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        return self._log_joint(table, into_hidden)[1].logsumexp(-1)

    def log_weight(self, table: Tensor, incoming: Tensor, into_hidden: Tensor) -> Tensor:
        structure = structure_from(incoming, into_hidden)
        codes = codes_of(structure, self.prior.num_edge_types)[..., : self.num_observed, None]
        each = table.gather(-1, codes.expand(*table.shape[:-1], 1)).squeeze(-1).sum(-1)
        total: Tensor = each + self.prior.log_prob(structure).detach().double()
        return total

    def project(self, into_hidden: Tensor) -> Tensor:
        apart = (self.patterns[:, None] != into_hidden.flatten(-2)[..., None, None, :]).sum(-1)
        nearest = apart.squeeze(-1).argmin(-1)
        result: Tensor = self.patterns[nearest].view_as(into_hidden)
        return result

    def most_likely(self, table: Tensor, into_hidden: Tensor) -> Tensor:
        pattern, total = self._log_joint(table, into_hidden)
        return self.incoming[self.block[pattern, total.argmax(-1)]]

    def draw(self, table: Tensor, into_hidden: Tensor, uniform: Tensor) -> Tensor:
        pattern, total = self._log_joint(table, into_hidden)
        possible = total.amax(-1, keepdim=True).isfinite()
        weight = torch.where(possible, total, torch.zeros_like(total)).softmax(-1)
        return self.incoming[self.block[pattern, categorical(weight, uniform[..., 0])]]

    def draw_into(self, uniform: Tensor) -> Tensor:
        return incoming_of(self.prior.from_uniform(uniform))[..., self.num_observed :, :]
