"""How probable each edge type is, and the indicators whose means these probabilities are."""

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.prior_records import prior_record


def indicators(tree: xr.DataTree) -> xr.Dataset:
    """Whether the edge has the type: ``edge_is_type`` (chain, draw, edge, type), int8.

    Type codes are labels, so their mean, R-hat and effective sample size mean nothing; those of the indicators do.
    ArviZ takes the dataset as it is.

    Args:
        tree: a posterior; or its file as ArviZ 0.23 reads it.

    Returns:
        A dataset whose coordinate ``edge`` reads "scene: sender -> receiver" and whose ``type`` has the types' names.

    Example:
        >>> import tempfile, arviz as az, torch, xarray as xr
        >>> from pyro_nri.inference.run import infer
        >>> from pyro_nri.model.spec import ModelSpec, build_model
        >>> from pyro_nri.posterior.convert import to_datatree
        >>> from pyro_nri.posterior.storage import write_posterior
        >>> from pyro_nri.scenes.simulate import simulate
        >>> scenes = simulate("springs", 2, num_entities=3, num_frames=5, seed=0)
        >>> model = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
        >>> model.fit_scaling(scenes)
        >>> draws = infer(model, scenes, method="mcmc", num_chains=2, num_draws=100, num_warmup=50, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_posterior(to_datatree(draws, scenes), f"{folder}/posterior.nc")
        ...     data = az.from_netcdf(f"{folder}/posterior.nc")
        ...     tree = xr.load_datatree(f"{folder}/posterior.nc", engine="h5netcdf")
        >>> flags = indicators(data)
        >>> flags.equals(indicators(tree))
        True
        >>> first = flags.isel(edge=flags.scene == "0", type=[1])
        >>> az.summary(first, kind="diagnostics", round_to="none").index[0]
        'edge_is_type[0: 0 -> 1, type_1]'
        >>> az.plot_trace(first.isel(edge=[0])).shape
        (1, 2)
    """
    if not isinstance(tree, xr.DataTree):
        tree = tree.to_datatree()
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
