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

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.rollout import teacher_forcing
from pyro_nri.inference.exact import ExactPosterior, can_enumerate, enumerate_posterior
from pyro_nri.inference.streams import Stream, generator, keys
from pyro_nri.learning.integrator import fit_integrator
from pyro_nri.learning.law_continuation import continue_laws
from pyro_nri.learning.law_regression import LawRegression, fit_noise
from pyro_nri.model.impulse import (
    chosen_impulses,
    most_likely_structure,
    refined_features,
    table_of_impulses,
)
from pyro_nri.model.noise import SCALE_FLOOR, AbstractNoise, GeometricNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import grouped_table, num_codes
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Scenes that laws are fitted to; more of them change the law by less than its quadrature does.
MAX_SCENES = 100
#: Rounds along cubic paths, and rounds with integrated paths.
NUM_ROUNDS = (2, 8)
#: Weighted regressions and fits of the noise in each round.
NUM_PASSES = 3
#: Calls of the optimiser for the noise of the forward density.
FORWARD_FITS = 4
#: Of the rounds with integrated paths, those that first ask how the simulator moves (and so does the end).
INTEGRATOR_EVERY = 2
#: Receivers with more codes than this take their most likely types instead of a draw.
MAX_CODES = 4096


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
        ValueError: the model has other dynamics, or there is no round along cubic paths.
    """
    if num_rounds[0] < 1:
        raise ValueError(f"num_rounds must begin with at least 1 round along cubic paths, found {num_rounds[0]}")
    dynamics, noise, _ = model.impulse_parts
    started = time.monotonic()
    if scenes.num_groups > MAX_SCENES:
        chosen = torch.randperm(scenes.num_groups, generator=generator(seed, "laws"))[:MAX_SCENES].sort().values
        scenes = scenes[torch.isin(scenes.group_index, chosen)]
        structure = None if structure is None else structure[chosen]
    stream = Stream(seed, keys(scenes.group_names, torch.device("cpu")), 1).child("laws")
    drawn = structure
    with torch.no_grad(), tqdm(total=sum(num_rounds), disable=not show_progress, desc="laws", unit="round") as bar:
        for number in range(sum(num_rounds)):
            if number == 0 or (number < num_rounds[0] and not dynamics.circular):
                features = dynamics.features(scenes)
            elif not dynamics.circular:
                assert drawn is not None
                if number > num_rounds[0] + 1 and (number - num_rounds[0]) % INTEGRATOR_EVERY == 0:
                    _fit_integrator(dynamics, features, scenes, drawn)
                features = refined_features(
                    dynamics, scenes, lambda smooth: most_likely_structure(dynamics, noise, smooth)
                )
                if number == num_rounds[0]:
                    noise.fit_scaling(noise.change_scale, features.context[features.mask])
                    fit_noise(noise, _residual(dynamics, features, scenes, drawn), features.context, features.mask)
            if structure is None:
                drawn = _draw_structure(model, features, scenes, stream, number)
            assert drawn is not None
            residual = _fit_round(dynamics, noise, features, scenes, drawn, number)
            bar.update()
        if num_rounds[1] > INTEGRATOR_EVERY and not dynamics.circular:
            _fit_integrator(dynamics, features, scenes, drawn)
        bar.set_postfix_str(f"median residual {float(residual.norm(dim=-1)[features.mask].median()):.2g}")
        fit_forward_noise(model, scenes, drawn)
    assert drawn is not None
    return LawFit(float(residual.norm(dim=-1)[features.mask].median()), scenes, drawn, time.monotonic() - started)


def _fit_integrator(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, structure: Tensor | None) -> None:
    hard = features.blocks[-1].row
    if hard is not None:
        assert structure is not None
        fit_integrator(dynamics, scenes, hard, structure[scenes.group_index])


def _residual(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, structure: Tensor) -> Tensor:
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
    dynamics: PairForces,
    noise: AbstractNoise,
    features: ImpulseFeatures,
    scenes: Scenes,
    structure: Tensor,
    number: int,
) -> Tensor:
    """Fit splines, clock lag and noise given structures ``[G, E]``; returns the residuals ``[B, T - 1, N, S]``."""
    regression = LawRegression(dynamics, features, scenes.group_index)
    mask = features.mask
    own = features.context[mask] if noise.uses_context else None
    design, target = regression.rows(structure)
    flat = design.flatten(0, 1)
    residual = _residual(dynamics, features, scenes, structure)[mask]
    if number == 0:
        fit_noise(noise, residual, own)
    penalty, slope = regression.penalty(design)
    for _ in range(NUM_PASSES):
        weighted = flat * noise.precision(residual, own).flatten()[:, None]
        system = weighted.T @ flat + penalty
        coefficient = regression.solve(system, weighted.T @ target.flatten() + slope)
        residual = target - design @ coefficient
        fit_noise(noise, residual, own)
    splines = regression.splines(coefficient)
    if not dynamics.circular:
        splines = continue_laws(dynamics.laws, splines, regression.covariance(system), scenes.time_step)
    dynamics.laws.set_splines(splines)
    dynamics.clock_lag += coefficient[-1]
    result = torch.zeros_like(features.target)
    result[mask] = residual
    return result


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
    residual, noise = prepared.trajectory[:, 1:] - predicted, model.noise
    with torch.no_grad():  # from where it was before the laws were known the fit would not find its way
        typical = residual[scored].abs().median(0).values / noise.change_scale
        noise.log_relative_scale.copy_(typical.clamp(min=SCALE_FLOOR).log())
        if isinstance(noise, GeometricNoise):
            noise.context_weight.zero_()
    for _ in range(FORWARD_FITS):
        fit_noise(noise, residual, context, scored)
