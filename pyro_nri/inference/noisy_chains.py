"""Draws from the noisy program given structures: independent proposals around modes, and Langevin moves.

All chains of all scenes move side by side; a scene's random numbers are keyed by its name.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference import mala
from pyro_nri.inference.laplace import Integral, LaplaceMixture, integrate
from pyro_nri.inference.noisy_modes import default_starts, density_of, find_modes, least_squares, mixture_around
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.scenes.scenes import Scenes

#: Independent proposals for each Langevin move, which costs as much as eight of them.
NUM_INDEPENDENT = 4
#: Acceptance at which Langevin moves get farthest (Roberts and Rosenthal 1998).
LANGEVIN_RATE = 0.574


class NoisyDraws(NamedTuple):
    """What chains have drawn.

    Attributes:
        value: latents in rows, ``[C, S, B, P]``; ``model.unpack`` names them.
        log_density: log joint given the structure, without the structure's prior, ``[C, S, B]``.
        log_marginal: log marginal density of each recording given its structure, by importance sampling.
        independent_rate: share of accepted independent proposals, ``[B]``.
        langevin_rate: the same for Langevin moves.
        step_size: of Langevin moves, ``[B]``.
    """

    value: Tensor
    log_density: Tensor
    log_marginal: Integral
    independent_rate: Tensor
    langevin_rate: Tensor
    step_size: Tensor


def infer_latents(
    model: NoisyModel,
    scenes: Scenes,
    structure: Tensor,
    *,
    seed: int,
    num_chains: int = 4,
    num_draws: int = 250,
    num_warmup: int = 50,
    num_starts: int = 4,
    num_importance: int = 200,
    starts: Tensor | None = None,
    mixture: LaplaceMixture | None = None,
) -> NoisyDraws:
    """Sample initial states and parameters of each scene, its structure given.

    Modes are sought from several starts; the mixture around them is importance-sampled for the log marginal and is the
    proposal of four steps out of five; the fifth is a Langevin move, with the metric of the highest mode and a step
    size that is tuned in warm-up only.

    Args:
        model: the program.
        scenes: B scenes.
        structure: long ``[B, E]``, or ``[E]`` for all.
        seed: with the names of the scenes it fixes all random numbers.
        num_chains: C.
        num_draws: S, one each after five steps.
        num_warmup: rounds of five steps before, to find step sizes.
        num_starts: where to begin the search for modes.
        num_importance: draws for the log marginal.
        starts: ``[M, B, P]`` in scaled units, instead of the default ones.
        mixture: the proposal, instead of a search for modes.

    Raises:
        ValueError: a count is smaller than 1, or shapes do not fit.
    """
    for name, count in (("num_chains", num_chains), ("num_draws", num_draws), ("num_starts", num_starts)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")
    scenes = model.prepare(scenes)
    num_scenes, num_latents = scenes.num_scenes, model.num_latents(scenes.num_entities)
    wanted = [num_scenes, model.edge_mask(scenes).shape[-1]]
    structure = structure.expand(num_scenes, -1) if structure.ndim == 1 else structure
    if list(structure.shape) != wanted:
        raise ValueError(f"structure must have shape {wanted}, found {list(structure.shape)}")
    if mixture is None:
        if starts is None:
            starts = default_starts(model, scenes, structure, num_starts, seed)
        elif starts.ndim != 3 or list(starts.shape[1:]) != [num_scenes, num_latents]:
            raise ValueError(f"starts must have shape [M, {num_scenes}, {num_latents}], found {list(starts.shape)}")
        mixture = mixture_around(find_modes(model, scenes, structure, starts))
    density = density_of(model, scenes, structure)
    names = keys(scenes.scene_names, scenes.trajectory.device)
    log_marginal = importance_sample(density, mixture, Stream(seed, names, num_importance).child("importance"))
    stream = Stream(seed, names, num_chains).child("chains")
    best = mixture.log_weight.argmax(-1)
    root = mixture.root[torch.arange(num_scenes), best]
    log_step = torch.full((num_scenes,), 1.2 / num_latents ** (1 / 6), dtype=torch.float64).log()
    state = mala.init(mixture.sample(stream.child("begin").uniform(0, mixture.num_slots))[0], density)
    values, densities, rates = [], [], []
    for number in range(num_warmup + num_draws):
        size = 1 + mixture.num_slots
        uniform = stream.uniform(number, NUM_INDEPENDENT * size + 1 + 2 * num_latents)
        taken = []
        for place in range(NUM_INDEPENDENT):
            slots = uniform[..., place * size : (place + 1) * size]
            state, info = mala.independent_step(state, slots, density, mixture)
            taken.append(info.accepted.double().mean(0))
        slots = uniform[..., NUM_INDEPENDENT * size :]
        state, langevin = mala.langevin_step(state, slots, density, root, log_step.exp())
        if number < num_warmup:
            rate = langevin.log_accept.exp().mean(0)
            log_step = log_step + (rate - LANGEVIN_RATE) / (1 + number) ** 0.6
            continue
        values.append(state.value)
        densities.append(state.log_density)
        rates.append(torch.stack([torch.stack(taken).mean(0), langevin.accepted.double().mean(0)]))
    independent_rate, langevin_rate = torch.stack(rates).mean(0)
    return NoisyDraws(
        torch.stack(values, 1), torch.stack(densities, 1), log_marginal, independent_rate, langevin_rate, log_step.exp()
    )


def fit_noise(
    model: NoisyModel, scenes: Scenes, structure: Tensor, *, seed: int, num_rounds: int = 8, **options: Any
) -> None:
    """Learn the standard deviations of the measurement from scenes with given structures, by Monte Carlo EM.

    Each round draws paths under the noise so far and sets the noise to what they leave of the recordings.

    Args:
        model: the program; its noise must be made with ``learn=True``, and is changed.
        scenes: B scenes.
        structure: long ``[B, E]``, or ``[E]`` for all.
        seed: fixes all random numbers.
        num_rounds: rounds.
        options: of :func:`infer_latents`.

    Raises:
        ValueError: the noise is known.
    """
    if not isinstance(model.noise.log_scale, torch.nn.Parameter):
        raise ValueError("the noise of the measurement is known; make it with learn=True to learn it")
    scenes = model.prepare(scenes)
    seen = scenes.observation_mask[..., None].expand_as(scenes.trajectory)  # [B, T, N, M]
    for number in range(num_rounds):
        few = {"num_chains": 2, "num_draws": 5, "num_warmup": 5, "num_starts": 1, "num_importance": 2}
        found = infer_latents(model, scenes, structure, seed=seed + number, **(few | options))
        value = found.value.flatten(0, 1).flatten(0, 1)  # [C * S * B, P]
        with torch.no_grad():
            left = least_squares(model, scenes, structure).residuals(value).reshape(-1, *scenes.trajectory.shape)
            mean = left.square().sum((0, 1, 2, 3)) / (len(left) * seen.sum((0, 1, 2)))
            model.noise.log_scale.copy_(mean.log() / 2)


def importance_sample(density: mala.Density, proposal: LaplaceMixture, stream: Stream, size: int = 50) -> Integral:
    """Log integral of a density over draws from a proposal, in parts of ``size`` draws; the stream has S chains."""
    draws, _ = proposal.sample(stream.uniform(0, proposal.num_slots))  # [S, B, P]
    with torch.no_grad():
        log_density = torch.cat([density(part) for part in draws.split(size)])
    return integrate(log_density - proposal.log_prob(draws))
