"""What is known of each draw beside its structure, as a group of the posterior file."""

import re
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.inference.draws import Draws


class Moves(NamedTuple):
    """The steps that led to draws.

    Attributes:
        accepted: bool ``[C, S, G]``.
        proposed: bool ``[C, S, G]``.
        kind: int8 ``[S]``.
    """

    accepted: NDArray[np.bool_]
    proposed: NDArray[np.bool_]
    kind: NDArray[np.int8]


def sample_stats(draws: Draws) -> xr.Dataset:
    """The group ``sample_stats``; draws of an exact posterior are independent and have no moves."""
    num_chains, num_draws = draws.log_joint.shape[:2]

    def every_chain(values: NDArray[Any]) -> NDArray[Any]:
        return np.broadcast_to(values, (num_chains, num_draws)).copy()

    axes, short = ("chain", "draw", "scene"), ("chain", "draw")
    moves = {
        "accepted": (axes, draws.accepted),
        "proposed": (axes, draws.proposed),
        "move_kind": (short, every_chain(draws.move_kind), flags(draws.move_names)),
    }
    return xr.Dataset(
        {
            "log_joint": (axes, draws.log_joint),
            **(moves if draws.method != "exact" else {}),
            "temperature": (short, every_chain(draws.temperature)),
        },
        coords={
            "chain": np.arange(num_chains),
            "draw": np.arange(num_draws),
            "scene": np.array(draws.group_names, dtype=str),
        },
    )


def moves_of(stats: xr.Dataset, method: str) -> Moves:
    """The moves that ``sample_stats`` tells of: none if the method is "exact", even in files of earlier versions."""
    if method == "exact":
        nothing = np.zeros([stats.sizes[axis] for axis in ("chain", "draw", "scene")], bool)
        return Moves(nothing, nothing, np.zeros(stats.sizes["draw"], np.int8))
    accepted, proposed = (stats[name].values.astype(bool, copy=False) for name in ("accepted", "proposed"))
    return Moves(accepted, proposed, stats["move_kind"].values[0].astype(np.int8))


def flags(names: tuple[str, ...]) -> dict[str, Any]:
    """CF attributes that say what the codes 0, 1, ... mean; a blank within a name becomes an underscore."""
    if not names:
        return {}
    meanings = " ".join(re.sub(r"\s+", "_", name) for name in names)
    return {"flag_values": np.arange(len(names), dtype=np.int8), "flag_meanings": meanings}
