"""Moves on structures: what may change in one step, with the probability of the way there and of the way back."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nri.inference.exact import code_log_prior
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.streams import Stream, categorical
from pyro_nri.model.priors import StructureDistribution
from pyro_nri.model.receivers import ReceiverTable, code_types, codes_of
from pyro_nri.scenes import edges


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
    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        """Propose new latents.

        Args:
            latents: ``edge_type`` long ``[C, G, E]``.
            uniform: ``[C, G, num_uniforms]`` in [0, 1).
            step: number of the step, for moves that take turns.
            temperature: of the step, for moves that draw from a conditional of the target.
        """


class _Choice:
    """Uniform choice among the existing members of each group's row of ``mask``, bool ``[G, M]``."""

    def __init__(self, mask: Tensor) -> None:
        self.count = mask.sum(-1)  # [G]
        self.order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True)  # existing members first

    def __call__(self, uniform: Tensor) -> Tensor:
        """Member for each uniform ``[C, G]``, long ``[C, G]``."""
        place = (uniform * self.count).long().minimum(self.count - 1)
        return self.order.expand(len(uniform), -1, -1).gather(-1, place[..., None]).squeeze(-1)

    def turn(self, step: int, num_chains: int) -> Tensor:
        """The members in turn: number ``step``, long ``[C, G]``."""
        place = (step % self.count)[:, None]
        return self.order.gather(-1, place).squeeze(-1).expand(num_chains, -1)


class UniformEdge(AbstractProposal):
    """One edge, uniform among all, gets another type, uniform among the others. Symmetric: the ratio is 1.

    Args:
        prior: prior of the G structures; not tied.
    """

    num_uniforms = 2
    move_names = ("uniform_edge",)

    def __init__(self, prior: StructureDistribution) -> None:
        self.num_edge_types = prior.num_edge_types
        self.choose = _Choice(prior.edge_mask)
        self.is_irreducible = not prior.tied

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        structure = latents["edge_type"]
        edge = self.choose(uniform[..., 0])[..., None]  # [C, G, 1]
        shift = _shift(uniform[..., 1], self.num_edge_types)[..., None]
        new = structure.scatter(-1, edge, (structure.gather(-1, edge) + shift) % self.num_edge_types)
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"edge_type": new}, zero, zero, 0)


class UniformPair(AbstractProposal):
    """Both edges of one pair, uniform among all, change together. Symmetric: the ratio is 1.

    Under a tied prior both get one other type; else they get another of the K² combinations.

    Args:
        prior: prior of the G structures.
    """

    num_uniforms = 2
    move_names = ("uniform_pair",)

    def __init__(self, prior: StructureDistribution) -> None:
        self.num_edge_types = prior.num_edge_types
        self.tied = prior.tied
        self.both = edges.pairs(edges.num_entities_of(prior.event_shape[0])).to(prior.edge_mask.device)
        self.choose = _Choice(prior.edge_mask[:, self.both[:, 0]])

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        structure, num_types = latents["edge_type"], self.num_edge_types
        edge = self.both[self.choose(uniform[..., 0])]  # [C, G, 2]
        old = structure.gather(-1, edge)
        if self.tied:
            new = (old + _shift(uniform[..., 1], num_types)[..., None]) % num_types
        else:
            code = old[..., 0] * num_types + old[..., 1]
            code = (code + _shift(uniform[..., 1], num_types**2)) % num_types**2
            new = torch.stack([code // num_types, code % num_types], dim=-1)
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"edge_type": structure.scatter(-1, edge, new)}, zero, zero, 0)


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
        wanted = (*prior.batch_shape, *prior.event_shape, prior.num_edge_types)
        if tuple(log_q.shape) != wanted:
            raise ValueError(f"log_q must have shape {list(wanted)}, found {list(log_q.shape)}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, found {floor}")
        if scan not in ("random", "turn"):
            raise ValueError(f"scan must be 'random' or 'turn', found {scan!r}")
        num_entities = edges.num_entities_of(prior.event_shape[0])
        self.scan = scan
        self.tied = prior.tied
        self.incoming = edges.incoming_edges(num_entities).to(log_q.device)  # [N, N - 1]
        self.reverse = edges.reverse_edges(num_entities).to(log_q.device)
        self.choose = _Choice(_entity_mask(prior.edge_mask))
        log_q = log_q.detach().double()
        if self.tied:
            log_q = (log_q + log_q[:, self.reverse]) / 2
        probability = (1 - floor) * log_q.softmax(-1) + floor / prior.num_edge_types
        absent = torch.zeros_like(probability)
        absent[..., 0] = 1
        self.probability = torch.where(prior.edge_mask[..., None], probability, absent)  # [G, E, K]
        self.log_q = self.probability.log()
        self.num_uniforms = num_entities
        self.is_irreducible = floor > 0

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        structure = latents["edge_type"]
        num_chains, num_groups, _ = structure.shape
        receiver = self.choose(uniform[..., 0]) if self.scan == "random" else self.choose.turn(step, num_chains)
        edge = self.incoming[receiver]  # [C, G, N - 1]
        group = torch.arange(num_groups, device=edge.device)[:, None]
        new = categorical(self.probability[group, edge], uniform[..., 1:])
        log_q = self.log_q[group, edge]  # [C, G, N - 1, K]
        log_forward = log_q.gather(-1, new[..., None]).sum((-2, -1))
        log_reverse = log_q.gather(-1, structure.gather(-1, edge)[..., None]).sum((-2, -1))
        moved = structure.scatter(-1, edge, new)
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)


