"""Chains over the structures of many scenes: the one loop behind the two drivers, ``infer()`` and the Pyro kernel."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pyro_nri.inference import metropolis
from pyro_nri.inference.draws import Draws, PriorRecord, Replicas
from pyro_nri.inference.exact import edge_conditionals
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.labels import label_conditionals
from pyro_nri.inference.moves import AbstractProposal
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.schedules import Schedule, geometric
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.inference.tempering import Ladder, is_round
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable
from pyro_nri.model.structures import ChargesDistribution, StructureDistribution
from pyro_nri.model.surrogate import surrogate_likelihood
from pyro_nri.scenes.scenes import Scenes

#: Shorter warm-ups say too little of the edges.
MIN_WARMUP = 20
#: About how many structures of warm-up moves learn from.
NUM_KEPT = 200


class Chains:
    """C chains over G structures that are stepped together.

    The first ``num_warmup`` steps follow the schedule; all others are at temperature exactly 1. Where a likelihood can
    be blunted, the first half of warm-up takes blunt ones in turn instead: when the noise is tiny, no temperature makes
    a path through structures that are all out of the question, but wide noise does. (Records have the temperature that
    the schedule says, so that it is 1 where the target is the posterior.) What each chain saw of the edges in the
    second half of warm-up sets how often its moves choose them, and teaches moves that learn; then that is frozen. With
    a ladder of R replicas each chain is R of them, only the one at temperature 1 is kept, and warm-up sets the ladder
    instead.

    Args:
        target: the posterior.
        proposal: the moves.
        stream: random stream over C chains (times R) and G structures.
        schedule: temperature of each warm-up step, where there is no ladder.
        num_warmup: number of warm-up steps.
        structure: where the chains start, long ``[R C, G, E]``, replicas first; default: prior draws of the stream.
        number: steps already made, when an earlier run goes on.
        seen: types of the edges in the warm-up steps of that run, ``[C, S, G, E]``.
        ladder: replicas of parallel tempering; it changes with the steps.
        blunt: targets of the first half of warm-up with their moves, each for as many steps.
    """

    def __init__(
        self,
        target: StructureTarget,
        proposal: AbstractProposal,
        stream: Stream,
        *,
        schedule: Schedule,
        num_warmup: int,
        structure: Tensor | None = None,
        number: int = 0,
        seen: Tensor | None = None,
        ladder: Ladder | None = None,
        blunt: Sequence[tuple[StructureTarget, AbstractProposal]] = (),
    ) -> None:
        self.own, self.blunt = (target, proposal), blunt
        self.target = target
        self.proposal = proposal
        self.stream = stream
        self.schedule = schedule
        self.num_warmup = num_warmup
        self.number = number
        self.ladder = ladder
        self.num_chains = stream.num_chains // (1 if ladder is None else ladder.num_replicas)
        if structure is None:
            structure = start_structures(target, stream)
        self.state = metropolis.init({"edge_type": structure}, target)
        # How often each edge had each type in the second half of warm-up, [C, G, E, K].
        self.counts = torch.zeros(*self.structure.shape, target.prior.num_edge_types, device=structure.device)
        self.kept: list[Tensor] = []  # some of the same structures
        if seen is not None:
            for step in range(num_warmup // 2, min(num_warmup, seen.shape[1])):
                self._count(seen[:, step], step)
        if number >= num_warmup:
            self._adapt()

    @property
    def structure(self) -> Tensor:
        """Current structures at temperature 1, long ``[C, G, E]``."""
        return self.state.latents["edge_type"][: self.num_chains]

    @property
    def log_joint(self) -> Tensor:
        """Their log joint, ``[C, G]``."""
        return self.state.score.log_joint[: self.num_chains]

    def step(self) -> metropolis.Info:
        """One step of every chain; says what happened at temperature 1."""
        target, self.proposal = self._stage()
        if target is not self.target:
            self.target, self.state = target, metropolis.init(self.state.latents, target)
        scheduled = self.schedule(self.number) if self.number < self.num_warmup else 1.0
        temperature: float | Tensor = 1.0 if self.blunt else scheduled
        if self.ladder is not None:
            temperature = self.ladder.temperature(self.num_chains)
        self.state, info = metropolis.step(
            self.state,
            self.stream,
            self.number,
            proposal=self.proposal,
            target=self.target,
            temperature=temperature,
        )
        info = self._exchange(self.ladder, info) if self.ladder is not None else info._replace(temperature=scheduled)
        if self.num_warmup // 2 <= self.number < self.num_warmup:
            self._count(self.structure, self.number)
        self.number += 1
        if self.number == self.num_warmup:
            self._adapt()
        return info

    def _stage(self) -> tuple[StructureTarget, AbstractProposal]:
        """Target and moves of this step."""
        half = self.num_warmup // 2
        if self.number >= half:
            self.blunt = ()
        return self.blunt[self.number * len(self.blunt) // half] if self.blunt else self.own

    def _count(self, structure: Tensor, number: int) -> None:
        if self.ladder is None and number % max(1, self.num_warmup // (2 * NUM_KEPT)) == 0:
            self.kept.append(structure.to(torch.int8))
        index = structure.long()[..., None]
        self.counts.scatter_add_(-1, index, torch.ones_like(index, dtype=self.counts.dtype))

    def _adapt(self) -> None:
        """At the end of warm-up: moves prefer edges in doubt, and learn from what was seen."""
        if self.ladder is not None or self.num_warmup < MIN_WARMUP:
            return
        count = self.counts + 0.5
        probability = count / count.sum(-1, keepdim=True)
        doubt = (1 - probability.square().sum(-1)).clamp(min=0).sqrt().double()
        self.proposal.adapt(doubt, torch.stack(self.kept, 1) if self.kept else None)
        self.kept = []

    def _exchange(self, ladder: Ladder, info: metropolis.Info) -> metropolis.Info:
        """Fresh draws for the replica at the prior, exchanges between neighbours; in warm-up the ladder is set."""
        uniform = self.stream.child("prior").uniform(self.number, self.target.prior.event_shape[0])
        fresh = {"edge_type": self.target.prior.from_uniform(uniform[-self.num_chains :])}
        last = metropolis.init(fresh, self.target)

        def with_last(value: Tensor, new: Tensor) -> Tensor:
            return torch.cat([value[: -self.num_chains], new])

        latents = {name: with_last(value, fresh[name]) for name, value in self.state.latents.items()}
        score = metropolis.Score(*map(with_last, self.state.score, last.score))
        self.state = ladder.exchange(metropolis.State(latents, score), self.stream, self.number)
        done = self.number + 1
        if done < self.num_warmup and is_round(done):
            ladder.adapt()
        if done == self.num_warmup:
            ladder.forget()
        proposed, accepted, worse = (each[: self.num_chains] for each in info[:3])
        return metropolis.Info(proposed, accepted, worse, info.kind, 1.0)

    def record(self, num_draws: int, thin: int, group_names: tuple[str, ...]) -> Draws:
        """Make ``num_draws * thin`` steps and keep every ``thin``-th state.

        With a receiver table and outside warm-up, the conditionals of the edges are averaged over the kept states.
        """
        warming = self.number < self.num_warmup
        structures, log_joint, infos = [], [], []
        conditionals = None
        for _ in range(num_draws):
            for _ in range(thin):
                info = self.step()
            structures.append(self.structure.to(torch.int8))
            log_joint.append(self.log_joint)
            infos.append(info)
            if not warming and (each := self._conditionals()) is not None:
                conditionals = each.mean(0) if conditionals is None else conditionals + each.mean(0)

        def stack(values: list[Tensor]) -> Tensor:
            return torch.stack(values, dim=1).cpu()  # [C, S, G, *]

        replicas = log_marginal = error = None
        if self.ladder is not None:
            replicas = self._replicas(self.ladder)
            if not warming:
                log_marginal, error = (each.cpu().numpy() for each in self.ladder.log_marginal())
        return Draws(
            edge_type=stack(structures).numpy(),
            log_joint=stack(log_joint).numpy(),
            accepted=stack([info.accepted for info in infos]).numpy(),
            proposed=stack([info.proposed for info in infos]).numpy(),
            move_kind=np.array([info.kind for info in infos], dtype=np.int8),
            temperature=np.array([info.temperature for info in infos]),
            move_names=self.proposal.move_names,
            num_edge_types=self.target.prior.num_edge_types,
            group_names=group_names,
            method="mcmc",
            seed=self.stream.seed,
            num_evaluations=num_draws * thin * (self.stream.num_chains // self.num_chains),
            edge_probability=None if conditionals is None else (conditionals / num_draws).cpu().numpy(),
            prior=PriorRecord.of(self.target.prior),
            log_marginal=log_marginal,
            log_marginal_error=error,
            replicas=replicas,
        )

    def _replicas(self, ladder: Ladder) -> Replicas:
        structure = self.state.latents["edge_type"].unflatten(0, (ladder.num_replicas, -1))
        return Replicas(
            inverse_temperature=ladder.inverse_temperature.cpu().numpy(),
            rejection=(ladder.rejection / max(ladder.num_steps, 1)).cpu().numpy(),
            num_steps=ladder.num_steps,
            log_up=ladder.log_up.cpu().numpy(),
            log_down=ladder.log_down.cpu().numpy(),
            edge_type=structure.to(torch.int8).cpu().numpy(),
        )

    def _conditionals(self) -> Tensor | None:
        """Probability of each type at each edge given other parts of the current structures, ``[C, G, E, K]``."""
        table, prior = self.target.likelihood, self.target.prior
        if not isinstance(table, ReceiverTable):
            return None
        if isinstance(prior, ChargesDistribution):
            uniform = self.stream.child("labeling").uniform(self.number, prior.num_entities)[: self.num_chains]
            return label_conditionals(table, prior, self.structure, uniform)
        return edge_conditionals(table, prior, self.structure)


def make_chains(
    likelihood: AbstractLikelihood,
    prior: StructureDistribution,
    *,
    group_names: tuple[str, ...],
    proposal: str,
    log_q: Tensor | None,
    incoming: IncomingDistribution | None = None,
    surrogate: AbstractLikelihood | None = None,
    num_chains: int,
    num_warmup: int,
    start_temperature: float,
    seed: int,
    ladder: Ladder | None = None,
    structure: Tensor | None = None,
    number: int = 0,
    seen: Tensor | None = None,
) -> Chains:
    """Chains from the names of their moves: what both drivers share.

    Args:
        likelihood: of G structures.
        prior: of the same structures.
        group_names: their G names, which key the random numbers.
        proposal: see :func:`make_proposal`.
        log_q: an encoder's log probabilities, ``[G, E, K]``, if there is one.
        incoming: its joint distributions of the edges into each receiver, batch ``[G, N]``, if it has couplings.
        surrogate: a cheap likelihood of the same structures, if the other one does not factorise.
        num_chains: C.
        num_warmup: warm-up steps, annealed from ``start_temperature`` to 1 within their first half, or blunted.
        start_temperature: temperature of the first step; at 1 likelihoods are not blunted either.
        seed: fixes all random numbers.
        ladder: see :class:`Chains`.
        structure: see :class:`Chains`.
        number: see :class:`Chains`.
        seen: see :class:`Chains`.
    """
    num_replicas = 1 if ladder is None else ladder.num_replicas

    def with_moves(
        likelihood: AbstractLikelihood, *, searches: bool = False
    ) -> tuple[StructureTarget, AbstractProposal]:
        moves = make_proposal(
            proposal,
            prior,
            likelihood=likelihood,
            log_q=log_q,
            incoming=incoming,
            surrogate=surrogate,
            searches=searches,
            seed=seed,
        )
        return StructureTarget(likelihood, prior), moves

    searches = start_temperature > 1 and ladder is None and number < num_warmup // 2
    return Chains(
        *with_moves(likelihood),
        Stream(seed, keys(group_names, prior.edge_mask.device), num_chains * num_replicas),
        schedule=geometric(start_temperature, 1.0, max(1, num_warmup // 2)),
        num_warmup=num_warmup,
        structure=structure,
        number=number,
        seen=seen,
        ladder=ladder,
        blunt=[with_moves(each, searches=True) for each in likelihood.blunted()] if searches else (),
    )


def surrogate_of(
    model: SceneModel, likelihood: AbstractLikelihood, scenes: Scenes, proposal: str
) -> AbstractLikelihood | None:
    """A cheap likelihood for moves that need one: where ``likelihood`` is not cached and the moves may be delayed."""
    if likelihood.is_cached or proposal not in ("auto", "delayed"):
        return None
    with torch.no_grad():
        return surrogate_likelihood(model, scenes, likelihood)


def start_structures(target: StructureTarget, stream: Stream) -> Tensor:
    """Over-dispersed starts: a prior draw for each chain and structure, long ``[C, G, E]``."""
    return target.prior.from_uniform(stream.child("start").uniform(0, target.prior.event_shape[0]))
