"""How sure a composite likelihood may be: scenes are simulated from the learned laws, where the truth is known.

A composite likelihood counts every frame as new evidence, though errors of paths repeat from frame to frame and
measurement noise enters two differences. Its curvature is therefore adjusted (Ribatet, Cooley & Davison 2012, "Bayesian
inference from composite likelihoods"): the log-likelihood of a receiver is multiplied by a power that depends on how
much of its path is hard to follow and on the number of frames. The power is fitted where truth is known without any
label: training scenes are simulated anew from the learned laws and inferred structures, with the measurement noise that
the residuals show, and the power maximises the log score of the edges there.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.dynamics.rollout import rollout, teacher_forcing
from pyro_nri.inference.streams import generator
from pyro_nri.model.impulse import most_likely_structure, refined_features, table_of_impulses
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import code_types, codes_of, num_codes
from pyro_nri.scenes.scenes import Scenes

#: Frames of the windows on which the power is fitted, beside all frames.
WINDOWS = (5, 10, 20)
#: Scenes that are simulated.
MAX_SCENES = 60
#: Receivers with more codes than this are left as they are.
MAX_CODES = 1024


def calibrate(model: SceneModel, scenes: Scenes, structure: Tensor, *, seed: int) -> None:
    """Fit the power of the impulse likelihood of a model, in place.

    Args:
        model: with fitted laws.
        scenes: training scenes, raw units.
        structure: inferred or given structures, long ``[G, E]``.
        seed: fixes starts and measurement noise.
    """
    dynamics, noise, power = model.impulse_parts
    if num_codes(model.num_edge_types, scenes.num_entities) > MAX_CODES:
        return
    simulated = simulate_again(model, scenes, structure, seed=seed)
    if simulated is None or simulated.edge_type is None:
        return
    truth_codes = codes_of(simulated.edge_type, model.num_edge_types)  # [B, N]
    types = code_types(model.num_edge_types, scenes.num_entities)  # [R, N - 1]
    one_hot = torch.nn.functional.one_hot(types, model.num_edge_types).double()
    exists = simulated.entity_mask[:, :, None].expand(-1, -1, types.shape[1])
    cases = []
    with torch.no_grad():
        for window in sorted({min(window, scenes.num_frames) for window in (*WINDOWS, scenes.num_frames)}):
            part = simulated.frames(0, window)
            features = refined_features(dynamics, part, lambda smooth: most_likely_structure(dynamics, noise, smooth))
            table = table_of_impulses(features.impulses(dynamics.laws), features, noise)
            cases.append((table.double(), power.covariates(features).double()))
    weight = torch.zeros(power.weight.shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=50, line_search_fn="strong_wolfe")
    truth = types[truth_codes]  # [B, N, N - 1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = []
        for table, covariates in cases:
            code = (table * (covariates @ weight).clamp(-5, 5).exp()[..., None]).softmax(-1)
            edge = torch.einsum("bnr,rsk->bnsk", code, one_hot)
            losses.append(-edge.gather(-1, truth[..., None]).squeeze(-1).clamp(min=1e-12).log()[exists].mean())
        loss = torch.stack(losses).mean() + 1e-5 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    if weight.isfinite().all():
        power.weight.copy_(weight.detach())


def simulate_again(model: SceneModel, scenes: Scenes, structure: Tensor, *, seed: int) -> Scenes | None:
    """Scenes from the learned laws: starts and structures of the training scenes, measurement noise of their residuals.

    Args:
        model: with fitted laws.
        scenes: training scenes, raw units.
        structure: long ``[G, E]``.
        seed: fixes the choice of starts and the noise.

    Returns:
        Scenes with known structure, or None where no frame shows all entities.
    """
    random = generator(seed, "simulate_again")
    chosen = torch.randperm(scenes.num_scenes, generator=random)[:MAX_SCENES].tolist()
    complete = scenes.complete_frame
    starts, structures, kept = [], [], []
    for scene in chosen:
        seen = complete[scene].nonzero().squeeze(-1)
        if len(seen) == 0:
            continue
        for place in torch.rand(2, generator=random).tolist():
            starts.append(scenes.trajectory[scene, seen[int(place * len(seen))]].double())
            structures.append(structure[scenes.group_index[scene]])
            kept.append(scene)
    if not starts:
        return None
    part = scenes[kept]
    state, types = torch.stack(starts), torch.stack(structures)
    measured, process = residual_scales(model, scenes, structure)
    with torch.no_grad():
        frames = [state]
        for _ in range(scenes.num_frames - 1):
            state = rollout(model.dynamics, state, types, 1, edge_mask=part.edge_mask)[:, 0]
            state = state + process * torch.randn(state.shape, generator=random, dtype=state.dtype)
            frames.append(state)
        path = torch.stack(frames, 1)
        path = path + measured * torch.randn(path.shape, generator=random, dtype=path.dtype)
    usable = path.isfinite().all(-1).all(-1).all(-1)
    if not usable.any():
        return None
    named = replace(
        part,
        trajectory=torch.where(part.entity_mask[:, None, :, None], path, torch.zeros_like(path)),
        observation_mask=part.entity_mask[:, None, :].expand(-1, scenes.num_frames, -1),
        scene_names=tuple(str(number) for number in range(len(kept))),
        structure_group=tuple(str(number) for number in range(len(kept))),
        edge_type=types * part.edge_mask,
        initial_state=None,
    )
    return named[usable]


def residual_scales(model: SceneModel, scenes: Scenes, structure: Tensor) -> tuple[Tensor, Tensor]:
    """Standard deviations of measurement noise and of process noise, raw units, ``[D]`` each.

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
