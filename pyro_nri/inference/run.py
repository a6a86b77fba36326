"""Inference over many scenes: chains in segments, shards over executors, exact posteriors where they fit."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pyro_nri.inference.chains import make_chains, surrogate_of
from pyro_nri.inference.draws import Draws, PriorRecord, append_draws, concatenate_draws
from pyro_nri.inference.encoder import Encoder, learned_q
from pyro_nri.inference.exact import FactorisedPosterior, can_enumerate, enumerate_posterior
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.tempering import Ladder
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes.scenes import Scenes

METHODS = ("auto", "exact", "mcmc")
#: Receivers with more codes are not kept as probabilities of all codes; neither are probabilities below the smallest.
MAX_KEPT_CODES = 512
MIN_KEPT_PROBABILITY = 1e-15


def infer(
    model: SceneModel,
    scenes: Scenes,
    *,
    method: str = "auto",
    encoder: Encoder | None = None,
    proposal: str = "auto",
    likelihood: str = "auto",
    cache: str = "auto",
    num_chains: int = 4,
    num_draws: int = 500,
    num_warmup: int = 500,
    thin: int = 1,
    start_temperature: float = 1000.0,
    num_replicas: int = 1,
    seed: int,
    resume: Draws | None = None,
    on_segment: Callable[[Draws], None] | None = None,
    segment_draws: int = 50,
    show_progress: bool = False,
    executor: Executor | None = None,
    num_shards: int = 1,
) -> Draws:
    """Posterior over the structures of scenes, given the learned modules.

    Args:
        model: trained model; frozen here.
        scenes: B scenes in G structure groups.
        method: "exact" (enumeration, with independent draws), "mcmc" (Metropolis chains), or "auto": exact where it
            fits.
        encoder: the learned proposal, if there is one.
        proposal: which moves the chains make: "auto", "uniform", "neural", "exact", "balanced", "rounds" or
            "delayed", see :func:`~pyro_nri.inference.proposals.make_proposal`.
        likelihood: "impulse", "forward" or "auto", see :meth:`SceneModel.likelihood`: the composite likelihood of pair
            forces, the density of the program, or either as far as it is believed.
        cache: how the likelihood is prepared, see :meth:`SceneModel.likelihood`.
        num_chains: C; chains start from prior draws.
        num_draws: draws that each chain keeps.
        num_warmup: annealed steps before, from ``start_temperature`` to 1 within their first half. For pair forces
            beyond the size of tables, whose noise is tiny, wide noise takes the place of temperature.
        thin: steps for each kept draw.
        start_temperature: temperature of the first warm-up step; 1: neither heat nor wide noise.
        num_replicas: more than 1: parallel tempering, for posteriors with several modes and for log marginals. Each
            chain is so many replicas between posterior and prior, whose ladder is set in warm-up; nothing is annealed.
        seed: fixes all random numbers; results do not depend on which other scenes are inferred beside.
        resume: draws of an interrupted run of the same call; its chains go on.
        on_segment: called with all draws so far after every segment; a writer.
        segment_draws: draws in a segment.
        show_progress: progress bar on standard error.
        executor: where shards run; here and one after the other by default.
        num_shards: number of parts that the structures are cut into for the executor.

    Returns:
        Draws; ``complete`` is False if a run of a single shard was interrupted from the keyboard.

    Raises:
        ValueError: an argument is out of range, the model's prior is open, the posterior cannot be enumerated, or
            ``resume`` is of another run.

    Example:
        >>> from pyro_nri.model.spec import ModelSpec, build_model
        >>> model = build_model(ModelSpec(num_edge_types=2), torch.Generator().manual_seed(0))
        >>> draws = infer(model, Scenes.from_arrays(torch.zeros(2, 5, 3, 4)), num_draws=10, seed=0)
        >>> draws.edge_type.shape  # [C, S, G, E]
        (4, 10, 2, 6)
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    counts = {"num_chains": num_chains, "num_draws": num_draws, "thin": thin, "num_shards": num_shards}
    counts["num_replicas"] = num_replicas
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if num_warmup < 0:
        raise ValueError(f"num_warmup must be 0 or more, found {num_warmup}")
    if start_temperature < 1:
        raise ValueError(f"start_temperature must be at least 1, found {start_temperature}")
    model.prior.check_closed()
    arguments: dict[str, Any] = {
        "encoder": encoder,
        "proposal": proposal,
        "likelihood": likelihood,
        "cache": cache,
        "num_chains": num_chains,
        "num_draws": num_draws,
        "num_warmup": num_warmup,
        "thin": thin,
        "start_temperature": start_temperature,
        "num_replicas": num_replicas,
        "seed": seed,
    }
    if executor is not None or num_shards > 1:
        if resume is not None:
            raise ValueError("resume goes with a single shard, found an executor or several shards")
        if on_segment is not None:
            raise ValueError("on_segment goes with a single shard, found an executor or several shards")
        shards = _shards(scenes, num_shards)
        if executor is None:
            parts = []
            for shard in shards:
                parts.append(infer(model, shard, method=method, show_progress=show_progress, **arguments))
                if not parts[-1].complete:
                    raise KeyboardInterrupt  # shards of unequal length cannot be put side by side
            return concatenate_draws(parts)
        tasks = [(model, shard, {"method": method, **arguments}) for shard in shards]
        return concatenate_draws(list(executor.map(_infer_shard, tasks)))
    with torch.no_grad():
        evaluated = model.likelihood(scenes, kind=likelihood, cache=cache)
        scenes = model.prepare(scenes)
        prior = model.structure_prior(scenes)
    stream = Stream(seed, keys(scenes.group_names, prior.edge_mask.device), num_chains)
    if method == "exact" or (method == "auto" and can_enumerate(evaluated, prior)):
        draws = _exact_draws(evaluated, prior, stream, scenes.group_names, num_draws)
        if on_segment is not None:
            on_segment(draws)
        return draws
    warmup, kept = _parts(resume)
    if resume is not None:
        _check_resume(resume, scenes, arguments)
    edge_q, incoming = (None, None) if encoder is None else learned_q(encoder, scenes, tied=prior.tied)
    chains = make_chains(
        evaluated,
        prior,
        group_names=scenes.group_names,
        proposal=proposal,
        log_q=edge_q,
        incoming=incoming,
        surrogate=surrogate_of(model, evaluated, scenes, proposal),
        num_chains=num_chains,
        num_warmup=num_warmup,
        start_temperature=start_temperature,
        seed=seed,
        number=_num_draws(warmup) + _num_draws(kept) * thin,
        seen=None if warmup is None else torch.as_tensor(warmup.edge_type).to(prior.edge_mask.device),
        **_where(kept or warmup, num_replicas, num_chains, prior),
    )
    if resume is not None and resume.move_names != chains.proposal.move_names:
        raise _another_run("moves", resume.move_names, chains.proposal.move_names)
    last = num_warmup + num_draws * thin
    bar = tqdm(total=last, initial=chains.number, disable=not show_progress, desc="infer", unit="step")
    try:
        while chains.number < last:
            before = chains.number
            if before < num_warmup:
                part = chains.record(min(segment_draws, num_warmup - before), 1, scenes.group_names)
                warmup = part if warmup is None else append_draws(warmup, part)
            else:
                part = chains.record(min(segment_draws, (last - before) // thin), thin, scenes.group_names)
                kept = part if kept is None else append_draws(kept, part)
            bar.update(chains.number - before)
            if on_segment is not None:
                on_segment(_whole(warmup, kept, complete=chains.number == last))
    except KeyboardInterrupt:
        if warmup is None and kept is None:
            raise
        return _whole(warmup, kept, complete=False)
    finally:
        bar.close()
    return _whole(warmup, kept, complete=True)


def _infer_shard(task: tuple[SceneModel, Scenes, dict[str, Any]]) -> Draws:
    model, scenes, arguments = task
    return infer(model, scenes, **arguments)


def _shards(scenes: Scenes, num_shards: int) -> list[Scenes]:
    """Parts with whole structure groups."""
    group = scenes.group_index
    parts = torch.arange(scenes.num_groups).tensor_split(min(num_shards, scenes.num_groups))
    return [scenes[torch.isin(group, part)] for part in parts]


def _exact_draws(
    likelihood: AbstractLikelihood,
    prior: StructureDistribution,
    stream: Stream,
    group_names: tuple[str, ...],
    num_draws: int,
) -> Draws:
    """Independent draws of the enumerated posterior, with its probabilities."""
    posterior = enumerate_posterior(likelihood, prior)
    own = stream.child("exact")
    structure = torch.stack([posterior.sample(own, number) for number in range(num_draws)], dim=1)  # [C, S, G, E]
    log_joint = torch.stack([posterior.log_prob(structure[:, s]) for s in range(num_draws)], dim=1)
    log_joint = log_joint + posterior.log_marginal
    nothing = np.zeros(log_joint.shape, dtype=bool)
    receivers = None
    if isinstance(posterior, FactorisedPosterior) and posterior.log_code.shape[-1] <= MAX_KEPT_CODES:
        receivers = posterior.log_code.exp().cpu().numpy()
        receivers[receivers < MIN_KEPT_PROBABILITY] = 0  # what is left of a sharp posterior is stored in little space
    return Draws(
        edge_type=structure.to(torch.int8).cpu().numpy(),
        log_joint=log_joint.cpu().numpy(),
        accepted=nothing,
        proposed=nothing,
        move_kind=np.zeros(num_draws, dtype=np.int8),
        temperature=np.ones(num_draws),
        move_names=(),
        num_edge_types=prior.num_edge_types,
        group_names=group_names,
        method="exact",
        seed=stream.seed,
        num_evaluations=0,
        edge_probability=posterior.edge_probability.cpu().numpy(),
        receiver_probability=receivers,
        prior=PriorRecord.of(prior),
        log_marginal=posterior.log_marginal.cpu().numpy(),
    )


def _check_resume(draws: Draws, scenes: Scenes, arguments: dict[str, Any]) -> None:
    warmup, kept = _parts(draws)
    # An unfinished warm-up does not say how long it was to be, nor do missing draws how they were to be thinned.
    num_warmup = (
        arguments["num_warmup"]
        if kept is None and _num_draws(warmup) <= arguments["num_warmup"]
        else _num_draws(warmup)
    )
    thin = arguments["thin"]
    if kept is not None:
        thin = kept.num_evaluations // (_num_draws(kept) * kept.num_replicas)
    start = arguments["start_temperature"]
    if warmup is not None and draws.num_replicas == 1:  # replicas are not annealed
        start = float(warmup.temperature[0])
    for name, found, wanted in (
        ("structures", draws.group_names, scenes.group_names),
        ("seed", draws.seed, arguments["seed"]),
        ("num_chains", draws.edge_type.shape[0], arguments["num_chains"]),
        ("method", draws.method, "mcmc"),
        ("num_warmup", num_warmup, arguments["num_warmup"]),
        ("start_temperature", start, arguments["start_temperature"]),
        ("thin", thin, arguments["thin"]),
        ("num_replicas", draws.num_replicas, arguments["num_replicas"]),
    ):
        if found != wanted:
            raise _another_run(name, found, wanted)


def _another_run(name: str, found: Any, wanted: Any) -> ValueError:
    return ValueError(f"resume is of another run: its {name} is {found}, this run has {wanted}")


def _where(latest: Draws | None, num_replicas: int, num_chains: int, prior: StructureDistribution) -> dict[str, Any]:
    """Where chains begin or go on: their structures, and the ladder of their replicas."""
    device, num_groups = prior.edge_mask.device, prior.batch_shape[0]
    if latest is None:
        ladder = None if num_replicas == 1 else Ladder.start(num_replicas, num_chains, num_groups, device)
        return {"ladder": ladder}
    if latest.replicas is None:
        return {"structure": torch.as_tensor(latest.edge_type[:, -1]).to(device).long()}
    kept = latest.replicas
    values = (kept.inverse_temperature, kept.rejection * kept.num_steps, kept.log_up, kept.log_down)
    beta, rejection, up, down = (torch.as_tensor(value).to(device) for value in values)
    structure = torch.as_tensor(kept.edge_type).to(device).long().flatten(0, 1)
    return {"structure": structure, "ladder": Ladder(beta, rejection, kept.num_steps, up, down)}


def _parts(draws: Draws | None) -> tuple[Draws | None, Draws | None]:
    """Warm-up and kept draws, None where there are none."""
    if draws is None:
        return None, None
    return draws.warmup, replace(draws, warmup=None) if draws.edge_type.shape[1] else None


def _num_draws(draws: Draws | None) -> int:
    return 0 if draws is None else draws.edge_type.shape[1]


def _whole(warmup: Draws | None, kept: Draws | None, *, complete: bool) -> Draws:
    """One object of both parts; without kept draws, an empty one."""
    if kept is None:
        assert warmup is not None
        kept = warmup.first(0)
    return replace(kept, warmup=warmup, complete=complete)
