"""The commands that read a posterior or a model and say what is in it: paths, scores, tables, laws."""

import argparse
import functools
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xarray as xr

from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.posterior.diagnostics import diagnostics_frame
from pyro_nri.posterior.frames import edges_frame, structures_frame, write_frame
from pyro_nri.posterior.hidden_frames import has_hidden, hidden_frame, num_hidden_frame
from pyro_nri.posterior.inclusion import bayes_factors_frame
from pyro_nri.posterior.law_plots import write_law_plot
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame
from pyro_nri.posterior.parts import select_scenes
from pyro_nri.posterior.predictions import predict as predict_paths
from pyro_nri.posterior.predictions import predictions_frame
from pyro_nri.posterior.prior_records import prior_record
from pyro_nri.posterior.recorded import initial_states_frame, is_noisy
from pyro_nri.posterior.report import write_report
from pyro_nri.posterior.rollout_errors import rollout_errors, rollout_scores
from pyro_nri.posterior.same_recordings import check_recordings
from pyro_nri.posterior.scores import score as score_posterior
from pyro_nri.posterior.storage import open_posterior, read_posterior
from pyro_nri.posterior.uncertainty import explains_nothing, uncertainty_frame
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes

# Reads scenes from a source, as the other arguments say.
Read = Callable[[argparse.Namespace, str], Scenes]


def note(text: str) -> None:
    """Say something on standard error, beside the result."""
    print(f"pyro-nri: {text}", file=sys.stderr)


def _read_posterior(path: str, scenes: Sequence[str] | None = None) -> xr.DataTree:
    tree = read_posterior(path, scenes)
    _check_draws(path, tree)
    return tree


def _check_draws(path: str, tree: xr.DataTree) -> None:
    if not tree["posterior"].sizes["draw"]:
        raise ValueError(f"{path!r} holds no draw yet, its run was interrupted before; go on with infer --resume")
    if not tree.attrs["complete"]:
        note(f"{path!r} is of a run that was interrupted and holds only part of its draws")


def _load_model_of(tree: xr.DataTree, arguments: argparse.Namespace) -> Checkpoint:
    """The types of a posterior mean something only to the model that it was inferred with."""
    checkpoint = load_checkpoint(arguments.model)
    if tree.attrs.get("model_fingerprint", checkpoint.fingerprint) != checkpoint.fingerprint:
        raise ValueError(f"{arguments.posterior!r} was inferred with another model than {arguments.model!r}")
    return checkpoint


