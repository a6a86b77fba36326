"""Two posteriors beside each other."""

from typing import Any

import numpy as np
import xarray as xr

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.posterior.probability import edge_probability

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
