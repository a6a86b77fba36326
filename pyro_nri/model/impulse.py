"""The impulse likelihood of pair forces: a composite likelihood, linear in the one-hot of the structure.

The observed change of velocity over a frame is compared with ``sum_i ∫ f_{z_ij} dt`` along a path through the observed
positions and velocities. **This is not a density of the trajectory.** The path contains the observed next state, the
scale of the noise may look at the whole path, and the Jacobian ``I - (dt²/12) dF/dx`` from impulse to state is dropped.
Under one fixed law and noise it may rank structures and priors of structures. It must not compare noises, boundaries,
dynamics or numbers of types: objects made here carry ``is_density = False``, and what compares models refuses them.

One scene and receiver at a time it factorises like a one-step likelihood, so it fills the same receiver tables.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.integrated_paths import refine
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.reference_search import doubtful_scenes, improve
from pyro_nri.model.impulse_cache import ImpulseCache
from pyro_nri.model.impulse_power import ImpulsePower
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.receivers import (
    AbstractLikelihood,
    ReceiverTable,
    chunk_size,
    grouped_table,
    num_codes,
    places_of_edges,
    structure_of,
    sums_of_codes,
)
from pyro_nri.model.relaxed import Relaxed, pooled, relax
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def impulse_log_prob(
    laws_impulses: Tensor, features: ImpulseFeatures, noise: AbstractNoise, incoming: Tensor
) -> Tensor:
    """Terms of the composite log-likelihood of given structures, differentiable in law and noise.

    Args:
        laws_impulses: impulses of all types, ``[B, T - 1, N, N - 1, K, S]``.
        features: of the same B scenes.
        noise: of the impulses.
        incoming: types of the edges into each receiver, long ``[B, N, N - 1]``.

    Returns:
        ``[B, T - 1, N]``, 0 where a transition does not count.
    """
    predicted = chosen_impulses(laws_impulses, incoming)
    context = features.context if noise.uses_context else None
    log_prob = noise(predicted, context).log_prob(features.target)
    return torch.where(features.mask, log_prob, torch.zeros_like(log_prob))


def chosen_impulses(impulses: Tensor, incoming: Tensor) -> Tensor:
    """Sum over senders of the impulses of the given types: ``[B, T - 1, N, S]``."""
    size = impulses.shape[-1]
    index = incoming[:, None, :, :, None, None].expand(*impulses.shape[:-2], 1, size)
    return impulses.gather(-2, index).squeeze(-2).sum(-2)


def table_of_impulses(impulses: Tensor, features: ImpulseFeatures, noise: AbstractNoise) -> Tensor:
    """Composite log-likelihood of every code of every receiver, float64 ``[B, N, K ** (N - 1)]``."""
    summed = sums_of_codes(impulses)  # [B, T - 1, N, R, S]
    context = features.context[..., None, :] if noise.uses_context else None
    log_prob = noise(summed, context).log_prob(features.target[..., None, :])
    return torch.where(features.mask[..., None], log_prob, torch.zeros_like(log_prob)).double().sum(1)


def refined_features(
    dynamics: PairForces,
    scenes: Scenes,
    guess: Callable[[ImpulseFeatures], Tensor],
    *,
    search: bool = False,
    whiten: bool = True,
) -> ImpulseFeatures:
    """Features with integrated paths where forces change fast, under the structures that explain them best.

    Candidates for the reference of a frame's path are: all edges of one type, for each type, and a guess from cubic
    paths.

    Args:
        dynamics: frozen laws.
        scenes: B scenes in raw units.
        guess: from features to a structure ``[B, E]``.
        search: whether to look for a better candidate in scenes whose motion the guess does not explain; done where
            the integrator is known, so that the right structure explains it.
        whiten: whether errors are made independent where the recording is noisy.

    Returns:
        Features in the dtype of the laws.
    """
    features = dynamics.features(scenes, whiten=False)
    dtype = dynamics.laws.low.dtype
    finish = (lambda each: dynamics.whitened(each, scenes)) if whiten else (lambda each: each)
    if dynamics.circular or not dynamics.laws.is_fitted:
        return finish(features).to(dtype)
    guessed = guess(finish(features).to(dtype))
    uniform = [torch.full_like(guessed, k) for k in range(dynamics.num_edge_types)]
    found = []
    if search and dynamics.leapfrog_steps and len(doubtful := doubtful_scenes(dynamics, features, scenes, guessed)):
        part = scenes[doubtful]
        smooth, starts = dynamics.features(part, whiten=False), [each[doubtful] for each in (*uniform, guessed)]
        better = refine(dynamics, smooth, part, starts)
        starts.append(guess((dynamics.whitened(better, part) if whiten else better).to(dtype)))
        found.append(guessed.clone())
        found[0][doubtful] = improve(dynamics, smooth, part, starts)
    return finish(refine(dynamics, features, scenes, [*uniform, guessed, *found])).to(dtype)


def most_likely_structure(dynamics: PairForces, noise: AbstractNoise, features: ImpulseFeatures) -> Tensor:
    """For each receiver the types of its incoming edges under which it is most likely, long ``[B, E]``.

    All codes are tried where they are few; else senders are improved one after the other, starting from the least
    squares solution in which types may be mixed.
    """
    num_types, num_entities = dynamics.num_edge_types, features.target.shape[2]
    impulses = features.impulses(dynamics.laws)
    if num_codes(num_types, num_entities) <= 1024:
        return structure_of(table_of_impulses(impulses, features, noise).argmax(-1), num_types)
    incoming = relax(impulses, features, noise).types()
    context = features.context[..., None, :] if noise.uses_context else None
    for _ in range(3):
        for sender in range(num_entities - 1):
            others = chosen_impulses(impulses, incoming) - impulses[:, :, :, sender].gather(
                -2, incoming[:, None, :, sender, None, None].expand(*impulses.shape[:3], 1, impulses.shape[-1])
            ).squeeze(-2)
            tried = others[..., None, :] + impulses[:, :, :, sender]  # [B, T - 1, N, K, S]
            log_prob = noise(tried, context).log_prob(features.target[..., None, :])
            total = torch.where(features.mask[..., None], log_prob, torch.zeros_like(log_prob)).sum(1)
            incoming[:, :, sender] = total.argmax(-1)
    return edges.from_incoming(incoming)


def impulse_table(
    dynamics: PairForces, noise: AbstractNoise, power: ImpulsePower, scenes: Scenes, *, relaxed: bool = False
) -> ReceiverTable:
    """Composite log-likelihoods of all codes of all receivers, summed over the scenes of each group.

    Args:
        dynamics: frozen laws.
        noise: frozen noise of the impulses.
        power: how far each receiver's likelihood is believed.
        scenes: B scenes in G groups, raw units.
        relaxed: whether relaxed weights are wanted, for joint moves of all pairs.
    """
    count = num_codes(dynamics.num_edge_types, scenes.num_entities)
    tables: list[Tensor] = []
    weights: list[Relaxed] = []
    with torch.no_grad():
        for features in _feature_chunks(dynamics, noise, scenes):
            impulses = features.impulses(dynamics.laws)
            if relaxed:
                weights.append(relax(impulses, features, noise))
            per_scene = features.target[0].numel() * count * 2
            size = chunk_size(per_scene, impulses.device)
            for start in range(0, len(impulses), size):
                some = slice(start, start + size)
                part = features.without_paths()[some]
                tables.append(power.believed(table_of_impulses(impulses[some], part, noise), part))
    table = grouped_table(torch.cat(tables), dynamics.num_edge_types, scenes, is_density=False)
    if weights:
        table.relaxed = pooled(Relaxed(*map(torch.cat, zip(*weights, strict=True))), scenes.group_index)
    return table


def impulse_cache(dynamics: PairForces, noise: AbstractNoise, power: ImpulsePower, scenes: Scenes) -> ImpulseCache:
    """The impulses themselves, for scenes whose receiver table would be too large."""
    parts = []
    with torch.no_grad():
        for features in _feature_chunks(dynamics, noise, scenes):
            impulses = features.impulses(dynamics.laws)
            parts.append((impulses, features.target, features.mask, features.context, power(features)))
    impulses, target, mask, context, strength = (torch.cat(values) for values in zip(*parts, strict=True))
    return ImpulseCache(impulses, ImpulseFeatures(target, mask, context, ()), noise, strength, scenes)


def _feature_chunks(dynamics: PairForces, noise: AbstractNoise, scenes: Scenes) -> Iterator[ImpulseFeatures]:
    """Features of a few scenes at a time: those of many need gigabytes."""
    size = chunk_size(scenes.num_frames * scenes.num_edges * 12, scenes.trajectory.device)
    for start in range(0, scenes.num_scenes, size):
        part = scenes[start : start + size]
        yield refined_features(
            dynamics, part, lambda features: most_likely_structure(dynamics, noise, features), search=True
        )


class GramLikelihood(AbstractLikelihood):
    """Composite likelihood with given precisions: a quadratic form in the one-hot of a receiver's incoming types.

    ``-1/2 sum_t w_t |y_t - sum_e I_e(t)|²`` needs the impulses only through their Gram matrix, so an evaluation costs
    O(N²) and a single flip O(N), whatever T is. For normal noise this is the log-likelihood itself; Student-t noise is
    a scale mixture of it: given the precisions drawn by :meth:`draw_precision` it is the conditional one.

    Args:
        impulses: ``[B, T - 1, N, N - 1, K, S]``.
        features: of the same scenes.
        precision: ``[B, T - 1, N, S]``.
        scenes: B scenes in G groups.
        power: power of each receiver's likelihood, ``[B, N]``; 1 by default.
    """

    is_density = False

    def __init__(
        self,
        impulses: Tensor,
        features: ImpulseFeatures,
        precision: Tensor,
        scenes: Scenes,
        *,
        power: Tensor | None = None,
    ) -> None:
        self.num_edge_types = impulses.shape[-2]
        self.edge_mask = scenes.edge_mask[scenes.group_first_scene]
        weight = (precision * features.mask[..., None]).double()
        flat = impulses.double().flatten(-3, -2).movedim(1, 2)  # [B, N, T - 1, (N - 1) K, S]
        weight, target = weight.movedim(1, 2), features.target.double().movedim(1, 2)  # [B, N, T - 1, S]
        weighted = flat * weight[..., None, :]
        gram = torch.einsum("bntas,bntcs->bnac", weighted, flat)
        linear = torch.einsum("bntas,bnts->bna", weighted, target)
        constant = (weight * target.square()).sum((-1, -2))
        normaliser = torch.where(weight > 0, weight.clamp(min=1e-300) / (2 * torch.pi), torch.ones_like(weight)).log()
        constant = -(constant - normaliser.sum((-1, -2))) / 2
        shape = (scenes.num_groups, scenes.num_entities)
        index = scenes.group_index
        if power is not None:
            strength = power.double()
            gram, linear = gram * strength[..., None, None], linear * strength[..., None]
            constant = constant * strength
        self.gram = gram.new_zeros(*shape, *gram.shape[2:]).index_add(0, index, gram)
        self.linear = linear.new_zeros(*shape, linear.shape[-1]).index_add(0, index, linear)
        self.constant = constant.new_zeros(shape).index_add(0, index, constant)

    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        one_hot = self._one_hot(structure)  # [C, G, N, (N - 1) K]
        quadratic = torch.einsum("cgna,gnab,cgnb->cgn", one_hot, self.gram, one_hot)
        return self.constant + torch.einsum("cgna,gna->cgn", one_hot, self.linear) - quadratic / 2

    def edge_alternatives(self, structure: Tensor, edge: Tensor) -> Tensor:
        num_entities = edges.num_entities_of(structure.shape[-1])
        receiver, place = places_of_edges(num_entities, edge)  # [C, G, M]
        group = torch.arange(edge.shape[1], device=edge.device)[:, None]
        size = self.num_edge_types
        block = place[..., None] * size + torch.arange(size, device=edge.device)  # columns of the edge, [C, G, M, K]
        one_hot = self._one_hot(structure).gather(2, receiver[..., None].expand(-1, -1, -1, self.gram.shape[-1]))
        rows = self.gram[group[..., None], receiver[..., None], block]  # [C, G, M, K, (N - 1) K]
        slope = self.linear[group[..., None], receiver[..., None], block]
        slope = slope - torch.einsum("cgmka,cgma->cgmk", rows, one_hot)
        own = rows.gather(-1, block[..., None, :].expand(*block.shape, size))  # [C, G, M, K, K]
        now = one_hot.gather(-1, block)
        # With the edge's own part taken out, type k adds slope_k + (G now)_k - G_kk / 2.
        return slope + torch.einsum("cgmkl,cgml->cgmk", own, now) - own.diagonal(dim1=-2, dim2=-1) / 2

    def _one_hot(self, structure: Tensor) -> Tensor:
        num_entities = edges.num_entities_of(structure.shape[-1])
        incoming = structure.long()[..., edges.incoming_edges(num_entities).to(structure.device)]
        return torch.nn.functional.one_hot(incoming, self.num_edge_types).flatten(-2).to(self.gram)


def draw_precision(
    residual: Tensor, noise: AbstractNoise, context: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Draw the precisions of the Gaussian scale mixture given residuals ``[*batch, S]``: ``[*batch, S]``.

    For Student-t noise the precision given the residual is a gamma variable whose mean is
    :meth:`~pyro_nri.model.noise.AbstractNoise.precision`; its shape is (degrees of freedom + number of variables that
    share it) / 2. Normal noise has fixed precisions.
    """
    mean = noise.precision(residual, context)
    shape = noise.mixture_shape(residual.shape[-1])
    if shape is None:
        return mean
    count = residual.shape[:-1] if noise.uses_context else residual.shape
    each = torch.full(count, shape, dtype=residual.dtype)
    gamma = torch._standard_gamma(each, generator=generator) / shape
    return mean * (gamma[..., None] if noise.uses_context else gamma)
