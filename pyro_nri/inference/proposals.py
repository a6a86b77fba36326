"""Moves on structures: what may change in one step, with the probability of the way there and of the way back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_nri.inference.balanced import BalancedEdge
from pyro_nri.inference.blocks import JointBlock, ReceiverBlock
from pyro_nri.inference.delayed import Delayed
from pyro_nri.inference.exact import can_enumerate, code_log_prior, enumerate_posterior
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.labels import ExactLabel, LabelBlock, PriorDraw, UniformLabel
from pyro_nri.inference.learned import LearnedBlock
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal as AbstractProposal
from pyro_nri.inference.moves import Choice, entity_mask, proposed_probability, shift
from pyro_nri.inference.particle_gibbs import ParticleGibbs
from pyro_nri.inference.propagated import PropagatedBlocks
from pyro_nri.inference.rounds import EdgeRound
from pyro_nri.inference.streams import Stream, categorical
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable, code_types, codes_of
from pyro_nri.model.structures import (
    ChargesDistribution,
    PairwiseDistribution,
    SparseDistribution,
    StructureDistribution,
)
from pyro_nri.scenes import edges

#: Names that :func:`make_proposal` knows.
PROPOSALS = ("auto", "uniform", "neural", "exact", "balanced", "rounds", "delayed")
#: Weight of joint moves of all pairs beside exact blocks, whose weight is 3: they cost much, and are needed only where
#: the posterior under a tied prior has several modes.
TABLE_WEIGHT = 0.06
#: Weight of guesses for all edges at once beside the moves of single ones.
PROPAGATED_WEIGHT = 0.5
#: Weight of blocks learned in warm-up beside the moves of single edges and pairs, and the encoder's blocks.
LEARNED_WEIGHT = 6.0
#: Steps on the surrogate posterior in one delayed move.
DELAYED_STEPS = 4


class UniformEdge(AbstractProposal):
    """One edge, uniform among all, gets another type, uniform among the others. Symmetric: the ratio is 1.

    Args:
        prior: prior of the G structures; not tied.
    """

    num_uniforms = 2
    move_names = ("uniform_edge",)

    def __init__(self, prior: StructureDistribution) -> None:
        self.num_edge_types = prior.num_edge_types
        self.choose = Choice(prior.edge_mask)
        self.is_irreducible = isinstance(prior, PairwiseDistribution) and not prior.tied

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        edge = self.choose(uniform[..., 0], step)[..., None]  # [C, G, 1]
        new = structure.gather(-1, edge) + shift(uniform[..., 1], self.num_edge_types)[..., None]
        new = structure.scatter(-1, edge, new % self.num_edge_types)
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"edge_type": new}, zero, zero, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt)


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
        self.both = edges.pairs(prior.num_entities).to(prior.edge_mask.device)
        self.choose = Choice(prior.edge_mask[:, self.both[:, 0]])
        self.is_irreducible = isinstance(prior, PairwiseDistribution)

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure, num_types = latents["edge_type"], self.num_edge_types
        edge = self.both[self.choose(uniform[..., 0], step)]  # [C, G, 2]
        old = structure.gather(-1, edge)
        if self.tied:
            new = (old + shift(uniform[..., 1], num_types)[..., None]) % num_types
        else:
            code = old[..., 0] * num_types + old[..., 1]
            code = (code + shift(uniform[..., 1], num_types**2)) % num_types**2
            new = torch.stack([code // num_types, code % num_types], dim=-1)
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"edge_type": structure.scatter(-1, edge, new)}, zero, zero, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.both].sum(-1))


class ExactReceiver(AbstractProposal):
    """All incoming edges of one receiver from their exact conditional given all other edges (a Gibbs block).

    Under a tied prior the outgoing edges follow, and the conditional counts what they do to the other receivers; under
    a sparse one it counts the interacting pairs among the others too.

    Args:
        prior: prior of the G structures, not over labels.
        table: receiver log-likelihoods.
        scan: "random" receiver, or receivers in "turn".

    Raises:
        ValueError: the prior is one over labels, or ``scan`` is unknown.
    """

    num_uniforms = 2
    move_names = ("exact_receiver",)

    def __init__(self, prior: StructureDistribution, table: ReceiverTable, *, scan: str = "random") -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave a receiver's edges a choice given all others, found one over labels")
        num_types = table.num_edge_types
        num_entities = table.table.shape[1]
        device = table.table.device
        self.tied = prior.tied
        self.num_edge_types = num_types
        self.table = table.table
        self.log_prior = code_log_prior(prior)  # [G, N, R]
        self.types = code_types(num_types, num_entities).to(device)  # [R, N - 1]
        self.incoming = edges.incoming_edges(num_entities).to(device)
        self.reverse = edges.reverse_edges(num_entities).to(device)
        self.choose = Choice(entity_mask(prior.edge_mask), scan)
        # For each receiver: who its senders are, and the place value of its own edge in each sender's code.
        self.other = edges.senders(num_entities).to(device)[self.incoming]  # [N, N - 1]
        digit = (
            torch.arange(num_entities, device=device)[:, None]
            - (torch.arange(num_entities, device=device)[:, None] > self.other).long()
        )
        self.place = num_types ** (num_entities - 2 - digit)  # [N, N - 1]
        self.log_number: Tensor | None = None  # log prior of each number of interacting pairs, [G, E / 2 + 1]
        if isinstance(prior, SparseDistribution):
            number = torch.arange(prior.event_shape[0] // 2 + 1, device=device).expand(*prior.batch_shape, -1)
            self.log_number = prior.count_log_weight(number)
            self.num_interacting = (self.types > 0).sum(-1)  # of each code, [R]

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        num_chains, num_groups, _ = structure.shape
        receiver = self.choose(uniform[..., 0], step)
        group = torch.arange(num_groups, device=structure.device)
        log_weight = self.table[group, receiver]  # [C, G, R]
        codes = codes_of(structure, self.num_edge_types)  # [C, G, N]
        if self.tied:
            log_weight = log_weight + self._outgoing(structure, codes, receiver, group)
        log_weight = log_weight / (temperature[..., None] if isinstance(temperature, Tensor) else temperature)
        log_weight = log_weight + self.log_prior[group, receiver]
        edge = self.incoming[receiver]  # [C, G, N - 1]
        if self.log_number is not None:
            others = (structure > 0).sum(-1) // 2 - (structure.gather(-1, edge) > 0).sum(-1)  # [C, G]
            number = others[..., None] + self.num_interacting  # [C, G, R]
            log_weight = log_weight + self.log_number.expand(num_chains, -1, -1).gather(-1, number)
        log_prob = log_weight.log_softmax(-1)
        code = categorical(log_prob.exp(), uniform[..., 1])
        moved = structure.scatter(-1, edge, self.types[code])
        if self.tied:
            moved = moved.scatter(-1, self.reverse[edge], self.types[code])
        old = codes.gather(-1, receiver[..., None])
        log_forward = log_prob.gather(-1, code[..., None]).squeeze(-1)
        log_reverse = log_prob.gather(-1, old).squeeze(-1)
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.incoming].sum(-1))

    def _outgoing(self, structure: Tensor, codes: Tensor, receiver: Tensor, group: Tensor) -> Tensor:
        """What each code of the receiver, mirrored on its outgoing edges, adds to the others: ``[C, G, R]``."""
        other, place = self.other[receiver], self.place[receiver]  # [C, G, N - 1]
        outgoing = self.reverse[self.incoming[receiver]]
        base = codes.gather(-1, other) - structure.gather(-1, outgoing) * place
        alternatives = base[..., None] + place[..., None] * torch.arange(self.num_edge_types, device=base.device)
        value = self.table[group[:, None, None], other[..., None], alternatives]  # [C, G, N - 1, K]
        per_code = value[..., torch.arange(self.types.shape[-1], device=base.device), self.types]  # [C, G, R, N - 1]
        return per_code.sum(-1)


def _start(
    prior: StructureDistribution, guess: Tensor | None, log_q: Tensor | None, incoming: IncomingDistribution | None
) -> IncomingDistribution | None:
    """What learned blocks start from: guesses ``[G, E, K]`` where there are some, else the encoder's blocks."""
    if guess is None and incoming is not None:
        return incoming
    log_q = log_q if guess is None else guess.double().clamp(min=1e-300).log()
    if log_q is None:
        return None
    into = edges.incoming_edges(prior.num_entities).to(log_q.device)
    return IncomingDistribution.edge_by_edge(proposed_probability(prior, log_q, 0.0)[:, into], prior.edge_mask[:, into])


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

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        number = self.component(step)
        chosen = self.proposals[number]
        move = chosen.propose(latents, uniform[..., : chosen.num_uniforms], step, temperature)
        before = sum(len(proposal.move_names) for proposal in self.proposals[:number])
        return move._replace(kind=before + move.kind)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        for proposal in self.proposals:
            proposal.adapt(doubt, seen)

    def component(self, step: int) -> int:
        """Number of the component that is used at a step."""
        last = len(self.proposals) - 1
        return min(int(torch.searchsorted(self.cumulative, self.stream.shared_uniform(step), right=True)), last)


