"""Do two groups of scenes differ in structure, by how much, and is that more than chance?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from pyro_nri.posterior.correspondence import check_posterior, common_types, shared_edges
from pyro_nri.posterior.permutation import (
    Summary,
    benjamini_hochberg,
    difference_interval,
    gradient,
    group_interval,
    jackknife_error,
    label_p_values,
    slope_interval,
    slope_p_value,
)
from pyro_nri.posterior.pool import Pool, make_pool, redrawn
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.posterior.quantities import (
    DEFAULT_QUANTITIES,
    QUANTITIES,
    Model,
    Quantity,
    edge_model,
    log_rates,
    other_models,
    single_edge_model,
)

#: Columns of every table of comparisons.
COLUMNS = (
    *("quantity", "type", "group_a", "group_b", "effect", "low", "high", "p_value", "p_adjusted"),
    *("num_scenes_a", "num_scenes_b"),
)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Choice:
    """What is asked for.

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


def compare_groups(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    names: tuple[str, str] = ("a", "b"),
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    types: Sequence[int] | None = None,
    relabel: Sequence[int] | None = None,
    level: float = 0.95,
    num_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Differences in structure between two groups of scenes, with intervals and permutation p-values.

    Each group's numbers are those under which the data of all its scenes are likeliest, the prior that the posteriors
    were drawn under divided out (:mod:`pyro_nri.posterior.tilting`): averages of posteriors under one prior would
    shrink every difference towards zero. The groups are taken as samples of scenes: intervals and p-values are for
    other scenes of the same kinds, and given the learned modules.

    - "density": share of edges of the type. "degree": mean number of such edges at an entity.
    - "reciprocity": correlation of the two edges of a pair in having the type (Garlaschelli & Loffredo 2004); 0 for
      independent edges, whatever their density.
    - "dispersion": variance of in- and out-degrees over entities, in units of that of independent edges.
    - "motifs": transitive and cyclic triads as shares of those that are possible; a higher density alone makes more.
      "triads": the sixteen classes one by one.
    - "edges": the rate of each single edge, for scenes of the same entities; a family of its own.

    Args:
        a: posterior of one group, with the prior that it was drawn under.
        b: of the other, inferred with the same model.
        names: what the groups are called.
        quantities: which of the above.
        types: codes of the types to compare, in the labels of ``a``; all by default.
        relabel: for each type of ``b`` that of ``a`` which it stands for, if they were inferred with different models.
        level: of the intervals.
        num_permutations: relabellings of scenes; all of them are used where there are no more.
        seed: fixes relabellings and drawn base measures.

    Returns:
        A row for each quantity and type: ``quantity``, ``type`` (code in ``a``), ``group_a``, ``group_b``, ``effect``
        (first group minus second), ``low`` and ``high`` (Welch's interval; NaN where a group has one scene),
        ``p_value`` (studentised permutation test), ``p_adjusted`` (Benjamini and Hochberg over all rows, those of single
        edges apart), ``num_scenes_a``, ``num_scenes_b``. NaN where a number is undefined, such as the reciprocity of a
        type that no scene has.

    Raises:
        ValueError: the posteriors cannot be compared, or an argument is out of range.
    """
    choice = _Choice(tuple(quantities), types, level, num_permutations, seed)
    for tree, name in zip((a, b), names, strict=True):
        check_posterior(tree, name)
    label = common_types(a, b, names, relabel)
    pool = make_pool([a, b], [edge_probability(a)[0], edge_probability(b)[0]], [np.arange(len(label)), label])
    num_a = a["sample_stats"].sizes["scene"]
    is_a = np.arange(len(pool.sizes)) < num_a
    return _compare(pool, [a, b], is_a, names, choice)


def split_groups(
    tree: xr.DataTree,
    labels: ArrayLike,
    *,
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    types: Sequence[int] | None = None,
    level: float = 0.95,
    num_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """The same for scenes of one posterior: every two of the groups that ``labels`` ``[G]`` make, in sorted order.

    Raises:
        ValueError: there are fewer than two groups, or see :func:`compare_groups`.
    """
    choice = _Choice(tuple(quantities), types, level, num_permutations, seed)
    check_posterior(tree, "the posterior")
    given = np.asarray(labels)
    groups = sorted(set(given.tolist()))
    num_scenes = tree["sample_stats"].sizes["scene"]
    if given.shape != (num_scenes,):
        raise ValueError(f"labels must have one entry for each of {num_scenes} scenes, found {list(given.shape)}")
    if len(groups) < 2:
        raise ValueError(f"labels must make at least two groups, found {len(groups)}: {groups[0]!r}")
    frames = []
    for i, first in enumerate(groups):
        for second in groups[i + 1 :]:
            both = np.isin(given, [first, second])
            part = select_scenes(tree, both)
            pool = make_pool([part], [edge_probability(part)[0]])
            names = (str(first), str(second))
            is_a = given[both] == first
            frames.append(_compare(pool, [part], is_a, names, choice))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(p_adjusted=_adjusted(frame))


def compare_covariate(
    tree: xr.DataTree,
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
        tree: a posterior.
        covariate: ``[G]``, one finite number for each scene.
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
    choice = _Choice(tuple(quantities), types, level, num_permutations, seed)
    check_posterior(tree, "the posterior")
    x = np.asarray(covariate, np.float64)
    num_scenes = tree["sample_stats"].sizes["scene"]
    if x.shape != (num_scenes,) or not np.isfinite(x).all():
        raise ValueError(f"covariate must have one finite number for each of {num_scenes} scenes, found {x.tolist()[:3]}")
    if num_scenes < 4 or np.ptp(x) == 0:
        raise ValueError(f"covariate must take different values over at least four scenes, found {num_scenes} scenes")
    pool = make_pool([tree], [edge_probability(tree)[0]])
    rows = []
    for model in _models(pool, [tree], choice):
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
                rows.append(_row(f"{quantity.name} {kind}", quantity.type, (name, ""), found, p_value, (num_scenes, 0)))
    return comparison_table(rows)


def select_scenes(tree: xr.DataTree, chosen: NDArray[np.bool_]) -> xr.DataTree:
    """A posterior of some of its scenes only, bool ``[G]``; what comparisons do not need is left out."""
    posterior, constant = tree["posterior"].to_dataset(), tree["constant_data"].to_dataset()
    edge = chosen[posterior["scene_index"].values]
    number = np.cumsum(chosen) - 1
    scene_index = number[posterior["scene_index"].values[edge]]
    names = tree["sample_stats"]["scene"].values[chosen]
    recording = np.isin(constant["structure_group"].values, names)
    parts: dict[str, xr.Dataset] = {
        "/": xr.Dataset(attrs=tree.attrs),
        "posterior": posterior.isel(edge=edge).assign_coords(scene_index=("edge", scene_index)),
        "sample_stats": tree["sample_stats"].to_dataset().isel(scene=chosen),
        "constant_data": constant.isel(edge=edge, recording=recording),
    }
    if "edge_posterior" in tree.children:
        known = tree["edge_posterior"].to_dataset().isel(scene=chosen, edge=edge)
        parts["edge_posterior"] = known.assign_coords(scene_index=("edge", scene_index))
    return xr.DataTree.from_dict(parts)


def comparison_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Rows as a table, p-values adjusted."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    text = {"quantity": "str", "group_a": "str", "group_b": "str"}
    numbers = dict.fromkeys(("effect", "low", "high", "p_value"), "float64")
    counts = dict.fromkeys(("type", "num_scenes_a", "num_scenes_b"), "int64")
    frame = frame.astype({**text, **numbers, **counts})
    return frame.assign(p_adjusted=_adjusted(frame))


def _adjusted(frame: pd.DataFrame) -> Floats:
    single = frame["quantity"].str.startswith("edge ").to_numpy(bool)
    result = np.full(len(frame), np.nan)
    for family in (single, ~single):
        result[family] = benjamini_hochberg(frame["p_value"].to_numpy()[family])
    return result


def _models(pool: Pool, trees: list[xr.DataTree], choice: _Choice) -> list[Model]:
    wanted, rng = set(choice.quantities), np.random.default_rng(choice.seed)
    types = range(pool.num_types) if choice.types is None else choice.types
    if unknown := [k for k in types if not 0 <= k < pool.num_types]:
        raise ValueError(f"types must be between 0 and {pool.num_types - 1}, found {unknown[0]}")
    first = edge_model(pool, wanted, types)
    log_rate = log_rates(pool, first.fit())
    models = [first]
    if wanted - {"density", "degree"}:
        pool = redrawn(pool, log_rate, rng)
        models += other_models(pool, log_rate, wanted, types, rng)
    if "edges" in wanted:
        models += [single_edge_model(pool, log_rate, edge, ends, types) for edge, ends in enumerate(shared_edges(trees))]
    return models


def _compare(
    pool: Pool,
    trees: list[xr.DataTree],
    is_a: NDArray[np.bool_],
    names: tuple[str, str],
    choice: _Choice,
) -> pd.DataFrame:
    counts = (int(is_a.sum()), int((~is_a).sum()))
    tests: list[tuple[Summary, Floats]] = []
    found: list[tuple[Quantity, tuple[float, float, float]]] = []
    for model in _models(pool, trees, choice):
        if not model.quantities:
            continue
        pooled, groups = model.moments(), [model.estimate(is_a), model.estimate(~is_a)]
        for quantity in model.quantities:
            a, b = (_number(quantity, mean, without, choice.level) for mean, without in groups)
            found.append((quantity, difference_interval(a, b)))
            tests.append((quantity.summary, pooled))
    rng = np.random.default_rng(choice.seed)
    p_values = label_p_values(tests, is_a, num_permutations=choice.num_permutations, rng=rng)
    return comparison_table(
        [
            _row(quantity.name, quantity.type, names, interval, p_value, counts)
            for (quantity, interval), p_value in zip(found, p_values.tolist(), strict=True)
        ]
    )


def _number(quantity: Quantity, mean: Floats, without: Floats, level: float) -> tuple[float, float, float]:
    """A group's number and its interval, from its mean moments and those without each scene."""
    value, number = float(quantity.summary(mean)), len(without)
    error = jackknife_error(quantity.summary, without) if number > 1 else np.nan
    trials = 0.0 if quantity.unit is None else number * mean[len(mean) - 2 + quantity.unit]
    interval = group_interval(value, error, number, level=level, scale=quantity.scale, num_units=trials)
    return value, *interval


def _row(
    quantity: str,
    type_: int,
    names: tuple[str, str],
    found: tuple[float, float, float],
    p_value: float,
    counts: tuple[int, int],
) -> dict[str, Any]:
    effect, low, high = found
    values = (quantity, type_, *names, effect, low, high, p_value, np.nan, *counts)
    return dict(zip(COLUMNS, values, strict=True))


def _rank_interval(x: Floats, y: Floats, level: float) -> tuple[float, float, float]:
    """Correlation of ranks and its interval (Bonett & Wright 2000: variance (1 + r² / 2) / (n - 3) of artanh r)."""
    if np.ptp(x) == 0 or np.ptp(y) == 0 or np.isnan(y).any():
        return np.nan, np.nan, np.nan
    r = float(np.corrcoef(x, y)[0, 1])
    half = float(stats.norm.ppf((1 + level) / 2)) * np.sqrt((1 + r**2 / 2) / (len(x) - 3))
    centre = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return r, float(np.tanh(centre - half)), float(np.tanh(centre + half))
