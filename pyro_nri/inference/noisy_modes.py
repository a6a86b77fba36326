"""Modes of the noisy program: where to start, and Laplace mixtures around what is found."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nri.inference.gauss_newton import LeastSquares, Mode, gauss_newton
from pyro_nri.inference.laplace import LaplaceMixture, mixture_of
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.starts import ScaledStart
from pyro_nri.scenes.scenes import Scenes

#: Derivatives are differences over this step in scaled units: a path of many small steps is slow to differentiate.
DIFFERENCE = 1e-5
#: Frames and degree of the polynomials that give first guesses of observed states.
GUESS_FRAMES, GUESS_DEGREE = 9, 3
#: Prior draws of hidden states, of which those that fit the recording best are starts.
NUM_SCREENED = 32


def least_squares(model: NoisyModel, scenes: Scenes, structure: Tensor) -> LeastSquares:
    """The log joint density of the latents of each scene, as residuals and their weights.

    Args:
        model: the program.
        scenes: B scenes.
        structure: long ``[B, E]``, one for each scene, or ``[M, B, E]``.

    Returns:
        A problem over rows ``[M * B, P]``: any number of values for each scene, scenes running fastest.
    """
    scenes = model.prepare(scenes)
    scale = model.noise.scale.detach()
    seen = scenes.observation_mask[..., None].expand_as(scenes.trajectory)  # [B, T, N, M]
    weight = (seen / scale.square()).flatten(1)  # [B, T * N * M]
    constant = torch.where(seen, -scale.log() - 0.5 * torch.log(2 * scale.new_tensor(torch.pi)), 0.0).flatten(1).sum(-1)
    size = model.num_latents(scenes.num_entities)

    def residuals(value: Tensor) -> Tensor:
        by_scene = value.reshape(*value.shape[:-2], -1, scenes.num_scenes, size)
        apart = scenes.trajectory - model.predict(scenes, structure, model.unpack(by_scene, scenes.num_entities))
        return torch.where(seen, apart, 0.0).flatten(-3).flatten(-3, -2)

    def log_likelihood(residual: Tensor) -> Tensor:
        by_scene = residual.reshape(-1, *weight.shape)
        return (constant - (by_scene.square() * weight).sum(-1) / 2).flatten()

    def precision(residual: Tensor) -> Tensor:
        return weight.expand(residual.shape[0] // len(weight), *weight.shape).reshape(residual.shape)

    one = torch.ones(size, dtype=torch.float64, device=scale.device)
    return LeastSquares(residuals, log_likelihood, precision, torch.zeros_like(one), one, DIFFERENCE)


def density_of(model: NoisyModel, scenes: Scenes, structure: Tensor) -> Callable[[Tensor], Tensor]:
    """The log joint density of latents given a structure ``[B, E]`` or ``[C, B, E]``: ``[C, B, P]`` to ``[C, B]``."""
    problem = least_squares(model, scenes, structure)

    def density(value: Tensor) -> Tensor:
        return problem.log_density(value.flatten(0, 1)).reshape(value.shape[:-1])

    return density


def first_guess(scenes: Scenes) -> Tensor:
    """State at frame 0 of each entity, by polynomials through the first frames that were seen: ``[B, N, M]``.

    Where an entity is seen too rarely the degree is lower; where never, 0.
    """
    length = min(GUESS_FRAMES, scenes.num_frames)
    seen = scenes.observation_mask[:, :length].transpose(1, 2).double()  # [B, N, L]
    values = scenes.trajectory[:, :length].transpose(1, 2).double()  # [B, N, L, M]
    time = torch.linspace(0, 1, length, dtype=torch.float64, device=values.device)
    powers = torch.stack([time**degree for degree in range(min(GUESS_DEGREE, length - 1) + 1)], -1)  # [L, P]
    normal = torch.einsum("lp,lq,bnl->bnpq", powers, powers, seen)
    right = torch.einsum("lp,bnl,bnlm->bnpm", powers, seen, values)
    coefficients: Tensor = torch.linalg.pinv(normal, hermitian=True) @ right  # [B, N, P, M]
    return coefficients[..., 0, :]


def default_starts(model: NoisyModel, scenes: Scenes, structure: Tensor, num_starts: int, seed: int) -> Tensor:
    """Where to begin: guessed observed states; hidden states at the prior's mean, then the best of many prior draws.

    Args:
        model: the program, with a :class:`ScaledStart`.
        scenes: B scenes that hold all state variables.
        structure: long ``[B, E]``.
        num_starts: M.
        seed: fixes the prior draws, scene by scene.

    Returns:
        ``[M, B, P]``.

    Raises:
        ValueError: the model's start is of another kind or states are measured in part; pass starts then.
    """
    start = model.start
    if not isinstance(start, ScaledStart) or len(model.measurement.observed_names) != len(start.offset):
        raise ValueError("starts must be given unless all state variables are measured and the start is a ScaledStart")
    scenes = model.prepare(scenes)
    guess = ((first_guess(scenes) - start.offset) / start.scale).flatten(1)  # [B, N * D]
    zero = guess.new_zeros(1, *guess.shape[:1], start.num_hidden * len(start.offset))
    if not start.num_hidden or num_starts == 1:
        return torch.cat([guess.expand(1, *guess.shape), zero], -1)
    number = max(NUM_SCREENED, num_starts - 1)
    stream = Stream(seed, keys(scenes.scene_names, zero.device), number).child("starts")
    hidden = torch.special.ndtri(stream.uniform(0, zero.shape[-1]).clamp(min=2.0**-54))  # [number, B, P_hidden]
    tried = torch.cat([guess.expand(number, *guess.shape), hidden], -1)
    with torch.no_grad():
        density = least_squares(model, scenes, structure).log_density(tried.flatten(0, 1)).reshape(number, -1)
    best = density.argsort(0, descending=True)[: num_starts - 1]  # [M - 1, B]
    chosen = tried.gather(0, best[..., None].expand(*best.shape, tried.shape[-1]))
    return torch.cat([torch.cat([guess.expand(1, *guess.shape), zero], -1), chosen])


def find_modes(model: NoisyModel, scenes: Scenes, structure: Tensor, starts: Tensor, *, num_steps: int = 8) -> Mode:
    """Climb from starts ``[M, B, P]``: modes with leading axes ``[B, M]``."""
    number, num_scenes, size = starts.shape
    with torch.no_grad():
        found = gauss_newton(least_squares(model, scenes, structure), starts.flatten(0, 1), num_steps=num_steps)
    return Mode(
        found.value.reshape(number, num_scenes, size).transpose(0, 1),
        found.log_density.reshape(number, num_scenes).T,
        found.precision.reshape(number, num_scenes, size, size).transpose(0, 1),
    )


def mixture_around(modes: Mode, *, prior_share: float = 0.02) -> LaplaceMixture:
    """Bumps at modes ``[B, M]``, weighted by the integrals that Laplace's approximation gives them."""
    one = torch.ones_like(modes.value[0, 0])
    return mixture_of(modes, modes.log_evidence, torch.zeros_like(one), one, prior_share)