def predict(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Predicted paths as NetCDF or as a table."""
    if (suffix := Path(arguments.out).suffix) not in (".nc", ".csv", ".parquet"):
        raise ValueError(f"--out must end in .nc, .csv or .parquet, found {arguments.out!r}")
    scenes = read(arguments, arguments.scenes)
    tree = _read_posterior(arguments.posterior)
    checkpoint = _load_model_of(tree, arguments)
    check_recordings(tree, scenes)
    paths = predict_paths(
        checkpoint,
        tree,
        scenes,
        start=arguments.start,
        num_steps=arguments.num_steps,
        num_draws=arguments.num_draws,
        interval=arguments.interval,
    )
    if suffix == ".nc":
        with written_beside(arguments.out) as beside:
            paths.assign_attrs(command=arguments.command_line).to_netcdf(beside, engine="h5netcdf")
    else:
        write_frame(predictions_frame(paths), arguments.out)
    return {"recordings": paths.sizes["recording"], "frames": paths.sizes["frame"], "wrote": arguments.out}


def score(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Scores with bootstrap intervals over scenes."""
    tree = _read_posterior(arguments.posterior)
    truth = read(arguments, arguments.truth)
    check_recordings(tree, truth)
    checkpoint = None if arguments.model is None else _load_model_of(tree, arguments)
    result = score_posterior(tree, truth)
    missing = {"value": None, "low": None, "high": None}
    start = arguments.frames_after
    for step in (1, 10, 20):
        name = f"mse_{step}"
        if checkpoint is None:
            result[name] = {**missing, "reason": "no model was given"}
        elif start + step >= truth.num_frames:
            result[name] = {**missing, "reason": f"frame {start + step} is not in the {truth.num_frames} frames given"}
        else:
            result.update(_prediction_scores(checkpoint, tree, truth, start, step))
    return result


def _prediction_scores(
    checkpoint: Checkpoint, tree: xr.DataTree, truth: Scenes, start: int, step: int
) -> dict[str, Any]:
    known = set(scenes_of(tree).scene_names)
    truth = truth[torch.tensor([name in known for name in truth.scene_names])]
    paths = predict_paths(checkpoint, tree, truth, start=start, num_steps=step)
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
    """Edges, structures, what is left in doubt and diagnostics as tables; draws are read part by part."""
    checkpoint, written = None, []
    with open_posterior(arguments.posterior) as opened:
        tree = opened if arguments.scenes is None else select_scenes(opened, arguments.scenes)
        _check_draws(arguments.posterior, tree)
        if arguments.model is not None:
            checkpoint = _load_model_of(tree, arguments)
        frames: dict[str, Callable[[], pd.DataFrame]] = {
            "edges": lambda: edges_frame(tree, wide=arguments.wide),
            "structures": lambda: structures_frame(tree, arguments.num_top),
            "uncertainty": lambda: uncertainty_frame(tree),
            "diagnostics": lambda: diagnostics_frame(tree),
        }
        if prior_record(group(tree, "constant_data")) is not None:
            frames["bayes_factors"] = lambda: bayes_factors_frame(tree)
        if has_hidden(tree):
            frames |= {"hidden": lambda: hidden_frame(tree), "num_hidden": lambda: num_hidden_frame(tree)}
        if is_noisy(tree):
            frames["initial_states"] = lambda: initial_states_frame(tree)
        if checkpoint is not None and isinstance(checkpoint.model.dynamics, PairForces):
            frames["laws"] = functools.partial(laws_frame, checkpoint)
        for name, frame in frames.items():
            path = Path(arguments.out) / f"{name}.{arguments.format}"
            write_frame(frame(), path)
            written.append(str(path))
    return {"wrote": written}


def report(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """One web page about a posterior."""
    tree = _read_posterior(arguments.posterior)
    checkpoint = None if arguments.model is None else _load_model_of(tree, arguments)
    truth = None if arguments.truth is None else read(arguments, arguments.truth)
    if truth is not None:
        check_recordings(tree, truth)
    verdict = write_report(
        tree,
        arguments.out,
        checkpoint=checkpoint,
        truth=truth,
        scenes=arguments.scenes,
        commands=[arguments.command_line],
        **({} if arguments.title is None else {"title": arguments.title}),
    )
    return {
        "verdict": verdict.sentence,
        "trusted": verdict.status == "trust",
        "reasons": list(verdict.reasons),
        "wrote": arguments.out,
    }


def diagnose(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whether to trust a run and what to do if not, and a table of its scenes."""
    tree = _read_posterior(arguments.posterior)
    found, size = check(tree), group(tree, "sample_stats").sizes
    table = found.table
    result: dict[str, Any] = {
        "verdict": found.verdict,
        "passed": found.passed,
        "problems": list(found.problems),
        "advice": list(found.advice),
        "method": str(tree.attrs["method"]),
        "num_scenes": len(table),
        "num_chains": size["chain"],
        "num_draws": size["draw"],
        **{name: int(table[name].sum()) for name in ("num_edges", "num_moving", "num_disagreeing")},
        "scenes_with_several_modes": int((table["num_modes"] > 1).sum()),
    }
    for name, worst in (("r_hat_max", "max"), ("max_deviation", "max"), ("ess_min", "min"), ("graph_ess_min", "min")):
        value = float(table[name].agg(worst))
        result[name] = None if math.isnan(value) else value
    for name in ("hidden_r_hat_max", "hidden_ess_min", "recorded_r_hat_max", "recorded_ess_min"):
        if name in table:
            value = float(table[name].max() if name.endswith("max") else table[name].min())
            result[name] = None if math.isnan(value) else value
    if (nothing := explains_nothing(tree)) is not None:
        result["structure"] = nothing
    if arguments.out is not None:
        write_frame(table, arguments.out)
        result["wrote"] = arguments.out
    return result


def laws(arguments: argparse.Namespace) -> dict[str, Any]:
    """Learned laws as a table, and as a picture."""
    checkpoint = load_checkpoint(arguments.model)
    frame = laws_frame(checkpoint)
    if checkpoint.law_draws is None:
        note(f"{arguments.model!r} holds no drawn laws: there are no intervals, and where data lie is not known")
    if arguments.plot is not None:
        write_law_plot(frame, arguments.plot, None if arguments.truth is None else TRUE_LAWS[arguments.truth])
    write_frame(frame, arguments.out)
    return {"edge_types": int(frame["edge_type"].nunique()), "wrote": [arguments.out, *filter(None, [arguments.plot])]}
