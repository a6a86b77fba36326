"""The paper's dynamics: neural edge and node modules, no physics assumed."""

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Widths and depths by name. "paper": edge MLP 2D-256-256-256, node MLP (D + 256)-256-256-256-D.
PRESETS = {
    "small": {"width": 64, "edge_layers": 2, "node_layers": 1},
    "paper": {"width": 256, "edge_layers": 3, "node_layers": 3},
}


class MessagePassing(AbstractDynamics):
    """Graph network with a neural module for each edge type and each kind of entity (paper, section 3.1).

    The message of the edge i -> j of type k is ``A edge_module[k](s_i, s_j)``; the next state is
    ``s_j + change_scale * node_module(s_j, sum_i m_ij)``. The linear map ``A`` is the part of the node module's first
    layer that acts on the sum: because it is linear it may act before the sum, which is the same function and lets
    a message be prepared once however many structures use it. It is shared by the node modules.

    Args:
        num_edge_types: K.
        state_size: D.
        preset: "small" (width 64) or "paper" (width 256, its depths).
        num_entity_kinds: number of node modules.
        no_interaction: whether type 0 means "no interaction" and sends no message.
        generator: source of the initial weights.

    Raises:
        ValueError: a count is below 1, the preset is unknown, or the only type would send nothing.
    """

    def __init__(
        self,
        num_edge_types: int,
        state_size: int,
        *,
        preset: str = "small",
        num_entity_kinds: int = 1,
        no_interaction: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if num_edge_types < 1:
            raise ValueError(f"num_edge_types must be at least 1, found {num_edge_types}")
        if no_interaction and num_edge_types < 2:
            raise ValueError("num_edge_types must be at least 2 where type 0 means no interaction, found 1")
        if num_entity_kinds < 1:
            raise ValueError(f"num_entity_kinds must be at least 1, found {num_entity_kinds}")
        if preset not in PRESETS:
            raise ValueError(f"preset must be one of {', '.join(PRESETS)}, found {preset!r}")
        size = PRESETS[preset]
        width = size["width"]
        self.num_edge_types = num_edge_types
        self.state_size = state_size
        self.num_entity_kinds = num_entity_kinds
        self.no_interaction = no_interaction
        self.preset = preset
        self.edge_modules = ModuleLibrary(
            num_edge_types - int(no_interaction),
            [2 * state_size] + [width] * size["edge_layers"],
            activate_output=True,
            generator=generator,
        )
        # The node module's first layer in two parts: what acts on the sum of messages (shared), what acts on the state.
        self.message_map = ModuleLibrary(1, [width, width], activate_output=False, generator=generator)
        self.state_map = ModuleLibrary(
            num_entity_kinds, [state_size, width], activate_output=False, generator=generator
        )
        self.node_modules = ModuleLibrary(
            num_entity_kinds,
            [width] * size["node_layers"] + [state_size],
            activate_output=False,
            generator=generator,
        )
        self.units = StateUnits(state_size)

    def fit_scaling(self, scenes: Scenes) -> None:
        self.units.fit(scenes)

    def messages(self, state: Tensor, structure: Tensor | None = None) -> Tensor:
        scaled = self.units(state)
        num_entities = state.shape[-2]
        sender = edges.senders(num_entities).to(state.device)
        receiver = edges.receivers(num_entities).to(state.device)
        inputs = torch.cat([scaled[..., sender, :], scaled[..., receiver, :]], dim=-1)  # [*batch, E, 2 D]
        map_weight = self.message_map.weights[0][0]
        if structure is None:
            messages: Tensor = self.edge_modules(inputs) @ map_weight  # [*batch, E, K, M]
            if self.no_interaction:
                messages = nn.functional.pad(messages, (0, 0, 1, 0))
            return messages
        module = structure - int(self.no_interaction)
        chosen: Tensor = self.edge_modules.select(inputs, module) @ map_weight
        return chosen

    def update(self, state: Tensor, summed: Tensor, entity_kind: Tensor | None = None) -> Tensor:
        scaled = self.units(state)
        bias = self.message_map.biases[0][0]
        if self.num_entity_kinds == 1:
            # The large array is touched twice only: one state often meets many sums of messages.
            hidden = torch.relu_(summed + (self.state_map(scaled).squeeze(-2) + bias))
            change = self.node_modules(hidden).squeeze(-2)
        else:
            if entity_kind is None:
                raise ValueError(f"entity_kind is missing, the model has {self.num_entity_kinds} node modules")
            hidden = torch.relu(self.state_map.select(scaled, entity_kind.expand(scaled.shape[:-1])) + summed + bias)
            change = self.node_modules.select(hidden, entity_kind.expand(hidden.shape[:-1]))
        following: Tensor = state + self.units.change_scale * change
        return following
