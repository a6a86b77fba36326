"""One door to comparisons: posteriors of the same scenes, groups of scenes, a column that is known of each scene.

Two conditions in two tables of trajectories; the types are learned from every other scene, and compared on the rest:

```python
import pandas as pd
import pyro_nri as nri

table = pd.concat(pd.read_csv(f"{name}.csv").assign(condition=name) for name in ("control", "treated"))
table["scene"] = table["condition"] + " " + table["scene"].astype(str)
scenes = nri.from_dataframe(table)
found = nri.fit(scenes[::2], spec=nri.ModelSpec(2, dynamics="pair-forces"), seed=0)
posterior = nri.to_datatree(nri.infer(found.model, scenes[1::2], seed=0), scenes[1::2])
frame = nri.comparison_frame(posterior, by="condition", table=table)
```
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from pyro_nri.posterior.compare import edge_differences
from pyro_nri.posterior.comparison_table import comparison_row, comparison_table
from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.posterior.covariates import compare_covariate
from pyro_nri.posterior.distances import scene_distances
from pyro_nri.posterior.groups import compare_groups, split_groups
from pyro_nri.posterior.permutation import Floats, sign_p_value
from pyro_nri.posterior.same_recordings import check_recordings
from pyro_nri.posterior.subsets import add_columns, scene_values

#: What is compared.
MODES = ("same-scenes", "groups")


def comparison_frame(
    a: xr.DataTree,
    b: xr.DataTree | None = None,
    *,
    mode: str = "groups",
    by: str | None = None,
    table: pd.DataFrame | None = None,
    names: tuple[str, str] = ("a", "b"),
    **options: Any,
) -> pd.DataFrame:
    """Compare structures, whatever tells the groups apart, in one table.

    Args:
        a: a posterior.
        b: another one, by the same model.
        mode: "groups": the two posteriors are of two groups of scenes, see :func:`compare_groups`. "same-scenes": they
            are two posteriors of the same scenes, by other models, priors or data, see :func:`compare_posteriors`.
        by: in place of the posteriors, a column that is known of each scene tells the groups apart, in one posterior or
            two: a variable (recording) of ``constant_data``, see :func:`add_columns`. Text, truth values and numbers
            that take two values make groups, every two of which are compared; other numbers are a covariate, see
            :func:`compare_covariate`.
        table: where the column is, if the posteriors do not have it: with a column ``scene``.
        names: what the posteriors are called.
        options: further arguments of these functions, such as ``quantities``, ``level``, ``seed``.

    Returns:
        Columns ``quantity``, ``type``, ``group_a``, ``group_b``, ``effect``, ``low``, ``high``, ``p_value``,
        ``p_adjusted``, ``num_scenes_a``, ``num_scenes_b``.

    Raises:
        ValueError: an argument is missing or does not go with the others, or the posteriors cannot be compared.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, found {mode!r}")
    if table is not None and by is None:
        raise ValueError("table goes with by, the column that tells the groups apart")
    if mode == "same-scenes":
        if b is None:
            raise ValueError("mode 'same-scenes' compares two posteriors, found one")
        if by is not None:
            raise ValueError("by goes with mode 'groups', found it with 'same-scenes'")
        return compare_posteriors(a, b, names=names, **options)
    if by is None:
        if b is None:
            raise ValueError("one posterior is no two groups: give another one, or by, a column that splits its scenes")
        return compare_groups(a, b, names=names, **options)
    trees = [tree if table is None else add_columns(tree, table) for tree in (a, b) if tree is not None]
    values = [scene_values(tree, by) for tree in trees]
    every = np.concatenate(values)
    if every.dtype.kind in "iuf" and len(np.unique(every)) > 2:
        return compare_covariate(trees, every, name=by, **options)
    return split_groups(trees, every, **options)


def compare_posteriors(
    a: xr.DataTree,
    b: xr.DataTree,
    *,
    names: tuple[str, str] = ("a", "b"),
    relabel: Sequence[int] | None = None,
    level: float = 0.95,
    num_permutations: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """How far apart two posteriors of the same scenes are on average over scenes, such as by two models or priors.

    - "density": posterior mean share of edges of the type; the p-value is of paired differences, signs turned round.
    - "edge probability distance": mean absolute difference of the probability of the type at an edge.
    - "total variation" and "Jensen-Shannon divergence" of whole graphs, less what chance alone does to the first, and
      "excess graph distance": expected number of edges that differ between a graph of one and a graph of the other,
      less the mean of those between two graphs of the same. All types together (``type`` is -1), with no p-value: no
      two posteriors are exactly the same.

    Args:
        a: a posterior.
        b: another one of some of the same scenes; only common ones count.
        names: what they are called.
        relabel: for each type of ``b`` that of ``a`` which it stands for, if they were inferred with different models.
        level: of the intervals, Student's over scenes.
        num_permutations: how often signs are turned round.
        seed: fixes these.

    Returns:
        The columns of :func:`comparison_frame`. Scene by scene: :func:`scene_distances`; edge by edge:
        :func:`edge_differences`.

    Raises:
        ValueError: the posteriors cannot be compared, or scenes of one name move otherwise: they are not the same.
    """
    edges = edge_differences(a, b, relabel=relabel)
    others = scenes_of(b)
    if others.time_step == scenes_of(a).time_step:  # frames of other data may not be the same ones
        check_recordings(a, others, int(group(b, "observed_data")["frame"][0]))
    scenes = scene_distances(a, b, relabel=relabel, seed=seed)
    number = len(scenes)

    def row(quantity: str, code: int, values: Floats, p_value: float = np.nan) -> dict[str, Any]:
        centre = float(values.mean())
        half = np.nan
        if number > 1:
            half = stats.t.ppf((1 + level) / 2, number - 1) * float(values.std(ddof=1)) / np.sqrt(number)
        found = (centre, centre - half, centre + half)
        return comparison_row(quantity, code, names, found, p_value, (number, number))

    rows, gaps = [], []
    for code in sorted(edges["edge_type"].unique().tolist()):
        part = edges[edges["edge_type"] == code]
        mean = part.groupby("scene", sort=False)["difference"].mean().to_numpy(np.float64)
        gap = part["difference"].abs().groupby(part["scene"], sort=False).mean().to_numpy(np.float64)
        rng = np.random.default_rng(seed)
        p_value = sign_p_value(mean, num_permutations=num_permutations, rng=rng) if number > 1 else np.nan
        rows.append(row("density", code, mean, p_value))
        gaps.append(row("edge probability distance", code, gap))
    within = (scenes["distance_a"] + scenes["distance_b"]) / 2
    return comparison_table(
        [
            *rows,
            *gaps,
            row("total variation", -1, (scenes["total_variation"] - scenes["chance"]).to_numpy()),
            row("Jensen-Shannon divergence", -1, scenes["jensen_shannon"].to_numpy()),
            row("excess graph distance", -1, (scenes["distance_between"] - within).to_numpy()),
        ]
    )
