"""How probable each edge type is, and the indicators whose means these probabilities are."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.prior_records import prior_record


def indicators(tree: xr.DataTree) -> xr.Dataset:
    """Whether the edge has the type: ``edge_is_type`` (chain, draw, edge, type), int8.

    Type codes are labels, so their mean, R-hat and effective sample size mean nothing; those of the indicators do.
    ArviZ takes the dataset as it is, here for the edges of one scene::

        found = indicators(tree)
        arviz.summary(found.isel(edge=found.scene == "a"), kind="diagnostics", round_to="none")

    Args:
        tree: a posterior.

    Returns:
        A dataset whose coordinate ``edge`` reads "scene: sender -> receiver" and whose ``type`` has the types' names.
    """
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    names = constant["type"].values
    edge_type = posterior["edge_type"].values
    labels = [
        f"{scene}: {sender} -> {receiver}"
        for scene, sender, receiver in zip(
            *(posterior[name].values.tolist() for name in ("scene", "sender", "receiver")), strict=True
        )
    ]
    flags = (edge_type[..., None] == np.arange(len(names), dtype=edge_type.dtype)).view(np.int8)
    coordinates = {name: posterior[name] for name in ("chain", "draw", "scene", "sender", "receiver")}
    return xr.Dataset(
        {"edge_is_type": (("chain", "draw", "edge", "type"), flags)},
        coords={**coordinates, "edge": labels, "type": names},
        attrs=tree.attrs,
    )


def edge_probability(tree: xr.DataTree) -> tuple[NDArray[np.float64], str]:
    """Posterior probability of each type at each edge, by the best estimator that the tree allows.

    Args:
        tree: a posterior.

    Returns:
        Probabilities ``[M, K]`` in the order of the ``edge`` dimension, and the estimator's name: "exact" (enumerated),
        "rao-blackwell" (mean of a move's conditionals over draws) or "counts": (count + 1/2) / (S + K/2) with S the
        draws of all chains, which never says 0 or 1 from finitely many draws.
    """
    if "edge_posterior" in tree.children and "edge_probability" in tree.children["edge_posterior"]:
        known = group(tree, "edge_posterior")["edge_probability"]
        return np.asarray(known.values, np.float64), str(known.attrs["estimator"])
    edge_type = group(tree, "posterior")["edge_type"].values
    num_types = group(tree, "constant_data").sizes["type"]
    count = np.stack([(edge_type == k).sum((0, 1)) for k in range(num_types)], axis=-1)
    num_draws = edge_type.shape[0] * edge_type.shape[1]
    return (count + 0.5) / (num_draws + num_types / 2), "counts"


def type_prior(tree: xr.DataTree) -> NDArray[np.float64]:
    """Prior probability of each type at an edge, ``[K]``; equal where the posterior does not store it."""
    constant = group(tree, "constant_data")
    record = prior_record(constant)
    if record is not None:
        return np.array(record.type_probability)
    return np.full(constant.sizes["type"], 1 / constant.sizes["type"])
