"""The commands that read a posterior or a model and say what is in it: paths, scores, tables, laws."""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.posterior.diagnostics import diagnostics_frame
from pyro_nri.posterior.frames import edges_frame, structures_frame, write_frame
from pyro_nri.posterior.law_plots import write_law_plot
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame
from pyro_nri.posterior.predictions import check_recordings
from pyro_nri.posterior.predictions import predict as predict_paths
from pyro_nri.posterior.rollout_errors import rollout_errors, rollout_scores
from pyro_nri.posterior.scores import score as score_posterior
from pyro_nri.posterior.storage import read_posterior
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes

# Reads scenes from a source, as the other arguments say.
Read = Callable[[argparse.Namespace, str], Scenes]


def note(text: str) -> None:
    """Say something on standard error, beside the result."""
    print(f"pyro-nri: {text}", file=sys.stderr)


def _read_posterior(path: str) -> xr.DataTree:
    tree = read_posterior(path)
    if not tree["posterior"].sizes["draw"]:
        raise ValueError(f"{path!r} holds no draw yet, its run was interrupted before; go on with infer --resume")
    if not tree.attrs["complete"]:
        note(f"{path!r} is of a run that was interrupted and holds only part of its draws")
    return tree


def _load_model_of(tree: xr.DataTree, arguments: argparse.Namespace) -> Checkpoint:
    """The types of a posterior mean something only to the model that it was inferred with."""
    checkpoint = load_checkpoint(arguments.model)
    if tree.attrs.get("model_fingerprint", checkpoint.fingerprint) != checkpoint.fingerprint:
        raise ValueError(f"{arguments.posterior!r} was inferred with another model than {arguments.model!r}")
    return checkpoint


def predict(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Predicted paths as NetCDF."""
    scenes = read(arguments, arguments.scenes)
    tree = _read_posterior(arguments.posterior)
    checkpoint = _load_model_of(tree, arguments)
    check_recordings(tree, scenes)
    paths = predict_paths(checkpoint.model, tree, scenes, start=arguments.start, num_steps=arguments.num_steps)
    with written_beside(arguments.out) as beside:
        paths.assign_attrs(command=arguments.command_line).to_netcdf(beside, engine="h5netcdf")
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
    tree, written = _read_posterior(arguments.posterior), []
    for name, frame in (("edges", edges_frame), ("structures", structures_frame), ("diagnostics", diagnostics_frame)):
        path = Path(arguments.out) / f"{name}.{arguments.format}"
        write_frame(frame(tree), path)
        written.append(str(path))
    return {"wrote": written}


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
