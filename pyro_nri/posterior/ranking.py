"""How well a probability tells edges of one type from all others: areas under two curves, whatever the threshold."""

import numpy as np
from numpy.typing import ArrayLike

from pyro_nri.posterior.bootstrap import Score, as_score, scene_weights


def ranking_scores(
    value: ArrayLike, positive: ArrayLike, scene: ArrayLike, *, num_replicates: int = 1000, seed: int = 0
) -> tuple[Score, Score]:
    """Area under the ROC curve, and average precision.

    The first is the probability that an edge of the type has a larger value than one of another type (ties count half);
    one half by chance. The second is the mean precision over the edges of the type, taken from the largest value
    down, ties together: the share of edges of the type by chance.

    Args:
        value: probability of the type, or any other number that grows with it, ``[M]``.
        positive: whether the edge has the type, bool ``[M]``.
        scene: number of the scene of each edge, ``[M]``.
        num_replicates: number of bootstrap replicates.
        seed: seed of the bootstrap.

    Returns:
        Area and average precision, each with its interval; None where all edges are of the type, or none is.
    """
    values, labels = np.asarray(value, np.float64), np.asarray(positive, bool)
    names, owner = np.unique(np.asarray(scene), return_inverse=True)
    order = np.argsort(-values, kind="stable")
    labels, owner = labels[order], owner[order]
    last = np.append(np.flatnonzero(np.diff(values[order])), len(order) - 1)  # of each set of ties
    area, precision = np.full((2, 1 + num_replicates), np.nan)
    for r, weight in enumerate(scene_weights(len(names), num_replicates, seed)):
        each = weight[owner]
        found, seen = np.cumsum(each * labels)[last], np.cumsum(each)[last]
        num_positive, num_negative = found[-1], seen[-1] - found[-1]
        if not num_positive:
            continue
        gained = np.diff(found, prepend=0)
        precision[r] = (gained * found / np.maximum(seen, 1)).sum() / num_positive
        if num_negative:
            ahead = found - gained / 2  # positives with a larger value, and half of those with the same
            area[r] = (np.diff(seen - found, prepend=0) * ahead).sum() / (num_positive * num_negative)
    if np.isnan(area[0]):
        precision[0] = np.nan  # one kind of edge alone cannot be ranked
    return as_score(area, len(names)), as_score(precision, len(names))
