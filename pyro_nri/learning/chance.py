"""Whether the laws explain a motion by what was there, or would explain anything as well.

Laws of force are flexible and fitted to whatever moves. Learned from entities that do not interact at all they still
find the senders that suit a receiver best, frame after frame, so that its posterior is sure and means nothing. What
they find where nothing is to be found is known, though: entities of different scenes did not act on each other, and
frames in random order are no motion. So receivers of the training scenes are put among strangers, and their scenes into
other orders, and how well their paths are then explained is compared with how well they are as they were recorded.
Where that is alike, the posterior of a receiver's edges is the prior: a local false discovery rate (Efron 2008,
"Microarrays, empirical Bayes and the two-groups model"). No label is needed.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.inference.streams import generator
from pyro_nri.model.impulse import most_likely_structure, refined_features, table_of_impulses
from pyro_nri.model.impulse_power import explained, volume_of
from pyro_nri.model.priors import AbstractPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.scenes.scenes import Scenes

#: How many times each receiver is put among strangers, or its scene into another order: to be compared, and to see how
#: much it matters.
NUM_COMPARED, NUM_SPREAD = 4, 2
#: How many training scenes are used at most.
MAX_SCENES = 50
#: Receivers with more codes than this are left as they are.
MAX_CODES = 1024
#: Standard deviation of the prior of the slope over explanations that are standardised.
SLOPE_SCALE = 5.0


def fit_chance(model: SceneModel, scenes: Scenes, *, seed: int) -> dict[str, float]:
    """Fit how probable it is that the edges of a receiver of given explanation mean nothing, in place.

    Args:
        model: with fitted laws.
        scenes: B training scenes, raw units, of which the first are used.
        seed: fixes the orders of frames.

    Returns:
        Shares of receivers that are explained as well by "strangers", and in another "order"; what cannot be asked is
        missing: strangers where there are hardly more scenes than entities, another order of phases, whose laws give
        the velocity in each frame by itself. The larger share counts.
    """
    dynamics, _, power = model.impulse_parts
    power.chance.zero_()
    some = scenes[: min(scenes.num_scenes, MAX_SCENES)]
    if num_codes(model.num_edge_types, some.num_entities) > MAX_CODES:
        return {}
    size, number = some.num_scenes, NUM_COMPARED + NUM_SPREAD
    shifts = [shift for shift in range(1, size) if math.gcd(shift, size) == 1][:number]
    found, curves = {}, {}
    with torch.no_grad():
        own = explanations(model, some)
        if size >= some.num_entities and len(shifts) > NUM_SPREAD:
            moved = [explanations(model, among_strangers(some, shift)) for shift in shifts]
            found["strangers"] = [_entities_moved(each, -shift) for each, shift in zip(moved, shifts, strict=True)]
        if some.num_frames > 2 and not dynamics.circular:
            random = generator(seed, "chance")
            found["order"] = [explanations(model, in_another_order(some, random)) for _ in range(number)]
    for name, others in found.items():
        each = torch.stack(others)
        kept = (own.isfinite() & each.isfinite().all(0)).flatten()
        if kept.any():
            curves[name] = chance_curve(own.flatten()[kept], each.flatten(1)[:, kept])
    if curves:
        power.chance.copy_(max(curves.values(), key=lambda curve: float(curve[0])))
    return {name: float(curve[0]) for name, curve in curves.items()}


def shrink_type_weights(prior: AbstractPrior, share: float) -> None:
    """Draw learned type weights towards equal ones, in place: edges that mean nothing tell no shares of types.

    Args:
        prior: of structures.
        share: of the receivers whose edges may mean nothing, 0 to 1.
    """
    if prior.learn_weights:
        with torch.no_grad():
            weights = prior.type_logits.softmax(-1)
            prior.type_logits.copy_(((1 - share) * weights + share / len(weights)).log())


def among_strangers(scenes: Scenes, shift: int) -> Scenes:
    """Scenes whose entity n comes from ``n * shift`` scenes further on; true structures are forgotten.

    Args:
        scenes: B scenes.
        shift: no divisor in common with B, so that all entities of a scene come from different ones if B is N or more.
    """
    return replace(
        scenes,
        trajectory=_entities_moved(scenes.trajectory, shift, dim=2),
        observation_mask=_entities_moved(scenes.observation_mask, shift, dim=2),
        entity_mask=_entities_moved(scenes.entity_mask, shift),
        structure_group=scenes.scene_names,
        entity_kind=None if scenes.entity_kind is None else _entities_moved(scenes.entity_kind, shift),
        edge_type=None,
        initial_state=None,
    )


def in_another_order(scenes: Scenes, random: torch.Generator) -> Scenes:
    """Scenes whose frames are in random order, another for each scene.

    Args:
        scenes: B scenes.
        random: draws the orders.
    """
    order = torch.rand(scenes.num_scenes, scenes.num_frames, generator=random).argsort(1)[:, :, None]
    return replace(
        scenes,
        trajectory=scenes.trajectory.gather(1, order[..., None].expand(scenes.trajectory.shape)),
        observation_mask=scenes.observation_mask.gather(1, order.expand(scenes.observation_mask.shape)),
        edge_type=None,
        initial_state=None,
    )


def _entities_moved(value: Tensor, shift: int, *, dim: int = 1) -> Tensor:
    """What entity n of scene b + n * shift has, at the place of entity n of scene b; scenes are the first axis."""
    parts = value.split(1, dim)
    return torch.cat([part.roll(-number * shift, 0) for number, part in enumerate(parts)], dim)


def explanations(model: SceneModel, scenes: Scenes) -> Tensor:
    """How well each receiver is explained, float64 ``[B, N]``; NaN where it has no sender or no frame.

    Args:
        model: with fitted laws.
        scenes: raw units.
    """
    dynamics, noise, power = model.impulse_parts
    features = refined_features(dynamics, scenes, lambda smooth: most_likely_structure(dynamics, noise, smooth))
    table = table_of_impulses(features.impulses(dynamics.laws), features, noise)
    each = explained(table, power.covariates(features).to(table), volume_of(features).to(table))
    counts = scenes.entity_mask & (scenes.entity_mask.sum(-1, keepdim=True) > 1) & features.mask.any(1)
    return torch.where(counts, each, torch.nan)


def chance_curve(own: Tensor, others: Tensor) -> Tensor:
    """Share of receivers that chance explains as well, and a log ratio of densities, intercept and slope: ``[3]``.

    The ratio, of the density of explanations by chance to that by own scenes, is a logistic curve that falls with the
    explanation.

    Args:
        own: explanations by a receiver's own scene, float64 ``[R]``.
        others: explanations by strangers, or in other orders, ``[S, R]``.
    """
    every = torch.cat([own, others.flatten()])
    centre, scale = every.median(), every.std().clamp(min=1e-9)
    standard = ((every - centre) / scale).clamp(-5, 5)
    is_other = (torch.arange(len(every)) >= len(own)).to(every)
    weight = torch.where(is_other > 0, 1 / len(others), 1.0)  # as if there were as many of both
    free = torch.zeros(2, dtype=every.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        slope = torch.nn.functional.softplus(free[1])
        logit = free[0] - slope * standard
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, is_other, weight, reduction="sum")
        loss = loss + (slope / SLOPE_SCALE).square() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    intercept, slope = free.detach()[0], -torch.nn.functional.softplus(free.detach()[1]) / scale
    curve = torch.stack([share_of_chance(own, others), intercept - slope * centre, slope])
    return curve if curve.isfinite().all() else torch.zeros_like(curve)


def share_of_chance(own: Tensor, others: Tensor) -> Tensor:
    """Share of receivers whose own scene explains them no better than chance does, 0 to 1.

    If all receivers were such, the own scene would be among the two poorest of C + 1 explanations in 2 / (C + 1) of
    them, and poorer than others are in the middle in half of them; the smaller of both ratios is the share (Storey
    2002, "A direct approach to false discovery rates"). Each is too large where it cannot tell. The first counts
    receivers by the square of how far explanations by further others lie apart, for where no sender acts, which is the
    poorest says nothing. The second does not know which paths are hard to explain by anyone.

    Args:
        own: explanations by a receiver's own scene, ``[R]``.
        others: explanations by strangers, or in other orders, ``[S, R]``, the last two for how far they lie apart.
    """
    compared, further = others[:-NUM_SPREAD], others[-NUM_SPREAD:]
    apart = further.amax(0) - further.amin(0)
    counts = apart.clamp(max=apart.quantile(0.9)).square()  # no few of them decide
    among_poorest = ((compared < own).sum(0) < 2).to(counts)
    poorest = (len(compared) + 1) / 2 * (counts * among_poorest).sum() / counts.sum().clamp(min=1e-30)
    lower_half = 2 * (own < others.median()).to(counts).mean()
    return torch.minimum(poorest, lower_half).clamp(max=1)
