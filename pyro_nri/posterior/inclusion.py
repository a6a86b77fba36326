"""Does this edge have this type: the weight of the evidence, with the error that comes from finitely many draws."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.posterior.parts import scene_parts, select_scenes
from pyro_nri.posterior.prior_records import prior_record
from pyro_nri.posterior.probability import edge_probability

#: A type that none of S independent draws has is, at 95 %, no more probable than 1 - 0.05^(1/S), about 3 / S.
CONFIDENCE = 0.95


def bayes_factors_frame(
    tree: xr.DataTree, scenes: Sequence[str] | None = None, *, prior_probability: ArrayLike | None = None
) -> pd.DataFrame:
    """Inclusion Bayes factors: posterior odds that an edge has a type, divided by the prior odds.

    The factor says how far the data moved the odds, whatever they were before; its logarithm is the evidence in nats
    (3 is a factor of 20). Under a prior that ties edges together it weighs what the data say of all of them.

    Args:
        tree: a posterior; one that :func:`~pyro_nri.posterior.storage.open_posterior` opened is read part by part.
        scenes: names of the scenes wanted; default: all.
        prior_probability: of each type at an edge, ``[K]``; default: that of the prior under which the posterior was
            inferred.

    Returns:
        One row for each edge and type, in the order of :func:`edges_frame`: ``scene``, ``sender``, ``receiver``,
        ``edge_type``; ``probability``, ``prior_probability``; ``log_bayes_factor``; ``mcse``, its Monte Carlo standard
        error (0 for exact probabilities, NaN at a bound); ``bound``: "" or, where all draws have the type or none has,
        "at least" or "at most": the figure is then a 95 % bound for so many independent draws as the scene's
        smallest effective sample size, or all its draws where nothing moves. Chains that do not mix make bounds
        worthless: see :func:`check`.

    Raises:
        ValueError: a scene does not exist, or the prior probabilities are not K positive numbers that add up to 1, or
            none were stored and none given.
    """
    if prior_probability is None:
        record = prior_record(group(tree, "constant_data"))
        if record is None:
            raise ValueError("the posterior does not store its prior; give prior_probability, one number for each type")
        prior_probability = record.type_probability
    prior = np.asarray(prior_probability, np.float64)
    num_types = int(tree.attrs["num_edge_types"])
    if prior.shape != (num_types,) or not (prior > 0).all() or abs(prior.sum() - 1) > 1e-6:
        raise ValueError(
            f"prior_probability must be {num_types} positive numbers that add up to 1, found {prior.tolist()}"
        )
    tree = tree if scenes is None else select_scenes(tree, scenes)
    return pd.concat([_factors(part, prior) for part in scene_parts(tree)], ignore_index=True)


def _factors(tree: xr.DataTree, prior: NDArray[np.float64]) -> pd.DataFrame:
    posterior = group(tree, "posterior")
    probability, estimator = edge_probability(tree)
    num_edges, num_types = probability.shape
    with np.errstate(divide="ignore"):
        factor, error = logit(probability) - logit(prior), np.zeros(probability.shape)
    bound = np.full(probability.shape, "", dtype="U8")
    if estimator != "exact":
        edge_type = posterior["edge_type"].values
        count = np.stack([(edge_type == k).sum((0, 1)) for k in range(num_types)], axis=-1)
        size = edge_type.shape[0] * edge_type.shape[1]
        found = edge_diagnostics(edge_type, num_types)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = found.mcse / (probability * (1 - probability))
        effective = _effective(found.ess, posterior["scene_index"].values, size)[:, None]
        limit = 1 - (1 - CONFIDENCE) ** (1 / np.maximum(effective, 1))
        never, always = count == 0, count == size
        factor = np.where(never, logit(limit) - logit(prior), np.where(always, -logit(limit) - logit(prior), factor))
        bound = np.where(never, "at most", np.where(always, "at least", bound))
        error = np.where(never | always, np.nan, error)
    return pd.DataFrame(
        {
            **{name: np.repeat(posterior[name].values, num_types) for name in ("scene", "sender", "receiver")},
            "edge_type": np.tile(np.arange(num_types), num_edges),
            "probability": probability.ravel(),
            "prior_probability": np.tile(prior, num_edges),
            "log_bayes_factor": factor.ravel(),
            "mcse": error.ravel(),
            "bound": bound.ravel(),
        }
    )


def _effective(ess: NDArray[np.float64], scene: NDArray[np.int64], size: int) -> NDArray[np.float64]:
    """Smallest effective sample size of the scene of each edge, at most the number of draws, ``[M]``."""
    smallest = np.full(int(scene.max(initial=-1)) + 1, float(size))
    np.minimum.at(smallest, scene, np.nan_to_num(ess, nan=np.inf).min(1))
    return np.asarray(smallest[scene])
