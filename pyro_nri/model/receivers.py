"""Likelihoods that factorise over receivers, evaluated once and looked up by every move.

With horizon 1 and nothing hidden, ``log p(x | z) = sum_j l_j(incoming types of j)``. A *code* numbers the types of a
receiver's N - 1 incoming edges as the digits of a number in base K, the first sender most significant.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics, incoming_messages
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Largest number of floats in one intermediate tensor: on a CPU such that chunks fit its cache, on an accelerator such
#: that they keep it busy.
CHUNK_FLOATS, CHUNK_FLOATS_ACCELERATED = 2_000_000, 100_000_000


def chunk_size(floats: int, device: torch.device) -> int:
    """How many items of so many floats each are worked on at a time, 1 at least."""
    limit = CHUNK_FLOATS if device.type == "cpu" else CHUNK_FLOATS_ACCELERATED
    return max(1, limit // max(floats, 1))


def num_codes(num_edge_types: int, num_entities: int) -> int:
    """Number of codes of one receiver, ``K ** (N - 1)``."""
    return int(num_edge_types ** (num_entities - 1))


def code_types(num_edge_types: int, num_entities: int) -> Tensor:
    """Types of the incoming edges that each code stands for, long ``[K ** (N - 1), N - 1]``.

    >>> code_types(2, 3).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    place = _places(num_edge_types, num_entities)
    return torch.arange(num_codes(num_edge_types, num_entities))[:, None] // place % num_edge_types


def codes_of(structure: Tensor, num_edge_types: int) -> Tensor:
    """Code of each receiver, long ``[*batch, N]``, of structures ``[*batch, E]``."""
    num_entities = edges.num_entities_of(structure.shape[-1])
    incoming = structure.long()[..., edges.incoming_edges(num_entities).to(structure.device)]  # [*batch, N, N - 1]
    return (incoming * _places(num_edge_types, num_entities).to(structure.device)).sum(-1)


def structure_of(codes: Tensor, num_edge_types: int) -> Tensor:
    """Structures ``[*batch, E]`` whose receivers have the codes ``[*batch, N]``."""
    num_entities = codes.shape[-1]
    types = codes[..., None] // _places(num_edge_types, num_entities).to(codes.device) % num_edge_types
    return edges.from_incoming(types)


def _places(num_edge_types: int, num_entities: int) -> Tensor:
    return num_edge_types ** torch.arange(num_entities - 2, -1, -1)


def places_of_edges(num_entities: int, edge: Tensor) -> tuple[Tensor, Tensor]:
    """Receiver of each edge, and the place of its sender among the receiver's senders; both as ``edge``."""
    receiver = edges.receivers(num_entities).to(edge.device)[edge]
    sender = edges.senders(num_entities).to(edge.device)[edge]
    return receiver, sender - (sender > receiver).long()


class AbstractLikelihood(ABC):
    """Log-likelihood of structures of G groups of scenes under frozen modules.

    Attributes:
        num_edge_types: K.
        edge_mask: existing edges of each group, bool ``[G, E]``.
        is_density: whether this is the density of the frames given frame 0. A composite likelihood is not: under one
            fixed law and noise it may rank structures and their priors, and nothing else.
        is_cached: whether what structures have in common was computed once, so that :meth:`edge_alternatives` costs
            about as much as one evaluation of a structure.
        relaxed: where the likelihood is linear in the types, a normal distribution of their weights, else None.
    """

    num_edge_types: int
    edge_mask: Tensor
    is_density: bool = True
    is_cached: bool = True
    relaxed: Relaxed | None = None

    @abstractmethod
    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Terms that sum to the log-likelihood, float64 ``[C, G, N]`` (``[C, G, 1]`` if it does not factorise).

        Args:
            structure: long ``[C, G, E]``.
            known: structures of the same shape and their terms; only receivers with other incoming types are evaluated.
        """

    def log_likelihood(self, structure: Tensor) -> Tensor:
        """Log-likelihood ``[C, G]`` of structures ``[C, G, E]``."""
        return self.receiver_terms(structure).sum(-1)

    def blunted(self) -> "list[AbstractLikelihood]":
        """The same with wide noise, the widest first: on them searches do not get stuck. None by default."""
        return []

    def likely_types(self) -> Tensor | None:
        """A guess at the probabilities of each edge's types, ``[G, E, K]``, where many senders call for one."""
        return None

    def edge_alternatives(self, structure: Tensor, edge: Tensor) -> Tensor:
        """Log-likelihood if one of some edges alone took each type, up to a constant for each edge.

        Args:
            structure: long ``[C, G, E]``.
            edge: numbers of M edges, long ``[C, G, M]``.

        Returns:
            float64 ``[C, G, M, K]``; meaningless where an end of an edge is padding.
        """
        every = []
        for number in range(edge.shape[-1]):
            one = edge[..., number, None]
            each = [structure.scatter(-1, one, k) for k in range(self.num_edge_types)]
            every.append(self.log_likelihood(torch.cat(each)).unflatten(0, (self.num_edge_types, -1)))
        return torch.stack(every, -1).movedim(0, -1)


