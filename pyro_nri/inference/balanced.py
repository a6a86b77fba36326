"""Locally balanced moves of single edges: an edge that fits badly is proposed more often than one that fits well."""

import torch
from torch import Tensor

from pyro_nri.inference.exact import edge_log_weights
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice, entity_mask
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges


class BalancedEdge(AbstractProposal):
    """One incoming edge of one receiver takes another type; which one, and which type, by how much better it fits.

    A receiver is chosen uniformly; of its ``(N - 1) (K - 1)`` changes of a single edge one is chosen with weight
    ``g(p(new) / p(old))``, ``g(t) = t / (1 + t)`` (Barker's), which is locally balanced, ``g(t) = t g(1 / t)``: Zanella
    2020, "Informed proposals for local MCMC in discrete spaces". Under a tied prior the reverse edge follows.

    Args:
        prior: prior of the G structures, not over labels, with at least 2 types.
        likelihood: of the same structures.

    Raises:
        ValueError: the prior is one over labels or has a single type.
    """

    num_uniforms = 2
    move_names = ("balanced_edge",)

    def __init__(self, prior: StructureDistribution, likelihood: AbstractLikelihood) -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        if prior.num_edge_types < 2:
            raise ValueError("an edge can take another type only where there are at least 2 types, found 1")
        self.prior = prior
        self.likelihood = likelihood
        self.incoming = edges.incoming_edges(prior.num_entities).to(prior.edge_mask.device)
        self.reverse = edges.reverse_edges(prior.num_entities).to(prior.edge_mask.device)
        self.choose = Choice(entity_mask(prior.edge_mask))

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure, num_types = latents["edge_type"], self.prior.num_edge_types
        edge = self.incoming[self.choose(uniform[..., 0], step)]  # [C, G, N - 1]
        log_weight = self._log_weight(structure, edge, temperature)  # [C, G, (N - 1) K]
        log_prob = log_weight.log_softmax(-1)
        change = categorical(log_prob.exp(), uniform[..., 1])[..., None]  # [C, G, 1]
        place, new = change // num_types, change % num_types
        chosen = edge.gather(-1, place)
        old = structure.gather(-1, chosen)
        moved = structure.scatter(-1, chosen, new)
        if self.prior.tied:
            moved = moved.scatter(-1, self.reverse[chosen], new)
        back = self._log_weight(moved, edge, temperature).log_softmax(-1)
        log_forward = log_prob.gather(-1, change).squeeze(-1)
        log_reverse = back.gather(-1, place * num_types + old).squeeze(-1)
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.incoming].sum(-1))

    def _log_weight(self, structure: Tensor, edge: Tensor, temperature: float | Tensor) -> Tensor:
        """Log weight of each change of a single edge, -inf for none, ``[C, G, (N - 1) K]``."""
        log_likelihood, log_prior = edge_log_weights(self.likelihood, self.prior, structure, edge)
        if isinstance(temperature, Tensor):
            temperature = temperature[..., None, None]
        log_joint = log_likelihood / temperature + log_prior
        now = structure.gather(-1, edge)[..., None]  # [C, G, N - 1, 1]
        log_weight = torch.nn.functional.logsigmoid(log_joint - log_joint.gather(-1, now))
        return log_weight.scatter(-1, now, -torch.inf).flatten(-2)
