"""What is compared between groups of scenes, and the families that answer it: here densities and single edges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyro_nri.posterior.exact_receivers import Atoms, type_counts
from pyro_nri.posterior.permutation import Summary
from pyro_nri.posterior.pool import Pool, combine
from pyro_nri.posterior.tilting import Base, Family, Floats, Point, leave_one_out, maximise

#: Quantities by name; "triads" are the sixteen classes one by one.
QUANTITIES = ("density", "degree", "reciprocity", "dispersion", "motifs", "triads")
#: Those that are compared if nothing else is said.
DEFAULT_QUANTITIES = QUANTITIES[:5]
_MAX_LEFT_OUT = 1000


class Quantity(NamedTuple):
    """One number of a group of scenes, as a function of the scenes' mean moments.

    Attributes:
        name: what it is.
        type: code of the type.
        summary: ``[*batch, R]`` to ``[*batch]``.
        scale: on which it has no bounds, see :func:`~pyro_nri.posterior.intervals.group_interval`.
        trials: independent trials behind the number in a scene, ``[*batch, R]`` to ``[*batch]``, for its interval where
            it is as small or large as can be; None where scenes are the trials.
    """

    name: str
    type: int
    summary: Summary
    scale: str
    trials: Summary | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A family, where its search starts, known sizes of the scenes, and the quantities that it answers.

    Attributes:
        family: of P counts.
        start: ``[P]``.
        sizes: known numbers of each scene, which follow the P counts in its moments, ``[G, Q]``.
        quantities: the answers.
        penalty: see :func:`~pyro_nri.posterior.tilting.maximise`.
        cautious: whether the step that leaves a scene out is too rough to be trusted alone, see :meth:`estimate`.
    """

    family: Family
    start: Floats
    sizes: Floats
    quantities: list[Quantity]
    penalty: float = 0.0
    cautious: bool = False

    def fit(self) -> Point:
        """The parameter of all scenes."""
        return maximise(self.family, self.start, penalty=self.penalty)

    def moments(self) -> Floats:
        """Pseudo-observations of the counts in all scenes, and the scenes' sizes, ``[G, P + Q]``."""
        return np.concatenate([self.fit().moments, self.sizes], axis=1)

    def estimate(self, chosen: NDArray[np.bool_]) -> tuple[Floats, list[Floats]]:
        """Mean moments of the chosen scenes by themselves, and what they are without each scene in turn.

        Returns:
            ``[P + Q]``, and one or more ``[G, P + Q]`` that differ as much as moments without each scene do, of which
            the one with the larger error counts: those after one Newton step without the scene, or for more than 1,000
            scenes those from pseudo-observations; both if the model is cautious. Far from all scenes' parameter a
            Newton step may stop short, and its error is then far too small (in studies of 20 weakly informative scenes
            the median of that of motifs was two thirds of the true one, that from pseudo-observations nine tenths).
        """
        family, sizes = self.family.part(chosen), self.sizes[chosen]
        point, number = maximise(family, self.start, penalty=self.penalty), len(sizes)
        moments = np.concatenate([point.moments, sizes], axis=1)
        mean = moments.mean(0)
        if number == 1:
            return mean, [np.full((1, len(mean)), np.nan)]
        near = mean - (moments - mean) / (number - 1)
        if number > _MAX_LEFT_OUT:
            return mean, [near]
        without = np.concatenate([leave_one_out(family, point), (sizes.sum(0) - sizes) / (number - 1)], axis=1)
        return mean, [without, near] if self.cautious else [without]