class ReceiverTable(AbstractLikelihood):
    """Log-likelihoods of all codes of all receivers: every evaluation is a look-up.

    Args:
        table: float64 ``[G, N, K ** (N - 1)]``.
        num_edge_types: K.
        edge_mask: bool ``[G, E]``.
        is_density: False for the table of a composite likelihood.
    """

    def __init__(self, table: Tensor, num_edge_types: int, edge_mask: Tensor, *, is_density: bool = True) -> None:
        self.is_density = is_density
        self.table = table
        self.num_edge_types = num_edge_types
        self.edge_mask = edge_mask

    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        codes = codes_of(structure, self.num_edge_types)  # [C, G, N]
        return self.table.expand(*codes.shape, -1).gather(-1, codes[..., None]).squeeze(-1)

    def edge_alternatives(self, structure: Tensor, edge: Tensor) -> Tensor:
        num_types, num_entities = self.num_edge_types, self.table.shape[1]
        receiver, digit = places_of_edges(num_entities, edge)
        place = num_types ** (num_entities - 2 - digit)
        codes = codes_of(structure, num_types)  # [C, G, N]
        base = codes.gather(-1, receiver) - structure.gather(-1, edge) * place  # with type 0 at this edge
        alternatives = base[..., None] + torch.arange(num_types, device=edge.device) * place[..., None]
        group = torch.arange(edge.shape[1], device=edge.device)[:, None, None]
        return self.table[group, receiver[..., None], alternatives]


