"""A quick answer to where something unseen is: the best that a search finds, without a posterior."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.hidden import NUM_PRIOR_STARTS, HiddenTarget, hidden_target, search
from pyro_nri.inference.hidden_edges import structure_from
from pyro_nri.inference.hidden_run import CHUNK_SCENES, checked_numbers
from pyro_nri.inference.hidden_search import NUM_GUESSES
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes


class FoundHidden(NamedTuple):
    """Best guesses at hidden entities and all edges, one for each of B scenes.

    Attributes:
        state: of the hidden entities at frame 0, ``[B, N_hidden, D]``, raw units.
        path: their states in all frames, ``[B, N_hidden, T, D]``.
        edge_type: of all entities, hidden ones last, long ``[B, E]``.
        log_joint: log joint density of state and structure, ``[B]``.
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
    num_guesses: int = NUM_GUESSES,
    num_starts: int = NUM_PRIOR_STARTS,
    seed: int,
) -> FoundHidden:
    """The most probable motion of hidden entities that a search finds: a quick answer that says nothing of its doubt.

    As the paper does it (section 5.2): candidates are improved and the best is kept. They come from what the motion
    of recorded entities leaves unexplained, a few from the prior, and are improved by least squares. Where nothing
    hidden acts, or forces change fast within a frame, ask :func:`infer_hidden`.

    Args:
        model: trained pair forces between particles; frozen here.
        scenes: B scenes, each with its own structure, every entity seen in every frame.
        num_hidden: 1 or 2 hidden entities in every scene.
        structure: known structures of all entities, hidden ones last, long ``[B, E]``.
        num_guesses: guesses that are followed up in each scene.
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
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, found {value}")
    if num_guesses + num_starts == 0:
        raise ValueError("num_guesses and num_starts are both 0: there is nothing to start from")
    parts = []
    with torch.no_grad():
        for start in range(0, scenes.num_scenes, CHUNK_SCENES):
            some = slice(start, start + CHUNK_SCENES)
            part = scenes[some]
            fine = hidden_target(model, part, num_hidden, None if structure is None else structure[some])
            coarse = HiddenTarget(fine.likelihood.searched(), fine.rest)
            stream = Stream(seed, keys(part.group_names), 1).child(f"{num_hidden} hidden")
            modes = search(coarse, fine, stream, num_guesses=num_guesses, num_starts=num_starts)
            best = modes.log_density.argmax(0)  # [B]; they come by their evidence
            scene = torch.arange(len(best))
            state, into = modes.state[best, scene], modes.into_hidden[best, scene]
            path = fine.likelihood.path(state, into)
            table = fine.likelihood.table(path)
            incoming = fine.rest.most_likely(table, into)
            weight = fine.rest.log_weight(table, incoming, into) - fine.rest.log_sum(table, into)
            density = fine.finish(table, state, into) + weight
            moved = path.state.transpose(-3, -2)
            raw = state * fine.likelihood.scale + fine.likelihood.offset
            parts.append(FoundHidden(raw, moved, structure_from(incoming, into), density))
    return FoundHidden(*(torch.cat(each) for each in zip(*parts, strict=True)))