def make_proposal(
    name: str,
    prior: StructureDistribution,
    *,
    likelihood: AbstractLikelihood | None = None,
    log_q: Tensor | None = None,
    incoming: IncomingDistribution | None = None,
    surrogate: AbstractLikelihood | None = None,
    scan: str = "turn",
    searches: bool = False,
    seed: int = 0,
) -> AbstractProposal:
    """A mixture of moves by name; each has a share of uniform moves and reaches every structure of the prior.

    Args:
        name: "uniform" (single edges and pairs; pairs alone under a tied prior; one label, and sometimes a draw of the
            prior, under one over labels), "neural" (receiver blocks or labels from an encoder, in turn, and
            receiver blocks learned in warm-up, which start from the likelihood's guesses or the encoder), "exact"
            (exact receiver blocks or labels, in turn), "balanced" (locally balanced single edges) or "rounds" (edges
            of all receivers from their conditionals, and joint blocks where the likelihood is linear in the types),
            neither of them under a prior over labels, "delayed" (moves that a surrogate likelihood has accepted), or
            "auto": where there is a surrogate, delayed ones and learned blocks that start from its posterior; else all
            others that can be had, balanced ones and rounds where there are no exact blocks, with guesses for all edges
            at once where the likelihood makes them; joint blocks beside exact ones under a tied prior.
        prior: prior of the G structures.
        likelihood: of the same structures: a receiver table for "exact", one that factorises for "rounds", any
            for "balanced".
        log_q: an encoder's log probabilities, ``[G, E, K]``, for "neural".
        incoming: its joint distributions of the edges into each receiver, batch ``[G, N]``; receiver blocks are then
            drawn from these.
        surrogate: a cheap likelihood of the same structures, for "delayed".
        searches: whether joint moves of all pairs, which cost most, are to be as frequent as other joint ones.
        scan: whether blocks take receivers and labels in "turn" or at "random".
        seed: seed of the choice between components.

    Raises:
        ValueError: the name is unknown, or what it needs is missing.
    """
    if name not in PROPOSALS:
        raise ValueError(f"proposal must be one of {', '.join(PROPOSALS)}, found {name!r}")
    table = likelihood if isinstance(likelihood, ReceiverTable) else None
    if name == "exact" and table is None:
        raise ValueError("exact blocks need a receiver table, and this likelihood has none")
    if name in ("balanced", "rounds") and (likelihood is None or isinstance(prior, ChargesDistribution)):
        raise ValueError(f"moves {name!r} need a likelihood and a prior that is not over labels")
    if name == "rounds" and likelihood is not None and not likelihood.is_cached:
        raise ValueError("moves 'rounds' need a likelihood that factorises over receivers, and this one does not")
    if name == "neural" and log_q is None:
        raise ValueError("the neural proposal needs an encoder, and the model has none")
    if name == "delayed" and surrogate is None:
        raise ValueError("delayed moves need a likelihood that does not factorise, and a surrogate for it")
    if surrogate is not None and name in ("auto", "delayed"):
        inner = make_proposal(
            "auto", prior, likelihood=surrogate, log_q=log_q, incoming=incoming, scan="random", seed=seed
        )
        delayed = Delayed(StructureTarget(surrogate, prior), inner, num_steps=DELAYED_STEPS)
        uniform = make_proposal("uniform", prior, seed=seed)
        first = None
        if name == "auto" and not isinstance(prior, ChargesDistribution):
            enumerable = isinstance(surrogate, ReceiverTable) and can_enumerate(surrogate, prior)
            guess = enumerate_posterior(surrogate, prior).edge_probability if enumerable else None
            first = _start(prior, guess, log_q, incoming)
        if first is None:
            return Mixture([delayed, uniform], [9.0, 1.0], seed=seed + 1)
        return Mixture([delayed, LearnedBlock(prior, first, scan=scan), uniform], [5.0, 4.0, 1.0], seed=seed + 1)
    exact = table if name in ("auto", "exact") else None
    learned = log_q if name in ("auto", "neural") else None
    moves: list[tuple[AbstractProposal, float]] = []
    if isinstance(prior, ChargesDistribution):
        moves += [(UniformLabel(prior), 1.0), (PriorDraw(prior), 0.1)]
        if exact is not None:
            moves.append((ExactLabel(prior, exact, scan=scan), 3.0))
        if learned is not None:
            moves.append((LabelBlock(prior, learned, scan=scan), 1.0 if name == "auto" else 3.0))
    else:
        moves.append((UniformPair(prior), 1.0))
        if not prior.tied:
            moves.append((UniformEdge(prior), 1.0))
        if exact is not None:
            moves.append((ExactReceiver(prior, exact, scan=scan), 3.0))
        if learned is not None:
            block = JointBlock(prior, incoming, scan=scan) if incoming else ReceiverBlock(prior, learned, scan=scan)
            moves.append((block, 1.0))
        if (
            learned is not None
            and exact is None
            and (likelihood is None or name == "neural" or not likelihood.is_cached)
        ):
            first = _start(prior, None if likelihood is None else likelihood.likely_types(), learned, incoming)
            assert first is not None  # there is an encoder
            moves.append((LearnedBlock(prior, first, scan=scan), LEARNED_WEIGHT))
        informed = likelihood if name in ("balanced", "rounds") else None
        if name == "auto" and table is None and likelihood is not None and likelihood.is_cached:
            informed = likelihood
        if informed is not None and name != "rounds" and prior.num_edge_types > 1:
            moves.append((BalancedEdge(prior, informed), 8.0 if name == "balanced" else 2.0))
        if informed is not None and name != "balanced":
            moves.append((EdgeRound(prior, informed, scan=scan), 8.0))
        joint, weight = informed, 1.0 if prior.factorises or searches else 0.25
        if name == "auto" and exact is not None and prior.tied:
            joint, weight = exact, TABLE_WEIGHT
        if joint is not None and joint.relaxed is not None and prior.num_edge_types > 1:
            moves.append((ParticleGibbs(prior, joint, seed=seed), weight))
        if name == "auto" and informed is not None and prior.num_edge_types > 1:
            guess = informed.likely_types()
            if guess is not None:
                moves.append((PropagatedBlocks(prior, informed, guess), PROPAGATED_WEIGHT))
    return Mixture([move for move, _ in moves], [weight for _, weight in moves], seed=seed)
