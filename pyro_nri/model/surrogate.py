"""Cheap likelihoods that factorise over receivers, near one that does not: what delayed moves go by.

A rollout of several frames feeds every entity's prediction to every other, so that a receiver's path depends on all
edges. But where predictions are good, the others are nearly where they were recorded. So each receiver is rolled out
alone, over as many frames as the likelihood has it, among senders who move as recorded: then its path depends on its
own incoming edges only, and is tabulated for every code. What one step tells is much less: errors of single frames,
which a rollout averages out, hide the forces.
"""

import copy

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.model.direct import DirectLikelihood
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import (
    AbstractLikelihood,
    ReceiverTable,
    chunk_size,
    code_types,
    grouped_table,
    num_codes,
)
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Receivers times codes that are rolled out at most, each about as costly as a structure.
MAX_ROLLOUTS = 8192
#: Floats of one message, about.
WIDTH = 64
#: Log density of a prediction that is not finite.
IMPOSSIBLE = -1e30


def surrogate_likelihood(model: SceneModel, scenes: Scenes, likelihood: AbstractLikelihood) -> AbstractLikelihood:
    """A cached likelihood of the same structures: receivers rolled out alone; where codes are many, of one step.

    Args:
        model: with frozen modules.
        scenes: B scenes in G groups.
        likelihood: what is to be approximated, of the same model and scenes; where it is raised to a power, so is this.
    """
    prepared = model.prepare(scenes)
    if scenes.num_entities * num_codes(model.num_edge_types, scenes.num_entities) <= MAX_ROLLOUTS:
        context = None
        if model.noise.uses_context:
            context = model.geometry(prepared.trajectory[:, :-1], prepared.edge_mask[:, None])
        scored = model.trajectory(prepared, torch.zeros_like(prepared.edge_mask, dtype=torch.long)).scored
        power = likelihood.power if isinstance(likelihood, DirectLikelihood) else None
        return alone_table(
            model.dynamics, model.noise, prepared, scored, horizon=model.horizon, context=context, power=power
        )
    one_step = copy.copy(model)
    one_step.horizon = 1
    return one_step.likelihood(scenes)


def alone_table(
    dynamics: AbstractDynamics,
    noise: AbstractNoise,
    scenes: Scenes,
    scored: Tensor,
    *,
    horizon: int,
    context: Tensor | None = None,
    power: Tensor | None = None,
) -> ReceiverTable:
    """Every code of every receiver, rolled out among senders at their recorded states.

    Args:
        dynamics: frozen modules.
        noise: frozen noise of one prediction.
        scenes: B scenes in G groups, floats in the dtype of the modules.
        scored: which predictions count, bool ``[B, T - 1, N]``.
        horizon: H, frames until a rollout starts again from the recorded state.
        context: what the noise depends on, ``[B, T - 1, N, F]``.
        power: to which each receiver's likelihood is raised, ``[B, N]``.
    """
    num_types, num_entities = dynamics.num_edge_types, scenes.num_entities
    types = code_types(num_types, num_entities).to(scenes.trajectory.device)  # [R, N - 1]
    structure = types.new_zeros(num_entities, len(types), edges.num_edges(num_entities))
    for receiver, incoming in enumerate(edges.incoming_edges(num_entities)):
        structure[receiver, :, incoming.to(types.device)] = types
    num_blocks = -(-(scenes.num_frames - 1) // horizon)
    floats = num_blocks * num_entities * edges.num_edges(num_entities) * WIDTH  # of one code in one scene
    num_codes_at_once = min(len(types), chunk_size(floats, types.device))
    num_scenes = chunk_size(num_codes_at_once * floats, types.device)
    tables = []
    with torch.no_grad():
        for start in range(0, scenes.num_scenes, num_scenes):
            some = slice(start, start + num_scenes)
            part, each = scenes[some], None if context is None else context[some][..., None, :]
            rows = []
            for codes in structure.split(num_codes_at_once, 1):
                predicted = _alone(dynamics, part, codes, horizon)  # [B, T - 1, N, R, D]
                log_prob = noise(predicted, each).log_prob(part.trajectory[:, 1:, :, None])
                log_prob = log_prob.nan_to_num(nan=IMPOSSIBLE, neginf=IMPOSSIBLE)  # a path that runs away
                log_prob = torch.where(scored[some][..., None], log_prob, torch.zeros_like(log_prob))
                rows.append(log_prob.double().sum(1))
            tables.append(torch.cat(rows, -1))
    table = torch.cat(tables)
    if power is not None:
        table = table * power[..., None].to(table)
    return grouped_table(table, num_types, scenes, is_density=False)


def _alone(dynamics: AbstractDynamics, scenes: Scenes, structure: Tensor, horizon: int) -> Tensor:
    """Predictions ``[B, T - 1, N, R, D]`` of each receiver under each of its structures ``[N, R, E]``."""
    recorded, num_steps = _last_seen(scenes), scenes.num_frames - 1
    is_receiver = torch.eye(scenes.num_entities, dtype=torch.bool, device=recorded.device)[:, None, :, None]
    mask, kind = scenes.edge_mask[:, None, None, None], scenes.entity_kind
    kind = None if kind is None else kind[:, None, None, None]
    starts, state, frames = torch.arange(0, num_steps, horizon), None, []
    for step in range(min(horizon, num_steps)):
        others = recorded[:, (starts + step).clamp(max=num_steps), None, None]  # [B, blocks, 1, 1, N, D]
        state = others if state is None else torch.where(is_receiver, state, others)
        state = dynamics.step(state, structure, edge_mask=mask, entity_kind=kind)  # [B, blocks, N, R, N, D]
        frames.append(state.diagonal(dim1=2, dim2=4).movedim(-1, 2))  # [B, blocks, N, R, D]
    return torch.stack(frames, 2).flatten(1, 2)[:, :num_steps]


def _last_seen(scenes: Scenes) -> Tensor:
    """Recorded states ``[B, T, N, D]``; where one was not seen, the last that was."""
    frames = list(scenes.trajectory.unbind(1))
    for frame in range(1, len(frames)):
        frames[frame] = torch.where(scenes.observation_mask[:, frame, :, None], frames[frame], frames[frame - 1])
    return torch.stack(frames, 1)
