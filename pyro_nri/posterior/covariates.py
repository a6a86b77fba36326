"""How does structure change with a number that is known of each scene?"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike
from scipy import stats

from pyro_nri.posterior.comparison_table import Choice, comparison_row, comparison_table
from pyro_nri.posterior.correspondence import one_labelling
from pyro_nri.posterior.groups import models_of
from pyro_nri.posterior.intervals import slope_interval
from pyro_nri.posterior.permutation import Floats, gradient, slope_p_value
from pyro_nri.posterior.pool import make_pool
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.quantities import DEFAULT_QUANTITIES


def compare_covariate(
    trees: xr.DataTree | Sequence[xr.DataTree],
    covariate: ArrayLike,
    *,
    name: str = "covariate",
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    types: Sequence[int] | None = None,
    level: float = 0.95,
    num_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How structure changes with a number known of each scene.

    Each scene's pseudo-observation of a quantity (:mod:`pyro_nri.posterior.tilting`) is regressed on the covariate by
    least squares, which weak data make uncertain, but do not shrink. The rank correlation beside it is one of
    pseudo-observations: weak data make it smaller than that of the structures themselves.

    Args:
        trees: posteriors by one model.
        covariate: one finite number for each scene, one posterior after the other, ``[G]``.
        name: what it is called.
        quantities: as for :func:`compare_groups`.
        types: as for :func:`compare_groups`.
        level: of the intervals.
        num_permutations: how often the covariate is dealt anew to the scenes.
        seed: fixes these and drawn base measures.

    Returns:
        Two rows for each quantity and type, "... slope" (change of the quantity for one unit of the covariate; interval
        robust to unequal variances) and "... rank correlation" (Spearman's; interval by Fisher's transformation), in
        the columns of :func:`compare_groups`: ``group_a`` is the covariate's name, ``group_b`` is empty, and
        ``num_scenes_b`` is 0.

    Raises:
        ValueError: the covariate does not fit the scenes or does not vary, or see :func:`compare_groups`.
    """
    choice = Choice(tuple(quantities), types, level, num_permutations, seed)
    parts = [trees] if isinstance(trees, xr.DataTree) else list(trees)
    relabels = one_labelling(parts)
    x = np.asarray(covariate, np.float64)
    num_scenes = sum(part["sample_stats"].sizes["scene"] for part in parts)
    if x.shape != (num_scenes,) or not np.isfinite(x).all():
        raise ValueError(f"covariate must have a finite number for each of {num_scenes} scenes, found {x.tolist()[:3]}")
    if num_scenes < 4 or np.ptp(x) == 0:
        raise ValueError(f"covariate must take different values over at least four scenes, found {num_scenes} scenes")
    pool = make_pool(parts, [edge_probability(part)[0] for part in parts], relabels)
    rows = []
    for model in models_of(pool, parts, choice):
        moments = model.moments()
        mean = moments.mean(0)
        for quantity in model.quantities:
            value = quantity.summary(mean) + (moments - mean) @ gradient(quantity.summary, mean)  # [G]
            rank_x, rank_y = stats.rankdata(x), stats.rankdata(np.round(value, 9))
            for kind, found, u, v in (
                ("slope", slope_interval(x, value, level), x, value),
                ("rank correlation", _rank_interval(rank_x, rank_y, level), rank_x, rank_y),
            ):
                p_value = np.nan
                if np.isfinite(value).all():
                    rng = np.random.default_rng(seed)
                    p_value = slope_p_value(u, v, num_permutations=num_permutations, rng=rng)
                rows.append(
                    comparison_row(
                        f"{quantity.name} {kind}", quantity.type, (name, ""), found, p_value, (num_scenes, 0)
                    )
                )
    return comparison_table(rows)


def _rank_interval(x: Floats, y: Floats, level: float) -> tuple[float, float, float]:
    """Correlation of ranks and its interval (Bonett & Wright 2000: variance (1 + r² / 2) / (n - 3) of artanh r)."""
    if np.ptp(x) == 0 or np.ptp(y) == 0 or np.isnan(y).any():
        return np.nan, np.nan, np.nan
    r = float(np.corrcoef(x, y)[0, 1])
    half = float(stats.norm.ppf((1 + level) / 2)) * np.sqrt((1 + r**2 / 2) / (len(x) - 3))
    centre = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return r, float(np.tanh(centre - half)), float(np.tanh(centre + half))
