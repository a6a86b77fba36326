"""May types, scenes and entities of two posteriors be put side by side, and which stands for which."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group

Integers = NDArray[np.int64]


def check_posterior(tree: xr.DataTree, name: str) -> None:
    """Refuse what cannot be compared.

    Raises:
        ValueError: a group is missing, or there are fewer than two draws and no exact probabilities.
    """
    for part in ("posterior", "sample_stats", "constant_data"):
        try:
            group(tree, part)
        except ValueError as error:
            raise ValueError(f"{name} is not a whole posterior: {error}") from error
    draws = group(tree, "posterior").sizes
    if (found := draws["chain"] * draws["draw"]) < 2:
        raise ValueError(f"{name} holds {found} draw{'' if found == 1 else 's'}, at least two are needed to compare")


def common_types(
    a: xr.DataTree, b: xr.DataTree, names: tuple[str, str], relabel: Sequence[int] | None = None
) -> Integers:
    """The type of the first posterior that each type of the second stands for, ``[K]``.

    Types are numbered arbitrarily by each training. They correspond if both posteriors are of one model, or if both
    models were trained on scenes with known truth, by whose types theirs are matched. Posteriors that do not say their
    model are taken to be of one.

    Args:
        a: a posterior.
        b: another one.
        names: what to call them.
        relabel: the correspondence, if it is known otherwise.

    Raises:
        ValueError: numbers of types differ, the correspondence is not known, or ``relabel`` is none.
    """
    counts = [int(tree.attrs["num_edge_types"]) for tree in (a, b)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same number of edge types, found {counts[0]} and {counts[1]}"
        )
    same = np.arange(counts[0])
    if relabel is not None:
        label = np.asarray(relabel)
        if sorted(label.tolist()) != same.tolist():
            raise ValueError(f"relabel must hold each of the types 0 to {counts[0] - 1} once, found {label.tolist()}")
        return label.astype(np.int64)
    models = [tree.attrs.get("model_fingerprint") for tree in (a, b)]
    if models[0] == models[1] or None in models:
        return same
    constants = [group(tree, "constant_data") for tree in (a, b)]
    if all("type_alignment" in constant for constant in constants):
        mine, other = (constant["type_alignment"].values for constant in constants)
        if (
            sorted(mine.tolist()) == sorted(other.tolist())
            and (mine >= 0).all()
            and len(set(mine.tolist())) == len(mine)
        ):
            return np.array([mine.tolist().index(true) for true in other], dtype=np.int64)
    raise ValueError(
        f"{names[0]} and {names[1]} are of different models, whose types are numbered arbitrarily, and nothing says "
        f"which stands for which; infer both with one model, or give relabel (--relabel)"
    )


def one_labelling(trees: Sequence[xr.DataTree]) -> list[Integers]:
    """For each posterior the type of the first posterior that each of its types stands for.

    Raises:
        ValueError: a posterior cannot be compared, or types do not correspond.
    """
    names = ["the posterior"] if len(trees) == 1 else [f"posterior {index + 1}" for index in range(len(trees))]
    for tree, name in zip(trees, names, strict=True):
        check_posterior(tree, name)
    return [common_types(trees[0], tree, (names[0], name)) for tree, name in zip(trees, names, strict=True)]


def matched_edges(a: xr.DataTree, b: xr.DataTree) -> tuple[list[str], Integers, Integers]:
    """Edges of the scenes that two posteriors have in common, by names of scenes and entities.

    Returns:
        Names of the scenes in the order of the first posterior, and places of their edges in both, each ``[M]``.

    Raises:
        ValueError: no scene is in both, or a scene has other entities.
    """
    mine, other = group(a, "posterior"), group(b, "posterior")
    place = {
        key: m
        for m, key in enumerate(
            zip(*(other[name].values.tolist() for name in ("scene", "sender", "receiver")), strict=True)
        )
    }
    scenes_b = set(other["scene"].values.tolist())
    scene_a = mine["scene"].values
    names = [name for name in dict.fromkeys(scene_a.tolist()) if name in scenes_b]
    if not names:
        raise ValueError(
            f"the posteriors have no scene in common: the first has {_few(scene_a)}, the second "
            f"{_few(other['scene'].values)}"
        )
    keys = list(zip(*(mine[name].values.tolist() for name in ("scene", "sender", "receiver")), strict=True))
    chosen = np.flatnonzero(np.isin(scene_a, names))
    missing = [keys[m] for m in chosen if keys[m] not in place]
    if missing or len(chosen) != int(np.isin(other["scene"].values, names).sum()):
        raise ValueError(
            f"scene {(missing[0][0] if missing else names[0])!r} does not have the same entities in both posteriors"
        )
    return names, chosen, np.array([place[keys[m]] for m in chosen], dtype=np.int64)


def shared_edges(trees: Sequence[xr.DataTree]) -> list[tuple[str, str]]:
    """Senders and receivers of the edges that all scenes have alike.

    Raises:
        ValueError: a scene has other entities than the first.
    """
    first: list[tuple[str, str]] | None = None
    for tree in trees:
        posterior = group(tree, "posterior")
        ends = list(zip(posterior["sender"].values.tolist(), posterior["receiver"].values.tolist(), strict=True))
        start = np.searchsorted(posterior["scene_index"].values, np.arange(posterior["scene_index"].values[-1] + 2))
        for low, high in pairwise(start.tolist()):
            first = ends[low:high] if first is None else first
            if ends[low:high] != first:
                name = str(posterior["scene"].values[low])
                raise ValueError(f"rates of single edges need scenes of the same entities, scene {name!r} has others")
    assert first is not None
    return first


def _few(names: NDArray[np.str_]) -> str:
    found = list(dict.fromkeys(names.tolist()))
    return ", ".join(map(repr, found[:3])) + (", ..." if len(found) > 3 else "")
