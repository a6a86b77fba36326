"""Chains over the structures of many scenes: the one loop behind the two drivers, ``infer()`` and the Pyro kernel."""

import numpy as np
import torch
from torch import Tensor

from pyro_nri.inference import metropolis
from pyro_nri.inference.draws import Draws
from pyro_nri.inference.exact import edge_conditionals
from pyro_nri.inference.labels import label_conditionals
from pyro_nri.inference.moves import AbstractProposal
from pyro_nri.inference.schedules import Schedule
from pyro_nri.inference.streams import Stream
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.structures import ChargesDistribution


class Chains:
    """C chains over G structures that are stepped together.

    The first ``num_warmup`` steps follow the schedule; all others are at temperature exactly 1.

    Args:
        target: the posterior.
        proposal: the moves.
        stream: random stream over C chains and G structures.
        schedule: temperature of each warm-up step.
        num_warmup: number of warm-up steps.
        structure: where the chains start, long ``[C, G, E]``; default: prior draws of the stream.
        number: steps already made, when an earlier run goes on.
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
    ) -> None:
        self.target = target
        self.proposal = proposal
        self.stream = stream
        self.schedule = schedule
        self.num_warmup = num_warmup
        self.number = number
        if structure is None:
            structure = start_structures(target, stream)
        self.state = metropolis.init({"edge_type": structure}, target)

    @property
    def structure(self) -> Tensor:
        """Current structures, long ``[C, G, E]``."""
        return self.state.latents["edge_type"]

    def step(self) -> metropolis.Info:
        """One step of every chain."""
        temperature = self.schedule(self.number) if self.number < self.num_warmup else 1.0
        self.state, info = metropolis.step(
            self.state,
            self.stream,
            self.number,
            proposal=self.proposal,
            target=self.target,
            temperature=temperature,
        )
        self.number += 1
        return info

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
            log_joint.append(self.state.score.log_joint)
            infos.append(info)
            if not warming and (each := self._conditionals()) is not None:
                conditionals = each.mean(0) if conditionals is None else conditionals + each.mean(0)

        def stack(values: list[Tensor]) -> Tensor:
            return torch.stack(values, dim=1).cpu()  # [C, S, G, *]

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
            num_evaluations=num_draws * thin,
            edge_probability=None if conditionals is None else (conditionals / num_draws).cpu().numpy(),
        )

    def _conditionals(self) -> Tensor | None:
        """Probability of each type at each edge given other parts of the current structures, ``[C, G, E, K]``."""
        table, prior = self.target.likelihood, self.target.prior
        if not isinstance(table, ReceiverTable):
            return None
        if isinstance(prior, ChargesDistribution):
            uniform = self.stream.child("labeling").uniform(self.number, prior.num_entities)
            return label_conditionals(table, prior, self.structure, uniform)
        return edge_conditionals(table, prior, self.structure)


def start_structures(target: StructureTarget, stream: Stream) -> Tensor:
    """Over-dispersed starts: a prior draw for each chain and structure, long ``[C, G, E]``."""
    return target.prior.from_uniform(stream.child("start").uniform(0, target.prior.event_shape[0]))
