"""What each command does: read, call the library, write, and say in a dictionary what came out."""

import argparse
import functools
import math
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pyro_nri.demo import run_demo
from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.inference.draws import Draws
from pyro_nri.inference.run import infer as run_infer
from pyro_nri.learning.bouncegrad import BounceGrad
from pyro_nri.learning.checkpoint import load_checkpoint, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.align import fit_alignment
from pyro_nri.posterior.convert import to_datatree, to_draws
from pyro_nri.posterior.diagnostics import diagnostics_frame, summarize
from pyro_nri.posterior.frames import edges_frame, structures_frame, write_frame
from pyro_nri.posterior.predictions import predict as predict_paths
from pyro_nri.posterior.scores import rollout_errors, rollout_scores
from pyro_nri.posterior.scores import score as score_posterior
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.readers import read_scenes, write_netcdf
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate as run_simulate

DEFAULT_STEPS = 600
SECONDS_BETWEEN_SAVES = 20.0


class Interrupted(Exception):
    """Stopped from the keyboard; the message says what was kept and how to go on."""


def _read(arguments: argparse.Namespace, source: str) -> Scenes:
    share = getattr(arguments, "share_structure", None)
    scenes = read_scenes(
        source,
        system=arguments.system,
        split=arguments.split,
        rows=arguments.rows,
        scene=arguments.scene,
        entity=arguments.entity,
        time=arguments.time,
        state=tuple(arguments.state.split(",")),
        group=None if share in (None, "none", "all") else share,
    )
    return scenes.share_structure(share) if share in ("none", "all") else scenes


