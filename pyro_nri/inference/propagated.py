"""All edges into every receiver at once, from guesses that expectation propagation makes of them."""

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, proposed_probability
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import EdgeDistribution, StructureDistribution
from pyro_nri.scenes import edges

#: Share of equal probabilities in each edge's proposal: every structure stays within reach, and a right guess is
#: proposed as it is more often than not.
FLOOR = 2e-3


class PropagatedBlocks(AbstractProposal):
    """The incoming edges of every receiver, proposed from fixed probabilities; each receiver accepts its own.

    Under independent edges receivers are independent of one another: N Metropolis steps in one.

    Args:
        prior: prior of the G structures, with independent edges.
        likelihood: of the same structures, one that factorises over receivers.
        probability: of the types of each edge, ``[G, E, K]``; types that no guess gives keep a share of :data:`FLOOR`.

    Raises:
        ValueError: the prior ties edges, the likelihood does not factorise, or a shape does not fit.
    """

    move_names = ("propagated_blocks",)

    def __init__(self, prior: StructureDistribution, likelihood: AbstractLikelihood, probability: Tensor) -> None:
        if not isinstance(prior, EdgeDistribution) or not prior.factorises:
            raise ValueError("prior must have independent edges")
        if not likelihood.is_cached:
            raise ValueError("likelihood must factorise over receivers, found one that does not")
        self.likelihood = likelihood
        self.incoming = edges.incoming_edges(prior.num_entities).to(probability.device)  # [N, N - 1]
        self.probability = proposed_probability(prior, probability.clamp(min=1e-300).log(), FLOOR)  # [G, E, K]
        self.log_q = self.probability.log()
        self.log_prior = prior.edge_log_weight().detach().double()  # [G, E, K]
        self.num_uniforms = self.incoming.numel() + len(self.incoming)
        self.is_irreducible = True

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        num_edges = self.incoming.numel()
        new = categorical(self.probability.expand(*structure.shape, -1), uniform[..., :num_edges])
        before = self.likelihood.receiver_terms(structure)
        after = self.likelihood.receiver_terms(new, (structure, before))
        heat = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        gain = (after - before) / heat + self._sums(self.log_prior, new) - self._sums(self.log_prior, structure)
        back = self._sums(self.log_q, structure) - self._sums(self.log_q, new)
        accepted = uniform[..., num_edges:].log() < gain + back  # [C, G, N]
        changed = torch.empty_like(structure, dtype=torch.bool)
        changed[..., self.incoming] = accepted[..., None].expand(*accepted.shape, self.incoming.shape[1])
        total = torch.where(accepted, gain, torch.zeros_like(gain)).sum(-1)
        return Move({"edge_type": torch.where(changed, new, structure)}, total, torch.zeros_like(total), 0)

    def _sums(self, table: Tensor, structure: Tensor) -> Tensor:
        """Entries of ``[G, E, K]`` for structures ``[C, G, E]``, summed over the edges into each receiver."""
        each = table.expand(*structure.shape, -1).gather(-1, structure.long()[..., None]).squeeze(-1)
        return each[..., self.incoming].sum(-1)
