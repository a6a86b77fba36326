"""What a model is made of, in plain values: enough to build it again."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from pyro_nri.dynamics.dynamics import AbstractDynamics
from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.dynamics.pair_forces import PHASE_STATE, PairForces
from pyro_nri.model.geometry import NUM_FEATURES
from pyro_nri.model.noise import AbstractNoise, make_noise
from pyro_nri.model.priors import make_prior
from pyro_nri.model.program import SceneModel

#: Families of dynamics, and the noise that suits each by default.
DYNAMICS = {"message-passing": "student_t", "pair-forces": "geometric"}


@dataclass(frozen=True)
class ModelSpec:
    """Choices that fix the shape of a model.

    Attributes:
        num_edge_types: K.
        state_names: D names of the state variables.
        dynamics: family of dynamics.
        preset: size of the networks, "small" or "paper".
        prior: prior over structures by name.
        noise: noise by name; by default "geometric" for pair forces (phase oscillators: "student_t"), else "student_t".
        horizon: H.
        no_interaction: whether type 0 sends no message.
        num_entity_kinds: number of node modules.
        learn_type_weights: whether the prior's type weights are learned.
        num_hidden: number of hidden entities.
        num_labels: L of the prior "charges".
        boundary: pair forces: "estimate" the walls, "none", or the distance of every wall from the origin.
        num_substeps: pair forces: sub-steps of the integrator in a frame.
    """

    num_edge_types: int
    state_names: tuple[str, ...] = ("x", "y", "vx", "vy")
    dynamics: str = "message-passing"
    preset: str = "small"
    prior: str = "independent"
    noise: str = ""
    horizon: int = 1
    no_interaction: bool = False
    num_entity_kinds: int = 1
    learn_type_weights: bool = True
    num_hidden: int = 0
    num_labels: int = 2
    boundary: str | float = "estimate"
    num_substeps: int = 20

    def __post_init__(self) -> None:
        object.__setattr__(self, "state_names", tuple(self.state_names))
        if not self.noise:
            suits = "student_t" if self.state_names == PHASE_STATE else DYNAMICS.get(self.dynamics, "student_t")
            object.__setattr__(self, "noise", suits)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are stored."""
        return asdict(self) | {"state_names": list(self.state_names)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: an entry is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(
                f"the model's description has an unknown entry {unknown[0]!r}; was it made by a newer version?"
            )
        try:
            return cls(**{**values, "state_names": tuple(values["state_names"])})
        except (KeyError, TypeError) as error:
            raise ValueError(f"the model's description is incomplete: {error}") from error


def build_model(spec: ModelSpec, generator: torch.Generator) -> SceneModel:
    """A model with fresh weights.

    Args:
        spec: its shape.
        generator: source of the initial weights.

    Raises:
        ValueError: a choice is unknown or does not fit the others.
    """
    if spec.dynamics not in DYNAMICS:
        raise ValueError(f"dynamics must be one of {', '.join(DYNAMICS)}, found {spec.dynamics!r}")
    if spec.dynamics == "pair-forces":
        pair_forces = PairForces(
            spec.num_edge_types,
            spec.state_names,
            boundary=spec.boundary,
            num_substeps=spec.num_substeps,
            num_entity_kinds=spec.num_entity_kinds,
            no_interaction=spec.no_interaction,
            generator=generator,
        )
        impulse_noise = make_noise(spec.noise, pair_forces.num_axes, pair_forces.context_size)
        # Laws fitted in closed form are precise to more digits than float32 holds.
        return _scene_model(spec, pair_forces, impulse_noise).double()
    dynamics = MessagePassing(
        spec.num_edge_types,
        len(spec.state_names),
        preset=spec.preset,
        num_entity_kinds=spec.num_entity_kinds,
        no_interaction=spec.no_interaction,
        generator=generator,
    )
    return _scene_model(spec, dynamics, None)


def _scene_model(spec: ModelSpec, dynamics: AbstractDynamics, impulse_noise: AbstractNoise | None) -> SceneModel:
    return SceneModel(
        dynamics,
        make_noise(spec.noise, len(spec.state_names), NUM_FEATURES),
        make_prior(spec.prior, spec.num_edge_types, learn_weights=spec.learn_type_weights, num_labels=spec.num_labels),
        horizon=spec.horizon,
        num_hidden=spec.num_hidden,
        state_names=spec.state_names,
        impulse_noise=impulse_noise,
    )
