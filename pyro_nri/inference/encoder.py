"""A network from a trajectory to a distribution over edge types: the learned proposal (paper, section 4).

As trained with the modules it gives one independent distribution for each edge. Once it has couplings (see
:mod:`pyro_nri.learning.distill`), it gives all edges into a receiver jointly too.
"""

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.inference.incoming import IncomingDistribution, comes_before
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
        reader: what makes the first embedding of each edge ``[B, E, W]`` of scaled states ``[B, T, N, D]`` and their
            scenes, in place of the mean over transitions.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        num_edge_types: int,
        state_size: int,
        *,
        width: int = 64,
        reader: nn.Module | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_edge_types = num_edge_types
        self.state_size = state_size
        self.width = width
        self.reader = reader

        def mlp(*sizes: int, activate_output: bool = True) -> ModuleLibrary:
            return ModuleLibrary(1, sizes, activate_output=activate_output, generator=generator)

        if reader is None:
            self.transition = mlp(5 * state_size, width, width)
        self.entity = mlp(width, width, width)
        self.edge = mlp(3 * width, width, width)
        self.output = mlp(width, width, num_edge_types, activate_output=False)
        self.units = StateUnits(state_size)
        self.register_module("coupling", None)
        self.coupling: SenderCoupling | None

    @property
    def rank(self) -> int | None:
        """R of the couplings, None where there are none."""
        return None if self.coupling is None else self.coupling.rank

    def add_coupling(self, rank: int = 8, *, generator: torch.Generator) -> None:
        """Let the encoder say what the types of edges into one receiver say of each other; at first, nothing.

        Args:
            rank: R, of the bilinear form.
            generator: source of the initial weights.

        Raises:
            ValueError: the encoder has couplings already, or ``rank`` is below 1.
        """
        if self.coupling is not None:
            raise ValueError("the encoder has couplings already")
        if rank < 1:
            raise ValueError(f"rank must be at least 1, found {rank}")
        scale = self.units.scale
        made = SenderCoupling(self.num_edge_types, self.width, rank, generator=generator)
        self.coupling = made.to(scale.device, scale.dtype)

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
        return dist.Categorical(logits=_apply(self.output, self._embedding(scenes)), validate_args=False)

    def incoming(self, scenes: Scenes, *, tied: bool = False) -> tuple[dist.TorchDistribution, IncomingDistribution]:
        """Distributions of the structures of G groups, from one pass; the evidence of a group's scenes adds up.

        The sender whose type is best known from its own logits is drawn first.

        Args:
            scenes: B scenes in G groups, raw units.
            tied: whether both edges of a pair have one type: their logits are then averaged.

        Returns:
            Each edge on its own, Categorical over K types with batch shape ``[G, E]``; all edges into a receiver
            jointly, batch ``[G, N]``, event ``[N - 1]``.

        Raises:
            ValueError: the encoder has no couplings.
        """
        if self.coupling is None:
            raise ValueError("the encoder has no couplings yet; distil it on posterior draws")
        embedding = self._embedding(scenes)  # [B, E, W]
        device, num_entities = embedding.device, scenes.num_entities
        group = scenes.group_index.to(device)

        def summed(value: Tensor) -> Tensor:
            return value.new_zeros(scenes.num_groups, *value.shape[1:]).index_add(0, group, value)

        logits = summed(_apply(self.output, embedding).log_softmax(-1))  # [G, E, K]
        into = edges.incoming_edges(num_entities).to(device)  # [N, N - 1]
        base = logits
        if tied:
            base = (logits + logits[:, edges.reverse_edges(num_entities).to(device)]) / 2
        base = base[:, into]  # [G, N, N - 1, K]
        exists = scenes.edge_mask.to(device)[:, into]  # [B, N, N - 1]
        known = base.detach().log_softmax(-1).amax(-1)  # [G, N, N - 1]
        order = known.argsort(dim=-1, descending=True, stable=True)
        shift, coupling = self.coupling(embedding[:, into], order[group], exists)
        joint = IncomingDistribution(
            base + summed(shift),
            summed(coupling),
            exists=exists[scenes.group_first_scene],
            order=order,
            validate_args=False,
        )
        return dist.Categorical(logits=logits, validate_args=False), joint

    def _embedding(self, scenes: Scenes) -> Tensor:
        """What the encoder knows of each edge, ``[B, E, W]``."""
        scenes = scenes.to(self.units.scale.dtype, self.units.scale.device)
        sender = edges.senders(scenes.num_entities).to(self.units.scale.device)
        receiver = edges.receivers(scenes.num_entities).to(self.units.scale.device)
        seen = scenes.complete_frame[:, :-1] & scenes.complete_frame[:, 1:]  # [B, T - 1]
        if self.reader is None:
            hidden = self._mean_transition(scenes, seen[..., None, None], sender, receiver)
        else:
            hidden = self.reader(self.units(scenes.trajectory), scenes)
        if self.coupling is not None:
            count = seen.sum(1).clamp(min=1).to(hidden.dtype)  # [B]
            hidden = hidden + count.log()[:, None, None] * self.coupling.amount
        others = scenes.entity_mask.sum(-1).sub(1).clamp(min=1)[:, None, None]
        for _ in range(2):
            present = hidden * scenes.edge_mask[..., None]
            summed = hidden.new_zeros(scenes.num_scenes, scenes.num_entities, self.width)
            summed = summed.index_add(-2, receiver, present)
            entity = _apply(self.entity, summed / others)  # [B, N, W]
            hidden = _apply(self.edge, torch.cat([entity[:, sender], entity[:, receiver], hidden], -1))
        return hidden

    def _mean_transition(self, scenes: Scenes, seen: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
        """Mean over seen transitions of what the first layers make of each, ``[B, E, W]``."""
        before, after = scenes.trajectory[:, :-1], scenes.trajectory[:, 1:]
        state, change = self.units(before), (after - before) / self.units.change_scale
        each = torch.cat([state, change], -1)  # [B, T - 1, N, 2 D]
        apart = state[..., sender, :] - state[..., receiver, :]
        edge = _apply(self.transition, torch.cat([each[..., sender, :], each[..., receiver, :], apart], -1))
        return (edge * seen).sum(1) / seen.sum(1).clamp(min=1)


class SenderCoupling(nn.Module):
    """What the types of edges into one receiver say of each other: bilinear forms of the edges' embeddings.

    An edge is described by its own embedding and the means of those of the senders drawn before and after it. Fresh
    weights say nothing: couplings, shifts and ``amount`` are zero.

    Args:
        num_edge_types: K.
        width: W, of the embeddings and of the hidden layers.
        rank: R.
        generator: source of the initial weights.

    Attributes:
        amount: what the logarithm of the number of seen transitions adds to the embedding of an edge, ``[W]``: a mean
            over time does not tell how much was seen.
    """

    def __init__(self, num_edge_types: int, width: int, rank: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.num_edge_types = num_edge_types
        self.rank = rank
        self.amount = nn.Parameter(torch.zeros(width))

        def mlp(size_out: int, *, is_zero: bool = False) -> ModuleLibrary:
            made = ModuleLibrary(1, (3 * width, width, size_out), activate_output=False, generator=generator)
            if is_zero:
                nn.init.zeros_(made.weights[-1])
            return made

        self.query = mlp(num_edge_types * rank)
        self.key = mlp(num_edge_types * rank, is_zero=True)
        self.shift = mlp(num_edge_types, is_zero=True)

    def forward(self, embedding: Tensor, order: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the logits of each sender.

        Args:
            embedding: of the edges into each receiver, ``[B, N, N - 1, W]``.
            order: senders in the order in which they are drawn, long ``[B, N, N - 1]``.
            exists: which senders exist, bool ``[B, N, N - 1]``.

        Returns:
            Whatever the types are, ``[B, N, N - 1, K]``; for each type of each other sender,
            ``[B, N, N - 1, K, N - 1, K]``.
        """
        present = embedding * exists[..., None]
        share = exists.sum(-1).clamp(min=1)[..., None, None]
        before = comes_before(order).to(embedding.dtype)  # [B, N, N - 1, N - 1]
        known, unknown = (which @ present / share for which in (before, before.mT))
        described = torch.cat([embedding, known, unknown], -1)  # [B, N, N - 1, 3 W]
        sizes = (self.num_edge_types, self.rank)
        query, key = (_apply(part, described).unflatten(-1, sizes) for part in (self.query, self.key))
        coupling = torch.einsum("bnekr,bndlr->bnekdl", query, key) / math.sqrt(self.rank)
        return _apply(self.shift, described), coupling


def _apply(network: ModuleLibrary, inputs: Tensor) -> Tensor:
    """The only module of a library, ``[*batch, in]`` to ``[*batch, out]``."""
    result: Tensor = network(inputs).squeeze(-2)
    return result


def log_q(encoder: Encoder, scenes: Scenes) -> Tensor:
    """An encoder's log probabilities for each structure, ``[G, E, K]``: the evidence of its recordings adds up."""
    with torch.no_grad():
        logits = encoder(scenes).logits.double()  # [B, E, K]
    total = logits.new_zeros(scenes.num_groups, *logits.shape[1:])
    summed: Tensor = total.index_add(0, scenes.group_index.to(logits.device), logits)
    return summed.log_softmax(-1)


def learned_q(encoder: Encoder, scenes: Scenes, *, tied: bool = False) -> tuple[Tensor, IncomingDistribution | None]:
    """What moves may know of an encoder, in float64 and without gradients.

    Args:
        encoder: with or without couplings.
        scenes: B scenes in G groups.
        tied: see :meth:`Encoder.incoming`.

    Returns:
        Log probabilities for each edge, ``[G, E, K]``, as :func:`log_q`; the joint distribution of the edges into each
        receiver, batch ``[G, N]``, or None if the encoder has no couplings.
    """
    if encoder.coupling is None:
        return log_q(encoder, scenes), None
    with torch.no_grad():
        edge, joint = encoder.incoming(scenes, tied=tied)
    return edge.logits.double().log_softmax(-1), joint.double()
