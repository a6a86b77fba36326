"""Posteriors over structures by enumeration: the reference, and the default where it fits."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_nri.inference.streams import Stream, categorical, generator
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable, code_types, codes_of, structure_of
from pyro_nri.model.structures import (
    EdgeDistribution,
    PairwiseDistribution,
    StructureDistribution,
)
from pyro_nri.scenes import edges

#: Largest number of structures (of labelings, for charges) that are listed one by one.
MAX_STRUCTURES = 2**16

#: Largest number of types of edges that are held at once while structures are listed.
MAX_LISTED = 4_000_000


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

    def __init__(self, table: ReceiverTable, prior: EdgeDistribution, temperature: float = 1.0) -> None:
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
        structures: long ``[J, E]``, every structure that may have positive probability, each once.
        log_joint: ``[G, J]``; -inf for structures that a group cannot have.
        num_edge_types: K.
    """

    def __init__(self, structures: Tensor, log_joint: Tensor, num_edge_types: int) -> None:
        self.structures = structures
        self.log_weight = log_joint.log_softmax(-1)
        self.log_marginal = log_joint.logsumexp(-1)
        self.map_structure = structures[log_joint.argmax(-1)]
        weight = self.log_weight.exp()
        by_type = [weight @ (structures == k).to(weight) for k in range(num_edge_types)]
        self.edge_probability = torch.stack(by_type, dim=-1)
        # Structures are found again by a random number of theirs; with 64 bits the first try has no repetition.
        num_edges, attempt = structures.shape[-1], 0
        while True:
            place = torch.randint(2**62, (num_edges,), generator=generator(attempt, "number of a structure"))
            self._place = place.to(structures.device)
            self._sorted, self._order = (structures * self._place).sum(-1).sort()
            if bool((self._sorted[1:] > self._sorted[:-1]).all()):
                break
            attempt += 1

    def log_prob(self, structure: Tensor) -> Tensor:
        number = (structure * self._place).sum(-1)  # [C, G]
        place = torch.searchsorted(self._sorted, number).clamp(max=len(self._sorted) - 1)
        place = self._order[place]
        found = (self.structures[place] == structure).all(-1)
        group = torch.arange(number.shape[-1], device=number.device).expand_as(number)
        log_prob = self.log_weight[group, place]
        return torch.where(found, log_prob, torch.full_like(log_prob, -torch.inf))

    def sample(self, stream: Stream, step: int = 0) -> Tensor:
        uniform = stream.uniform(step, 1).squeeze(-1)  # [C, G]
        chosen = categorical(self.log_weight.exp().expand(*uniform.shape, -1), uniform)
        return self.structures[chosen]


def code_log_prior(prior: PairwiseDistribution) -> Tensor:
    """What the log prior says of the incoming edges of each receiver, one by one: ``[G, N, K ** (N - 1)]``."""
    weight = prior.edge_log_weight().detach().double()  # [G, E, K]
    num_entities = edges.num_entities_of(weight.shape[-2])
    incoming = weight[:, edges.incoming_edges(num_entities).to(weight.device)]  # [G, N, N - 1, K]
    total = incoming[:, :, 0]
    for sender in range(1, num_entities - 1):
        total = (total[..., :, None] + incoming[:, :, sender, None, :]).flatten(-2, -1)
    return total


def can_enumerate(likelihood: AbstractLikelihood, prior: StructureDistribution) -> bool:
    """Whether :func:`enumerate_posterior` can treat this posterior."""
    if isinstance(likelihood, ReceiverTable) and prior.factorises:
        return True
    num_values, num_parts = prior.choices
    return int(num_values**num_parts) <= MAX_STRUCTURES


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
    if isinstance(likelihood, ReceiverTable) and isinstance(prior, EdgeDistribution) and prior.factorises:
        return FactorisedPosterior(likelihood, prior, temperature)
    if not can_enumerate(likelihood, prior):
        num_values, num_parts = prior.choices
        raise ValueError(
            f"{num_values}^{num_parts} structures are too many to list, at most {MAX_STRUCTURES}; use method 'mcmc'"
        )
    structures = prior.list_structures()
    num_groups, num_edges = likelihood.edge_mask.shape
    # Groups with the same entities have the same prior.
    masks, mask_of_group = prior.edge_mask.unique(dim=0, return_inverse=True)
    per_mask = prior.with_edge_mask(masks)
    parts = []
    for part in structures.split(max(1, MAX_LISTED // max(1, num_groups * num_edges))):
        log_prior = per_mask.log_prob(part[:, None].expand(-1, len(masks), -1)).detach().double()
        every = part[:, None] * likelihood.edge_mask  # [J, G, E]
        parts.append(log_prior[:, mask_of_group] + likelihood.log_likelihood(every))
    log_joint = torch.cat(parts).T / temperature  # [G, J]
    return ListedPosterior(structures, log_joint, prior.num_edge_types)


def edge_log_weights(
    likelihood: AbstractLikelihood, prior: StructureDistribution, structure: Tensor, edge: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-likelihood and log prior of each type at some edges given all others, up to a constant for each edge.

    Under a tied prior the two edges of a pair change together.

    Args:
        likelihood: of G structures.
        prior: prior of the G structures, not over labels.
        structure: long ``[C, G, E]``.
        edge: numbers of M edges, long ``[C, G, M]``.

    Returns:
        Two times float64 ``[C, G, M, K]``; an edge with a padded end has type 0.

    Raises:
        ValueError: the prior is one over labels, where the other edges fix an edge.
    """
    if not isinstance(prior, PairwiseDistribution):
        raise ValueError("prior must leave each edge a choice given all others, found one over labels")
    weight = likelihood.edge_alternatives(structure, edge)
    if prior.tied:
        reverse = edges.reverse_edges(prior.num_entities).to(edge.device)
        weight = weight + likelihood.edge_alternatives(structure, reverse[edge])
    return weight, prior.conditional_log_weight(structure, edge)


def edge_conditionals(likelihood: AbstractLikelihood, prior: StructureDistribution, structure: Tensor) -> Tensor:
    """Probability of each type at each edge given all other edges: ``[C, G, E, K]``.

    Averaged over draws these conditionals are the Rao-Blackwellised edge probabilities. Arguments and errors are those
    of :func:`edge_log_weights`.
    """
    every = torch.arange(structure.shape[-1], device=structure.device).expand(structure.shape)
    log_likelihood, log_prior = edge_log_weights(likelihood, prior, structure, every)
    return (log_likelihood + log_prior).softmax(-1)
