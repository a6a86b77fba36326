"""First guesses for recordings with measurement noise: structures and hidden states, from impulses that are as noisy.

The change of a velocity over a frame has the noise of two measurements. Impulses with noise of that size say which
structures are plausible long before any path is fitted; chains of the noisy program start from there, and correct it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.inference.exact import can_enumerate, enumerate_posterior
from pyro_nri.inference.hidden import HiddenTarget, sample, search
from pyro_nri.inference.hidden_edges import make_rest
from pyro_nri.inference.noisy_modes import first_guess
from pyro_nri.inference.streams import Stream, categorical, normals
from pyro_nri.model.hidden import HiddenLikelihood, typical_size
from pyro_nri.model.impulse import most_likely_structure, refined_features, table_of_impulses
from pyro_nri.model.noise import GivenScaleNoise
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import ReceiverTable, grouped_table
from pyro_nri.model.starts import ScaledStart
from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution, StructureDistribution
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Noise that is left where measurements are exact: share of the typical impulse, for the cubic path between frames.
PATH_ERROR = 0.02
#: Steps of the chains over hidden states before one is taken.
NUM_STEPS = 60


class Guess(NamedTuple):
    """Where chains of the noisy program start.

    Attributes:
        structure: plausible structures, one for each chain, long ``[C, B, E]``.
        doubt: how uncertain each edge is, from 0 to 1, ``[B, E]``.
        starts: latents from which their paths are fitted, scaled units, ``[C, B, P]``.
    """

    structure: Tensor
    doubt: Tensor
    starts: Tensor


def guess(model: SceneModel, noisy: NoisyModel, scenes: Scenes, prior: StructureDistribution, stream: Stream) -> Guess:
    """Structures and latents to start from.

    Args:
        model: trained pair forces.
        noisy: the program made of it, with a :class:`ScaledStart`.
        scenes: B scenes, each with its own structure; every entity seen in every frame if some are hidden.
        prior: of the structures of all entities, hidden ones last, batch ``[B]``.
        stream: of C chains.

    Raises:
        ValueError: a state is missing beside hidden entities, or the prior ties too many edges to list structures.
    """
    dynamics, *_ = model.impulse_parts
    start = noisy.start
    assert isinstance(start, ScaledStart)
    scenes = noisy.prepare(scenes)
    error = 2**0.5 * float(noisy.noise.scale.detach()[dynamics.velocities].amax()) / scenes.time_step
    seen = ((first_guess(scenes) - start.offset) / start.scale).flatten(1)  # [B, N * D]
    if not noisy.num_hidden:
        structure, doubt = _structures(_table(model, scenes, error), prior, stream)
        return Guess(structure, doubt, seen.expand(len(structure), *seen.shape))
    likelihood = HiddenLikelihood(model, scenes, noisy.num_hidden)
    likelihood = likelihood.with_scale((error**2 + (PATH_ERROR * likelihood.typical_impulse()) ** 2).sqrt())
    rest = make_rest(prior, scenes.num_entities)
    fine, coarse = HiddenTarget(likelihood, rest), HiddenTarget(likelihood.searched(), rest)
    found = search(coarse, fine, stream.one())
    drawn = sample(fine, found, stream, num_draws=NUM_STEPS)
    is_type = torch.nn.functional.one_hot(drawn.edge_type, prior.num_edge_types).double().mean((0, 1))
    # Half of the starts are modes of the impulses, the others draws of the prior: noise may hide the right motion.
    size = found.state[0, 0].numel()
    far = normals(stream.child("far").uniform(0, 2 * size))  # [C, B, P_hidden]
    number = min(len(found.state), (len(far) + 1) // 2)
    usable = found.log_density[:number].isfinite()[..., None]
    near = torch.where(usable, found.state[:number].flatten(2), found.state[:1].flatten(2))
    starts = torch.cat([seen.expand(len(far), *seen.shape), torch.cat([near, far[number:]])], -1)
    return Guess(drawn.edge_type[:, -1], 1 - is_type.amax(-1), starts)


def _table(model: SceneModel, scenes: Scenes, error: float) -> ReceiverTable:
    """Log-likelihoods of all codes under noise of the size of the measurement's."""
    dynamics, own_noise, _ = model.impulse_parts
    noise, tables = GivenScaleNoise(dynamics.num_axes, 1), []
    with torch.no_grad():
        for number in range(scenes.num_scenes):
            features = refined_features(
                dynamics, scenes[[number]], lambda each: most_likely_structure(dynamics, own_noise, each), whiten=False
            )
            typical = float(typical_size(features.target, features.mask))
            scale = max((error**2 + (PATH_ERROR * typical) ** 2) ** 0.5, 1e-300)
            context = torch.full_like(features.context[..., :1], scale)
            some = ImpulseFeatures(features.target, features.mask, context, ())
            tables.append(table_of_impulses(features.impulses(dynamics.laws), some, noise))
    return grouped_table(torch.cat(tables), dynamics.num_edge_types, scenes, is_density=False)


def _structures(table: ReceiverTable, prior: StructureDistribution, stream: Stream) -> tuple[Tensor, Tensor]:
    """Draws ``[C, B, E]`` of the posterior that a table gives, and how uncertain each edge is ``[B, E]``."""
    if can_enumerate(table, prior):
        posterior = enumerate_posterior(table, prior)
        return posterior.sample(stream.child("guess")), 1 - posterior.edge_probability.amax(-1)
    if isinstance(prior, ChargesDistribution):
        values, parts = prior.choices
        raise ValueError(f"{values}^{parts} labelings are too many to list; leave out entities")
    # Both edges of a pair are tied: too many structures to list, but pair by pair will do for a guess.
    even = torch.full((prior.num_edge_types,), 1 / prior.num_edge_types, dtype=torch.float64).log()
    apart = enumerate_posterior(table, EdgeDistribution(even, prior.edge_mask))
    log_weight = apart.edge_probability.clamp(min=1e-300).log()
    reverse = edges.reverse_edges(prior.num_entities)
    probability = (log_weight + log_weight[:, reverse]).softmax(-1)  # [B, E, K]
    uniform = stream.child("guess").uniform(0, prior.event_shape[0])
    first = edges.senders(prior.num_entities) < edges.receivers(prior.num_entities)
    uniform = torch.where(first, uniform, uniform[..., reverse])
    structure = categorical(probability.expand(*uniform.shape, -1), uniform)
    return structure * prior.edge_mask, 1 - probability.amax(-1)
