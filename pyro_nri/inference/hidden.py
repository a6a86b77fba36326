"""Posterior of hidden entities: their initial state, their edges and all others, and how many there are.

Modes are found by guesses (:mod:`hidden_search`, or :mod:`hidden_scan` where every entity feels every other one) and
least squares, under the structures that go with them. A mixture
of Laplace approximations around them, with the prior as one more component, proposes states and edges into hidden
entities together; the edges into observed entities are summed out, and drawn afterwards. Draws are those of an
independence Metropolis chain; its importance weights give the log marginal.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.gauss_newton import Mode
from pyro_nri.inference.hidden_edges import AbstractRest, make_rest, structure_from
from pyro_nri.inference.hidden_scan import feels_everything, scan
from pyro_nri.inference.hidden_search import NUM_GUESSES, guess, refine
from pyro_nri.inference.laplace import Integral, LaplaceMixture, integrate, mixture_of
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes import edges
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes

#: Rounds of most probable edges and least squares from each guess over all frames.
NUM_ROUNDS = 2
#: Shares of the frames over which guesses are followed before, and frames at least.
WINDOWS, MIN_WINDOW = (1 / 3, 2 / 3), 6
#: How often every single edge into the best mode's hidden entities is changed.
NUM_SWEEPS = 2
#: Guesses that are followed to the end, after a first round of all.
NUM_CLIMBED = 6
#: Modes that the proposal keeps for each scene, those of single changed edges included.
NUM_MODES = 6
#: Starts from prior draws beside the guesses.
NUM_PRIOR_STARTS = 4
#: Prior draws that say what the prior is worth.
NUM_WORTH = 16
#: How much wider the second bump of each mode is.
WIDE = 4.0
#: Bounds of the proposal's share of prior draws.
LEAST_PRIOR_SHARE, MOST_PRIOR_SHARE = 0.05, 0.9
#: Rows of states that are evaluated at once.
CHUNK_ROWS = 4096


class Candidates(NamedTuple):
    """M modes in each of B scenes.

    Attributes:
        state: ``[M, B, N_hidden, D]``, scaled units.
        into_hidden: long ``[M, B, N_hidden, L]``.
        log_density: log joint density with the rest summed out, ``[M, B]``.
        precision: ``[M, B, P, P]``.
    """

    state: Tensor
    into_hidden: Tensor
    log_density: Tensor
    precision: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """Laplace's approximation of the log integral around each mode, ``[M, B]``; -inf where it fails."""
        return Mode(self.state.flatten(-2), self.log_density, self.precision).log_evidence


@dataclass(frozen=True)
class HiddenTarget:
    """Log joint density of hidden states and the edges into them, the rest summed out.

    Attributes:
        likelihood: of B scenes.
        rest: sums over the other edges.
    """

    likelihood: HiddenLikelihood
    rest: AbstractRest

    def log_density(self, state: Tensor, into_hidden: Tensor) -> Tensor:
        """``[*batch, B]`` of states ``[*batch, B, N_hidden, D]`` and edges ``[*batch, B, N_hidden, L]``."""
        table = self.likelihood.table(self.likelihood.path(state, into_hidden))
        return self.finish(table, state, into_hidden)

    def finish(self, table: Tensor, state: Tensor, into_hidden: Tensor) -> Tensor:
        """As :meth:`log_density`, where the tables are known."""
        prior = -(state.square() + torch.log(state.new_tensor(2 * torch.pi))).sum((-1, -2)) / 2
        total = self.rest.log_sum(table, into_hidden) + prior
        return torch.where(total.isfinite(), total, torch.full_like(total, -torch.inf))

    def first_frames(self, num_transitions: int) -> "HiddenTarget":
        """The target of the first frames alone."""
        return HiddenTarget(self.likelihood.first_frames(num_transitions), self.rest)

    def climb(self, state: Tensor, into_hidden: Tensor, *, num_rounds: int = NUM_ROUNDS) -> Candidates:
        """Modes near given states under given edges into hidden entities; ``[M, B, ...]`` each."""
        for _ in range(num_rounds):
            table = self.likelihood.table(self.likelihood.path(state, into_hidden))
            incoming = self.rest.most_likely(table, into_hidden)
            mode = refine(self.likelihood, state, into_hidden, incoming, num_steps=4)
            state = mode.value.view_as(state)
        return Candidates(state, into_hidden, self.log_density(state, into_hidden), mode.precision)


