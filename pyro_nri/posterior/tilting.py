r"""Rates of a group of scenes by maximum marginal likelihood, the common prior divided out.

A posterior was drawn under one prior for all scenes, and its means lean towards that prior: the less a scene's data
say, the more. So rates of a group are not taken from posterior means. They are the parameters of a prior of the
group's own, an exponential family around a base measure b,

.. math:: p_\theta(z) = b(z) e^{\theta s(z)} / Z(\theta),

fitted by the marginal likelihood of all scenes of the group,

.. math:: \ell(\theta) = \sum_g \log \sum_z L_g(z) p_\theta(z), \qquad L_g(z) \propto p(z \mid x_g) / p_0(z),

where :math:`p(z \mid x_g)` is the posterior as it was drawn and :math:`p_0` the prior that it was drawn under (an
empirical-Bayes estimate; for two types and s the number of linked edges it is the rate that the data are likeliest
under). At the maximum the mean of s over scenes *under the group's own prior* equals its mean under that prior's
posteriors, so nothing is left that leans towards :math:`p_0`.

The gradient of one scene's term, :math:`u_g = E[s \mid x_g] - E[s]`, is what that scene adds. Its *pseudo-observation*
:math:`y_g = E[s] + V H^{-1} u_g`, with V the sum over scenes of the prior variances of s and H that of prior minus
posterior variances (the information), is the number s itself where the data leave no doubt; where they do, it is as
wide as the data are weak, and leans nowhere. Groups and covariates are compared by these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
# How far a parameter may go from where the search starts: shares of e^-20 are as good as 0, and a count of mutual pairs
# needs twice as much beside the count of edges.
_BOX = 40.0
_MAX_STEPS = 200
# Numbers of a base measure at many parameters that are held at once.
_CHUNK_NUMBERS = 2**22


class Base(NamedTuple):
    """A scene before any data: independent parts, all alike.

    Attributes:
        value: s of each choice of a part, ``[J, P]``.
        log_weight: log of the base measure of each choice, ``[J]``.
        copies: number of parts; s of the scene is the sum over them.
    """

    value: Floats
    log_weight: Floats
    copies: int


@dataclass(frozen=True, eq=False)
class Family:
    """What the data say of s, and the base measure.

    Attributes:
        value: s of each atom, ``[A, P]``.
        log_weight: log of likelihood times base measure of each atom, up to a constant for each unit, ``[A]``.
        unit: number of the unit that each atom belongs to, ``[A]``, ascending; units are independent, as receivers.
        scene: number of the scene that each unit belongs to, ``[U]``, ascending, from 0.
        kind: which of ``bases`` each scene has, ``[G]``.
        bases: base measures.
    """

    value: Floats
    log_weight: Floats
    unit: NDArray[np.int64]
    scene: NDArray[np.int64]
    kind: NDArray[np.int64]
    bases: Sequence[Base]

    @property
    def num_scenes(self) -> int:
        """G."""
        return len(self.kind)

    def part(self, chosen: NDArray[np.bool_]) -> "Family":
        """The chosen scenes only, bool ``[G]``."""
        units = chosen[self.scene]
        atoms = units[self.unit]
        number = np.cumsum(units) - 1
        place = np.cumsum(chosen) - 1
        unit, scene = number[self.unit[atoms]], place[self.scene[units]]
        return Family(self.value[atoms], self.log_weight[atoms], unit, scene, self.kind[chosen], self.bases)


class Point(NamedTuple):
    """A family at one parameter.

    Attributes:
        theta: ``[P]``.
        log_marginal: sum over scenes, up to a constant, less the penalty.
        mean: E[s] of each scene under its prior, ``[G, P]``.
        score: gradient of each scene's term, ``[G, P]``.
        prior_variance: V, ``[P, P]``.
        information: H and the precision of the penalty, ``[P, P]``.
        gradient: of ``log_marginal``, ``[P]``.
    """

    theta: Floats
    log_marginal: float
    mean: Floats
    score: Floats
    prior_variance: Floats
    information: Floats
    gradient: Floats

    @property
    def moments(self) -> Floats:
        """Pseudo-observations of s, ``[G, P]``; see the head of this file."""
        score = self.score - self.score.mean(0)  # 0 but for the penalty
        size = np.sqrt(np.diag(self.prior_variance))
        size = np.where(size > 1e-9, size, 1.0)
        information = self.information / size / size[:, None]
        if np.abs(information).max() < 1e-12:  # nothing varies any more: every scene has the same s for certain
            return np.asarray(self.mean + score)
        gain = np.linalg.pinv(information, rcond=1e-8, hermitian=True) @ (self.prior_variance / size / size[:, None])
        return np.asarray(self.mean + (score / size) @ gain * size)


def at(family: Family, theta: Floats, start: Floats, precision: Floats) -> Point:
    """Evaluate a family, see :class:`Point`; the penalty is a normal prior of theta around ``start``."""
    size = len(theta)
    first = np.flatnonzero(np.diff(family.unit, prepend=-1))
    exponent = family.log_weight + family.value @ theta
    largest = np.maximum.reduceat(exponent, first)
    weight = np.exp(exponent - largest[family.unit])
    total = np.add.reduceat(weight, first)
    weight /= total[family.unit]
    unit_mean = np.stack([np.add.reduceat(weight * family.value[:, p], first) for p in range(size)], axis=-1)
    posterior_variance = (family.value * weight[:, None]).T @ family.value - unit_mean.T @ unit_mean
    scene_mean = np.stack([np.bincount(family.scene, unit_mean[:, p], family.num_scenes) for p in range(size)], axis=-1)
    log_marginal = float((largest + np.log(total)).sum())
    prior_mean, prior_variance = np.empty((len(family.bases), size)), np.zeros((size, size))
    for kind, base in enumerate(family.bases):
        number = int((family.kind == kind).sum())
        exponent = base.log_weight + base.value @ theta
        largest_one = exponent.max()
        share = np.exp(exponent - largest_one)
        log_total = largest_one + np.log(share.sum())
        share /= share.sum()
        mean = share @ base.value
        centred = base.value - mean
        prior_mean[kind] = base.copies * mean
        prior_variance += number * base.copies * (centred * share[:, None]).T @ centred
        log_marginal -= number * base.copies * float(log_total)
    mean = prior_mean[family.kind]
    away = precision @ (theta - start)
    score = scene_mean - mean
    return Point(
        theta,
        log_marginal - float((theta - start) @ away) / 2,
        mean,
        score,
        prior_variance,
        prior_variance - posterior_variance + precision,
        score.sum(0) - away,
    )


def maximise(family: Family, start: Floats, *, penalty: float = 0.0, tolerance: float = 1e-9) -> Point:
    """The parameter of largest marginal likelihood, by Newton's method with safeguards.

    Where the likelihood grows towards infinity, as for a type that no scene has, the search ends far out.

    Args:
        family: the family.
        start: where to begin, ``[P]``.
        penalty: a normal prior around ``start`` with this many times the information that one scene lacks, nothing
            where the data leave no doubt. Where data are weak, it keeps the search from following a likelihood that
            goes on growing slowly towards extremes.
        tolerance: gain in log marginal likelihood below which the search ends.
    """
    start = np.asarray(start, np.float64)
    none = np.zeros((len(start), len(start)))
    point = at(family, start, start, none)
    precision = penalty * (point.prior_variance - point.information) / family.num_scenes
    point = at(family, start, start, precision)
    for _ in range(_MAX_STEPS):
        gradient = point.gradient
        step = _step(point, gradient)
        step = np.clip(point.theta + step, start - _BOX, start + _BOX) - point.theta
        gain = float(gradient @ step)
        if gain < tolerance:
            return point
        length = 1.0
        while True:
            new = at(family, point.theta + length * step, start, precision)
            if new.log_marginal >= point.log_marginal + 1e-4 * length * gain:
                break
            length /= 2
            if length < 1e-6:
                return point
        point = new
    return point


def _step(point: Point, gradient: Floats) -> Floats:
    """Newton's step, or where the likelihood is not concave that of expectation and maximisation, which always climbs.

    No parameter moves by more than 3 at once.
    """
    for matrix in (point.information, point.prior_variance):
        size = np.sqrt(np.abs(np.diag(matrix)))
        size = np.where(size > 1e-150, size, 1.0)
        value, vector = np.linalg.eigh(matrix / size / size[:, None])
        if matrix is point.prior_variance or value.min() > 1e-6:
            kept = value > 1e-9
            inverse = np.where(kept, 1 / np.where(kept, value, 1.0), 0.0)
            step = (vector * inverse) @ (vector.T @ (gradient / size)) / size
            return np.asarray(step / max(1.0, float(np.abs(step).max()) / 3))
    raise AssertionError("the prior variance is the last resort")


def leave_one_out(family: Family, point: Point) -> Floats:
    """Mean of s over the other scenes, with the parameter that these have without each scene in turn, ``[G, P]``.

    The parameter is that of one Newton step from where all scenes lead: ``theta - (H - H_g)^-1 u_g``.
    """
    size, num_scenes = len(point.theta), family.num_scenes
    information = _scene_information(family, point)
    rest = point.information - information  # [G, P, P]
    scale = np.sqrt(np.maximum(np.diag(point.information), 1e-300))
    value, vector = np.linalg.eigh(rest / scale / scale[:, None])
    inverse = np.where(value > 1e-6, 1 / np.where(value > 1e-6, value, 1.0), 0.0)
    score = (point.score - point.score.mean(0)) / scale
    step = np.einsum("gpq,gq,grq,gr->gp", vector, inverse, vector, score) / scale
    theta = point.theta - np.clip(step, -3, 3)
    counts = np.bincount(family.kind, minlength=len(family.bases))
    total = np.zeros((num_scenes, size))
    for kind, base in enumerate(family.bases):
        chunk = max(1, _CHUNK_NUMBERS // len(base.value))
        for first in range(0, num_scenes, chunk):
            part = slice(first, first + chunk)
            exponent = theta[part] @ base.value.T + base.log_weight  # [G, J]
            share = np.exp(exponent - exponent.max(1, keepdims=True))
            mean = base.copies * (share @ base.value) / share.sum(1, keepdims=True)
            total[part] += mean * (counts[kind] - (family.kind[part] == kind))[:, None]
    return total / (num_scenes - 1)


def _scene_information(family: Family, point: Point) -> Floats:
    """Prior minus posterior variance of s in each scene, ``[G, P, P]``."""
    size = len(point.theta)
    first = np.flatnonzero(np.diff(family.unit, prepend=-1))
    exponent = family.log_weight + family.value @ point.theta
    weight = np.exp(exponent - np.maximum.reduceat(exponent, first)[family.unit])
    weight /= np.add.reduceat(weight, first)[family.unit]
    mean = np.stack([np.add.reduceat(weight * family.value[:, p], first) for p in range(size)], axis=-1)
    centred = family.value - mean[family.unit]
    owner = family.scene[family.unit]
    result = np.empty((family.num_scenes, size, size))
    for p in range(size):
        for q in range(size):
            spread = np.bincount(owner, weight * centred[:, p] * centred[:, q], family.num_scenes)
            result[:, p, q] = -spread
    for kind, base in enumerate(family.bases):
        exponent = base.log_weight + base.value @ point.theta
        share = np.exp(exponent - exponent.max())
        share /= share.sum()
        about = base.value - share @ base.value
        result[family.kind == kind] += base.copies * (about * share[:, None]).T @ about
    return result
