"""Families of reciprocity, degrees and motifs.

Each is taken around the densities that all scenes together have, with the number of linked edges as one of its counts,
so that a group may have its own density beside the count in question. Base measures are exact for pairs, and for stars
of independent edges; for triads, and stars of tied pairs, they are 20,000 drawn structures.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from pyro_nri.posterior import motifs
from pyro_nri.posterior.exact_receivers import Atoms
from pyro_nri.posterior.permutation import Summary
from pyro_nri.posterior.pool import Pool, combine
from pyro_nri.posterior.quantities import Model, Quantity, family_of, scene_atoms
from pyro_nri.posterior.tilting import Base, Floats, Point
from pyro_nri.scenes import edges

# Drawn structures of a base measure, and the most edges that these may have together.
_NUM_BASE, _MAX_BASE_EDGES = 20_000, 20_000_000
# Of families of two counts and more.
_PENALTY = 0.1

Counts = Callable[[NDArray[np.bool_], int], list[NDArray[np.int64]]]
Counted = Callable[[NDArray[np.bool_], int], NDArray[np.int64]]


def other_models(
    pool: Pool, log_rate: Floats, names: set[str], types: Sequence[int], rng: np.random.Generator
) -> list[Model]:
    """Models of reciprocity, dispersion and motifs of some types, around the densities of all scenes.

    Args:
        pool: the scenes, see :func:`~pyro_nri.posterior.quantities.at_rates`.
        log_rate: see :func:`~pyro_nri.posterior.quantities.log_rates`.
        names: which of :data:`QUANTITIES` are wanted.
        types: of which types.
        rng: draws base measures.
    """
    models, triples = [], pool.num_edges * (pool.sizes - 2.0)
    sizes = np.stack([pool.num_edges, pool.sizes, triples, triples / 6, triples / 3], axis=1)
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
                models.append(replace(model, quantities=[Quantity("degree dispersion", k, _dispersion, "positive")]))
            else:
                models += [_star_model(pool, log_rate, k, sizes, ends) for ends in ("in", "out")]
        if not {"motifs", "triads"} & names:
            continue
        point = None if pairs is None else pairs.fit()
        models += _triad_models(pool, log_rate, k, sizes, point, names, rng)
    return models


# --- models ----------------------------------------------------------------------------------------------------------
def _pair_model(pool: Pool, log_rate: Floats, k: int, sizes: Floats) -> Model:
    """Linked edges and mutual pairs; a pair is absent, one way or mutual."""
    counts = _counted(lambda z, n: [motifs.num_edges(z), motifs.num_mutual(z, n)])
    value = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]])
    one, none = log_rate[k], _log_rest(log_rate, k)
    weight = np.array([2 * none, np.log(2) + one + none, 2 * one])
    bases = [Base(value, weight, each.num_entities * (each.num_entities - 1) // 2) for each in pool.drawn]
    atoms = combine(scene_atoms(pool, _of_type(counts, k)))

    def reciprocity(m: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            density = m[..., 0] / m[..., 2]
            return np.asarray((2 * m[..., 1] / m[..., 0] - density) / (1 - density))

    def one_way(m: Floats) -> Floats:
        """Expected one-way pairs if edges were independent; a correlation of one leaves none of them."""
        return np.asarray(m[..., 0] * (1 - m[..., 0] / m[..., 2]))

    quantity = Quantity("reciprocity", k, reciprocity, "correlation", one_way)
    return Model(family_of(pool, atoms, bases), np.zeros(2), sizes, [quantity], _PENALTY)


def _star_model(pool: Pool, log_rate: Floats, k: int, sizes: Floats, ends: str) -> Model:
    """Linked edges and pairs of them with one receiver, or one sender."""
    if ends == "in" and pool.receivers is not None:
        degree = pool.receivers.value[:, k]
        value = np.stack([degree, degree * (degree - 1) // 2], axis=1)
        weight = pool.receivers.log_likelihood + pool.receivers.value @ log_rate
        atoms = pool.receivers._replace(value=value, log_likelihood=weight)
    else:
        counts = _counted(lambda z, n: [motifs.num_edges(z), motifs.num_stars(z, n, ends)])
        atoms = scene_atoms(pool, _of_type(counts, k))
    bases = []
    for each in pool.drawn:
        others = each.num_entities - 1
        degree = np.arange(others + 1)
        choose = gammaln(others + 1) - gammaln(degree + 1) - gammaln(others - degree + 1)
        weight = choose + degree * log_rate[k] + (others - degree) * _log_rest(log_rate, k)
        bases.append(Base(np.stack([degree, degree * (degree - 1) / 2], axis=1), weight, each.num_entities))
    quantity = Quantity(f"{ends}-degree dispersion", k, _dispersion, "positive")
    return Model(family_of(pool, combine(atoms), bases), np.zeros(2), sizes, [quantity], _PENALTY)


def _triad_models(
    pool: Pool, log_rate: Floats, k: int, sizes: Floats, pairs: Point | None, names: set[str], rng: np.random.Generator
) -> list[Model]:
    """Linked edges, mutual pairs and one kind of triads."""
    wanted: list[tuple[str, Counted, int]] = []  # name, count, place of the number of possible ones among the sizes
    if "motifs" in names and pool.tied:
        wanted.append(("triangles", _num_triangles, 3))
    elif "motifs" in names:
        wanted += [("transitive triads", motifs.num_transitive, 2), ("cyclic triads", motifs.num_cycles, 4)]
    if "triads" in names:
        classes = ("003", "102", "201", "300") if pool.tied else motifs.TRIADS
        wanted += [(f"triad {name}", _in_class(motifs.TRIADS.index(name)), 3) for name in classes]
    base, result = _draw_pairs(pool, log_rate, k, pairs, rng), []
    for name, count, place in wanted:
        model = _drawn_model(pool, log_rate, k, sizes, _beside_edges(count, tied=pool.tied), base, pairs)
        scale = "share" if name.startswith("triad ") else "cube"
        quantity = Quantity(name, k, _share(len(model.start) - 1, place), scale)
        result.append(replace(model, quantities=[quantity], cautious=True))
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
    counts: Counted,
    base: list[NDArray[np.bool_]],
    pairs: Point | None,
) -> Model:
    """Counts that are no sums over independent parts; the base measure is drawn, with pairs as all scenes have."""
    bases = []
    for each, linked in zip(pool.drawn, base, strict=True):
        value, number = counts(linked, each.num_entities), len(linked)
        same = np.zeros(number, np.int64)
        found = combine(Atoms(value, np.zeros(number), same, same[:1]))
        bases.append(Base(found.value.astype(np.float64), found.log_likelihood - np.log(number), 1))
    atoms = combine(scene_atoms(pool, _of_type(counts, k)))
    if pairs is not None:  # the base measure is that of the pairs
        atoms = atoms._replace(log_likelihood=atoms.log_likelihood + atoms.value[:, :2] @ pairs.theta)
    return Model(family_of(pool, atoms, bases), np.zeros(atoms.value.shape[1]), sizes, [], _PENALTY)


def _dispersion(m: Floats) -> Floats:
    """Variance of the degree over entities, in units of that of independent edges of the same density.

    Moments: linked edges, pairs of them that share an end, edges, entities.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = m[..., 0] / m[..., 3]
        variance = (2 * m[..., 1] + m[..., 0]) / m[..., 3] - mean**2
        return np.asarray(variance / (mean * (1 - m[..., 0] / m[..., 2])))


