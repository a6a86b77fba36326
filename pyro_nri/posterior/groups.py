"""Do two groups of scenes differ in structure, by how much, and is that more than chance?"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.comparison_table import Choice, adjusted, comparison_row, comparison_table
from pyro_nri.posterior.correspondence import check_posterior, common_types, one_labelling, shared_edges
from pyro_nri.posterior.intervals import difference_interval, group_interval, jackknife_error
from pyro_nri.posterior.patterns import other_models
from pyro_nri.posterior.permutation import Floats, Summary, label_p_values
from pyro_nri.posterior.pool import Pool, make_pool, redrawn
from pyro_nri.posterior.quantities import (
    DEFAULT_QUANTITIES,
    Model,
    Quantity,
    at_rates,
    edge_model,
    log_rates,
    single_edge_model,
)
from pyro_nri.posterior.subsets import select_scenes


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
    other scenes of the same kinds, and given the learned modules. In simulated studies of 20 scenes against 20
    (``benchmarks/comparison.py``) tests keep their level, and 95 % intervals cover 93 to 98 %, those of motifs 92 to
    98 %, least where data are weakest.

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
        (first group minus second), ``low`` and ``high`` (its interval; NaN where a group has one scene), ``p_value``
        (studentised permutation test), ``p_adjusted`` (Benjamini and Hochberg over all rows, those of single edges
        apart), ``num_scenes_a``, ``num_scenes_b``. NaN where a number is undefined, such as the reciprocity of a type
        that no scene has.

    Raises:
        ValueError: the posteriors cannot be compared, or an argument is out of range.
    """
    choice = Choice(tuple(quantities), types, level, num_permutations, seed)
    for tree, name in zip((a, b), names, strict=True):
        check_posterior(tree, name)
    label = common_types(a, b, names, relabel)
    pool = make_pool([a, b], [np.arange(len(label)), label])
    num_a = a["sample_stats"].sizes["scene"]
    is_a = np.arange(len(pool.sizes)) < num_a
    return _compare(pool, [a, b], is_a, names, choice)


def split_groups(
    trees: xr.DataTree | Sequence[xr.DataTree],
    labels: ArrayLike,
    *,
    quantities: Sequence[str] = DEFAULT_QUANTITIES,
    types: Sequence[int] | None = None,
    level: float = 0.95,
    num_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Differences between every two of the groups that labels make of the scenes of one or more posteriors.

    Args:
        trees: posteriors by one model.
        labels: the group of each scene, one posterior after the other, ``[G]``; groups are compared in sorted order.
        quantities: this and the following as for :func:`compare_groups`.
        types: see there.
        level: see there.
        num_permutations: see there.
        seed: see there.

    Returns:
        The columns of :func:`compare_groups`; p-values are adjusted over all pairs of groups together.

    Raises:
        ValueError: there are fewer than two groups, or see :func:`compare_groups`.
    """
    choice = Choice(tuple(quantities), types, level, num_permutations, seed)
    parts = [trees] if isinstance(trees, xr.DataTree) else list(trees)
    relabels = one_labelling(parts)
    given = np.asarray(labels)
    counts = [part["sample_stats"].sizes["scene"] for part in parts]
    if given.shape != (sum(counts),):
        raise ValueError(f"labels must have one entry for each of {sum(counts)} scenes, found {list(given.shape)}")
    groups = sorted(set(given.tolist()))
    if len(groups) < 2:
        raise ValueError(f"labels must make at least two groups, found one, {groups[0]!r}")
    owner = np.repeat(np.arange(len(parts)), counts)
    frames = []
    for first, second in combinations(groups, 2):
        both = np.isin(given, [first, second])
        used = [index for index in range(len(parts)) if both[owner == index].any()]
        chosen = [select_scenes(parts[index], both[owner == index]) for index in used]
        pool = make_pool(chosen, [relabels[index] for index in used])
        frames.append(_compare(pool, chosen, given[both] == first, (str(first), str(second)), choice))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(p_adjusted=adjusted(frame))


def models_of(pool: Pool, trees: list[xr.DataTree], choice: Choice) -> list[Model]:
    """The models that answer what is asked for.

    Raises:
        ValueError: a type does not exist, or single edges are asked for of scenes with different entities.
    """
    wanted, rng = set(choice.quantities), np.random.default_rng(choice.seed)
    types = range(pool.num_types) if choice.types is None else choice.types
    if unknown := [k for k in types if not 0 <= k < pool.num_types]:
        raise ValueError(f"types must be between 0 and {pool.num_types - 1}, found {unknown[0]}")
    first = edge_model(pool, wanted, types)
    log_rate = log_rates(pool, first.fit())
    models = [first]
    if not wanted - {"density", "degree"}:
        return models
    pool = at_rates(redrawn(pool, log_rate, rng), log_rate)
    models += other_models(pool, log_rate, wanted, types, rng)
    if "edges" in wanted:
        ends = shared_edges(trees)
        models += [single_edge_model(pool, log_rate, edge, each, types) for edge, each in enumerate(ends)]
    return models


def _compare(
    pool: Pool,
    trees: list[xr.DataTree],
    is_a: NDArray[np.bool_],
    names: tuple[str, str],
    choice: Choice,
) -> pd.DataFrame:
    counts = (int(is_a.sum()), int((~is_a).sum()))
    tests: list[tuple[Summary, Floats]] = []
    found: list[tuple[Quantity, tuple[float, float, float]]] = []
    for model in models_of(pool, trees, choice):
        if not model.quantities:
            continue
        pooled, groups = model.moments(), [model.estimate(is_a), model.estimate(~is_a)]
        for quantity in model.quantities:
            num_fitted = len(model.start) if model.cautious else 1
            a, b = (_number(quantity, *found_of, num_fitted, choice.level) for found_of in groups)
            found.append((quantity, difference_interval(a, b)))
            tests.append((quantity.summary, pooled))
    rng = np.random.default_rng(choice.seed)
    p_values = label_p_values(tests, is_a, num_permutations=choice.num_permutations, rng=rng)
    return comparison_table(
        [
            comparison_row(quantity.name, quantity.type, names, interval, p_value, counts)
            for (quantity, interval), p_value in zip(found, p_values.tolist(), strict=True)
        ]
    )


def _number(
    quantity: Quantity, mean: Floats, without: list[Floats], num_fitted: int, level: float
) -> tuple[float, float, float]:
    """A group's number and its interval, from its mean moments and those without each scene, see ``Model.estimate``."""
    value, number = float(quantity.summary(mean)), len(without[0])
    error = float(np.max([jackknife_error(quantity.summary, each) for each in without])) if number > 1 else np.nan
    trials = 0.0 if quantity.trials is None else number * float(quantity.trials(mean))
    interval = group_interval(
        value, error, number, level=level, scale=quantity.scale, num_units=trials, num_fitted=num_fitted
    )
    return value, *interval
