"""Learned force laws: one curve for each type of edge, over the distance of two entities or their phase difference."""

import copy
import math

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.modules import ModuleLibrary

#: Points on which a law is tabulated.
NUM_POINTS = 801
#: Cubic B-splines that a fitted law is a sum of.
NUM_SPLINES = 64
#: A type exerts a force if it is more than this share of the strongest one at the same place, at so many of the points.
LEAST_FORCE, LEAST_POINTS = 1e-3, 0.05
#: What places where all forces are weak are compared with: a share of the strongest force at the median place.
WEAK = 0.1


class ForceLaws(nn.Module):
    """K curves ``f_k``, held as neural networks while they are learned by gradient and as splines once they are fitted.

    Over distances the coordinate is ``log r`` and the tabulated value ``r f(r)``, so that forces over many orders of
    magnitude are smooth; over phase differences it is the angle itself, periodic. Either way the curve is tabulated on
    :data:`NUM_POINTS` points, with parabolas between them: an evaluation costs three look-ups, and gradients reach the
    networks through the table. (Straight lines would bend a spring's law by 2e-5, far more than noise-free data bear.)

    Args:
        num_edge_types: K.
        circular: whether the coordinate is an angle.
        no_interaction: whether type 0 exerts no force.
        width: width of the networks' two hidden layers.
        generator: source of the initial weights.
    """

    def __init__(
        self,
        num_edge_types: int,
        *,
        circular: bool,
        no_interaction: bool = False,
        width: int = 64,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.num_edge_types = num_edge_types
        self.circular = circular
        self.no_interaction = no_interaction
        size_in = 4 if circular else 3
        self.networks = ModuleLibrary(
            num_edge_types - int(no_interaction),
            [size_in, width, width, 1],
            activate_output=False,
            generator=generator,
        )
        self.register_buffer("low", torch.tensor(-math.pi))
        self.register_buffer("high", torch.tensor(math.pi))
        self.register_buffer("strength", torch.tensor(1.0))
        self.register_buffer("splines", torch.zeros(num_edge_types, NUM_SPLINES))
        self.register_buffer("fitted_table", torch.zeros(num_edge_types, NUM_POINTS))
        self.register_buffer("is_fitted", torch.tensor(False))
        self.low: Tensor
        self.high: Tensor
        self.strength: Tensor
        self.splines: Tensor
        self.fitted_table: Tensor
        self.is_fitted: Tensor

    def fit_scaling(self, coordinate: Tensor, strength: float) -> None:
        """Set the range of distances and the typical force from data.

        Args:
            coordinate: distances that occur, any shape; ignored for angles.
            strength: typical size of what the forces must explain, raw units.
        """
        if not self.circular:
            distance = coordinate[coordinate > 0].double().flatten()
            if len(distance) == 0:
                raise ValueError("all entities are at one place in every frame, no distance occurs")
            ordered = distance.sort().values
            # The few closest approaches of all must not stretch the range; below it r f(r) is constant.
            self.low.fill_(float(ordered[len(ordered) // 2000].log()) - 0.5)
            self.high.fill_(float(ordered[-1].log()) + 0.05)
        self.strength.fill_(strength)

    # --- the curve ---------------------------------------------------------------------------------------------------
    def points(self) -> Tensor:
        """Where the curves are tabulated: distances or angles, ``[NUM_POINTS]``."""
        place = self._places(NUM_POINTS)
        return place if self.circular else place.exp()

    def table(self) -> Tensor:
        """``r f(r)`` or ``f(angle)`` on :meth:`points`, ``[K, NUM_POINTS]``."""
        if self.is_fitted:
            return self.fitted_table
        place = self._places(NUM_POINTS)
        if self.circular:
            inputs = torch.stack([place.sin(), place.cos(), (2 * place).sin(), (2 * place).cos()], -1)
        else:
            scaled = 6 * (place - (self.low + self.high) / 2) / (self.high - self.low)
            # Slow waves beside the straight line: rectified linear units alone bend only at corners.
            inputs = torch.stack([scaled, scaled.sin(), scaled.cos()], -1)
        values: Tensor = 2 * self.strength * self.networks(inputs).squeeze(-1).T  # [K, M]
        if self.no_interaction:
            values = nn.functional.pad(values, (0, 0, 1, 0))
        return values

    def exerting(self) -> Tensor:
        """Which types exert a force at all, bool ``[K]``: what others have learned is error."""
        table = self.table().detach().abs()
        force = table if self.circular else table / self.points()
        strongest = force.amax(0)
        strongest = torch.maximum(strongest, WEAK * strongest.median())
        return (force > LEAST_FORCE * strongest).double().mean(-1) >= LEAST_POINTS

    def forward(self, coordinate: Tensor, table: Tensor | None = None) -> Tensor:
        """Forces of all types, positive = away from the sender.

        Args:
            coordinate: distances or angles ``[*batch]``, raw units.
            table: result of :meth:`table`, to make it once for many calls.

        Returns:
            ``[*batch, K]``, raw units.
        """
        columns = self.table() if table is None else table
        bend, columns = self.bend(columns).T, columns.T  # [M - 1, K], [M, K]
        index, share = self._interval(coordinate)
        before = columns[index]
        value = before + (columns[index + 1] - before) * share[..., None] + bend[index] * _arch(share)[..., None]
        return value if self.circular else value / coordinate[..., None]

    def select(self, coordinate: Tensor, edge_type: Tensor, table: Tensor) -> Tensor:
        """Forces of given types: ``[*batch]`` distances or angles and types ``[*batch]`` to ``[*batch]``."""
        index, share = self._interval(coordinate)
        flat, bend = table.reshape(-1), self.bend(table).reshape(-1)
        place = edge_type * NUM_POINTS + index
        before = flat[place]
        value = before + (flat[place + 1] - before) * share + bend[place - edge_type] * _arch(share)
        return value if self.circular else value / coordinate

    def bend(self, table: Tensor) -> Tensor:
        """Second differences of the table ``[K, M]``, those at both ends of an interval averaged: ``[K, M - 1]``."""
        second = table.diff(n=2, dim=-1)
        if self.circular:
            seam = table[..., :1] * -2 + table[..., 1:2] + table[..., -2:-1]
            around = torch.cat([seam, second, seam], -1)
        else:
            around = torch.cat([second[..., :1], second, second[..., -1:]], -1)
        return (around[..., 1:] + around[..., :-1]) / 2

    def slope(self, coordinate: Tensor) -> Tensor:
        """Largest ``|df/dr|`` of any type at the distances or angles ``[*batch]``."""
        points, table = self.points(), self.table().detach()
        force = table if self.circular else table / points
        steepness = (force.diff(dim=-1) / points.diff()).abs().amax(0)  # [M - 1]
        return steepness[self._interval(coordinate)[0]]

    def _interval(self, coordinate: Tensor) -> tuple[Tensor, Tensor]:
        """Number of the table's interval and the place within it; above the range the last interval is continued."""
        place = coordinate if self.circular else coordinate.log()
        if self.circular:
            place = torch.remainder(place + math.pi, 2 * math.pi) - math.pi
        scaled = ((place - self.low) * ((NUM_POINTS - 1) / (self.high - self.low))).clamp(min=0)
        index = scaled.detach().long().clamp(max=NUM_POINTS - 2)
        return index, scaled - index

    def _places(self, number: int) -> Tensor:
        share = torch.linspace(0, 1, number, dtype=self.low.dtype, device=self.low.device)
        return self.low + (self.high - self.low) * share

    # --- splines -----------------------------------------------------------------------------------------------------
    def basis(self, coordinate: Tensor) -> tuple[Tensor, Tensor]:
        """The four cubic B-splines that are not zero at each coordinate.

        Args:
            coordinate: distances or angles ``[*batch]``.

        Returns:
            Their numbers, long ``[*batch, 4]``, and values ``[*batch, 4]``, which sum to 1.
        """
        place = coordinate if self.circular else coordinate.log()
        if self.circular:
            place = torch.remainder(place + math.pi, 2 * math.pi) - math.pi
        count = NUM_SPLINES if self.circular else NUM_SPLINES - 3
        scaled = ((place - self.low) / (self.high - self.low) * count).clamp(0, count)
        first = scaled.detach().long().clamp(max=count - 1)
        x = scaled - first
        y = 1 - x
        weight = torch.stack([y**3, 3 * x**3 - 6 * x**2 + 4, 3 * y**3 - 6 * y**2 + 4, x**3], -1) / 6
        index = first[..., None] + torch.arange(4, device=first.device)
        return (index % NUM_SPLINES if self.circular else index), weight

    def set_splines(self, coefficient: Tensor) -> None:
        """Replace the networks by fitted curves ``[K, NUM_SPLINES]`` of ``r f(r)`` or ``f(angle)``."""
        self.splines.copy_(coefficient)
        index, weight = self.basis(self.points())
        self.fitted_table.copy_(torch.stack([(curve[index] * weight).sum(-1) for curve in self.splines]))
        self.is_fitted.fill_(True)

    def several(self, coefficient: Tensor) -> "ForceLaws":
        """Several sets of fitted curves ``[R, K, NUM_SPLINES]`` in one: type k of set r has number ``r K + k``."""
        laws = copy.deepcopy(self)
        laws.num_edge_types = len(coefficient) * self.num_edge_types
        laws.splines = coefficient.flatten(0, 1)
        laws.fitted_table = self.fitted_table.new_zeros(laws.num_edge_types, NUM_POINTS)
        laws.set_splines(laws.splines)
        return laws


def _arch(share: Tensor) -> Tensor:
    """What a unit of second difference adds to the straight line between two points; nothing beyond the last one."""
    inside = share.clamp(0, 1)
    return inside * (inside - 1) / 2
