"""What the posterior expects to happen next: rollouts from an observed frame under drawn structures and laws."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.model.program import SceneModel
from pyro_nri.posterior.convert import group, scenes_of, to_draws
from pyro_nri.posterior.rollout_errors import rollout_errors
from pyro_nri.scenes.scenes import Scenes


def predict(
    found: Checkpoint | SceneModel,
    tree: xr.DataTree,
    scenes: Scenes,
    *,
    start: int,
    num_steps: int,
    num_draws: int = 20,
    interval: float = 0.9,
) -> xr.Dataset:
    """Roll the dynamics forward from an observed frame, once for each of some draws.

    A draw is a structure from the posterior and, for pair forces, one of the sets of laws that the training scenes
    admit. The paths carry no noise: their spread is that of structures and laws. Where two entities turn around each
    other faster than the frames, motion is chaotic and the least uncertainty of a law decides where they go; the mean
    of the paths is then the best guess, not any single path.

    Args:
        found: what training found; of a model alone the laws are taken for known.
        tree: a posterior of these scenes.
        scenes: recordings, matched to the posterior's by name; frames after ``start`` may be missing.
        start: the observed frame to start from.
        num_steps: frames to predict.
        num_draws: how many draws are rolled out, evenly spaced over draws and chains.
        interval: probability of the interval between ``low`` and ``high``.

    Returns:
        Variables ``mean``, ``low``, ``high`` with dimensions ``(recording, frame, entity, state)`` in raw units; NaN
        for recordings that miss an entity at the frame ``start``.

    Raises:
        ValueError: a recording or its entities are not in the posterior, or a number is out of range.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, found {num_draws}")
    if not 0 < interval < 1:
        raise ValueError(f"interval must be between 0 and 1, found {interval}")
    if "hidden_posterior" in tree.children:
        raise ValueError("predictions do not roll out with hidden entities, and this posterior has some")
    (model, laws), scenes = _parts(found), match_scenes(tree, scenes)
    if (num_types := int(tree.attrs["num_edge_types"])) != model.num_edge_types:
        raise ValueError(f"the posterior has {num_types} edge types, the model has {model.num_edge_types}")
    structure = _structures(tree, scenes, num_draws)
    paths = _paths(model, laws, scenes, structure, start=start, num_steps=num_steps)
    known = scenes.complete_frame[:, start, None, None, None] & scenes.entity_mask[:, None, :, None]
    paths = torch.where(known, paths, torch.nan)
    tail = (1 - interval) / 2
    axes = ("recording", "frame", "entity", "state")
    drawn = "structures and laws" if laws is not None else "structures, given the learned modules"
    return xr.Dataset(
        {
            "mean": (axes, paths.mean(0).numpy()),
            "low": (axes, paths.quantile(tail, dim=0).numpy()),
            "high": (axes, paths.quantile(1 - tail, dim=0).numpy()),
            "entity_name": (("recording", "entity"), np.array(scenes.entity_names, dtype=str)),
        },
        coords={
            "recording": np.array(scenes.scene_names, dtype=str),
            "frame": np.arange(start + 1, start + 1 + num_steps),
            "entity": np.arange(scenes.num_entities),
            "state": np.array(scenes.state_names, dtype=str),
        },
        attrs={
            "start": start,
            "interval": interval,
            "num_draws": num_draws,
            "conditioning": f"the spread is that of {drawn}; it is without noise",
        },
    )


def predictions_frame(paths: xr.Dataset) -> pd.DataFrame:
    """Predictions as a long table, recording by recording, then by frame, entity and state variable.

    Args:
        paths: from :func:`predict`.

    Returns:
        Columns ``recording``, ``frame``, ``entity`` (its name; padding is left out), ``state``, ``mean``, ``low``,
        ``high``, raw units; NaN for recordings that miss an entity at the first frame.
    """
    order = ["recording", "frame", "entity", "state"]
    frame = paths[["mean", "low", "high"]].to_dataframe(dim_order=order).reset_index()
    num_rows = len(frame) // max(paths.sizes["recording"], 1)
    recording = np.arange(paths.sizes["recording"]).repeat(num_rows)
    name = paths["entity_name"].values[recording, frame["entity"].to_numpy()]
    frame = frame.assign(entity=name)[[*order, "mean", "low", "high"]]
    return pd.DataFrame(frame[name != ""].reset_index(drop=True))


