"""Teacher forcing and rollout: two drivers of one step."""

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics


def rollout(
    dynamics: AbstractDynamics,
    initial_state: Tensor,
    structure: Tensor,
    num_steps: int,
    *,
    edge_mask: Tensor | None = None,
    entity_kind: Tensor | None = None,
) -> Tensor:
    """Feed predictions back ``num_steps`` times.

    Args:
        dynamics: the composed modules.
        initial_state: ``[*batch, N, D]``, raw units.
        structure: long ``[*batch, E]``; batches broadcast.
        num_steps: number of frames to predict.
        edge_mask: bool ``[*batch, E]``.
        entity_kind: long ``[*batch, N]``.

    Returns:
        The frames after the initial one, ``[*batch, num_steps, N, D]``.

    Raises:
        ValueError: ``num_steps`` is smaller than 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, found {num_steps}")
    state = initial_state
    frames = []
    for _ in range(num_steps):
        state = dynamics.step(state, structure, edge_mask=edge_mask, entity_kind=entity_kind)
        frames.append(state)
    return torch.stack(frames, dim=-3)


def teacher_forcing(
    dynamics: AbstractDynamics,
    trajectory: Tensor,
    structure: Tensor,
    *,
    horizon: int = 1,
    edge_mask: Tensor | None = None,
    entity_kind: Tensor | None = None,
    hidden_state: Tensor | None = None,
    observation_mask: Tensor | None = None,
) -> Tensor:
    """Predict every frame but the first, starting again from the observed state every ``horizon`` frames.

    All blocks of ``horizon`` frames are predicted side by side. A hidden entity has no observed state to start from:
    where ``hidden_state`` is given, frames run in sequence, the observed entities start again and the hidden ones go
    on.

    Args:
        dynamics: the composed modules.
        trajectory: observed states ``[*batch, T, N, D]``, raw units.
        structure: long ``[*batch, E]`` over all entities, hidden ones last; batches broadcast.
        horizon: H; the paper trains with 10.
        edge_mask: bool ``[*batch, E]``.
        entity_kind: long ``[*batch, N]``.
        hidden_state: state of the hidden entities at frame 0, ``[*batch, N_hidden, D]``, raw units.
        observation_mask: bool ``[*batch, T, N]``; beside hidden entities, a state that was not seen is predicted on.

    Returns:
        Predictions of frames 1 to T - 1 of the observed entities, ``[*batch, T - 1, N, D]``.

    Raises:
        ValueError: ``horizon`` is smaller than 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, found {horizon}")
    num_transitions, num_observed = trajectory.shape[-3] - 1, trajectory.shape[-2]
    if hidden_state is not None:
        batch = torch.broadcast_shapes(trajectory.shape[:-3], structure.shape[:-1], hidden_state.shape[:-2])
        trajectory = trajectory.expand(*batch, *trajectory.shape[-3:])
        hidden = hidden_state.expand(*batch, *hidden_state.shape[-2:])
        observed = trajectory[..., 0, :, :]
        frames = []
        for t in range(num_transitions):
            if t % horizon == 0:
                restart = trajectory[..., t, :, :]
                if t > 0 and observation_mask is not None:  # what was not seen goes on from its prediction
                    restart = torch.where(observation_mask[..., t, :, None], restart, observed)
                observed = restart
            state = torch.cat([observed, hidden], dim=-2)
            state = dynamics.step(state, structure, edge_mask=edge_mask, entity_kind=entity_kind)
            observed, hidden = state[..., :num_observed, :], state[..., num_observed:, :]
            frames.append(observed)
        return torch.stack(frames, dim=-3)
    starts = trajectory[..., :-1:horizon, :, :]  # [*batch, blocks, N, D]
    predictions = rollout(
        dynamics,
        starts,
        structure[..., None, :],
        min(horizon, num_transitions),
        edge_mask=None if edge_mask is None else edge_mask[..., None, :],
        entity_kind=None if entity_kind is None else entity_kind[..., None, :],
    )  # [*batch, blocks, H, N, D]
    return predictions.flatten(-4, -3)[..., :num_transitions, :, :]
