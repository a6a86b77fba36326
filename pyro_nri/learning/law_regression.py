"""Observed impulses as a robust linear regression on the splines of the laws and on the clock lag.

Recorded velocities are often those of a moment slightly before or after the positions (integrators of leapfrog type,
velocities by one-sided differences). All scenes share that error, so no resampling shows it; what it adds to an impulse
is linear in the lag, which is therefore one more coefficient. Phase oscillators have none: a rate belongs to its phase.
"""

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_SPLINES
from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.model.impulse import chosen_impulses
from pyro_nri.model.noise import AbstractNoise, GeometricNoise
from pyro_nri.scenes import edges

#: Prior standard deviation of the second differences of spline coefficients, as a share of the typical coefficient. It
#: does not depend on the noise: where data lie it is negligible, elsewhere it continues the law.
ROUGHNESS = 1.0
#: Prior standard deviation of the clock lag, as a share of the time of a frame.
LAG_SCALE = 0.02
#: A spline coefficient is typical if it has at least this share of the data that a coefficient has on average.
COVERED = 0.01


class LawRegression:
    """Rows and prior of the regression.

    Coefficients are those of the splines, ``K * NUM_SPLINES``, and one for the clock lag: P together.

    Args:
        dynamics: its laws and its clock lag are the prior's centre for what data do not say.
        features: of scenes; a copy of the laws as they are now says what limited forces do.
        group_index: group of each scene, long ``[B]``.
    """

    def __init__(self, dynamics: PairForces, features: ImpulseFeatures, group_index: Tensor) -> None:
        self.laws, self.features, self.group_index = dynamics.laws, features, group_index
        self.time_step, self.lag = float(dynamics.time_step), float(dynamics.clock_lag)
        self.coefficient = torch.cat([self.laws.splines.flatten().double(), torch.zeros(1, dtype=torch.float64)])
        self.held = features.held_impulses(self.laws)
        self.change = None if self.laws.circular else features.lag_impulses(self.laws) / self.time_step
        self.free = torch.ones(len(self.coefficient), dtype=torch.bool)
        self.free[: NUM_SPLINES * int(self.laws.no_interaction)] = False  # the law of type 0 is zero
        self.free[-1] = self.change is not None and not dynamics.leapfrog_steps  # whose lag is half a sub-step

    def rows(self, structure: Tensor) -> tuple[Tensor, Tensor]:
        """Design ``[R, S, P]`` and targets ``[R, S]`` of the transitions that count, under structures ``[G, E]``."""
        features, mask = self.features, self.features.mask
        incoming = structure[self.group_index][:, edges.incoming_edges(features.target.shape[2])]
        columns = features.design(self.laws, incoming)
        lag = torch.zeros_like(features.target) if self.change is None else chosen_impulses(self.change, incoming)
        target = features.target - chosen_impulses(self.held, incoming)
        return torch.cat([columns, lag[..., None]], dim=-1)[mask], target[mask]

    def penalty(self, design: Tensor) -> tuple[Tensor, Tensor]:
        """The prior as a quadratic form ``[P, P]`` and its slope at coefficient 0, ``[P]``.

        Args:
            design: rows, to see which coefficients data speak of.
        """
        laws, size = self.laws, len(self.coefficient)
        amount = design[..., :-1].abs().sum((0, 1))
        seen = amount > COVERED * amount.mean()
        value = self._knots().flatten()[seen]
        scale = float(value.square().mean().sqrt().clamp(min=1e-12)) if seen.any() else 1.0
        rough = _roughness(laws.num_edge_types, circular=laws.circular) / (ROUGHNESS * scale) ** 2
        result = torch.zeros(size, size, dtype=torch.float64)
        result[:-1, :-1] = rough + 1e-6 / scale**2 * torch.eye(len(rough), dtype=torch.float64)
        result[-1, -1] = (LAG_SCALE * self.time_step) ** -2
        slope = torch.zeros(size, dtype=torch.float64)
        slope[-1] = -result[-1, -1] * self.lag  # the coefficient is what is added to the lag
        return result, slope

    def solve(self, system: Tensor, right: Tensor) -> Tensor:
        """Coefficients ``[P]`` of the normal equations; those that are fixed are 0."""
        system, result = system[self.free][:, self.free], torch.zeros_like(right)
        scale = system.diagonal().rsqrt()  # information varies over many orders of magnitude
        result[self.free] = scale * torch.linalg.solve(scale[:, None] * system * scale, scale * right[self.free])
        return result

    def covariance(self, system: Tensor) -> Tensor:
        """Of each law's coefficients, ``[K, NUM_SPLINES, NUM_SPLINES]``; 0 for those that are fixed."""
        some = system[self.free][:, self.free]
        scale = some.diagonal().rsqrt()
        whole = torch.zeros_like(system)
        free = self.free.nonzero().squeeze(-1)
        whole[free[:, None], free] = scale[:, None] * torch.linalg.inv(scale[:, None] * some * scale) * scale
        blocks = whole[:-1, :-1].unflatten(1, (-1, NUM_SPLINES)).unflatten(0, (-1, NUM_SPLINES))
        each: Tensor = blocks.diagonal(dim1=0, dim2=2).movedim(-1, 0)
        return each

    def splines(self, coefficient: Tensor) -> Tensor:
        """The laws' part of coefficients, ``[K, NUM_SPLINES]``."""
        return coefficient[:-1].view(-1, NUM_SPLINES)

    def _knots(self) -> Tensor:
        """The curves where each spline is largest, ``[K, NUM_SPLINES]``."""
        table = self.laws.table().detach().double()
        first = 0.0 if self.laws.circular else -1.0
        count = NUM_SPLINES if self.laws.circular else NUM_SPLINES - 3
        place = (torch.arange(NUM_SPLINES) + first).clamp(0, count) / count * (table.shape[-1] - 1)
        return table[:, place.round().long()]


def _roughness(num_types: int, *, circular: bool) -> Tensor:
    """Sum of squared second differences of each law's coefficients as a quadratic form."""
    identity = torch.eye(NUM_SPLINES, dtype=torch.float64)
    second = identity.roll(1, 0) - 2 * identity + identity.roll(-1, 0) if circular else identity.diff(n=2, dim=0)
    penalty: Tensor = torch.block_diag(*[second.T @ second] * num_types)
    return penalty


def fit_noise(noise: AbstractNoise, residual: Tensor, context: Tensor | None, mask: Tensor | None = None) -> None:
    """Maximum likelihood of the noise's few parameters, in place.

    Args:
        noise: its parameters change.
        residual: observed minus predicted, raw units, ``[*batch, D]``.
        context: ``[*batch, F]``, or None.
        mask: which residuals count, bool ``[*batch]``; all by default.
    """
    if mask is not None:
        residual, context = residual[mask], None if context is None else context[mask]
    context = context if noise.uses_context else None
    parameters = [parameter for parameter in noise.parameters() if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(parameters, max_iter=15, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = -noise(torch.zeros_like(residual), context).log_prob(residual).mean()
        if isinstance(noise, GeometricNoise):
            loss = loss + 1e-4 * noise.context_weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