class MessageCache(AbstractLikelihood):
    """Messages of all types, computed once; a move re-evaluates only the receivers whose incoming types it changed.

    For scenes whose receiver table would be too large. Memory ``B (T - 1) E K M`` floats.

    Args:
        messages: sorted by receiver, ``[B, T - 1, N, N - 1, K, M]``, 0 where the edge does not exist.
        score: from scenes, receivers, long ``[R]``, and sums of their incoming messages ``[R, T - 1, M]`` to terms of
            the log-likelihood ``[R, T - 1]``, 0 where a transition does not count.
        scenes: one or more scenes for each group.
        is_density: False for the messages of a composite likelihood.
        relaxed: see :class:`AbstractLikelihood`.
    """

    def __init__(
        self,
        messages: Tensor,
        score: Callable[[Tensor, Tensor, Tensor], Tensor],
        scenes: Scenes,
        *,
        is_density: bool,
        relaxed: Relaxed | None = None,
    ) -> None:
        self.relaxed = relaxed
        self.score = score
        self.scenes = scenes
        self.is_density = is_density
        self.num_edge_types = messages.shape[-2]
        self.edge_mask = scenes.edge_mask[scenes.group_first_scene]
        # [B, N, N - 1, K, T - 1, M]: one look-up brings all frames of a message
        self.messages = messages.movedim(1, 4).contiguous()

    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        num_entities = self.scenes.num_entities
        incoming = structure.long()[..., edges.incoming_edges(num_entities).to(structure.device)]  # [C, G, N, N - 1]
        if known is None:
            terms = self.messages.new_zeros(incoming.shape[:-1], dtype=torch.float64)
            changed = torch.ones_like(terms, dtype=torch.bool)
        else:
            before = known[0].long()[..., edges.incoming_edges(num_entities).to(structure.device)]
            changed = (incoming != before).any(-1)
            terms = torch.where(changed, torch.zeros_like(known[1]), known[1])
        # One row for each changed receiver and each recording of its group.
        rows = changed[:, self.scenes.group_index].nonzero()  # [R, 3]: chain, scene, receiver
        size = self.messages[0, 0].numel() // self.num_edge_types
        for part in rows.split(chunk_size(size, rows.device)) if len(rows) else ():
            chain, scene, receiver = part.unbind(-1)
            group = self.scenes.group_index[scene]
            types = incoming[chain, group, receiver]  # [R, N - 1]
            value = self._evaluate(scene, receiver, types)
            terms.index_put_((chain, group, receiver), value, accumulate=True)
        return terms

    def edge_alternatives(self, structure: Tensor, edge: Tensor) -> Tensor:
        num_entities, num_types = self.scenes.num_entities, self.num_edge_types
        receiver, sender = places_of_edges(num_entities, edge)  # [C, G, M]
        incoming = structure.long()[..., edges.incoming_edges(num_entities).to(structure.device)]  # [C, G, N, N - 1]
        terms = self.messages.new_zeros((*edge.shape, num_types), dtype=torch.float64)
        rows = torch.ones_like(edge[:, self.scenes.group_index], dtype=torch.bool).nonzero()  # chain, scene, number
        size = self.messages[0, 0].numel() // num_types + self.messages[0, 0, 0].numel()
        with torch.no_grad():
            for part in rows.split(chunk_size(size, rows.device)):
                chain, scene, number = part.unbind(-1)
                group = self.scenes.group_index[scene]
                into, place = receiver[chain, group, number], sender[chain, group, number]
                types = incoming[chain, group, into]  # [R, N - 1]
                chosen = self.messages[scene[:, None], into[:, None], torch.arange(num_entities - 1), types]
                others = chosen.sum(1) - chosen[torch.arange(len(part)), place]  # [R, T - 1, M]
                tried = (others[:, None] + self.messages[scene, into, place]).flatten(0, 1)  # [R K, T - 1, M]
                value = self.score(scene.repeat_interleave(num_types), into.repeat_interleave(num_types), tried)
                value = value.double().sum(-1).view(-1, num_types)
                terms.index_put_((chain, group, number), value, accumulate=True)
        return terms

    def _evaluate(self, scene: Tensor, receiver: Tensor, types: Tensor) -> Tensor:
        """Terms ``[R]`` of receivers ``[R]`` in scenes ``[R]`` with incoming types ``[R, N - 1]``."""
        with torch.no_grad():
            # [R, N - 1, T - 1, M]: the message of the chosen type from each sender
            sender = torch.arange(types.shape[-1], device=types.device)
            chosen = self.messages[scene[:, None], receiver[:, None], sender, types]
            return self.score(scene, receiver, chosen.sum(1)).double().sum(-1)


def message_cache(
    dynamics: AbstractDynamics,
    noise: AbstractNoise,
    scenes: Scenes,
    context: Tensor | None = None,
    power: Tensor | None = None,
) -> MessageCache:
    """The messages of dynamics whose frames are one round.

    Args:
        dynamics: frozen modules.
        noise: frozen noise.
        scenes: B scenes, floats in the dtype of the modules.
        context: what the noise depends on, ``[B, T - 1, N, F]``.
        power: to which each receiver's likelihood is raised, ``[B, N]``; by default it stays a density.
    """
    with torch.no_grad():
        messages = incoming_messages(
            dynamics.messages(scenes.trajectory[:, :-1]) * scenes.edge_mask[:, None, :, None, None]
        )

    def score(scene: Tensor, receiver: Tensor, summed: Tensor) -> Tensor:
        state = scenes.trajectory[scene, :-1, receiver]  # [R, T - 1, D]
        kind = None if scenes.entity_kind is None else scenes.entity_kind[scene, receiver][:, None]
        prediction = dynamics.update(state, summed, kind)
        each = None if context is None else context[scene, :, receiver]
        log_prob = noise(prediction, each).log_prob(scenes.trajectory[scene, 1:, receiver])  # [R, T - 1]
        if power is not None:
            log_prob = log_prob * power[scene, receiver, None].to(log_prob)
        return torch.where(scenes.transition_mask[scene, :, receiver], log_prob, torch.zeros_like(log_prob))

    return MessageCache(messages, score, scenes, is_density=power is None)


