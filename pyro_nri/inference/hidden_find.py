"""A quick answer to where something unseen is: the best that a search finds, without a posterior."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.hidden import NUM_PRIOR_STARTS, HiddenTarget, hidden_target, search
from pyro_nri.inference.hidden_edges import structure_from
from pyro_nri.inference.hidden_rough import FINER, finish, rough_paths
from pyro_nri.inference.hidden_run import CHUNK_SCENES, checked_numbers
from pyro_nri.inference.hidden_search import NUM_GUESSES
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.hidden import is_stiff
from pyro_nri.model.hidden_motion import MOST_UNEXPLAINED
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes


class FoundHidden(NamedTuple):
    """Best guesses at hidden entities and all edges, one for each of B scenes.

    Attributes:
        state: of the hidden entities at frame 0, ``[B, N_hidden, D]``, raw units.
        path: their states in all frames, ``[B, N_hidden, T, D]``.
        edge_type: of all entities, hidden ones last, long ``[B, E]``.
        log_joint: log joint density of state and structure, ``[B]``; where forces change fast, of the whole path.
    """

    state: Tensor
    path: Tensor
    edge_type: Tensor
    log_joint: Tensor


def find_hidden(
    model: SceneModel,
    scenes: Scenes,
    num_hidden: int = 1,
    *,
    structure: Tensor | None = None,
    num_guesses: int | None = None,
    num_starts: int = NUM_PRIOR_STARTS,
    seed: int,
) -> FoundHidden:
    """The most probable motion of hidden entities that a search finds: a quick answer that says nothing of its doubt.

    As the paper does it (section 5.2): candidates are improved and the best is kept. They come from what the motion
    of recorded entities leaves unexplained, a few from the prior, and are improved by least squares. Where forces
    change fast within a frame, they are followed by paths near the laws, as in :func:`infer_hidden`, and begin at other
    frames where they fail. Whether anything hidden acts at all is a question for :func:`infer_hidden`.

    Args:
        model: trained pair forces between particles; frozen here.
        scenes: B scenes, each with its own structure, every entity seen in every frame.
        num_hidden: 1 or 2 hidden entities in every scene.
        structure: known structures of all entities, hidden ones last, long ``[B, E]``.
        num_guesses: guesses that are followed up in each scene; default: 8, and 24 at two where forces change fast.
        num_starts: starts from prior draws beside them.
        seed: fixes all random numbers; results do not depend on which other scenes are searched beside.

    Raises:
        ValueError: as :func:`infer_hidden`, or there is nothing to start from.

    Example:
        >>> from pyro_nri.learning.checkpoint import load_checkpoint
        >>> from pyro_nri.scenes.simulate import simulate
        >>> springs, whole = load_checkpoint("data/models/springs5.pt"), simulate("springs", 1, seed=3)
        >>> recorded = Scenes.from_arrays(whole.trajectory[:, :, :4], time_step=whole.time_step)
        >>> found = find_hidden(springs.model, recorded, seed=0)
        >>> bool((found.path[0, 0] - whole.trajectory[0, :, 4]).abs().max() < 1e-3)
        True
    """
    model, scenes = model.on("cpu"), scenes.to(device="cpu")
    if num_hidden not in (1, 2):
        raise ValueError(f"num_hidden must be 1 or 2, found {num_hidden!r}")
    checked_numbers(model, scenes, num_hidden, structure)
    for name, value in (("num_guesses", num_guesses), ("num_starts", num_starts)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{name} must be a whole number, 0 or more, found {value!r}")
    if num_guesses == 0 == num_starts:
        raise ValueError("num_guesses and num_starts are both 0: there is nothing to start from")
    parts = []
    with torch.no_grad():
        for start in range(0, scenes.num_scenes, CHUNK_SCENES):
            some = slice(start, start + CHUNK_SCENES)
            part, known = scenes[some], None if structure is None else structure[some]
            stream = Stream(seed, keys(part.group_names), 1)
            answer = _near_laws if is_stiff(model.impulse_parts[0]) else _running_free
            parts.append(answer(model, part, num_hidden, known, stream, num_guesses, num_starts))
    return FoundHidden(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _running_free(
    model: SceneModel,
    scenes: Scenes,
    number: int,
    structure: Tensor | None,
    stream: Stream,
    num_guesses: int | None,
    num_starts: int,
) -> FoundHidden:
    """Paths that follow from their first frame."""
    fine = hidden_target(model, scenes, number, structure)
    coarse = HiddenTarget(fine.likelihood.searched(), fine.rest)
    count = NUM_GUESSES if num_guesses is None else num_guesses
    modes = search(coarse, fine, stream.child(f"{number} hidden"), num_guesses=count, num_starts=num_starts)
    best = modes.log_density.argmax(0)  # [B]; they come by their evidence
    scene = torch.arange(len(best))
    state, into = modes.state[best, scene], modes.into_hidden[best, scene]
    path = fine.likelihood.path(state, into)
    table = fine.likelihood.table(path)
    incoming = fine.rest.most_likely(table, into)
    weight = fine.rest.log_weight(table, incoming, into) - fine.rest.log_sum(table, into)
    raw = state * fine.likelihood.scale + fine.likelihood.offset
    density = fine.finish(table, state, into) + weight
    return FoundHidden(raw, path.state.transpose(-3, -2), structure_from(incoming, into), density)


def _near_laws(
    model: SceneModel,
    scenes: Scenes,
    number: int,
    structure: Tensor | None,
    stream: Stream,
    num_guesses: int | None,
    num_starts: int,
) -> FoundHidden:
    """Paths of which every frame lies near what the laws make of the one before."""
    (rough,) = rough_paths(model, scenes, (number,), structure, stream, num_guesses=num_guesses, num_starts=num_starts)
    path, likely = rough.path, rough.motion.structure
    row = (rough.unexplained <= MOST_UNEXPLAINED).nonzero()[:, 0]  # others would take long, for little
    if len(row):
        motion, found = finish(model, scenes[row], rough.of(row), None if structure is None else structure[row])
        path, likely = path.index_copy(0, row, found), likely.index_copy(0, row, motion.structure)
    motion = rough.motion.under(likely).refined(FINER)
    density = motion.log_density(path)
    if structure is None:
        prior = model.structure_prior(model.prepare(with_hidden(scenes, number)))
        density = density + prior.log_prob(motion.structure).double()
    raw = path * motion.scale + motion.offset
    return FoundHidden(raw[:, 0], raw.transpose(1, 2), motion.structure, density)
