"""How sure a composite likelihood may be: what simulated scenes and the two halves of real ones say of it.

A composite likelihood counts every frame as new evidence, though errors of paths repeat from frame to frame and
measurement noise enters two differences. Its curvature is therefore adjusted (Ribatet, Cooley & Davison 2012, "Bayesian
inference from composite likelihoods"): the log-likelihood of a receiver is multiplied by a power that depends on how
much of its path is hard to follow and on the number of frames, with which it never grows; and the path of an entity
that a neighbour turns about within each frame may have been lost altogether. No label is needed for it:

- Training scenes are simulated anew from laws that the data admit, with inferred structures and the measurement noise
  that residuals show. There the truth is known, and power and probability of loss maximise the log score of the edges.
- Errors that the learned laws do not know of show where the two halves of a training scene contradict each other. For
  independent halves ``log sum_z p(z | first) p(z | second)`` is largest, in expectation, when both are as sure as they
  may be (their log-likelihoods are then on average what the posterior of both expects), so it is maximised too.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.dynamics.integrated_paths import FAST, STIFF, force_changes
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.rollout import rollout, teacher_forcing
from pyro_nri.inference.streams import generator
from pyro_nri.model.impulse import most_likely_structure, refined_features, table_of_impulses
from pyro_nri.model.impulse_power import believed_table
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import code_types, codes_of, num_codes
from pyro_nri.scenes.scenes import Scenes

#: Frames of the windows on which the power is fitted, beside all frames.
WINDOWS = (5, 10, 20)
#: Training scenes that are simulated anew, the laws that they then follow, and the starts that each gives to a law.
MAX_SCENES, NUM_LAWS, NUM_STARTS = 100, 3, 2
#: A path may be lost where a sender is fast in more than this share of the frames.
OFTEN = 0.9
#: Of the simulated scenes, how many with a path that may be lost, how many with one that is hard to follow, and how
#: many altogether are inferred.
MAX_FAST, MAX_HARD, MAX_INFERRED = 40, 50, 120
#: Weight of the agreement of halves.
HALVES = 4.0
#: Where the search for the free numbers of :func:`belief` starts, what they are drawn to, and how much. Paths that may
#: be lost are so few that training scenes say little of how many are: the probability is drawn to one in six. The power
#: falls a little with the number of frames, whose errors are never quite independent.
START = (0.0, 0.0, -1.5, -1.5, 0.0, -1.6)
DRAWN = (1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 3e-3)
#: Receivers with more codes than this are left as they are.
MAX_CODES = 1024


def calibrate(model: SceneModel, scenes: Scenes, structure: Tensor, *, laws: Tensor | None = None, seed: int) -> None:
    """Fit how far the impulse likelihood of a model is believed, in place.

    Args:
        model: with fitted laws.
        scenes: training scenes, raw units.
        structure: inferred or given structures, long ``[G, E]``.
        laws: draws of the laws' spline coefficients, ``[R, K, NUM_SPLINES]``: what is simulated follows some of them
            and is inferred with the laws of the model, so that their uncertainty counts. By default it counts as none.
        seed: fixes starts, laws and measurement noise.
    """
    dynamics, noise, power = model.impulse_parts
    if num_codes(model.num_edge_types, scenes.num_entities) > MAX_CODES:
        return
    scales = noise_scales(model, scenes, structure, laws=laws, seed=seed)
    simulated = simulate_again(model, scenes, structure, scales, laws=laws, seed=seed)
    if simulated is None:
        return
    simulated, importance = some_of_each(dynamics, simulated)
    assert simulated.edge_type is not None
    truth_codes = codes_of(simulated.edge_type, model.num_edge_types)  # [B, N]
    types = code_types(model.num_edge_types, scenes.num_entities)  # [R, N - 1]
    one_hot = torch.nn.functional.one_hot(types, model.num_edge_types).double()
    exists = simulated.entity_mask[:, :, None].expand(-1, -1, types.shape[1])
    counted = (importance[:, None, None] * exists)[exists]

    def case(part: Scenes) -> tuple[Tensor, Tensor, Tensor | None]:
        features = refined_features(
            dynamics, part, lambda smooth: most_likely_structure(dynamics, noise, smooth), search=True
        )
        table = table_of_impulses(features.impulses(dynamics.laws), features, noise)
        return table.double(), power.covariates(features).double(), features.fast_share

    with torch.no_grad():
        windows = sorted({min(window, scenes.num_frames) for window in (*WINDOWS, scenes.num_frames)})
        cases = [case(simulated.frames(0, window)) for window in windows]
        middle = scenes.num_frames // 2
        halves = [case(scenes.frames(0, middle)), case(scenes.frames(middle, scenes.num_frames))] if middle > 1 else []
    free = torch.tensor(START, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=50, line_search_fn="strong_wolfe")
    truth = types[truth_codes]  # [B, N, N - 1]

    def log_posterior(table: Tensor, covariates: Tensor, fast: Tensor | None) -> Tensor:
        return believed_table(table, covariates, *belief(free), fast=fast).log_softmax(-1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = []
        for each in cases:
            code = log_posterior(*each).exp()
            edge = torch.einsum("bnr,rsk->bnsk", code, one_hot)
            log_score = edge.gather(-1, truth[..., None]).squeeze(-1).clamp(min=1e-12).log()[exists]
            losses.append(-(counted * log_score).sum() / counted.sum())
        if halves:
            first, second = (log_posterior(*each) for each in halves)  # [B, N, R]
            agreement = (first + second).logsumexp(-1)[scenes.entity_mask]
            losses.append(-HALVES * agreement.mean() / types.shape[1])
        loss = torch.stack(losses).mean() + free.new_tensor(DRAWN) @ (free - free.new_tensor(START)).square()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    if free.isfinite().all():
        weight, lost = belief(free.detach())
        power.weight.copy_(weight)
        power.lost.copy_(lost)


def belief(free: Tensor) -> tuple[Tensor, Tensor]:
    """``weight`` and ``lost`` of :class:`~pyro_nri.model.impulse_power.ImpulsePower` from 6 free numbers.

    With more frames the power stays or falls, whatever the share of frames that are hard to follow.
    """
    smooth, hard = -torch.nn.functional.softplus(free[2:4])  # slopes over log frames
    return torch.stack([free[0], free[1], smooth, hard - smooth, free[4]]), free[5].sigmoid()


def simulate_again(
    model: SceneModel,
    scenes: Scenes,
    structure: Tensor,
    scales: tuple[Tensor, Tensor],
    *,
    laws: Tensor | None = None,
    seed: int,
) -> Scenes | None:
    """Scenes from the learned laws with the starts and structures of the training scenes, and with noise.

    Args:
        model: with fitted laws.
        scenes: training scenes, raw units.
        structure: long ``[G, E]``.
        scales: of measurement noise and of process noise, raw units, ``[D]`` each.
        laws: see :func:`calibrate`.
        seed: fixes the choice of starts and laws, and the noise.

    Returns:
        Scenes with known structure, or None where no frame shows all entities.
    """
    random = generator(seed, "simulate_again")
    complete = scenes.complete_frame
    chosen = torch.randperm(scenes.num_scenes, generator=random)[:MAX_SCENES]
    chosen = chosen[complete[chosen].any(-1)]
    if len(chosen) == 0:
        return None
    dynamics = model.impulse_parts[0]
    measured, process = scales
    kept = chosen.repeat(NUM_STARTS * NUM_LAWS)
    types, exists = structure[scenes.group_index[kept]], scenes.edge_mask[kept]
    number = torch.randint(1 if laws is None else len(laws), (NUM_LAWS,), generator=random)
    if laws is not None:
        dynamics = dynamics.under_laws(laws[number])
        law = torch.arange(NUM_LAWS).repeat_interleave(NUM_STARTS * len(chosen))
        types = types + model.num_edge_types * law[:, None]
    dynamics = dynamics.for_rollouts()
    order = torch.rand(len(kept), scenes.num_frames, generator=random)
    frame = torch.where(complete[kept], order, -1.0).argmax(-1)  # any of the complete ones
    frames = [state := scenes.trajectory[kept, frame].double()]
    with torch.no_grad():
        for _ in range(scenes.num_frames - 1):
            state = rollout(dynamics, state, types, 1, edge_mask=exists)[:, 0]
            state = state + process * torch.randn(state.shape, generator=random, dtype=state.dtype)
            frames.append(state)
    path = torch.stack(frames, 1)
    path = path + measured * torch.randn(path.shape, generator=random, dtype=path.dtype)
    part, names = scenes[kept], tuple(map(str, range(len(kept))))
    named = replace(
        part,
        trajectory=torch.where(part.entity_mask[:, None, :, None], path, torch.zeros_like(path)),
        observation_mask=part.entity_mask[:, None, :].expand(-1, scenes.num_frames, -1),
        scene_names=names,
        structure_group=names,
        edge_type=structure[scenes.group_index[kept]] * part.edge_mask,
        initial_state=None,
    )
    usable = path.isfinite().all(-1).all(-1).all(-1)
    return named[usable] if usable.any() else None


def some_of_each(dynamics: PairForces, scenes: Scenes) -> tuple[Scenes, Tensor]:
    """Scenes with a path that may be lost, with one that is hard to follow, others; how many each stands for, ``[B]``.

    Few scenes have such paths, and what remains uncertain is often there: drawn alike, they would be too few to say how
    sure one may be.

    Args:
        dynamics: with fitted laws.
        scenes: in random order.
    """
    kind = torch.zeros(scenes.num_scenes, dtype=torch.long)
    if not dynamics.circular:
        size = max(1, 60_000 // (scenes.num_frames * scenes.num_edges))
        for part in torch.arange(scenes.num_scenes).split(size):
            some = scenes[part]
            change = force_changes(dynamics, dynamics.features(some, whiten=False), some).amax(-1)  # [B, T - 1, N]
            hard, fast = (change > STIFF).flatten(1).any(-1), (change > FAST).double().mean(1).amax(-1) > OFTEN
            kind[part] = hard.long() + (hard & fast)
    chosen: list[Tensor] = []
    importance = torch.ones(scenes.num_scenes, dtype=torch.float64)
    for number, most in ((2, MAX_FAST), (1, MAX_HARD), (0, MAX_INFERRED)):
        every = (kind == number).nonzero().squeeze(-1)
        chosen.append(every[: min(most, MAX_INFERRED - sum(map(len, chosen)))])
        importance[chosen[-1]] = len(every) / max(1, len(chosen[-1]))
    return scenes[torch.cat(chosen)], importance[torch.cat(chosen)]


def noise_scales(
    model: SceneModel, scenes: Scenes, structure: Tensor, *, laws: Tensor | None = None, seed: int
) -> tuple[Tensor, Tensor]:
    """Scales of noise with which simulated scenes leave the residuals that the training scenes leave.

    A step from a noisy state goes astray by more than the noise of that state where forces change fast, which looks
    like process noise. So scenes are simulated with measurement noise alone, and what their residuals show of process
    noise is taken off (indirect inference, Gourieroux, Monfort & Renault 1993).

    Args:
        model: with fitted laws.
        scenes: training scenes, raw units.
        structure: long ``[G, E]``.
        laws: see :func:`calibrate`.
        seed: as that of :func:`simulate_again`.

    Returns:
        Standard deviations of measurement noise and of process noise, raw units, ``[D]`` each.
    """
    measured, process = residual_scales(model, scenes, structure)
    if not measured.any():
        return measured, process
    clean = simulate_again(model, scenes, structure, (measured, torch.zeros_like(process)), laws=laws, seed=seed)
    if clean is None or clean.edge_type is None:
        return measured, process
    found, false = residual_scales(model, clean, clean.edge_type)
    measured = torch.where(found > 0, measured.square() / found.clamp(min=1e-300), measured)
    return measured, (process.square() - false.square()).clamp(min=0).sqrt()


def residual_scales(model: SceneModel, scenes: Scenes, structure: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of measurement noise and of process noise as residuals show them, raw units, ``[D]`` each.

    Measurement noise enters two neighbouring residuals with opposite sign, process noise enters one; so the covariance
    of neighbours tells them apart. Only the quieter half of the frames is used.

    Args:
        model: with fitted laws.
        scenes: training scenes.
        structure: long ``[G, E]``.
    """
    some = scenes[: min(scenes.num_scenes, MAX_SCENES)]
    prepared = model.prepare(some)
    index = scenes.group_index[: some.num_scenes]
    with torch.no_grad():
        predicted = teacher_forcing(model.dynamics, prepared.trajectory, structure[index], edge_mask=prepared.edge_mask)
    residual = (prepared.trajectory[:, 1:] - predicted).double()  # [B, T - 1, N, D]
    scored = some.transition_mask
    size = residual.norm(dim=-1)
    quiet = scored & (size <= size[scored].median() * 2)
    both = quiet[:, 1:] & quiet[:, :-1]
    variance = residual[quiet].square().mean(0)
    if not both.any():
        return torch.zeros_like(variance), variance.sqrt()
    neighbours = (residual[:, 1:] * residual[:, :-1])[both].mean(0)
    measured = (-neighbours).clamp(min=0).minimum(variance / 2)
    process = (variance - 2 * measured).clamp(min=0)
    threshold = 10 / math.sqrt(float(both.sum()))
    significant = measured > threshold * variance
    return torch.where(significant, measured, torch.zeros_like(measured)).sqrt(), process.sqrt()
