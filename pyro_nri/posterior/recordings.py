"""The scenes of a posterior as two groups of its file: what was observed, and what else is known of them."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def observed_data(scenes: Scenes, first_frame: int) -> xr.Dataset:
    """The group ``observed_data``."""
    seen = scenes.observation_mask[..., None].cpu()
    trajectory = torch.where(seen, scenes.trajectory.cpu(), torch.nan)
    return xr.Dataset(
        {"trajectory": (("recording", "frame", "entity", "state"), trajectory.numpy())},
        coords={
            "recording": np.array(scenes.scene_names, dtype=str),
            "frame": np.arange(first_frame, first_frame + scenes.num_frames),
            "entity": np.arange(scenes.num_entities),
            "state": np.array(scenes.state_names, dtype=str),
        },
    )


def constant_data(
    scenes: Scenes,
    edge: dict[str, Any],
    type_names: tuple[str, ...],
    type_alignment: NDArray[np.integer] | Sequence[int] | None,
) -> xr.Dataset:
    """The group ``constant_data``, but for what draws alone know.

    Args:
        scenes: B recordings.
        edge: coordinates of the M edges that exist.
        type_names: K names.
        type_alignment: true type of each inferred one, or None.

    Raises:
        ValueError: the alignment has another length than K.
    """
    dataset = xr.Dataset(
        {
            "time_step": ((), scenes.time_step),
            "observation_mask": (("recording", "frame", "entity"), scenes.observation_mask.cpu().numpy()),
            "entity_mask": (("recording", "entity"), scenes.entity_mask.cpu().numpy()),
            "entity_name": (("recording", "entity"), np.array(scenes.entity_names, dtype=str)),
            "structure_group": ("recording", np.array(scenes.structure_group, dtype=str)),
        },
        coords={
            **edge,
            "recording": np.array(scenes.scene_names, dtype=str),
            "entity": np.arange(scenes.num_entities),
            "type": np.array(type_names, dtype=str),
        },
    )
    if scenes.entity_kind is not None:
        dataset["entity_kind"] = (("recording", "entity"), scenes.entity_kind.cpu().numpy())
    if scenes.initial_state is not None:
        dataset["true_initial_state"] = (("recording", "entity", "state"), scenes.initial_state.cpu().numpy())
    if type_alignment is not None:
        alignment = np.asarray(type_alignment, np.int64)
        if alignment.shape != (len(type_names),):
            raise ValueError(f"type_alignment must have shape [{len(type_names)}], found {list(alignment.shape)}")
        dataset["type_alignment"] = ("type", alignment)
    if scenes.edge_type is not None:
        truth = scenes.edge_type.cpu()
        if torch.equal(truth[scenes.group_first_scene][scenes.group_index.cpu()], truth):
            shared = truth[scenes.group_first_scene].numpy()
            dataset["true_edge_type"] = ("edge", shared[edge["scene_index"][1], edge["edge_index"][1]])
        else:
            warnings.warn(
                "scenes that share a structure have different true edge types; the truth is left out of the posterior",
                stacklevel=3,
            )
    return dataset


def scenes_from(observed: xr.Dataset, constant: xr.Dataset) -> Scenes:
    """Undo :func:`observed_data` and :func:`constant_data`."""
    edge_type = None
    if "true_edge_type" in constant:
        num_entities = constant.sizes["entity"]
        names = list(dict.fromkeys(constant["structure_group"].values.tolist()))
        laid_out = np.zeros((len(names), edges.num_edges(num_entities)), np.int64)
        laid_out[constant["scene_index"].values, constant["edge_index"].values] = constant["true_edge_type"].values
        number = {name: g for g, name in enumerate(names)}
        edge_type = laid_out[[number[name] for name in constant["structure_group"].values.tolist()]]
    trajectory = observed["trajectory"].values
    return Scenes.from_arrays(
        torch.from_numpy(np.nan_to_num(trajectory)),
        time_step=float(constant["time_step"]),
        observation_mask=torch.from_numpy(constant["observation_mask"].values.astype(bool)),
        entity_mask=torch.from_numpy(constant["entity_mask"].values.astype(bool)),
        scene_names=constant["recording"].values.tolist(),
        entity_names=constant["entity_name"].values.tolist(),
        state_names=observed["state"].values.tolist(),
        structure_group=constant["structure_group"].values.tolist(),
        entity_kind=torch.from_numpy(constant["entity_kind"].values) if "entity_kind" in constant else None,
        edge_type=None if edge_type is None else torch.from_numpy(edge_type),
        initial_state=torch.from_numpy(constant["true_initial_state"].values)
        if "true_initial_state" in constant
        else None,
    )
