"""Inference of hidden entities over many scenes: how many there are, where they are, and what they pull on."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyro_nri.dynamics.hidden_paths import check_complete
from pyro_nri.inference.draws import Draws, HiddenDraws, PriorRecord
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.hidden import HiddenTarget, Sampled, hidden_target, sample, search
from pyro_nri.inference.hidden_chaotic import ChaoticDraws, sample_chaotic
from pyro_nri.inference.hidden_rough import FINER, MIN_FRAMES, RoughPath, hopeful, rough_paths
from pyro_nri.inference.scene_chunks import check_counts, check_resumed, run_chunks
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.hidden import check_unshared, is_stiff
from pyro_nri.model.hidden_motion import HiddenMotion
from pyro_nri.model.program import MAX_TABLE_CODES, SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes import edges
from pyro_nri.scenes.hidden_entities import embedded
from pyro_nri.scenes.scenes import Scenes

#: Numbers of hidden entities that "auto" weighs against one another.
NUMBERS = (0, 1, 2)
#: Scenes that are searched side by side.
CHUNK_SCENES = 32
#: Draws whose whole path is kept.
NUM_PATHS = 100


def infer_hidden(
    model: SceneModel,
    scenes: Scenes,
    num_hidden: int | str = 1,
    *,
    structure: Tensor | None = None,
    num_chains: int = 4,
    num_draws: int = 250,
    num_warmup: int = 100,
    seed: int,
    resume: Draws | None = None,
    on_chunk: Callable[[Draws], None] | None = None,
    show_progress: bool = False,
) -> Draws:
    """Posterior over hidden entities and all edges, given the learned modules.

    The law that hidden entities follow is that of the others, learned from scenes in which nothing was hidden; a type
    whose force is negligible beside those of others is taken to exert none. Their initial state has a standard normal
    prior in scaled units, their edges the model's prior of structures.

    Where forces change fast within a frame, as those of charges do, a path that runs free from its first frame goes
    astray at the first close encounter. There draws are of paths whose frames lie near what the laws make of the one
    before (:mod:`hidden_chaotic`), each held for several, and numbers of hidden entities are weighed by such paths.

    Computed on the CPU, wherever the model is: of few numbers, in many small steps.

    Args:
        model: trained pair forces between particles; frozen here.
        scenes: B scenes, each with its own structure, every entity seen in every frame.
        num_hidden: 0, 1 or 2 hidden entities in every scene, or "auto": each number has prior probability 1/3, and the
            draws of each scene are those of its most probable number.
        structure: known structures of all entities, hidden ones last, long ``[B, E]``; not with "auto".
        num_chains: C.
        num_draws: draws that each chain keeps.
        num_warmup: steps before, which are not kept; where forces change fast it is always a dozen.
        seed: fixes all random numbers; results do not depend on which other scenes are inferred beside.
        resume: draws of an interrupted run of the same call: its scenes are done.
        on_chunk: called with the draws of all scenes so far.
        show_progress: progress bar on standard error.

    Returns:
        Draws of the structures of all entities, hidden ones last, as in ``with_hidden(scenes,
        draws.hidden.num_hidden)``; their ``hidden`` holds states, paths and, for each number that was tried, the log
        marginal likelihood.

        After an interruption from the keyboard: those of the scenes that were done, not ``complete``.

    Raises:
        ValueError: the model has other dynamics, an argument is out of range, the scenes do not allow it, or ``resume``
            is of another run.
    """
    model, scenes = model.on("cpu"), scenes.to(device="cpu")
    numbers = checked_numbers(model, scenes, num_hidden, structure)
    check_counts(num_chains, num_draws, num_warmup)
    if resume is not None:
        _check_resumed(resume, scenes, numbers, num_chains, num_draws, seed)

    def run(some: slice, tick: Callable[[float], None]) -> Draws:
        part, known = scenes[some], None if structure is None else structure[some]
        stream = Stream(seed, keys(part.group_names), num_chains)
        with torch.no_grad():
            if is_stiff(model.impulse_parts[0]):
                runs = _run_chaotic(model, part, numbers, known, stream, num_draws)
            else:
                runs = [_run(model, part, number, known, stream, num_draws, num_warmup) for number in numbers]
        return _most_probable(runs, numbers, part, model.structure_prior(model.prepare(part)), seed)

    return run_chunks(scenes, CHUNK_SCENES, run, resume=resume, on_chunk=on_chunk, show_progress=show_progress)


def _check_resumed(
    draws: Draws, scenes: Scenes, numbers: tuple[int, ...], num_chains: int, num_draws: int, seed: int
) -> None:
    if draws.hidden is None:
        raise ValueError("resume is of a run without hidden entities")
    if draws.recorded is not None:
        raise ValueError("resume is of a run that took the recorded states for noisy")
    check_resumed(draws, scenes, {"num_hidden": (draws.hidden.numbers, numbers)}, num_chains, num_draws, seed)


def checked_numbers(
    model: SceneModel, scenes: Scenes, num_hidden: int | str, structure: Tensor | None
) -> tuple[int, ...]:
    """The numbers of hidden entities to try; refuses what cannot be asked of the model or the scenes."""
    if isinstance(num_hidden, bool) or (num_hidden != "auto" and num_hidden not in NUMBERS):
        raise ValueError(f"num_hidden must be 0, 1, 2 or 'auto', found {num_hidden!r}")
    if model.impulse_noise is None:
        raise ValueError(
            "hidden entities need a model with pair forces, whose laws say how an unseen entity moves; this one has "
            "other dynamics: train with dynamics 'pair-forces'"
        )
    check_unshared(scenes)  # chunks of scenes would not know
    if scenes.num_frames < MIN_FRAMES:
        raise ValueError(f"hidden entities need scenes of at least {MIN_FRAMES} frames, found {scenes.num_frames}")
    check_complete(scenes)
    numbers = NUMBERS if num_hidden == "auto" else (int(num_hidden),)
    most = max(numbers)
    codes = num_codes(model.num_edge_types, scenes.num_entities + most)
    if codes > MAX_TABLE_CODES:
        raise ValueError(
            f"{most} hidden beside {scenes.num_entities} observed entities give each receiver {codes} codes of "
            f"incoming edges, at most {MAX_TABLE_CODES}: leave out entities, or ask for fewer hidden ones"
        )
    if structure is not None:
        if num_hidden == "auto":
            raise ValueError("structure says how many entities are hidden, so num_hidden cannot be 'auto'")
        if num_hidden == 0:
            raise ValueError("structure is known and num_hidden is 0: there is nothing left to infer")
        wanted = [scenes.num_scenes, edges.num_edges(scenes.num_entities + most)]
        if list(structure.shape) != wanted:
            raise ValueError(f"structure must be long {wanted} for these scenes, found {list(structure.shape)}")
        if structure.is_floating_point() or structure.dtype == torch.bool:
            raise ValueError(f"structure must hold types as integers, found {structure.dtype}")
        if bool(((structure < 0) | (structure >= model.num_edge_types)).any()):
            bad = int(structure[(structure < 0) | (structure >= model.num_edge_types)][0])
            raise ValueError(f"structure must hold types from 0 to {model.num_edge_types - 1}, found {bad}")
    return numbers


class _Run(NamedTuple):
    """Draws with one number of hidden entities: ``[C, S, B, ...]``, states in raw units."""

    state: Tensor
    path: Tensor
    edge_type: Tensor
    log_joint: Tensor
    accepted: Tensor
    proposed: Tensor
    log_marginal: Tensor
    log_error: Tensor
    unexplained: Tensor
    num_evaluations: int


def _run(
    model: SceneModel,
    scenes: Scenes,
    number: int,
    structure: Tensor | None,
    stream: Stream,
    num_draws: int,
    num_warmup: int,
) -> _Run:
    if number == 0:
        return _run_without(model, scenes, stream, num_draws)
    fine = hidden_target(model, scenes, number, structure)
    coarse = HiddenTarget(fine.likelihood.searched(), fine.rest)
    stream = stream.child(f"{number} hidden")
    found = search(coarse, fine, stream.one())
    drawn = sample(fine, found, stream, num_draws=num_draws, num_warmup=num_warmup)
    return _Run(
        drawn.hidden_state * fine.likelihood.scale + fine.likelihood.offset,
        _paths(fine, drawn.hidden_state, drawn.edge_type),
        drawn.edge_type,
        drawn.log_joint,
        drawn.accepted,
        torch.ones_like(drawn.accepted),
        drawn.integral.log_value,
        drawn.integral.log_error,
        _unexplained(model, scenes, fine, drawn),
        drawn.num_evaluations,
    )


def _run_without(model: SceneModel, scenes: Scenes, stream: Stream, num_draws: int) -> _Run:
    posterior = enumerate_posterior(model.likelihood(scenes), model.structure_prior(model.prepare(scenes)))
    unexplained = torch.full_like(posterior.log_marginal, torch.nan)
    if not model.impulse_parts[0].circular:
        motion = HiddenMotion(model, scenes, 0, posterior.map_structure).refined(FINER)
        nothing = torch.zeros(scenes.num_scenes, scenes.num_frames, 0, scenes.state_size, dtype=torch.float64)
        unexplained = motion.unexplained(nothing)
    drawn = stream.child("0 hidden")
    structure = torch.stack([posterior.sample(drawn, step) for step in range(num_draws)], 1)
    log_joint = torch.stack([posterior.log_prob(structure[:, step]) for step in range(num_draws)], 1)
    none = torch.zeros(*structure.shape[:3], 0, scenes.state_size, dtype=torch.float64)
    paths = torch.zeros(NUM_PATHS, scenes.num_scenes, scenes.num_frames, 0, scenes.state_size, dtype=torch.float64)
    return _Run(
        none,
        paths,
        structure,
        log_joint + posterior.log_marginal,
        torch.ones_like(log_joint, dtype=torch.bool),
        torch.ones_like(log_joint, dtype=torch.bool),
        posterior.log_marginal,
        torch.zeros_like(posterior.log_marginal),
        unexplained,
        0,
    )


def _unexplained(model: SceneModel, scenes: Scenes, target: HiddenTarget, drawn: Sampled) -> Tensor:
    """What the most probable draw leaves unexplained, ``[B]``."""
    best = drawn.log_joint.flatten(0, 1).argmax(0)
    scene, number = torch.arange(len(best)), target.likelihood.num_observed
    state, structure = (each.flatten(0, 1)[best, scene] for each in (drawn.hidden_state, drawn.edge_type))
    incoming = structure[..., edges.incoming_edges(number + target.likelihood.num_hidden)]
    path = target.likelihood.path(state, incoming[..., number:, :]).state
    motion = HiddenMotion(model, scenes, target.likelihood.num_hidden, structure).refined(FINER)
    return motion.unexplained((path - motion.offset) / motion.scale)


def _paths(target: HiddenTarget, state: Tensor, edge_type: Tensor) -> Tensor:
    """Paths of some draws, spread over chains and draws, ``[R, B, T, N_hidden, D]``."""
    states, structures = state.flatten(0, 1), edge_type.flatten(0, 1)
    index = torch.linspace(0, len(states) - 1, NUM_PATHS).round().long()
    number = target.likelihood.num_observed
    incoming = structures[index][..., edges.incoming_edges(number + target.likelihood.num_hidden)]
    return target.likelihood.path(states[index], incoming[..., number:, :]).state


def _run_chaotic(
    model: SceneModel,
    scenes: Scenes,
    numbers: tuple[int, ...],
    structure: Tensor | None,
    stream: Stream,
    num_draws: int,
) -> list[_Run]:
    """Runs of each number where forces change fast: draws in scenes where it may be the most probable, else none."""
    rough = rough_paths(model, scenes, numbers, structure, stream)
    evidence, unexplained = (
        torch.stack([getattr(each, name) for each in rough]) for name in ("log_evidence", "unexplained")
    )
    runs = []
    for number, each, hope in zip(numbers, rough, hopeful(evidence, unexplained), strict=True):
        if number == 0:
            run = _run_without(model, scenes, stream, num_draws)
            other = each.log_evidence - run.log_marginal  # the likelihood that numbers are weighed by
            runs.append(run._replace(log_joint=run.log_joint + other, log_marginal=each.log_evidence))
            continue
        run = _of_rough(each, stream.num_chains, num_draws)
        some = hope.nonzero()[:, 0]
        if len(some):
            known = None if structure is None else structure[some]
            here = replace(stream.child(f"{number} hidden"), keys=stream.keys[some])
            count = min(num_draws, -(-NUM_PATHS // stream.num_chains))
            drawn = sample_chaotic(model, scenes[some], each.of(some), known, here, num_draws=count)
            _fill(run, some, drawn)
            run = run._replace(num_evaluations=drawn.num_evaluations)
        runs.append(run)
    return runs


def _of_rough(rough: RoughPath, num_chains: int, num_draws: int) -> _Run:
    """A run that stays at rough paths."""
    motion, shape = rough.motion, (num_chains, num_draws, len(rough.path))
    raw = rough.path * motion.scale + motion.offset
    never = torch.zeros(shape, dtype=torch.bool)
    return _Run(
        raw[:, 0].expand(*shape[:2], *raw[:, 0].shape).clone(),
        raw.expand(NUM_PATHS, *raw.shape).clone(),
        motion.structure.expand(*shape, -1).clone(),
        rough.log_evidence.expand(shape).clone(),
        never,
        never.clone(),
        rough.log_evidence.clone(),
        torch.full_like(rough.log_evidence, torch.inf),
        rough.unexplained.clone(),
        0,
    )


def _fill(run: _Run, some: Tensor, drawn: ChaoticDraws) -> None:
    """Put draws of some scenes in their place."""
    num_draws, count = run.log_joint.shape[1], drawn.log_joint.shape[1]
    held = torch.arange(num_draws) * count // num_draws  # a path is held for several draws: it is dear
    run.state[:, :, some] = drawn.path[:, held, :, 0]
    run.edge_type[:, :, some] = drawn.edge_type[:, held]
    run.log_joint[:, :, some] = drawn.log_joint[:, held]
    run.proposed[:, :, some] = (held.diff(prepend=held[:1] - 1) > 0)[:, None]
    run.accepted[:, :, some] = drawn.accepted[:, held] & run.proposed[:, :, some]
    each = drawn.path.transpose(0, 1).flatten(0, 1)
    run.path[:, some] = each[torch.linspace(0, len(each) - 1, NUM_PATHS).round().long()]
    run.log_marginal[some], run.log_error[some] = drawn.log_marginal, drawn.log_error
    run.unexplained[some] = drawn.unexplained


def _most_probable(
    runs: list[_Run], numbers: tuple[int, ...], scenes: Scenes, prior: StructureDistribution, seed: int
) -> Draws:
    """Of several runs for each scene the one with the most probable number of hidden entities."""
    log_marginal = torch.stack([run.log_marginal for run in runs])  # [M, B]
    chosen = log_marginal.argmax(0)
    number = torch.tensor(numbers)[chosen]
    most, num_observed = max(numbers), scenes.num_entities

    def wide(run: _Run, count: int) -> tuple[Tensor, Tensor, Tensor]:
        pad = most - count
        state = torch.nn.functional.pad(run.state, (0, 0, 0, pad), value=math.nan)
        path = torch.nn.functional.pad(run.path, (0, 0, 0, pad), value=math.nan)
        return state, path, embedded(run.edge_type, num_observed + count, num_observed + most)

    scene = torch.arange(scenes.num_scenes)
    wides = [wide(run, count) for run, count in zip(runs, numbers, strict=True)]
    state = torch.stack([each[0] for each in wides])[chosen, :, :, scene].movedim(0, 2)
    path = torch.stack([each[1] for each in wides])[chosen, :, scene].transpose(0, 1)
    edge_type = torch.stack([each[2] for each in wides])[chosen, :, :, scene].movedim(0, 2)
    log_joint = torch.stack([run.log_joint for run in runs])[chosen, :, :, scene].movedim(0, 2)
    accepted, proposed = (
        torch.stack([getattr(run, name) for run in runs])[chosen, :, :, scene].movedim(0, 2)
        for name in ("accepted", "proposed")
    )
    error = torch.stack([run.log_error for run in runs])
    num_draws = log_joint.shape[1]
    return Draws(
        edge_type=edge_type.to(torch.int8).numpy(),
        log_joint=log_joint.numpy(),
        accepted=accepted.numpy(),
        proposed=proposed.numpy(),
        move_kind=np.zeros(num_draws, dtype=np.int8),
        temperature=np.ones(num_draws),
        move_names=("hidden state and edges",),
        num_edge_types=prior.num_edge_types,
        group_names=scenes.group_names,
        method="mcmc",
        seed=seed,
        num_evaluations=max(run.num_evaluations for run in runs),
        prior=PriorRecord.of(prior),
        log_marginal=log_marginal.gather(0, chosen[None])[0].numpy(),
        log_marginal_error=error.gather(0, chosen[None])[0].numpy(),
        hidden=HiddenDraws(
            state=state.numpy(),
            path=path.movedim(-2, 2).numpy(),
            num_hidden=number.numpy(),
            numbers=numbers,
            log_marginal=log_marginal.numpy(),
            log_marginal_error=error.numpy(),
            unexplained=torch.stack([run.unexplained for run in runs]).numpy(),
        ),
    )
