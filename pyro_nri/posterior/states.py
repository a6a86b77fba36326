"""Do the chains agree about states: initial states of hidden entities, and of recorded ones where these are in doubt.

Hidden entities of a scene are exchangeable: chains that call one place "hidden 1" and "hidden 2" do not disagree. So
they are renamed first, draw by draw, with their edges.
"""

import itertools

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import quantity_diagnostics
from pyro_nri.posterior.recorded import GROUP
from pyro_nri.scenes import edges

HIDDEN = "hidden_posterior"
_NUM_ROUNDS = 5  # of renaming; the names of all draws settle in two or three


def states_frame(tree: xr.DataTree) -> pd.DataFrame:
    """R-hat and effective sample size of initial states, the worst of each scene.

    Every component of the state of every entity counts, by its normalised ranks, see
    :func:`~pyro_nri.posterior.diagnostics.quantity_diagnostics`.

    Args:
        tree: a posterior whose hidden entities are named alike in all draws, see :func:`renamed_hidden`.

    Returns:
        Column ``scene``, and of hidden entities ``hidden_r_hat_max`` and ``hidden_ess_min``, of recorded ones
        ``recorded_r_hat_max`` and ``recorded_ess_min``, where the posterior has any: NaN for scenes without, R-hat
        infinite where chains stay at states of their own; effective sample size 0 where no chain ever moved.
    """
    frame = pd.DataFrame({"scene": group(tree, "sample_stats")["scene"].values})
    for name, place, variable in (("hidden", HIDDEN, "hidden_state"), ("recorded", GROUP, "initial_state")):
        if place not in tree.children:
            continue
        state = group(tree, place)[variable].transpose("chain", "draw", "scene", ...).values
        state = state.reshape(*state.shape[:3], -1)  # [C, S, G, quantities]
        known = np.isfinite(state).all((0, 1))
        found = quantity_diagnostics(np.where(known, state, 0.0))
        stuck = known & (state == state[:1, :1]).all((0, 1)) & (state.shape[0] * state.shape[1] > 1)
        frame[f"{name}_r_hat_max"] = _worst(np.where(known, found.r_hat, np.nan), np.fmax)
        frame[f"{name}_ess_min"] = _worst(np.where(known, np.where(stuck, 0.0, found.ess), np.nan), np.fmin)
    return frame


def renamed_hidden(tree: xr.DataTree) -> xr.DataTree:
    """The posterior with the hidden entities of each scene named alike in all draws, states and edges.

    Each draw takes the order in which its states are nearest to the mean of all, every component in units of its
    spread; this is repeated until it settles. Paths are left as they are.

    Args:
        tree: a posterior.
    """
    if HIDDEN not in tree.children or tree.children[HIDDEN].sizes["hidden"] < 2:
        return tree
    hidden, posterior = group(tree, HIDDEN), group(tree, "posterior")
    state = hidden["hidden_state"].transpose("chain", "draw", "scene", "hidden", "state").values.copy()
    types = posterior["edge_type"].transpose("chain", "draw", "edge").values.copy()
    num_entities = group(tree, "constant_data").sizes["entity"]
    first = num_entities - state.shape[3]
    sender, receiver = (ends(num_entities).numpy() for ends in (edges.senders, edges.receivers))
    scene, edge = posterior["scene_index"].values, posterior["edge_index"].values
    for g, number in enumerate(hidden["num_hidden"].values.tolist()):
        if number < 2 or not state.size:
            continue
        orders = list(itertools.permutations(range(number)))
        chosen = _orders(state[:, :, g, :number], np.array(orders))  # [C, S]
        columns = np.flatnonzero(scene == g)
        own = edge[columns]
        old_state, old_types = state[:, :, g].copy(), types[:, :, columns]
        for place, order in enumerate(orders):
            here = chosen == place
            entity = np.arange(num_entities)
            entity[first : first + number] = first + np.array(order)
            i, j = entity[sender[own]], entity[receiver[own]]
            from_edge = i * (num_entities - 1) + j - (j > i)  # row-major by sender, self-pairs left out
            state[here, g, :number] = old_state[here][:, list(order)]
            rows = np.nonzero(here)
            types[rows[0][:, None], rows[1][:, None], columns] = old_types[here][:, np.searchsorted(own, from_edge)]
    renamed = tree.copy()
    dims = ("chain", "draw", "scene", "hidden", "state")
    renamed[HIDDEN] = xr.DataTree(hidden.assign(hidden_state=(dims, state)))
    renamed["posterior"] = xr.DataTree(
        posterior.assign(edge_type=(("chain", "draw", "edge"), types, posterior["edge_type"].attrs))
    )
    return renamed


def _orders(state: NDArray[np.float64], orders: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of the order of each draw ``[C, S]`` for states ``[C, S, n, D]`` and orders ``[n!, n]``."""
    spread = state.std((0, 1, 2))
    scaled = state / np.where(spread > 0, spread, 1)
    reference = scaled[0, 0]
    chosen = np.zeros(state.shape[:2], np.int64)
    for _ in range(_NUM_ROUNDS):
        apart = np.stack([((scaled[:, :, order] - reference) ** 2).sum((-1, -2)) for order in orders])
        chosen = apart.argmin(0)
        named = np.take_along_axis(scaled, orders[chosen][..., None], axis=2)
        reference = named.mean((0, 1))
    return chosen


def _worst(values: NDArray[np.float64], of: np.ufunc) -> NDArray[np.float64]:
    """Largest or smallest of the known numbers of each row; NaN where there is none."""
    return np.asarray(of.reduce(values, axis=1, initial=np.nan))
