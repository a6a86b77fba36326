"""A network from a trajectory to a distribution over each edge's type: the learned proposal (paper, section 4)."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import fit_change_scale, fit_scaling
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class Encoder(nn.Module):
    """Passes over edges, entities and edges of every transition, then a mean over time.

    The paper takes NRI's encoder, which reads a trajectory of one fixed length as one long vector. This one shares its
    weights over time, so that it works for any number of frames and entities and learns from every transition; NRI's
    sequence of passes (entities to edges, edges to entities, back to edges with a skip) is kept.

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

        self.edge_first = mlp(4 * state_size, width, width)
        self.entity = mlp(width + 2 * state_size, width, width)
        self.edge_second = mlp(3 * width, width, width)
        self.output = mlp(width, width, num_edge_types, activate_output=False)
        for name in ("offset", "scale", "change_scale"):
            self.register_buffer(name, torch.zeros(state_size) if name == "offset" else torch.ones(state_size))
        self.offset: Tensor
        self.scale: Tensor
        self.change_scale: Tensor

    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the constants between raw and scaled units from training scenes."""
        offset, scale = fit_scaling(scenes)
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.change_scale.copy_(fit_change_scale(scenes))

    def forward(self, scenes: Scenes) -> dist.TorchDistribution:
        """Distribution of each edge's type.

        Args:
            scenes: B scenes in raw units.

        Returns:
            Categorical over K types with batch shape ``[B, E]``.
        """
        scenes = scenes.to(self.scale.dtype, self.scale.device)
        num_entities = scenes.num_entities
        sender = edges.senders(num_entities).to(self.scale.device)
        receiver = edges.receivers(num_entities).to(self.scale.device)
        state, following = scenes.trajectory[:, :-1], scenes.trajectory[:, 1:]
        entity = torch.cat([(state - self.offset) / self.scale, (following - state) / self.change_scale], -1)
        edge = torch.cat([entity[..., sender, :], entity[..., receiver, :]], -1)  # [B, T - 1, E, 4 D]
        first = _one(self.edge_first, edge) * scenes.edge_mask[:, None, :, None]
        summed = torch.zeros((*entity.shape[:-1], self.width), dtype=first.dtype, device=first.device)
        summed.index_add_(-2, receiver, first)
        hidden = _one(self.entity, torch.cat([entity, summed / max(1, num_entities - 1)], -1))  # [B, T - 1, N, W]
        edge = torch.cat([hidden[..., sender, :], hidden[..., receiver, :], first], -1)
        second = _one(self.edge_second, edge)  # [B, T - 1, E, W]
        seen = scenes.complete_frame[:, :-1] & scenes.complete_frame[:, 1:]
        weight = seen.to(second.dtype)[:, :, None, None]
        pooled = (second * weight).sum(1) / weight.sum(1).clamp(min=1)
        return dist.Categorical(logits=_one(self.output, pooled), validate_args=False)


def log_q(encoder: Encoder, scenes: Scenes) -> Tensor:
    """An encoder's log probabilities for each structure: the evidence of a group's recordings adds up, ``[G, E, K]``."""
    with torch.no_grad():
        logits = encoder(scenes).logits.double()  # [B, E, K]
    total = logits.new_zeros(scenes.num_groups, *logits.shape[1:])
    return total.index_add(0, scenes.group_index.to(logits.device), logits).log_softmax(-1)


def _one(module: ModuleLibrary, inputs: Tensor) -> Tensor:
    result: Tensor = module(inputs).squeeze(-2)
    return result

