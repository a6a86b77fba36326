"""How sure fitted laws are: a bootstrap over scenes of the closed-form fit.

Structures are drawn anew, scenes are resampled with replacement, and splines are fitted once more to what was drawn.
The likelihood of the laws is that of :mod:`pyro_nri.learning.laws`, a robust regression of observed impulses, so a
replicate needs no new pass over the data: every scene's gradient and curvature at the best law are summed up once, and
a replicate is one Newton step with resampled scenes. Whole scenes are resampled, as errors within one are not
independent of one another.

The clock lag (:mod:`pyro_nri.learning.law_regression`) is a nuisance parameter of every replicate.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.inference.exact import can_enumerate, enumerate_posterior
from pyro_nri.inference.streams import Stream, generator, keys
from pyro_nri.learning.law_continuation import continue_laws
from pyro_nri.learning.law_regression import LawRegression, fit_noise
from pyro_nri.model.impulse import most_likely_structure, refined_features
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Structures that are drawn for each scene; a replicate takes one of them.
NUM_STRUCTURES = 4
#: Receivers with more codes than this take their most likely types instead of draws.
MAX_CODES = 4096
#: Rounds of re-weighting from the laws of the model to the best ones.
NUM_ROUNDS = 4
#: With fewer groups of scenes than this single scenes are resampled, and with fewer scenes stretches of them.
MIN_CLUSTERS = 10
#: Frames of the shortest stretch that is resampled.
MIN_STRETCH = 5


class LawDraws(NamedTuple):
    """Laws that the data admit.

    Attributes:
        draws: spline coefficients of the laws, as :attr:`ForceLaws.splines`, float64 ``[R, K, NUM_SPLINES]``.
        support: effective number of scenes with data about each law at :meth:`ForceLaws.points`, float32
            ``[K, NUM_POINTS]``: (sum of informations)² / sum of informations² of what lies between the same two knots.
    """

    draws: Tensor
    support: Tensor


def bootstrap_laws(
    model: SceneModel, scenes: Scenes, *, structure: Tensor | None = None, num_replicates: int = 200, seed: int
) -> LawDraws:
    """Draw laws from the bootstrap distribution of the closed-form fit; the model stays as it is.

    Args:
        model: with fitted laws of pair forces.
        scenes: the scenes that the laws were fitted to, raw units.
        structure: known structures, long ``[G, E]``; drawn from their posterior by default.
        num_replicates: R.
        seed: fixes the draws.

    Raises:
        ValueError: the model has no fitted laws, or ``num_replicates`` is smaller than 1.
    """
    dynamics, noise = copy.deepcopy(model.dynamics), model.impulse_noise
    if not isinstance(dynamics, PairForces) or noise is None or not dynamics.laws.is_fitted:
        raise ValueError("the bootstrap of laws needs pair forces whose laws are fitted, this model has none")
    if num_replicates < 1:
        raise ValueError(f"num_replicates must be at least 1, found {num_replicates}")
    with torch.no_grad():
        drawn = structure[None] if structure is not None else _posterior_draws(model, scenes, seed)
        if drawn is None:
            features = dynamics.features(scenes).to(dynamics.laws.low.dtype)
            drawn = most_likely_structure(dynamics, noise, features)[scenes.group_first_scene][None]  # [M, G, E]
        best = _Regression(dynamics, noise, scenes, drawn[0])
        cluster, num_clusters = _clusters(scenes)
        gradient, curvature, information = best.contributions(drawn, cluster, num_clusters)
        group_of = torch.zeros(num_clusters, dtype=torch.long)
        group_of[cluster] = scenes.group_index[:, None].expand_as(cluster)
        random = generator(seed, "law_bootstrap")
        shape = (num_replicates, num_clusters)
        picked = torch.randint(num_clusters, shape, generator=random)
        weight = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, picked, torch.ones(shape, dtype=torch.float64))
        choice = torch.randint(len(drawn), (num_replicates, scenes.num_groups), generator=random)[:, group_of]
        draws = []
        for count, number in zip(weight, choice, strict=True):
            slope = count @ gradient[number, torch.arange(num_clusters)]
            draws.append(best.step(slope, torch.einsum("c,cij->ij", count, curvature)))
        laws = torch.stack(draws)
        if not dynamics.circular:
            laws = continue_laws(dynamics.laws, laws, best.covariance, scenes.time_step)
        return LawDraws(laws, _support(dynamics.laws, information))


class _Regression:
    """Robust regression of impulses on splines, and on the clock lag: the best coefficients, what a scene adds to them.

    Args:
        dynamics: its laws are the start.
        noise: of the impulses, as it was fitted with these laws.
        scenes: raw units.
        structure: long ``[G, E]``.
    """

    def __init__(self, dynamics: PairForces, noise: AbstractNoise, scenes: Scenes, structure: Tensor) -> None:
        self.noise = copy.deepcopy(noise)
        self.features = refined_features(
            dynamics, scenes, lambda smooth: most_likely_structure(dynamics, noise, smooth)
        )
        self.regression = regression = LawRegression(dynamics, self.features, scenes.group_index)
        mask = self.features.mask
        context = self.features.context[mask] if noise.uses_context else None
        self.design, self.target = regression.rows(structure)
        self.penalty, self.slope = regression.penalty(self.design)
        self.coefficient = regression.coefficient
        residual = self.target - self.design @ self.coefficient
        flat = self.design.flatten(0, 1)
        for _ in range(NUM_ROUNDS):
            fit_noise(self.noise, residual, context)
            weighted = flat * self.noise.precision(residual, context).flatten()[:, None]
            right = weighted.T @ self.target.flatten() + self.slope
            system = weighted.T @ flat + self.penalty
            self.coefficient = regression.solve(system, right)
            residual = self.target - self.design @ self.coefficient
        fit_noise(self.noise, residual, context)
        self.covariance = regression.covariance(system)

    def step(self, slope: Tensor, curvature: Tensor) -> Tensor:
        """Laws ``[K, NUM_SPLINES]`` after a Newton step along ``slope [P]`` with ``curvature [P, P]``."""
        slope = slope + self.slope - self.penalty @ self.coefficient
        return self.regression.splines(self.coefficient + self.regression.solve(curvature + self.penalty, slope))

    def contributions(self, drawn: Tensor, cluster: Tensor, num_clusters: int) -> tuple[Tensor, Tensor, Tensor]:
        """What each cluster says: gradient and curvature of the log-likelihood at the best coefficients, information.

        Args:
            drawn: M draws of structures, long ``[M, G, E]``, the first as it was given; the curvature is of that one.
            cluster: long ``[B, T - 1]``.
            num_clusters: C.

        Returns:
            ``[M, C, P]``, ``[C, P, P]``, and the information that lies between each two knots, ``[C, K, knots]``.
        """
        mask, noise = self.features.mask, self.noise
        place = cluster[..., None].expand_as(mask)[mask]  # [R]
        rows = [(place == number).nonzero().squeeze(-1) for number in range(num_clusters)]
        context = self.features.context[mask] if noise.uses_context else None
        size = len(self.penalty)
        curvature = self.penalty.new_zeros(num_clusters, size, size)
        bends = torch.zeros_like(self.features.target)
        gradients: list[Tensor] = []
        for number, structure in enumerate(drawn):
            same = [m for m in range(number) if torch.equal(drawn[m], structure)]
            if same:
                gradients.append(gradients[same[0]])
                continue
            design, target = self.regression.rows(structure) if number else (self.design, self.target)
            residual = target - design @ self.coefficient
            weight = noise.precision(residual, context)
            slope = design.new_zeros(num_clusters, size)
            slope.index_add_(0, place, torch.einsum("rs,rsp->rp", weight * residual, design))
            gradients.append(slope)
            if number == 0:
                # Derivative of weight times residual, averaged over the directions of the residual; with the share of
                # a weight that remains beside that of no residual, 1 for normal noise.
                remains = weight / noise.precision(torch.zeros_like(residual), context)
                shared = residual.shape[-1] if noise.uses_context else 1
                bends[mask] = bend = (weight * (1 - 2 / shared * (1 - remains))).clamp(min=0)
                for c, some in enumerate(rows):
                    part = design[some].flatten(0, 1)
                    curvature[c] = (part * bend[some].flatten()[:, None]).T @ part
        return torch.stack(gradients), curvature, self._information(drawn[0], bends, cluster, num_clusters)

    def _information(self, structure: Tensor, bend: Tensor, cluster: Tensor, num_clusters: int) -> Tensor:
        """Where along each law the information lies: ``[C, K, knots]``."""
        laws, num_types = self.regression.laws, self.regression.laws.num_edge_types
        incoming = structure[self.regression.group_index][:, edges.incoming_edges(bend.shape[2])]  # [B, N, N - 1]
        num_knots = NUM_SPLINES if laws.circular else NUM_SPLINES - 3
        total = bend.new_zeros(num_clusters * num_types * num_knots)
        replaced = torch.zeros_like(cluster, dtype=torch.bool)
        for block in reversed(self.features.blocks):  # later blocks replace frames of earlier ones
            row = (~replaced).nonzero() if block.row is None else block.row
            scene, frame = row.unbind(-1)
            here = (scene, frame) if block.row is None else slice(None)
            coordinate, direction = block.coordinate[here], block.direction[here]  # [R, N, N - 1, Q], [..., S]
            direction = direction * block.weight[:, None]
            if block.free is not None:
                direction = direction * block.free[:, :, None]
            value = torch.einsum("rns,rneqs->rneq", bend[scene, frame], direction.square())
            value = value if laws.circular else value / coordinate.square()
            place = cluster[scene, frame][:, None, None] * num_types + incoming[scene]
            place = place[..., None] * num_knots + laws.basis(coordinate)[0][..., 0]
            total.index_add_(0, place.flatten(), value.flatten())
            replaced[scene, frame] = True
        return total.view(num_clusters, num_types, num_knots)


def _posterior_draws(model: SceneModel, scenes: Scenes, seed: int) -> Tensor | None:
    """Structures drawn from their posterior, long ``[M, G, E]``; None where it cannot be enumerated."""
    if num_codes(model.num_edge_types, scenes.num_entities) > MAX_CODES:
        return None
    likelihood, prior = model.likelihood(scenes), model.structure_prior(scenes)
    if not can_enumerate(likelihood, prior):
        return None
    stream = Stream(seed, keys(scenes.group_names), NUM_STRUCTURES).child("law_bootstrap")
    return enumerate_posterior(likelihood, prior).sample(stream)


def _clusters(scenes: Scenes) -> tuple[Tensor, int]:
    """What is resampled as a whole: number of the cluster of each transition, long ``[B, T - 1]``, and their number."""
    num_scenes, num_transitions = scenes.num_scenes, scenes.num_frames - 1
    if scenes.num_groups >= MIN_CLUSTERS:
        return scenes.group_index[:, None].expand(-1, num_transitions), scenes.num_groups
    stretches = max(1, min(-(-MIN_CLUSTERS // num_scenes), num_transitions // MIN_STRETCH))
    if num_scenes >= MIN_CLUSTERS:
        stretches = 1
    stretch = torch.arange(num_transitions) * stretches // num_transitions
    return torch.arange(num_scenes)[:, None] * stretches + stretch, num_scenes * stretches


def _support(laws: ForceLaws, information: Tensor) -> Tensor:
    """Effective number of clusters that speak about each law at its points, ``[K, NUM_POINTS]``."""
    share = information / information.sum(0).clamp(min=1e-300)
    number = share.sum(0).square() / share.square().sum(0).clamp(min=1e-300)  # [K, knots]
    if laws.no_interaction:
        number[0] = 0
    return number[:, laws.basis(laws.points())[0][:, 0]].float()
