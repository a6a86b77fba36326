"""The distinct structures among the draws of a posterior, and what the prior says of them."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import betaln

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior.convert import group
from pyro_nri.scenes import edges

# Types of drawn edges that are held at once.
_CHUNK_EDGES = 2**25


class Distinct(NamedTuple):
    """J distinct drawn structures of the scenes that have N entities each.

    Attributes:
        num_entities: N.
        scene: numbers of these scenes among all of the posterior, ``[G]``.
        structure: types of the edges, int8 ``[J, E]``, scene after scene; edges of N entities, row-major by sender.
        owner: place in ``scene`` of the scene that each belongs to, ``[J]``, ascending.
        share: share of the scene's draws of all chains, ``[J]``.
    """

    num_entities: int
    scene: NDArray[np.int64]
    structure: NDArray[np.int8]
    owner: NDArray[np.int64]
    share: NDArray[np.float64]


def scene_sizes(tree: xr.DataTree) -> NDArray[np.int64]:
    """Number of entities of each scene, ``[G]``.

    Raises:
        ValueError: a group is missing.
    """
    index = group(tree, "posterior")["scene_index"].values
    count = np.bincount(index, minlength=group(tree, "sample_stats").sizes["scene"])
    return np.array([edges.num_entities_of(int(number)) for number in count], dtype=np.int64)


def distinct_structures(tree: xr.DataTree) -> list[Distinct]:
    """Draws with their repetitions counted, by number of entities in ascending order.

    Entities that do not exist have no edges in a posterior, and the edges of the others come row-major by sender.
    """
    draws = group(tree, "posterior")["edge_type"].values
    return distinct_among(draws.reshape(-1, draws.shape[-1]), scene_sizes(tree))


def distinct_among(draws: NDArray[np.int8], sizes: NDArray[np.int64]) -> list[Distinct]:
    """The same of draws ``[S, M]``: the edges of each scene in turn, scenes of ``sizes`` entities, ``[G]``."""
    start = np.concatenate([[0], np.cumsum(sizes * (sizes - 1))])
    result = []
    for size in np.unique(sizes).tolist():
        scene, number = np.flatnonzero(sizes == size), edges.num_edges(size)
        step = max(1, _CHUNK_EDGES // (len(draws) * number))
        parts = []
        for first in range(0, len(scene), step):
            some = scene[first : first + step]
            whole = some[-1] - some[0] + 1 == len(some)  # neighbours: a view, no copy
            columns = start[some][:, None] + np.arange(number)
            taken = draws[:, start[some[0]] : start[some[-1] + 1]] if whole else draws[:, columns.ravel()]
            parts.append(_count(taken.reshape(len(draws), len(some), number), first))
        structure, owner, share = (np.concatenate(each) for each in zip(*parts, strict=True))
        result.append(Distinct(size, scene, structure, owner, share))
    return result


def _count(draws: NDArray[np.int8], first: int) -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.float64]]:
    """Distinct rows of draws ``[S, G, E]`` within each scene, numbered from ``first``, and their shares."""
    num_draws, num_scenes, num_edges = draws.shape
    # A structure is known by a random number of its own: with 64 bits no two of a scene share one.
    place = np.random.default_rng(num_edges).integers(-(2**62), 2**62, (num_edges,))
    code: NDArray[np.int64] = np.zeros((num_scenes, num_draws), np.int64)
    for edge in range(num_edges):
        code += draws[:, :, edge].T * place[edge]
    order = np.argsort(code, axis=1)
    code = np.take_along_axis(code, order, axis=1)
    new = np.ones(code.shape, bool)
    new[:, 1:] = code[:, 1:] != code[:, :-1]
    owner, rank = np.nonzero(new)
    count = np.diff(np.append(np.flatnonzero(new), new.size))
    return np.asarray(draws[order[owner, rank], owner]), owner + first, count / num_draws


def log_prior(record: PriorRecord, count: NDArray[np.integer]) -> NDArray[np.float64]:
    """Log prior of structures from how many of their edges have each type.

    Args:
        record: the prior; not one over labels.
        count: ``[*batch, K]``; edges, two for each pair where both edges of a pair have one type.

    Returns:
        ``[*batch]``.

    Raises:
        ValueError: the prior is one over labels, where counts do not say it.
    """
    if record.name == "charges":
        raise ValueError(
            "the prior 'charges' cannot be divided out: it rules most structures out whatever the data say"
        )
    parts = count if record.name == "independent" else count // 2
    weight = np.asarray(record.type_probability)
    if record.name == "sparse":
        assert record.concentration is not None
        a, b = record.concentration
        linked = parts[..., 1:].sum(-1)
        result = betaln(a + linked, b + parts[..., 0]) - betaln(a, b)
        return np.asarray(result - linked * np.log(len(weight) - 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(parts > 0, parts * np.log(weight), 0.0).sum(-1))
