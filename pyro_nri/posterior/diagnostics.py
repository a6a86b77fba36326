"""Do the chains agree: R-hat, effective sample size and Monte Carlo error of many quantities at once.

The formulas are those of Vehtari et al. (2021) as ArviZ computes them (``rhat(method="rank")``, ``ess(method="bulk")``,
``mcse(method="mean")``), vectorised: ArviZ takes milliseconds for each quantity, a posterior has hundreds of thousands
of indicators "this edge has this type". Ranks of an indicator take two values, R-hat and effective sample size do not
change when values are shifted and scaled, and folding an indicator at its median gives it back, mirrored or constant.
So for indicators the rank-normalised figures are the plain ones, and no ranks are computed.

Most indicators of a sharp posterior never move. R-hat is 0/0 there, so each indicator is sorted into one of three kinds
first: *moving*; *constant and agreeing* (counted, no R-hat); *constant and disagreeing between chains* (R-hat infinite:
chains sit in different modes, the run fails its check).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from scipy.fft import next_fast_len
from scipy.special import ndtri
from scipy.stats import rankdata

from pyro_nri.posterior.convert import group
from pyro_nri.posterior.sample_stats import Moves, moves_of

CONSTANT, MOVING, DISAGREEING = 0, 1, 2
_WAITING_VALUES = 2**22  # indicators that wait until they are looked at together: 4 MiB
_CHUNK_VALUES = 2**17  # draws looked at together: 1 MiB of float64, so that the transforms stay in the cache


class Diagnostics(NamedTuple):
    """Diagnostics of many quantities, each array of the quantities' shape.

    Attributes:
        kind: CONSTANT (and agreeing), MOVING or DISAGREEING (constant in each chain, not the same in all), int8.
        r_hat: NaN where constant or where there are fewer than 2 chains or 4 draws; infinite where disagreeing.
        ess: bulk effective sample size; NaN where not moving or where there are fewer than 4 draws.
        mcse: Monte Carlo standard error of the mean; NaN where not moving or where there are fewer than 4 draws.
    """

    kind: NDArray[np.int8]
    r_hat: NDArray[np.float64]
    ess: NDArray[np.float64]
    mcse: NDArray[np.float64]


def edge_diagnostics(edge_type: NDArray[np.integer], num_edge_types: int) -> Diagnostics:
    """Diagnostics of the indicator of each type at each edge; the indicators themselves are never all in memory.

    Args:
        edge_type: draws ``[C, S, M]``.
        num_edge_types: K.

    Returns:
        Diagnostics ``[M, K]``.
    """
    num_chains, num_draws = edge_type.shape[:2]
    count = np.stack([(edge_type == k).sum(1) for k in range(num_edge_types)], axis=-1)
    result = _sort(count == 0, count == num_draws)
    if num_edge_types == 2:  # one indicator mirrors the other
        where = np.flatnonzero(result.kind[:, 0] == MOVING)
        wanted = np.stack([where, np.zeros_like(where)])
    else:
        wanted = np.stack(np.nonzero(result.kind == MOVING))
    for part in _parts(wanted.shape[1], num_chains * num_draws):
        edge, kind = wanted[:, part]
        found = _moving(np.moveaxis(edge_type[:, :, edge] == kind, -1, 0))
        for values, new in zip(result[1:], found, strict=True):
            values[edge, kind] = new
            if num_edge_types == 2:
                values[edge, 1] = new
    return result


def quantity_diagnostics(values: ArrayLike) -> Diagnostics:
    """Diagnostics of any quantities; R-hat and effective sample size of their normalised ranks unless they are boolean.

    Args:
        values: draws ``[C, S, *shape]``, finite.

    Returns:
        Diagnostics ``[*shape]``.

    Raises:
        ValueError: there are fewer than two axes, or a value is not finite.
    """
    draws = np.asarray(values)
    if draws.ndim < 2:
        raise ValueError(f"values must have shape [C, S, *shape], found {list(draws.shape)}")
    if not np.isfinite(draws).all():
        raise ValueError("values must be finite")
    num_chains, num_draws, *shape = draws.shape
    draws = np.moveaxis(draws.reshape(num_chains, num_draws, -1), -1, 0)  # [M, C, S]
    first = draws[:, :, :1]
    constant = (draws == first).all(-1)
    same = first[:, :, 0] == first[:, :1, 0]
    kind = np.where(constant.all(-1), np.where(same.all(-1), CONSTANT, DISAGREEING), MOVING).astype(np.int8)
    result = _empty(kind)
    wanted = np.flatnonzero(kind == MOVING)
    for part in _parts(len(wanted), num_chains * num_draws):
        found = _moving(draws[wanted[part]])
        for into, new in zip(result[1:], found, strict=True):
            into[wanted[part]] = new
    return Diagnostics(
        result.kind.reshape(shape), result.r_hat.reshape(shape), result.ess.reshape(shape), result.mcse.reshape(shape)
    )


def share_errors(indicators: Iterable[NDArray[np.bool_]]) -> Iterator[NDArray[np.float64]]:
    """Monte Carlo standard errors of the means of many indicators, NaN where one never moves.

    Args:
        indicators: a few at a time, bool ``[C, S, n]``; they are looked at together, as each look has its price.

    Yields:
        For each array its errors, ``[n]``.
    """
    waiting: list[NDArray[np.bool_]] = []
    for each in indicators:
        waiting.append(each)
        if sum(array.size for array in waiting) >= _WAITING_VALUES:
            yield from _errors(waiting)
            waiting = []
    if waiting:
        yield from _errors(waiting)


def _errors(arrays: list[NDArray[np.bool_]]) -> list[NDArray[np.float64]]:
    found = quantity_diagnostics(np.concatenate(arrays, axis=-1)).mcse
    return np.split(found, np.cumsum([array.shape[-1] for array in arrays])[:-1])


def diagnostics_frame(tree: xr.DataTree) -> pd.DataFrame:
    """One row for each scene: did its edges move, do its chains agree.

    Args:
        tree: a posterior.

    Returns:
        Columns ``scene``, ``num_edges``, ``num_moving``, ``num_constant``, ``num_disagreeing`` (edges, which add up: an
        edge is disagreeing if any of its indicators is, else moving if any is), ``r_hat_max`` (over all indicators that
        are not constant; NaN if none), ``ess_min`` (over moving indicators; NaN if none), ``acceptance_rate`` (accepted
        of proposed changes; NaN if none was proposed, as for independent draws of an exact posterior).
    """
    posterior, stats = group(tree, "posterior"), group(tree, "sample_stats")
    found = edge_diagnostics(posterior["edge_type"].values, int(tree.attrs["num_edge_types"]))
    names, scene = stats["scene"].values, posterior["scene_index"].values
    kind = found.kind.max(1, initial=CONSTANT)  # DISAGREEING > MOVING > CONSTANT
    r_hat = np.full(len(names), -np.inf)
    np.maximum.at(r_hat, scene, np.nan_to_num(found.r_hat, nan=-np.inf, posinf=np.inf).max(1))
    ess = np.full(len(names), np.inf)
    np.minimum.at(ess, scene, np.nan_to_num(found.ess, nan=np.inf).min(1))
    moves = moves_of(stats, str(tree.attrs["method"]))
    counts = {
        f"num_{name}": np.bincount(scene[kind == code], minlength=len(names))
        for name, code in (("moving", MOVING), ("constant", CONSTANT), ("disagreeing", DISAGREEING))
    }
    return pd.DataFrame(
        {
            "scene": names,
            "num_edges": np.bincount(scene, minlength=len(names)),
            **counts,
            "r_hat_max": np.where(r_hat == -np.inf, np.nan, r_hat),
            "ess_min": np.where(ess == np.inf, np.nan, ess),
            "acceptance_rate": _ratio(moves.accepted.sum((0, 1)), moves.proposed.sum((0, 1))),
        }
    )


def summarize(tree: xr.DataTree, *, r_hat_limit: float = 1.05, ess_limit: float | None = None) -> dict[str, Any]:
    """Overall verdict on a run, ready for JSON.

    Args:
        tree: a posterior.
        r_hat_limit: largest R-hat of a run that passes. Over thousands of indicators the largest R-hat exceeds 1.01 by
            chance alone, hence the wider default.
        ess_limit: smallest effective sample size of a run that passes; default 100 for each chain.

    Returns:
        ``num_scenes``, ``num_edges``, ``num_moving``, ``num_constant``, ``num_disagreeing``, ``num_chains``,
        ``num_draws`` (of each chain), ``r_hat_max`` and ``ess_min`` (None where nothing moves, "inf" as a float),
        ``acceptance_rate`` and ``acceptance_rate_by_move`` (None where nothing was proposed), ``method``, ``complete``,
        ``passed`` and ``problems``, a list of sentences. Independent draws of an exact posterior have nothing to
        converge: theirs is only that the run was interrupted.
    """
    frame, stats = diagnostics_frame(tree), group(tree, "sample_stats")
    num_chains, num_draws = stats.sizes["chain"], stats.sizes["draw"]
    moves = moves_of(stats, str(tree.attrs["method"]))
    ess_limit = 100.0 * num_chains if ess_limit is None else ess_limit
    totals = {str(name): int(frame[name].sum()) for name in frame.columns if str(name).startswith("num_")}
    r_hat, ess = _none(frame["r_hat_max"].max()), _none(frame["ess_min"].min())
    problems = []
    if not int(tree.attrs["complete"]):
        problems.append("The run was interrupted before it drew everything that was asked for.")
    if str(tree.attrs["method"]) != "exact":  # draws of an exact posterior are independent, however few there are
        if num_draws < 4:
            problems.append(
                f"{num_draws} draw{' is' if num_draws == 1 else 's are'} too few to diagnose, 4 are needed."
            )
        if num_chains < 2:
            problems.append("One chain cannot show that chains agree; run at least two.")
        if count := totals["num_disagreeing"]:
            problems.append(f"{count} edges are constant within each chain but not the same in all: R-hat is infinite.")
        elif r_hat is not None and r_hat > r_hat_limit:
            problems.append(f"The largest R-hat is {r_hat:.3f}, above {r_hat_limit:g}.")
        if ess is not None and ess < ess_limit:
            problems.append(f"The smallest effective sample size is {ess:.0f}, below {ess_limit:g}.")
    return {
        "num_scenes": len(frame),
        **totals,
        "num_chains": num_chains,
        "num_draws": num_draws,
        "r_hat_max": r_hat,
        "ess_min": ess,
        "acceptance_rate": _none(_ratio(moves.accepted.sum(), moves.proposed.sum())),
        "acceptance_rate_by_move": _acceptance_by_move(moves, group(tree, "constant_data")),
        "method": str(tree.attrs["method"]),
        "complete": bool(int(tree.attrs["complete"])),
        "passed": not problems,
        "problems": problems,
    }


def _acceptance_by_move(moves: Moves, constant: xr.Dataset) -> dict[str, float | None]:
    names = constant["move"].values.tolist() if "move" in constant.coords else []
    accepted, proposed = moves.accepted.sum((0, 2)), moves.proposed.sum((0, 2))  # [S]
    return {
        name: _none(_ratio(accepted[moves.kind == code].sum(), proposed[moves.kind == code].sum()))
        for code, name in enumerate(names)
    }


# --- statistics of moving quantities, [M, C, S] ----------------------------------------------------------------------
def _moving(draws: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """R-hat, bulk effective sample size and Monte Carlo standard error of the mean, each ``[M]``; NaN if undefined."""
    num_quantities, num_chains, num_draws = draws.shape
    missing = np.full(num_quantities, np.nan)
    if num_draws < 4:
        return missing, missing, missing
    indicator = draws.dtype == np.bool_
    draws = draws.astype(np.float64)
    half = num_draws // 2
    split = np.concatenate([draws[..., :half], draws[..., -half:]], axis=1)
    ranked = split if indicator else _z_scale(split)
    r_hat = missing
    if num_chains >= 2:
        r_hat = _r_hat(ranked)
        if not indicator:
            folded = np.abs(split - np.median(split, axis=(1, 2), keepdims=True))
            r_hat = np.fmax(r_hat, _r_hat(_z_scale(folded)))
    ess = _ess(ranked)
    mcse = draws.std(axis=(1, 2), ddof=1) / np.sqrt(ess if indicator else _ess(split))
    return r_hat, ess, mcse


def _z_scale(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normal scores of the ranks within each quantity, ties averaged, offset 3/8 (Blom)."""
    flat = values.reshape(len(values), -1)
    rank = rankdata(flat, method="average", axis=-1)
    return np.asarray(ndtri((rank - 0.375) / (flat.shape[1] + 0.25)).reshape(values.shape))


