"""Tables of hidden entities: where they were, and how many there are."""

import numpy as np
import pandas as pd
import xarray as xr

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.hidden import hidden_of


def hidden_frame(tree: xr.DataTree, *, interval: float = 0.9) -> pd.DataFrame:
    """Where hidden entities were: one row for each scene, hidden entity, frame and state variable.

    Args:
        tree: a posterior with hidden entities.
        interval: probability of the central interval.

    Returns:
        Columns ``scene``, ``entity``, ``frame``, ``state``, ``mean``, ``sd``, ``low``, ``high``, raw units, over the
        draws whose paths were kept. Scenes without hidden entities have no rows.

    Raises:
        ValueError: the posterior has no hidden entities, or the interval is not between 0 and 1.
    """
    if not 0 < interval < 1:
        raise ValueError(f"interval must lie between 0 and 1, found {interval}")
    hidden = hidden_group(tree)
    path = hidden["path"].transpose("scene", "hidden", "frame", "state", "path_draw").values
    present = np.arange(path.shape[1]) < hidden["num_hidden"].values[:, None]  # [G, N_hidden]
    rows = path[present]  # [R, T, D, draws]
    scene, entity = np.nonzero(present)
    num_frames, num_states = path.shape[2:4]
    names = {
        "scene": hidden["scene"].values[scene],
        "entity": hidden["hidden"].values[entity],
    }
    low, high = np.quantile(rows, [(1 - interval) / 2, (1 + interval) / 2], axis=-1) if len(rows) else (rows, rows)
    return pd.DataFrame(
        {
            **{name: np.repeat(value, num_frames * num_states) for name, value in names.items()},
            "frame": np.tile(np.repeat(hidden["frame"].values, num_states), len(rows)),
            "state": np.tile(hidden["state"].values, len(rows) * num_frames),
            "mean": rows.mean(-1).ravel(),
            "sd": rows.std(-1, ddof=1).ravel() if len(rows) else np.zeros(0),
            "low": low.ravel(),
            "high": high.ravel(),
        }
    )


def num_hidden_frame(tree: xr.DataTree) -> pd.DataFrame:
    """How many hidden entities there are: one row for each scene and number that was tried.

    Args:
        tree: a posterior with hidden entities.

    Returns:
        Columns ``scene``, ``num_hidden``, ``log_marginal``, ``log_marginal_error`` (standard error; inf for a number
        far too improbable to be followed up, and where chains hardly move), ``probability`` (every number that was
        tried equally likely before the data), ``chosen`` (whether the draws have this number), ``unexplained`` (nats
        for each transition and entity by which frames are less likely than exact predictions: two or three if the
        number explains them, NaN if unknown).

    Raises:
        ValueError: the posterior has no hidden entities.
    """
    hidden = hidden_group(tree)
    numbers, scenes = hidden["number"].values, hidden["scene"].values
    log_marginal = hidden["log_marginal"].transpose("scene", "number").values
    unexplained = hidden.get("unexplained", np.nan * hidden["log_marginal"])
    return pd.DataFrame(
        {
            "scene": np.repeat(scenes, len(numbers)),
            "num_hidden": np.tile(numbers, len(scenes)),
            "log_marginal": log_marginal.ravel(),
            "log_marginal_error": hidden["log_marginal_error"].transpose("scene", "number").values.ravel(),
            "probability": hidden_of(hidden).probability.T.ravel(),
            "chosen": (hidden["num_hidden"].values[:, None] == numbers).ravel(),
            "unexplained": unexplained.transpose("scene", "number").values.ravel(),
        }
    )


def has_hidden(tree: xr.DataTree) -> bool:
    """Whether hidden entities were inferred."""
    return "hidden_posterior" in tree.children


def hidden_group(tree: xr.DataTree) -> xr.Dataset:
    """The group of hidden entities.

    Raises:
        ValueError: there is none.
    """
    if not has_hidden(tree):
        raise ValueError("the posterior was inferred without hidden entities: use infer_hidden, or infer --num-hidden")
    return group(tree, "hidden_posterior")
