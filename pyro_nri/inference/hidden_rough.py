"""The search for hidden entities where forces change fast: paths near the laws, from the first guess on.

A path that runs free goes astray at the first close encounter (:mod:`pyro_nri.model.hidden_motion`), so its first frame
is all that is believed of a guess. From there paths are followed (:mod:`hidden_smoothing`); with its path a hidden
entity is one like any other, and edges have the posterior of a scene in which everything was recorded.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.exact import ExactPosterior, enumerate_posterior
from pyro_nri.inference.hidden import MIN_WINDOW, WINDOWS, hidden_target, prior_starts
from pyro_nri.inference.hidden_edges import structure_from
from pyro_nri.inference.hidden_integral import log_integral
from pyro_nri.inference.hidden_scan import LONGER, feels_everything, scan
from pyro_nri.inference.hidden_search import guess
from pyro_nri.inference.hidden_smoothing import best_paths, climb, improve
from pyro_nri.inference.streams import Stream
from pyro_nri.model.hidden_motion import MOST_UNEXPLAINED, HiddenMotion
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
#: Frames that a guess at a motion needs.
MIN_FRAMES = 5
#: Where else guesses begin, so long as no number of hidden entities explains a scene: shares of its frames.
ELSEWHERE = (1.0, 0.5, 0.75, 0.25)


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


def rough_paths(
    model: SceneModel,
    scenes: Scenes,
    numbers: Sequence[int],
    structure: Tensor | None,
    stream: Stream,
    *,
    num_guesses: int | None = None,
    num_starts: int = 0,
) -> list[RoughPath]:
    """Guess at each number of hidden entities, and follow them through all frames.

    What lies far from everything in the first frames is found where it does not: so long as no number explains a scene,
    guesses begin at other frames, as far as enough of them follow.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes without their hidden entities.
        numbers: of hidden entities, M.
        structure: known structures, long ``[B, E]``, or None.
        stream: of any chains.
        num_guesses: guesses that are followed in each scene; default: :data:`NUM_GUESSES`.
        num_starts: starts from prior draws beside them.
    """

    def looked(number: int, some: Tensor, frame: int) -> RoughPath:
        if number == 0:
            return _nothing_hidden(model, scenes[some])
        here = replace(stream.child(f"{number} hidden"), keys=stream.keys[some]).one()
        here = here.child(f"from frame {frame}") if frame else here
        known = None if structure is None else structure[some]
        count = NUM_GUESSES[number - 1] if num_guesses is None else num_guesses
        state, tried = _starts(model, scenes[some], number, known, here, frame, count, num_starts)
        return _best_of(model, scenes[some], number, state, tried, frame, weigh_structures=known is None)

    every = torch.arange(scenes.num_scenes)
    found = [looked(number, every, 0) for number in numbers]
    last = max(scenes.num_frames - 1 - LONGER[-1][0], min(scenes.num_frames // 3, scenes.num_frames - MIN_FRAMES))
    for frame in dict.fromkeys(round(share * last) for share in ELSEWHERE):
        lost = (torch.stack([each.unexplained for each in found]) > MOST_UNEXPLAINED).all(0).nonzero()[:, 0]
        if len(lost) == 0:
            break
        if frame == 0:
            continue
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
    evidence = motion.log_density(nothing) + over_structures(prior.log_prob(likely), posterior, likely)
    return RoughPath(motion, nothing, evidence, motion.unexplained(nothing))


def _best_of(
    model: SceneModel,
    scenes: Scenes,
    number: int,
    state: Tensor,
    tried: Tensor,
    frame: int,
    *,
    weigh_structures: bool,
) -> RoughPath:
    """The best of some guesses at a frame: states ``[M, B, N_hidden, D]`` and structures ``[M, B, E]``."""
    row = torch.arange(scenes.num_scenes).repeat(len(state))
    motion = HiddenMotion(model, scenes, number, tried.flatten(0, 1), row=row)
    path, kept = best_paths(motion, state.flatten(0, 1), scenes.num_scenes, frame)
    motion = motion[kept]
    fine = motion.refined(FINER)
    path, _ = climb(fine, path, num_steps=NUM_FINE_STEPS)
    evidence = log_integral(fine, path)
    if weigh_structures:
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


def finish(
    model: SceneModel, scenes: Scenes, rough: RoughPath, structure: Tensor | None
) -> tuple[HiddenMotion, Tensor]:
    """Improve rough paths and the edges that go with them.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes without their hidden entities.
        rough: paths of the same scenes.
        structure: known structures, long ``[B, E]``, or None.

    Returns:
        Motion in fine steps under the structures that were found, and paths ``[B, T, N_hidden, D]``, scaled units.
    """
    motion = rough.motion
    path, density = improve(motion, rough.path)
    if structure is None:
        wide = with_hidden(scenes, motion.num_hidden)
        log_prior = model.structure_prior(model.prepare(wide)).log_prob
        for _ in range(NUM_ROUNDS):
            other = edges_given(model, wide, motion, path).map_structure
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
    return motion, path


def over_structures(log_prior: Tensor, posterior: ExactPosterior, structure: Tensor) -> Tensor:
    """Prior over posterior of structures ``[B, E]``, log: times a density given them it is one of all structures."""
    return log_prior.double() - posterior.log_prob(structure[None])[0]


def _starts(
    model: SceneModel,
    scenes: Scenes,
    number: int,
    structure: Tensor | None,
    stream: Stream,
    frame: int,
    num_guesses: int,
    num_starts: int,
) -> tuple[Tensor, Tensor]:
    """States ``[M, B, N_hidden, D]`` at a frame, and the structures ``[M, B, E]`` that the next make most probable."""
    target = hidden_target(model, scenes.frames(frame), number, structure)
    likelihood = target.likelihood.searched()
    first = target.first_frames(max(MIN_WINDOW, round(WINDOWS[0] * (scenes.num_frames - 1))))
    looked = feels_everything(likelihood)
    states, edges_into = [], []
    if num_guesses:
        state, into = scan(likelihood, stream, num_guesses) if looked else guess(likelihood, num_guesses)
        into = target.rest.project(into)
        # A scan has led its guesses to the data.
        states.append(state if looked else first.climb(state, into, num_rounds=1).state)
        edges_into.append(into)
    if num_starts:
        state, into = prior_starts(target, stream, num_starts)
        states.append(first.climb(state, into, num_rounds=1).state)
        edges_into.append(into)
    state, into = torch.cat(states), torch.cat(edges_into)
    table = first.likelihood.table(first.likelihood.path(state, into))
    return state, structure_from(target.rest.most_likely(table, into), into)


def edges_given(model: SceneModel, wide: Scenes, motion: HiddenMotion, path: Tensor) -> ExactPosterior:
    """Posterior of the structures of scenes as if paths ``[B, T, N_hidden, D]`` of the hidden were recorded."""
    hidden = path * motion.scale + motion.offset
    num_observed = wide.num_entities - hidden.shape[-2]
    trajectory = torch.cat([wide.trajectory[:, :, :num_observed].double(), hidden], -2)
    seen = wide.entity_mask[:, None].expand(wide.observation_mask.shape)
    whole = replace(wide, trajectory=trajectory, observation_mask=seen)
    return enumerate_posterior(model.likelihood(whole), model.structure_prior(model.prepare(whole)))
