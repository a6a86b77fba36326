"""A receiver's incoming edges at once, from what an encoder says of the scene: edge by edge, or jointly."""

from typing import ClassVar

import torch
from torch import Tensor

from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice, entity_mask, proposed_probability
from pyro_nri.inference.streams import categorical
from pyro_nri.model.structures import PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges


class ReceiverBlock(AbstractProposal):
    """All incoming edges of one receiver at once from given edge probabilities.

    The paper's learned proposal (section 4): a receiver is chosen, then each of its incoming edges is drawn from ``(1
    - floor) q + floor / K``. Under a tied prior the outgoing edges follow, with the mean of the two directions' log
    probabilities.

    Args:
        prior: prior of the G structures.
        log_q: log probability of each type at each edge, ``[G, E, K]``, for example an encoder's.
        floor: share of the uniform distribution, which keeps every structure in reach.
        scan: "random" receiver, or receivers in "turn".

    Raises:
        ValueError: a shape does not fit, ``floor`` is not in [0, 1] or ``scan`` is unknown.
    """

    move_names = ("receiver_block",)

    def __init__(
        self, prior: StructureDistribution, log_q: Tensor, *, floor: float = 0.05, scan: str = "random"
    ) -> None:
        num_entities = prior.num_entities
        self.tied = prior.tied
        self.incoming = edges.incoming_edges(num_entities).to(log_q.device)  # [N, N - 1]
        self.reverse = edges.reverse_edges(num_entities).to(log_q.device)
        self.choose = Choice(entity_mask(prior.edge_mask), scan)
        self.probability = proposed_probability(prior, log_q, floor)  # [G, E, K]
        self.log_q = self.probability.log()
        self.num_uniforms = num_entities
        self.is_irreducible = floor > 0 and isinstance(prior, PairwiseDistribution)

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        receiver = self.choose(uniform[..., 0], step)
        edge = self.incoming[receiver]  # [C, G, N - 1]
        group = torch.arange(structure.shape[1], device=edge.device)[:, None]
        new = categorical(self.probability[group, edge], uniform[..., 1:])
        log_q = self.log_q[group, edge]  # [C, G, N - 1, K]
        log_forward = log_q.gather(-1, new[..., None]).sum((-2, -1))
        log_reverse = log_q.gather(-1, structure.gather(-1, edge)[..., None]).sum((-2, -1))
        moved = structure.scatter(-1, edge, new)
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.incoming].sum(-1))


class JointBlock(AbstractProposal):
    """All incoming edges of one receiver at once, each drawn knowing those drawn before it.

    The paper's learned proposal (section 4) draws them independently of each other, as :class:`ReceiverBlock` does;
    edges that the data tell apart only together are then rarely right together. Under a tied prior the outgoing edges
    follow.

    Args:
        prior: prior of the G structures.
        incoming: batch ``[G, N]``, event ``[N - 1]``; see :meth:`Encoder.incoming`.
        floor: share of the uniform distribution at each sender, which keeps every structure in reach; default: 0.05,
            less where half of the blocks would hold such an edge.
        scan: "random" receiver, or receivers in "turn".

    Raises:
        ValueError: a shape or the number of types does not fit, ``floor`` is not in [0, 1] or ``scan`` is unknown.
    """

    move_names = ("joint_block",)
    #: Uniform numbers beside those of the senders.
    num_choices: ClassVar[int] = 1

    def __init__(
        self,
        prior: StructureDistribution,
        incoming: IncomingDistribution,
        *,
        floor: float | None = None,
        scan: str = "random",
    ) -> None:
        num_entities = prior.num_entities
        wanted = ([*prior.batch_shape, num_entities, num_entities - 1], prior.num_edge_types)
        found = ([*incoming.batch_shape, *incoming.event_shape], incoming.num_edge_types)
        if found != wanted:
            raise ValueError(
                f"incoming must have shape {wanted[0]} and {wanted[1]} types of edge, found {found[0]} and {found[1]}"
            )
        floor = min(0.05, 0.5 / num_entities) if floor is None else floor
        self.incoming = incoming.double().with_floor(floor)
        self.prior = prior
        self.edge = edges.incoming_edges(num_entities).to(incoming.base.device)  # [N, N - 1]
        self.reverse = edges.reverse_edges(num_entities).to(incoming.base.device)
        self.choose = Choice(entity_mask(prior.edge_mask), scan)
        self.num_uniforms = num_entities - 1 + self.num_choices
        self.is_irreducible = floor > 0 and isinstance(prior, PairwiseDistribution)

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        receiver = self.choose(uniform[..., 0], step)
        edge = self.edge[receiver]  # [C, G, N - 1]
        new, log_q = self._draw(structure.gather(-1, edge), receiver, uniform[..., 1:])
        moved = structure.scatter(-1, edge, new)
        if self.prior.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        return Move({"edge_type": moved}, log_q[0], log_q[1], 0)

    def _draw(self, old: Tensor, receiver: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """New types for old ones ``[C, G, N - 1]`` of receivers ``[C, G]``; log probability of both, ``[2, C, G]``."""
        incoming = self.incoming[torch.arange(old.shape[1], device=old.device), receiver]  # batch [C, G]
        new = incoming.from_uniform(uniform)
        return new, incoming.log_prob(torch.stack([new, old]))

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.edge].sum(-1))
