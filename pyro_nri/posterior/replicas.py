"""Replicas of parallel tempering as a group of the posterior file, so that an interrupted run can go on from it."""

import numpy as np
import xarray as xr

from pyro_nri.inference.draws import Replicas


def replicas_dataset(replicas: Replicas, group_names: tuple[str, ...]) -> xr.Dataset:
    """Variables by ``replica`` (1 first, the prior last), ``rung`` (a pair of neighbours), ``chain`` and ``scene``."""
    rung = ("rung", "chain", "scene")
    return xr.Dataset(
        {
            "inverse_temperature": (("replica", "scene"), replicas.inverse_temperature),
            "rejection": (("rung", "scene"), replicas.rejection, {"long_name": "mean probability of no exchange"}),
            "log_up": (rung, replicas.log_up),
            "log_down": (rung, replicas.log_down),
            "edge_type": (("replica", "chain", "scene", "pair"), replicas.edge_type),
        },
        coords={"scene": np.array(group_names, dtype=str)},
        attrs={"num_steps": replicas.num_steps},
    )


def replicas_of(dataset: xr.Dataset) -> Replicas:
    """Undo :func:`replicas_dataset`."""
    return Replicas(
        inverse_temperature=dataset["inverse_temperature"].values,
        rejection=dataset["rejection"].values,
        num_steps=int(dataset.attrs["num_steps"]),
        log_up=dataset["log_up"].values,
        log_down=dataset["log_down"].values,
        edge_type=dataset["edge_type"].values.astype(np.int8),
    )
