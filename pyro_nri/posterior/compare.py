"""Two posteriors of the same scenes beside each other: by models, priors, data or samplers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.correspondence import check_posterior, common_types, matched_edges
from pyro_nri.posterior.diagnostics import DISAGREEING, edge_diagnostics
from pyro_nri.posterior.probability import edge_probability

Floats = NDArray[np.float64]

#: Edges whose probabilities all lie beyond these are certain; they cannot tell a good sampler from a bad one.
UNCERTAIN = (0.02, 0.98)


def agreement(tree: xr.DataTree, reference: xr.DataTree) -> dict[str, Any]:
    """How near the draws of one posterior come to the probabilities of another of the same scenes.

    The first posterior is read by the plain frequencies of its draws, so that its sampler is judged and nothing else.

    Args:
        tree: a posterior, usually by MCMC.
        reference: another posterior of the same edges, usually by enumeration.

    Returns:
        ``mean_difference`` and ``max_difference`` (absolute) and ``correlation``, over all indicators;
        ``num_uncertain`` (indicators with a reference probability in (0.02, 0.98)), ``z_mean`` and ``z_sd`` of the
        differences of those in units of their Monte Carlo standard error (None where there are fewer than two).

    Raises:
        ValueError: the posteriors are not of the same edges and types.
    """
    mine, other = group(tree, "posterior"), group(reference, "posterior")
    for name in ("scene", "sender", "receiver"):
        if mine[name].values.tolist() != other[name].values.tolist():
            raise ValueError(f"the posteriors do not have the same edges: {name} differs")
    probability, _ = edge_probability(reference)  # [M, K]
    num_types = probability.shape[1]
    if int(tree.attrs["num_edge_types"]) != num_types:
        raise ValueError(f"the posteriors have {tree.attrs['num_edge_types']} and {num_types} edge types")
    draws = mine["edge_type"].values  # [C, S, M]
    frequency = np.stack([(draws == k).mean((0, 1)) for k in range(num_types)], axis=1)
    difference = frequency - probability
    uncertain = (probability > UNCERTAIN[0]) & (probability < UNCERTAIN[1])
    mcse = edge_diagnostics(draws, num_types).mcse
    if num_types == 2:  # one indicator mirrors the other
        uncertain[:, 0] = False
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (difference / mcse)[uncertain]
    z = z[np.isfinite(z)]
    flat = frequency.ravel(), probability.ravel()
    return {
        "mean_difference": float(np.abs(difference).mean()),
        "max_difference": float(np.abs(difference).max()),
        "correlation": float(np.corrcoef(*flat)[0, 1]) if min(np.ptp(flat[0]), np.ptp(flat[1])) > 0 else None,
        "num_uncertain": int(uncertain.sum()),
        "z_mean": float(z.mean()) if len(z) > 1 else None,
        "z_sd": float(z.std(ddof=1)) if len(z) > 1 else None,
    }


def edge_differences(a: xr.DataTree, b: xr.DataTree, *, relabel: Sequence[int] | None = None) -> pd.DataFrame:
    """How much the probability of each type at each edge differs, beside its Monte Carlo error.

    Args:
        a: a posterior.
        b: another one of some of the same scenes; scenes and entities are matched by their names.
        relabel: for each type of ``b`` that of ``a`` which it stands for, if they were inferred with different models.

    Returns:
        One row for each edge of the common scenes and each type, in the order of ``a``: ``scene``, ``sender``,
        ``receiver``, ``edge_type`` (code in ``a``), ``probability_a``, ``probability_b``, ``difference`` (first minus
        second), ``mcse`` (0 where both are exact; infinite where the chains of one disagree) and ``z``, their ratio
        (NaN for 0 / 0).

    Raises:
        ValueError: the posteriors cannot be compared.
    """
    label = checked_types(a, b, relabel)
    _, mine, other = matched_edges(a, b)
    (first, first_error), (second, second_error) = _with_errors(a), _with_errors(b)
    order = np.argsort(label)  # type of b for each type of a
    first, first_error = first[mine], first_error[mine]
    second, second_error = second[other][:, order], second_error[other][:, order]
    posterior, (num_edges, num_types) = group(a, "posterior"), first.shape
    names = {name: np.repeat(posterior[name].values[mine], num_types) for name in ("scene", "sender", "receiver")}
    difference, error = first - second, np.hypot(first_error, second_error)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = difference / error
    return pd.DataFrame(
        {
            **names,
            "edge_type": np.tile(np.arange(num_types), num_edges),
            "probability_a": first.ravel(),
            "probability_b": second.ravel(),
            "difference": difference.ravel(),
            "mcse": error.ravel(),
            "z": z.ravel(),
        }
    )


def checked_types(a: xr.DataTree, b: xr.DataTree, relabel: Sequence[int] | None) -> NDArray[np.int64]:
    """The type of the first posterior that each of the second stands for, ``[K]``, of posteriors that can be compared.

    Raises:
        ValueError: they cannot.
    """
    names = ("the first posterior", "the second posterior")
    for tree, name in zip((a, b), names, strict=True):
        check_posterior(tree, name)
    return common_types(a, b, names, relabel)


def _with_errors(tree: xr.DataTree) -> tuple[Floats, Floats]:
    """Edge probabilities and their Monte Carlo errors, ``[M, K]``.

    Where an indicator never moves its error is the posterior standard deviation of its probability, given S draws that
    were all alike.
    """
    probability, estimator = edge_probability(tree)
    if estimator == "exact":
        return probability, np.zeros_like(probability)
    draws = group(tree, "posterior")["edge_type"].values
    found = edge_diagnostics(draws, probability.shape[1])
    number = draws.shape[0] * draws.shape[1]
    unmoved = np.sqrt(0.5 / (number + 1) * (number + 0.5) / (number + 1) / (number + 2))
    error = np.where(np.isnan(found.mcse), unmoved, found.mcse)
    return probability, np.where(found.kind == DISAGREEING, np.inf, error)