def receiver_table(
    dynamics: AbstractDynamics,
    noise: AbstractNoise,
    scenes: Scenes,
    context: Tensor | None = None,
    power: Tensor | None = None,
) -> ReceiverTable:
    """Evaluate every code of every receiver, summed over the scenes of each group.

    Args:
        dynamics: frozen modules whose frames are one round.
        noise: frozen noise.
        scenes: B scenes in G groups, floats in the dtype of the modules.
        context: what the noise depends on, ``[B, T - 1, N, F]``.
        power: to which each receiver's likelihood is raised, ``[B, N]``; by default it stays a density.

    Returns:
        The table ``[G, N, K ** (N - 1)]``; codes that give a padded sender a type other than 0 repeat the value of
        type 0.
    """
    num_types, num_entities = dynamics.num_edge_types, scenes.num_entities
    per_scene = (scenes.num_frames - 1) * num_entities * num_codes(num_types, num_entities) * 64
    size = chunk_size(per_scene, scenes.trajectory.device)
    tables = []
    with torch.no_grad():
        for start in range(0, scenes.num_scenes, size):
            some = slice(start, start + size)
            tables.append(_table_of_chunk(dynamics, noise, scenes[some], None if context is None else context[some]))
    table = torch.cat(tables)
    if power is not None:
        table = table * power[..., None].to(table)
    return grouped_table(table, num_types, scenes, is_density=power is None)


def grouped_table(table: Tensor, num_edge_types: int, scenes: Scenes, *, is_density: bool) -> ReceiverTable:
    """Tables of B scenes ``[B, N, K ** (N - 1)]``, added up over the scenes of each group."""
    summed = table.new_zeros(scenes.num_groups, *table.shape[1:], dtype=torch.float64)
    summed.index_add_(0, scenes.group_index, table.double())
    return ReceiverTable(summed, num_edge_types, scenes.edge_mask[scenes.group_first_scene], is_density=is_density)


def sums_of_codes(incoming: Tensor) -> Tensor:
    """Sums of messages ``[*batch, N - 1, K, M]`` for every code: ``[*batch, K ** (N - 1), M]``."""
    summed = incoming[..., 0, :, :]  # codes of the first sender; then one more digit at a time
    for sender in range(1, incoming.shape[-3]):
        summed = (summed[..., :, None, :] + incoming[..., sender, None, :, :]).flatten(-3, -2)
    return summed


def _table_of_chunk(dynamics: AbstractDynamics, noise: AbstractNoise, scenes: Scenes, context: Tensor | None) -> Tensor:
    """Log-likelihoods ``[B, N, K ** (N - 1)]`` of every code in every scene."""
    trajectory = scenes.trajectory
    state = trajectory[:, :-1]  # [B, T - 1, N, D]
    messages = dynamics.messages(state) * scenes.edge_mask[:, None, :, None, None]
    summed = sums_of_codes(incoming_messages(messages))  # [B, T - 1, N, K ** (N - 1), M]
    kind = None if scenes.entity_kind is None else scenes.entity_kind[:, None, :, None]
    prediction = dynamics.update(state[..., None, :], summed, kind)  # [B, T - 1, N, K ** (N - 1), D]
    each = None if context is None else context[..., None, :]
    log_prob = noise(prediction, each).log_prob(trajectory[:, 1:, :, None, :])
    log_prob = torch.where(scenes.transition_mask[..., None], log_prob, torch.zeros_like(log_prob))
    return log_prob.double().sum(1)