def hidden_target(model: SceneModel, scenes: Scenes, number: int, structure: Tensor | None) -> HiddenTarget:
    """The posterior of so many hidden entities beside recorded ones, of all edges or under a known structure."""
    present = with_hidden(scenes, number).entity_mask
    prior = model.prior(edges.from_matrix(present[:, :, None] & present[:, None, :]))
    return HiddenTarget(HiddenLikelihood(model, scenes, number), make_rest(prior, scenes.num_entities, structure))


def search(
    coarse: HiddenTarget,
    fine: HiddenTarget,
    stream: Stream,
    *,
    num_guesses: int = NUM_GUESSES,
    num_starts: int = NUM_PRIOR_STARTS,
) -> Candidates:
    """The modes of hidden entities in each scene, and those of edges into them changed one by one, best first.

    Args:
        coarse: target with few steps in a frame, to search on.
        fine: target whose modes are wanted.
        stream: of one chain; for starts from the prior.
        num_guesses: guesses that are followed up in each scene.
        num_starts: starts from prior draws beside them.
    """
    likelihood = coarse.likelihood
    starts = [prior_starts(coarse, stream, num_starts)] if num_starts else []
    if num_guesses:
        looked = feels_everything(likelihood)
        starts.insert(0, scan(likelihood, stream, num_guesses) if looked else guess(likelihood, num_guesses))
    state, into = (torch.cat(parts) for parts in zip(*starts, strict=True))
    into = coarse.rest.project(into)
    # First frames first: over a long window a path that starts a little wrong ends far off, and nothing points back.
    for share in WINDOWS:
        window = coarse.first_frames(max(MIN_WINDOW, round(share * likelihood.target.shape[1])))
        found = window.climb(state, into, num_rounds=1)
        state = found.state
    found = _keep(found, _distinct(found, found.log_evidence), NUM_CLIMBED)
    found = coarse.climb(found.state, found.into_hidden, num_rounds=NUM_ROUNDS)
    for _ in range(NUM_SWEEPS if coarse.rest.is_open else 0):
        best = _keep(found, _distinct(found, found.log_evidence), 1)
        changed = coarse.climb(*_neighbours(best, coarse.rest, likelihood.num_edge_types), num_rounds=1)
        found = Candidates(*(torch.cat(parts) for parts in zip(found, changed, strict=True)))
    found = _keep(found, _distinct(found, found.log_evidence), NUM_MODES)
    found = fine.climb(found.state, found.into_hidden, num_rounds=1)
    return _keep(found, _distinct(found, found.log_evidence), NUM_MODES)


def prior_starts(target: HiddenTarget, stream: Stream, number: int) -> tuple[Tensor, Tensor]:
    """States ``[M, B, N_hidden, D]`` and edges into hidden entities drawn from the prior."""
    likelihood = target.likelihood
    size = likelihood.num_hidden * likelihood.dynamics.state_size
    total = likelihood.num_observed + likelihood.num_hidden
    states, edges_into = [], []
    for start in range(number):
        uniform = stream.child("prior starts").uniform(start, 2 * size + total * (total - 1))[0]  # [B, ...]
        normal = normals(uniform[:, : 2 * size])
        states.append(normal.view(-1, likelihood.num_hidden, likelihood.dynamics.state_size))
        edges_into.append(target.rest.draw_into(uniform[:, 2 * size :]))
    return torch.stack(states), torch.stack(edges_into)


