"""The commands that compare: groups of scenes, halves of scenes, models by held-out scores, priors by log marginals."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_nri.answers import note
from pyro_nri.learning.checkpoint import load_checkpoint, load_model
from pyro_nri.posterior.comparison import comparison_frame
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.halves import compare_halves
from pyro_nri.posterior.marginals import compare_priors
from pyro_nri.posterior.selection import compare_models
from pyro_nri.posterior.storage import read_posterior
from pyro_nri.scenes.scenes import Scenes

# Reads scenes from a source, as the other arguments say.
Read = Callable[[argparse.Namespace, str], Scenes]


def structures(arguments: argparse.Namespace) -> dict[str, Any]:
    """Differences in structure as a table, and those that are more than chance."""
    if len(arguments.posteriors) > 2:
        raise ValueError(f"compare takes one or two posteriors, found {len(arguments.posteriors)}")
    trees = [read_posterior(path) for path in arguments.posteriors]
    for path, tree in zip(arguments.posteriors, trees, strict=True):
        if not tree.attrs["complete"]:
            note(f"{path!r} is of a run that was interrupted and holds only part of its draws")
    names = tuple(arguments.names) if arguments.names else tuple(Path(path).stem for path in arguments.posteriors)
    if len(trees) == 2 and names[0] == names[1]:
        raise ValueError(f"both posteriors are called {names[0]!r}; give --names")
    options: dict[str, Any] = {"level": arguments.level, "num_permutations": arguments.num_permutations}
    if arguments.quantities is not None:
        if arguments.mode == "same-scenes":
            raise ValueError("--quantities goes with --mode groups")
        options["quantities"] = arguments.quantities
    if arguments.relabel is not None:
        if len(trees) == 1 or arguments.by is not None:
            raise ValueError("--relabel goes with two posteriors and no --by")
        options["relabel"] = arguments.relabel
    frame = comparison_frame(
        trees[0],
        trees[1] if len(trees) == 2 else None,
        mode=arguments.mode,
        by=arguments.by,
        table=None if arguments.table is None else read_frame(arguments.table),
        names=(names[0], names[-1]),
        seed=arguments.seed,
        **options,
    )
    write_frame(frame, arguments.out)
    found = frame[frame["p_adjusted"] < 1 - arguments.level] if arguments.mode == "groups" else frame
    lines = []
    for row in found.to_dict("records"):
        kind = "" if row["type"] < 0 else f" of type {row['type']}"
        pair = f"{row['group_a']} against {row['group_b']}" if row["group_b"] else f"on {row['group_a']}"
        lines.append(f"{row['quantity']}{kind}, {pair}: {row['effect']:.3g} [{row['low']:.3g}, {row['high']:.3g}]")
    title = "more than chance" if arguments.mode == "groups" else "differences"
    return {"rows": len(frame), title: lines, "table": frame.to_dict("list"), "wrote": arguments.out}


def models(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Held-out scores of models as a table, and the one that is chosen."""
    if len(set(arguments.models)) < len(arguments.models):
        repeated = next(name for name in arguments.models if arguments.models.count(name) > 1)
        raise ValueError(f"model file {repeated!r} is named more than once")
    frame = compare_models(
        {name: load_model(name) for name in arguments.models},
        read(arguments, arguments.scenes),
        num_search_frames=arguments.num_search_frames,
        kind=arguments.likelihood,
        seed=arguments.seed,
    )
    write_frame(frame, arguments.out)
    lines = [
        f"{row['name']}: {row['score']:.1f}, {row['difference']:.1f} ± {row['standard_error']:.1f} to the best"
        for row in frame.to_dict("records")
    ]
    chosen = frame["name"][frame["chosen"].argmax()]
    return {"scores": lines, "chosen": chosen, "table": _records(frame, "name"), "wrote": arguments.out}


def halves(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Whether the halves of each scene agree on its structure, as a table, and how many contradict each other."""
    frame = compare_halves(load_checkpoint(arguments.model), read(arguments, arguments.scenes))
    write_frame(frame, arguments.out)
    return {
        "scenes": len(frame),
        "contradict": int(frame["contradict"].sum()),
        "median_log_bayes_factor": float(frame["log_bayes_factor"].median()),
        "edges_that_agree": float(frame["agree"].mean()),
        "wrote": arguments.out,
    }


def priors(arguments: argparse.Namespace, read: Read) -> dict[str, Any]:
    """Log marginals of priors under one model as a table, and the largest."""
    frame = compare_priors(
        load_checkpoint(arguments.model),
        read(arguments, arguments.scenes),
        arguments.priors,
        table_scenes=None if arguments.table_scenes is None else read(arguments, arguments.table_scenes),
        type_weights=arguments.type_weights,
    )
    write_frame(frame, arguments.out)
    lines = [
        f"{row['prior']}: {row['log_marginal']:.1f}, {row['difference']:.1f} ± {row['standard_error']:.1f} to the best "
        f"({row['note']})"
        for row in frame.to_dict("records")
    ]
    best = None if frame["log_marginal"].isna().all() else frame["prior"][frame["log_marginal"].argmax()]
    return {"log_marginals": lines, "largest": best, "table": _records(frame, "prior"), "wrote": arguments.out}


def _records(frame: pd.DataFrame, key: str) -> dict[str, Any]:
    """Rows by name, for machines; None where a number is missing."""
    plain = frame.astype(object).where(frame.notna(), None)
    return {row.pop(key): row for row in plain.to_dict("records")}
