"""What each command does: read, call the library, write, and say in a dictionary what came out."""

import argparse
import functools
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr

import pyro_nri.answers as answers
import pyro_nri.comparisons as comparisons
from pyro_nri.answers import note
from pyro_nri.cross_fitting import cross_fit, fit_ensemble
from pyro_nri.demo import run_demo
from pyro_nri.dynamics.scaling import beyond_training
from pyro_nri.fitting import fit
from pyro_nri.inference.draws import Draws
from pyro_nri.inference.run import infer as run_infer
from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble, load_model, save_checkpoint
from pyro_nri.learning.matching import LOW_AGREEMENT
from pyro_nri.learning.mixtures import CONDITIONING, infer_ensemble, trained_on
from pyro_nri.model.spec import ModelSpec
from pyro_nri.observations import check_observation, infer_states, infers_states, told_of_noise
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import scenes_of, to_datatree, to_draws
from pyro_nri.posterior.diagnostics import summarize
from pyro_nri.posterior.frames import write_frame
from pyro_nri.posterior.objections import objections
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.presets import find_preset
from pyro_nri.scenes.readers import read_scenes, write_netcdf
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate as run_simulate
from pyro_nri.scenes.tables import to_dataframe
from pyro_nri.scenes.velocities import with_velocities

SECONDS_BETWEEN_SAVES = 20.0
#: Warm-up by default: of structures, and of structures with states.
NUM_WARMUP = {False: 500, True: 100}
# Arguments of train that may change when it goes on.
_NO_CHOICES = ("command", "command_line", "json", "quiet", "num_threads", "scenes", "device", "resume", "out")
# What a run that was interrupted before an argument existed had in its place.
_BEFORE = {"distill_steps": 0}


class Interrupted(Exception):
    """Stopped from the keyboard; the message says what was kept and how to go on."""


