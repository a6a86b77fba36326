"""A network from a trajectory to a distribution over each edge's type: the learned proposal (paper, section 4)."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class Encoder(nn.Module):
    """Reads every transition of every edge, takes the mean over time, then passes over entities and edges.

    NRI's encoder, which the paper takes over, reads a trajectory of one fixed length as one long vector. This one
    shares its first layers over time, so that it works for any number of frames and entities and learns from every
    transition. NRI's sequence of passes (entities to edges, edges to entities, back to edges with a skip) is kept,
    the last two twice.

    Args:
        num_edge_types: K.
        state_size: D.
        width: width of all hidden layers.
        generator: source of the initial weights.
    """

    def __init__(self, num_edge_types: int, state_size: int, *, width: int = 64, generator: torch.Generator) -> None:
        super().__init__()
        self.num_edge_types = num_edge_types
        self.state_size = state_size
        self.width = width

        def mlp(*sizes: int, activate_output: bool = True) -> ModuleLibrary:
            return ModuleLibrary(1, sizes, activate_output=activate_output, generator=generator)

        self.transition = mlp(5 * state_size, width, width)
        self.entity = mlp(width, width, width)
        self.edge = mlp(3 * width, width, width)
        self.output = mlp(width, width, num_edge_types, activate_output=False)
        self.units = StateUnits(state_size)

    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the constants between raw and scaled units from training scenes."""
        self.units.fit(scenes)

    def forward(self, scenes: Scenes) -> dist.TorchDistribution:
        """Distribution of each edge's type.

        Args:
            scenes: B scenes in raw units.

        Returns:
            Categorical over K types with batch shape ``[B, E]``.
        """
        units = self.units
        scenes = scenes.to(units.scale.dtype, units.scale.device)
        sender = edges.senders(scenes.num_entities).to(units.scale.device)
        receiver = edges.receivers(scenes.num_entities).to(units.scale.device)
        before, after = scenes.trajectory[:, :-1], scenes.trajectory[:, 1:]
        state, change = units(before), (after - before) / units.change_scale
        each = torch.cat([state, change], -1)  # [B, T - 1, N, 2 D]
        apart = state[..., sender, :] - state[..., receiver, :]
        edge = self._network(self.transition, torch.cat([each[..., sender, :], each[..., receiver, :], apart], -1))
        seen = (scenes.complete_frame[:, :-1] & scenes.complete_frame[:, 1:]).to(edge.dtype)[:, :, None, None]
        hidden = (edge * seen).sum(1) / seen.sum(1).clamp(min=1)  # [B, E, W]
        for _ in range(2):
            present = hidden * scenes.edge_mask[..., None]
            summed = torch.zeros_like(each[:, 0, :, :1]).expand(-1, -1, self.width)
            summed = summed.index_add(-2, receiver, present)
            count = scenes.entity_mask.sum(-1).sub(1).clamp(min=1)[:, None, None]
            entity = self._network(self.entity, summed / count)  # [B, N, W]
            hidden = self._network(self.edge, torch.cat([entity[:, sender], entity[:, receiver], hidden], -1))
        return dist.Categorical(logits=self._network(self.output, hidden), validate_args=False)

    @staticmethod
    def _network(network: ModuleLibrary, inputs: Tensor) -> Tensor:
        result: Tensor = network(inputs).squeeze(-2)
        return result


def log_q(encoder: Encoder, scenes: Scenes) -> Tensor:
    """An encoder's log probabilities for each structure, ``[G, E, K]``: the evidence of its recordings adds up."""
    with torch.no_grad():
        logits = encoder(scenes).logits.double()  # [B, E, K]
    total = logits.new_zeros(scenes.num_groups, *logits.shape[1:])
    summed: Tensor = total.index_add(0, scenes.group_index.to(logits.device), logits)
    return summed.log_softmax(-1)
