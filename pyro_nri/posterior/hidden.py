"""Hidden entities as a group of the posterior file."""

import numpy as np
import xarray as xr

from pyro_nri.inference.draws import HiddenDraws
from pyro_nri.scenes.scenes import Scenes


def hidden_dataset(hidden: HiddenDraws, scenes: Scenes, group_names: tuple[str, ...], first_frame: int) -> xr.Dataset:
    """The group ``hidden_posterior``.

    ``hidden_state`` (chain, draw, scene, hidden, state) at frame 0; ``path`` (path_draw, scene, hidden, frame, state)
    of some of the draws; ``num_hidden`` (scene) of the draws; ``log_marginal``, ``log_marginal_error`` and, where it is
    known, ``unexplained`` (number, scene). Raw units, NaN where a scene has fewer hidden entities than others.
    """
    num_hidden = hidden.state.shape[3]
    known = {} if hidden.unexplained is None else {"unexplained": (("number", "scene"), hidden.unexplained)}
    return xr.Dataset(
        {
            **known,
            "hidden_state": (("chain", "draw", "scene", "hidden", "state"), hidden.state),
            "path": (("path_draw", "scene", "hidden", "frame", "state"), hidden.path),
            "num_hidden": ("scene", hidden.num_hidden),
            "log_marginal": (("number", "scene"), hidden.log_marginal),
            "log_marginal_error": (("number", "scene"), hidden.log_marginal_error),
        },
        coords={
            "chain": np.arange(hidden.state.shape[0]),
            "draw": np.arange(hidden.state.shape[1]),
            "scene": np.array(group_names, dtype=str),
            "hidden": np.array([f"hidden {number + 1}" for number in range(num_hidden)], dtype=str),
            "frame": np.arange(first_frame, first_frame + hidden.path.shape[3]),
            "state": np.array(scenes.state_names, dtype=str),
            "number": np.array(hidden.numbers),
        },
    )


def hidden_of(dataset: xr.Dataset) -> HiddenDraws:
    """Undo :func:`hidden_dataset`."""
    return HiddenDraws(
        state=dataset["hidden_state"].values,
        path=dataset["path"].values,
        num_hidden=dataset["num_hidden"].values,
        numbers=tuple(int(number) for number in dataset["number"].values),
        log_marginal=dataset["log_marginal"].values,
        log_marginal_error=dataset["log_marginal_error"].values,
        unexplained=dataset["unexplained"].values if "unexplained" in dataset else None,
    )