def _distinct(found: Candidates, value: Tensor) -> Tensor:
    """``value`` ``[M, B]`` of each mode, -inf for one that another, better one repeats."""
    flat = found.into_hidden.flatten(-2)
    state = found.state.flatten(-2)
    same = (flat[:, None] == flat[None]).all(-1)
    apart = state[:, None] - state[None]  # [M, M, B, P]
    near = torch.einsum("mnbp,mbpq,mnbq->mnb", apart, found.precision, apart) < 4.0 * state.shape[-1]
    number = torch.arange(len(value))[:, None]
    better = (value[None] > value[:, None]) | ((value[None] == value[:, None]) & (number > number.T)[..., None])
    repeated = (same & near & better & value[None].isfinite()).any(1)
    return torch.where(repeated, -torch.inf, value)


def _keep(found: Candidates, value: Tensor, number: int) -> Candidates:
    """The ``number`` modes of each scene with the highest value, best first; density -inf where value is."""
    order = value.argsort(0, descending=True)[:number]  # [M', B]
    scene = torch.arange(value.shape[1])
    picked = Candidates(*(part[order, scene] for part in found))
    density = torch.where(value[order, scene].isfinite(), picked.log_density, -torch.inf)
    return picked._replace(log_density=density)


def _neighbours(found: Candidates, rest: AbstractRest, num_types: int) -> tuple[Tensor, Tensor]:
    """Every mode with one of the edges into its hidden entities changed: states and edges."""
    states, changed = [], []
    num_hidden, num_senders = found.into_hidden.shape[-2:]
    for hidden in range(num_hidden):
        for sender in range(num_senders):
            for step in range(1, num_types):
                into = found.into_hidden.clone()
                into[..., hidden, sender] = (into[..., hidden, sender] + step) % num_types
                states.append(found.state)
                changed.append(into)
    return torch.cat(states), rest.project(torch.cat(changed))


class Sampled(NamedTuple):
    """Draws of C chains with S draws each.

    Attributes:
        hidden_state: ``[C, S, B, N_hidden, D]``, scaled units.
        edge_type: long ``[C, S, B, E]``, all entities, hidden ones last.
        log_joint: of state and whole structure, ``[C, S, B]``.
        accepted: bool ``[C, S, B]``.
        integral: log marginal likelihood of the scenes and how well it is known.
        num_evaluations: likelihood evaluations for each chain and scene.
    """

    hidden_state: Tensor
    edge_type: Tensor
    log_joint: Tensor
    accepted: Tensor
    integral: Integral
    num_evaluations: int


def proposal_of(target: HiddenTarget, found: Candidates, stream: Stream) -> LaplaceMixture:
    """The proposal around modes ``[M, B]``; its share of prior draws follows what prior draws are worth."""
    evidence = found.log_evidence
    starts = prior_starts(target, stream.child("worth of the prior"), NUM_WORTH)
    worth = target.log_density(*starts) + starts[0].square().sum((-1, -2)) / 2
    size = starts[0][0, 0].numel()
    worth = worth + size / 2 * torch.log(worth.new_tensor(2 * torch.pi)) - target.rest.log_prior_into(starts[1])
    share = (worth.logsumexp(0) - math.log(NUM_WORTH) - evidence.logsumexp(0)).sigmoid()
    share = torch.where(share.isnan(), torch.ones_like(share), share).clamp(LEAST_PRIOR_SHARE, MOST_PRIOR_SHARE)
    value = found.state.flatten(-2).transpose(0, 1)
    # Each mode twice, narrow and wide: heavy-tailed noise may make a mode wider than its curvature says.
    precision = found.precision.transpose(0, 1)
    value, precision = torch.cat([value, value], 1), torch.cat([precision, precision / WIDE**2], 1)
    evidence = torch.cat([evidence, evidence - 2.0])
    mode = Mode(value, evidence.T, precision)
    # Weights as even as the evidences allow: a mode that Laplace undervalues must still be proposed.
    weight = torch.where(evidence.T.isfinite(), evidence.T / 2, -torch.inf)
    weight = torch.maximum(weight, weight.amax(-1, keepdim=True) - 6.0).where(evidence.T.isfinite(), -torch.inf)
    zero, one = value.new_zeros(size), value.new_ones(size)
    return mixture_of(mode, weight, zero, one, share)


