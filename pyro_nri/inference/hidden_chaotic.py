"""Hidden entities where forces change fast: paths near the laws, from the first guess on.

A path that runs free goes astray at the first close encounter (:mod:`pyro_nri.model.hidden_motion`), so its first frame
is all that is believed of a guess. From there paths are followed (:mod:`hidden_smoothing`); with its path a hidden
entity is one like any other, and edges have the posterior of a scene in which everything was recorded. Numbers of
hidden entities are weighed by how likely such paths make the recorded ones; those that leave frames unexplained, while
another one does not, by a rough path alone.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.exact import ExactPosterior, enumerate_posterior
from pyro_nri.inference.hidden import MIN_WINDOW, WINDOWS, hidden_target
from pyro_nri.inference.hidden_draws import draw_paths
from pyro_nri.inference.hidden_edges import structure_from
from pyro_nri.inference.hidden_integral import integrate_paths, log_integral
from pyro_nri.inference.hidden_scan import LONGER, feels_everything, scan
from pyro_nri.inference.hidden_search import guess
from pyro_nri.inference.hidden_smoothing import best_paths, climb, improve
from pyro_nri.inference.streams import Stream
from pyro_nri.model.hidden_motion import HiddenMotion
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes

#: Sub-steps in each of those of the dynamics, for draws: the noise was fitted to the errors of the latter, so that what
#: coarse steps do wrong again and again would count as evidence.
FINER = 5
#: Steps from the path of coarse steps in time to that of fine ones.
NUM_FINE_STEPS = 16
#: Rounds of edges and paths.
NUM_ROUNDS = 2
#: Guesses at one hidden entity, and at two, that are followed through the first frames of each scene.
NUM_GUESSES = (8, 24)
#: Where else guesses begin, so long as no number of hidden entities explains a scene: shares of its frames.
ELSEWHERE = (1.0, 0.5, 0.75, 0.25)
#: Share of proposed paths that is accepted where the particles' error is believed: below, the normal distribution that
#: both start from is none of the path's.
LEAST_ACCEPTED = 0.1
#: Nats for each transition and entity by which explained frames are less likely than exact predictions, at most. Noise
#: of the learned size makes it two or three; a hidden charge that is left out, 40 to 80.
MOST_UNEXPLAINED = 10.0


class RoughPath(NamedTuple):
    """The best path of some guesses in each of B scenes, raw evidence of their number of hidden entities.

    Attributes:
        motion: under the structures that go with it.
        path: ``[B, T, N_hidden, D]``, scaled units.
        log_evidence: log joint density of recorded frames and structure, paths integrated out roughly, ``[B]``; of no
            hidden entity, log-likelihood of recorded frames.
        unexplained: nats for each transition and entity, ``[B]``: :meth:`HiddenMotion.unexplained`.
    """

    motion: HiddenMotion
    path: Tensor
    log_evidence: Tensor
    unexplained: Tensor

    def of(self, scenes: Tensor) -> "RoughPath":
        """Those of some scenes, long ``[B']``."""
        return RoughPath(self.motion[scenes], self.path[scenes], self.log_evidence[scenes], self.unexplained[scenes])

    def or_better(self, scenes: Tensor, other: "RoughPath") -> "RoughPath":
        """The same, or the other one's of those scenes, long ``[B']``, where its evidence is higher."""
        better = other.log_evidence > self.log_evidence[scenes]
        into, source = scenes[better], better.nonzero()[:, 0]

        def put(mine: Tensor, others: Tensor) -> Tensor:
            return mine.index_copy(0, into, others[source])

        structure = put(self.motion.structure, other.motion.structure)
        return RoughPath(
            self.motion.under(structure),
            put(self.path, other.path),
            put(self.log_evidence, other.log_evidence),
            put(self.unexplained, other.unexplained),
        )


class ChaoticDraws(NamedTuple):
    """Draws of hidden entities that move near the laws: C chains with S draws of paths each, raw units.

    Attributes:
        path: ``[C, S, B, T, N_hidden, D]``.
        edge_type: long ``[C, S, B, E]``, hidden entities last.
        log_joint: of paths and structures, ``[C, S, B]``.
        accepted: bool ``[C, S, B]``.
        log_marginal: log-likelihood of recorded frames, ``[B]``.
        log_error: standard error of it, ``[B]``; inf where hardly a proposed path is accepted.
    """

    path: Tensor
    edge_type: Tensor
    log_joint: Tensor
    accepted: Tensor
    log_marginal: Tensor
    log_error: Tensor


def rough_paths(
    model: SceneModel, scenes: Scenes, numbers: Sequence[int], structure: Tensor | None, stream: Stream
) -> list[RoughPath]:
    """Guess at each number of hidden entities, and follow them through all frames.

    What lies far from everything in the first frames is found where it does not: so long as no number explains a scene,
    guesses begin at other frames.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes without their hidden entities.
        numbers: of hidden entities, M.
        structure: known structures, long ``[B, E]``, or None.
        stream: of any chains.
    """

    def looked(number: int, some: Tensor, frame: int) -> RoughPath:
        if number == 0:
            return _nothing_hidden(model, scenes[some])
        here = replace(stream.child(f"{number} hidden"), keys=stream.keys[some]).one()
        here = here.child(f"from frame {frame}") if frame else here
        return _rough_path(model, scenes[some], number, None if structure is None else structure[some], here, frame)

    every = torch.arange(scenes.num_scenes)
    found = [looked(number, every, 0) for number in numbers]
    last = max(0, scenes.num_frames - 1 - LONGER[-1][0])
    for frame in dict.fromkeys(round(share * last) for share in ELSEWHERE):
        lost = (torch.stack([each.unexplained for each in found]) > MOST_UNEXPLAINED).all(0).nonzero()[:, 0]
        if frame == 0 or len(lost) == 0:
            break
        for place, number in enumerate(numbers):
            if number:
                found[place] = found[place].or_better(lost, looked(number, lost, frame))
    return found


def _nothing_hidden(model: SceneModel, scenes: Scenes) -> RoughPath:
    """What paths near the laws are weighed against; its evidence is not rough."""
    nothing = torch.zeros(scenes.num_scenes, scenes.num_frames, 0, scenes.state_size, dtype=torch.float64)
    prior = model.structure_prior(model.prepare(scenes))
    posterior = enumerate_posterior(model.likelihood(scenes), prior)
    likely = posterior.map_structure
    motion = HiddenMotion(model, scenes, 0, likely).refined(FINER)
    evidence = motion.log_density(nothing) + _over_structures(prior.log_prob(likely), posterior, likely)
    return RoughPath(motion, nothing, evidence, motion.unexplained(nothing))


def _rough_path(
    model: SceneModel, scenes: Scenes, number: int, structure: Tensor | None, stream: Stream, frame: int
) -> RoughPath:
    """The best of some guesses at a frame."""
    state, tried = _starts(model, scenes, number, structure, stream, frame)
    row = torch.arange(scenes.num_scenes).repeat(len(state))
    motion = HiddenMotion(model, scenes, number, tried.flatten(0, 1), row=row)
    path, kept = best_paths(motion, state.flatten(0, 1), scenes.num_scenes, frame)
    motion = motion[kept]
    fine = motion.refined(FINER)
    path, _ = climb(fine, path, num_steps=NUM_FINE_STEPS)
    evidence = log_integral(fine, path)
    if structure is None:
        wide = with_hidden(scenes, number)
        evidence = evidence + model.structure_prior(model.prepare(wide)).log_prob(motion.structure).double()
    return RoughPath(motion, path, evidence, fine.unexplained(path))


def hopeful(log_evidence: Tensor, unexplained: Tensor) -> Tensor:
    """Which numbers of hidden entities may be the most probable once their paths are improved, bool ``[M, B]``.

    A path that leaves frames unexplained may be far from the best; it is given up only if another number explains them.

    Args:
        log_evidence: rough, of each number, ``[M, B]``.
        unexplained: nats for each transition and entity, ``[M, B]``.
    """
    explains = unexplained <= MOST_UNEXPLAINED
    return explains | (log_evidence >= torch.where(explains, log_evidence, -torch.inf).amax(0))


def sample_chaotic(
    model: SceneModel,
    scenes: Scenes,
    rough: RoughPath,
    structure: Tensor | None,
    stream: Stream,
    *,
    num_draws: int,
) -> ChaoticDraws:
    """Draw paths of hidden entities and the edges of all.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes without their hidden entities.
        rough: paths of the same scenes.
        structure: known structures, long ``[B, E]``, or None.
        stream: of C chains.
        num_draws: S.
    """
    motion = rough.motion
    path, density = improve(motion, rough.path)
    if structure is None:
        wide = with_hidden(scenes, motion.num_hidden)
        log_prior = model.structure_prior(model.prepare(wide)).log_prob
        for _ in range(NUM_ROUNDS):
            other = _edges_given(model, wide, motion, path).map_structure
            row = (other != motion.structure).any(-1).nonzero()[:, 0]
            if len(row) == 0:
                break
            new_path, new = improve(motion.under(other)[row], path[row])
            gain = new - density[row] + (log_prior(other) - log_prior(motion.structure)).double()[row]
            row, new_path, new = row[gain > 0], new_path[gain > 0], new[gain > 0]
            motion = motion.under(motion.structure.index_copy(0, row, other[row]))
            path, density = path.index_copy(0, row, new_path), density.index_copy(0, row, new)
    motion = motion.refined(FINER)
    path, _ = climb(motion, path, num_steps=NUM_FINE_STEPS)
    drawn = draw_paths(motion, path, stream, num_draws=num_draws)
    integral = integrate_paths(motion, path, stream)
    edge_type, log_joint = motion.structure.expand(*drawn.log_density.shape, -1), drawn.log_density
    log_marginal = integral.log_value
    if structure is None:
        posterior = _edges_given(model, wide, motion, path)
        edge_type = torch.stack([posterior.sample(stream.child("edges"), step) for step in range(num_draws)], 1)
        each = torch.stack([posterior.log_prob(part) for part in edge_type.unbind(1)], 1)
        marginal_density = _over_structures(log_prior(motion.structure), posterior, motion.structure)
        log_joint = log_joint + marginal_density + each
        log_marginal = log_marginal + marginal_density + math.lgamma(motion.num_hidden + 1)  # numbered in any order
    raw = drawn.path * motion.scale + motion.offset
    moves = drawn.accepted.double().mean((0, 1)) >= LEAST_ACCEPTED
    log_error = torch.where(moves, integral.log_error, torch.inf)
    return ChaoticDraws(raw, edge_type, log_joint, drawn.accepted, log_marginal, log_error)


def _over_structures(log_prior: Tensor, posterior: ExactPosterior, structure: Tensor) -> Tensor:
    """Prior over posterior of structures ``[B, E]``, log: times a density given them it is one of all structures."""
    return log_prior.double() - posterior.log_prob(structure[None])[0]


def _starts(
    model: SceneModel, scenes: Scenes, number: int, structure: Tensor | None, stream: Stream, frame: int
) -> tuple[Tensor, Tensor]:
    """States ``[M, B, N_hidden, D]`` at a frame, and the structures ``[M, B, E]`` that the next make most probable."""
    target = hidden_target(model, scenes.frames(frame), number, structure)
    likelihood, num_guesses = target.likelihood.searched(), NUM_GUESSES[number - 1]
    looked = feels_everything(likelihood)
    state, into = scan(likelihood, stream, num_guesses) if looked else guess(likelihood, num_guesses)
    into = target.rest.project(into)
    first = target.first_frames(max(MIN_WINDOW, round(WINDOWS[0] * (scenes.num_frames - 1))))
    if not looked:  # a scan has led its guesses to the data
        state = first.climb(state, into, num_rounds=1).state
    table = first.likelihood.table(first.likelihood.path(state, into))
    return state, structure_from(target.rest.most_likely(table, into), into)


def _edges_given(model: SceneModel, wide: Scenes, motion: HiddenMotion, path: Tensor) -> ExactPosterior:
    """Posterior of the structures of scenes as if paths ``[B, T, N_hidden, D]`` of the hidden were recorded."""
    hidden = path * motion.scale + motion.offset
    num_observed = wide.num_entities - hidden.shape[-2]
    trajectory = torch.cat([wide.trajectory[:, :, :num_observed].double(), hidden], -2)
    seen = wide.entity_mask[:, None].expand(wide.observation_mask.shape)
    whole = replace(wide, trajectory=trajectory, observation_mask=seen)
    return enumerate_posterior(model.likelihood(whole), model.structure_prior(model.prepare(whole)))
