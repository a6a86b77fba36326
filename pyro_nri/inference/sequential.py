"""A receiver's incoming edges drawn jointly from a relaxed likelihood, one sender after the other."""

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice, entity_mask
from pyro_nri.inference.streams import categorical
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.model.structures import PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges


class SequentialBlock(AbstractProposal):
    """All incoming edges of one receiver at once, drawn from the relaxed weights of its senders.

    The best known sender is drawn first, from its normal distribution restricted to the types; the others are
    conditioned on it, and so on. That is a randomised decoder of a lattice (Klein 2000, "Finding the closest lattice
    vector when it's unusually close"): edges that data tell apart only together are proposed together. Each draw is
    mixed with a uniform share. Under a tied prior the outgoing edges follow.

    Args:
        prior: prior of the G structures, not over labels.
        relaxed: weights of the same structures.
        scan: "random" receiver, or receivers in "turn".
    """

    move_names = ("sequential_block",)

    def __init__(self, prior: StructureDistribution, relaxed: Relaxed, *, scan: str = "turn") -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        self.tied = prior.tied
        self.num_types = prior.num_edge_types
        num_entities, device = prior.num_entities, prior.edge_mask.device
        self.incoming = edges.incoming_edges(num_entities).to(device)
        self.reverse = edges.reverse_edges(num_entities).to(device)
        self.exists = prior.edge_mask[:, self.incoming]  # [G, N, N - 1]
        self.choose = Choice(entity_mask(prior.edge_mask), scan)
        self.floor = min(0.05, 0.5 / num_entities)  # half of the blocks hold no edge of the uniform share
        self.num_uniforms = num_entities
        self.mean = relaxed.mean.double()
        identity = torch.eye(self.num_types - 1, dtype=torch.float64, device=device)
        self.vertex = torch.cat([torch.zeros_like(identity[:1]), identity])  # [K, F]
        self.order, self.factor = _orders(relaxed.precision.double())
        self.inverse = torch.linalg.inv(self.factor.diagonal(dim1=2, dim2=4).movedim(-1, 2))  # [G, N, M, F, F]

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        receiver = self.choose(uniform[..., 0], step)  # [C, G]
        edge = self.incoming[receiver]
        group = torch.arange(structure.shape[1], device=structure.device).expand_as(receiver)
        old, new = structure.gather(-1, edge), torch.empty_like(edge)
        order, exists = self.order[group, receiver], self.exists[group, receiver]
        mean = self.mean[group, receiver]  # [C, G, N - 1, F]
        # The way there and the way back, side by side: what earlier draws say of later ones, [2, C, G, N - 1, F].
        said = mean.new_zeros(2, *mean.shape)
        log_q = mean.new_zeros(2, *mean.shape[:2])
        for number in range(edge.shape[-1]):
            sender = order[..., number, None]  # [C, G, 1]
            own, factor = self.inverse[group, receiver, number], self.factor[group, receiver, :, :, number]
            centre = mean.gather(2, sender[..., None].expand(-1, -1, -1, mean.shape[-1])).squeeze(2)
            here = centre - torch.einsum("cgab,dcgb->dcga", own, said[..., number, :])
            apart = torch.einsum("cgab,dcgkb->dcgka", factor[:, :, number], self.vertex - here[..., None, :])
            probability = self._probability(apart.square().sum(-1), temperature, exists.gather(-1, sender))
            drawn = categorical(probability[0], uniform[..., 1 + number])
            new.scatter_(-1, sender, drawn[..., None])
            types = torch.stack([drawn, old.gather(-1, sender).squeeze(-1)])  # [2, C, G]
            log_q = log_q + probability.gather(-1, types[..., None]).squeeze(-1).log()
            said = said + torch.einsum("cgsab,dcgb->dcgsa", factor, self.vertex[types] - centre)
        moved = structure.scatter(-1, edge, new)
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        return Move({"edge_type": moved}, log_q[0], log_q[1], 0)

    def _probability(self, weight: Tensor, temperature: float | Tensor, exists: Tensor) -> Tensor:
        """Probability of each type from squared distances ``[2, C, G, K]``."""
        each = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        probability = (1 - self.floor) * (-weight / 2 / each).softmax(-1) + self.floor / self.num_types
        absent = torch.zeros_like(probability)
        absent[..., 0] = 1
        return torch.where(exists, probability, absent)


def _orders(precision: Tensor) -> tuple[Tensor, Tensor]:
    """In which order senders are drawn, best known first, and what each draw says of the later ones.

    Args:
        precision: ``[G, N, M, F, M, F]``.

    Returns:
        Order, long ``[G, N, M]``; factor ``R`` of the precision ``R^T R`` with senders in that order, ``[G, N, M, F, M,
        F]``: lower triangular, so that the square of row n of ``R (w - mean)`` holds the first n + 1 draws only.
    """
    num_groups, num_entities, num_senders, num_free = precision.shape[:4]
    group = torch.arange(num_groups, device=precision.device)[:, None]
    entity = torch.arange(num_entities, device=precision.device)
    flat = precision.flatten(4, 5).flatten(2, 3)  # [G, N, M F, M F]
    scale = flat.diagonal(dim1=-2, dim2=-1).rsqrt()
    covariance = (
        torch.linalg.inv(flat * scale[..., None] * scale[..., None, :]) * scale[..., None] * scale[..., None, :]
    )
    shape = (num_senders, num_free)
    covariance = covariance.unflatten(-1, shape).unflatten(-3, shape)
    done = torch.zeros(num_groups, num_entities, num_senders, dtype=torch.bool, device=precision.device)
    order = []
    for _ in range(num_senders):
        own = covariance.diagonal(dim1=2, dim2=4).movedim(-1, 2)  # [G, N, M, F, F]
        sender = own.diagonal(dim1=-2, dim2=-1).sum(-1).masked_fill(done, torch.inf).argmin(-1)  # [G, N]
        column = covariance[group, entity, :, :, sender]  # [G, N, M, F, F]
        gain = column @ torch.linalg.pinv(own[group, entity, sender])[:, :, None]
        covariance = covariance - torch.einsum("gnsab,gntcb->gnsatc", gain, column)
        done[group, entity, sender] = True
        order.append(sender)
    drawn = torch.stack(order, 2)
    # The last draw comes first in Cholesky's factor, then all is turned around.
    place = (drawn.flip(-1)[..., None] * num_free + torch.arange(num_free, device=drawn.device)).flatten(2)
    ordered = flat.gather(2, place[..., None].expand_as(flat)).gather(3, place[..., None, :].expand_as(flat))
    factor = torch.linalg.cholesky(ordered).mT.unflatten(-1, shape).unflatten(-3, shape)
    return drawn, factor.flip(2).flip(4)
