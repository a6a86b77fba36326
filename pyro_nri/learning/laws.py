"""Force laws in closed form: given structures, the best law is a weighted least squares problem.

The neural law that BounceGrad learns is the start; a few rounds of expectation and maximisation polish it: structures
are drawn from their posterior, splines of the laws are fitted to the impulses with the weights that robust noise gives,
the noise is fitted to the residuals. From the third round on, paths are integrated under the law where forces change
fast, so that the law is learned there too. All in float64.
"""

import time
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws
from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.rollout import teacher_forcing
from pyro_nri.inference.exact import ExactPosterior, can_enumerate, enumerate_posterior
from pyro_nri.inference.streams import Stream, generator, keys
from pyro_nri.model.impulse import (
    chosen_impulses,
    most_likely_structure,
    refined_features,
    table_of_impulses,
)
from pyro_nri.model.noise import AbstractNoise, GeometricNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import grouped_table, num_codes
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Scenes that laws are fitted to; more of them change the law by less than its quadrature does.
MAX_SCENES = 100
#: Rounds along cubic paths, and rounds with integrated paths.
NUM_ROUNDS = (2, 4)
#: Receivers with more codes than this take their most likely types instead of a draw.
MAX_CODES = 4096
#: Prior standard deviation of the second differences of spline coefficients, as a share of the typical coefficient. It
#: does not depend on the noise: where data lie it is negligible, elsewhere it continues the law.
ROUGHNESS = 1.0


class LawFit(NamedTuple):
    """What the last round of a fit left.

    Attributes:
        median_residual: median length of the residual change of the driven variable per unit time, raw units.
        scenes: the scenes that the laws were fitted to.
        structure: the structures that they were fitted to, long ``[G, E]``.
        seconds: time of the fit.
    """

    median_residual: float
    scenes: Scenes
    structure: Tensor
    seconds: float


def fit_laws(
    model: SceneModel,
    scenes: Scenes,
    *,
    structure: Tensor | None = None,
    num_rounds: tuple[int, int] = NUM_ROUNDS,
    seed: int,
    show_progress: bool = False,
) -> LawFit:
    """Fit laws, noise and type weights of pair forces in closed form, in place.

    Args:
        model: with :class:`PairForces` dynamics whose laws are roughly right.
        scenes: training scenes in raw units; at most :data:`MAX_SCENES` of them are used.
        structure: known structures, long ``[G, E]``; inferred by default.
        num_rounds: rounds along cubic paths and with integrated paths.
        seed: fixes the draws of structures.
        show_progress: progress bar on standard error.

    Raises:
        ValueError: the model has other dynamics.
    """
    dynamics, noise, _ = model.impulse_parts
    started = time.monotonic()
    if scenes.num_groups > MAX_SCENES:
        chosen = torch.randperm(scenes.num_groups, generator=generator(seed, "laws"))[:MAX_SCENES].sort().values
        scenes = scenes[torch.isin(scenes.group_index, chosen)]
        structure = None if structure is None else structure[chosen]
    stream = Stream(seed, keys(scenes.group_names, torch.device("cpu")), 1).child("laws")
    cubic = dynamics.features(scenes)
    features, drawn, residual = cubic, structure, cubic.target
    with torch.no_grad(), tqdm(total=sum(num_rounds), disable=not show_progress, desc="laws", unit="round") as bar:
        for number in range(sum(num_rounds)):
            if number >= num_rounds[0] and not dynamics.circular:
                features = refined_features(
                    dynamics, scenes, lambda smooth: most_likely_structure(dynamics, noise, smooth)
                )
                if number == num_rounds[0]:
                    noise.fit_scaling(noise.change_scale, features.context[features.mask])
                    fit_noise(noise, _residual(dynamics, features, scenes, drawn), features.context, features.mask)
            if structure is None:
                drawn = _draw_structure(model, features, scenes, stream, number)
            assert drawn is not None
            residual = _fit_round(dynamics, noise, features, drawn[scenes.group_index], first=number == 0)
            bar.update()
        bar.set_postfix_str(f"median residual {float(residual.norm(dim=-1)[features.mask].median()):.2g}")
        fit_forward_noise(model, scenes, drawn)
    assert drawn is not None
    return LawFit(float(residual.norm(dim=-1)[features.mask].median()), scenes, drawn, time.monotonic() - started)


def _residual(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, structure: Tensor | None) -> Tensor:
    assert structure is not None
    incoming = structure[scenes.group_index][:, edges.incoming_edges(scenes.num_entities)]
    return features.target - chosen_impulses(features.impulses(dynamics.laws), incoming)


