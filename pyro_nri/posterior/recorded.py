"""True states of entities that were recorded with noise, as a group of the posterior file and as a table."""

import numpy as np
import pandas as pd
import xarray as xr

from pyro_nri.inference.draws import RecordedDraws

GROUP = "recorded_posterior"


def recorded_dataset(recorded: RecordedDraws, state_names: tuple[str, ...], group_names: tuple[str, ...]) -> xr.Dataset:
    """The group ``recorded_posterior``.

    ``initial_state`` (chain, draw, scene, entity, state): states at the first frame without the noise of the
    measurement, raw units, NaN for padding; ``measurement_noise`` (state): its standard deviations;
    ``noise_estimated``: 1 where they were estimated from these recordings.
    """
    num_chains, num_draws, _, num_entities, _ = recorded.state.shape
    return xr.Dataset(
        {
            "initial_state": (("chain", "draw", "scene", "entity", "state"), recorded.state),
            "measurement_noise": ("state", recorded.measurement_noise),
            "noise_estimated": ((), int(recorded.noise_estimated)),
        },
        coords={
            "chain": np.arange(num_chains),
            "draw": np.arange(num_draws),
            "scene": np.array(group_names, dtype=str),
            "entity": np.arange(num_entities),
            "state": np.array(state_names, dtype=str),
        },
    )


def recorded_of(dataset: xr.Dataset) -> RecordedDraws:
    """Undo :func:`recorded_dataset`."""
    estimated = bool(dataset["noise_estimated"]) if "noise_estimated" in dataset else False  # files of before
    return RecordedDraws(dataset["initial_state"].values, dataset["measurement_noise"].values, estimated)


def is_noisy(tree: xr.DataTree) -> bool:
    """Whether recorded states were inferred, as those of recordings with measurement noise are."""
    return GROUP in tree.children


def initial_states_frame(tree: xr.DataTree, *, interval: float = 0.9) -> pd.DataFrame:
    """Where recorded entities were at the first frame: one row for each scene, entity and state variable.

    Args:
        tree: a posterior of recordings with measurement noise.
        interval: probability of the central interval.

    Returns:
        Columns ``scene``, ``entity``, ``state``, ``recorded`` (with the noise of the measurement; NaN where it is
        missing), ``mean``, ``sd``, ``low``, ``high``; raw units.

    Raises:
        ValueError: recorded states were taken for exact, there is no draw, or the interval is not between 0 and 1.
    """
    if not 0 < interval < 1:
        raise ValueError(f"interval must lie between 0 and 1, found {interval}")
    if not is_noisy(tree):
        raise ValueError("the posterior took recorded states for exact: use infer_noisy, or infer --observation noisy")
    dataset, constant = tree.children[GROUP].to_dataset(), tree.children["constant_data"].to_dataset()
    state = dataset["initial_state"].transpose("scene", "entity", "state", "chain", "draw").values
    if not state.shape[-1]:
        raise ValueError("the posterior holds no draw, at least one is needed for a table")
    num_entities, num_states = state.shape[1:3]
    present = constant["entity_mask"].values[:, :num_entities].astype(bool)
    rows = state[present].reshape(int(present.sum()) * num_states, -1)  # [R * D, draws]
    scene, entity = np.nonzero(present)
    observed = tree.children["observed_data"]["trajectory"].transpose("recording", "frame", "entity", "state")
    low, high = np.quantile(rows, [(1 - interval) / 2, (1 + interval) / 2], axis=-1)
    return pd.DataFrame(
        {
            "scene": np.repeat(dataset["scene"].values[scene], num_states),
            "entity": np.repeat(constant["entity_name"].values[scene, entity], num_states),
            "state": np.tile(dataset["state"].values, len(scene)),
            "recorded": observed.values[:, 0, :num_entities][present].ravel(),
            "mean": rows.mean(-1),
            "sd": rows.std(-1, ddof=1) if rows.shape[-1] > 1 else np.full(len(rows), np.nan),
            "low": low,
            "high": high,
        }
    )
