"""What the state of a scene says about how well its next state can be predicted."""

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.dynamics import incoming_messages
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: F, features of the geometry.
NUM_FEATURES = 6


class Geometry(nn.Module):
    """Distances and speeds at one frame, and where straight motion would lead within the next one.

    Nothing here looks at the predicted frame, so noise that depends on it is still a forward density.

    Args:
        state_names: D names; a velocity is "v" + the name of its position.
    """

    def __init__(self, state_names: tuple[str, ...]) -> None:
        super().__init__()
        self.positions = [d for d, name in enumerate(state_names) if f"v{name}" in state_names]
        self.velocities = [state_names.index(f"v{state_names[d]}") for d in self.positions]
        num_axes = len(self.positions)
        self.register_buffer("low", torch.zeros(num_axes))
        self.register_buffer("high", torch.zeros(num_axes))
        self.register_buffer("length", torch.tensor(1.0))
        self.register_buffer("time_step", torch.tensor(1.0))
        self.low: Tensor
        self.high: Tensor
        self.length: Tensor
        self.time_step: Tensor

    @property
    def applies(self) -> bool:
        """Whether the state has positions with velocities."""
        return len(self.positions) > 0

    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the extent of the positions, the way of a frame and its time from training scenes."""
        seen = scenes.trajectory.double()[scenes.observation_mask]  # [R, D]
        position, velocity = seen[:, self.positions], seen[:, self.velocities]
        self.low.copy_(position.min(0).values)
        self.high.copy_(position.max(0).values)
        self.time_step.fill_(scenes.time_step)
        way = float(velocity.norm(dim=-1).median()) * scenes.time_step
        self.length.fill_(max(way, 1e-6 * float(position.abs().max()), 1e-30))

    def forward(self, state: Tensor, edge_mask: Tensor) -> Tensor:
        """Context of each entity.

        Args:
            state: ``[*batch, N, D]``, raw units.
            edge_mask: existing edges, bool ``[*batch, E]``; batches broadcast.

        Returns:
            ``[*batch, N, F]``: log closest distance now and under straight motion, its square, log closeness summed
            over senders, log distance to the edge of the region that training scenes fill, log speed.
        """
        position, velocity = state[..., self.positions], state[..., self.velocities]
        num_entities = state.shape[-2]
        sender = edges.senders(num_entities).to(state.device)
        receiver = edges.receivers(num_entities).to(state.device)
        apart = position[..., receiver, :] - position[..., sender, :]  # [*batch, E, S]
        closing = (velocity[..., receiver, :] - velocity[..., sender, :]) * self.time_step
        # Time of closest approach within the frame, as a share of it.
        share = -(apart * closing).sum(-1) / closing.square().sum(-1).clamp(min=1e-30)
        nearest = (apart + share.clamp(0, 1)[..., None] * closing).norm(dim=-1)
        now = apart.norm(dim=-1)
        floor = 1e-3 * self.length
        far = 1e3 * self.length
        pair = torch.stack([torch.where(edge_mask, value + floor, far) for value in (now, nearest)], -1)
        incoming = incoming_messages((pair / self.length)[..., None, :]).squeeze(-2)  # [*batch, N, N - 1, 2]
        closest = incoming.amin(-2).log()  # [*batch, N, 2]
        closeness = incoming[..., 1].pow(-2).sum(-1).log()
        margin = torch.minimum(position - self.low, self.high - position).amin(-1) / self.length
        speed = velocity.norm(dim=-1) * self.time_step / self.length
        return torch.stack(
            [
                closest[..., 0],
                closest[..., 1],
                closest[..., 1].square(),
                closeness,
                (margin.clamp(0, 20) + 0.1).log(),
                (speed + 0.1).log(),
            ],
            dim=-1,
        )
