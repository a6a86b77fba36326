"""What pair forces do over a frame, along a path through the observed states: everything that is linear in the law.

The observed change of the driven variable (velocity, or rate of a phase) over a frame is compared with ``sum_i ∫ f dt``
along a path. That path contains the observed next state, so a likelihood made of it is a composite one: see
:mod:`pyro_nri.model.impulse`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws

#: Q, quadrature nodes of a frame on a smooth path.
NUM_NODES = 12


@dataclass(frozen=True)
class PathBlock:
    """Nodes of paths of some frames.

    Attributes:
        row: which frame of which scene, long ``[R, 2]``; None where there is a path for every frame, ``[B, T - 1]``.
        coordinate: distances or phase differences along the path, ``[*rows, N, N - 1, Q]``, receivers first, their
            senders ascending.
        direction: unit vector away from the sender, ``[*rows, N, N - 1, Q, S]``; 0 where the edge does not exist.
        weight: quadrature weights ``[Q]``; they sum to 1.
        free: 0 where the force on an entity is at its limit, else 1, ``[*rows, N, Q, S]``; None where none is.
    """

    row: Tensor | None
    coordinate: Tensor
    direction: Tensor
    weight: Tensor
    free: Tensor | None = None


@dataclass(frozen=True)
class ImpulseFeatures:
    """All that the impulse likelihood needs of B scenes.

    Attributes:
        target: change of the driven variable over a frame, per unit time, ``[B, T - 1, N, S]``.
        mask: which of them count, bool ``[B, T - 1, N]``.
        context: what the reliability of a frame may depend on, ``[B, T - 1, N, F]``, no particular units.
        blocks: paths; a later block replaces what earlier ones say of its frames.
        fast: which sender may turn a receiver about within the frame, bool ``[B, T - 1, N, N - 1]``; None for none.
        mixing: what changes were mixed by so that their errors are independent, J stretches of L frames after one
            another, ``[B, N, J, L, L]``; None where they are as they were seen. It is part of ``target`` and of all
            that the methods return.
    """

    target: Tensor
    mask: Tensor
    context: Tensor
    blocks: tuple[PathBlock, ...]
    fast: Tensor | None = None
    mixing: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: Any) -> "ImpulseFeatures":
        """Some of the scenes: integers or a slice. Not for features some of whose frames have other paths."""
        if len(self.blocks) > 1:
            raise ValueError("features of several path blocks cannot be indexed")
        return ImpulseFeatures(
            self.target[index],
            self.mask[index],
            self.context[index],
            tuple(
                replace(each, coordinate=each.coordinate[index], direction=each.direction[index])
                for each in self.blocks
            ),
            None if self.fast is None else self.fast[index],
            None if self.mixing is None else self.mixing[index],
        )

    def without_paths(self) -> "ImpulseFeatures":
        """What is left once the impulses are known."""
        return replace(self, blocks=())

    def to(self, dtype: torch.dtype) -> "ImpulseFeatures":
        """The same with floats in another precision."""
        blocks = tuple(
            PathBlock(
                block.row,
                block.coordinate.to(dtype),
                block.direction.to(dtype),
                block.weight.to(dtype),
                None if block.free is None else block.free.to(dtype),
            )
            for block in self.blocks
        )
        mixing = None if self.mixing is None else self.mixing.to(dtype)
        return replace(self, target=self.target.to(dtype), context=self.context.to(dtype), blocks=blocks, mixing=mixing)

    @property
    def fast_share(self) -> Tensor | None:
        """Share of the frames of each receiver in which a sender may turn it about, ``[B, N, N - 1]``."""
        if self.fast is None:
            return None
        number = self.mask.sum(1)[..., None].clamp(min=1)
        return (self.fast & self.mask[..., None]).sum(1) / number

    @property
    def log_volume(self) -> Tensor:
        """What mixing adds to the log density of each change, ``[B, T - 1, N]``."""
        if self.mixing is None:
            return torch.zeros_like(self.target[..., 0])
        volume = self.mixing.diagonal(dim1=-2, dim2=-1).log().flatten(2)[..., : self.target.shape[1]]
        return volume.transpose(1, 2) * self.target.shape[-1]

    @staticmethod
    def mixed(value: Tensor, mixing: Tensor | None) -> Tensor:
        """What frames say, ``[B, T - 1, N, ...]``, mixed over time."""
        if mixing is None:
            return value
        count, length = mixing.shape[2:4]
        padding = value.new_zeros(len(value), count * length - value.shape[1], *value.shape[2:])
        parts = torch.cat([value, padding], 1).unflatten(1, (count, length))
        return torch.einsum("bnjtu,bjun...->bjtn...", mixing, parts).flatten(1, 2)[:, : value.shape[1]]

    def impulses(self, laws: ForceLaws) -> Tensor:
        """What each sender would do to each receiver under each type, per unit time: ``[B, T - 1, N, N - 1, K, S]``."""
        return self._collect(
            lambda block, table: torch.einsum(
                "...qk,...qs,q->...ks", forces_along(laws, block.coordinate, table), block.direction, block.weight
            ),
            laws.table(),
        )

    def lag_impulses(self, laws: ForceLaws) -> Tensor:
        """What they would do more for each unit of time that velocities are older: shaped as :meth:`impulses`."""

        def change(block: PathBlock, table: Tensor) -> Tensor:
            force = forces_along(laws, block.coordinate[..., [0, -1]], table)  # [*rows, N, N - 1, 2, K]
            sign = block.weight.new_tensor([1.0, -1.0])
            return torch.einsum("...qk,...qs,q->...ks", force, block.direction[..., [0, -1], :], sign)

        return self._collect(change, laws.table())

    def held_impulses(self, laws: ForceLaws) -> Tensor:
        """The part of :meth:`impulses` from where forces are at their limit and no longer depend on the law."""

        def held(block: PathBlock, table: Tensor) -> Tensor:
            if block.free is None:
                return block.coordinate.new_zeros(
                    *block.coordinate.shape[:-1], laws.num_edge_types, block.direction.shape[-1]
                )
            return torch.einsum(
                "...neqk,...neqs,...nqs->...neks",
                forces_along(laws, block.coordinate, table) * block.weight[:, None],
                block.direction,
                1 - block.free,
            )

        return self._collect(held, laws.table())

    def _collect(self, part: Callable[[PathBlock, Tensor], Tensor], table: Tensor) -> Tensor:
        """Put together what blocks say, each ``[*rows, ...]``: ``[B, T - 1, ...]``."""
        result = self.target.new_zeros(0)
        for block in self.blocks:
            value = part(block, table)
            if block.row is None:
                result = value
            else:
                scene, frame = block.row.unbind(-1)
                result = result.index_put((scene, frame), value)
        return self.mixed(result, self.mixing)

    def design(self, laws: ForceLaws, incoming: Tensor) -> Tensor:
        """Rows of the linear model that ties spline coefficients to targets: ``[B, T - 1, N, S, K * NUM_SPLINES]``.

        Where forces are at their limit the target, less :meth:`held_impulses`, does not depend on the law.

        Args:
            laws: which splines.
            incoming: types of the edges into each receiver, long ``[B, N, N - 1]``.
        """
        num_columns = laws.num_edge_types * NUM_SPLINES
        result = self.target.new_zeros(*self.target.shape, num_columns)
        for block in self.blocks:
            index, weight = basis_along(laws, block.coordinate, block.weight)  # [*rows, N, N - 1, Q, 4]
            scene = None if block.row is None else block.row[:, 0]
            types = incoming[:, None] if scene is None else incoming[scene]
            column = (index + (types * NUM_SPLINES)[..., None, None]).flatten(-3)  # [*rows, N, (N - 1) Q 4]
            rows = self.target.new_zeros(*block.coordinate.shape[:-2], self.target.shape[-1], num_columns)
            for axis in range(self.target.shape[-1]):
                along = block.direction[..., axis]
                along = along if block.free is None else along * block.free[..., :, None, :, axis]
                rows[..., axis, :].scatter_add_(-1, column, (weight * along[..., None]).flatten(-3))
            if block.row is None:
                result = rows
            else:
                result[block.row[:, 0], block.row[:, 1]] = rows
        return self.mixed(result, self.mixing)


def forces_along(laws: ForceLaws, coordinate: Tensor, table: Tensor) -> Tensor:
    """Forces of all types at distances, of which both edges of a pair have the same, or at angles.

    Args:
        laws: which forces.
        coordinate: ``[*rows, N, N - 1, Q]``, receivers first, their senders ascending.
        table: :meth:`ForceLaws.table` of them.

    Returns:
        ``[*rows, N, N - 1, Q, K]``.
    """
    forces: Tensor
    if laws.circular:
        forces = laws(coordinate, table)
    else:
        once, both = pairs_once(coordinate)
        forces = laws(once, table).index_select(-3, both).unflatten(-3, coordinate.shape[-3:-1])
    return forces


def basis_along(laws: ForceLaws, coordinate: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Splines that are not zero at coordinates as in :func:`forces_along`, and what they add to an impulse.

    Args:
        laws: which splines.
        coordinate: ``[*rows, N, N - 1, Q]``.
        weight: of quadrature, ``[Q]``.

    Returns:
        Twice ``[*rows, N, N - 1, Q, 4]``.
    """
    if laws.circular:
        index, value = laws.basis(coordinate)
        return index, value * weight[:, None]
    once, both = pairs_once(coordinate)
    index, value = laws.basis(once)
    value = value * (weight / once)[..., None]
    index, value = (each.index_select(-3, both).unflatten(-3, coordinate.shape[-3:-1]) for each in (index, value))
    return index, value