def edge_model(pool: Pool, names: set[str], types: Sequence[int]) -> Model:
    """Density and mean degree of some types."""
    parts = 2 if pool.tied else 1
    num_types = pool.num_types
    atoms = pool.receivers if pool.receivers is not None else scene_atoms(pool, lambda z, n: type_counts(z, num_types))
    atoms = combine(atoms._replace(value=atoms.value[:, 1:]))
    value = parts * np.eye(num_types)[:, 1:]
    bases = [
        Base(value, np.zeros(num_types), each.num_entities * (each.num_entities - 1) // parts) for each in pool.drawn
    ]
    mean = np.clip(pool.edge_probability.mean(0), 1e-3, None)
    start = np.log(mean[1:] / mean[0]) / parts
    sizes = np.stack([pool.num_edges, pool.sizes], axis=1).astype(np.float64)

    def density(k: int) -> Summary:
        if k == 0:
            return lambda m: 1 - m[..., : num_types - 1].sum(-1) / m[..., num_types - 1]
        return lambda m: m[..., k - 1] / m[..., num_types - 1]

    def degree(k: int) -> Summary:
        share = density(k)
        return lambda m: share(m) * m[..., num_types - 1] / m[..., num_types]

    wanted = {"density": (density, "share", lambda m: m[..., num_types - 1]), "degree": (degree, "positive", None)}
    quantities = [
        Quantity(name, k, make(k), scale, trials)
        for name, (make, scale, trials) in wanted.items()
        if name in names
        for k in types
    ]
    return Model(family_of(pool, atoms, bases), start, sizes, quantities)


def log_rates(pool: Pool, point: Point) -> Floats:
    """Log rates of the types at an edge (at a pair, if tied) from the point of :func:`edge_model`, ``[K]``."""
    weight = np.concatenate([[0.0], point.theta]) * (2 if pool.tied else 1)
    return np.asarray(weight - np.logaddexp.reduce(weight))


def single_edge_model(pool: Pool, log_rate: Floats, edge: int, ends: tuple[str, str], types: Sequence[int]) -> Model:
    """Rate of some types at one edge, all scenes having the same entities; other edges have the rates of all scenes.

    Args:
        pool: the scenes, see :func:`at_rates`.
        log_rate: see :func:`log_rates`.
        edge: place of the edge.
        ends: names of its sender and receiver.
        types: of which types.
    """
    num_types, (drawn,) = pool.num_types, pool.drawn
    code = drawn.structure[:, edge].astype(np.int64)
    weight = pool.log_likelihood[0] - log_rate[code]
    value = np.eye(num_types, dtype=np.int64)[:, 1:]
    atoms = combine(Atoms(value[code], weight, drawn.scene[drawn.owner], np.arange(len(pool.sizes))))
    family = family_of(pool, atoms, [Base(value.astype(np.float64), np.zeros(num_types), 1)])
    start = log_rate[1:] - log_rate[0]

    def rate(k: int) -> Summary:
        if k == 0:
            return lambda m: 1 - m.sum(-1)
        return lambda m: m[..., k - 1]

    name = f"edge {ends[0]} -> {ends[1]}"
    quantities = [Quantity(name, k, rate(k), "share") for k in types]
    return Model(family, start, np.empty((len(pool.sizes), 0)), quantities)


# --- atoms -----------------------------------------------------------------------------------------------------------
def at_rates(pool: Pool, log_rate: Floats) -> Pool:
    """The pool with likelihoods times the probability of each structure at these rates."""
    weights = []
    for each, log_likelihood in zip(pool.drawn, pool.log_likelihood, strict=True):
        number = type_counts(each.structure, pool.num_types) // (2 if pool.tied else 1)
        weights.append(log_likelihood + number @ log_rate)
    return replace(pool, log_likelihood=weights)


def scene_atoms(pool: Pool, counts: Callable[[NDArray[np.int8], int], NDArray[np.int64]]) -> Atoms:
    """Scenes as units: counts of their distinct drawn structures, with the weights that the pool gives them."""
    value = np.concatenate([counts(each.structure, each.num_entities) for each in pool.drawn])
    weight = np.concatenate(pool.log_likelihood)
    unit = np.concatenate([each.scene[each.owner] for each in pool.drawn])
    if len(pool.drawn) > 1:  # else scenes are in order already
        order = np.argsort(unit, kind="stable")
        value, weight, unit = value[order], weight[order], unit[order]
    return Atoms(value, weight, unit, np.arange(len(pool.sizes)))


def family_of(pool: Pool, atoms: Atoms, bases: list[Base]) -> Family:
    """A family of the scenes of a pool; one base measure for each number of entities, in the pool's order."""
    kind = np.searchsorted([each.num_entities for each in pool.drawn], pool.sizes)
    return Family(atoms.value.astype(np.float64), atoms.log_likelihood, atoms.unit, atoms.scene, kind, bases)