class ExactReceiver(AbstractProposal):
    """All incoming edges of one receiver from their exact conditional given all other edges (a Gibbs block).

    Under a tied prior the outgoing edges follow, and the conditional counts what they do to the other receivers.

    Args:
        prior: prior of the G structures.
        table: receiver log-likelihoods.
        scan: "random" receiver, or receivers in "turn".

    Raises:
        ValueError: ``scan`` is unknown.
    """

    num_uniforms = 2
    move_names = ("exact_receiver",)

    def __init__(self, prior: StructureDistribution, table: ReceiverTable, *, scan: str = "random") -> None:
        if scan not in ("random", "turn"):
            raise ValueError(f"scan must be 'random' or 'turn', found {scan!r}")
        num_types = table.num_edge_types
        num_entities = table.table.shape[1]
        device = table.table.device
        self.scan = scan
        self.tied = prior.tied
        self.num_edge_types = num_types
        self.table = table.table
        self.log_code = table.table + code_log_prior(prior)  # [G, N, R]
        self.types = code_types(num_types, num_entities).to(device)  # [R, N - 1]
        self.incoming = edges.incoming_edges(num_entities).to(device)
        self.reverse = edges.reverse_edges(num_entities).to(device)
        self.choose = _Choice(_entity_mask(prior.edge_mask))
        # For each receiver: who its senders are, and the place value of its own edge in each sender's code.
        self.other = edges.senders(num_entities).to(device)[self.incoming]  # [N, N - 1]
        digit = (
            torch.arange(num_entities, device=device)[:, None]
            - (torch.arange(num_entities, device=device)[:, None] > self.other).long()
        )
        self.place = num_types ** (num_entities - 2 - digit)  # [N, N - 1]

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        structure = latents["edge_type"]
        num_chains, num_groups, _ = structure.shape
        receiver = self.choose(uniform[..., 0]) if self.scan == "random" else self.choose.turn(step, num_chains)
        group = torch.arange(num_groups, device=structure.device)
        log_weight = self.log_code[group, receiver]  # [C, G, R]
        codes = codes_of(structure, self.num_edge_types)  # [C, G, N]
        if self.tied:
            log_weight = log_weight + self._outgoing(structure, codes, receiver, group)
        log_prob = (log_weight / temperature).log_softmax(-1)
        code = categorical(log_prob.exp(), uniform[..., 1])
        edge = self.incoming[receiver]  # [C, G, N - 1]
        moved = structure.scatter(-1, edge, self.types[code])
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], self.types[code])
        old = codes.gather(-1, receiver[..., None])
        log_forward = log_prob.gather(-1, code[..., None]).squeeze(-1)
        log_reverse = log_prob.gather(-1, old).squeeze(-1)
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)

    def _outgoing(self, structure: Tensor, codes: Tensor, receiver: Tensor, group: Tensor) -> Tensor:
        """What each code of the receiver, mirrored on its outgoing edges, adds to the others: ``[C, G, R]``."""
        other, place = self.other[receiver], self.place[receiver]  # [C, G, N - 1]
        outgoing = self.reverse[self.incoming[receiver]]
        base = codes.gather(-1, other) - structure.gather(-1, outgoing) * place
        alternatives = base[..., None] + place[..., None] * torch.arange(self.num_edge_types, device=base.device)
        value = self.table[group[:, None, None], other[..., None], alternatives]  # [C, G, N - 1, K]
        per_code = value[..., torch.arange(self.types.shape[-1], device=base.device), self.types]  # [C, G, R, N - 1]
        return per_code.sum(-1)


