"""The Metropolis-Hastings step as a pure function, vectorised over chains and structures.

This file knows neither Pyro nor the model: latents are a dictionary of tensors with leading axes ``[C, G]``, a target
scores them, a proposal moves them.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from pyro_nri.inference.streams import Stream

#: Latent variables by site name, each ``[C, G, *event]``.
Latents = dict[str, Tensor]


class Score(NamedTuple):
    """What a target says of latents.

    Attributes:
        log_likelihood: ``[C, G]``.
        log_prior: ``[C, G]``.
        terms: what the target can re-use for the next evaluation, ``[C, G, *]``.
    """

    log_likelihood: Tensor
    log_prior: Tensor
    terms: Tensor

    @property
    def log_joint(self) -> Tensor:
        """``[C, G]``."""
        return self.log_prior + self.log_likelihood


class State(NamedTuple):
    """What the next step needs.

    Attributes:
        latents: current latents.
        score: their score.
    """

    latents: Latents
    score: Score


class Move(NamedTuple):
    """A proposed change.

    Attributes:
        latents: proposed latents.
        log_forward: log probability of proposing them from the current ones, ``[C, G]``.
        log_reverse: log probability of the way back, ``[C, G]``.
        kind: number of the kind of move, in the order of the proposal's ``move_names``.
    """

    latents: Latents
    log_forward: Tensor
    log_reverse: Tensor
    kind: int


class Info(NamedTuple):
    """What a person may want to know of a step.

    Attributes:
        proposed: whether the move would change anything, bool ``[C, G]``.
        accepted: whether it did, bool ``[C, G]``.
        worse: whether the proposed log joint was lower, bool ``[C, G]``.
        kind: number of the kind of move.
        temperature: temperature of the step.
    """

    proposed: Tensor
    accepted: Tensor
    worse: Tensor
    kind: int
    temperature: float | Tensor


class Target(Protocol):
    """Scores latents; may use what is known of the state that they came from."""

    def __call__(self, latents: Latents, known: State | None = None) -> Score:
        """Score latents."""
        ...


class Proposal(Protocol):
    """Conditional distribution of a change."""

    num_uniforms: int
    move_names: tuple[str, ...]

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        """Propose from current latents with uniforms ``[C, G, num_uniforms]``."""
        ...


def init(latents: Latents, target: Target) -> State:
    """State at given latents."""
    return State(latents, target(latents))


def step(
    state: State,
    stream: Stream,
    number: int,
    *,
    proposal: Proposal,
    target: Target,
    temperature: float | Tensor = 1.0,
    acceptance: str = "metropolis",
) -> tuple[State, Info]:
    """One step of every chain and structure.

    Args:
        state: where the chains are.
        stream: random stream over C chains and G structures.
        number: number of the step: with the stream's seed it fixes all random numbers.
        proposal: what is proposed.
        target: what is sampled.
        temperature: the log-likelihood is divided by it, the prior is not: infinite, the prior is sampled. One for
            all or one for each chain and structure, ``[C, G]``.
        acceptance: "metropolis" (full Hastings ratio) or "annealing" (the paper's rule without the proposal's ratio;
            for search, it does not leave the posterior invariant).

    Returns:
        The next state, and what happened.

    Raises:
        ValueError: ``acceptance`` is unknown.
    """
    uniform = stream.uniform(number, proposal.num_uniforms + 1)
    return advance(
        state, uniform, number, proposal=proposal, target=target, temperature=temperature, acceptance=acceptance
    )


def advance(
    state: State,
    uniform: Tensor,
    number: int,
    *,
    proposal: Proposal,
    target: Target,
    temperature: float | Tensor = 1.0,
    acceptance: str = "metropolis",
) -> tuple[State, Info]:
    """:func:`step` with given random numbers.

    Args:
        state: where the chains are.
        uniform: ``[C, G, num_uniforms + 1]`` in [0, 1), the first one for the acceptance.
        number: number of the step.
        proposal: see :func:`step`, as all others.
        target: what is sampled.
        temperature: of the likelihood.
        acceptance: the rule.
    """
    move = proposal.propose(state.latents, uniform[..., 1:], number, temperature)
    score = target(move.latents, state)
    log_ratio = log_joint_ratio(score, state.score, temperature)
    if acceptance == "metropolis":
        log_ratio = log_ratio + move.log_reverse - move.log_forward
    elif acceptance != "annealing":
        raise ValueError(f"acceptance must be 'metropolis' or 'annealing', found {acceptance!r}")
    # A ratio that is not a number (-inf against -inf) is a rejection.
    accept = uniform[..., 0].log() < torch.where(log_ratio.isnan(), -torch.inf, log_ratio)
    proposed = _differ(move.latents, state.latents)
    accepted = accept & proposed
    latents = {name: _choose(accepted, value, state.latents[name]) for name, value in move.latents.items()}
    chosen = Score(*(_choose(accepted, new, old) for new, old in zip(score, state.score, strict=True)))
    worse = proposed & (score.log_joint < state.score.log_joint)
    return State(latents, chosen), Info(proposed, accepted, worse, move.kind, temperature)


def log_joint_ratio(new: Score, old: Score, temperature: float | Tensor) -> Tensor:
    """How much likelier new latents are than old ones when the likelihood is tempered: ``[C, G]``."""
    return (new.log_likelihood - old.log_likelihood) / temperature + (new.log_prior - old.log_prior)


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.reshape(accepted.shape + (1,) * (new.ndim - accepted.ndim)), new, old)


def _differ(new: Latents, old: Latents) -> Tensor:
    different = [(value != old[name]).reshape(*value.shape[:2], -1).any(-1) for name, value in new.items()]
    return torch.stack(different).any(0)