def pairs_once(distance: Tensor) -> tuple[Tensor, Tensor]:
    """Distances ``[*rows, N, N - 1, Q]`` of one edge of each pair ``[*rows, P, Q]``, and the pair of each edge."""
    num_entities, device = distance.shape[-3], distance.device
    receiver = torch.arange(num_entities, device=device)[:, None]
    sender = incoming_senders(num_entities, device)
    is_first = (receiver < sender).flatten()
    number = torch.zeros(num_entities, num_entities, dtype=torch.long, device=device)
    first, second = receiver.expand_as(sender).flatten()[is_first], sender.flatten()[is_first]
    number[first, second] = torch.arange(len(first), device=device)
    both = torch.maximum(number, number.T)[receiver, sender].flatten()
    return distance.flatten(-3, -2)[..., is_first, :], both


# --- paths -----------------------------------------------------------------------------------------------------------
def gauss_lobatto(num_nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes in [0, 1], both ends among them, and weights that sum to 1, ``[Q]`` each; exact up to degree 2 Q - 3."""
    polynomial = np.polynomial.legendre.Legendre.basis(num_nodes - 1)
    node = np.concatenate([[-1.0], polynomial.deriv().roots(), [1.0]])
    weight = 1 / (num_nodes * (num_nodes - 1) * polynomial(node) ** 2)
    return like.new_tensor((node + 1) / 2), like.new_tensor(weight)


def unfold(position: Tensor, velocity: Tensor, low: Tensor, high: Tensor, time_step: float) -> tuple[Tensor, ...]:
    """Undo the reflection of entities that bounced off a wall within a frame.

    A bounce is recognised by the motion itself: mirrored behind the wall, the end of the frame fits its beginning
    better than as it stands.

    Args:
        position: ``[B, T, N, S]``, raw units.
        velocity: ``[B, T, N, S]``.
        low: lower walls, ``[S]``, -inf for none.
        high: upper walls, ``[S]``, inf for none.
        time_step: time of a frame.

    Returns:
        Position and velocity at the end of each frame, mirrored where there was a bounce, ``[B, T - 1, N, S]``; and
        for each the wall that was touched, nan for none.
    """
    start, end = position[:, :-1], position[:, 1:]
    before, after = velocity[:, :-1], velocity[:, 1:]

    def misfit(end: Tensor, after: Tensor) -> Tensor:
        gap = (end - start - time_step * (before + after) / 2).abs()
        return gap + time_step * (after - before).abs() / 2

    best, wall = misfit(end, after), torch.full_like(end, torch.nan)
    for candidate in (low, high):
        mirrored = torch.where(candidate.isfinite(), 2 * candidate - end, end)
        fit = misfit(mirrored, -after)
        better = candidate.isfinite() & (fit < best)
        wall = torch.where(better, candidate.expand_as(wall), wall)
        best = torch.where(better, fit, best)
    bounced = ~wall.isnan()
    return torch.where(bounced, 2 * wall - end, end), torch.where(bounced, -after, after), wall


def hermite(start: Tensor, end: Tensor, before: Tensor, after: Tensor, time_step: float, share: Tensor) -> Tensor:
    """Cubic paths through positions and velocities at both ends of a frame.

    Args:
        start: positions at its start ``[*batch, S]``.
        end: positions at its end.
        before: velocities at its start.
        after: velocities at its end.
        time_step: time of a frame.
        share: times within the frame, 0 to 1, ``[Q]``.

    Returns:
        Positions ``[*batch, Q, S]``.
    """
    u = share[:, None]
    return (
        start[..., None, :] * (2 * u**3 - 3 * u**2 + 1)
        + before[..., None, :] * time_step * (u**3 - 2 * u**2 + u)
        + end[..., None, :] * (3 * u**2 - 2 * u**3)
        + after[..., None, :] * time_step * (u**3 - u**2)
    )


def path_block(path: Tensor, sign: Tensor, weight: Tensor, edge_exists: Tensor, row: Tensor | None) -> PathBlock:
    """Distances and directions along paths.

    Args:
        path: positions ``[*rows, N, Q, S]``.
        sign: -1 where an axis is mirrored in the unfolded velocity, ``[*rows, N, Q, S]``.
        weight: quadrature weights ``[Q]``.
        edge_exists: bool ``[*rows, N, N - 1]``, receivers first.
        row: see :class:`PathBlock`.
    """
    sender = incoming_senders(path.shape[-3], path.device)
    apart = path[..., :, None, :, :] - path[..., sender, :, :]  # [*rows, N, N - 1, Q, S]
    # Forces are divided by it, in single precision too: it must not become 0 there.
    distance = apart.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny ** 0.5)
    direction = apart / distance[..., None] * sign[..., :, None, :, :]
    return PathBlock(row, distance, direction * edge_exists[..., None, None], weight)


def incoming_senders(num_entities: int, device: torch.device) -> Tensor:
    """The senders of each receiver in ascending order, long ``[N, N - 1]``."""
    every = torch.arange(num_entities, device=device)
    return torch.stack([every[every != receiver] for receiver in every])


def reflected(path: Tensor, wall: Tensor) -> tuple[Tensor, Tensor]:
    """Fold unfolded paths ``[*rows, N, Q, S]`` back at the walls ``[*rows, N, S]`` (nan: none).

    Returns:
        Paths in the box, and -1 behind the wall, else 1.
    """
    wall = wall[..., None, :]
    toward = torch.sign(path[..., -1:, :] - path[..., :1, :])
    behind = (path - wall) * toward > 0  # False where there is no wall
    return torch.where(behind, 2 * wall - path, path), torch.where(behind, -1.0, 1.0).to(path)


def replace_frames(features: ImpulseFeatures, block: PathBlock, context: Tensor) -> ImpulseFeatures:
    """Features with better paths for some frames, and the context that goes with them."""
    return replace(features, blocks=(*features.blocks, block), context=context)


def distances_seen(position: Tensor, observation_mask: Tensor) -> Tensor:
    """Distances of all pairs in frames where both are seen, ``[M]``, from ``[B, T, N, S]`` and bool ``[B, T, N]``."""
    num_entities = position.shape[-2]
    one, other = torch.triu_indices(num_entities, num_entities, offset=1)
    distance = (position[..., one, :] - position[..., other, :]).norm(dim=-1)
    seen: Tensor = distance[observation_mask[..., one] & observation_mask[..., other]]
    return seen