class Mixture(AbstractProposal):
    """At each step one of several proposals, chosen with fixed weights independently of the state.

    Args:
        proposals: the components.
        weights: their positive weights; equal by default.
        seed: together with the step it chooses the component, the same for all chains and structures.

    Raises:
        ValueError: there is no component, weights do not fit, or no component reaches every structure.
    """

    def __init__(
        self, proposals: Sequence[AbstractProposal], weights: Sequence[float] | None = None, *, seed: int = 0
    ) -> None:
        if not proposals:
            raise ValueError("proposals is empty, at least one is needed")
        weights = [1.0] * len(proposals) if weights is None else list(weights)
        if len(weights) != len(proposals) or min(weights) <= 0:
            raise ValueError(f"weights must be {len(proposals)} positive numbers, found {weights}")
        if not any(proposal.is_irreducible for proposal in proposals):
            raise ValueError("no proposal reaches every structure; add a uniform one")
        self.proposals = list(proposals)
        self.cumulative = (torch.tensor(weights, dtype=torch.float64) / sum(weights)).cumsum(0)
        self.stream = Stream(seed, torch.empty(0, dtype=torch.long), 1).child("mixture")
        self.num_uniforms = max(proposal.num_uniforms for proposal in proposals)
        self.move_names = tuple(name for proposal in proposals for name in proposal.move_names)

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float) -> Move:
        number = self.component(step)
        chosen = self.proposals[number]
        move = chosen.propose(latents, uniform[..., : chosen.num_uniforms], step, temperature)
        before = sum(len(proposal.move_names) for proposal in self.proposals[:number])
        return move._replace(kind=before + move.kind)

    def component(self, step: int) -> int:
        """Number of the component that is used at a step."""
        last = len(self.proposals) - 1
        return min(int(torch.searchsorted(self.cumulative, self.stream.shared_uniform(step), right=True)), last)


def _shift(uniform: Tensor, num_values: int) -> Tensor:
    """A step of 1 to ``num_values - 1``, uniform, that leads from a value to another one; 0 where there is no other."""
    others = num_values - 1
    return (1 + (uniform * others).long().clamp(max=max(others - 1, 0))) * int(others > 0)


def _entity_mask(edge_mask: Tensor) -> Tensor:
    """Which entities have an edge, bool ``[G, N]``."""
    return edges.to_matrix(edge_mask).any(-1)


def make_proposal(
    name: str,
    prior: StructureDistribution,
    *,
    table: ReceiverTable | None = None,
    log_q: Tensor | None = None,
    seed: int = 0,
) -> AbstractProposal:
    """A mixture of moves by name; each has a share of uniform moves.

    Args:
        name: "uniform" (single edges and pairs; pairs alone under a tied prior), "neural" (receiver blocks from an
            encoder, in turn), "exact" (exact receiver blocks, in turn), or "auto": all of these that can be had.
        prior: prior of the G structures.
        table: receiver log-likelihoods, for "exact".
        log_q: an encoder's log probabilities, ``[G, E, K]``, for "neural".
        seed: seed of the choice between components.

    Raises:
        ValueError: the name is unknown, or what it needs is missing.
    """
    if name not in ("auto", "uniform", "neural", "exact"):
        raise ValueError(f"proposal must be auto, uniform, neural or exact, found {name!r}")
    moves: list[tuple[AbstractProposal, float]] = [(UniformPair(prior), 1.0)]
    if not prior.tied:
        moves.append((UniformEdge(prior), 1.0))
    if name == "exact" and table is None:
        raise ValueError("exact receiver blocks need a receiver table, and this likelihood has none")
    if name == "neural" and log_q is None:
        raise ValueError("the neural proposal needs an encoder, and the model has none")
    if name in ("auto", "exact") and table is not None:
        moves.append((ExactReceiver(prior, table, scan="turn"), 3.0))
    if name in ("auto", "neural") and log_q is not None:
        moves.append((ReceiverBlock(prior, log_q, scan="turn"), 1.0 if name == "auto" else 3.0))
    return Mixture([move for move, _ in moves], [weight for _, weight in moves], seed=seed)
