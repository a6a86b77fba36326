"""Motion under structures whose edges may be mixtures of types: NRI's two decoders."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.dynamics import AbstractDynamics, sum_messages
from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class AbstractDecoder(nn.Module, ABC):
    """Next states given a weight for each type at each edge; a structure is the special case of weights 0 and 1."""

    @abstractmethod
    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the constants between raw and scaled units from training scenes."""

    @abstractmethod
    def forward(self, scenes: Scenes, weight: Tensor, *, horizon: int) -> Tensor:
        """Predict every frame but the first, from observed states at least every ``horizon`` frames.

        Args:
            scenes: B scenes in the dtype of the networks.
            weight: ``[B, E, K]``.
            horizon: H.

        Returns:
            ``[B, T - 1, N, D]``, raw units.
        """

    @abstractmethod
    def rollout(self, scenes: Scenes, weight: Tensor, *, start: int, num_steps: int) -> Tensor:
        """Predict the frames after ``start`` without looking at them, ``[B, num_steps, N, D]``."""


class GraphDecoder(AbstractDecoder):
    """The dynamics of the main method; a message is the weighted mean of those of all types (NRI's MLP decoder).

    Args:
        dynamics: edge and node modules.
    """

    def __init__(self, dynamics: AbstractDynamics) -> None:
        super().__init__()
        self.dynamics = dynamics

    def fit_scaling(self, scenes: Scenes) -> None:
        self.dynamics.fit_scaling(scenes)

    def forward(self, scenes: Scenes, weight: Tensor, *, horizon: int) -> Tensor:
        starts = scenes.trajectory[:, :-1:horizon]  # [B, blocks, N, D]
        num_steps = min(horizon, scenes.num_frames - 1)
        frames = self._roll(starts, weight[:, None], scenes, num_steps)  # H times [B, blocks, N, D]
        return torch.stack(frames, 2).flatten(1, 2)[:, : scenes.num_frames - 1]

    def rollout(self, scenes: Scenes, weight: Tensor, *, start: int, num_steps: int) -> Tensor:
        frames = self._roll(scenes.trajectory[:, start, None], weight[:, None], scenes, num_steps)
        return torch.cat(frames, 1)

    def _roll(self, state: Tensor, weight: Tensor, scenes: Scenes, num_steps: int) -> list[Tensor]:
        """Feed states ``[B, blocks, N, D]`` back under weights ``[B, 1, E, K]``."""
        weight = weight * scenes.edge_mask[:, None, :, None]
        kind = None if scenes.entity_kind is None else scenes.entity_kind[:, None].expand(state.shape[:-1])
        frames = []
        for _ in range(num_steps):
            for _ in range(self.dynamics.num_substeps):
                messages = (self.dynamics.messages(state) * weight[..., None]).sum(-2)  # [B, blocks, E, M]
                state = self.dynamics.update(state, sum_messages(messages), kind)
            frames.append(state)
        return frames


class RecurrentDecoder(AbstractDecoder):
    """NRI's recurrent decoder: entities remember, and messages are made of what they remember.

    For motions that the present state does not determine. Gates as in the released code; one stack of edge modules
    holds all types.

    Args:
        num_edge_types: K.
        state_size: D.
        width: of memories and hidden layers.
        no_interaction: whether type 0 sends no message.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        num_edge_types: int,
        state_size: int,
        *,
        width: int = 64,
        no_interaction: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.width = width
        self.no_interaction = no_interaction
        self.units = StateUnits(state_size)

        def linear(*sizes: int, num_modules: int = 1) -> ModuleLibrary:
            return ModuleLibrary(num_modules, sizes, activate_output=False, generator=generator)

        senders = num_edge_types - int(no_interaction)
        self.first = linear(2 * width, width, num_modules=senders)
        self.second = ModuleLibrary(senders, (width, width), activate_output=False, generator=generator)
        self.from_state = linear(state_size, 3 * width)
        self.from_messages = linear(width, 3 * width)
        self.output = linear(width, width, width, state_size)

    def fit_scaling(self, scenes: Scenes) -> None:
        self.units.fit(scenes)

    def forward(self, scenes: Scenes, weight: Tensor, *, horizon: int) -> Tensor:
        memory = self._empty(scenes)
        state, frames = scenes.trajectory[:, 0], []
        for t in range(scenes.num_frames - 1):
            if t % horizon == 0:
                state = scenes.trajectory[:, t]
            state, memory = self._step(state, memory, weight, scenes.edge_mask)
            frames.append(state)
        return torch.stack(frames, 1)

    def rollout(self, scenes: Scenes, weight: Tensor, *, start: int, num_steps: int) -> Tensor:
        memory, frames = self._empty(scenes), []
        for t in range(start):
            _, memory = self._step(scenes.trajectory[:, t], memory, weight, scenes.edge_mask)
        state = scenes.trajectory[:, start]
        for _ in range(num_steps):
            state, memory = self._step(state, memory, weight, scenes.edge_mask)
            frames.append(state)
        return torch.stack(frames, 1)

    def _empty(self, scenes: Scenes) -> Tensor:
        return self.units.scale.new_zeros(scenes.num_scenes, scenes.num_entities, self.width)

    def _step(self, state: Tensor, memory: Tensor, weight: Tensor, edge_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Next state ``[B, N, D]`` and memory ``[B, N, W]``."""
        num_entities = state.shape[-2]
        sender = edges.senders(num_entities).to(state.device)
        receiver = edges.receivers(num_entities).to(state.device)
        hidden = torch.tanh(self.first(torch.cat([memory[:, sender], memory[:, receiver]], -1)))  # [B, E, K, W]
        every = torch.tanh(_each(self.second, hidden))
        used = weight[..., int(self.no_interaction) :] * edge_mask[..., None]
        messages = (every * used[..., None]).sum(-2) / used.shape[-1]  # [B, E, W]
        summed = sum_messages(messages) / state.shape[-1]  # the released code divides by the size of the state
        reset, keep, new = self.from_state(self.units(state)).squeeze(-2).chunk(3, -1)
        by_reset, by_keep, by_new = self.from_messages(summed).squeeze(-2).chunk(3, -1)
        gate = torch.sigmoid(keep + by_keep)
        memory = (1 - gate) * torch.tanh(new + torch.sigmoid(reset + by_reset) * by_new) + gate * memory
        change = self.output(memory).squeeze(-2)
        return state + self.units.change_scale * change, memory


def _each(library: ModuleLibrary, inputs: Tensor) -> Tensor:
    """One-layer modules on inputs of their own: ``[*batch, K, in]`` to ``[*batch, K, out]``."""
    result: Tensor = torch.einsum("...ki,kio->...ko", inputs, library.weights[0]) + library.biases[0]
    return result