def _command_line() -> str:
    return shlex.join(["pyro-nri", *sys.argv[1:]])


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulated scenes as NetCDF."""
    scenes = run_simulate(
        arguments.system,
        arguments.num_scenes,
        num_entities=arguments.num_entities,
        num_frames=arguments.num_frames,
        frame_spacing=arguments.frame_spacing,
        measurement_noise=arguments.measurement_noise,
        seed=arguments.seed,
        progress=not arguments.quiet,
    )
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
    scenes = _read(arguments, arguments.scenes)
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
        noise=arguments.noise.replace("-", "_"),
        horizon=arguments.horizon,
        no_interaction=arguments.no_interaction,
        num_entity_kinds=kinds,
    )
    unfinished = Path(arguments.out + ".unfinished")
    checkpoint = new_checkpoint(spec, seed=arguments.seed)
    trainer_state = None
    if arguments.resume:
        if not unfinished.is_file():
            raise ValueError(f"there is nothing to resume: {str(unfinished)!r} does not exist")
        checkpoint = load_checkpoint(unfinished)
        trainer_state = checkpoint.trainer
        if checkpoint.spec != spec:
            raise ValueError(
                f"{str(unfinished)!r} was made with other choices of model; give the same arguments to resume"
            )
        if checkpoint.training.get("seed") != arguments.seed:
            raise ValueError(
                f"{str(unfinished)!r} was made with seed {checkpoint.training.get('seed')}, not {arguments.seed}"
            )
    else:
        checkpoint.model.fit_scaling(scenes)
        assert checkpoint.encoder is not None
        checkpoint.encoder.fit_scaling(scenes)
    device = _device(arguments.device)
    checkpoint.model.to(device)
    if checkpoint.encoder is not None:
        checkpoint.encoder.to(device)
    trainer = BounceGrad(
        checkpoint.model,
        scenes,
        inner=arguments.inner,
        encoder=checkpoint.encoder,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        num_steps=arguments.num_steps or (DEFAULT_STEPS if arguments.minutes is None else 10**9),
        minutes=arguments.minutes,
        search_frames=arguments.search_frames,
        structure=_true_structure(scenes) if arguments.edges == "given" else None,
        seed=arguments.seed,
    )
    if trainer_state is not None:
        trainer.load_state_dict(trainer_state)
    checkpoint.training_scenes = scenes.fingerprints

    def save(trainer: BounceGrad) -> None:
        checkpoint.trainer = trainer.state_dict()
        checkpoint.training = {
            "command": _command_line(),
            "seed": arguments.seed,
            "num_scenes": scenes.num_scenes,
            "num_frames": scenes.num_frames,
            "num_steps": trainer.num_done,
            "seconds": trainer.seconds,
            "inner": trainer.inner,
        }
        save_checkpoint(checkpoint, unfinished)

    save(trainer)  # an output that cannot be written is found out before the work, not after
    try:
        history = trainer.run(show_progress=not arguments.quiet, save=save, save_every=SECONDS_BETWEEN_SAVES)
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted after {trainer.num_done} steps; go on with the same command and --resume "
            f"(kept in {unfinished}, at most {SECONDS_BETWEEN_SAVES:.0f} s old)"
        ) from None
    checkpoint.trainer = None
    result: dict[str, Any] = {"steps": trainer.num_done, "seconds": round(trainer.seconds, 1), "inner": trainer.inner}
    if history:
        result["loss"] = sum(losses.module_loss for losses in history[-20:]) / len(history[-20:])
    if scenes.edge_type is not None:
        # Fitted on training scenes, stored for scoring, never read by inference.
        truth = scenes.edge_type[scenes.group_first_scene]
        mask = scenes.edge_mask[scenes.group_first_scene]
        inferred = trainer.structure.cpu()[mask].numpy()
        alignment = fit_alignment(inferred, truth[mask].numpy(), num_edge_types=num_types)
        checkpoint.alignment = alignment.tolist()
        result["training_edge_accuracy"] = float((alignment[inferred] == truth[mask].numpy()).mean())
    checkpoint.model.cpu()
    if checkpoint.encoder is not None:
        checkpoint.encoder.cpu()
    save_checkpoint(checkpoint, arguments.out)
    unfinished.unlink(missing_ok=True)
    return {**result, "wrote": arguments.out}


def _true_structure(scenes: Scenes) -> torch.Tensor:
    if scenes.edge_type is None:
        raise ValueError("--edges given needs scenes whose structures are known, and these have none")
    return scenes.edge_type[scenes.group_first_scene]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name!r} is not available on this machine") from error
    return device


# --- infer -----------------------------------------------------------------------------------------------------------
def infer(arguments: argparse.Namespace) -> dict[str, Any]:
    """A posterior file; chains that were interrupted are kept in it, marked incomplete."""
    checkpoint = load_checkpoint(arguments.model)
    scenes = _read(arguments, arguments.scenes)
    if seen := set(scenes.fingerprints) & set(checkpoint.training_scenes):
        print(
            f"pyro-nri: {len(seen)} of these scenes were trained on: their posterior uses them twice and is too sure; "
            f"infer on other scenes where you can",
            file=sys.stderr,
        )
    start, stop = arguments.frames or (None, None)
    scenes = scenes.frames(start, stop)
    first_frame = range(scenes.num_frames + (start or 0))[start or 0] if (start or 0) >= 0 else 0
    resume = None
    if arguments.resume:
        resume = to_draws(read_posterior(arguments.out))
        if resume.complete and resume.edge_type.shape[1] >= arguments.num_draws:
            raise ValueError(f"{arguments.out!r} is complete, there is nothing to resume")
    device = _device(arguments.device)
    checkpoint.model.to(device)
    if checkpoint.encoder is not None:
        checkpoint.encoder.to(device)
    attributes = {
        "command": _command_line(),
        "model": str(arguments.model),
        "num_warmup": arguments.num_warmup,
        "thin": arguments.thin,
    }
    written = 0.0

    def write(draws: Draws) -> None:
        draws = replace(draws, attributes={})
        tree = to_datatree(
            draws, scenes, attributes=attributes, type_alignment=checkpoint.alignment, first_frame=first_frame
        )
        write_posterior(tree, arguments.out)

    def on_segment(draws: Draws) -> None:
        nonlocal written
        if time.monotonic() - written > SECONDS_BETWEEN_SAVES and not draws.complete:
            write(draws)
            written = time.monotonic()

    started = time.monotonic()
    draws = run_infer(
        checkpoint.model,
        scenes,
        method=arguments.method,
        encoder=checkpoint.encoder,
        proposal=arguments.proposal,
        num_chains=arguments.num_chains,
        num_draws=arguments.num_draws,
        num_warmup=arguments.num_warmup,
        thin=arguments.thin,
        seed=arguments.seed,
        resume=resume,
        on_segment=on_segment,
        show_progress=not arguments.quiet,
    )
    write(draws)
    if not draws.complete:
        raise Interrupted(
            f"interrupted after {draws.edge_type.shape[1]} of {arguments.num_draws} draws, kept in {arguments.out} and "
            f"marked incomplete; go on with the same command and --resume"
        )
    summary = summarize(read_posterior(arguments.out))
    kept = (
        "method",
        "num_scenes",
        "num_edges",
        "num_chains",
        "num_draws",
        "num_moving",
        "num_disagreeing",
        "r_hat_max",
        "ess_min",
    )
    return {
        **{name: summary[name] for name in kept},
        "seconds": round(time.monotonic() - started, 1),
        "problems": summary["problems"],
        "wrote": arguments.out,
    }


# --- answers ---------------------------------------------------------------------------------------------------------
def predict(arguments: argparse.Namespace) -> dict[str, Any]:
    """Predicted paths as NetCDF."""
    checkpoint = load_checkpoint(arguments.model)
    scenes = _read(arguments, arguments.scenes)
    tree = read_posterior(arguments.posterior)
    paths = predict_paths(checkpoint.model, tree, scenes, start=arguments.start, num_steps=arguments.num_steps)
    with written_beside(arguments.out) as beside:
        paths.assign_attrs(command=_command_line()).to_netcdf(beside, engine="h5netcdf")
    return {"recordings": paths.sizes["recording"], "frames": paths.sizes["frame"], "wrote": arguments.out}


def score(arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores with bootstrap intervals over scenes."""
    tree = read_posterior(arguments.posterior)
    truth = _read(arguments, arguments.truth)
    result = score_posterior(tree, truth)
    missing = {"value": None, "low": None, "high": None}
    start = arguments.frames_after
    for step in (1, 10, 20):
        name = f"mse_{step}"
        if arguments.model is None:
            result[name] = {**missing, "reason": "no model was given"}
        elif start + step >= truth.num_frames:
            result[name] = {**missing, "reason": f"frame {start + step} is not in the {truth.num_frames} frames given"}
        else:
            result.update(_prediction_scores(arguments.model, tree, truth, start, step))
    return result


