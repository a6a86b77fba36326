"""How much is left in doubt, scene by scene, and how much the data have said."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.frames import exact_log_marginal
from pyro_nri.posterior.parts import scene_parts, select_scenes
from pyro_nri.posterior.probability import edge_probability, type_prior
from pyro_nri.posterior.scores import UNCERTAIN

#: Data that take away less than this share of the prior entropy of the edges say next to nothing.
SAYS_NOTHING = 0.05
#: Share of the edges that have one and the same type, from which there is next to nothing to tell apart.
ALL_ALIKE = 0.98


def uncertainty_frame(tree: xr.DataTree, scenes: Sequence[str] | None = None) -> pd.DataFrame:
    r"""One row for each scene: how sure its structure is.

    Args:
        tree: a posterior; one that :func:`~pyro_nri.posterior.storage.open_posterior` opened is read part by part.
        scenes: names of the scenes wanted; default: all.

    Returns:
        Columns ``scene``; ``num_edges``; ``num_uncertain``, edges where no type has probability 0.98 or more;
        ``expected_accuracy``, the mean over edges of the largest probability, and ``expected_errors``, how many of the
        most probable types the posterior expects to be wrong; ``edge_entropy``, :math:`-\sum_k p_k \log p_k` summed
        over edges, nats; ``information``, the share of the prior's entropy of the edges that the data took away (0:
        nothing was learned; below 0: the data took the posterior further from certainty than the prior was);
        ``structure_entropy`` of whole structures, nats, at most ``edge_entropy`` where edges hang together;
        ``map_probability`` of the most probable structure drawn; ``num_structures``, how many were drawn;
        ``estimator`` of the two before: "exact" (log marginal minus the mean log joint of independent draws) or
        "counts" (from the shares of the draws: entropies from below, at most the log number of draws).

    Raises:
        ValueError: a scene does not exist.
    """
    tree = tree if scenes is None else select_scenes(tree, scenes)
    return pd.concat([_uncertainty(part) for part in scene_parts(tree)], ignore_index=True)


def explains_nothing(tree: xr.DataTree) -> str | None:
    """A sentence if the structures that were inferred say next to nothing, else None.

    Two signs can be read from a posterior alone: the data hardly moved it from its prior, or nearly all edges have the
    same type. Neither shows in convergence or accuracy: chains that draw from the prior agree perfectly.
    """
    probability, _ = edge_probability(tree)
    if not probability.size or probability.shape[1] < 2:
        return None
    prior = type_prior(tree)
    share = float(information(probability, prior))
    if share < SAYS_NOTHING:
        return (
            f"The structure explains next to nothing: the data took away {100 * max(share, 0):.1f} % of what the prior "
            f"left in doubt about the types of edges."
        )
    common = np.bincount(probability.argmax(1), minlength=len(prior)) / len(probability)
    if common.max() >= ALL_ALIKE and prior[common.argmax()] < ALL_ALIKE:
        return (
            f"The structure tells next to nothing apart: {100 * common.max():.1f} % of all edges have the type "
            f"{group(tree, 'constant_data')['type'].values[common.argmax()]}."
        )
    return None


def information(probability: ArrayLike, prior: ArrayLike) -> NDArray[np.float64]:
    """Share of the prior's entropy that is gone from edges with probabilities ``[*batch, M, K]``: ``[*batch]``.

    >>> float(information([[1.0, 0.0], [0.5, 0.5]], [0.5, 0.5]))
    0.5
    """
    left = entr(np.asarray(probability, np.float64)).sum(-1).mean(-1)
    before = entr(np.asarray(prior, np.float64)).sum(-1)
    return np.asarray(1 - np.divide(left, before, out=np.full_like(left, np.nan), where=before > 0))


def _uncertainty(tree: xr.DataTree) -> pd.DataFrame:
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    names, scene = stats["scene"].values, posterior["scene_index"].values
    probability, _ = edge_probability(tree)
    largest, entropy = probability.max(1), entr(probability).sum(1)
    count = np.bincount(scene, minlength=len(names))

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(scene, values, minlength=len(names)).astype(np.float64)

    before = count * entr(type_prior(tree)).sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy, learned = total(largest) / count, 1 - total(entropy) / before
    whole, most, num_structures = _whole(tree, len(names))
    return pd.DataFrame(
        {
            "scene": names,
            "num_edges": count,
            "num_uncertain": np.bincount(scene[largest < UNCERTAIN], minlength=len(names)),
            "expected_accuracy": accuracy,
            "expected_errors": total(1 - largest),
            "edge_entropy": total(entropy),
            "information": np.where(before > 0, learned, np.nan),
            "structure_entropy": whole,
            "map_probability": most,
            "num_structures": num_structures,
            "estimator": np.full(len(names), "counts" if exact_log_marginal(tree) is None else "exact"),
        }
    )


def _whole(tree: xr.DataTree, num_scenes: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Entropy, probability of the most probable structure drawn, and number of different ones, each ``[G]``."""
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    edge_type = posterior["edge_type"].values.view(np.uint8) + np.uint8(1)  # no byte of a string may be 0
    bounds = np.searchsorted(posterior["scene_index"].values, np.arange(num_scenes + 1))
    log_joint, log_marginal = stats["log_joint"].values.reshape(-1, num_scenes), exact_log_marginal(tree)
    entropy, most, number = np.full(num_scenes, np.nan), np.full(num_scenes, np.nan), np.zeros(num_scenes, np.int64)
    for g in range(num_scenes):
        rows = np.ascontiguousarray(edge_type[..., bounds[g] : bounds[g + 1]])
        rows = rows.reshape(len(log_joint), bounds[g + 1] - bounds[g])
        if not rows.size:
            continue
        count = np.unique(rows.view(f"S{rows.shape[1]}")[:, 0], return_counts=True)[1]
        number[g] = len(count)
        if log_marginal is None:
            share = count / count.sum()
            entropy[g], most[g] = entr(share).sum(), share.max()
        else:
            entropy[g] = max(log_marginal[g] - log_joint[:, g].mean(), 0.0)
            most[g] = np.exp(min(log_joint[:, g].max() - log_marginal[g], 0.0))
    return entropy, most, number