def _read(arguments: argparse.Namespace, source: str) -> Scenes:
    share = getattr(arguments, "share_structure", None)
    scenes = read_scenes(
        source,
        system=arguments.system,
        split=arguments.split,
        rows=arguments.rows,
        scene=None if arguments.scene == "none" else arguments.scene,
        entity=arguments.entity,
        time=arguments.time,
        state=tuple(arguments.state.split(",")),
        time_step=arguments.time_step,
        group=None if share in (None, "none", "all") else share,
        kind=arguments.kind,
        missing=arguments.missing,
    )
    if arguments.velocities == "finite-differences":
        scenes = with_velocities(scenes)
    return scenes.share_structure(share) if share in ("none", "all") else scenes


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulated scenes, as NetCDF or as a long table."""
    scenes = run_simulate(
        arguments.system,
        arguments.num_scenes,
        num_entities=arguments.num_entities,
        num_frames=arguments.num_frames,
        frame_spacing=arguments.frame_spacing,
        measurement_noise=arguments.measurement_noise,
        link_probability=arguments.link_probability,
        symmetric=not arguments.asymmetric,
        first_scene=arguments.first_scene,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
    if Path(arguments.out).suffix.lower() in (".csv", ".parquet"):
        write_frame(to_dataframe(scenes), arguments.out)
        note("a table holds the trajectories only; score needs a NetCDF file (.nc), which holds the structures too")
    else:
        write_netcdf(scenes, arguments.out)
    return {
        "scenes": scenes.num_scenes,
        "entities": scenes.num_entities,
        "frames": scenes.num_frames,
        "wrote": arguments.out,
    }


# --- train -----------------------------------------------------------------------------------------------------------
def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """A model file; what an interrupted run had learned is kept beside it for ``--resume``."""
    preset = find_preset(arguments.preset, arguments.dynamics)
    for name, usual in (("horizon", 1), ("inner", "auto"), ("batch_size", 16)):
        if getattr(arguments, name) is None:
            setattr(arguments, name, {**preset.spec, **preset.training}.get(name, usual))
    scenes = _read(arguments, arguments.scenes)
    fingerprints = scenes.fingerprints  # of the recordings as they are, by which infer knows them again
    if arguments.frames:
        scenes = scenes.frames(*arguments.frames)
    num_types = 1 if arguments.edges == "full" else arguments.num_edge_types
    kinds = 1 if scenes.entity_kind is None else int(scenes.entity_kind.max()) + 1
    spec = ModelSpec(
        num_edge_types=num_types,
        state_names=scenes.state_names,
        dynamics=arguments.dynamics,
        preset=arguments.preset,
        prior=arguments.prior,
        noise=(arguments.noise or preset.spec.get("noise", "")).replace("-", "_"),
        learn_type_weights=preset.spec.get("learn_type_weights", True),
        horizon=arguments.horizon,
        no_interaction=arguments.no_interaction,
        num_entity_kinds=kinds,
        boundary=arguments.boundary,
        num_substeps=arguments.num_substeps,
    )
    choices = {name: value for name, value in vars(arguments).items() if name not in _NO_CHOICES}
    unfinished = Path(arguments.out + ".unfinished")
    resume = _resumable(unfinished, choices, fingerprints) if arguments.resume else None
    if resume is None and unfinished.exists():
        raise ValueError(f"{str(unfinished)!r} holds an interrupted run: give --resume, or delete it to start again")

    learn: Callable[..., Checkpoint | Ensemble] = fit
    if arguments.cross_fit is not None:
        learn = functools.partial(cross_fit, num_folds=arguments.cross_fit, num_models=arguments.num_models)
    elif arguments.num_models > 1:
        learn = functools.partial(fit_ensemble, num_models=arguments.num_models)
    if learn is not fit:
        learn = functools.partial(learn, fingerprints=fingerprints)

    def mark(checkpoint: Checkpoint | Ensemble) -> None:
        checkpoint.training |= {"command": arguments.command_line, "choices": choices}
        checkpoint.training_scenes = fingerprints

    def save(checkpoint: Checkpoint | Ensemble) -> None:
        mark(checkpoint)
        save_checkpoint(checkpoint, unfinished)
        kept.append(checkpoint.training["num_steps"])

    kept = [0]
    try:
        checkpoint = learn(
            scenes,
            spec=spec,
            preset=arguments.preset,
            num_steps=arguments.num_steps,
            minutes=arguments.minutes,
            seed=arguments.seed,
            resume=resume,
            save=save,
            save_every=SECONDS_BETWEEN_SAVES,
            device=_device(arguments.device),
            show_progress=not arguments.quiet,
            inner=arguments.inner,
            batch_size=arguments.batch_size,
            **({} if arguments.learning_rate is None else {"learning_rate": arguments.learning_rate}),
            search_frames=arguments.search_frames,
            structure=_true_structure(scenes) if arguments.edges == "given" else None,
            distill_steps=arguments.distill_steps,
        )
    except Diverged:
        unfinished.unlink(missing_ok=True)  # what was kept would break down again
        raise
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted, {kept[-1]} steps are kept in {unfinished}; go on with the same command and --resume"
        ) from None
    mark(checkpoint)
    save_checkpoint(checkpoint, arguments.out)
    unfinished.unlink(missing_ok=True)
    shown = {"num_steps": "steps", "seconds": "seconds", "inner": "inner", "loss": "loss"}
    shown |= {"edge_accuracy": "training_edge_accuracy", "num_models": "models", "agreement": "agreement_of_models"}
    result = {name: checkpoint.training[key] for key, name in shown.items() if key in checkpoint.training}
    if "distillation" in checkpoint.training:
        result |= {f"distillation_{name}": checkpoint.training["distillation"][name] for name in ("seconds", "loss")}
    if min(result.get("agreement_of_models", [1.0])) < LOW_AGREEMENT:
        note("models disagree on many edges, so their types may not correspond; train longer or on more scenes")
    for sentence in objections(checkpoint):
        note(sentence)
    return {**result, "wrote": arguments.out}


def _resumable(unfinished: Path, choices: dict[str, Any], fingerprints: tuple[str, ...]) -> Any:
    """What an interrupted run of the same command kept."""
    if not unfinished.is_file():
        raise ValueError(f"there is nothing to resume: {str(unfinished)!r} does not exist")
    checkpoint = load_model(unfinished)
    for name, value in choices.items():
        if (kept := checkpoint.training["choices"].get(name, _BEFORE.get(name))) != value:
            raise ValueError(
                f"{str(unfinished)!r} was made with {name.replace('_', ' ')} {kept}, not {value}; give the same "
                f"arguments to resume"
            )
    if checkpoint.training_scenes != fingerprints:
        raise ValueError(f"{str(unfinished)!r} was made with other scenes; give the same to resume")
    return checkpoint


def _true_structure(scenes: Scenes) -> torch.Tensor:
    if scenes.edge_type is None:
        raise ValueError("--edges given needs scenes whose structures are known, and these have none")
    return scenes.edge_type[scenes.group_first_scene]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"--device {name!r} is not available on this machine") from error
    return device


# --- infer -----------------------------------------------------------------------------------------------------------
def infer(arguments: argparse.Namespace) -> dict[str, Any]:
    """A posterior file; chains that were interrupted are kept in it, marked incomplete."""
    check_observation(arguments)
    if arguments.num_warmup is None:
        arguments.num_warmup = NUM_WARMUP[infers_states(arguments)]
    checkpoint = load_model(arguments.model)
    recordings = _read(arguments, arguments.scenes)
    window = slice(*arguments.frames or (None, None))
    scenes = recordings.frames(window.start, window.stop)
    first_frame = range(recordings.num_frames)[window].start
    attributes = {
        "command": arguments.command_line,
        "model": str(arguments.model),
        "model_fingerprint": checkpoint.fingerprint,
        "num_warmup": arguments.num_warmup,
        "thin": arguments.thin,
        "proposal": arguments.proposal,
        "likelihood": arguments.likelihood,
        "num_hidden": arguments.num_hidden,
        "observation": arguments.observation,
        "measurement_noise": ",".join(f"{value:g}" for value in arguments.measurement_noise or ()),
    }
    resume = _resumed(arguments, scenes, attributes) if arguments.resume else None
    checkpoint.to(_device(arguments.device))
    for sentence in objections(checkpoint):
        note(sentence)
    if num_seen := int(trained_on(checkpoint, recordings).sum()):
        by_all = " by every model" if isinstance(checkpoint, Ensemble) else ""
        note(
            f"{num_seen} of these scenes were trained on{by_all}: their posterior uses them twice and is too sure; "
            f"infer on other scenes where you can, or learn with train --cross-fit"
        )
    one = checkpoint.members[0] if isinstance(checkpoint, Ensemble) else checkpoint
    far = beyond_training(one.model.scaling, scenes) if scenes.state_names == one.spec.state_names else None
    if far is not None:
        note(far)
        attributes["beyond_training"] = far
    written = 0.0

    def write(draws: Draws) -> xr.DataTree:
        draws = replace(draws, attributes={})
        done = scenes if len(draws.group_names) == scenes.num_groups else scenes[: len(draws.group_names)]
        tree = to_datatree(
            draws, done, attributes=attributes, type_alignment=checkpoint.alignment, first_frame=first_frame
        )
        if isinstance(checkpoint, Ensemble):
            tree.attrs |= {"conditioning": CONDITIONING, "num_models": len(checkpoint.members)}
        write_posterior(tree, arguments.out)
        return tree

    def on_segment(draws: Draws) -> None:
        nonlocal written
        if time.monotonic() - written > SECONDS_BETWEEN_SAVES and not draws.complete:
            write(draws)
            written = time.monotonic()

    started = time.monotonic()
    names = (
        "method",
        "proposal",
        "likelihood",
        "num_chains",
        "num_draws",
        "num_warmup",
        "num_replicas",
        "thin",
        "seed",
    )
    choices = {name: getattr(arguments, name) for name in names} | {"show_progress": not arguments.quiet}
    if infers_states(arguments):
        draws = infer_states(arguments, checkpoint, scenes, resume, on_segment)
        for sentence in told_of_noise(draws, scenes.state_names):
            note(sentence)
    elif isinstance(checkpoint, Ensemble):
        draws = infer_ensemble(checkpoint, scenes, fingerprints=recordings.fingerprints, resume=resume, **choices)
    else:
        draws = run_infer(
            checkpoint.model, scenes, encoder=checkpoint.encoder, resume=resume, on_segment=on_segment, **choices
        )
    tree = write(draws)
    if not draws.complete:
        done = f"{draws.edge_type.shape[1]} of {arguments.num_draws} draws"
        if infers_states(arguments):
            done = f"{len(draws.group_names)} of {scenes.num_groups} scenes"
        raise Interrupted(
            f"interrupted after {done}, kept in {arguments.out} and "
            f"marked incomplete; go on with the same command and --resume"
        )
    summary = summarize(tree)
    size = ("method", "num_scenes", "num_edges", "num_chains", "num_draws")
    mixing = ("num_moving", "num_disagreeing", "r_hat_max", "ess_min")
    return {
        **{name: summary[name] for name in (*size, *mixing)},
        **_numbers_found(draws),
        "seconds": round(time.monotonic() - started, 1),
        "problems": list(check(tree).problems) if infers_states(arguments) else summary["problems"],
        "wrote": arguments.out,
    }


def _numbers_found(draws: Draws) -> dict[str, Any]:
    """Of scenes with hidden entities: how many were found in how many scenes."""
    if draws.hidden is None:
        return {}
    found = draws.hidden.num_hidden.tolist()
    return {"num_hidden": [f"{number} in {found.count(number)} scenes" for number in draws.hidden.numbers]}


def _resumed(arguments: argparse.Namespace, scenes: Scenes, attributes: dict[str, Any]) -> Draws:
    """The draws of the interrupted run that goes on; it must have been the same run."""
    if not Path(arguments.out).is_file():
        raise ValueError(f"there is nothing to resume: {arguments.out!r} does not exist")
    tree = read_posterior(arguments.out)
    draws = to_draws(tree)
    if draws.complete and draws.edge_type.shape[1] >= arguments.num_draws:
        raise ValueError(f"{arguments.out!r} is complete, there is nothing to resume")
    defaults = {"likelihood": "auto", "num_hidden": "0", "observation": "exact", "measurement_noise": ""}
    for name in ("model_fingerprint", "num_warmup", "thin", "proposal", *defaults):
        if (before := tree.attrs.get(name, defaults.get(name))) != attributes[name]:
            raise ValueError(
                f"{arguments.out!r} was made with {name.replace('_', ' ')} {before}, not {attributes[name]}; give the "
                f"same arguments to resume"
            )
    kept = scenes_of(tree).trajectory[:, :, : scenes.num_entities]
    if not torch.equal(kept, scenes.trajectory[: len(kept)]):
        raise ValueError(f"{arguments.out!r} was made with other scenes or frames; give the same to resume")
    return draws


def demo(arguments: argparse.Namespace) -> dict[str, Any]:
    """The main job on the scenes that come with the project."""
    say = functools.partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    return run_demo(arguments.out, show_progress=not arguments.quiet, say=say)


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    run.__name__: run for run in (simulate, train, infer, answers.export, answers.diagnose, answers.laws, demo)
}
COMMANDS["predict"] = functools.partial(answers.predict, read=_read)
COMMANDS["report"] = functools.partial(answers.report, read=_read)
COMMANDS["score"] = functools.partial(answers.score, read=_read)
COMMANDS["compare"] = comparisons.structures
COMMANDS["compare-models"] = functools.partial(comparisons.models, read=_read)
COMMANDS["compare-halves"] = functools.partial(comparisons.halves, read=_read)
COMMANDS["compare-priors"] = functools.partial(comparisons.priors, read=_read)