def _r_hat(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Plain R-hat of split chains ``[M, C, S]``; infinite if only the chains' means differ, NaN if nothing does."""
    num_draws = values.shape[-1]
    between = num_draws * values.mean(-1).var(-1, ddof=1)
    within = values.var(-1, ddof=1).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.sqrt((between / within + num_draws - 1) / num_draws))


def _ess(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Effective sample size of split chains ``[M, C, S]`` by Geyer's initial monotone sequence, as ArviZ does it."""
    num_quantities, num_chains, num_draws = values.shape
    covariance = _mean_autocovariance(values)  # [M, S]
    within = covariance[:, :1] * num_draws / (num_draws - 1)
    total = covariance[:, :1] + values.mean(-1).var(-1, ddof=1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = 1 - (within - covariance) / total
    correlation[:, 0] = 1
    num_pairs = max((num_draws - 3) // 2, 0) + 1
    even, odd = correlation[:, 0 : 2 * num_pairs : 2], correlation[:, 1 : 2 * num_pairs : 2]
    pair = even + odd
    # The sum runs over the pairs before the first that is not positive; that one adds its even lag at most.
    stop = pair <= 0
    last = np.where(stop.any(1), stop.argmax(1), num_pairs - 1)
    row = np.arange(num_quantities)
    tail = even[row, last]
    tail = np.where(pair[row, last] >= 0, tail, np.maximum(tail, 0))
    monotone = np.minimum.accumulate(pair, axis=1)
    time = -1 + 2 * np.where(np.arange(num_pairs) < last[:, None], monotone, 0).sum(1) + tail
    size = num_chains * num_draws
    ess = size / np.maximum(time, 1 / np.log10(size))
    constant = np.ptp(values, axis=(1, 2)) < np.finfo(float).resolution
    return np.where(constant, float(size), ess)


def _mean_autocovariance(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Autocovariance at each lag, averaged over chains: ``[M, C, S]`` to ``[M, S]``."""
    num_draws = values.shape[-1]
    length = next_fast_len(2 * num_draws, real=True)
    spectrum = np.fft.rfft(values - values.mean(-1, keepdims=True), length)
    power = (spectrum.real**2 + spectrum.imag**2).mean(
        1
    )  # chains are averaged before the way back: one transform, not C
    return np.asarray(np.fft.irfft(power, length)[:, :num_draws] / num_draws)


# --- bookkeeping -----------------------------------------------------------------------------------------------------
def _sort(never: NDArray[np.bool_], always: NDArray[np.bool_]) -> Diagnostics:
    """Kinds of indicators that are never or always true in each chain, ``[C, *shape]``; the rest still empty."""
    agree = never.all(0) | always.all(0)
    constant = (never | always).all(0)
    return _empty(np.where(constant, np.where(agree, CONSTANT, DISAGREEING), MOVING).astype(np.int8))


def _empty(kind: NDArray[np.int8]) -> Diagnostics:
    r_hat = np.where(kind == DISAGREEING, np.inf, np.nan)
    return Diagnostics(kind, r_hat, np.full(kind.shape, np.nan), np.full(kind.shape, np.nan))


def _parts(count: int, size: int) -> list[slice]:
    """Slices of at most ``_CHUNK_VALUES`` numbers when each of ``count`` quantities has ``size`` of them."""
    step = max(_CHUNK_VALUES // max(size, 1), 1)
    return [slice(start, start + step) for start in range(0, count, step)]


def _ratio(part: ArrayLike, whole: ArrayLike) -> NDArray[np.float64]:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))


def _none(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)
