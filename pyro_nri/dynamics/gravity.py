"""Newton's gravitation: an edge is the pull of its sender, the node module is a symplectic integrator."""

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: State variable that holds the strength of a body, G times its mass; it never changes.
STRENGTH = "gm"
#: Sixth order from nine leapfrogs (Kahan and Li 1997, "Composition constants for raising the orders of unconventional
#: schemes"): their lengths as parts of a sub-step. The list reads the same from both ends.
_HALF = (0.39216144400731413928, 0.33259913678935943860, -0.70624617255763935981, 0.08221359629355080023)
STAGES = (*_HALF, 0.79854399093482996340, *_HALF[::-1])


class Gravity(AbstractDynamics):
    """Bodies that attract one another: ``d²x_j / dt² = sum_i gm_i (x_i - x_j) / r_ij³`` over the senders i of j.

    Edge type 1 pulls, type 0 does nothing. The strength ``gm = G m`` of a body is part of its state, so it may be known
    or latent like a position. Each sub-step is a symmetric composition of leapfrogs of order six, which keeps energy
    and angular momentum over many turns and can be run backwards.

    Args:
        state_names: positions, their velocities ("v" + name) and "gm", in any order.
        time_step: time of a frame, in the units of the velocities.
        num_substeps: sub-steps of a frame, nine leapfrogs each; a dozen sub-steps for the shortest turn keep 1e-7 of
            its radius for ten turns.
        softening: added to distances as ``sqrt(r² + softening²)``, 0 for points.

    Raises:
        ValueError: a state variable is missing or unknown, or a number is out of range.

    Example:
        >>> gravity = Gravity(("x", "y", "vx", "vy", "gm"), time_step=0.1)
        >>> state = torch.tensor([[0.0, 0, 0, 0, 1], [1, 0, 0, 1, 0]], dtype=torch.float64)
        >>> round(gravity.step(state, torch.tensor([1, 1]))[1, :2].norm().item(), 9)  # a circle
        1.0
    """

    def __init__(
        self, state_names: tuple[str, ...], *, time_step: float, num_substeps: int = 1, softening: float = 0.0
    ) -> None:
        super().__init__()
        self.positions = [d for d, name in enumerate(state_names) if f"v{name}" in state_names]
        self.velocities = [state_names.index(f"v{state_names[d]}") for d in self.positions]
        if STRENGTH not in state_names or len(state_names) != 2 * len(self.positions) + 1 or not self.positions:
            raise ValueError(
                f"state_names must be positions, their velocities and {STRENGTH}, such as x, y, vx, vy, {STRENGTH}, "
                f"found {', '.join(state_names)}"
            )
        if not time_step > 0:
            raise ValueError(f"time_step must be positive, found {time_step}")
        if num_substeps < 1:
            raise ValueError(f"num_substeps must be at least 1, found {num_substeps}")
        if not softening >= 0:
            raise ValueError(f"softening must be 0 or more, found {softening}")
        self.strength = state_names.index(STRENGTH)
        self.num_edge_types = 2
        self.state_size = len(state_names)
        self.num_entity_kinds = 1
        self.num_substeps = len(STAGES) * num_substeps
        self.time_step = time_step
        self.softening = softening

    def fit_scaling(self, scenes: Scenes) -> None:
        """Nothing to set: raw units, and no constant but the masses."""

    @property
    def _leapfrog(self) -> float:
        """Mean time of a leapfrog: what a round of messages and updates takes by itself."""
        return self.time_step / self.num_substeps

    def messages(self, state: Tensor, structure: Tensor | None = None) -> Tensor:
        pull = self.pulls(state, self._leapfrog / 2)
        if structure is None:
            return torch.stack([torch.zeros_like(pull), pull], -2)
        return pull * (structure == 1)[..., None]

    def update(self, state: Tensor, summed: Tensor, entity_kind: Tensor | None = None) -> Tensor:
        return self.move(state, summed, self._leapfrog)

    def pulls(self, state: Tensor, drift: float) -> Tensor:
        """Accelerations that the senders give after bodies have drifted for a time, ``[*batch, E, S]``."""
        position = state[..., self.positions] + drift * state[..., self.velocities]
        num_entities = state.shape[-2]
        sender = edges.senders(num_entities).to(state.device)
        receiver = edges.receivers(num_entities).to(state.device)
        apart = position[..., sender, :] - position[..., receiver, :]
        square = apart.square().sum(-1) + self.softening**2
        strength = state[..., self.strength][..., sender] / (square * square.sqrt())
        return apart * strength[..., None]

    def move(self, state: Tensor, acceleration: Tensor, duration: float) -> Tensor:
        """Drift, kick, drift: states ``[*batch, D]`` after a leapfrog with the accelerations of its middle."""
        position, before = state[..., self.positions], state[..., self.velocities]
        after = before + duration * acceleration
        position = position + duration / 2 * (before + after)
        parts: list[Tensor] = [state[..., self.strength]] * self.state_size
        parts[self.strength] = parts[self.strength].expand(position.shape[:-1])
        for axis, (d, v) in enumerate(zip(self.positions, self.velocities, strict=True)):
            parts[d], parts[v] = position[..., axis], after[..., axis]
        return torch.stack(parts, -1)

    def step(
        self,
        state: Tensor,
        structure: Tensor,
        *,
        edge_mask: Tensor | None = None,
        entity_kind: Tensor | None = None,
    ) -> Tensor:
        """One frame, as :meth:`AbstractDynamics.step` has it, by leapfrogs of the lengths that :data:`STAGES` has.

        Args:
            state: ``[*batch, N, D]``.
            structure: long ``[*batch, E]``.
            edge_mask: bool ``[*batch, E]``.
            entity_kind: not used.
        """
        pulls = structure == 1
        if edge_mask is not None:
            pulls = pulls & edge_mask
        # Senders by receivers, so that a sum over senders is over an axis; batches last, for long rows in memory.
        batch = torch.broadcast_shapes(state.shape[:-2], pulls.shape[:-1])
        linked = edges.to_matrix(pulls).to(state.dtype).expand(*batch, -1, -1)
        weight = linked * state[..., self.strength, None]
        weight = torch.movedim(weight, (-2, -1), (0, 1)).contiguous()  # [N, N, *batch]
        moving = torch.movedim(state.expand(*batch, -1, -1), (-1, -2), (0, 1))  # [D, N, *batch]
        position, velocity = moving[self.positions].contiguous(), moving[self.velocities].contiguous()
        nobody = torch.eye(state.shape[-2], dtype=state.dtype, device=state.device)
        nobody = (nobody + self.softening**2).reshape(*nobody.shape, *[1] * len(batch))
        substep = self.time_step * len(STAGES) / self.num_substeps
        waiting = 0.0  # drifts of neighbouring leapfrogs are taken as one
        for _ in range(self.num_substeps // len(STAGES)):
            for stage in STAGES:
                position = position + (waiting + stage * substep / 2) * velocity
                apart = position[:, :, None] - position[:, None]  # [S, sender, receiver, *batch]
                square = apart.square().sum(0) + nobody
                pull = weight / (square * square.sqrt())
                velocity = velocity + (stage * substep) * (pull * apart).sum(1)
                waiting = stage * substep / 2
        position = position + waiting * velocity
        rows: list[Tensor] = [moving[self.strength]] * self.state_size
        for axis, (d, v) in enumerate(zip(self.positions, self.velocities, strict=True)):
            rows[d], rows[v] = position[axis], velocity[axis]
        return torch.movedim(torch.stack(rows), (0, 1), (-1, -2))
