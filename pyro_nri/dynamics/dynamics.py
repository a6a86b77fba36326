"""What the rest of the library may rely on: how a structure and its modules move the entities by one frame."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class AbstractDynamics(nn.Module, ABC):
    """Edge and node modules composed by a structure (paper, section 3.1).

    One frame is ``num_substeps`` times: a message for each edge, summed over the senders of each receiver, then an
    update of each receiver. States are in raw units outside; a family scales inside.

    Attributes:
        num_edge_types: K.
        state_size: D.
        num_entity_kinds: number of node modules.
        num_substeps: rounds of messages in one frame. With one round, what an entity does in a frame depends on its own
            incoming edges alone, and a likelihood factorises over receivers.
    """

    num_edge_types: int
    state_size: int
    num_entity_kinds: int
    num_substeps: int = 1

    @abstractmethod
    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the constants between raw and scaled units, if there are any, from training scenes."""

    def for_rollouts(self) -> "AbstractDynamics":
        """The same modules as they foretell motion best: with more sub-steps where the motion tells of them."""
        return self

    @abstractmethod
    def messages(self, state: Tensor, structure: Tensor | None = None) -> Tensor:
        """Messages along the edges.

        Args:
            state: ``[*batch, N, D]``, raw units.
            structure: long ``[*batch, E]``, or None for the messages of all types.

        Returns:
            ``[*batch, E, M]`` of the given types, or ``[*batch, E, K, M]`` of all types.
        """

    @abstractmethod
    def update(self, state: Tensor, summed: Tensor, entity_kind: Tensor | None = None) -> Tensor:
        """State of each entity after one round, from its state and the sum of its incoming messages.

        Args:
            state: ``[*batch, D]``, raw units.
            summed: ``[*batch, M]``; batches broadcast.
            entity_kind: long ``[*batch]``, which node module; None where there is one.

        Returns:
            Next state ``[*batch, D]``, raw units.
        """

    def step(
        self,
        state: Tensor,
        structure: Tensor,
        *,
        edge_mask: Tensor | None = None,
        entity_kind: Tensor | None = None,
    ) -> Tensor:
        """One frame.

        Args:
            state: ``[*batch, N, D]``, raw units.
            structure: long ``[*batch, E]``; leading axes broadcast with those of ``state``, so that many structures
                can be tried on one state and its messages are computed once.
            edge_mask: bool ``[*batch, E]``, False where an edge does not exist.
            entity_kind: long ``[*batch, N]``.

        Returns:
            Next state ``[*batch, N, D]``.
        """
        batch = torch.broadcast_shapes(state.shape[:-2], structure.shape[:-1])
        for _ in range(self.num_substeps):
            if math.prod(batch) == math.prod(state.shape[:-2]):
                messages = self.messages(state.expand(*batch, -1, -1), structure.expand(*batch, -1))
            else:  # several structures for one state: all messages once, then a choice for each structure
                messages = choose_messages(self.messages(state), structure)
            if edge_mask is not None:
                messages = messages * edge_mask[..., None]
            state = self.update(state, sum_messages(messages), entity_kind)
        return state


def choose_messages(messages: Tensor, structure: Tensor) -> Tensor:
    """From the messages of all types ``[*batch, E, K, M]`` those of a structure ``[*batch, E]``: ``[*batch, E, M]``."""
    shape = torch.broadcast_shapes(messages.shape[:-2], structure.shape)
    index = structure.expand(shape)[..., None, None].expand(*shape, 1, messages.shape[-1])
    return messages.expand(*shape, -1, -1).gather(-2, index).squeeze(-2)


def incoming_messages(messages: Tensor) -> Tensor:
    """Sort the messages of all types ``[*batch, E, K, M]`` by receiver: ``[*batch, N, N - 1, K, M]``."""
    num_entities = edges.num_entities_of(messages.shape[-3])
    order = edges.incoming_edges(num_entities).to(messages.device)
    return messages[..., order, :, :]


def sum_messages(messages: Tensor) -> Tensor:
    """Sum messages ``[*batch, E, M]`` over the senders of each receiver: ``[*batch, N, M]``."""
    return incoming_messages(messages[..., None, :]).sum(-3).squeeze(-2)