def structure_value(
    found: Checkpoint | SceneModel,
    tree: xr.DataTree,
    scenes: Scenes,
    *,
    start: int,
    num_steps: int,
    num_draws: int = 20,
) -> pd.DataFrame:
    """Do structures help to predict: rollouts under a scene's own structures beside those under another scene's.

    The structures of the next scene with the same number of entities are as plausible as the scene's own, but are not
    its own. Where they predict as well, the structure explains nothing of the motion, however sure it is.

    Args:
        found: what training found, as for :func:`predict`.
        tree: a posterior of these scenes.
        scenes: recordings, matched to the posterior's by name, with frames up to ``start + num_steps``. Frames that
            the structures were inferred from flatter them a little.
        start: the observed frame to start from.
        num_steps: frames to predict.
        num_draws: how many draws are rolled out.

    Returns:
        One row for each recording: ``recording``; ``error`` and ``error_of_others``, the scaled squared error of the
        mean path after ``num_steps`` frames under its own structures and under another's (NaN where it cannot be
        told).

    Raises:
        ValueError: a recording or its entities are not in the posterior, or there are too few frames.
    """
    (model, laws), scenes = _parts(found), match_scenes(tree, scenes)
    own = _structures(tree, scenes, num_draws)
    mask = scenes.edge_mask[scenes.group_first_scene]
    alike: dict[bytes, list[int]] = {}
    for g, row in enumerate(mask.numpy()):
        alike.setdefault(row.tobytes(), []).append(g)
    after = {g: rows[(i + 1) % len(rows)] for rows in alike.values() for i, g in enumerate(rows)}
    other = own[:, [after[g] for g in range(scenes.num_groups)]]
    scale = model.scaling.scale.numpy()

    def error(structure: Tensor) -> NDArray[np.float64]:
        paths = _paths(model, laws, scenes, structure, start=start, num_steps=num_steps).mean(0)
        mask = scenes.observation_mask.numpy() & scenes.complete_frame.numpy()[:, start, None, None]
        arguments = {"start": start, "scale": scale, "steps": (num_steps,), "observation_mask": mask}
        return rollout_errors(paths.numpy(), scenes.trajectory.numpy(), **arguments)[num_steps]

    errors = {"error": error(own), "error_of_others": error(other)}
    return pd.DataFrame({"recording": np.array(scenes.scene_names, dtype=str), **errors})


def _parts(found: Checkpoint | SceneModel) -> tuple[SceneModel, Tensor | None]:
    """The model, on the CPU, and draws of its laws ``[R, K, NUM_SPLINES]``, or None where they are taken for known."""
    if isinstance(found, Ensemble):
        raise ValueError(f"predictions need one model, found an ensemble of {len(found.members)}; choose a member")
    return (found.model.on("cpu"), found.law_draws) if isinstance(found, Checkpoint) else (found.on("cpu"), None)


def _paths(
    model: SceneModel, laws: Tensor | None, scenes: Scenes, structure: Tensor, *, start: int, num_steps: int
) -> Tensor:
    """Paths ``[C, B, H, N, D]`` under structures ``[C, G, E]``, each with the next draw of the laws."""
    if laws is not None:
        number = torch.arange(len(structure))
        structure = structure + model.num_edge_types * number[:, None, None]
        model = copy.deepcopy(model)
        model.dynamics = model.impulse_parts[0].under_laws(laws[number % len(laws)])
    return model.predict(scenes, structure, start=start, num_steps=num_steps).double()


def _structures(tree: xr.DataTree, scenes: Scenes, number: int) -> Tensor:
    """So many drawn structures of matched scenes, evenly spaced over draws and chains, long ``[R, G, E]``."""
    edge_type = to_draws(tree).edge_type  # [C, S, G, E]
    flat = edge_type.swapaxes(0, 1).reshape(-1, *edge_type.shape[2:])
    if len(flat) == 0:
        raise ValueError("the posterior holds no draw, at least one is needed")
    chosen = np.linspace(0, len(flat) - 1, number).round().astype(int)
    names = group(tree, "sample_stats")["scene"].values.tolist()
    order = [names.index(name) for name in scenes.group_names]
    return torch.as_tensor(flat[chosen][:, order]).long()


def match_scenes(tree: xr.DataTree, scenes: Scenes) -> Scenes:
    """The scenes with the structure groups that they have in the posterior.

    Raises:
        ValueError: a scene is not in the posterior, or has other entities there.
    """
    known = scenes_of(tree)
    place = {name: b for b, name in enumerate(known.scene_names)}
    groups = []
    for b, name in enumerate(scenes.scene_names):
        if name not in place:
            raise ValueError(f"scene {name!r} is not in the posterior; infer its structure first")
        if scenes.entity_names[b] != known.entity_names[place[name]]:
            raise ValueError(f"scene {name!r} has other entities than in the posterior")
        groups.append(known.structure_group[place[name]])
    return replace(scenes, structure_group=tuple(groups))
