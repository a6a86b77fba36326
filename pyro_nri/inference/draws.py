"""What inference hands over: draws of structures, exact probabilities where they exist, and how they were made."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_nri.model.structures import EdgeDistribution, SparseDistribution, StructureDistribution


@dataclass(frozen=True)
class PriorRecord:
    """The prior that structures were drawn under, so that it can be divided out of the posterior.

    Attributes:
        name: "independent", "symmetric", "sparse" or "charges".
        type_probability: probability of each type at any one edge, K numbers.
        concentration: (a, b) of "sparse", else None.
    """

    name: str
    type_probability: tuple[float, ...]
    concentration: tuple[float, float] | None = None

    @classmethod
    def of(cls, prior: StructureDistribution) -> "PriorRecord":
        """What is to be kept of a prior."""
        name, concentration = "charges", None
        if isinstance(prior, EdgeDistribution):
            name = "symmetric" if prior.tied else "independent"
        elif isinstance(prior, SparseDistribution):
            a, b = prior.concentration
            name, concentration = "sparse", (float(a), float(b))
        return cls(name, tuple(prior.type_probability.tolist()), concentration)


@dataclass(frozen=True, eq=False)
class Replicas:
    """R replicas of parallel tempering after the last draw.

    Attributes:
        inverse_temperature: 1 first, 0 last, float64 ``[R, G]``.
        rejection: mean probability that neighbours were not exchanged, float64 ``[R - 1, G]``.
        num_steps: steps that this mean is of.
        log_up: see :class:`pyro_nri.inference.tempering.Ladder`, float64 ``[R - 1, C, G]``.
        log_down: the same.
        edge_type: current structures of all replicas, int8 ``[R, C, G, E]``.
    """

    inverse_temperature: NDArray[np.float64]
    rejection: NDArray[np.float64]
    num_steps: int
    log_up: NDArray[np.float64]
    log_down: NDArray[np.float64]
    edge_type: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class HiddenDraws:
    """Hidden entities of G scenes; padding where a scene has fewer than the most, NaN.

    Attributes:
        state: at frame 0, raw units, float64 ``[C, S, G, N_hidden, D]``.
        path: of R draws, raw units, float64 ``[R, G, N_hidden, T, D]``.
        num_hidden: number of hidden entities in the draws of each scene, ``[G]``.
        numbers: the M numbers that were tried.
        log_marginal: log marginal likelihood of each number, ``[M, G]``; NaN where it was not computed.
        log_marginal_error: standard errors, ``[M, G]``; inf for a number far too improbable to be followed up, and
            where chains hardly move.
        unexplained: nats for each transition and entity by which frames under each number are less likely than exact
            predictions, ``[M, G]``; noise of the learned size leaves two or three. None where it was not computed.
    """

    state: NDArray[np.float64]
    path: NDArray[np.float64]
    num_hidden: NDArray[np.integer]
    numbers: tuple[int, ...]
    log_marginal: NDArray[np.float64]
    log_marginal_error: NDArray[np.float64]
    unexplained: NDArray[np.float64] | None = None

    @property
    def probability(self) -> NDArray[np.float64]:
        """Posterior probability of each number that was tried, all equally likely before, ``[M, G]``."""
        if len(self.numbers) == 1:  # whether or not its log marginal is known
            return np.ones_like(self.log_marginal)
        weight = np.exp(self.log_marginal - self.log_marginal.max(0))
        share: NDArray[np.float64] = weight / weight.sum(0)
        return share


@dataclass(frozen=True, eq=False)
class RecordedDraws:
    """Entities of G scenes that were recorded with noise: where they were.

    Attributes:
        state: at frame 0, without the noise of the measurement, raw units, float64 ``[C, S, G, N, D]``; padding: NaN.
        measurement_noise: standard deviation of the measurement of each state variable, raw units, ``[D]``.
        noise_estimated: whether it was estimated from the same recordings, or given.
    """

    state: NDArray[np.float64]
    measurement_noise: NDArray[np.float64]
    noise_estimated: bool = False


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the structures of G groups of scenes, of C chains with S draws each. Axis letters as in :class:`Scenes`.

    Attributes:
        edge_type: int8 ``[C, S, G, E]``, 0 where an end of the edge is padding.
        log_joint: log of prior and likelihood of each draw, float64 ``[C, S, G]``; the likelihood may be a composite
            one, or a density raised to the power to which it is believed; in warm-up, while the temperature is not 1,
            one of wider noise.
        accepted: whether the step that led to the draw changed the structure, bool ``[C, S, G]``.
        proposed: whether that step proposed a change at all, bool ``[C, S, G]``; never, where draws are independent.
        move_kind: number into ``move_names`` of the step's move, int8 ``[S]``; for thinned draws, of the last step.
        temperature: float64 ``[S]``, 1 everywhere in ``Draws`` that are not warm-up.
        move_names: names of the kinds of move; none, where draws are independent.
        num_edge_types: K.
        group_names: G names of the structures.
        method: "exact" (independent draws of an enumerated posterior) or "mcmc".
        seed: the seed of the run.
        num_evaluations: likelihood evaluations made for each chain and structure, of the structure that took most.
        edge_probability: float64 ``[G, E, K]``: exact where ``method`` is "exact", Rao-Blackwellised (mean of a move's
            conditionals over draws) where a kernel offers it, else None.
        receiver_probability: exact probability of each code of each receiver's incoming types, float64
            ``[G, N, K ** (N - 1)]``, where receivers are independent and have few codes, else None.
        prior: the prior of the structures, or None where it is not known.
        log_marginal: log marginal likelihood, of the same likelihood, float64 ``[G]``: exact, or estimated by parallel
            tempering, else None.
        log_marginal_error: its standard error where it is an estimate, of parallel tempering or with hidden entities,
            float64 ``[G]``, else None.
        replicas: what parallel tempering needs to go on, or None.
        hidden: hidden entities, where some were inferred, or None.
        recorded: where the others were, if recordings have measurement noise, or None.
        warmup: the annealed and discarded steps, or None.
        complete: False if the run was interrupted.
        attributes: anything else worth keeping, plain str, int or float.
    """

    edge_type: NDArray[np.int8]
    log_joint: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    proposed: NDArray[np.bool_]
    move_kind: NDArray[np.int8]
    temperature: NDArray[np.float64]
    move_names: tuple[str, ...]
    num_edge_types: int
    group_names: tuple[str, ...]
    method: str
    seed: int
    num_evaluations: int
    edge_probability: NDArray[np.float64] | None = None
    receiver_probability: NDArray[np.float64] | None = None
    prior: PriorRecord | None = None
    log_marginal: NDArray[np.float64] | None = None
    log_marginal_error: NDArray[np.float64] | None = None
    replicas: "Replicas | None" = None
    hidden: HiddenDraws | None = None
    recorded: RecordedDraws | None = None
    warmup: "Draws | None" = None
    complete: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)

    def first(self, num_draws: int) -> "Draws":
        """The first draws of every chain; Rao-Blackwellised probabilities are kept only with all draws."""
        recorded = self.recorded
        return replace(
            self,
            edge_type=self.edge_type[:, :num_draws],
            log_joint=self.log_joint[:, :num_draws],
            accepted=self.accepted[:, :num_draws],
            proposed=self.proposed[:, :num_draws],
            move_kind=self.move_kind[:num_draws],
            temperature=self.temperature[:num_draws],
            hidden=None if self.hidden is None else replace(self.hidden, state=self.hidden.state[:, :num_draws]),
            recorded=None if recorded is None else replace(recorded, state=recorded.state[:, :num_draws]),
            edge_probability=self.edge_probability if num_draws >= self.edge_type.shape[1] else None,
        )

    @property
    def num_replicas(self) -> int:
        """R, 1 without parallel tempering."""
        return 1 if self.replicas is None else len(self.replicas.inverse_temperature)


