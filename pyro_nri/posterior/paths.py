"""Draws of the noisy program as ArviZ's groups, and the paths that they imply as a table."""

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from pyro_nri.inference.noisy_chains import NoisyDraws
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.scenes.scenes import Scenes


def latents_tree(model: NoisyModel, scenes: Scenes, draws: NoisyDraws) -> xr.DataTree:
    """Latents and statistics with named dimensions.

    Args:
        model: the program.
        scenes: B scenes.
        draws: what chains have drawn of them.

    Returns:
        ``posterior``: each latent site in scaled units, ``(chain, draw, scene, ...)``; ``sample_stats``:
        ``log_joint (chain, draw, scene)`` given the structure; ``constant_data``: the log marginal of each scene, its
        standard error and effective draws.
    """
    sites = model.unpack(draws.value, scenes.num_entities)
    coordinates = {"chain": np.arange(len(draws.value)), "draw": np.arange(draws.value.shape[1])}
    coordinates["scene"] = np.array(scenes.scene_names)
    posterior = {
        name: (("chain", "draw", "scene", *(f"{name}_dim_{axis}" for axis in range(value.ndim - 3))), value.numpy())
        for name, value in sites.items()
    }
    marginal = {
        "log_marginal": draws.log_marginal.log_value,
        "log_marginal_error": draws.log_marginal.log_error,
        "effective": draws.log_marginal.effective,
    }
    groups = {
        "posterior": xr.Dataset(posterior, coordinates),
        "sample_stats": xr.Dataset({"log_joint": (("chain", "draw", "scene"), draws.log_density.numpy())}, coordinates),
        "constant_data": xr.Dataset(
            {name: ("scene", value.numpy()) for name, value in marginal.items()}, {"scene": coordinates["scene"]}
        ),
    }
    return xr.DataTree.from_dict(groups)


def paths_frame(
    model: NoisyModel,
    scenes: Scenes,
    structure: Tensor,
    value: Tensor,
    state_names: tuple[str, ...],
    *,
    num_frames: int | None = None,
    interval: float = 0.9,
) -> pd.DataFrame:
    """Where every entity was at every frame, seen or hidden, without the noise of the measurement.

    Args:
        model: the program.
        scenes: B scenes.
        structure: long ``[B, E]`` or ``[E]``.
        value: draws of latents in rows, ``[*batch, B, P]``.
        state_names: D names of the state variables of the dynamics.
        num_frames: frames to follow, more than the recording's to look ahead; default: the recording's.
        interval: probability between ``low`` and ``high``.

    Returns:
        Columns ``scene``, ``entity`` (hidden ones are called "hidden 0", ...), ``hidden``, ``frame``, ``time``,
        ``state``, ``mean``, ``standard_deviation``, ``low``, ``median``, ``high``; raw units.

    Raises:
        ValueError: names or the interval do not fit.
    """
    if len(state_names) != model.dynamics.state_size:
        raise ValueError(f"state_names must have {model.dynamics.state_size} entries, found {len(state_names)}")
    if not 0 < interval < 1:
        raise ValueError(f"interval must be between 0 and 1, found {interval}")
    scenes = model.prepare(scenes)
    flat = value.reshape(-1, *value.shape[-2:])
    structure = structure.expand(scenes.num_scenes, -1)
    with torch.no_grad():
        path = model.path(scenes, structure, model.unpack(flat, scenes.num_entities), num_frames)  # [S, B, T, N, D]
    levels = path.new_tensor([(1 - interval) / 2, 0.5, (1 + interval) / 2])
    low, median, high = path.quantile(levels, 0)
    columns = {"mean": path.mean(0), "standard_deviation": path.std(0), "low": low, "median": median, "high": high}
    hidden = tuple(f"hidden {number}" for number in range(model.num_hidden))
    entities = np.array([names + hidden for names in scenes.entity_names])  # [B, N]
    shape = tuple(path.shape[1:])
    scene, frame, entity, state = (axis.ravel() for axis in np.indices(shape))
    frame_table = pd.DataFrame(
        {
            "scene": np.array(scenes.scene_names)[scene],
            "entity": entities[scene, entity],
            "hidden": entity >= scenes.num_entities,
            "frame": frame,
            "time": frame * scenes.time_step,
            "state": np.array(state_names)[state],
            **{name: part.numpy().ravel() for name, part in columns.items()},
        }
    )
    return frame_table[frame_table["entity"] != ""].reset_index(drop=True)