def _prediction_scores(model: str, tree: Any, truth: Scenes, start: int, step: int) -> dict[str, Any]:
    checkpoint = load_checkpoint(model)
    known = set(tree["observed_data"]["recording"].values.tolist())
    truth = truth[torch.tensor([name in known for name in truth.scene_names])]
    paths = predict_paths(checkpoint.model, tree, truth, start=start, num_steps=step)
    scaling: Scaling = checkpoint.model.scaling
    errors = rollout_errors(
        paths["mean"].values,
        truth.trajectory.numpy(),
        start=start,
        scale=scaling.scale.numpy(),
        steps=(step,),
        observation_mask=truth.observation_mask.numpy(),
    )
    return dict(rollout_scores(errors))


def export(arguments: argparse.Namespace) -> dict[str, Any]:
    """Edges, structures and diagnostics as tables."""
    tree = read_posterior(arguments.posterior)
    folder = Path(arguments.out)
    written = []
    for name, frame in (("edges", edges_frame), ("structures", structures_frame), ("diagnostics", diagnostics_frame)):
        path = folder / f"{name}.{arguments.format}"
        write_frame(frame(tree), path)
        written.append(str(path))
    return {"wrote": written}


def demo(arguments: argparse.Namespace) -> dict[str, Any]:
    """The main job on the scenes that come with the project."""
    say = functools.partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    return run_demo(arguments.out, show_progress=not arguments.quiet, say=say)


COMMANDS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    run.__name__: run for run in (simulate, train, infer, predict, score, export, demo)
}


def describe(result: dict[str, Any]) -> str:
    """A result as lines for a person: a name, a value, an interval if there is one."""
    lines = []
    for name, value in result.items():
        label = name.replace("_", " ")
        if isinstance(value, dict) and "value" in value:
            lines.append(f"{label:28} {_with_interval(value)}")
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            lines.append("\n".join(f"{label if i == 0 else '':28} {item}" for i, item in enumerate(value)))
        elif isinstance(value, list):
            lines.append(f"{label:28} {', '.join(_plain(item) for item in value) or 'none'}")
        elif isinstance(value, dict):
            continue  # for machines: --json has it
        else:
            lines.append(f"{label:28} {_plain(value)}")
    return "\n".join(lines)


def _with_interval(value: dict[str, Any]) -> str:
    if value["value"] is None:
        return f"unknown: {value.get('reason', 'there is nothing to score')}"
    text = _plain(value["value"])
    return text if value["low"] is None else f"{text}  [{_plain(value['low'])}, {_plain(value['high'])}]"


def _plain(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "none" if value is None else str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value) or math.isnan(value):
        return str(value)
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.2e}"
