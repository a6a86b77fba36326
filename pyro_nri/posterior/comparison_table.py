"""The table of every comparison: its columns, its rows, and what can be asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyro_nri.posterior.permutation import Floats, benjamini_hochberg
from pyro_nri.posterior.quantities import QUANTITIES

#: Columns of every table of comparisons.
COLUMNS = (
    *("quantity", "type", "group_a", "group_b", "effect", "low", "high", "p_value", "p_adjusted"),
    *("num_scenes_a", "num_scenes_b"),
)


@dataclass(frozen=True)
class Choice:
    """What is asked for.

    Attributes:
        quantities: names, see :func:`~pyro_nri.posterior.groups.compare_groups`.
        types: codes of types; all if None.
        level: of intervals.
        num_permutations: how often labels are dealt anew.
        seed: fixes these and drawn base measures.

    Raises:
        ValueError: an argument is out of range.
    """

    quantities: tuple[str, ...]
    types: Sequence[int] | None
    level: float
    num_permutations: int
    seed: int

    def __post_init__(self) -> None:
        known = (*QUANTITIES, "edges")
        for name in self.quantities:
            if name not in known:
                raise ValueError(f"quantities must be among {', '.join(known)}, found {name!r}")
        if not self.quantities:
            raise ValueError("quantities is empty, at least one is needed")
        if not 0 < self.level < 1:
            raise ValueError(f"level must lie between 0 and 1, found {self.level}")
        if self.num_permutations < 1:
            raise ValueError(f"num_permutations must be at least 1, found {self.num_permutations}")


def comparison_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table, p-values adjusted."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    text = {"quantity": "str", "group_a": "str", "group_b": "str"}
    numbers = dict.fromkeys(("effect", "low", "high", "p_value"), "float64")
    counts = dict.fromkeys(("type", "num_scenes_a", "num_scenes_b"), "int64")
    frame = frame.astype({**text, **numbers, **counts})
    return frame.assign(p_adjusted=adjusted(frame))


def adjusted(frame: pd.DataFrame) -> Floats:
    """P-values by Benjamini and Hochberg; rates of single edges are a family of their own."""
    single = frame["quantity"].str.startswith("edge ").to_numpy(bool)
    result = np.full(len(frame), np.nan)
    for family in (single, ~single):
        result[family] = benjamini_hochberg(frame["p_value"].to_numpy()[family])
    return result


def comparison_row(
    quantity: str,
    type_: int,
    names: tuple[str, str],
    found: tuple[float, float, float],
    p_value: float,
    counts: tuple[int, int],
) -> dict[str, Any]:
    """One row; ``found`` are effect, low and high, ``counts`` the scenes of both groups."""
    effect, low, high = found
    values = (quantity, type_, *names, effect, low, high, p_value, np.nan, *counts)
    return dict(zip(COLUMNS, values, strict=True))