def append_draws(draws: Draws, later: Draws) -> Draws:
    """The draws of a chain and those of its continuation, one behind the other."""
    probability = None
    if draws.edge_probability is not None and later.edge_probability is not None:
        weights = [draws.edge_type.shape[1], later.edge_type.shape[1]]
        probability = np.average([draws.edge_probability, later.edge_probability], axis=0, weights=weights)

    def joined(name: str, axis: int) -> Any:
        return np.concatenate([getattr(draws, name), getattr(later, name)], axis=axis)

    return replace(
        draws,
        edge_type=joined("edge_type", 1),
        log_joint=joined("log_joint", 1),
        accepted=joined("accepted", 1),
        proposed=joined("proposed", 1),
        move_kind=joined("move_kind", 0),
        temperature=joined("temperature", 0),
        num_evaluations=draws.num_evaluations + later.num_evaluations,
        edge_probability=probability,
        log_marginal=later.log_marginal,
        log_marginal_error=later.log_marginal_error,
        replicas=later.replicas,
    )


def concatenate_draws(parts: Sequence[Draws]) -> Draws:
    """Draws of different structures, made by runs with the same arguments, side by side."""
    first = parts[0]

    def joined(name: str, axis: int) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values, axis=axis)

    warmups = [part.warmup for part in parts if part.warmup is not None]
    return replace(
        first,
        edge_type=joined("edge_type", 2),
        log_joint=joined("log_joint", 2),
        accepted=joined("accepted", 2),
        proposed=joined("proposed", 2),
        group_names=sum((part.group_names for part in parts), ()),
        num_evaluations=max(part.num_evaluations for part in parts),
        edge_probability=joined("edge_probability", 0),
        receiver_probability=joined("receiver_probability", 0),
        log_marginal=joined("log_marginal", 0),
        log_marginal_error=joined("log_marginal_error", 0),
        replicas=_side_by_side([part.replicas for part in parts]),
        hidden=_hidden_side_by_side([part.hidden for part in parts]),
        recorded=_recorded_side_by_side([part.recorded for part in parts]),
        warmup=concatenate_draws(warmups) if len(warmups) == len(parts) else None,
        complete=all(part.complete for part in parts),
    )


def _side_by_side(parts: Sequence[Replicas | None]) -> Replicas | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None

    def joined(name: str, axis: int) -> Any:
        return np.concatenate([getattr(part, name) for part in known], axis=axis)

    return Replicas(
        inverse_temperature=joined("inverse_temperature", 1),
        rejection=joined("rejection", 1),
        num_steps=known[0].num_steps,
        log_up=joined("log_up", 2),
        log_down=joined("log_down", 2),
        edge_type=joined("edge_type", 2),
    )


def _hidden_side_by_side(parts: Sequence[HiddenDraws | None]) -> HiddenDraws | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None

    def joined(name: str, axis: int) -> Any:
        return np.concatenate([getattr(part, name) for part in known], axis=axis)

    return HiddenDraws(
        state=joined("state", 2),
        path=joined("path", 1),
        num_hidden=joined("num_hidden", 0),
        numbers=known[0].numbers,
        log_marginal=joined("log_marginal", 1),
        log_marginal_error=joined("log_marginal_error", 1),
        unexplained=None if any(part.unexplained is None for part in known) else joined("unexplained", 1),
    )


def _recorded_side_by_side(parts: Sequence[RecordedDraws | None]) -> RecordedDraws | None:
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return replace(known[0], state=np.concatenate([part.state for part in known], axis=2))
