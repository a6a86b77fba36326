"""The Pyro program of scenes whose states are measured with noise, and its tensor twin."""

import copy

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule
from torch import Tensor

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.rollout import rollout
from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.model.measurement import AbstractMeasurement, MeasurementNoise, StateMeasurement
from pyro_nri.model.plates import sample_structures
from pyro_nri.model.priors import AbstractPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.starts import AbstractStart, Latents, ScaledStart
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class NoisyModel(PyroModule):
    """Structure, initial states and parameters as latents; a path without noise; a recording of it with noise.

    ``observation="noisy"``: where :class:`pyro_nri.model.program.SceneModel` takes the recorded states for exact and
    each transition has its noise, here the motion is deterministic over the whole window and only its measurement is
    noisy. Sites: ``edge_type`` long ``[G, E]`` over all entities, hidden ones last; those of the start, standard normal
    (``initial_state`` ``[B, N, D]``, ``hidden_state`` ``[B, N_hidden, D]``, ``hidden_parameter``); ``trajectory``
    ``[B, T, N, M]``, the recording in raw units. Floats are float64.

    Args:
        dynamics: what moves the entities.
        prior: prior over structures.
        start: from latents to initial states.
        noise: of the measurement.
        measurement: what is measured of the path; the scenes hold these variables.

    Raises:
        ValueError: K differs between dynamics and prior.

    Example:
        >>> from pyro_nri.dynamics.message_passing import MessagePassing
        >>> from pyro_nri.dynamics.scaling import Scaling
        >>> from pyro_nri.model.measurement import StateMeasurement
        >>> from pyro_nri.model.priors import IndependentPrior
        >>> from pyro_nri.model.starts import ScaledStart
        >>> names = ("x", "y", "vx", "vy")
        >>> zero, one = torch.zeros(4).double(), torch.ones(4).double()
        >>> model = NoisyModel(
        ...     MessagePassing(2, 4, generator=torch.Generator().manual_seed(0)),
        ...     IndependentPrior(2),
        ...     ScaledStart(Scaling(zero, one), num_hidden=1),
        ...     MeasurementNoise(0.1 * one),
        ...     StateMeasurement(names),
        ... )
        >>> trace = pyro.poutine.trace(model).get_trace(Scenes.from_arrays(torch.zeros(3, 5, 4, 4)))
        >>> {name: list(trace.nodes[name]["value"].shape) for name in ("edge_type", "hidden_state", "trajectory")}
        {'edge_type': [3, 20], 'hidden_state': [3, 1, 4], 'trajectory': [3, 5, 4, 4]}
    """

    def __init__(
        self,
        dynamics: AbstractDynamics,
        prior: AbstractPrior,
        start: AbstractStart,
        noise: MeasurementNoise,
        measurement: AbstractMeasurement,
    ) -> None:
        super().__init__()
        if dynamics.num_edge_types != prior.num_edge_types:
            raise ValueError(
                f"prior has {prior.num_edge_types} edge types, dynamics has {dynamics.num_edge_types}: they must agree"
            )
        if len(noise.scale) != len(measurement.observed_names):
            raise ValueError(
                f"noise must have a scale for each of {', '.join(measurement.observed_names)}, found "
                f"{len(noise.scale)} of them"
            )
        self.dynamics = dynamics
        self.prior = prior
        self.start = start
        self.noise = noise
        self.measurement = measurement
        self.double()

    @property
    def num_hidden(self) -> int:
        """Number of entities without data."""
        return int(self.start.num_hidden)

    def prepare(self, scenes: Scenes) -> Scenes:
        """Scenes in float64.

        Raises:
            ValueError: the scenes hold other variables than the model measures.
        """
        wanted = self.measurement.observed_names
        if scenes.state_names != wanted:
            raise ValueError(f"the model measures {', '.join(wanted)}, the scenes have {', '.join(scenes.state_names)}")
        return scenes.to(torch.float64)

    def edge_mask(self, scenes: Scenes) -> Tensor:
        """Existing edges of each scene, hidden entities included, bool ``[B, E]``."""
        present = torch.nn.functional.pad(scenes.entity_mask, (0, self.num_hidden), value=True)
        return edges.from_matrix(present[:, :, None] & present[:, None, :])

    # --- the program -------------------------------------------------------------------------------------------------
    def forward(self, scenes: Scenes, *, condition: bool = True) -> Tensor:
        """Run the program.

        Args:
            scenes: B scenes in G structure groups.
            condition: observe the recording; False draws one.

        Returns:
            The recording, ``[B, T, N, M]``, raw units.
        """
        scenes = self.prepare(scenes)
        structure_prior = self.prior(self.edge_mask(scenes)[scenes.group_first_scene])
        observed = scenes.trajectory if condition else None
        return sample_structures(scenes, structure_prior, lambda z: self._recording_site(scenes, z, observed))

    def _recording_site(self, scenes: Scenes, structure: Tensor, observed: Tensor | None) -> Tensor:
        latents: Latents = {}
        for name, shape in self.start.shapes(scenes.num_entities).items():
            standard = dist.Normal(scenes.trajectory.new_zeros(shape), 1.0).to_event(len(shape))
            latents[name] = pyro.sample(name, standard)
        recording: Tensor = pyro.sample("trajectory", self.recording(scenes, structure, latents), obs=observed)
        return recording

    def path(self, scenes: Scenes, structure: Tensor, latents: Latents, num_frames: int | None = None) -> Tensor:
        """The motion without noise.

        Args:
            scenes: B scenes.
            structure: long ``[*batch, B, E]``, one for each scene.
            latents: ``[*batch, B, *shape]`` each.
            num_frames: frames to follow; default T.

        Returns:
            ``[*batch, B, T, N + N_hidden, D]``, raw units.
        """
        first: Tensor = self.start(latents)
        kind = scenes.entity_kind
        if kind is not None and self.num_hidden:
            kind = torch.nn.functional.pad(kind, (0, self.num_hidden))
        steps = (scenes.num_frames if num_frames is None else num_frames) - 1
        mask = None if scenes.entity_mask.all() else self.edge_mask(scenes)
        later = rollout(self.dynamics, first, structure, steps, edge_mask=mask, entity_kind=kind)
        return torch.cat([first.expand(*later.shape[:-3], *first.shape[-2:])[..., None, :, :], later], -3)

    def predict(self, scenes: Scenes, structure: Tensor, latents: Latents) -> Tensor:
        """What would be measured without noise, ``[*batch, B, T, N, M]``; arguments as of :meth:`path`."""
        seen: Tensor = self.measurement(self.path(scenes, structure, latents))
        return seen[..., : scenes.num_entities, :]

    def recording(self, scenes: Scenes, structure: Tensor, latents: Latents) -> dist.TorchDistribution:
        """Distribution of the recording, event ``[T, N, M]``; arguments as of :meth:`path`."""
        distribution: dist.TorchDistribution = self.noise(
            self.predict(scenes, structure, latents), scenes.observation_mask
        )
        return distribution

    # --- the tensor twin ---------------------------------------------------------------------------------------------
    def log_likelihood(self, scenes: Scenes, structure: Tensor, latents: Latents) -> Tensor:
        """Log density of the recordings, summed over the scenes of each group.

        Args:
            scenes: B scenes in G groups.
            structure: long ``[C, G, E]``.
            latents: ``[C, B, *shape]`` each, scaled units.

        Returns:
            ``[C, G]``.
        """
        scenes = self.prepare(scenes)
        recording = self.recording(scenes, structure[..., scenes.group_index, :], latents)
        return self._by_group(scenes, recording.log_prob(scenes.trajectory))

    def log_joint(self, scenes: Scenes, structure: Tensor, latents: Latents) -> Tensor:
        """Log joint density ``[C, G]``: structure, latents, recordings.

        The sum over G equals the log probability of the traced Pyro program.
        """
        scenes = self.prepare(scenes)
        structure_prior = self.prior(self.edge_mask(scenes)[scenes.group_first_scene])
        total = structure_prior.log_prob(structure).double() + self.log_likelihood(scenes, structure, latents)
        flat = self.pack(latents)
        normal: Tensor = dist.Normal(torch.zeros_like(flat), 1.0).log_prob(flat).sum(-1)
        joint: Tensor = total + self._by_group(scenes, normal)
        return joint

    @staticmethod
    def _by_group(scenes: Scenes, terms: Tensor) -> Tensor:
        """Sum terms ``[C, B]`` over the scenes of each group, ``[C, G]``."""
        total = terms.new_zeros(*terms.shape[:-1], scenes.num_groups)
        return total.index_add(-1, scenes.group_index, terms)

    def pack(self, latents: Latents) -> Tensor:
        """All latents of a scene in a row: ``[*batch, P]``."""
        shapes = self.start.shapes(0)  # the lengths of the sites do not matter here, their ranks do
        return torch.cat([latents[name].flatten(-len(shape)) for name, shape in shapes.items()], -1)

    def num_latents(self, num_entities: int) -> int:
        """P, the numbers that are latent in a scene of N observed entities."""
        return sum(torch.Size(shape).numel() for shape in self.start.shapes(num_entities).values())

    def unpack(self, value: Tensor, num_entities: int) -> Latents:
        """Latents from rows ``[*batch, P]``."""
        shapes = self.start.shapes(num_entities)
        parts = value.split([torch.Size(shape).numel() for shape in shapes.values()], -1)
        return {
            name: part.reshape(*value.shape[:-1], *shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }


def with_measurement_noise(
    model: SceneModel, scale: Tensor, *, num_hidden: int = 0, learn: bool = False, num_substeps: int | None = None
) -> NoisyModel:
    """The noisy program of a trained model: ``observation="noisy"`` where it was trained with exact states.

    Its dynamics and its prior of structures are copied and no longer learned; initial states are standard normal in the
    model's scaled units, in which the training scenes lie between -1 and 1.

    Args:
        model: a trained model.
        scale: standard deviation of the measurement of each of its D state variables, raw units, ``[D]``.
        num_hidden: entities without data.
        learn: whether ``scale`` is to be learned, or known.
        num_substeps: sub-steps of a frame at most, for fast paths of pair forces; default: those of the model.
    """
    dynamics, prior = copy.deepcopy(model.dynamics), copy.deepcopy(model.prior)
    if num_substeps is not None:
        dynamics.num_substeps = min(dynamics.num_substeps, num_substeps)
    for part in (dynamics, prior):
        part.requires_grad_(False)
    scaling = Scaling(model.scaling.offset.double(), model.scaling.scale.double())
    return NoisyModel(
        dynamics,
        prior,
        ScaledStart(scaling, num_hidden=num_hidden),
        MeasurementNoise(scale, learn=learn),
        StateMeasurement(model.state_names),
    )
