"""All edges at once, from guesses that expectation propagation makes of the edges into each receiver."""

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, proposed_probability
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import EdgeDistribution, PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges

#: Share of equal probabilities in each edge's proposal: every structure stays within reach, and a right guess is
#: proposed as it is more often than not.
FLOOR = 2e-3


class PropagatedBlocks(AbstractProposal):
    """All edges, proposed from fixed probabilities and accepted in blocks.

    Under independent edges receivers are independent of one another, and each accepts or refuses its incoming edges: N
    Metropolis steps in one. Under other priors the graph is accepted as a whole; under a tied one both directions of a
    pair have the mean of their log probabilities.

    Args:
        prior: prior of the G structures, not over labels.
        likelihood: of the same structures, one that factorises over receivers.
        probability: of the types of each edge, ``[G, E, K]``; types that no guess gives keep a share of :data:`FLOOR`.

    Raises:
        ValueError: the prior is one over labels, the likelihood does not factorise, or a shape does not fit.
    """

    move_names = ("propagated_blocks",)

    def __init__(self, prior: StructureDistribution, likelihood: AbstractLikelihood, probability: Tensor) -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        if not likelihood.is_cached:
            raise ValueError("likelihood must factorise over receivers, found one that does not")
        self.prior, self.likelihood = prior, likelihood
        num_entities = prior.num_entities
        self.incoming = edges.incoming_edges(num_entities).to(probability.device)  # [N, N - 1]
        drawn = edges.pairs(num_entities)[:, 0] if prior.tied else torch.arange(edges.num_edges(num_entities))
        self.drawn = drawn.to(probability.device)  # edges that are drawn, the others follow
        self.reverse = edges.reverse_edges(num_entities).to(probability.device)
        self.probability = proposed_probability(prior, probability.double().clamp(min=1e-300).log(), FLOOR)  # [G, E, K]
        self.log_q = self.probability.log()
        self.log_prior = None  # of each edge, where edges are independent
        if isinstance(prior, EdgeDistribution) and prior.factorises:
            self.log_prior = prior.edge_log_weight().detach().double()
        self.num_uniforms = len(self.drawn) + num_entities
        self.is_irreducible = True

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure, number = latents["edge_type"], len(self.drawn)
        every = self.probability[:, self.drawn].expand(*structure.shape[:-1], -1, -1)
        new = structure.clone()
        new[..., self.drawn] = categorical(every, uniform[..., :number])
        if self.prior.tied:
            new[..., self.reverse[self.drawn]] = new[..., self.drawn]
        before = self.likelihood.receiver_terms(structure)
        after = self.likelihood.receiver_terms(new, (structure, before))
        heat = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        gain = (after - before) / heat  # [C, G, N]
        ratio = _entries(self.log_q, structure) - _entries(self.log_q, new)  # [C, G, E]
        if self.log_prior is not None:
            change = _entries(self.log_prior, new) - _entries(self.log_prior, structure)
            gain = gain + change[..., self.incoming].sum(-1)
            back = ratio[..., self.incoming].sum(-1)
        else:
            whole = (self.prior.log_prob(new) - self.prior.log_prob(structure)).detach().double()
            gain = gain.sum(-1, keepdim=True) + whole[..., None]
            back = ratio[..., self.drawn].sum(-1, keepdim=True)
        accepted = uniform[..., number : number + gain.shape[-1]].log() < gain + back
        changed = edges.from_incoming(accepted[..., None].expand(*structure.shape[:-1], *self.incoming.shape))
        total = torch.where(accepted, gain, torch.zeros_like(gain)).sum(-1)
        return Move({"edge_type": torch.where(changed, new, structure)}, total, torch.zeros_like(total), 0)


def _entries(table: Tensor, structure: Tensor) -> Tensor:
    """Of ``[G, E, K]`` those of structures ``[C, G, E]``."""
    return table.expand(*structure.shape, -1).gather(-1, structure.long()[..., None]).squeeze(-1)
