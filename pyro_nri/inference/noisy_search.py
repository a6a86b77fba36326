"""From recordings with measurement noise to where chains begin: annealed searches over longer and longer windows."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.inference.noisy_guess import guess
from pyro_nri.inference.noisy_joint import Fits, State, search
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.streams import Stream
from pyro_nri.model.hidden import STEPS, is_stiff
from pyro_nri.model.noisy import NoisyModel, with_measurement_noise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes.scenes import Scenes

#: Annealed searches for the references of the chains, before warm-up, by the shares of the frames that they look at:
#: over a long window a path that starts a little wrong ends far off, and nothing points back.
WINDOWS = (0.3, 0.3, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0)
#: Searches side by side where something is hidden; the best of them are the starts of the chains.
NUM_SEARCHERS = 12
#: Chains whose log joint is lower than the best by this and the number of latents are left behind.
LEFT_BEHIND = 30.0
#: Frames that a path needs to say anything.
MIN_FRAMES = 5


def noisy_model(model: SceneModel, scale: Tensor, num_hidden: int) -> NoisyModel:
    """The noisy program of a model, with as few sub-steps of a frame as its forces need.

    Args:
        model: trained pair forces.
        scale: standard deviations of the measurement, raw units, ``[D]``.
        num_hidden: entities without data.
    """
    dynamics, *_ = model.impulse_parts
    return with_measurement_noise(model, scale, num_hidden=num_hidden, num_substeps=STEPS[int(is_stiff(dynamics))])


def search_chains(
    model: SceneModel, noisy: NoisyModel, scenes: Scenes, prior: StructureDistribution, stream: Stream, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where chains begin.

    Args:
        model: trained pair forces.
        noisy: the program made of it.
        scenes: B scenes, each with its own structure.
        prior: of the structures of all entities, hidden ones last, batch ``[B]``.
        stream: of C chains.
        seed: of the moves on structures.

    Returns:
        Structures ``[C, B, E]`` and latents ``[C, B, P]``, the chain with the highest log joint first, and the doubt in
        each edge ``[B, E]``.
    """
    number = max(stream.num_chains, NUM_SEARCHERS) if noisy.num_hidden else stream.num_chains
    many = replace(stream, num_chains=number).child("search")
    found = guess(model, noisy, scenes, prior, many)
    moves = make_proposal("uniform", prior, seed=seed)
    moves.adapt(found.doubt.expand(number, -1, -1))
    structure, starts = found.structure, found.starts
    for place, share in enumerate(WINDOWS):
        window = scenes.frames(0, max(MIN_FRAMES, math.ceil(share * scenes.num_frames)))
        state = search(Fits(noisy, window, prior, structure, starts), moves, many.child(f"window {place}"))
        structure, starts = gathered(state)
    order = state.log_joint.argsort(0, descending=True)[: stream.num_chains]  # [C, B]
    scene = torch.arange(scenes.num_scenes)
    return structure[order, scene], starts[order, scene], found.doubt


def gathered(state: State) -> tuple[Tensor, Tensor]:
    """Structures ``[C, B, E]`` and latents to go on from: chains that are left far behind go on from the best."""
    best = state.log_joint.argmax(0)  # [B]
    scene = torch.arange(len(best))
    behind = state.log_joint < state.log_joint.amax(0) - LEFT_BEHIND - state.value.shape[-1]
    structure = torch.where(behind[..., None], state.structure[best, scene], state.structure)
    return structure, torch.where(behind[..., None], state.value[best, scene], state.value)