def _draw_structure(
    model: SceneModel, features: ImpulseFeatures, scenes: Scenes, stream: Stream, number: int
) -> Tensor:
    """Structures drawn from the posterior, ``[G, E]``; updates learned type weights to what the posterior expects."""
    dynamics, noise, _ = model.impulse_parts
    if num_codes(model.num_edge_types, scenes.num_entities) > MAX_CODES:
        return most_likely_structure(dynamics, noise, features)[scenes.group_first_scene]
    table = table_of_impulses(features.impulses(dynamics.laws), features, noise)
    likelihood = grouped_table(table, model.num_edge_types, scenes, is_density=False)
    prior = model.structure_prior(scenes)
    if not can_enumerate(likelihood, prior):
        return most_likely_structure(dynamics, noise, features)[scenes.group_first_scene]
    posterior: ExactPosterior = enumerate_posterior(likelihood, prior)
    weights = model.prior.type_logits
    if weights.requires_grad and not model.prior.is_open:
        share = posterior.edge_probability[likelihood.edge_mask].sum(0) + 0.5
        weights.copy_((share / share.sum()).log())
    return posterior.sample(stream, number)[0]


def _fit_round(
    dynamics: PairForces, noise: AbstractNoise, features: ImpulseFeatures, structure: Tensor, *, first: bool
) -> Tensor:
    """Fit splines and noise given structures ``[B, E]``; returns the residuals ``[B, T - 1, N, S]``."""
    laws, num_types = dynamics.laws, dynamics.num_edge_types
    incoming = structure[:, edges.incoming_edges(features.target.shape[2])]
    context = features.context if noise.uses_context else None
    mask = features.mask
    design = features.design(laws, incoming)[mask].flatten(0, 1)  # [R S, K * NUM_SPLINES]
    target = features.target[mask]  # [R, S]
    residual = target - chosen_impulses(features.impulses(laws), incoming)[mask]
    own = None if context is None else context[mask]
    if first:
        fit_noise(noise, residual, own)
    penalty = law_penalty(laws)
    for _ in range(3):
        precision = noise.precision(residual, own).flatten()
        coefficient = _solve(design, target.flatten(), precision, penalty, laws.no_interaction)
        residual = target - (design @ coefficient).view_as(target)
        fit_noise(noise, residual, own)
    laws.set_splines(coefficient.view(num_types, NUM_SPLINES))
    result = torch.zeros_like(features.target)
    result[mask] = residual
    return result


def _solve(design: Tensor, target: Tensor, precision: Tensor, penalty: Tensor, no_interaction: bool) -> Tensor:
    weighted = design * precision[:, None]
    gram, linear = weighted.T @ design, weighted.T @ target
    system = gram + penalty
    if no_interaction:  # the law of type 0 is zero
        coefficient = linear.new_zeros(len(linear))
        coefficient[NUM_SPLINES:] = torch.linalg.solve(system[NUM_SPLINES:, NUM_SPLINES:], linear[NUM_SPLINES:])
    else:
        coefficient = torch.linalg.solve(system, linear)
    return coefficient


def law_penalty(laws: ForceLaws) -> Tensor:
    """The smooth prior of spline coefficients as a quadratic form, ``[K * NUM_SPLINES, K * NUM_SPLINES]``."""
    size = laws.table().square().mean().sqrt().clamp(min=1e-12)
    penalty = _roughness(laws.num_edge_types, circular=laws.circular) / (ROUGHNESS * size) ** 2
    return penalty + 1e-6 / size**2 * torch.eye(len(penalty), dtype=penalty.dtype)  # types that nothing speaks of


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


def fit_forward_noise(model: SceneModel, scenes: Scenes, structure: Tensor | None) -> None:
    """Fit the noise of the forward density to the residuals of its one-step (or ``horizon``-step) predictions."""
    assert structure is not None
    prepared = model.prepare(scenes)
    with torch.no_grad():
        predicted = teacher_forcing(
            model.dynamics,
            prepared.trajectory,
            structure[prepared.group_index],
            horizon=model.horizon,
            edge_mask=prepared.edge_mask,
            entity_kind=prepared.entity_kind,
        )
        context = model.geometry(prepared.trajectory[:, :-1], prepared.edge_mask[:, None])
    scored = model.trajectory(prepared, structure[prepared.group_index]).scored
    fit_noise(model.noise, prepared.trajectory[:, 1:] - predicted, context, scored)
