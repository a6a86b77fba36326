"""What is compared between groups of scenes: densities, reciprocity, degrees, motifs; each with the family that fits it.

Every family but the first is taken around the densities that all scenes together have, with the number of linked edges
as one of its counts, so that a group may have its own density beside the count in question. Base measures are exact
for edges, pairs and stars of independent edges; for triads, and stars of tied pairs, they are 20,000 drawn structures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pyro_nri.posterior import motifs
from pyro_nri.posterior.permutation import Summary
from pyro_nri.posterior.pool import Atoms, Pool, combine, type_counts
from pyro_nri.posterior.tilting import Base, Family, Floats, Point, leave_one_out, maximise
from pyro_nri.scenes import edges

#: Quantities by name; "triads" are the sixteen classes one by one.
QUANTITIES = ("density", "degree", "reciprocity", "dispersion", "motifs", "triads")
#: Those that are compared if nothing else is said.
DEFAULT_QUANTITIES = QUANTITIES[:5]
# Drawn structures of a base measure, and the most edges that these may have together.
_NUM_BASE, _MAX_BASE_EDGES = 20_000, 20_000_000
_MAX_LEFT_OUT = 1000
# Of families of two counts and more.
_PENALTY = 0.1

Counts = Callable[[NDArray[np.bool_], int], list[NDArray[np.int64]]]


class Quantity(NamedTuple):
    """One number of a group of scenes, as a function of the scenes' mean moments.

    Attributes:
        name: what it is.
        type: code of the type.
        summary: ``[*batch, R]`` to ``[*batch]``.
        scale: on which it has no bounds, see :func:`~pyro_nri.posterior.permutation.group_interval`.
        unit: place among the sizes of the number of independent trials behind a share; None where scenes are those.
    """

    name: str
    type: int
    summary: Summary
    scale: str
    unit: int | None = None


@dataclass(frozen=True, eq=False)
class Model:
    """A family, where its search starts, known sizes of the scenes, and the quantities that it answers.

    Attributes:
        family: of P counts.
        start: ``[P]``.
        sizes: known numbers of each scene, which follow the P counts in its moments, ``[G, Q]``.
        quantities: the answers.
        penalty: see :func:`~pyro_nri.posterior.tilting.maximise`.
    """

    family: Family
    start: Floats
    sizes: Floats
    quantities: list[Quantity]
    penalty: float = 0.0

    def fit(self) -> Point:
        """The parameter of all scenes."""
        return maximise(self.family, self.start, penalty=self.penalty)

    def moments(self) -> Floats:
        """Pseudo-observations of the counts in all scenes, and the scenes' sizes, ``[G, P + Q]``."""
        return np.concatenate([self.fit().moments, self.sizes], axis=1)

    def estimate(self, chosen: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Mean moments of the chosen scenes by themselves, and what they are without each scene in turn.

        Returns:
            ``[P + Q]`` and ``[G, P + Q]``; instead of more than 1,000 scenes left out, moments that differ as much.
        """
        family, sizes = self.family.part(chosen), self.sizes[chosen]
        point, number = maximise(family, self.start, penalty=self.penalty), len(sizes)
        moments = np.concatenate([point.moments, sizes], axis=1)
        mean = moments.mean(0)
        if number == 1:
            return mean, np.full((1, len(mean)), np.nan)
        if number > _MAX_LEFT_OUT:
            return mean, mean - (moments - mean) / (number - 1)
        without = np.concatenate([leave_one_out(family, point), (sizes.sum(0) - sizes) / (number - 1)], axis=1)
        return mean, without


def edge_model(pool: Pool, names: set[str], types: Sequence[int]) -> Model:
    """Density and mean degree of some types."""
    parts = 2 if pool.tied else 1
    num_types = pool.num_types
    atoms = pool.receivers if pool.receivers is not None else _atoms(pool, lambda z, n: type_counts(z, num_types))
    atoms = combine(atoms._replace(value=atoms.value[:, 1:]))
    value = parts * np.eye(num_types)[:, 1:]
    bases = [Base(value, np.zeros(num_types), each.num_entities * (each.num_entities - 1) // parts) for each in pool.drawn]
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

    quantities = [
        Quantity(name, k, make(k), scale, unit)
        for name, make, scale, unit in (("density", density, "share", 0), ("degree", degree, "positive", None))
        if name in names
        for k in types
    ]
    return Model(_family(pool, atoms, bases), start, sizes, quantities)


def log_rates(pool: Pool, point: Point) -> Floats:
    """Log rates of the types at an edge (at a pair, if tied) from the point of :func:`edge_model`, ``[K]``."""
    weight = np.concatenate([[0.0], point.theta]) * (2 if pool.tied else 1)
    return np.asarray(weight - np.logaddexp.reduce(weight))


def other_models(
    pool: Pool, log_rate: Floats, names: set[str], types: Sequence[int], rng: np.random.Generator
) -> list[Model]:
    """Models of reciprocity, dispersion and motifs of some types, around the densities of all scenes.

    Args:
        pool: the scenes.
        log_rate: see :func:`log_rates`.
        names: which of :data:`QUANTITIES` are wanted.
        types: of which types.
        rng: draws base measures.
    """
    models = []
    sizes = np.stack(
        [pool.num_edges, pool.sizes, pool.num_edges * (pool.sizes - 2.0), pool.num_edges * (pool.sizes - 2.0) / 6], axis=1
    )
    for k in types:
        pairs = None
        if not pool.tied:
            pairs = _pair_model(pool, log_rate, k, sizes)
            if "reciprocity" in names:
                models.append(pairs)
        if "dispersion" in names:
            if pool.tied:
                stars = _counted(lambda z, n: [motifs.num_edges(z), motifs.num_stars(z, n, "in")])
                base = _draw_pairs(pool, log_rate, k, None, rng)
                model = _drawn_model(pool, log_rate, k, sizes, stars, base, None)
                models.append(_with(model, [Quantity("degree dispersion", k, _dispersion, "positive")]))
            else:
                models += [_star_model(pool, log_rate, k, sizes, ends) for ends in ("in", "out")]
        if not {"motifs", "triads"} & names:
            continue
        point = None if pairs is None else pairs.fit()
        models += _triad_models(pool, log_rate, k, sizes, point, names, rng)
    return models


def single_edge_model(
    pool: Pool, log_rate: Floats, edge: int, ends: tuple[str, str], types: Sequence[int]
) -> Model:
    """Rate of some types at one edge, all scenes having the same entities; other edges have the rates of all scenes.

    Args:
        pool: the scenes.
        log_rate: see :func:`log_rates`.
        edge: place of the edge.
        ends: names of its sender and receiver.
        types: of which types.
    """
    num_types, (drawn,) = pool.num_types, pool.drawn
    code = drawn.structure[:, edge].astype(np.int64)
    counts = type_counts(drawn.structure, num_types) // (2 if pool.tied else 1)
    weight = pool.log_likelihood[0] + counts @ log_rate - log_rate[code]
    value = np.eye(num_types, dtype=np.int64)[:, 1:]
    atoms = combine(Atoms(value[code], weight, drawn.scene[drawn.owner], np.arange(len(pool.sizes))))
    family = _family(pool, atoms, [Base(value.astype(np.float64), np.zeros(num_types), 1)])
    start = log_rate[1:] - log_rate[0]

    def rate(k: int) -> Summary:
        if k == 0:
            return lambda m: 1 - m.sum(-1)
        return lambda m: m[..., k - 1]

    name = f"edge {ends[0]} -> {ends[1]}"
    quantities = [Quantity(name, k, rate(k), "share") for k in types]
    return Model(family, start, np.empty((len(pool.sizes), 0)), quantities)


# --- models ----------------------------------------------------------------------------------------------------------
def _pair_model(pool: Pool, log_rate: Floats, k: int, sizes: Floats) -> Model:
    """Linked edges and mutual pairs; a pair is absent, one way or mutual."""
    counts = _counted(lambda z, n: [motifs.num_edges(z), motifs.num_mutual(z, n)])
    value = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]])
    one, none = log_rate[k], _log_rest(log_rate, k)
    weight = np.array([2 * none, np.log(2) + one + none, 2 * one])
    bases = [Base(value, weight, each.num_entities * (each.num_entities - 1) // 2) for each in pool.drawn]
    atoms = combine(_atoms(pool, _of_type(counts, k), log_rate))

    def reciprocity(m: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            density = m[..., 0] / m[..., 2]
            return np.asarray((2 * m[..., 1] / m[..., 0] - density) / (1 - density))

    return Model(_family(pool, atoms, bases), np.zeros(2), sizes, [Quantity("reciprocity", k, reciprocity, "correlation")], _PENALTY)


def _star_model(pool: Pool, log_rate: Floats, k: int, sizes: Floats, ends: str) -> Model:
    """Linked edges and pairs of them with one receiver, or one sender."""
    if ends == "in" and pool.receivers is not None:
        degree = pool.receivers.value[:, k]
        value = np.stack([degree, degree * (degree - 1) // 2], axis=1)
        weight = pool.receivers.log_likelihood + pool.receivers.value @ log_rate
        atoms = pool.receivers._replace(value=value, log_likelihood=weight)
    else:
        counts = _counted(lambda z, n: [motifs.num_edges(z), motifs.num_stars(z, n, ends)])
        atoms = _atoms(pool, _of_type(counts, k), log_rate)
    bases = []
    for each in pool.drawn:
        others = each.num_entities - 1
        degree = np.arange(others + 1)
        choose = gammaln(others + 1) - gammaln(degree + 1) - gammaln(others - degree + 1)
        weight = choose + degree * log_rate[k] + (others - degree) * _log_rest(log_rate, k)
        bases.append(Base(np.stack([degree, degree * (degree - 1) / 2], axis=1), weight, each.num_entities))
    quantity = Quantity(f"{ends}-degree dispersion", k, _dispersion, "positive")
    return Model(_family(pool, combine(atoms), bases), np.zeros(2), sizes, [quantity], _PENALTY)


def _triad_models(
    pool: Pool, log_rate: Floats, k: int, sizes: Floats, pairs: Point | None, names: set[str], rng: np.random.Generator
) -> list[Model]:
    """Linked edges, mutual pairs and one kind of triads."""

    def first(z: NDArray[np.bool_], n: int) -> list[NDArray[np.int64]]:
        return [motifs.num_edges(z)] + ([] if pool.tied else [motifs.num_mutual(z, n)])

    wanted: list[tuple[str, Counts, int]] = []  # name, count, place of the number of possible ones among the sizes
    if "motifs" in names and pool.tied:
        wanted.append(("triangles", lambda z, n: [motifs.num_cycles(z, n) // 2], 3))
    elif "motifs" in names:
        wanted.append(("transitive triads", lambda z, n: [motifs.num_transitive(z, n)], 2))
        wanted.append(("cyclic triads", lambda z, n: [motifs.num_cycles(z, n)], -1))
    if "triads" in names:
        classes = ("003", "102", "201", "300") if pool.tied else motifs.TRIADS
        for name in classes:
            place = motifs.TRIADS.index(name)
            wanted.append((f"triad {name}", lambda z, n, place=place: [motifs.triad_census(z, n)[:, place]], 3))
    base, result = _draw_pairs(pool, log_rate, k, pairs, rng), []
    for name, count, place in wanted:
        counts = _counted(lambda z, n, count=count: [*first(z, n), *count(z, n)])
        model = _drawn_model(pool, log_rate, k, sizes, counts, base, pairs)
        position = len(model.start) - 1

        def share(m: Floats, position: int = position, place: int = place) -> Floats:
            possible = m[..., position + 1 + place] if place >= 0 else m[..., position + 3] / 3
            with np.errstate(divide="ignore", invalid="ignore"):
                return np.asarray(m[..., position] / possible)

        result.append(_with(model, [Quantity(name, k, share, "share")]))
    return result


def _draw_pairs(
    pool: Pool, log_rate: Floats, k: int, pairs: Point | None, rng: np.random.Generator
) -> list[NDArray[np.bool_]]:
    """Linked edges of drawn structures with independent pairs, as all scenes have them; ``[J, E]`` for each size."""
    theta = np.zeros(2) if pairs is None else pairs.theta
    one, none = log_rate[k], _log_rest(log_rate, k)
    weight = np.array([2 * none, one + none, one + none, 2 * one + theta[1]]) + theta[0] * np.array([0, 1, 1, 2])
    if pool.tied:
        weight = np.array([none, -np.inf, -np.inf, one])
    share = np.exp(weight - np.logaddexp.reduce(weight))
    result = []
    for each in pool.drawn:
        both = edges.pairs(each.num_entities).numpy()
        size = min(_NUM_BASE, max(_MAX_BASE_EDGES // both.size, 100))
        choice = np.searchsorted(share.cumsum()[:-1], rng.random((size, len(both))), side="right")
        linked = np.zeros((size, both.size), bool)
        linked[:, both[:, 0]], linked[:, both[:, 1]] = choice >= 2, choice % 2 == 1
        result.append(linked)
    return result


def _drawn_model(
    pool: Pool,
    log_rate: Floats,
    k: int,
    sizes: Floats,
    counts: "Counted",
    base: list[NDArray[np.bool_]],
    pairs: Point | None,
) -> Model:
    """Counts that are no sums over independent parts: the base measure is drawn, from the pairs that all scenes have."""
    bases = []
    for each, linked in zip(pool.drawn, base, strict=True):
        value, number = counts(linked, each.num_entities), len(linked)
        same = np.zeros(number, np.int64)
        found = combine(Atoms(value, np.zeros(number), same, same[:1]))
        bases.append(Base(found.value.astype(np.float64), found.log_likelihood - np.log(number), 1))
    atoms = combine(_atoms(pool, _of_type(counts, k), log_rate))
    if pairs is not None:  # the base measure is that of the pairs
        atoms = atoms._replace(log_likelihood=atoms.log_likelihood + atoms.value[:, :2] @ pairs.theta)
    return Model(_family(pool, atoms, bases), np.zeros(atoms.value.shape[1]), sizes, [], _PENALTY)


def _dispersion(m: Floats) -> Floats:
    """Variance of the degree over entities, in units of that of independent edges of the same density.

    Moments: linked edges, pairs of them that share an end, edges, entities.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = m[..., 0] / m[..., 3]
        variance = (2 * m[..., 1] + m[..., 0]) / m[..., 3] - mean**2
        return np.asarray(variance / (mean * (1 - m[..., 0] / m[..., 2])))


# --- atoms -----------------------------------------------------------------------------------------------------------
Counted = Callable[[NDArray[np.bool_], int], NDArray[np.int64]]


def _counted(counts: Counts) -> Counted:
    return lambda linked, num_entities: np.stack(counts(linked, num_entities), axis=-1)


def _of_type(counts: Counted, k: int) -> Callable[[NDArray[np.int8], int], NDArray[np.int64]]:
    return lambda structure, num_entities: counts(structure == k, num_entities)


def _atoms(
    pool: Pool, counts: Callable[[NDArray[np.int8], int], NDArray[np.int64]], log_rate: Floats | None = None
) -> Atoms:
    """Scenes as units: counts of their distinct drawn structures, weighted for ``log_rate`` in place of the prior."""
    values, weights, owners = [], [], []
    for each, log_likelihood in zip(pool.drawn, pool.log_likelihood, strict=True):
        values.append(counts(each.structure, each.num_entities))
        if log_rate is not None:
            number = type_counts(each.structure, pool.num_types) // (2 if pool.tied else 1)
            log_likelihood = log_likelihood + number @ log_rate
        weights.append(log_likelihood)
        owners.append(each.scene[each.owner])
    unit = np.concatenate(owners)
    order = np.argsort(unit, kind="stable")
    return Atoms(
        np.concatenate(values)[order], np.concatenate(weights)[order], unit[order], np.arange(len(pool.sizes))
    )


def _family(pool: Pool, atoms: Atoms, bases: list[Base]) -> Family:
    kind = np.searchsorted([each.num_entities for each in pool.drawn], pool.sizes)
    return Family(atoms.value.astype(np.float64), atoms.log_likelihood, atoms.unit, atoms.scene, kind, bases)


def _with(model: Model, quantities: list[Quantity]) -> Model:
    return replace(model, quantities=quantities)


def _log_rest(log_rate: Floats, k: int) -> float:
    """Log rate of all types but one."""
    return float(np.log(-np.expm1(min(log_rate[k], -1e-12))))
