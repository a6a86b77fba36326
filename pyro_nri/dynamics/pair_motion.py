"""Motion under forces along separations, sub-step by sub-step: the inner loop of pair forces.

Inside, the batch stands last, so that each operation runs over one long row: positions and velocities are
``[N, S, B]``. A pair's distance, and what it looks up in the tables of the laws, is computed once for both of its
edges.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.scenes import edges


class PairMotion:
    """Motion of batches of entities under given structures.

    Args:
        laws: over distances.
        table: :meth:`ForceLaws.table` of them, ``[K, M]``, in the dtype of the states to come.
        structure: long ``[*batch, E]``.
        edge_mask: bool, broadcasts with ``structure``; None where all edges exist.
        walls: coordinates of the walls, ``[S]`` each.
    """

    def __init__(
        self, laws: ForceLaws, table: Tensor, structure: Tensor, edge_mask: Tensor | None, walls: tuple[Tensor, Tensor]
    ) -> None:
        num_entities = edges.num_entities_of(structure.shape[-1])
        gaps = torch.arange(1, num_entities)
        self.low_end = torch.cat([torch.arange(num_entities - gap) for gap in gaps])
        self.high_end = self.low_end + gaps.repeat_interleave(num_entities - gaps)
        number = edges.edge_number(num_entities)  # [sender, receiver]
        onto_high, onto_low = number[self.low_end, self.high_end], number[self.high_end, self.low_end]
        self.low_end, self.high_end = self.low_end.to(structure.device), self.high_end.to(structure.device)
        self.num_entities = num_entities
        self.num_points = table.shape[-1]
        self.scale = (self.num_points - 1) / float(laws.high - laws.low)
        self.offset = -float(laws.low) * self.scale
        self.value, self.rise = table[:, :-1].reshape(-1), table.diff(dim=-1).reshape(-1)
        self.bend = laws.bend(table).reshape(-1) / 2
        self.batch = structure.shape[:-1]
        rows = structure.reshape(-1, structure.shape[-1]).T * (self.num_points - 1)  # [E, B]
        exists = None if edge_mask is None or bool(edge_mask.all()) else edge_mask.expand_as(structure)
        masks = None if exists is None else exists.reshape(-1, exists.shape[-1]).T.to(table)
        self.row = [rows[onto_high]]
        self.mask = [None if masks is None else masks[onto_high]]
        if not torch.equal(rows[onto_high], rows[onto_low]) or (
            masks is not None and not torch.equal(masks[onto_high], masks[onto_low])
        ):
            self.row.append(rows[onto_low])
            self.mask.append(None if masks is None else masks[onto_low])
        bounded = bool(walls[0].isfinite().any() or walls[1].isfinite().any())
        self.walls = tuple(wall[:, None] for wall in walls) if bounded else None
        #: Largest component of a total force before any limit, ``[B]``, for who sets it to 0 before a run.
        self.peak: Tensor | None = None

    def flat(self, value: Tensor) -> Tensor:
        """``[*batch, N, S]`` as ``[N, S, B]``."""
        return value.expand(*self.batch, *value.shape[-2:]).reshape(-1, *value.shape[-2:]).permute(1, 2, 0).contiguous()

    def unflat(self, value: Tensor) -> Tensor:
        """``[N, S, B]`` as ``[*batch, N, S]``."""
        return value.permute(2, 0, 1).reshape(*self.batch, *value.shape[:2])

    def each(self, value: Tensor) -> Tensor:
        """A number for all of the batch, or ``[*batch, 1, 1]`` as ``[B]``."""
        if value.dim() == 0:
            return value
        return value.expand(*self.batch, 1, 1).reshape(-1)

    def force(self, position: Tensor) -> Tensor:
        """Total force on each entity, ``[N, S, B]``."""
        apart = position[self.high_end] - position[self.low_end]  # [P, S, B]
        square = apart.square().sum(1).clamp(min=torch.finfo(apart.dtype).tiny ** 0.5)
        place = (square.log() * (self.scale / 2) + self.offset).clamp(min=0)
        index = place.detach().long().clamp(max=self.num_points - 2)
        share = place - index
        inside = share.clamp(0, 1)
        arch = inside * (inside - 1)
        parts = []
        for row, mask in zip(self.row, self.mask, strict=True):
            here = row + index
            value = (self.value[here] + self.rise[here] * share + self.bend[here] * arch) / square
            parts.append(apart * (value if mask is None else value * mask)[:, None])
        total, first = torch.zeros_like(position), 0
        for gap in range(1, self.num_entities):
            pair = slice(first, first := first + self.num_entities - gap)
            total[gap:] += parts[0][pair]
            total[:-gap] -= parts[-1][pair]
        return total

    def run(
        self, position: Tensor, velocity: Tensor, num_steps: int, duration: Tensor, lag: Tensor, limit: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Positions and velocities ``[N, S, B]`` after each of some sub-steps: drift, kick, drift, reflect.

        Args:
            position: ``[N, S, B]``.
            velocity: those of ``lag`` before the positions.
            num_steps: number of sub-steps.
            duration: of each.
            lag: for all, or ``[B]``.
            limit: of each component of the total force, for all or ``[B]``.
        """
        to_kick, from_kick = duration / 2 - lag, duration / 2 + lag
        limited = bool(limit.isfinite().any())
        for _ in range(num_steps):
            force = self.force(position + to_kick * velocity)
            if self.peak is not None:
                self.peak = self.peak.maximum(force.abs().amax((0, 1)))
            if limited:
                force = force.minimum(limit).maximum(-limit)
            after = velocity + duration * force
            # Velocities are those of a moment before the positions: the way has their mean at the later moment.
            position = position + to_kick * velocity + from_kick * after
            if self.walls is not None:
                above, below = position > self.walls[1], position < self.walls[0]
                if bool((above | below).any()):
                    position = torch.where(above, 2 * self.walls[1] - position, position)
                    position = torch.where(below, 2 * self.walls[0] - position, position)
                    after = torch.where(above, -after.abs(), torch.where(below, after.abs(), after))
            velocity = after
            yield position, velocity
