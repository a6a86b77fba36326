"""The distribution of a trajectory given its first frame, a structure and the modules."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.rollout import teacher_forcing
from pyro_nri.model.geometry import Geometry
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.scenes import edges


class Trajectory(dist.TorchDistribution):
    """Frames 1 to T - 1 of the observed entities, given frame 0: event ``[T - 1, N, D]``, raw units.

    ``log_prob`` is teacher-forced in one pass: predictions start again from the observed state every ``horizon`` frames
    and roll deterministically inside a block. Each prediction carries its own noise. That is the density of what
    ``sample`` draws: with a longer horizon, the paper's training objective read as one. Transitions that touch a
    missing state are left out.

    Args:
        initial_state: frame 0, a covariate, ``[*batch, N, D]``.
        dynamics: the modules.
        structure: long ``[*batch, E]`` over all entities, hidden ones last; batches broadcast.
        noise: noise of one prediction.
        geometry: what the noise depends on, for noise that uses a context.
        num_frames: T.
        horizon: H.
        observation_mask: bool ``[*batch, T, N]``; default: everything is observed.
        entity_mask: bool ``[*batch, N]``, False for padding.
        edge_mask: bool ``[*batch, E]`` over all entities.
        entity_kind: long ``[*batch, N + N_hidden]``.
        hidden_state: state of hidden entities at frame 0, ``[*batch, N_hidden, D]``, raw units; None: nothing is
            hidden.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        initial_state: Tensor,
        dynamics: AbstractDynamics,
        structure: Tensor,
        noise: AbstractNoise,
        *,
        geometry: Geometry | None = None,
        num_frames: int,
        horizon: int = 1,
        observation_mask: Tensor | None = None,
        entity_mask: Tensor | None = None,
        edge_mask: Tensor | None = None,
        entity_kind: Tensor | None = None,
        hidden_state: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.initial_state = initial_state
        self.dynamics = dynamics
        self.structure = structure
        self.noise = noise
        self.geometry = geometry
        self.horizon = horizon
        num_entities, state_size = initial_state.shape[-2:]
        if observation_mask is None:
            observation_mask = initial_state.new_ones(num_frames, num_entities, dtype=torch.bool)
        self.observation_mask = observation_mask
        self.entity_mask = entity_mask
        self.edge_mask = edge_mask
        self.entity_kind = entity_kind
        self.hidden_state = hidden_state
        batch = torch.broadcast_shapes(initial_state.shape[:-2], structure.shape[:-1])
        if hidden_state is not None:
            batch = torch.broadcast_shapes(batch, hidden_state.shape[:-2])
        event = torch.Size([num_frames - 1, num_entities, state_size])
        super().__init__(batch, event, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Any real states."""
        return constraints.independent(constraints.real, 3)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Trajectory":
        """The same distribution with a larger batch shape."""
        return Trajectory(
            self.initial_state,
            self.dynamics,
            self.structure.expand(*batch_shape, -1),
            self.noise,
            geometry=self.geometry,
            num_frames=self.event_shape[0] + 1,
            horizon=self.horizon,
            observation_mask=self.observation_mask,
            entity_mask=self.entity_mask,
            edge_mask=self.edge_mask,
            entity_kind=self.entity_kind,
            hidden_state=self.hidden_state,
            validate_args=False,
        )

    @property
    def scored(self) -> Tensor:
        """Which predictions count, bool ``[*batch, T - 1, N]``.

        The block's first frame must be complete (every entity may send a message) and the predicted state observed.
        """
        seen = self.observation_mask
        present = seen.new_ones(seen.shape[-1:]) if self.entity_mask is None else self.entity_mask
        complete = (seen | ~present[..., None, :]).all(-1)  # [*batch, T]
        start = torch.arange(self.event_shape[0], device=seen.device) // self.horizon * self.horizon
        scored = complete[..., start, None] & seen[..., 1:, :]
        if self.noise.uses_context:  # the context is read at the frame before, also inside a block
            scored = scored & complete[..., :-1, None]
        return scored

    def _context(self, state: Tensor, *, has_frames: bool) -> Tensor | None:
        """What the noise depends on at observed states ``[*batch, N, D]`` or, with frames, ``[*batch, T, N, D]``."""
        if self.geometry is None or not self.noise.uses_context:
            return None
        present = self.entity_mask
        if present is None:
            present = state.new_ones(state.shape[-2], dtype=torch.bool)
        mask = edges.from_matrix(present[..., :, None] & present[..., None, :])
        context: Tensor = self.geometry(state, mask[..., None, :] if has_frames else mask)
        return context

    def log_prob_entities(self, value: Tensor) -> Tensor:
        """Log density of each entity's frames, ``[*batch, N]``; sums to :meth:`log_prob`."""
        initial = self.initial_state[..., None, :, :]
        batch = torch.broadcast_shapes(value.shape[:-3], initial.shape[:-3])
        trajectory = torch.cat(
            [initial.expand(*batch, *initial.shape[-3:]), value.expand(*batch, *value.shape[-3:])], -3
        )
        predictions = teacher_forcing(
            self.dynamics,
            trajectory,
            self.structure,
            horizon=self.horizon,
            edge_mask=self.edge_mask,
            entity_kind=self.entity_kind,
            hidden_state=self.hidden_state,
            observation_mask=self.observation_mask,
        )
        log_prob = self.noise(predictions, self._context(trajectory[..., :-1, :, :], has_frames=True)).log_prob(
            value
        )  # [*batch, T - 1, N]
        return torch.where(self.scored, log_prob, torch.zeros_like(log_prob)).double().sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density ``[*batch]`` of frames 1 to T - 1, ``[*batch, T - 1, N, D]``, in float64."""
        return self.log_prob_entities(value).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw the frames one after the other, ``[*sample, *batch, T - 1, N, D]``.

        As the density has it: within a block of ``horizon`` frames predictions are fed back, between blocks the noisy
        frame.
        """
        shape = (*torch.Size(sample_shape), *self.batch_shape)
        drawn = self.initial_state.expand(*shape, *self.initial_state.shape[-2:])
        num_observed = drawn.shape[-2]
        # The path of a hidden entity is deterministic given its initial state; only what is observed is noisy.
        hidden = drawn[..., :0, :]
        if self.hidden_state is not None:
            hidden = self.hidden_state.expand(*shape, *self.hidden_state.shape[-2:])
        observed, frames = drawn, []
        with torch.no_grad():
            for t in range(self.event_shape[0]):
                if t % self.horizon == 0:
                    observed = drawn
                state = self.dynamics.step(
                    torch.cat([observed, hidden], dim=-2),
                    self.structure,
                    edge_mask=self.edge_mask,
                    entity_kind=self.entity_kind,
                )
                observed, hidden = state[..., :num_observed, :], state[..., num_observed:, :]
                drawn = self.noise(observed, self._context(drawn, has_frames=False)).sample()
                frames.append(drawn)
        return torch.stack(frames, dim=-3)
