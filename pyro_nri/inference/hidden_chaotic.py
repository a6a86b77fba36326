"""Hidden entities where forces change fast: paths near the laws, from the first guess on.

A path that runs free goes astray at the first close encounter (:mod:`pyro_nri.model.hidden_motion`), so its first frame
is all that is believed of a guess. From there paths are followed (:mod:`hidden_smoothing`); with its path a hidden
entity is one like any other, and edges have the posterior of a scene in which everything was recorded. Numbers of
hidden entities are weighed by how likely such paths make the recorded ones, the least probable by a rough path alone.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.exact import ExactPosterior, enumerate_posterior
from pyro_nri.inference.hidden import MIN_WINDOW, WINDOWS, HiddenTarget
from pyro_nri.inference.hidden_edges import structure_from
from pyro_nri.inference.hidden_scan import feels_everything, scan
from pyro_nri.inference.hidden_search import guess
from pyro_nri.inference.hidden_smoothing import best_paths, climb, draw_paths, improve, log_integral
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
#: What a rough path may gain in log evidence for each entity and frame when it is improved: breaks are mended.
MOST_GAIN = 10.0


class RoughPath(NamedTuple):
    """The best path of some guesses in each of B scenes, raw evidence of their number of hidden entities.

    Attributes:
        motion: under the structures that go with it.
        path: ``[B, T, N_hidden, D]``, scaled units.
        log_evidence: log joint density of recorded frames and structure, paths integrated out roughly, ``[B]``.
    """

    motion: HiddenMotion
    path: Tensor
    log_evidence: Tensor


class ChaoticDraws(NamedTuple):
    """Draws of hidden entities that move near the laws: C chains with S draws of paths each, raw units.

    Attributes:
        path: ``[C, S, B, T, N_hidden, D]``.
        edge_type: long ``[C, S, B, E]``, hidden entities last.
        log_joint: of paths and structures, ``[C, S, B]``.
        accepted: bool ``[C, S, B]``.
        log_marginal: log-likelihood of recorded frames, ``[B]``.
        log_error: standard error of it, ``[B]``.
    """

    path: Tensor
    edge_type: Tensor
    log_joint: Tensor
    accepted: Tensor
    log_marginal: Tensor
    log_error: Tensor


def log_marginal_without(model: SceneModel, scenes: Scenes) -> Tensor:
    """Log-likelihood ``[B]`` of recorded frames if nothing is hidden: what paths near the laws are weighed against."""
    nothing = torch.zeros(scenes.num_scenes, scenes.num_frames, 0, scenes.state_size, dtype=torch.float64)
    prior = model.structure_prior(model.prepare(scenes))
    posterior = enumerate_posterior(model.likelihood(scenes), prior)
    likely = posterior.map_structure
    density = HiddenMotion(model, scenes, 0, likely).refined(FINER).log_density(nothing)
    return density + _over_structures(prior.log_prob(likely), posterior, likely)


def rough_path(
    model: SceneModel, scenes: Scenes, target: HiddenTarget, structure: Tensor | None, stream: Stream
) -> RoughPath:
    """Guess at hidden entities, and follow them through all frames.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes without their hidden entities.
        target: of paths that run free, of the same scenes.
        structure: known structures, long ``[B, E]``, or None.
        stream: of one chain.
    """
    number = target.likelihood.num_hidden
    state, tried = _starts(target, stream)
    row = torch.arange(scenes.num_scenes).repeat(len(state))
    motion = HiddenMotion(model, scenes, number, tried.flatten(0, 1), row=row)
    path, kept = best_paths(motion, state.flatten(0, 1), scenes.num_scenes)
    motion = motion[kept]
    evidence = log_integral(motion, path)
    if structure is None:
        wide = with_hidden(scenes, number)
        evidence = evidence + model.structure_prior(model.prepare(wide)).log_prob(motion.structure).double()
    return RoughPath(motion, path, evidence)


def hopeful(log_evidence: Tensor, num_terms: Tensor) -> Tensor:
    """Which numbers of hidden entities may be the most probable once their paths are improved, bool ``[M, B]``.

    Args:
        log_evidence: rough, of each number, ``[M, B]``.
        num_terms: transitions times recorded entities, ``[B]``.
    """
    return log_evidence >= log_evidence.amax(0) - MOST_GAIN * num_terms


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
    edge_type, log_joint = motion.structure.expand(*drawn.log_density.shape, -1), drawn.log_density
    log_marginal = drawn.integral.log_value
    if structure is None:
        posterior = _edges_given(model, wide, motion, path)
        edge_type = torch.stack([posterior.sample(stream.child("edges"), step) for step in range(num_draws)], 1)
        each = torch.stack([posterior.log_prob(part) for part in edge_type.unbind(1)], 1)
        marginal_density = _over_structures(log_prior(motion.structure), posterior, motion.structure)
        log_joint = log_joint + marginal_density + each
        log_marginal = log_marginal + marginal_density + math.lgamma(motion.num_hidden + 1)  # numbered in any order
    raw = drawn.path * motion.scale + motion.offset
    return ChaoticDraws(raw, edge_type, log_joint, drawn.accepted, log_marginal, drawn.integral.log_error)


def _over_structures(log_prior: Tensor, posterior: ExactPosterior, structure: Tensor) -> Tensor:
    """Prior over posterior of structures ``[B, E]``, log: times a density given them it is one of all structures."""
    return log_prior.double() - posterior.log_prob(structure[None])[0]


def _starts(target: HiddenTarget, stream: Stream) -> tuple[Tensor, Tensor]:
    """States ``[M, B, N_hidden, D]``, and the structures ``[M, B, E]`` that the first frames make most probable."""
    likelihood = target.likelihood.searched()
    looked, number = feels_everything(likelihood), NUM_GUESSES[likelihood.num_hidden - 1]
    state, into = scan(likelihood, stream, number) if looked else guess(likelihood, number)
    into = target.rest.project(into)
    first = target.first_frames(max(MIN_WINDOW, round(WINDOWS[0] * likelihood.target.shape[1])))
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
