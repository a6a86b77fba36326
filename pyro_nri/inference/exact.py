"""Posteriors over structures by enumeration: the reference, and the default where it fits."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_nri.inference.streams import Stream, categorical
from pyro_nri.model.priors import StructureDistribution
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable, code_types, codes_of, structure_of
from pyro_nri.scenes import edges

#: Largest number of structures that are listed one by one.
MAX_STRUCTURES = 2**16


class ExactPosterior(ABC):
    """Posterior over the structures of G groups, every probability known.

    Attributes:
        edge_probability: ``[G, E, K]``; [1, 0, ...] where an end of the edge is padding.
        log_marginal: log marginal likelihood, ``[G]`` (of the tempered joint, if a temperature was given).
        map_structure: most probable structure, long ``[G, E]``.
    """

    edge_probability: Tensor
    log_marginal: Tensor
    map_structure: Tensor

    @abstractmethod
    def log_prob(self, structure: Tensor) -> Tensor:
        """Posterior log probability ``[C, G]`` of structures ``[C, G, E]``."""

    @abstractmethod
    def sample(self, stream: Stream, step: int = 0) -> Tensor:
        """Independent draws, long ``[C, G, E]``: one for each chain of the stream at the step."""


class FactorisedPosterior(ExactPosterior):
    """Independent receivers: a receiver table under an independent prior. All ``K ** E`` graphs, in closed form.

    Args:
        table: receiver log-likelihoods.
        prior: independent prior of the G structures.
        temperature: the joint is raised to the power 1 / temperature.
    """

    def __init__(self, table: ReceiverTable, prior: StructureDistribution, temperature: float = 1.0) -> None:
        self.num_edge_types = table.num_edge_types
        log_joint = (table.table + code_log_prior(prior)) / temperature  # [G, N, R]
        self.log_code = log_joint.log_softmax(-1)
        self.log_marginal = log_joint.logsumexp(-1).sum(-1)
        self.map_structure = structure_of(self.log_code.argmax(-1), self.num_edge_types)
        num_entities = log_joint.shape[1]
        types = code_types(self.num_edge_types, num_entities).to(log_joint.device)  # [R, N - 1]
        is_type = torch.nn.functional.one_hot(types, self.num_edge_types).to(log_joint)  # [R, N - 1, K]
        incoming = torch.einsum("gnr,rsk->gnsk", self.log_code.exp(), is_type)  # [G, N, N - 1, K]
        self.edge_probability = torch.empty(
            (len(log_joint), edges.num_edges(num_entities), self.num_edge_types), dtype=log_joint.dtype
        ).to(log_joint.device)
        order = edges.incoming_edges(num_entities).reshape(-1).to(log_joint.device)
        self.edge_probability[:, order] = incoming.flatten(1, 2)

    def log_prob(self, structure: Tensor) -> Tensor:
        codes = codes_of(structure, self.num_edge_types)
        return self.log_code.expand(*codes.shape, -1).gather(-1, codes[..., None]).squeeze(-1).sum(-1)

    def sample(self, stream: Stream, step: int = 0) -> Tensor:
        uniform = stream.uniform(step, self.log_code.shape[1])  # [C, G, N]
        codes = categorical(self.log_code.exp().expand(len(uniform), -1, -1, -1), uniform)
        return structure_of(codes, self.num_edge_types)


class ListedPosterior(ExactPosterior):
    """A posterior over an explicit list of structures.

    Args:
        structures: long ``[J, E]``, every structure that may have positive probability.
        log_joint: ``[G, J]``; -inf for structures that a group cannot have.
        num_edge_types: K.
    """

    def __init__(self, structures: Tensor, log_joint: Tensor, num_edge_types: int) -> None:
        self.structures = structures
        self.log_weight = log_joint.log_softmax(-1)
        self.log_marginal = log_joint.logsumexp(-1)
        self.map_structure = structures[log_joint.argmax(-1)]
        is_type = torch.nn.functional.one_hot(structures, num_edge_types).to(log_joint)  # [J, E, K]
        self.edge_probability = torch.einsum("gj,jek->gek", self.log_weight.exp(), is_type)
        self._place = num_edge_types ** torch.arange(structures.shape[-1], device=structures.device)
        number = (structures * self._place).sum(-1)
        self._sorted, self._order = number.sort()

    def log_prob(self, structure: Tensor) -> Tensor:
        number = (structure * self._place).sum(-1)  # [C, G]
        place = torch.searchsorted(self._sorted, number).clamp(max=len(self._sorted) - 1)
        found = self._sorted[place] == number
        group = torch.arange(number.shape[-1], device=number.device).expand_as(number)
        log_prob = self.log_weight[group, self._order[place]]
        return torch.where(found, log_prob, torch.full_like(log_prob, -torch.inf))

    def sample(self, stream: Stream, step: int = 0) -> Tensor:
        uniform = stream.uniform(step, 1).squeeze(-1)  # [C, G]
        chosen = categorical(self.log_weight.exp().expand(*uniform.shape, -1), uniform)
        return self.structures[chosen]


def code_log_prior(prior: StructureDistribution) -> Tensor:
    """Log prior of every code of every receiver under an independent prior, ``[G, N, K ** (N - 1)]``."""
    weight = prior.edge_log_weight().detach().double()  # [G, E, K]
    num_entities = edges.num_entities_of(weight.shape[-2])
    incoming = weight[:, edges.incoming_edges(num_entities).to(weight.device)]  # [G, N, N - 1, K]
    total = incoming[:, :, 0]
    for sender in range(1, num_entities - 1):
        total = (total[..., :, None] + incoming[:, :, sender, None, :]).flatten(-2, -1)
    return total


def num_structures(prior: StructureDistribution) -> int:
    """Number of structures in the support of the prior when no entity is padding."""
    num_edges = prior.event_shape[0]
    return int(prior.num_edge_types ** (num_edges // 2 if prior.tied else num_edges))


def list_structures(prior: StructureDistribution) -> Tensor:
    """Every structure in the support of the prior, long ``[J, E]``."""
    num_edges = prior.event_shape[0]
    num_free = num_edges // 2 if prior.tied else num_edges
    place = prior.num_edge_types ** torch.arange(num_free - 1, -1, -1)
    free = torch.arange(num_structures(prior))[:, None] // place % prior.num_edge_types  # [J, free]
    if not prior.tied:
        return free
    return free[:, edges.pair_of_edge(edges.num_entities_of(num_edges))]


def can_enumerate(likelihood: AbstractLikelihood, prior: StructureDistribution) -> bool:
    """Whether :func:`enumerate_posterior` can treat this posterior."""
    if isinstance(likelihood, ReceiverTable) and not prior.tied:
        return True
    return num_structures(prior) <= MAX_STRUCTURES


def enumerate_posterior(
    likelihood: AbstractLikelihood, prior: StructureDistribution, temperature: float = 1.0
) -> ExactPosterior:
    """The exact posterior of G structures.

    Args:
        likelihood: any; a receiver table under an independent prior needs no listing of graphs.
        prior: prior of the G structures.
        temperature: the joint is raised to the power 1 / temperature.

    Raises:
        ValueError: there are too many structures to list.
    """
    if isinstance(likelihood, ReceiverTable) and not prior.tied:
        return FactorisedPosterior(likelihood, prior, temperature)
    if not can_enumerate(likelihood, prior):
        free = prior.event_shape[0] // (2 if prior.tied else 1)
        raise ValueError(
            f"{prior.num_edge_types}^{free} structures are too many to list, at most {MAX_STRUCTURES}; "
            "use method 'mcmc'"
        )
    structures = list_structures(prior).to(likelihood.edge_mask.device)
    num_groups = prior.batch_shape[0]
    parts = []
    for part in structures.split(max(1, 200_000 // max(1, num_groups))):
        every = part[:, None, :].expand(-1, num_groups, -1)  # [J, G, E]
        log_prior = prior.log_prob(every).detach().double()
        parts.append(log_prior + likelihood.log_likelihood(every * likelihood.edge_mask))
    log_joint = torch.cat(parts).T / temperature  # [G, J]
    return ListedPosterior(structures, log_joint, prior.num_edge_types)


def edge_conditionals(table: ReceiverTable, prior: StructureDistribution, structure: Tensor) -> Tensor:
    """Probability of each type at each edge given all other edges, by look-ups: ``[C, G, E, K]``.

    Under a tied prior the two edges of a pair change together. Averaged over draws these conditionals are the
    Rao-Blackwellised edge probabilities.

    Args:
        table: receiver log-likelihoods.
        prior: prior of the G structures.
        structure: long ``[C, G, E]``.
    """
    num_types, num_edges = table.num_edge_types, structure.shape[-1]
    num_entities = edges.num_entities_of(num_edges)
    device = structure.device
    codes = codes_of(structure, num_types)  # [C, G, N]
    receiver, sender = edges.receivers(num_entities).to(device), edges.senders(num_entities).to(device)
    # Place value of the edge's digit in its receiver's code: senders ascend, the first is most significant.
    digit = sender - (sender > receiver).long()
    place = num_types ** (num_entities - 2 - digit)  # [E]
    base = codes[..., receiver] - structure * place  # code with type 0 at this edge, [C, G, E]
    alternatives = base[..., None] + torch.arange(num_types, device=device) * place[:, None]  # [C, G, E, K]
    rows = table.table[:, receiver].expand(*alternatives.shape[:-1], -1)  # [C, G, E, R]
    weight = rows.gather(-1, alternatives)
    log_prior = prior.edge_log_weight().detach().double()
    if prior.tied:
        weight = weight + weight[..., edges.reverse_edges(num_entities).to(device), :]
    return (weight + log_prior).softmax(-1)
