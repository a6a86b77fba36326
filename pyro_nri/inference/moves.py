"""What every move on structures is made of."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes import edges

#: Share of choices that stay uniform, whatever warm-up was sure of.
UNIFORM_SHARE = 0.5


class AbstractProposal(ABC):
    """A kind of move on ``edge_type`` of G structures.

    Attributes:
        num_uniforms: uniforms that one move of one structure uses.
        move_names: names of the kinds of move.
        is_irreducible: whether repeating it reaches every structure with positive probability.
    """

    num_uniforms: int
    move_names: tuple[str, ...]
    is_irreducible: bool = True

    @abstractmethod
    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        """Propose new latents.

        Args:
            latents: ``edge_type`` long ``[C, G, E]``.
            uniform: ``[C, G, num_uniforms]`` in [0, 1).
            step: number of the step, for moves that take turns.
            temperature: of the step, for moves that draw from a conditional of the target: a number or ``[C, G]``.
        """

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:  # noqa: B027 (a move may have nothing to adapt)
        """From now on, propose what warm-up makes likely. Called once, between warm-up and the draws.

        Neither depends on the state any more, so that moves leave the posterior invariant once they are frozen
        (Roberts & Rosenthal 2007, "Coupling and ergodicity of adaptive Markov chain Monte Carlo algorithms").

        Args:
            doubt: how uncertain each edge was in warm-up, zero or more, ``[C, G, E]``: what is in doubt is chosen more
                often.
            seen: structures of some steps of warm-up, ``[C, S, G, E]``, where they were kept.
        """


class Choice:
    """A choice among the existing members of each group's row of ``mask``.

    Args:
        mask: bool ``[G, M]``.
        scan: "random", uniform at each step, or one after the other in "turn".

    Raises:
        ValueError: ``scan`` is unknown.
    """

    def __init__(self, mask: Tensor, scan: str = "random") -> None:
        if scan not in ("random", "turn"):
            raise ValueError(f"scan must be 'random' or 'turn', found {scan!r}")
        self.scan = scan
        self.mask = mask
        self.cumulative: Tensor | None = None  # of weights, [C, G, M]
        self.count = mask.sum(-1)  # [G]
        self.order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)  # existing members first

    def __call__(self, uniform: Tensor, step: int) -> Tensor:
        """Member for each uniform ``[C, G]`` at a step, long ``[C, G]``."""
        if self.cumulative is not None:
            return torch.searchsorted(self.cumulative, uniform[..., None].contiguous(), right=True).squeeze(-1)
        if self.scan == "turn":
            place = (step % self.count).expand(uniform.shape)
        else:
            place = (uniform * self.count).long().minimum(self.count - 1)
        return self.order.expand(len(uniform), -1, -1).gather(-1, place[..., None]).squeeze(-1)

    def prefer(self, doubt: Tensor) -> None:
        """Choose at random from now on: half of the time uniformly, else in proportion to ``doubt``, ``[C, G, M]``."""
        uniform = self.mask / self.count[:, None]
        doubt = torch.where(self.mask, doubt, torch.zeros_like(doubt))
        total = doubt.sum(-1, keepdim=True)
        share = torch.where(total > 0, doubt / total, uniform.to(doubt))
        cumulative = (UNIFORM_SHARE * uniform + (1 - UNIFORM_SHARE) * share).cumsum(-1)
        # From the last member on it is 1, so that rounding leads to none that does not exist.
        last = self.mask.shape[-1] - 1 - self.mask.flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
        number = torch.arange(self.mask.shape[-1], device=doubt.device)
        self.cumulative = torch.where(number >= last, torch.ones_like(cumulative), cumulative)


def shift(uniform: Tensor, num_values: int) -> Tensor:
    """A step of 1 to ``num_values - 1``, uniform, that leads from a value to another one; 0 where there is no other."""
    others = num_values - 1
    return (1 + (uniform * others).long().clamp(max=max(others - 1, 0))) * int(others > 0)


def entity_mask(edge_mask: Tensor) -> Tensor:
    """Which entities have an edge, bool ``[G, N]``."""
    return edges.to_matrix(edge_mask).any(-1)


def proposed_probability(prior: StructureDistribution, log_q: Tensor, floor: float) -> Tensor:
    """Probability of each type at each edge for moves that draw from given ones, such as an encoder's: ``[G, E, K]``.

    ``(1 - floor) q + floor / K``, with q the normalised mean of both directions' log probabilities under a tied
    prior; type 0 where an end is padding.

    Args:
        prior: prior of the G structures.
        log_q: ``[G, E, K]``.
        floor: share of the uniform distribution, which keeps every structure in reach.

    Raises:
        ValueError: the shape does not fit or ``floor`` is not in [0, 1].
    """
    wanted = (*prior.batch_shape, *prior.event_shape, prior.num_edge_types)
    if tuple(log_q.shape) != wanted:
        raise ValueError(f"log_q must have shape {list(wanted)}, found {list(log_q.shape)}")
    if not 0 <= floor <= 1:
        raise ValueError(f"floor must be between 0 and 1, found {floor}")
    log_q = log_q.detach().double()
    if prior.tied:
        log_q = (log_q + log_q[:, edges.reverse_edges(prior.num_entities).to(log_q.device)]) / 2
    probability = (1 - floor) * log_q.softmax(-1) + floor / prior.num_edge_types
    absent = torch.zeros_like(probability)
    absent[..., 0] = 1
    return torch.where(prior.edge_mask[..., None], probability, absent)
