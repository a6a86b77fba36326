"""Inference from recordings with measurement noise over many scenes: structures, true states, hidden entities."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyro_nri.inference.draws import Draws, HiddenDraws, PriorRecord, RecordedDraws
from pyro_nri.inference.noisy_guess import guess
from pyro_nri.inference.noisy_joint import Fits, State, init, search, step
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.scene_chunks import check_counts, check_resumed, run_chunks
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.hidden import STEPS, is_stiff
from pyro_nri.model.noisy import NoisyModel, with_measurement_noise
from pyro_nri.model.program import MAX_TABLE_CODES, SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes.scenes import Scenes

#: Numbers of hidden entities that may be asked for.
NUMBERS = (0, 1, 2)
#: Scenes whose chains move side by side.
CHUNK_SCENES = 8
#: Annealed searches for the references of the chains, before warm-up, by the shares of the frames that they look at:
#: over a long window a path that starts a little wrong ends far off, and nothing points back.
WINDOWS = (0.3, 0.3, 0.5, 0.5, 0.75, 0.75, 1.0, 1.0, 1.0)
#: Searches side by side where something is hidden; the best of them are the starts of the chains.
NUM_SEARCHERS = 12
#: Chains whose log joint is lower than the best by this and the number of latents are left behind.
LEFT_BEHIND = 30.0
#: Draws whose hidden paths are kept.
NUM_PATHS = 100
#: Frames that a path needs to say anything.
MIN_FRAMES = 5
#: Standard deviations of the measurement that can be squared, and their inverses.
LEAST_NOISE, MOST_NOISE = 1e-100, 1e100


def infer_noisy(
    model: SceneModel,
    scenes: Scenes,
    measurement_noise: float | Sequence[float],
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
            of the D.
        num_hidden: 0, 1 or 2 entities without data in every scene.
        num_chains: C; chains start from structures that noisy impulses make plausible.
        num_draws: draws that each chain keeps.
        num_warmup: steps before, which are not kept.
        seed: fixes all random numbers; results do not depend on which other scenes are inferred beside.
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
    scale = _checked(model, scenes, measurement_noise, num_hidden)
    check_counts(num_chains, num_draws, num_warmup)
    if resume is not None:
        _check_resumed(resume, scenes, scale, num_hidden, num_chains, num_draws, seed)

    def run(some: slice, tick: Callable[[float], None]) -> Draws:
        return _run(model, scenes[some], scale, num_hidden, seed, num_chains, num_draws, num_warmup, tick)

    return run_chunks(scenes, CHUNK_SCENES, run, resume=resume, on_chunk=on_chunk, show_progress=show_progress)


def noise_scale(measurement_noise: float | Sequence[float], num_states: int) -> Tensor:
    """Standard deviations of the measurement of each state variable, float64 ``[D]``.

    Args:
        measurement_noise: one for all state variables or one for each, raw units.
        num_states: D.

    Raises:
        ValueError: they are out of range, or neither one nor D of them.
    """
    given = [measurement_noise] if isinstance(measurement_noise, int | float) else list(measurement_noise)
    for value in given:
        if not 0 < value < math.inf:
            raise ValueError(f"measurement_noise must be a positive standard deviation, found {value:g}")
        if not LEAST_NOISE <= value <= MOST_NOISE:
            raise ValueError(
                f"measurement_noise must be from {LEAST_NOISE:g} to {MOST_NOISE:g}, found {value:g}: beyond, its "
                f"square is no number"
            )
    if len(given) not in (1, num_states):
        raise ValueError(
            f"measurement_noise must be one number or one for each of {num_states} state variables, found {len(given)}"
        )
    return torch.tensor(given, dtype=torch.float64).expand(num_states).clone()


def noisy_model(model: SceneModel, scale: Tensor, num_hidden: int) -> NoisyModel:
    """The noisy program of a model, with as few sub-steps of a frame as its forces need.

    Args:
        model: trained pair forces.
        scale: standard deviations of the measurement, raw units, ``[D]``.
        num_hidden: entities without data.
    """
    dynamics, *_ = model.impulse_parts
    return with_measurement_noise(model, scale, num_hidden=num_hidden, num_substeps=STEPS[int(is_stiff(dynamics))])


def _checked(model: SceneModel, scenes: Scenes, measurement_noise: float | Sequence[float], num_hidden: int) -> Tensor:
    """Standard deviations of the measurement, ``[D]``."""
    scale = noise_scale(measurement_noise, len(model.state_names))
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
    return scale


def _check_resumed(
    draws: Draws, scenes: Scenes, scale: Tensor, num_hidden: int, num_chains: int, num_draws: int, seed: int
) -> None:
    if draws.recorded is None:
        raise ValueError("resume is of a run that took the recorded states for exact")
    choices = {
        "measurement_noise": (draws.recorded.measurement_noise.tolist(), scale.tolist()),
        "num_hidden": (0 if draws.hidden is None else draws.hidden.numbers[0], num_hidden),
    }
    check_resumed(draws, scenes, choices, num_chains, num_draws, seed)


def _run(
    model: SceneModel,
    scenes: Scenes,
    scale: Tensor,
    num_hidden: int,
    seed: int,
    num_chains: int,
    num_draws: int,
    num_warmup: int,
    tick: Callable[[float], None],
) -> Draws:
    noisy = noisy_model(model, scale, num_hidden)
    scenes = noisy.prepare(scenes)
    prior = noisy.prior(noisy.edge_mask(scenes))
    stream = Stream(seed, keys(scenes.group_names), num_chains).child(f"noisy, {num_hidden} hidden")
    moves = make_proposal("uniform", prior, seed=seed)
    kept = []
    with torch.no_grad():
        structure, starts, doubt = _searched(model, noisy, scenes, prior, stream, seed)
        moves.adapt(doubt.expand(num_chains, -1, -1))
        fits = Fits(noisy, scenes, prior, structure, starts)
        state = init(fits, structure, stream)
        for number in range(num_warmup + num_draws):
            if number == num_warmup // 2 > 0:
                fits = Fits(noisy, scenes, prior, *_gathered(state))
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
        recorded=RecordedDraws(recorded.numpy(), scale.numpy()),
    )


def _searched(
    model: SceneModel, noisy: NoisyModel, scenes: Scenes, prior: StructureDistribution, stream: Stream, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where C chains begin: structures ``[C, B, E]``, latents ``[C, B, P]``; and the doubt in each edge ``[B, E]``."""
    number = max(stream.num_chains, NUM_SEARCHERS) if noisy.num_hidden else stream.num_chains
    many = replace(stream, num_chains=number).child("search")
    found = guess(model, noisy, scenes, prior, many)
    moves = make_proposal("uniform", prior, seed=seed)
    moves.adapt(found.doubt.expand(number, -1, -1))
    structure, starts = found.structure, found.starts
    for place, share in enumerate(WINDOWS):
        window = scenes.frames(0, max(MIN_FRAMES, math.ceil(share * scenes.num_frames)))
        state = search(Fits(noisy, window, prior, structure, starts), moves, many.child(f"window {place}"))
        structure, starts = _gathered(state)
    order = state.log_joint.argsort(0, descending=True)[: stream.num_chains]  # [C, B]
    scene = torch.arange(scenes.num_scenes)
    return structure[order, scene], starts[order, scene], found.doubt


def _gathered(state: State) -> tuple[Tensor, Tensor]:
    """Structures ``[C, B, E]`` and latents to go on from: chains that are left far behind go on from the best."""
    best = state.log_joint.argmax(0)  # [B]
    scene = torch.arange(len(best))
    behind = state.log_joint < state.log_joint.amax(0) - LEFT_BEHIND - state.value.shape[-1]
    structure = torch.where(behind[..., None], state.structure[best, scene], state.structure)
    return structure, torch.where(behind[..., None], state.value[best, scene], state.value)


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
