"""Priors on orbits: where bodies may stand that turn around a centre, and how massive they may be."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nri.model.starts import AbstractStart, Latents

#: Numbers that fix the state of a body on an orbit in space.
ORBIT_SIZE = 6


@dataclass(frozen=True)
class OrbitPrior:
    """A prior over states on nearly circular orbits near a plane; longitudes are uniform.

    Six standard normal numbers: two that give longitude and distance, as the direction and the rank of the length of a
    normal vector in the plane (so that no longitude is an end, and far bodies are its middle); height above the plane;
    radial, tangential and upward velocity.

    Attributes:
        distance: median distance from the centre.
        distance_factor: the log distance has the standard deviation ``log(distance_factor)``.
        eccentricity: standard deviation of the radial velocity, and of what the tangential one lacks to that of a
            circle, as shares of the velocity on a circle: about the eccentricity.
        inclination: standard deviation of the height over the distance, and of the upward velocity over that on a
            circle: about the inclination in radians.
        epoch: time at which the longitude is the given one, if nothing else pulls and to first order in the
            eccentricity. It turns orbits by what depends on their other numbers, so the prior is the same for any
            epoch; latents are least entangled if it is a time about which the data speak.
    """

    distance: float
    distance_factor: float
    eccentricity: float
    inclination: float
    epoch: float = 0.0

    def __post_init__(self) -> None:
        if not (self.distance > 0 and self.distance_factor > 1 and self.eccentricity > 0 and self.inclination > 0):
            raise ValueError(f"numbers must be positive, and distance_factor above 1, found {self}")

    def state(self, standard: Tensor, strength: Tensor) -> Tensor:
        """Positions and velocities relative to the centre at time 0.

        Args:
            standard: ``[*batch, 6]``, scaled units.
            strength: G times the mass of the centre.

        Returns:
            ``[*batch, 6]``: x, y, z, vx, vy, vz.
        """
        square = standard[..., :2].square().sum(-1).clamp(min=1e-12)
        # exp(-square / 2) is uniform; 1e-16 keeps it from 1.
        rank = torch.special.ndtri((-square / 2).exp() * (1 - 1e-16))
        distance = self.distance * (math.log(self.distance_factor) * rank).exp()
        outward, onward = self.eccentricity * standard[..., 3], self.eccentricity * standard[..., 4]
        turn = self._turn(distance, outward, onward, strength)
        x, y = (standard[..., :2] / square.sqrt()[..., None]).unbind(-1)
        radial = torch.stack([turn.cos() * x + turn.sin() * y, turn.cos() * y - turn.sin() * x], -1)
        tangential = torch.stack([-radial[..., 1], radial[..., 0]], -1)
        speed = (strength / distance).sqrt()
        motion = speed[..., None] * (outward[..., None] * radial + (1 + onward)[..., None] * tangential)
        height = distance * self.inclination * standard[..., 2]
        upward = speed * self.inclination * standard[..., 5]
        return torch.cat([distance[..., None] * radial, height[..., None], motion, upward[..., None]], -1)

    def _turn(self, distance: Tensor, outward: Tensor, onward: Tensor, strength: Tensor) -> Tensor:
        """How far longitudes advance until the epoch, radians."""
        # Vis viva gives the semi-major axis; e sin f = outward, e cos f = 2 onward to first order.
        axis = distance / (1 - 2 * onward - onward.square() - outward.square()).clamp(min=0.1)
        mean = self.epoch * (strength / axis**3).sqrt()
        return mean + 2 * (outward * (mean.cos() - 1) + 2 * onward * mean.sin())

    def standard(self, longitude: Tensor, distance: Tensor) -> Tensor:
        """The six numbers of a body on a circle in the plane: ``[*batch, 6]``.

        Args:
            longitude: at the epoch, radians, ``[*batch]``.
            distance: ``[*batch]``.
        """
        rank = torch.special.log_ndtr(torch.log(distance / self.distance) / math.log(self.distance_factor))
        length = (-2 * rank).sqrt()
        place = torch.stack([length * longitude.cos(), length * longitude.sin()], -1)
        return torch.nn.functional.pad(place, (0, ORBIT_SIZE - 2))


@dataclass(frozen=True)
class MassPrior:
    """A log-normal prior over masses.

    Attributes:
        mass: median, in masses of the centre.
        factor: the log mass has the standard deviation ``log(factor)``.
    """

    mass: float
    factor: float

    def __post_init__(self) -> None:
        if not (self.mass > 0 and self.factor > 1):
            raise ValueError(f"mass must be positive and factor above 1, found {self}")

    def __call__(self, standard: Tensor) -> Tensor:
        """Masses from standard normal numbers, any shape."""
        return self.mass * (math.log(self.factor) * standard).exp()


class OrbitStart(AbstractStart):
    """Bodies around a centre: some with known states, some with latent ones, some unseen with a latent mass too.

    State variables are x, y, z, vx, vy, vz, gm. Sites: ``initial_state`` ``[N_latent, 6]``; where something is hidden
    ``hidden_state`` ``[N_hidden, 6]`` and ``hidden_parameter`` ``[N_hidden]``, the mass.

    Args:
        known: states of the N observed entities at frame 0, raw units, ``[N, 7]``; of latent ones only gm counts.
        latent: numbers of the observed entities whose positions and velocities are latent.
        orbit: prior of those.
        hidden_orbit: prior of hidden entities; None where nothing is hidden.
        hidden_mass: prior of their masses.
        num_hidden: number of hidden entities.
        centre: number of the entity around which they turn; it must be known.

    Raises:
        ValueError: shapes or numbers do not fit.
    """

    def __init__(
        self,
        known: Tensor,
        latent: tuple[int, ...],
        orbit: OrbitPrior,
        *,
        hidden_orbit: OrbitPrior | None = None,
        hidden_mass: MassPrior | None = None,
        num_hidden: int = 0,
        centre: int = 0,
    ) -> None:
        super().__init__()
        if known.ndim != 2 or known.shape[-1] != ORBIT_SIZE + 1:
            raise ValueError(f"known must have shape [N, {ORBIT_SIZE + 1}], found {list(known.shape)}")
        if centre in latent or not set(latent) | {centre} <= set(range(len(known))):
            raise ValueError(f"latent and centre must be different entities from 0 to {len(known) - 1}")
        if num_hidden and (hidden_orbit is None or hidden_mass is None):
            raise ValueError("hidden entities need hidden_orbit and hidden_mass")
        self.num_hidden = num_hidden
        self.latent = list(latent)
        self.orbit, self.hidden_orbit, self.hidden_mass = orbit, hidden_orbit, hidden_mass
        self.centre = centre
        self.register_buffer("known", known.double())
        self.known: Tensor

    def shapes(self, num_entities: int) -> dict[str, tuple[int, ...]]:
        observed: dict[str, tuple[int, ...]] = {"initial_state": (len(self.latent), ORBIT_SIZE)}
        if not self.num_hidden:
            return observed
        hidden = {"hidden_state": (self.num_hidden, ORBIT_SIZE), "hidden_parameter": (self.num_hidden,)}
        return {**observed, **hidden}

    def forward(self, latents: Latents) -> Tensor:
        centre = self.known[self.centre]
        strength = centre[ORBIT_SIZE]
        batch = latents["initial_state"].shape[:-2]
        orbiting = self.orbit.state(latents["initial_state"], strength) + centre[:ORBIT_SIZE]
        rows = list(self.known.expand(*batch, *self.known.shape).unbind(-2))
        for place, body in enumerate(self.latent):
            own = self.known[body, ORBIT_SIZE:].expand(*batch, 1)
            rows[body] = torch.cat([orbiting[..., place, :], own], -1)
        if self.num_hidden and self.hidden_orbit is not None and self.hidden_mass is not None:
            state = self.hidden_orbit.state(latents["hidden_state"], strength) + centre[:ORBIT_SIZE]
            mass = strength * self.hidden_mass(latents["hidden_parameter"])
            rows += torch.cat([state, mass[..., None]], -1).unbind(-2)
        return torch.stack(rows, -2)
