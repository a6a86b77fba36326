"""Scenes of one or more posteriors side by side, with their priors divided out."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.distinct import Distinct, distinct_among, distinct_structures, log_prior, scene_sizes
from pyro_nri.posterior.exact_receivers import (
    Atoms,
    Floats,
    Integers,
    Source,
    draw_receivers,
    receiver_atoms,
    type_counts,
)
from pyro_nri.posterior.prior_records import prior_record

# Fewer effective draws of a scene than this, once reweighted, are few.
_FEW_DRAWS = 20


@dataclass(frozen=True, eq=False)
class Pool:
    """G scenes whose types have the same meaning.

    Attributes:
        sources: the posteriors.
        sizes: number of entities of each scene, ``[G]``.
        num_types: K.
        tied: whether both edges of a pair have one type in every structure.
        drawn: distinct structures by number of entities; ``scene`` numbers the G scenes.
        log_likelihood: of each of these structures, up to a constant for each scene.
        receivers: exact likelihoods of how many incoming edges of each receiver have each type ``[A, K]``, or None.
        num_draws: draws of all chains of each scene, ``[G]``.
        edge_probability: posterior probabilities as they were drawn, of each scene's edges in turn, ``[M, K]``.
    """

    sources: list[Source]
    sizes: Integers
    num_types: int
    tied: bool
    drawn: list[Distinct]
    log_likelihood: list[Floats]
    receivers: Atoms | None
    num_draws: Integers
    edge_probability: Floats

    @property
    def num_edges(self) -> Integers:
        """Number of edges of each scene, ``[G]``."""
        return self.sizes * (self.sizes - 1)


def make_pool(
    trees: Sequence[xr.DataTree], probabilities: Sequence[Floats], relabels: Sequence[Integers] | None = None
) -> Pool:
    """Put posteriors side by side, one after the other.

    Args:
        trees: posteriors.
        probabilities: their edge probabilities ``[M, K]``.
        relabels: for each posterior the common label of each of its types, ``[K]``.

    Raises:
        ValueError: numbers of types differ, a posterior does not say its prior, or a prior cannot be divided out.
    """
    num_types = [int(tree.attrs["num_edge_types"]) for tree in trees]
    if len(set(num_types)) > 1:
        raise ValueError(f"posteriors must have the same number of edge types, found {num_types[0]} and {num_types[1]}")
    if num_types[0] < 2:
        raise ValueError("posteriors must have at least two edge types, found 1: there is nothing to compare")
    records = [_record(tree) for tree in trees]
    tied = {record.name in ("symmetric", "sparse") for record in records}
    if len(tied) > 1:
        raise ValueError(
            "posteriors must all have been drawn under independent edges, or all under a prior that gives both edges "
            f"of a pair one type, found {' and '.join(sorted({record.name for record in records}))}"
        )
    sizes, drawn, receivers, num_draws, edges_of = [], [], [], [], []
    start, sources = 0, []
    for index, (tree, record) in enumerate(zip(trees, records, strict=True)):
        label = np.arange(num_types[0]) if relabels is None else np.asarray(relabels[index])
        sources.append(Source(tree, record, label, start))
        sizes.append(scene_sizes(tree))
        for each in distinct_structures(tree):
            log_share = np.log(each.share) - log_prior(record, type_counts(each.structure, num_types[0]))
            structure = label.astype(np.int8)[each.structure]
            drawn.append((each._replace(scene=each.scene + start, structure=structure), log_share))
        receivers.append(receiver_atoms(sources[-1]) if record.name == "independent" else None)
        shape = group(tree, "posterior")["edge_type"].shape
        num_draws.append(np.full(len(sizes[-1]), shape[0] * shape[1]))
        moved = np.empty_like(probabilities[index])
        moved[:, label] = probabilities[index]
        edges_of.append(moved)
        start += len(sizes[-1])
    merged = _merge(drawn)
    known = [each for each in receivers if each is not None]
    return Pool(
        sources,
        np.concatenate(sizes),
        num_types[0],
        tied.pop(),
        [each for each, _ in merged],
        [log_likelihood for _, log_likelihood in merged],
        _append(known) if len(known) == len(receivers) else None,
        np.concatenate(num_draws),
        np.concatenate(edges_of),
    )


def redrawn(pool: Pool, log_rate: Floats, rng: np.random.Generator, *, num_draws: int = 500) -> Pool:
    """The same scenes with fresh draws under the rates of all of them, where receivers' probabilities are exact.

    Draws that were made under the prior are few where the rates are far from it; these are right as they are. A pool
    without exact receivers comes back as it is, after a warning if draws are few.

    Args:
        pool: the scenes.
        log_rate: log rates of the types at an edge (at a pair, if tied), in common labels, ``[K]``.
        rng: draws.
        num_draws: draws of each scene.
    """
    if pool.receivers is None:
        _warn_of_few_draws(pool, log_rate)
        return pool
    drawn = []
    for source in pool.sources:
        sizes = scene_sizes(source.tree)
        draws = draw_receivers(source, log_rate, num_draws, rng)
        for each in distinct_among(draws, sizes):
            counts = type_counts(each.structure, pool.num_types)
            drawn.append((each._replace(scene=each.scene + source.first), np.log(each.share) - counts @ log_rate))
    merged = _merge(drawn)
    return replace(
        pool,
        drawn=[each for each, _ in merged],
        log_likelihood=[log_likelihood for _, log_likelihood in merged],
        num_draws=np.full_like(pool.num_draws, num_draws),
    )


def combine(atoms: Atoms) -> Atoms:
    """The same with choices of one unit that have one value added up."""
    low = atoms.value.min(0, initial=0)
    span = atoms.value.max(0, initial=0) - low + 1
    code = atoms.unit.copy()
    for p in range(atoms.value.shape[1]):
        code = code * span[p] + (atoms.value[:, p] - low[p])
    order = np.argsort(code, kind="stable")
    first = np.flatnonzero(np.diff(code[order], prepend=-1))
    log_likelihood = atoms.log_likelihood[order]
    largest = np.maximum.reduceat(log_likelihood, first)
    number = np.diff(np.append(first, len(order)))
    total = np.add.reduceat(np.exp(log_likelihood - np.repeat(largest, number)), first)
    kept = order[first]
    return Atoms(atoms.value[kept], largest + np.log(total), atoms.unit[kept], atoms.scene)


def _warn_of_few_draws(pool: Pool, log_rate: Floats) -> None:
    """Say so if draws are few once they are weighted for the pooled rates in place of the prior."""
    few = 0
    for each, log_likelihood in zip(pool.drawn, pool.log_likelihood, strict=True):
        log_share = np.log(each.share)
        counts = type_counts(each.structure, pool.num_types) // (2 if pool.tied else 1)
        log_ratio = log_likelihood - log_share + counts @ log_rate
        largest = np.full(len(each.scene), -np.inf)
        np.maximum.at(largest, each.owner, log_ratio)
        ratio = np.exp(log_ratio - largest[each.owner])
        mean = np.bincount(each.owner, each.share * ratio)
        square = np.bincount(each.owner, each.share * ratio**2)
        few += int((mean**2 / square * pool.num_draws[each.scene] < _FEW_DRAWS).sum())
    if few > 0.05 * len(pool.sizes):
        warnings.warn(
            f"{few} of {len(pool.sizes)} scenes have fewer than {_FEW_DRAWS} effective draws once the prior is divided "
            f"out; infer with more draws, or with a prior nearer to the rates of these scenes",
            stacklevel=4,
        )


def _record(tree: xr.DataTree) -> PriorRecord:
    record = prior_record(group(tree, "constant_data"))
    if record is None:
        raise ValueError(
            "a posterior does not say under which prior it was drawn, so the prior cannot be divided out; infer again "
            "with this version"
        )
    if record.name == "charges":
        raise ValueError(
            "a posterior was drawn under the prior 'charges', which rules most structures out whatever the data say; "
            "compare groups by posteriors under the prior 'independent' or 'symmetric'"
        )
    return record


def _merge(pairs: list[tuple[Distinct, Floats]]) -> list[tuple[Distinct, Floats]]:
    """Structures of several posteriors by number of entities; scenes stay in ascending order."""
    sizes = sorted({each.num_entities for each, _ in pairs})
    return [_join([pair for pair in pairs if pair[0].num_entities == size]) for size in sizes]


def _join(pairs: list[tuple[Distinct, Floats]]) -> tuple[Distinct, Floats]:
    start = np.cumsum([0, *(len(each.scene) for each, _ in pairs)])
    whole = Distinct(
        pairs[0][0].num_entities,
        np.concatenate([each.scene for each, _ in pairs]),
        np.concatenate([each.structure for each, _ in pairs]),
        np.concatenate([each.owner + first for (each, _), first in zip(pairs, start[:-1], strict=True)]),
        np.concatenate([each.share for each, _ in pairs]),
    )
    return whole, np.concatenate([log_likelihood for _, log_likelihood in pairs])


def _append(parts: list[Atoms]) -> Atoms:
    start = np.cumsum([0, *(len(part.scene) for part in parts)])
    return Atoms(
        np.concatenate([part.value for part in parts]),
        np.concatenate([part.log_likelihood for part in parts]),
        np.concatenate([part.unit + first for part, first in zip(parts, start[:-1], strict=True)]),
        np.concatenate([part.scene for part in parts]),
    )
