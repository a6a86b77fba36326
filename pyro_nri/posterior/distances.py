"""How far apart two posteriors of the same scenes are, as distributions of whole graphs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray
from scipy.special import rel_entr

from pyro_nri.inference.exact import MAX_STRUCTURES
from pyro_nri.posterior.compare import checked_types
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.correspondence import matched_edges
from pyro_nri.posterior.permutation import Floats
from pyro_nri.posterior.probability import edge_probability


def scene_distances(
    a: xr.DataTree, b: xr.DataTree, *, relabel: Sequence[int] | None = None, seed: int = 0
) -> pd.DataFrame:
    r"""How far apart two posteriors of whole graphs are, scene by scene.

    Total variation :math:`\frac12 \sum_z |p(z) - q(z)|` and Jensen-Shannon divergence (nats, at most log 2) are exact
    where both posteriors keep the probabilities of receivers and at most 65,536 graphs are possible; else they are
    those of the drawn frequencies, which differ even between two runs of one posterior: ``chance`` says by how much.
    Graph distances are expected numbers of edges that differ: between a graph of one and one of the other, and between
    two of the same.

    Args:
        a: a posterior.
        b: another one of some of the same scenes.
        relabel: see :func:`edge_differences`.
        seed: of the random halves behind ``chance``.

    Returns:
        One row for each common scene: ``scene``, ``num_edges``, ``total_variation``, ``jensen_shannon``, ``chance``
        (total variation of two random halves of all draws, in the sizes of both; 0 where exact), ``estimator`` ("exact"
        or "draws"), ``distance_between``, ``distance_a``, ``distance_b``.

    Raises:
        ValueError: the posteriors cannot be compared.
    """
    label = checked_types(a, b, relabel)
    names, mine, other = matched_edges(a, b)
    order = np.argsort(label)
    (p, p_within), (q, q_within) = _with_spread(a), _with_spread(b)
    q, p = q[other][:, order], p[mine]
    scene = group(a, "posterior")["scene"].values[mine]
    number = {name: g for g, name in enumerate(names)}
    owner = np.array([number[name] for name in scene.tolist()])
    start = np.concatenate([[0], np.cumsum(np.bincount(owner))])
    draws = [
        group(tree, "posterior")["edge_type"].values.reshape(-1, tree["posterior"].sizes["edge"])[:, place]
        for tree, place in ((a, mine), (b, other))
    ]
    draws[1] = label.astype(np.int8)[draws[1]]
    rng, rows = np.random.default_rng(seed), []
    code_a, code_b = _receiver_codes(a), _receiver_codes(b)
    place_a, place_b = _scene_places(a, names), _scene_places(b, names)
    unchanged = bool((label == np.arange(len(label))).all())
    for g, name in enumerate(names):
        part = slice(start[g], start[g + 1])
        known = None
        if unchanged and code_a is not None and code_b is not None:
            known = _joint(code_a[place_a[g]], code_b[place_b[g]])
        estimator, chance = "exact", 0.0
        if known is None:
            estimator = "draws"
            known, chance = _frequencies(draws[0][:, part], draws[1][:, part], rng)
        middle = (known[0] + known[1]) / 2
        rows.append(
            {
                "scene": name,
                "num_edges": int(start[g + 1] - start[g]),
                "total_variation": float(np.abs(known[0] - known[1]).sum() / 2),
                "jensen_shannon": float((rel_entr(known[0], middle) + rel_entr(known[1], middle)).sum() / 2),
                "chance": chance,
                "estimator": estimator,
            }
        )
    sums = {
        "distance_between": 1 - (p * q).sum(1),
        "distance_a": p_within[mine],
        "distance_b": q_within[other],
    }
    frame = pd.DataFrame(rows).astype({"scene": "str", "estimator": "str"})
    return frame.assign(**{key: np.bincount(owner, value) for key, value in sums.items()})


def _with_spread(tree: xr.DataTree) -> tuple[Floats, Floats]:
    """Probabilities ``[M, K]``, and the probability that two independent graphs differ at each edge, ``[M]``."""
    probability, estimator = edge_probability(tree)
    if estimator == "exact":
        return probability, 1 - (probability**2).sum(1)
    draws = group(tree, "posterior")["edge_type"].values
    number = draws.shape[0] * draws.shape[1]
    frequency = np.stack([(draws == k).mean((0, 1)) for k in range(probability.shape[1])], axis=1)
    return frequency, (1 - (frequency**2).sum(1)) * number / (number - 1)


def _receiver_codes(tree: xr.DataTree) -> Floats | None:
    if "edge_posterior" not in tree.children or "receiver_probability" not in tree["edge_posterior"]:
        return None
    return np.asarray(group(tree, "edge_posterior")["receiver_probability"].values)


def _scene_places(tree: xr.DataTree, names: list[str]) -> list[int]:
    place = {name: g for g, name in enumerate(group(tree, "sample_stats")["scene"].values.tolist())}
    return [place[name] for name in names]


def _joint(p: Floats, q: Floats) -> tuple[Floats, Floats] | None:
    """Probabilities of all graphs from those of independent receivers ``[N, R]``; None if they are too many."""
    if p.shape != q.shape or p.shape[1] ** p.shape[0] > MAX_STRUCTURES:
        return None
    joint = []
    for table in (p, q):
        every = np.ones(1)
        for receiver in table:
            every = (every[:, None] * receiver).ravel()
        joint.append(every)
    return joint[0], joint[1]


def _frequencies(
    a: NDArray[np.int8], b: NDArray[np.int8], rng: np.random.Generator
) -> tuple[tuple[Floats, Floats], float]:
    """Frequencies of the distinct graphs among draws ``[S, E]`` of two posteriors, and what chance alone would do."""
    rows = np.concatenate([a, b]).astype(np.uint8) + np.uint8(48)  # one byte for each edge: a graph is a byte string
    _, graph = np.unique(np.ascontiguousarray(rows).view(f"S{rows.shape[1]}")[:, 0], return_inverse=True)
    size = int(graph.max()) + 1
    first = np.arange(len(rows)) < len(a)

    def shares(chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        return (
            np.bincount(graph[chosen], minlength=size) / chosen.sum(),
            np.bincount(graph[~chosen], minlength=size) / (~chosen).sum(),
        )

    halves = [shares(rng.permutation(first)) for _ in range(10)]
    return shares(first), float(np.mean([np.abs(one - two).sum() / 2 for one, two in halves]))
