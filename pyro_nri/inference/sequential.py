"""Incoming edges of receivers drawn jointly from a relaxed likelihood, one sender after the other."""

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice, entity_mask
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.model.structures import EdgeDistribution, PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges


class SenderBySender:
    """Draws of the incoming edges of receivers from the relaxed weights of their senders.

    The best known sender is drawn first, from its normal distribution restricted to the types; the others are
    conditioned on it, and so on. That is a randomised decoder of a lattice (Klein 2000, "Finding the closest lattice
    vector when it's unusually close"): edges that data tell apart only together are drawn together. Each draw is mixed
    with a uniform share.

    Args:
        prior: prior of the G structures, not over labels.
        relaxed: weights of the same structures.

    Raises:
        ValueError: the prior is one over labels.
    """

    def __init__(self, prior: StructureDistribution, relaxed: Relaxed) -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        self.num_types = prior.num_edge_types
        num_entities, device = prior.num_entities, prior.edge_mask.device
        self.exists = prior.edge_mask[:, edges.incoming_edges(num_entities).to(device)]  # [G, N, N - 1]
        self.floor = min(0.05, 0.5 / num_entities)  # half of the blocks hold no edge of the uniform share
        self.mean = relaxed.mean.double()
        identity = torch.eye(self.num_types - 1, dtype=torch.float64, device=device)
        self.vertex = torch.cat([torch.zeros_like(identity[:1]), identity])  # [K, F]
        self.order, self.factor = _orders(relaxed.precision.double())
        self.inverse = torch.linalg.inv(self.factor.diagonal(dim1=2, dim2=4).movedim(-1, 2))  # [G, N, M, F, F]

    def draw(
        self, group: Tensor, receiver: Tensor, old: Tensor, uniform: Tensor, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """New types of the edges into receivers.

        Args:
            group: their groups, long ``[*batch]``.
            receiver: their numbers, long ``[*batch]``.
            old: types of their incoming edges now, long ``[*batch, N - 1]``.
            uniform: ``[*batch, N - 1]`` in [0, 1).
            temperature: a number, or as ``group``.

        Returns:
            New types, long ``[*batch, N - 1]``; log probability of drawing the new and the old ones, ``[2, *batch]``.
        """
        order, exists, mean = self.order[group, receiver], self.exists[group, receiver], self.mean[group, receiver]
        new = torch.empty_like(old)
        # The way there and the way back, side by side: what earlier draws say of later ones, [2, *batch, N - 1, F].
        said = mean.new_zeros(2, *mean.shape)
        log_q = mean.new_zeros(2, *group.shape)
        for number in range(old.shape[-1]):
            sender = order[..., number, None]  # [*batch, 1]
            own, factor = self.inverse[group, receiver, number], self.factor[group, receiver, :, :, number]
            centre = mean.gather(-2, sender[..., None].expand(*sender.shape, mean.shape[-1])).squeeze(-2)
            here = centre - torch.einsum("...ab,d...b->d...a", own, said[..., number, :])
            apart = torch.einsum("...ab,d...kb->d...ka", factor[..., number, :, :], self.vertex - here[..., None, :])
            probability = self._probability(apart.square().sum(-1), temperature, exists.gather(-1, sender))
            drawn = categorical(probability[0], uniform[..., number])
            new.scatter_(-1, sender, drawn[..., None])
            types = torch.stack([drawn, old.gather(-1, sender).squeeze(-1)])  # [2, *batch]
            log_q = log_q + probability.gather(-1, types[..., None]).squeeze(-1).log()
            said = said + torch.einsum("...sab,d...b->d...sa", factor, self.vertex[types] - centre)
        return new, log_q

    def _probability(self, square: Tensor, temperature: float | Tensor, exists: Tensor) -> Tensor:
        """Probability of each type from squared distances ``[2, *batch, K]``."""
        each = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        probability = (1 - self.floor) * (-square / 2 / each).softmax(-1) + self.floor / self.num_types
        absent = torch.zeros_like(probability)
        absent[..., 0] = 1
        return torch.where(exists, probability, absent)


class SequentialBlock(AbstractProposal):
    """All incoming edges of one receiver at once, drawn sender by sender; under a tied prior the outgoing ones follow.

    Args:
        prior: prior of the G structures, not over labels.
        relaxed: weights of the same structures.
        scan: "random" receiver, or receivers in "turn".

    Raises:
        ValueError: the prior is one over labels, or ``scan`` is unknown.
    """

    move_names = ("sequential_block",)

    def __init__(self, prior: StructureDistribution, relaxed: Relaxed, *, scan: str = "turn") -> None:
        self.blocks = SenderBySender(prior, relaxed)
        self.tied = prior.tied
        self.incoming = edges.incoming_edges(prior.num_entities).to(prior.edge_mask.device)
        self.reverse = edges.reverse_edges(prior.num_entities).to(prior.edge_mask.device)
        self.choose = Choice(entity_mask(prior.edge_mask), scan)
        self.num_uniforms = prior.num_entities

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        receiver = self.choose(uniform[..., 0], step)  # [C, G]
        edge = self.incoming[receiver]
        group = torch.arange(structure.shape[1], device=structure.device).expand_as(receiver)
        new, log_q = self.blocks.draw(group, receiver, structure.gather(-1, edge), uniform[..., 1:], temperature)
        moved = structure.scatter(-1, edge, new)
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        return Move({"edge_type": moved}, log_q[0], log_q[1], 0)


class SequentialSweep(AbstractProposal):
    """The blocks of all receivers at once, each accepted or not on its own.

    Under an independent prior receivers are independent of one another, so a Metropolis step of each leaves the
    posterior invariant, and what they accept together needs no other decision: the reported ratio is that of the
    posterior.

    Args:
        prior: independent prior of the G structures.
        likelihood: of the same structures, one that factorises over receivers and has relaxed weights.

    Raises:
        ValueError: prior or likelihood do not fit.
    """

    move_names = ("sequential_sweep",)

    def __init__(self, prior: StructureDistribution, likelihood: AbstractLikelihood) -> None:
        if not (isinstance(prior, EdgeDistribution) and prior.factorises):
            raise ValueError(f"prior must be independent over edges, found {type(prior).__name__}")
        if likelihood.relaxed is None:
            raise ValueError("likelihood must have relaxed weights, found none")
        self.likelihood = likelihood
        self.blocks = SenderBySender(prior, likelihood.relaxed)
        self.incoming = edges.incoming_edges(prior.num_entities).to(prior.edge_mask.device)
        self.log_weight = prior.edge_log_weight().detach().double()[:, self.incoming]  # [G, N, N - 1, K]
        self.num_uniforms = prior.num_entities**2

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        num_entities = len(self.incoming)
        each = uniform.unflatten(-1, (num_entities, num_entities))  # [C, G, N, N]
        receiver = torch.arange(num_entities, device=structure.device).expand(each.shape[:-1])
        group = torch.arange(structure.shape[1], device=structure.device)[:, None].expand_as(receiver)
        if isinstance(temperature, Tensor):
            temperature = temperature[..., None]
        old = structure[..., self.incoming]  # [C, G, N, N - 1]
        new, log_q = self.blocks.draw(group, receiver, old, each[..., 1:], temperature)
        proposed = torch.empty_like(structure)
        proposed[..., self.incoming.reshape(-1)] = new.flatten(-2)
        before = self.likelihood.receiver_terms(structure)
        gain = (self.likelihood.receiver_terms(proposed, (structure, before)) - before) / temperature
        gain = gain + self._log_prior(new) - self._log_prior(old)
        accept = each[..., 0].log() < gain + log_q[1] - log_q[0]
        moved = torch.empty_like(structure)
        moved[..., self.incoming.reshape(-1)] = torch.where(accept[..., None], new, old).flatten(-2)
        gain = torch.where(accept, gain, torch.zeros_like(gain)).sum(-1)
        return Move({"edge_type": moved}, gain, torch.zeros_like(gain), 0)

    def _log_prior(self, types: Tensor) -> Tensor:
        weight = self.log_weight.expand(*types.shape, -1).gather(-1, types[..., None])
        return weight.squeeze(-1).sum(-1)


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
