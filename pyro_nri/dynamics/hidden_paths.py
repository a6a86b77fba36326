"""The path of entities without data beside the recorded paths of all others, and what they do to those."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.dynamics.impulses import hermite, reflected, unfold
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.scenes.scenes import Scenes


class HiddenPath(NamedTuple):
    """Paths of hidden entities.

    Attributes:
        state: ``[*batch, B, T, N_hidden, D]``, raw units.
        impulses: what each hidden entity would do to each observed one under each type, per unit time, as
            :meth:`ImpulseFeatures.impulses` has it: ``[*batch, B, T - 1, N, N_hidden, K, S]``.
    """

    state: Tensor
    impulses: Tensor


def check_complete(scenes: Scenes) -> None:
    """Refuse scenes in which an entity is not seen in every frame.

    Raises:
        ValueError: a state is missing.
    """
    if not scenes.complete_frame.all():
        scene, frame = (int(i) for i in (~scenes.complete_frame).nonzero()[0])
        raise ValueError(
            f"hidden entities need the others in every frame, scene {scenes.scene_names[scene]!r} lacks a state at "
            f"frame {frame}"
        )


class HiddenPaths:
    """Integrates hidden entities of pair forces through scenes whose other entities are known at every frame.

    Between two frames observed entities follow cubic curves, and hidden ones take ``num_steps`` steps of Nyström's rule
    of fourth order: what is observed is teacher-forced, what is not runs free. The impulses on observed entities are
    Simpson's sums over the same steps.

    Args:
        dynamics: pair forces between particles, frozen.
        scenes: B scenes, raw units; every present entity seen in every frame.
        num_steps: steps in a frame.

    Raises:
        ValueError: the dynamics are phases, or a state is missing.
    """

    def __init__(self, dynamics: PairForces, scenes: Scenes, *, num_steps: int) -> None:
        if dynamics.circular:
            raise ValueError("hidden entities need forces between particles, found phase oscillators")
        check_complete(scenes)
        self.dynamics = dynamics
        self.num_steps = num_steps
        trajectory = scenes.trajectory.double()
        position, velocity = trajectory[..., dynamics.positions], trajectory[..., dynamics.velocities]
        low, high = dynamics.low.double(), dynamics.high.double()
        end, after, wall = unfold(position, velocity, low, high, scenes.time_step)
        share = torch.linspace(0, 1, 2 * num_steps + 1, dtype=torch.float64, device=position.device)
        path = hermite(position[:, :-1], end, velocity[:, :-1], after, scenes.time_step, share)
        path, sign = reflected(path, wall)  # [B, T - 1, N, 2 num_steps + 1, S]
        self.sign = sign.movedim((1, 3), (0, 1)).contiguous() if bool(wall.isfinite().any()) else None
        self.path = path.movedim((1, 3), (0, 1)).contiguous()  # [T - 1, 2 num_steps + 1, B, N, S]
        self.present = scenes.entity_mask.double()  # [B, N]
        self.columns, self.place = _columns(dynamics.laws)

    def __getitem__(self, index: Tensor) -> "HiddenPaths":
        """The same for some scenes, long ``[B']``; a scene may come again."""
        part = copy.copy(self)
        part.present = self.present[index]
        part.path = self.path[:, :, index]
        part.sign = None if self.sign is None else self.sign[:, :, index]
        return part

    def first_frames(self, num_transitions: int) -> "HiddenPaths":
        """The same through the first transitions alone."""
        part = copy.copy(self)
        part.path = self.path[:num_transitions]
        part.sign = None if self.sign is None else self.sign[:num_transitions]
        return part

    def __call__(self, state: Tensor, weight: Tensor) -> HiddenPath:
        """Integrate from frame 0 on.

        Args:
            state: of the hidden entities at frame 0, ``[*batch, B, N_hidden, D]``, raw units.
            weight: of the types of the edges into each hidden entity, ``[*batch, B, N_hidden, N + N_hidden, K]``, its
                senders in the order of all entities, its own place ignored; one-hot for a structure.
        """
        dynamics, num_observed = self.dynamics, self.path.shape[-2]
        step = float(dynamics.time_step) / self.num_steps
        lag = float(dynamics.clock_lag)
        from_observed = weight[..., :num_observed, :] * self.present[:, None, :, None]
        apart_self = 1 - torch.eye(state.shape[-2], dtype=state.dtype, device=state.device)
        from_hidden = weight[..., num_observed:, :] * apart_self[..., None]
        position, velocity = state[..., dynamics.positions], state[..., dynamics.velocities]

        def pull(position: Tensor, frame: int, node: int) -> tuple[Tensor, Tensor]:
            """Acceleration of the hidden, ``[*batch, B, N_hidden, S]``, and what they do to the observed."""
            apart = position[..., :, None, :] - self.path[frame, node][:, None]
            strength = self._strength(apart)  # [*batch, B, N_hidden, N, K]
            total = _weighted(strength * from_observed, apart)
            if position.shape[-2] > 1:
                among = position[..., :, None, :] - position[..., None, :, :]
                total = total + _weighted(self._strength(among) * from_hidden, among)
            if self.sign is not None:
                apart = apart * self.sign[frame, node][:, None]
            return total, strength[..., None] * apart[..., None, :]

        # Recorded velocities are those of a moment before the positions.
        velocity = velocity + lag * pull(position, 0, 0)[0]
        states: list[Tensor] = [state]
        impulses: list[Tensor] = []
        for frame in range(len(self.path)):
            total = torch.zeros_like(impulses[0]) if impulses else torch.zeros(())
            for number in range(self.num_steps):
                node = 2 * number
                first, on_first = pull(position, frame, node)
                middle, on_middle = pull(position + step / 2 * velocity + step**2 / 8 * first, frame, node + 1)
                last, on_last = pull(position + step * velocity + step**2 / 2 * middle, frame, node + 2)
                position = position + step * velocity + step**2 / 6 * (first + 2 * middle)
                velocity = velocity + step / 6 * (first + 4 * middle + last)
                position, velocity = self._reflect(position, velocity)
                total = total + (on_first + 4 * on_middle + on_last)
                if number == 0:  # targets are changes of the recorded velocities, from a moment before to one before
                    total = total + 6 * self.num_steps * lag / float(dynamics.time_step) * on_first
                if number == self.num_steps - 1:
                    total = total - 6 * self.num_steps * lag / float(dynamics.time_step) * on_last
            states.append(self._state(position, velocity - lag * last))
            impulses.append(total)
        stacked = torch.stack(impulses, -5) / (-6 * self.num_steps)  # [*batch, B, T - 1, N_hidden, N, K, S]
        stacked = stacked * self.present[:, None, None, :, None, None]
        return HiddenPath(torch.stack(states, -3), stacked.transpose(-4, -3))

    def _strength(self, apart: Tensor) -> Tensor:
        """Forces of all types over distance, ``f_k(r) / r``, at separations ``[*batch, S]``: ``[*batch, K]``."""
        square = torch.as_tensor(sum(axis * axis for axis in apart.unbind(-1))).clamp(min=1e-30)
        low, per_point, last = self.place
        scaled = ((square.log() / 2 - low) * per_point).clamp(min=0)
        index = scaled.detach().long().clamp(max=last)
        share = scaled - index
        before, rise, bend = self.columns[index].unbind(-2)
        inside = share.clamp(max=1)
        arch = inside * (inside - 1) / 2
        return (before + share[..., None] * rise + arch[..., None] * bend) / square[..., None]

    def _reflect(self, position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
        dynamics = self.dynamics
        if self._no_walls:
            return position, velocity
        above, below = position > dynamics.high, position < dynamics.low
        position = torch.where(above, 2 * dynamics.high - position, position)
        position = torch.where(below, 2 * dynamics.low - position, position)
        return position, torch.where(above, -velocity.abs(), torch.where(below, velocity.abs(), velocity))

    @property
    def _no_walls(self) -> bool:
        return bool(self.dynamics.low.isinf().all() and self.dynamics.high.isinf().all())

    def _state(self, position: Tensor, velocity: Tensor) -> Tensor:
        dynamics = self.dynamics
        order = [0] * dynamics.state_size
        for place, d in enumerate(dynamics.positions + dynamics.velocities):
            order[d] = place
        return torch.cat([position, velocity], dim=-1)[..., order]


def _weighted(strength: Tensor, apart: Tensor) -> Tensor:
    """Strengths ``[*batch, N, K]`` times separations ``[*batch, N, S]``, summed: ``[*batch, S]``."""
    each = torch.as_tensor(sum(strength.unbind(-1)))
    return (each[..., None, :] @ apart).squeeze(-2)


def _columns(laws: ForceLaws) -> tuple[Tensor, tuple[float, float, int]]:
    """Value, rise and bend of ``r f(r)`` in each interval of the table, ``[M - 1, 3, K]``; where intervals lie.

    Types that exert no force exert none here: an entity more, of edges whose laws are errors around 0, would explain
    the errors of others.
    """
    table = laws.table().detach().double() * laws.exerting()[:, None]
    columns = torch.stack([table[:, :-1], table.diff(dim=-1), laws.bend(table)]).permute(2, 0, 1)
    low, high = float(laws.low), float(laws.high)
    return columns.contiguous(), (low, table.shape[-1] / (high - low) - 1 / (high - low), table.shape[-1] - 2)