def _share(position: int, place: int) -> Summary:
    """The count at a position, the last one, by the number of possible ones at a place among the sizes after it."""

    def share(m: Floats) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(m[..., position] / m[..., position + 1 + place])

    return share


def _num_triangles(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
    return motifs.num_cycles(linked, num_entities) // 2


def _in_class(place: int) -> Counted:
    return lambda linked, num_entities: motifs.triad_census(linked, num_entities)[:, place]


def _beside_edges(count: Counted, *, tied: bool) -> Counted:
    """Linked edges, mutual pairs unless all linked pairs are, and a count."""

    def counts(linked: NDArray[np.bool_], num_entities: int) -> NDArray[np.int64]:
        first = [motifs.num_edges(linked)] + ([] if tied else [motifs.num_mutual(linked, num_entities)])
        return np.stack([*first, count(linked, num_entities)], axis=-1)

    return counts


def _log_rest(log_rate: Floats, k: int) -> float:
    """Log rate of all types but one."""
    return float(np.log(-np.expm1(min(log_rate[k], -1e-12))))


def _counted(counts: Counts) -> Counted:
    return lambda linked, num_entities: np.stack(counts(linked, num_entities), axis=-1)


def _of_type(counts: Counted, k: int) -> Callable[[NDArray[np.int8], int], NDArray[np.int64]]:
    return lambda structure, num_entities: counts(structure == k, num_entities)
