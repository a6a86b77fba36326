"""The Pyro program of a batch of scenes, and its tensor twin."""

import copy

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.rollout import rollout
from pyro_nri.dynamics.scaling import Scaling, fit_change_scale, fit_scaling
from pyro_nri.model.direct import DirectLikelihood
from pyro_nri.model.geometry import Geometry
from pyro_nri.model.impulse import impulse_cache, impulse_table
from pyro_nri.model.impulse_power import ImpulsePower
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.plates import sample_structures
from pyro_nri.model.power import DensityPower
from pyro_nri.model.priors import AbstractPrior, StructureDistribution
from pyro_nri.model.receivers import (
    AbstractLikelihood,
    message_cache,
    num_codes,
    receiver_table,
)
from pyro_nri.model.trajectory import Trajectory
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Receivers with more codes than this are evaluated move by move instead of all at once.
MAX_TABLE_CODES = 4096


class SceneModel(PyroModule):
    """Structure, hidden state and trajectory of a batch of scenes as a Pyro program.

    Sites: ``edge_type`` long ``[G, E]``; ``hidden_state`` ``[B, N_hidden, D]`` in scaled units (absent when nothing is
    hidden); ``trajectory`` ``[B, T - 1, N, D]`` in raw units. The modules are parameters: point-estimated by
    training, so every posterior is given the learned modules.

    Args:
        dynamics: edge and node modules.
        noise: noise of one prediction.
        prior: prior over structures.
        horizon: H, frames between two restarts from the observed state.
        num_hidden: number of hidden entities, numbered after the observed ones.
        state_names: D names of the state variables the model was made for.
        impulse_noise: noise of the impulses of :class:`PairForces`, which then have a composite likelihood beside
            their density.

    Raises:
        ValueError: K or D differ between the parts, or a count is out of range.

    Example:
        >>> from pyro_nri.dynamics.message_passing import MessagePassing
        >>> from pyro_nri.model.noise import NormalNoise
        >>> from pyro_nri.model.priors import IndependentPrior
        >>> dynamics = MessagePassing(2, 4, generator=torch.Generator().manual_seed(0))
        >>> model = SceneModel(dynamics, NormalNoise(4), IndependentPrior(2))
        >>> scenes = Scenes.from_arrays(torch.zeros(3, 5, 4, 4))
        >>> trace = pyro.poutine.trace(model).get_trace(scenes)
        >>> trace.nodes["edge_type"]["value"].shape
        torch.Size([3, 12])
    """

    def __init__(
        self,
        dynamics: AbstractDynamics,
        noise: AbstractNoise,
        prior: AbstractPrior,
        *,
        horizon: int = 1,
        num_hidden: int = 0,
        state_names: tuple[str, ...] = ("x", "y", "vx", "vy"),
        impulse_noise: AbstractNoise | None = None,
    ) -> None:
        super().__init__()
        if dynamics.num_edge_types != prior.num_edge_types:
            raise ValueError(
                f"prior has {prior.num_edge_types} edge types, dynamics has {dynamics.num_edge_types}: they must agree"
            )
        if len(state_names) != dynamics.state_size:
            raise ValueError(f"state_names must have {dynamics.state_size} entries, found {len(state_names)}")
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, found {horizon}")
        if num_hidden < 0:
            raise ValueError(f"num_hidden must be 0 or more, found {num_hidden}")
        self.geometry = Geometry(state_names)
        if noise.uses_context and not self.geometry.applies:
            raise ValueError(
                f"geometric noise needs positions and their velocities, such as x, vx, found state "
                f"{', '.join(state_names)}"
            )
        if (impulse_noise is not None) != isinstance(dynamics, PairForces):
            raise ValueError("impulse_noise belongs to pair forces, and they need it")
        self.dynamics = dynamics
        self.noise = noise
        self.impulse_noise = impulse_noise
        self.impulse_power = None if impulse_noise is None else ImpulsePower()
        self.density_power = DensityPower() if impulse_noise is None else None
        self.prior = prior
        self.horizon = horizon
        self.num_hidden = num_hidden
        self.state_names = state_names
        self.register_buffer("score_offset", torch.zeros(len(state_names)))
        self.register_buffer("score_scale", torch.ones(len(state_names)))
        self.score_offset: Tensor
        self.score_scale: Tensor

    @property
    def num_edge_types(self) -> int:
        """K."""
        return int(self.dynamics.num_edge_types)

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the modules."""
        return self.score_scale.dtype

    @property
    def impulse_parts(self) -> tuple[PairForces, AbstractNoise, ImpulsePower]:
        """What the impulse likelihood is made of: dynamics, noise of the impulses, power.

        Raises:
            ValueError: the dynamics are not pair forces.
        """
        dynamics = self.dynamics
        if not isinstance(dynamics, PairForces) or self.impulse_noise is None or self.impulse_power is None:
            raise ValueError("the impulse likelihood belongs to pair forces, and this model has other dynamics")
        return dynamics, self.impulse_noise, self.impulse_power

    @property
    def scaling(self) -> Scaling:
        """Constants of scaled units, fitted on training scenes, ``[D]`` each."""
        return Scaling(self.score_offset, self.score_scale)

    def fit_scaling(self, scenes: Scenes) -> None:
        """Set all constants between raw and scaled units from training scenes."""
        offset, scale = fit_scaling(scenes)
        self.score_offset.copy_(offset)
        self.score_scale.copy_(scale)
        change = fit_change_scale(scenes)
        seen = scenes.trajectory[scenes.observation_mask].double()  # [R, D]
        spacing = seen.abs().amax(0) * torch.finfo(self.dtype).eps
        if (lost := (spacing > 0.01 * change) & (seen.amax(0) > seen.amin(0))).any():
            raise ValueError(
                f"state {self.state_names[int(lost.nonzero()[0])]} is so far from 0 that the model's precision loses "
                f"its motion; subtract an origin"
            )
        context = None
        if self.geometry.applies:
            self.geometry.fit_scaling(scenes)
            state = scenes.trajectory[:, :-1].to(self.dtype)
            context = self.geometry(state, scenes.edge_mask[:, None])[scenes.transition_mask]
        noise: AbstractNoise = self.noise
        noise.fit_scaling(change, context)
        dynamics: AbstractDynamics = self.dynamics
        dynamics.fit_scaling(scenes)
        if self.impulse_noise is not None:
            pair_forces, impulse_noise, _ = self.impulse_parts
            features = pair_forces.features(scenes, whiten=False)
            typical = features.target.abs()[features.mask].median(0).values.clamp(min=1e-12)
            impulse_noise.fit_scaling(typical, features.context[features.mask])

    def prepare(self, scenes: Scenes) -> Scenes:
        """Scenes with floats in the dtype and on the device of the modules.

        Raises:
            ValueError: the scenes have other state variables than the model, or lack the kinds of entities it needs.
        """
        if scenes.state_names != self.state_names:
            raise ValueError(
                f"the model was made for state variables {', '.join(self.state_names)}, "
                f"the scenes have {', '.join(scenes.state_names)}"
            )
        kinds = self.dynamics.num_entity_kinds
        if kinds > 1:
            if scenes.entity_kind is None:
                raise ValueError(f"the model has {kinds} kinds of entity, the scenes do not name any")
            if int(scenes.entity_kind.max()) >= kinds:
                raise ValueError(
                    f"the model has {kinds} kinds of entity, the scenes name {int(scenes.entity_kind.max()) + 1}"
                )
        if isinstance(self.dynamics, PairForces):
            learned = float(self.dynamics.time_step)
            if abs(scenes.time_step - learned) > 1e-5 * learned:
                raise ValueError(
                    f"frames of the scenes are {scenes.time_step:g} apart, the model was trained on frames "
                    f"{learned:g} apart"
                )
        return scenes.to(self.dtype, self.score_scale.device)

    def on(self, device: torch.device | str) -> "SceneModel":
        """The model itself where it is on the device, else a copy there."""
        if self.score_scale.device == torch.device(device):
            return self
        return copy.deepcopy(self).to(device)

    # --- the program -------------------------------------------------------------------------------------------------
    def forward(self, scenes: Scenes, *, condition: bool = True) -> Tensor:
        """Run the program.

        Args:
            scenes: B scenes in G structure groups; their frame 0 is a covariate.
            condition: observe the recorded trajectories; False draws them.

        Returns:
            Frames 1 to T - 1, ``[B, T - 1, N, D]``, raw units.
        """
        scenes = self.prepare(scenes)
        structure_prior = self.prior(self._edge_mask(scenes)[scenes.group_first_scene])
        observed = scenes.trajectory[:, 1:] if condition else None
        return sample_structures(scenes, structure_prior, lambda z: self._trajectory_site(scenes, z, observed))

    def _trajectory_site(self, scenes: Scenes, structure: Tensor, observed: Tensor | None) -> Tensor:
        hidden = pyro.sample("hidden_state", self._hidden_prior()) if self.num_hidden else None
        trajectory: Tensor = pyro.sample("trajectory", self.trajectory(scenes, structure, hidden), obs=observed)
        return trajectory

    def _hidden_prior(self) -> dist.TorchDistribution:
        zero = self.score_offset.new_zeros(self.num_hidden, self.dynamics.state_size)
        independent: dist.TorchDistribution = dist.Normal(zero, 1.0).to_event(2)
        return independent

    def _edge_mask(self, scenes: Scenes) -> Tensor:
        """Existing edges of each scene, hidden entities included, bool ``[B, E]``."""
        if not self.num_hidden:
            return scenes.edge_mask
        present = torch.nn.functional.pad(scenes.entity_mask, (0, self.num_hidden), value=True)
        return edges.from_matrix(present[:, :, None] & present[:, None, :])

    def trajectory(self, scenes: Scenes, structure: Tensor, hidden_state: Tensor | None = None) -> Trajectory:
        """Distribution of the trajectories of prepared scenes.

        Args:
            scenes: B scenes.
            structure: long ``[*batch, B, E]``, one for each scene.
            hidden_state: ``[*batch, B, N_hidden, D]``, scaled units.
        """
        kind = scenes.entity_kind
        if kind is not None and self.num_hidden:
            kind = torch.nn.functional.pad(kind, (0, self.num_hidden))
        return Trajectory(
            scenes.trajectory[:, 0],
            self.dynamics,
            structure,
            self.noise,
            geometry=self.geometry if self.geometry.applies else None,
            num_frames=scenes.num_frames,
            horizon=self.horizon,
            observation_mask=scenes.observation_mask,
            entity_mask=scenes.entity_mask,
            edge_mask=self._edge_mask(scenes),
            entity_kind=kind,
            hidden_state=None if hidden_state is None else hidden_state * self.score_scale + self.score_offset,
            validate_args=False,
        )

    # --- the tensor twin ---------------------------------------------------------------------------------------------
    def structure_prior(self, scenes: Scenes) -> StructureDistribution:
        """Prior of the structures of the G groups, batch ``[G]``, event ``[E]``."""
        distribution: StructureDistribution = self.prior(self._edge_mask(scenes)[scenes.group_first_scene])
        return distribution

    def log_likelihood(self, scenes: Scenes, structure: Tensor, hidden_state: Tensor | None = None) -> Tensor:
        """Log density of the trajectories, summed over the scenes of each group.

        Args:
            scenes: B scenes in G groups.
            structure: long ``[C, G, E]``.
            hidden_state: ``[C, B, N_hidden, D]``, scaled units, or None.

        Returns:
            ``[C, G]``, float64.
        """
        return self.entity_log_likelihood(scenes, structure, hidden_state).sum(-1)

    def entity_log_likelihood(self, scenes: Scenes, structure: Tensor, hidden_state: Tensor | None = None) -> Tensor:
        """As :meth:`log_likelihood`, before the sum over entities: ``[C, G, N]``."""
        scenes = self.prepare(scenes)
        if structure.min() < 0 or structure.max() >= self.num_edge_types:
            raise ValueError(
                f"structure must hold types 0 to {self.num_edge_types - 1}, found {int(structure.min())} to "
                f"{int(structure.max())}"
            )
        each = structure[..., scenes.group_index, :]  # [C, B, E]
        terms = self.trajectory(scenes, each, hidden_state).log_prob_entities(scenes.trajectory[:, 1:])  # [C, B, N]
        total = terms.new_zeros(*terms.shape[:-2], scenes.num_groups, terms.shape[-1])
        return total.index_add(-2, scenes.group_index, terms)

    def log_joint(self, scenes: Scenes, structure: Tensor, hidden_state: Tensor | None = None) -> Tensor:
        """Log joint density ``[C, G]``, float64: prior of structure and hidden states plus log-likelihood.

        The sum over G equals the log probability of the traced Pyro program.
        """
        scenes = self.prepare(scenes)
        total = self.structure_prior(scenes).log_prob(structure).double()
        total = total + self.log_likelihood(scenes, structure, hidden_state)
        if hidden_state is not None:
            prior = self._hidden_prior().log_prob(hidden_state).double()  # [C, B]
            total = total.index_add(-1, scenes.group_index, prior)
        return total

    def likelihood(self, scenes: Scenes, *, kind: str = "auto", cache: str = "auto") -> AbstractLikelihood:
        """Log-likelihood of structures under the modules as they are now, prepared for many evaluations.

        Args:
            scenes: B scenes in G groups.
            kind: "forward", the density of the program; "impulse", the composite likelihood of pair forces; or
                "auto": for a horizon of 1 impulse where it exists, else the density as far as it is believed.
            cache: "table" (all codes of all receivers), "messages" (all messages), "none" (evaluate the program each
                time; any horizon, no impulses), or "auto": the first that applies.

        Raises:
            ValueError: a likelihood or a cache is asked for that the model does not admit.
        """
        if self.num_hidden:
            raise ValueError(
                "the structure likelihood of a model with hidden entities depends on their path; num_hidden must be 0"
            )
        if kind not in ("auto", "forward", "impulse"):
            raise ValueError(f"kind must be auto, forward or impulse, found {kind!r}")
        if cache not in ("auto", "table", "messages", "none"):
            raise ValueError(f"cache must be auto, table, messages or none, found {cache!r}")
        if kind == "impulse":
            _ = self.impulse_parts  # refuses other dynamics
        prepared = self.prepare(scenes)
        fits = num_codes(self.num_edge_types, scenes.num_entities) <= MAX_TABLE_CODES
        if kind != "forward" and self.impulse_noise is not None and self.horizon == 1 and cache != "none":
            precise = scenes.to(torch.float64, self.score_scale.device)
            if cache == "table" or (cache == "auto" and fits):
                return impulse_table(*self.impulse_parts, precise, relaxed=self.structure_prior(prepared).tied)
            return impulse_cache(*self.impulse_parts, precise)
        if kind == "impulse":
            raise ValueError(
                f"the impulse likelihood has one step and a cache, found horizon {self.horizon}, {cache!r}"
            )
        factorises = self.horizon == 1 and self.dynamics.num_substeps == 1
        if cache == "auto":
            cache = "none" if not factorises else "table" if fits else "messages"
        if cache != "none" and not factorises:
            raise ValueError(
                f"cache must be 'none' for horizon {self.horizon} and {self.dynamics.num_substeps} sub-steps: only one "
                f"step factorises over receivers"
            )
        power = None
        if kind == "auto" and self.density_power is not None and not self.density_power.is_one:
            power = self.density_power(prepared.transition_mask)
        if cache == "none":
            return DirectLikelihood(self.trajectory, prepared, self.num_edge_types, power)
        context = None
        if self.noise.uses_context:
            context = self.geometry(prepared.trajectory[:, :-1], prepared.edge_mask[:, None])
        make = receiver_table if cache == "table" else message_cache
        return make(self.dynamics, self.noise, prepared, context, power)

    def predict(self, scenes: Scenes, structure: Tensor, *, start: int, num_steps: int) -> Tensor:
        """Mean path from an observed frame on: a rollout without noise.

        Args:
            scenes: B scenes in G groups.
            structure: long ``[C, G, E]``.
            start: the observed frame to start from.
            num_steps: frames to predict.

        Returns:
            Frames ``start + 1`` to ``start + num_steps``, ``[C, B, num_steps, N, D]``, raw units.

        Raises:
            ValueError: ``start`` is not a frame of the scenes.
        """
        if self.num_hidden:
            raise ValueError(
                f"predict does not yet treat hidden entities: num_hidden must be 0, found {self.num_hidden}"
            )
        scenes = self.prepare(scenes)
        if not 0 <= start < scenes.num_frames:
            raise ValueError(f"start must be a frame from 0 to {scenes.num_frames - 1}, found {start}")
        with torch.no_grad():
            return rollout(
                self.dynamics.for_rollouts(),
                scenes.trajectory[:, start],
                structure.to(scenes.trajectory.device)[..., scenes.group_index, :],
                num_steps,
                edge_mask=scenes.edge_mask,
                entity_kind=scenes.entity_kind,
            )