def sample(
    target: HiddenTarget,
    found: Candidates,
    stream: Stream,
    *,
    num_draws: int,
    num_warmup: int = 0,
) -> Sampled:
    """Draw hidden states and structures: independence Metropolis with the mixture around known modes.

    Args:
        target: of B scenes.
        found: their modes.
        stream: of C chains.
        num_draws: S.
        num_warmup: first steps that are not kept.
    """
    mixture = proposal_of(target, found, stream.one())
    likelihood, rest = target.likelihood, target.rest
    num_observed, num_hidden = likelihood.num_observed, likelihood.num_hidden
    num_edges = (num_observed + num_hidden) * (num_observed + num_hidden - 1)
    num_bumps = mixture.centre.shape[1]
    bump_into = torch.cat([found.into_hidden] * 2).transpose(0, 1)  # [B, 2 M, N_hidden, L]
    scene = torch.arange(len(bump_into))
    steps = num_warmup + num_draws
    size = max(1, CHUNK_ROWS // (len(scene) * stream.num_chains))
    weights, states, structures, joints = [], [], [], []
    for start in range(0, steps, size):
        numbers = range(start, min(start + size, steps))
        slots = mixture.num_slots + num_edges + num_observed
        uniform = torch.stack([stream.child("hidden").uniform(step, slots) for step in numbers], 1)  # [C, s, B, ...]
        value, bump = mixture.sample(uniform[..., : mixture.num_slots])
        from_prior = rest.draw_into(uniform[..., mixture.num_slots : mixture.num_slots + num_edges])
        from_bump = bump_into[scene, bump.clamp(max=num_bumps - 1)]
        into = torch.where((bump == num_bumps)[..., None, None], from_prior, from_bump)
        state = value.unflatten(-1, (num_hidden, -1))
        table = likelihood.table(likelihood.path(state, into))
        density = target.finish(table, state, into)
        possible = (into[..., None, :, :] == bump_into).all(-1).all(-1)
        weights.append(density - mixture.log_prob(value, possible, rest.log_prior_into(into)))
        incoming = rest.draw(table, into, uniform[..., -num_observed:])
        states.append(state)
        structures.append(structure_from(incoming, into))
        joints.append(rest.log_weight(table, incoming, into) + density - rest.log_sum(table, into))
    weight, state = torch.cat(weights, 1), torch.cat(states, 1)
    structure, joint = torch.cat(structures, 1), torch.cat(joints, 1)
    index, accepted = _metropolis(weight, stream.child("accept"))
    chain = torch.arange(stream.num_chains)[:, None, None]
    kept = index[:, num_warmup:]
    return Sampled(
        state[chain, kept, scene],
        structure[chain, kept, scene],
        joint[chain, kept, scene],
        accepted[:, num_warmup:],
        integrate(weight.flatten(0, 1)),
        steps,
    )


def _metropolis(weight: Tensor, stream: Stream) -> tuple[Tensor, Tensor]:
    """Which proposal each chain holds after each step ``[C, S, B]``, and whether the step moved."""
    current = torch.zeros_like(weight[:, 0], dtype=torch.long)
    held, moved = [current], [torch.ones_like(current, dtype=torch.bool)]
    value = weight[:, 0]
    for step in range(1, weight.shape[1]):
        accept = stream.uniform(step, 1)[..., 0].log() < weight[:, step] - value
        value = torch.where(accept, weight[:, step], value)
        current = torch.where(accept, step, current)
        held.append(current)
        moved.append(accept)
    return torch.stack(held, 1), torch.stack(moved, 1)
