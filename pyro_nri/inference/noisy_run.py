"""Inference from recordings with measurement noise over many scenes: structures, true states, hidden entities."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_nri.inference.draws import Draws, HiddenDraws, PriorRecord, RecordedDraws
from pyro_nri.inference.noise_scale import estimate_noise, noise_scale
from pyro_nri.inference.noisy_joint import Fits, init, step
from pyro_nri.inference.noisy_search import MIN_FRAMES, gathered, noisy_model, search_chains
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.scene_chunks import check_counts, check_resumed, run_chunks
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.program import MAX_TABLE_CODES, SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.scenes.scenes import Scenes

#: Numbers of hidden entities that may be asked for.
NUMBERS = (0, 1, 2)
#: Scenes whose chains move side by side.
CHUNK_SCENES = 8
#: Draws whose hidden paths are kept.
NUM_PATHS = 100


class Noise(NamedTuple):
    """Standard deviations of the measurement, raw units, ``[D]``, and whether they are an estimate."""

    scale: Tensor
    is_estimated: bool


def infer_noisy(
    model: SceneModel,
    scenes: Scenes,
    measurement_noise: float | Sequence[float] | None = None,
    num_hidden: int = 0,
    *,
    num_chains: int = 4,
    num_draws: int = 500,
    num_warmup: int = 100,
    seed: int,
    resume: Draws | None = None,
    on_chunk: Callable[[Draws], None] | None = None,
    show_progress: bool = False,
) -> Draws:
    """Posterior over structures and true states of recordings with measurement noise, given the learned modules.

    ``observation="noisy"``: where :func:`~pyro_nri.inference.run.infer` takes recorded states for exact, here the
    initial states of all entities are latent, the motion from there is deterministic, and each recorded number has
    independent normal noise. Initial states have standard normal priors in scaled units, hidden ones too. Computed on
    the CPU, wherever the model is: of few numbers, in many small steps.

    Args:
        model: trained pair forces between particles; frozen here.
        scenes: B scenes, each with its own structure. Missing states do not count; beside hidden entities there may be
            none.
        measurement_noise: standard deviation of the measurement, raw units: one for all state variables or one for each
            of the D. By default it is estimated from these scenes, see
            :func:`~pyro_nri.inference.noise_scale.estimate_noise`, and from there on taken for known.
        num_hidden: 0, 1 or 2 entities without data in every scene.
        num_chains: C; chains start from structures that noisy impulses make plausible.
        num_draws: draws that each chain keeps.
        num_warmup: steps before, which are not kept.
        seed: fixes all random numbers; with noise that is given, results do not depend on which other scenes are
            inferred beside.
        resume: draws of an interrupted run of the same call: its scenes are done.
        on_chunk: called with the draws of all scenes so far.
        show_progress: progress bar on standard error.

    Returns:
        Draws of the structures of all entities, hidden ones last; ``recorded`` holds the initial states of the recorded
        entities, ``hidden`` states and paths of hidden ones. After an interruption from the keyboard: those of the
        scenes that were done, not ``complete``.

    Raises:
        ValueError: the model has other dynamics, an argument is out of range, the scenes do not allow it, or ``resume``
            is of another run.
    """
    model, scenes = model.on("cpu"), scenes.to(device="cpu")
    given = None if measurement_noise is None else noise_scale(measurement_noise, len(model.state_names))
    _check(model, scenes, num_hidden)
    check_counts(num_chains, num_draws, num_warmup)
    if given is not None:
        noise = Noise(given, is_estimated=False)
    elif resume is not None and resume.recorded is not None:
        noise = Noise(torch.as_tensor(resume.recorded.measurement_noise), is_estimated=True)
    else:
        noise = Noise(
            estimate_noise(model, scenes, num_hidden, seed=seed, show_progress=show_progress), is_estimated=True
        )
    if resume is not None:
        _check_resumed(resume, scenes, noise, num_hidden, num_chains, num_draws, seed)

    def run(some: slice, tick: Callable[[float], None]) -> Draws:
        return _run(model, scenes[some], noise, num_hidden, seed, num_chains, num_draws, num_warmup, tick)

    return run_chunks(scenes, CHUNK_SCENES, run, resume=resume, on_chunk=on_chunk, show_progress=show_progress)


def _check(model: SceneModel, scenes: Scenes, num_hidden: int) -> None:
    """Refuse what cannot be inferred."""
    if num_hidden not in NUMBERS:
        raise ValueError(f"num_hidden must be 0, 1 or 2 for recordings with measurement noise, found {num_hidden!r}")
    if model.impulse_noise is None:
        raise ValueError(
            "recordings with measurement noise need a model with pair forces, whose path is followed over all frames; "
            "this one has other dynamics: train with dynamics 'pair-forces'"
        )
    if model.impulse_parts[0].circular:
        raise ValueError("recordings with measurement noise need forces between particles, found phase oscillators")
    model.prior.check_closed()
    model.prepare(scenes)
    if scenes.num_frames < MIN_FRAMES:
        raise ValueError(
            f"recordings with measurement noise need scenes of at least {MIN_FRAMES} frames, found {scenes.num_frames}"
        )
    if scenes.num_groups < scenes.num_scenes:
        raise ValueError("recordings with measurement noise must not share structures, found a structure with several")
    codes = num_codes(model.num_edge_types, scenes.num_entities + num_hidden)
    if codes > MAX_TABLE_CODES:
        raise ValueError(
            f"{scenes.num_entities} recorded and {num_hidden} hidden entities give each receiver {codes} codes of "
            f"incoming edges, at most {MAX_TABLE_CODES}: leave out entities"
        )


def _check_resumed(
    draws: Draws, scenes: Scenes, noise: Noise, num_hidden: int, num_chains: int, num_draws: int, seed: int
) -> None:
    if draws.recorded is None:
        raise ValueError("resume is of a run that took the recorded states for exact")
    choices = {
        "measurement_noise": (draws.recorded.measurement_noise.tolist(), noise.scale.tolist()),
        "num_hidden": (0 if draws.hidden is None else draws.hidden.numbers[0], num_hidden),
    }
    check_resumed(draws, scenes, choices, num_chains, num_draws, seed)


def _run(
    model: SceneModel,
    scenes: Scenes,
    noise: Noise,
    num_hidden: int,
    seed: int,
    num_chains: int,
    num_draws: int,
    num_warmup: int,
    tick: Callable[[float], None],
) -> Draws:
    noisy = noisy_model(model, noise.scale, num_hidden)
    scenes = noisy.prepare(scenes)
    prior = noisy.prior(noisy.edge_mask(scenes))
    stream = Stream(seed, keys(scenes.group_names), num_chains).child(f"noisy, {num_hidden} hidden")
    moves = make_proposal("uniform", prior, seed=seed)
    kept = []
    with torch.no_grad():
        structure, starts, doubt = search_chains(model, noisy, scenes, prior, stream, seed)
        moves.adapt(doubt.expand(num_chains, -1, -1))
        fits = Fits(noisy, scenes, prior, structure, starts)
        state = init(fits, structure, stream)
        for number in range(num_warmup + num_draws):
            if number == num_warmup // 2 > 0:
                fits = Fits(noisy, scenes, prior, *gathered(state))
                state = init(fits, fits.references, stream.child("renewal"))
            state = step(state, fits, moves, stream, number)
            if number >= num_warmup:
                kept.append(state)
            tick((number + 1) / (num_warmup + num_draws))
        structure, value, log_joint, accepted = (
            torch.stack([getattr(each, name) for each in kept], 1)
            for name in ("structure", "value", "log_joint", "accepted")
        )
        latents = noisy.unpack(value, scenes.num_entities)
        first: Tensor = noisy.start(latents)  # [C, S, B, N + N_hidden, D]
        recorded = torch.where(scenes.entity_mask[..., None], first[..., : scenes.num_entities, :], torch.nan)
        hidden = _hidden(noisy, scenes, structure, value, first) if num_hidden else None
    return Draws(
        edge_type=structure.to(torch.int8).numpy(),
        log_joint=log_joint.numpy(),
        accepted=accepted.numpy(),
        proposed=np.ones(accepted.shape, dtype=bool),
        move_kind=np.zeros(num_draws, dtype=np.int8),
        temperature=np.ones(num_draws),
        move_names=("structure and states",),
        num_edge_types=prior.num_edge_types,
        group_names=scenes.group_names,
        method="mcmc",
        seed=seed,
        num_evaluations=num_warmup + num_draws,
        prior=PriorRecord.of(prior),
        hidden=hidden,
        recorded=RecordedDraws(recorded.numpy(), noise.scale.numpy(), noise.is_estimated),
    )


def _hidden(noisy: NoisyModel, scenes: Scenes, structure: Tensor, value: Tensor, first: Tensor) -> HiddenDraws:
    """Hidden states, and the paths of some draws, spread over chains and draws."""
    structures, values = structure.flatten(0, 1), value.flatten(0, 1)
    index = torch.linspace(0, len(values) - 1, NUM_PATHS).round().long()
    path = noisy.path(scenes, structures[index], noisy.unpack(values[index], scenes.num_entities))  # [R, B, T, N, D]
    number = noisy.num_hidden
    unknown = np.full((1, scenes.num_scenes), np.nan)
    return HiddenDraws(
        state=first[..., scenes.num_entities :, :].numpy(),
        path=path[..., scenes.num_entities :, :].movedim(-2, 2).numpy(),
        num_hidden=np.full(scenes.num_scenes, number),
        numbers=(number,),
        log_marginal=unknown,
        log_marginal_error=unknown,
    )
