"""Posteriors whose receivers are independent and exactly known, and draws of them under other rates."""

from typing import NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.model.receivers import code_types
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.distinct import log_prior
from pyro_nri.posterior.motifs import num_edges
from pyro_nri.scenes import edges

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Source(NamedTuple):
    """A posterior in a pool.

    Attributes:
        tree: the posterior.
        prior: what it was drawn under.
        label: common label of each of its types, ``[K]``.
        first: number of its first scene.
    """

    tree: xr.DataTree
    prior: PriorRecord
    label: Integers
    first: int


class Atoms(NamedTuple):
    """Choices of independent units, and the likelihood of each.

    Attributes:
        value: a vector of whole numbers for each choice, ``[A, P]``.
        log_likelihood: up to a constant for each unit, ``[A]``.
        unit: number of the unit, ``[A]``, ascending.
        scene: scene of each unit, ``[U]``, ascending.
    """

    value: Integers
    log_likelihood: Floats
    unit: Integers
    scene: Integers


def type_counts(structure: NDArray[np.integer], num_types: int) -> Integers:
    """How many edges have each type: ``[*batch, E]`` to ``[*batch, K]``."""
    flat = structure.reshape(-1, structure.shape[-1])
    counts = np.stack([num_edges(flat == k) for k in range(num_types)], axis=-1)
    return counts.reshape(*structure.shape[:-1], num_types)


def receiver_atoms(source: Source) -> Atoms | None:
    """How many incoming edges of each receiver have each type, and the likelihood of that."""
    if "edge_posterior" not in source.tree.children or "receiver_probability" not in source.tree["edge_posterior"]:
        return None
    probability, exists = _codes(source.tree)
    num_types = len(source.label)
    count = type_counts(code_types(num_types, probability.shape[1]).numpy(), num_types)  # [R, K]
    kinds, of_code = np.unique(count, axis=0, return_inverse=True)
    by_count = probability @ np.eye(len(kinds))[of_code.ravel()]  # [G, N, U]
    scene, receiver, kind = np.nonzero((by_count > 0) & exists[:, :, None])
    value = kinds[kind]
    value[:, 0] -= (~exists).sum(1)[scene]  # absent senders hold type 0
    units, unit = np.unique(scene * probability.shape[1] + receiver, return_inverse=True)
    log_likelihood = np.log(by_count[scene, receiver, kind]) - log_prior(source.prior, value)
    moved = np.empty_like(value)
    moved[:, source.label] = value
    return Atoms(moved, log_likelihood, unit.astype(np.int64), units // probability.shape[1] + source.first)


def _codes(tree: xr.DataTree) -> tuple[Floats, NDArray[np.bool_]]:
    """Probabilities of receivers' codes ``[G, N, R]``, and which entities exist ``[G, N]``."""
    constant = group(tree, "constant_data")
    _, first = np.unique(constant["structure_group"].values, return_index=True)
    exists = constant["entity_mask"].values.astype(bool)[np.sort(first)]
    return np.asarray(group(tree, "edge_posterior")["receiver_probability"].values), exists


def draw_receivers(source: Source, log_rate: Floats, num_draws: int, rng: np.random.Generator) -> NDArray[np.int8]:
    """Draws ``[S, M]`` in common labels, each receiver's types at systematic places of its distribution."""
    probability, exists = _codes(source.tree)
    num_scenes, num_entities, num_codes = probability.shape
    types = code_types(len(source.label), num_entities).numpy()  # [R, N - 1]
    change = log_rate[source.label] - np.log(source.prior.type_probability)
    weight = probability * np.exp((change[types]).sum(1) - change[types].sum(1).max())
    cumulative = (weight / weight.sum(-1, keepdims=True)).cumsum(-1).reshape(-1, num_codes)
    uniform = (np.arange(num_draws) + rng.random((len(cumulative), 1))) / num_draws
    row = np.arange(len(cumulative))[:, None]
    cumulative[:, -1] = 1.0  # against rounding
    found = np.searchsorted((cumulative + row).ravel(), (uniform + row).ravel(), side="right").reshape(uniform.shape)
    codes = np.minimum(found - row * num_codes, num_codes - 1)
    codes = rng.permuted(codes, axis=1).reshape(num_scenes, num_entities, num_draws)
    draws = np.empty((num_draws, num_scenes, num_entities * (num_entities - 1)), np.int8)
    incoming = edges.incoming_edges(num_entities).numpy()
    labels = source.label.astype(np.int8)[types]
    for receiver in range(num_entities):
        draws[:, :, incoming[receiver]] = labels[codes[:, receiver].T]
    present = edges.from_matrix(torch.from_numpy(exists[:, :, None] & exists[:, None, :])).numpy()
    return draws[:, present]
