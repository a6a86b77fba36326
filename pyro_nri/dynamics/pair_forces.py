"""Forces along the separation, one learned law for each type of edge; the node module is an integrator."""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.dynamics.impulses import (
    NUM_NODES,
    ImpulseFeatures,
    PathBlock,
    distances_seen,
    gauss_lobatto,
    hermite,
    incoming_senders,
    path_block,
    reflected,
    unfold,
)
from pyro_nri.dynamics.pair_motion import PairMotion
from pyro_nri.dynamics.recorded_noise import recorded_noise, whitened
from pyro_nri.dynamics.walls import estimate_walls
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: State variables of phase oscillators: phase, its rate, the known rate of the oscillator alone.
PHASE_STATE = ("phi", "vphi", "omega")
#: Which entry of the context says whether the paths of a frame were integrated.
INTEGRATED = 8


class PairForces(AbstractDynamics):
    """Particles that push and pull along their separation, or oscillators that couple through their phase difference.

    Second-order systems: the force of type k on the receiver is ``f_k(r)`` times the unit vector away from the sender,
    ``dv/dt = sum_i f``, between reflecting walls. Phase oscillators (state phi, vphi, omega): ``dphi/dt = omega +
    sum_i f_k(phi_i - phi_j)``. The integrator takes ``num_substeps`` sub-steps of a frame (drift, kick, drift; Heun's
    rule for phases), so :meth:`step` is a forward model like any other. A structure with more than one sub-step moves
    all entities at once, so a forward likelihood does not factorise over receivers; :meth:`features` prepares the one
    that does.

    What simulators do is learned with the laws (:mod:`pyro_nri.learning.laws`) and is part of every step: velocities
    may be those of a moment ``clock_lag`` before the positions, and each component of the total force on an entity may
    be capped at ``force_limit``. They start at 0 and infinity. Where the lag is half a sub-step of a leapfrog, there
    are ``leapfrog_steps`` of them in a frame (0: not known); paths within hard frames and rollouts take as many.

    Args:
        num_edge_types: K.
        state_names: D names; a velocity is "v" + the name of its position.
        boundary: "estimate" the walls from training scenes, "none", or the distance of every wall from the origin.
        num_substeps: sub-steps of a frame.
        num_entity_kinds: must be 1.
        no_interaction: whether type 0 exerts no force.
        generator: source of the initial weights.

    Raises:
        ValueError: velocities are missing, a count is out of range, or the boundary is unknown.
    """

    def __init__(
        self,
        num_edge_types: int,
        state_names: tuple[str, ...],
        *,
        boundary: str | float = "estimate",
        num_substeps: int = 20,
        num_entity_kinds: int = 1,
        no_interaction: bool = False,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if num_edge_types < 1:
            raise ValueError(f"num_edge_types must be at least 1, found {num_edge_types}")
        if no_interaction and num_edge_types < 2:
            raise ValueError("num_edge_types must be at least 2 where type 0 means no interaction, found 1")
        if num_entity_kinds != 1:
            raise ValueError(
                f"pair forces treat all entities alike, found {num_entity_kinds} kinds; use message passing"
            )
        if num_substeps < 1:
            raise ValueError(f"num_substeps must be at least 1, found {num_substeps}")
        if isinstance(boundary, str) and boundary not in ("estimate", "none"):
            raise ValueError(f"boundary must be 'estimate', 'none' or a distance, found {boundary!r}")
        if not isinstance(boundary, str) and not boundary > 0:
            raise ValueError(f"boundary must be a positive distance, found {boundary}")
        self.circular = state_names == PHASE_STATE
        self.positions = [d for d, name in enumerate(state_names) if f"v{name}" in state_names]
        self.velocities = [state_names.index(f"v{state_names[d]}") for d in self.positions]
        if not self.circular and sorted(self.positions + self.velocities) != list(range(len(state_names))):
            raise ValueError(
                f"pair forces need positions and their velocities, such as x, y, vx, vy, found state "
                f"{', '.join(state_names)}; velocities can be added by finite differences"
            )
        self.num_edge_types = num_edge_types
        self.state_size = len(state_names)
        self.num_entity_kinds = 1
        self.num_substeps = num_substeps
        self.boundary = boundary
        self.laws = ForceLaws(
            num_edge_types, circular=self.circular, no_interaction=no_interaction, generator=generator
        )
        num_axes = len(self.positions)
        self.register_buffer("time_step", torch.tensor(1.0))
        self.register_buffer("low", torch.full((num_axes,), -torch.inf))
        self.register_buffer("high", torch.full((num_axes,), torch.inf))
        self.register_buffer("length", torch.tensor(1.0))
        self.register_buffer("clock_lag", torch.tensor(0.0))
        self.register_buffer("force_limit", torch.tensor(torch.inf))
        self.register_buffer("leapfrog_steps", torch.tensor(0))
        self.register_buffer("recorded_noise", torch.zeros(2))
        self.time_step: Tensor
        self.low: Tensor
        self.high: Tensor
        self.length: Tensor
        self.clock_lag: Tensor
        self.force_limit: Tensor
        self.leapfrog_steps: Tensor
        self.recorded_noise: Tensor

    @property
    def context_size(self) -> int:
        """F, what :class:`ImpulseFeatures` say about the reliability of a frame."""
        return 1 if self.circular else 10

    @property
    def num_axes(self) -> int:
        """S, space dimensions."""
        return len(self.positions)

    def fit_scaling(self, scenes: Scenes) -> None:
        """Set the time of a frame, the walls, the range of distances and typical sizes from training scenes."""
        self.time_step.fill_(scenes.time_step)
        trajectory = scenes.trajectory.double()
        position, velocity = trajectory[..., self.positions], trajectory[..., self.velocities]
        seen = scenes.transition_mask & scenes.complete_frame[:, 1:, None]
        if isinstance(self.boundary, float | int):
            self.low.fill_(-float(self.boundary))
            self.high.fill_(float(self.boundary))
        elif self.boundary == "estimate" and not self.circular:
            low, high = estimate_walls(position, velocity, seen, scenes.time_step)
            self.low.copy_(low)
            self.high.copy_(high)
        if not seen.any():
            raise ValueError("no transition is observed at both ends by all entities, at least one is needed")
        moved = (position[:, 1:] - position[:, :-1]).norm(dim=-1)[seen]
        self.length.fill_(max(float(moved.median()), 1e-12 * float(position.abs().max()), 1e-300))
        self.recorded_noise.zero_()
        features = self.features(scenes)
        target = features.target.abs()[features.mask]
        self.laws.fit_scaling(distances_seen(position, scenes.observation_mask), max(float(target.median()), 1e-12))
        if not self.circular:
            noise = recorded_noise(position, velocity, seen, scenes.time_step)
            self.recorded_noise.copy_(torch.tensor(noise))

    def for_rollouts(self) -> "PairForces":
        if not self.leapfrog_steps:
            return self
        fine = copy.copy(self)
        fine.num_substeps = int(self.leapfrog_steps)
        return fine

    def under_laws(self, coefficient: Tensor) -> "PairForces":
        """The same under R sets of laws at once, ``[R, K, NUM_SPLINES]``: type k of set r has number ``r K + k``."""
        result = copy.deepcopy(self)
        result.laws = self.laws.several(coefficient)
        return result

    # --- the forward model -------------------------------------------------------------------------------------------
    def step(
        self,
        state: Tensor,
        structure: Tensor,
        *,
        edge_mask: Tensor | None = None,
        entity_kind: Tensor | None = None,
    ) -> Tensor:
        if self.circular:
            return super().step(state, structure, edge_mask=edge_mask, entity_kind=entity_kind)
        return self.moved(state, structure, edge_mask, self.laws.table(), self.num_substeps, self.clock_lag)

    def moved(
        self,
        state: Tensor,
        structure: Tensor,
        edge_mask: Tensor | None,
        table: Tensor,
        num_steps: int,
        lag: Tensor,
    ) -> Tensor:
        """State ``[*batch, N, D]`` after a frame of so many sub-steps; see :meth:`motion`."""
        motion, moved = self.motion(state, structure, edge_mask, table, num_steps, self.time_step / num_steps, lag)
        for position, velocity in moved:  # noqa: B007
            pass
        order = [(self.positions + self.velocities).index(d) for d in range(self.state_size)]
        return torch.cat([motion.unflat(position), motion.unflat(velocity)], dim=-1)[..., order]

    def motion(
        self,
        state: Tensor,
        structure: Tensor,
        edge_mask: Tensor | None,
        table: Tensor,
        num_steps: int,
        duration: Tensor,
        lag: Tensor,
        limit: Tensor | None = None,
    ) -> tuple[PairMotion, Iterator[tuple[Tensor, Tensor]]]:
        """Motion by sub-steps; not of phases.

        Args:
            state: ``[*batch, N, D]``, raw units; batches broadcast.
            structure: long ``[*batch, E]``.
            edge_mask: bool ``[*batch, E]``, or None.
            table: of the laws, see :meth:`ForceLaws.table`.
            num_steps: number of sub-steps.
            duration: of each.
            lag: in place of :attr:`clock_lag`; a number or ``[*batch, 1, 1]``.
            limit: in place of :attr:`force_limit`; a number or ``[*batch, 1, 1]``.

        Returns:
            What knows the order of the axes, and positions and velocities after each sub-step, ``[N, S, B]``.
        """
        batch = torch.broadcast_shapes(state.shape[:-2], structure.shape[:-1])
        motion = PairMotion(
            self.laws, table.to(state.dtype), structure.expand(*batch, -1), edge_mask, (self.low, self.high)
        )
        position, velocity = motion.flat(state[..., self.positions]), motion.flat(state[..., self.velocities])
        limit = self.force_limit if limit is None else limit
        return motion, motion.run(position, velocity, num_steps, duration, motion.each(lag), motion.each(limit))

    def messages(self, state: Tensor, structure: Tensor | None = None) -> Tensor:
        return self.forces(state, structure, self.time_step / self.num_substeps, self.clock_lag, self.laws.table())

    def update(self, state: Tensor, summed: Tensor, entity_kind: Tensor | None = None) -> Tensor:
        return self.move(state, summed, self.time_step / self.num_substeps, self.clock_lag)

    def forces(self, state: Tensor, structure: Tensor | None, duration: Tensor, lag: Tensor, table: Tensor) -> Tensor:
        """Forces in the middle of a sub-step of the velocities (phases: at its end), ``[*batch, E, (K,) S]``."""
        drift = duration if self.circular else duration / 2 - lag
        position = state[..., self.positions] + drift * state[..., self.velocities]
        num_entities = state.shape[-2]
        sender = edges.senders(num_entities).to(state.device)
        receiver = edges.receivers(num_entities).to(state.device)
        apart = position[..., receiver, :] - position[..., sender, :]  # [*batch, E, S]
        if self.circular:
            coordinate, direction = -apart[..., 0], torch.ones_like(apart)
        else:
            coordinate = apart.norm(dim=-1).clamp(min=torch.finfo(apart.dtype).tiny ** 0.25)
            direction = apart / coordinate[..., None]
        forces: Tensor
        if structure is None:
            forces = self.laws(coordinate, table)[..., None] * direction[..., None, :]
        else:
            forces = self.laws.select(coordinate, structure, table)[..., None] * direction
        return forces

    def move(self, state: Tensor, summed: Tensor, duration: Tensor, lag: Tensor, limit: Tensor | None = None) -> Tensor:
        """State after a sub-step with the summed forces in its middle; ``limit`` in place of :attr:`force_limit`."""
        limit = self.force_limit if limit is None else limit
        shape = torch.broadcast_shapes(state.shape[:-1], summed.shape[:-1])
        position = state[..., self.positions].expand(*shape, -1)
        velocity = state[..., self.velocities].expand(*shape, -1)
        if self.circular:
            own = state[..., -1:].expand(*shape, -1)
            rate = own + summed
            return torch.cat([position + duration * (velocity + rate) / 2, rate, own], dim=-1)
        after = velocity + duration * summed.clamp(-limit, limit)
        # Velocities are those of a moment before the positions: the way has their mean at the later moment.
        position = position + duration * (velocity + after) / 2 + lag * (after - velocity)
        if self.low.isfinite().any() or self.high.isfinite().any():
            above, below = position > self.high, position < self.low
            position = torch.where(above, 2 * self.high - position, position)
            position = torch.where(below, 2 * self.low - position, position)
            after = torch.where(above, -after.abs(), torch.where(below, after.abs(), after))
        order = [0] * self.state_size
        for place, d in enumerate(self.positions + self.velocities):
            order[d] = place
        return torch.cat([position, after], dim=-1)[..., order]

    # --- the impulse features ----------------------------------------------------------------------------------------
    def features(self, scenes: Scenes, *, whiten: bool = True) -> ImpulseFeatures:
        """What the impulse likelihood needs, along cubic paths through the observed states.

        Args:
            scenes: B scenes in raw units.
            whiten: whether errors are made independent where the recording is noisy.

        Returns:
            Features in float64.
        """
        trajectory = scenes.trajectory.double()
        if self.circular:
            return self._phase_features(trajectory, scenes)
        position, velocity = trajectory[..., self.positions], trajectory[..., self.velocities]
        dt = scenes.time_step
        low, high = self.low.double(), self.high.double()
        end, after, wall = unfold(position, velocity, low, high, dt)
        start, before = position[:, :-1], velocity[:, :-1]
        node, weight = gauss_lobatto(NUM_NODES, trajectory)
        path, sign = reflected(hermite(start, end, before, after, dt, node), wall)
        mask = scenes.transition_mask & scenes.complete_frame[:, 1:, None]
        block = path_block(path, sign, self.over_velocities(weight), self.edge_exists(scenes), None)
        own_error = (end - start - dt * (before + after) / 2).norm(dim=-1)
        context = self.context(scenes, block.coordinate.amin(-1), own_error, torch.zeros_like(mask[..., :1]))
        features = ImpulseFeatures((after - before) / dt, mask, context, (block,))
        return self.whitened(features, scenes) if whiten else features

    def whitened(self, features: ImpulseFeatures, scenes: Scenes) -> ImpulseFeatures:
        """Features as they are of a quiet recording; of a noisy one, with independent errors."""
        if self.circular or not float(self.recorded_noise[1]) > 0:
            return features
        noise = (float(self.recorded_noise[0]), float(self.recorded_noise[1]))
        own_error, wall = self._unfolded_error(scenes)
        return whitened(features, self.laws, scenes, noise, own_error, (~wall.isnan()).any(-1))

    def own_error(self, scenes: Scenes) -> Tensor:
        """By how much an entity's positions and velocities disagree over a frame, raw units, ``[B, T - 1, N]``."""
        return self._unfolded_error(scenes)[0]

    def _unfolded_error(self, scenes: Scenes) -> tuple[Tensor, Tensor]:
        trajectory, dt = scenes.trajectory.double(), scenes.time_step
        position, velocity = trajectory[..., self.positions], trajectory[..., self.velocities]
        end, after, wall = unfold(position, velocity, self.low.double(), self.high.double(), dt)
        return (end - position[:, :-1] - dt * (velocity[:, :-1] + after) / 2).norm(dim=-1), wall

    def _phase_features(self, trajectory: Tensor, scenes: Scenes) -> ImpulseFeatures:
        phase, rate, own = trajectory[:, 1:].unbind(-1)  # [B, T - 1, N]
        sender = incoming_senders(scenes.num_entities, phase.device)
        difference = phase[..., sender] - phase[..., None]  # [B, T - 1, N, N - 1]
        direction = self.edge_exists(scenes)[..., None, None].expand(*difference.shape, 1, 1).double()
        mask = scenes.complete_frame[:, 1:, None] & scenes.observation_mask[:, 1:]
        context = (rate.abs() + float(self.length) / scenes.time_step).log()[..., None]
        return ImpulseFeatures(
            (rate - own)[..., None],
            mask,
            context,
            (PathBlock(None, difference[..., None], direction, direction.new_ones(1)),),
        )

    def over_velocities(self, weight: Tensor) -> Tensor:
        """Quadrature weights of the time between two velocities instead of that between two positions, ``[Q]``."""
        weight, share = weight.clone(), float(self.clock_lag / self.time_step)
        weight[0] += share
        weight[-1] -= share
        return weight

    @staticmethod
    def edge_exists(scenes: Scenes) -> Tensor:
        """Which edges into each receiver exist, bool ``[B, 1, N, N - 1]``."""
        incoming = edges.incoming_edges(scenes.num_entities).to(scenes.edge_mask.device)
        return scenes.edge_mask[:, incoming][:, None]

    def context(self, scenes: Scenes, closest: Tensor, own_error: Tensor, integrated: Tensor) -> Tensor:
        """What may tell how far a frame can be trusted, ``[B, T - 1, N, F]``.

        Args:
            scenes: B scenes.
            closest: closest approach to each sender within the frame, ``[B, T - 1, N, N - 1]``.
            own_error: how uncertain each entity's path is, ``[B, T - 1, N]``, raw units.
            integrated: whether the paths of the frame were integrated, bool ``[B, T - 1, 1]``.
        """
        trajectory = scenes.trajectory.double()
        position, velocity = trajectory[..., self.positions], trajectory[..., self.velocities]
        length, dt = float(self.length), scenes.time_step
        exists = self.edge_exists(scenes)
        far = torch.full_like(closest, 1e3 * length)
        closest = torch.where(exists, closest, far)
        sender = incoming_senders(scenes.num_entities, closest.device)
        pair_error = (own_error[..., sender] + own_error[..., None]) * exists  # [B, T - 1, N, N - 1]
        # What an uncertain path does to a force that grows as 1 / r²; for other laws the weights sort it out.
        force_error = (pair_error * (closest / length) ** -3).sum(-1)
        wall = torch.minimum(position - self.low, self.high - position).amin(-1)  # [B, T, N]
        wall = torch.minimum(wall[:, :-1], wall[:, 1:]).clamp(0, 20 * length) + 0.1 * length
        touched = wall < 1.1 * length
        speed = (velocity[:, :-1].norm(dim=-1) + velocity[:, 1:].norm(dim=-1)) / 2
        log_closest = closest.amin(-1).log() - math.log(length)
        log_error = (force_error + 1e-6 * length).log()
        flag = integrated.double().expand_as(log_error)
        return torch.stack(
            [
                log_closest,
                log_closest**2,
                log_error,
                (own_error + 1e-7 * length).log(),
                wall.log(),
                touched.double(),
                (speed + 0.1 * length / dt).log(),
                ((closest / length) ** -2).sum(-1).log(),
                flag,
                flag * (log_error - math.log(length)),
            ],
            dim=-1,
        )
