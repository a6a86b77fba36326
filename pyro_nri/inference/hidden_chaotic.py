"""Draws of hidden entities where forces change fast: paths near the laws, and the edges of all.

Numbers of hidden entities are weighed by how likely such paths make the recorded ones; those that leave frames
unexplained, while another one does not, by a rough path alone (:mod:`hidden_rough`).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.hidden_draws import NUM_WARMUP, draw_paths
from pyro_nri.inference.hidden_integral import NUM_ISLANDS, NUM_PARTICLES, integrate_paths
from pyro_nri.inference.hidden_rough import RoughPath, edges_given, finish, over_structures
from pyro_nri.inference.streams import Stream
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes

#: Share of proposed paths that is accepted where the particles' error is believed: below, the normal distribution that
#: both start from is none of the path's.
LEAST_ACCEPTED = 0.1


class ChaoticDraws(NamedTuple):
    """Draws of hidden entities that move near the laws: C chains with S draws of paths each, raw units.

    Attributes:
        path: ``[C, S, B, T, N_hidden, D]``.
        edge_type: long ``[C, S, B, E]``, hidden entities last.
        log_joint: of paths and structures, ``[C, S, B]``.
        accepted: bool ``[C, S, B]``.
        log_marginal: log-likelihood of recorded frames, ``[B]``.
        log_error: standard error of it, ``[B]``; inf where hardly a proposed path is accepted.
        unexplained: nats for each transition and entity, ``[B]``: :meth:`HiddenMotion.unexplained`.
        num_evaluations: paths whose density was asked for, for each chain and scene; without the search.
    """

    path: Tensor
    edge_type: Tensor
    log_joint: Tensor
    accepted: Tensor
    log_marginal: Tensor
    log_error: Tensor
    unexplained: Tensor
    num_evaluations: int


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
    motion, path = finish(model, scenes, rough, structure)
    drawn = draw_paths(motion, path, stream, num_draws=num_draws)
    integral = integrate_paths(motion, path, stream)
    edge_type, log_joint = motion.structure.expand(*drawn.log_density.shape, -1), drawn.log_density
    log_marginal = integral.log_value
    if structure is None:
        wide = with_hidden(scenes, motion.num_hidden)
        log_prior = model.structure_prior(model.prepare(wide)).log_prob(motion.structure)
        posterior = edges_given(model, wide, motion, path)
        edge_type = torch.stack([posterior.sample(stream.child("edges"), step) for step in range(num_draws)], 1)
        each = torch.stack([posterior.log_prob(part) for part in edge_type.unbind(1)], 1)
        marginal_density = over_structures(log_prior, posterior, motion.structure)
        log_joint = log_joint + marginal_density + each
        log_marginal = log_marginal + marginal_density + math.lgamma(motion.num_hidden + 1)  # numbered in any order
    raw = drawn.path * motion.scale + motion.offset
    moves = drawn.whole.double().mean((0, 1)) >= LEAST_ACCEPTED
    log_error = torch.where(moves, integral.log_error, torch.inf)
    count = 2 * (NUM_WARMUP + num_draws) + -(-NUM_ISLANDS * NUM_PARTICLES // stream.num_chains)
    return ChaoticDraws(
        raw, edge_type, log_joint, drawn.accepted, log_marginal, log_error, motion.unexplained(path), count
    )
