"""How sure the density of a learned motion may be, by how well parts of the same scene agree on its structure.

Errors of learned modules repeat from frame to frame, but the density counts each frame as new evidence; its posterior
of structures is then too sure. (With measurement noise, which enters neighbouring transitions with opposite signs, it
is not sure enough.) Neighbouring windows of a training scene have the same structure: ``log sum_z p(z | first)
p(z | second)`` is largest, in expectation, when both are as sure as they may be, so the power to which likelihoods are
raised is chosen by it (a composite likelihood with its curvature adjusted: Ribatet, Cooley & Davison 2012, "Bayesian
inference from composite likelihoods"). No label is needed.
"""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.model.power import power_of_frames
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import ReceiverTable, num_codes
from pyro_nri.scenes.scenes import Scenes

#: Frames of two neighbouring windows together, beside all frames.
LENGTHS = (10, 20)
#: Training scenes that are used, and codes of a receiver, at most.
MAX_SCENES, MAX_CODES = 100, 1024
#: Standard deviations of the normal priors of the log power and of its slope over log frames, both around 0.
PRIOR_SCALE = (1.0, 0.3)


def fit_power(model: SceneModel, scenes: Scenes) -> None:
    """Fit how far the density of a model is believed, in place.

    The power does not grow with the number of frames. Models whose likelihood does not factorise over receivers, and
    scenes with too many codes or fewer than 4 frames, are left as they are.

    Args:
        model: trained, with a density of one step and no other likelihood.
        scenes: training scenes, raw units.
    """
    power = model.density_power
    factorises = model.horizon == 1 and model.dynamics.num_substeps == 1 and model.num_hidden == 0
    if power is None or not factorises or num_codes(model.num_edge_types, scenes.num_entities) > MAX_CODES:
        return
    power.weight.zero_()
    some = scenes[: min(scenes.num_scenes, MAX_SCENES)]
    lengths = sorted({min(length, some.num_frames) for length in (*LENGTHS, some.num_frames)})
    pairs = [
        (_half(model, some, start, start + length // 2), _half(model, some, start + length // 2, start + length))
        for length in lengths
        if length >= 4
        for start in range(0, some.num_frames - length + 1, length)
    ]
    if not pairs:
        return
    free = torch.zeros(2, dtype=torch.float64)
    free[1] = -3.0
    free.requires_grad_(True)
    scale = free.new_tensor(PRIOR_SCALE)
    optimizer = torch.optim.LBFGS([free], max_iter=50, line_search_fn="strong_wolfe")
    num_receivers = int(some.entity_mask.sum())

    def weight() -> Tensor:
        return torch.stack([free[0], -torch.nn.functional.softplus(free[1])])

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = (weight() / scale).square().sum() / 2 / num_receivers
        for pair in pairs:
            first, second = (
                (table * power_of_frames(number, weight())[..., None]).log_softmax(-1) for table, number in pair
            )
            total = total - (first + second).logsumexp(-1)[some.entity_mask].mean() / len(pairs)
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    if free.isfinite().all():
        power.weight.copy_(weight().detach())


def _half(model: SceneModel, scenes: Scenes, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of all codes in some frames, ``[B, N, R]``, and the numbers of transitions ``[B, N]``."""
    part = replace(scenes.frames(start, stop), structure_group=scenes.scene_names)
    with torch.no_grad():
        likelihood = model.likelihood(part, kind="forward", cache="table")
    assert isinstance(likelihood, ReceiverTable)
    return likelihood.table, part.transition_mask.sum(1)
