"""Which type of one model is which of another: types are matched by the edges that models give them, without truth."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from pyro_nri.inference.run import infer
from pyro_nri.inference.streams import generator
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.scenes.scenes import Scenes

#: Structures that models are compared on; more of them cost time and change nothing.
MAX_GROUPS = 20
#: Chains where their posteriors cannot be enumerated.
NUM_CHAINS, NUM_WARMUP, NUM_DRAWS = 4, 300, 100
#: Models that agree with the others on a smaller share of edges may have learned other types.
LOW_AGREEMENT = 0.75


class Matching(NamedTuple):
    """How the types of M models correspond.

    Attributes:
        labels: for each model, which type of the first model each of its own K types is; the first model's own are
            0, 1, ...
        agreement: for each model, the share of edges to which it gives the same most probable type as another model
            does, averaged over the others; 1 for a single model.
    """

    labels: tuple[tuple[int, ...], ...]
    agreement: tuple[float, ...]


def match_types(probability: NDArray[np.float64], *, keep_first: bool = False) -> Matching:
    """Match the types of models by what they say about the same edges (Hungarian algorithm on expected counts).

    All models are matched to the one that agrees best with the others, so that a first model which learned badly does
    not set the others apart from each other.

    Args:
        probability: probability of each type at each edge by each model, ``[M, R, K]``.
        keep_first: whether type 0 is type 0 in every model, as "no interaction" is.

    Raises:
        ValueError: ``probability`` has another number of axes.

    >>> one = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]])
    >>> match_types(np.stack([one, one[:, ::-1]])).labels
    ((0, 1), (1, 0))
    """
    if probability.ndim != 3:
        raise ValueError(f"probability must have shape [M, R, K], found {list(probability.shape)}")
    num_models, num_edges, num_types = probability.shape
    counts = np.einsum("mrk,nrl->mnkl", probability, probability)  # expected number of edges with types k and l
    first = int(keep_first)
    pairs = list(itertools.product(range(num_models), repeat=2))
    matched = np.tile(np.arange(num_types), (num_models, num_models, 1))  # [M, M, K]: type of n that a type of m is
    total = np.zeros((num_models, num_models))
    for m, n in pairs:
        if m != n:
            matched[m, n, first:] = first + linear_sum_assignment(counts[m, n, first:, first:], maximize=True)[1]
        total[m, n] = counts[m, n, np.arange(num_types), matched[m, n]].sum()
    hub = int(total.sum(1).argmax())
    of_hub = np.argsort(matched[0, hub])  # type of the first model that a type of the hub is
    labels = of_hub[matched[:, hub]]  # [M, K]
    best = np.take_along_axis(labels, probability.argmax(-1), axis=1)  # [M, R]
    same = (best[:, None] == best[None]).mean(-1) if num_edges else np.ones((num_models, num_models))
    agreement = (same.sum(1) - 1) / (num_models - 1) if num_models > 1 else np.ones(1)
    return Matching(tuple(tuple(row) for row in labels.tolist()), tuple(agreement.tolist()))


def match_models(models: Sequence[Checkpoint], scenes: Scenes, *, seed: int) -> Matching:
    """Match the types of models by their posteriors of common scenes; truth is never looked at.

    Args:
        models: M trained models of one kind.
        scenes: common scenes, raw units; at most :data:`MAX_GROUPS` structures are used.
        seed: fixes the choice of scenes, and the chains where posteriors cannot be enumerated.
    """
    if len(models) == 1:
        return Matching((tuple(range(models[0].spec.num_edge_types)),), (1.0,))
    chosen = torch.randperm(scenes.num_groups, generator=generator(seed, "matching"))[:MAX_GROUPS]
    scenes = scenes[torch.isin(scenes.group_index, chosen)]
    exists = scenes.edge_mask[scenes.group_first_scene].numpy()
    found = []
    for model in models:
        draws = infer(
            model.model,
            scenes,
            encoder=model.encoder,
            num_chains=NUM_CHAINS,
            num_warmup=NUM_WARMUP,
            num_draws=NUM_DRAWS,
            seed=seed,
        )
        if not draws.complete:
            raise KeyboardInterrupt
        probability = draws.edge_probability
        if probability is None:
            probability = np.stack(
                [(draws.edge_type == k).mean((0, 1)) for k in range(draws.num_edge_types)], axis=-1
            )  # [G, E, K]
        found.append(probability[exists])
    return match_types(np.stack(found), keep_first=models[0].spec.no_interaction)
