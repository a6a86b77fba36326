"""May a run be trusted: do chains visit the same structures, how often do they move on, and what to do if not.

R-hat and effective sample size of indicators (``diagnostics.py``) see one edge at a time. Here whole structures are
compared, as phylogenetics compares trees: by how often chains have each part, by the distances of draws to a few of
them, and by which chains visit the same ones. None of it sees a mode that no chain has found.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.model.hidden_motion import MOST_UNEXPLAINED
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.diagnostics import DISAGREEING, diagnostics_frame, quantity_diagnostics, summarize
from pyro_nri.posterior.hidden_frames import num_hidden_frame
from pyro_nri.posterior.recorded import is_noisy
from pyro_nri.posterior.states import HIDDEN, renamed_hidden, states_frame

_MIN_DRAWS = 4  # of each chain, as in diagnostics.py
_RARE = 0.05  # a type that all chains draw less often, or all more often than 1 - _RARE, is settled
_SHARED = 0.05  # chains that have so much of their draws in common are in one mode
_NUM_REFERENCES = 4  # draws to which distances are taken, beside the most frequent structure; time grows with them
_NUM_NAMED = 3  # scenes that a sentence names
_STATES = {"hidden": "initial states of hidden entities", "recorded": "initial states of recorded entities"}


@dataclass(frozen=True, eq=False)
class Check:
    """Whether to trust a run; printed, it is verdict, problems and advice.

    Attributes:
        passed: no problem was found.
        verdict: one sentence.
        problems: a sentence for each.
        advice: what to do about them, by the arguments of :func:`~pyro_nri.inference.run.infer`.
        table: one row for each scene, see :func:`check`.
    """

    passed: bool
    verdict: str
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    table: pd.DataFrame

    def __str__(self) -> str:
        lines = [self.verdict]
        for title, sentences in (("Problems:", self.problems), ("What to do:", self.advice)):
            lines += [title, *(f"  {sentence}" for sentence in sentences)] if sentences else []
        return "\n".join(lines)


def check(tree: xr.DataTree, *, r_hat_limit: float = 1.05, ess_limit: float | None = None) -> Check:
    """Say whether to trust a run, and what to do if not.

    A run fails by the problems of :func:`summarize`, if chains of a scene sit in different modes, or if the median
    effective sample size of whole structures is too small where they sit in one. It fails too if chains disagree about
    initial states, of hidden entities (whichever of them is called the first) or of recorded ones where recordings have
    measurement noise, or have too few effective draws of them; and if hidden entities do not explain a scene.
    Deviations of frequencies decide nothing beside R-hat; they say how far off the answer may be. An exact posterior
    passes: its draws are independent. No posterior passes whose scenes ``pyro-nri infer`` found far outside the states
    of training.

    Args:
        tree: a posterior.
        r_hat_limit: largest R-hat of a run that passes.
        ess_limit: smallest effective sample size of a run that passes; default 100 for each chain.

    Returns:
        The verdict. Its table has the columns of :func:`diagnostics_frame`, then those of :func:`split_frequencies`
        (its ``num_edges`` as ``num_edges_compared``), :func:`graph_distance_ess` and :func:`chain_modes`, and of
        :func:`~pyro_nri.posterior.states.states_frame`; of the number of hidden entities that draws have
        ``unexplained`` and, where others were tried, ``number_error``, the standard error of its log marginal.
    """
    tree = renamed_hidden(tree)
    summary = summarize(tree, r_hat_limit=r_hat_limit, ess_limit=ess_limit)
    ess_limit = 100.0 * summary["num_chains"] if ess_limit is None else ess_limit
    summary |= {"r_hat_limit": r_hat_limit, "ess_limit": ess_limit}
    compared = split_frequencies(tree).rename(columns={"num_edges": "num_edges_compared"})
    every = (compared, graph_distance_ess(tree), chain_modes(tree), states_frame(tree))
    parts = [part.drop(columns="scene") for part in every]
    table = pd.concat([diagnostics_frame(tree), *parts], axis=1)
    if HIDDEN in tree.children and "unexplained" in tree[HIDDEN]:
        numbers = num_hidden_frame(tree)
        table["unexplained"] = numbers["unexplained"][numbers["chosen"]].to_numpy()
        if numbers["num_hidden"].nunique() > 1:
            table["number_error"] = numbers["log_marginal_error"][numbers["chosen"]].to_numpy()
    if far := tree.attrs.get("beyond_training"):
        verdict = "Do not trust this posterior: its scenes are unlike those that the model was trained on."
        advice = "Bring the scenes into the units of training, or train on scenes like these."
        return Check(False, verdict, (str(far), *_problems(table, summary)), (advice,), table)
    if summary["method"] == "exact" and summary["complete"]:
        verdict = "Trust this run: it is exact and its draws are independent, there is nothing to converge."
        return Check(True, verdict, (), (), table)
    if problems := _problems(table, summary):
        first = problems[0].split(":")[0].removesuffix(".")  # after a colon there is detail
        verdict = f"Do not trust this run yet: {first[0].lower()}{first[1:]}."
        return Check(False, verdict, problems, _advice(tree, table, summary), table)
    verdict = f"Trust this run: in {len(table)} of {len(table)} scenes its {summary['num_chains']} chains agree"
    if (ess := _least_ess(table)) < np.inf:
        verdict += f", with {ess:.0f} effective draws or more"
    return Check(True, f"{verdict}.", (), (), table)


# --- comparisons -----------------------------------------------------------------------------------------------------
def split_frequencies(tree: xr.DataTree) -> pd.DataFrame:
    """How far the frequencies of edge types differ between chains, in each scene.

    The average standard deviation of split frequencies of phylogenetics (Ronquist et al. 2012, MrBayes 3.2), with "this
    edge has this type" for a split. An edge's deviation is the standard deviation between chains (``ddof=1``) of the
    frequency of a type, the largest over types. Edges count unless all chains agree about each of their types: all draw
    it in at most 5 % of their draws, or all in at least 95 %. So an edge counts if a frequency lies in (0.05, 0.95) in
    any chain, or if chains sit at different types. The first half of a single chain is compared with its last.

    Args:
        tree: a posterior.

    Returns:
        Columns ``scene``; ``mean_deviation``, ``max_deviation``: over the ``num_edges`` that count, NaN if none does.
    """
    structures = _structures(tree)
    num_chains, num_draws = structures.shape[2:]
    if num_chains == 1:
        half = num_draws // 2
        structures = np.concatenate([structures[..., :half], structures[..., num_draws - half :]], axis=2)
    frequency = _frequency(structures, tree)  # [G, E, C, K]
    counts = ((frequency.max(2) > _RARE) & (frequency.min(2) < 1 - _RARE)).any(-1)  # [G, E]
    deviation = np.where(counts, frequency.std(2, ddof=1).max(-1), 0)
    num_edges = counts.sum(1)
    return pd.DataFrame(
        {
            "scene": group(tree, "sample_stats")["scene"].values,
            "mean_deviation": _ratio(deviation.sum(1), num_edges),
            "max_deviation": np.where(num_edges > 0, deviation.max(1, initial=0), np.nan),
            "num_edges": num_edges,
        }
    )


def graph_distance_ess(tree: xr.DataTree) -> pd.DataFrame:
    """Effective sample size of whole structures, from their distances to a few of them.

    The pseudo effective sample size of Lanfear, Hua & Warren (2016), summarised as by Magee, Karcher, Matsen & Minin
    (2024): bulk effective sample size of the Hamming distance of each draw to a reference. References are four draws at
    even distances in the chains laid end to end, and the most frequent structure.

    Args:
        tree: a posterior.

    Returns:
        Columns ``scene``, ``num_structures`` (different ones drawn), ``graph_ess_median`` and ``graph_ess_min`` (over
        references; NaN where all draws are the same, or with fewer than 4 draws; a distance that is constant in each
        chain and not the same in all counts as C effective draws).
    """
    structures = _structures(tree)
    num_scenes, num_edges, num_chains, num_draws = structures.shape
    number = _numbered(structures).reshape(num_scenes, -1)
    num_structures = number.max(1, initial=-1) + 1
    ess = np.full((num_scenes, _NUM_REFERENCES + 1), np.nan)
    where = np.flatnonzero(num_structures > 1)
    if num_draws >= _MIN_DRAWS and len(where):
        draws = structures[where].reshape(len(where), num_edges, -1)
        place = np.empty((len(where), _NUM_REFERENCES + 1), np.int64)
        place[:, :-1] = (2 * np.arange(_NUM_REFERENCES) + 1) * draws.shape[2] // (2 * _NUM_REFERENCES)
        place[:, -1] = [(row == np.bincount(row).argmax()).argmax() for row in number[where]]
        reference = np.moveaxis(np.take_along_axis(draws, place[:, None], axis=2), 2, 0)  # [references, G, E]
        distance = np.stack([(draws != each[..., None]).sum(1, dtype=np.int32) for each in reference])
        found = quantity_diagnostics(distance.reshape(-1, len(where), num_chains, num_draws).transpose(2, 3, 1, 0))
        ess[where] = np.where(found.kind == DISAGREEING, num_chains, found.ess)
    columns = {"graph_ess_median": np.median(ess, axis=1), "graph_ess_min": ess.min(1)}
    return pd.DataFrame(
        {"scene": group(tree, "sample_stats")["scene"].values, "num_structures": num_structures, **columns}
    )


def chain_modes(tree: xr.DataTree) -> pd.DataFrame:
    """Which chains are in one mode, in each scene.

    Two chains are *apart* if they have less than 5 % of their draws in common (the sum over structures of the smaller
    of their frequencies) and are further from each other than twice the distance within them (the mean of both) plus
    ``2 / sqrt(S)``, which few draws reach by chance. One of two distances has to say so:

    - at any edge, the probability that a draw of each have different types there; within, that two draws of one chain
      have. Their sum over edges is the expected Hamming distance, in which edges that move would hide a few that are
      stuck. Twice the distance within is an R-hat of about 1.41 of these two chains.
    - the total variation distance of the frequencies of whole structures; within, of the two halves of a chain. It
      finds chains that return to structures of their own though no single edge tells them apart.

    A mode is a set of chains that pairs connect which are not apart (single linkage): one chain that crosses between
    two others makes them one. With 4 draws or fewer no chains are apart.

    Args:
        tree: a posterior.

    Returns:
        Columns ``scene``; ``num_modes``; ``chains``, the numbers of the chains by mode such as "0,1 | 2,3";
        ``log_joint_gap``, between the modes with the highest and lowest mean, 0 if there is one;
        ``expected_distance_between``, the Hamming distance of draws of two chains in different modes, or of any two if
        there is one mode (NaN for a single chain); ``expected_distance_within``, of two draws of one chain (NaN for a
        single draw). The last two are means over pairs and chains, and alike where chains agree.
    """
    structures, stats = _structures(tree), group(tree, "sample_stats")
    num_chains, num_draws = structures.shape[2:]
    frequency = _frequency(structures, tree)
    between = 1 - frequency @ frequency.swapaxes(-1, -2)  # [G, E, C, C]
    within = np.diagonal(between, axis1=-2, axis2=-1) * (num_draws / (num_draws - 1) if num_draws > 1 else np.nan)
    tolerance = 2 / math.sqrt(max(num_draws, 1))
    apart = (between > within[..., :, None] + within[..., None, :] + tolerance).any(1)
    shared, halves = _shared(structures)
    apart |= 1 - shared > (1 - halves[:, :, None]) + (1 - halves[:, None, :]) + tolerance
    linked = ~apart | (shared >= _SHARED)  # [G, C, C]
    for _ in range(num_chains.bit_length()):
        linked = linked @ linked
    mode = linked.argmax(-1)  # [G, C], the first chain of the mode
    names = np.arange(num_chains).astype(str)
    num_modes = (mode == np.arange(num_chains)).sum(1)
    chain_mean = stats["log_joint"].sum("draw").transpose("scene", "chain").values / max(num_draws, 1)
    mode_mean = (linked @ chain_mean[..., None])[..., 0] / linked.sum(-1)
    pairs = np.where(num_modes[:, None, None] > 1, ~linked, ~np.eye(num_chains, dtype=bool) & (num_draws > 0))
    return pd.DataFrame(
        {
            "scene": stats["scene"].values,
            "num_modes": num_modes,
            "chains": [" | ".join(",".join(names[row == first]) for first in np.unique(row)) for row in mode],
            "log_joint_gap": np.ptp(mode_mean, axis=1),
            "expected_distance_between": _ratio((pairs * between.sum(1)).sum((1, 2)), pairs.sum((1, 2))),
            "expected_distance_within": within.sum(1).mean(1),
        }
    )


def _shared(structures: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Draws in common: share between chains ``[G, C, C]`` and between the halves of each chain ``[G, C]``."""
    num_scenes, _, num_chains, num_draws = structures.shape
    shared, halves = np.ones((num_scenes, num_chains, num_chains)), np.ones((num_scenes, num_chains))
    half, number = num_draws // 2, _numbered(structures)
    for g in np.flatnonzero(number.any((1, 2)) & (num_draws > 1)):
        count = np.zeros((int(number[g].max()) + 1, num_chains, 2))  # [structures, C, halves]
        np.add.at(count, (number[g], np.arange(num_chains)[:, None], (np.arange(num_draws) >= half).astype(int)), 1)
        halves[g] = (count / (half, num_draws - half)).min(-1).sum(0)
        share = count.sum(-1) / num_draws  # [structures, C]
        shared[g] = [np.minimum(share[:, a, None], share).sum(0) for a in range(num_chains)]
    return shared, halves


# --- draws by scene --------------------------------------------------------------------------------------------------
def _structures(tree: xr.DataTree) -> NDArray[np.int8]:
    """Draws laid out ``[G, E, C, S]``; an edge that a scene does not have is of type 0 in all of them."""
    posterior, num_scenes = group(tree, "posterior"), group(tree, "sample_stats").sizes["scene"]
    values = posterior["edge_type"].transpose("edge", "chain", "draw").values
    scene, edge = posterior["scene_index"].values, posterior["edge_index"].values
    result = np.zeros((num_scenes, int(edge.max(initial=-1)) + 1, *values.shape[1:]), np.int8)
    result[scene, edge] = values
    return result


def _frequency(structures: NDArray[np.int8], tree: xr.DataTree) -> NDArray[np.float64]:
    """Share of the draws of a chain in which an edge has a type, ``[G, E, C, K]``; 0 without draws."""
    num_types = int(tree.attrs["num_edge_types"])
    count = np.stack([np.count_nonzero(structures == k, axis=-1) for k in range(num_types)], axis=-1)
    return np.asarray(count / max(structures.shape[-1], 1))


def _numbered(structures: NDArray[np.int8]) -> NDArray[np.int64]:
    """Number of each draw's structure among the different ones of its scene, ``[G, C, S]``."""
    num_scenes, num_edges, *shape = structures.shape
    result = np.zeros((num_scenes, *shape), np.int64)
    for g in np.flatnonzero((structures != structures[..., :1, :1]).any((1, 2, 3))):
        # One byte for each edge, none of them 0, so that a structure is a byte string, which sorts fast.
        rows = np.ascontiguousarray(structures[g].reshape(num_edges, -1).T).view(np.uint8) + np.uint8(1)
        result[g] = np.unique(rows.view(f"S{num_edges}")[:, 0], return_inverse=True)[1].reshape(shape)
    return result


def _ratio(part: NDArray[np.float64], whole: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


# --- words -----------------------------------------------------------------------------------------------------------
def _least_ess(table: pd.DataFrame) -> float:
    """Of edges, of whole structures and of states; infinite where nothing moves."""
    names = ["ess_min", "graph_ess_median", *(f"{name}_ess_min" for name in _STATES)]
    values = table[[name for name in names if name in table]].to_numpy(np.float64)
    return float(np.fmin.reduce(values, axis=None, initial=np.inf))


def _problems(table: pd.DataFrame, summary: dict[str, Any]) -> tuple[str, ...]:
    apart, ess = table[table["num_modes"] > 1], table["graph_ess_median"][table["num_modes"] == 1]
    problems, ess_limit = list(summary["problems"]), summary["ess_limit"]
    if len(apart):
        named = [f"scene {row.scene} has chains {row.chains}" for row in apart.itertuples()]
        named[_NUM_NAMED:] = ["and others"] if len(named) > _NUM_NAMED else []
        what = f"In {len(apart)} of {len(table)} scenes chains sit in different modes: {', '.join(named)}"
        gap = f"the mean log joints of modes of one scene differ by up to {apart['log_joint_gap'].max():,.1f}"
        problems.insert(0, f"{what}; {gap}.")
    if count := int((ess < ess_limit).sum()):
        what = f"In {count} of {len(table)} scenes whole structures have effective sample sizes below {ess_limit:g}"
        problems.append(f"{what}, the smallest is {ess.min():.0f}.")
    return (*_number_problems(table), *problems, *_state_problems(table, summary))  # the gravest first


def _named(scenes: pd.Series) -> str:
    """The first few scenes of some."""
    names = [f"scene {scene}" for scene in scenes]
    return ", ".join([*names[:_NUM_NAMED], "and others"] if len(names) > _NUM_NAMED else names)


def _unexplained(table: pd.DataFrame) -> pd.Series:
    """Whether the hidden entities of each scene leave its motion unexplained."""
    return table["unexplained"] > MOST_UNEXPLAINED if "unexplained" in table else pd.Series(False, table.index)


def _number_problems(table: pd.DataFrame) -> list[str]:
    problems = []
    if (unsure := np.isinf(table.get("number_error", pd.Series(0.0, table.index)))).any():
        problems.append(
            f"In {unsure.sum()} of {len(table)} scenes nothing is known of the error of the log marginal by which the "
            f"number of hidden entities was chosen: {_named(table['scene'][unsure])}; hardly a path that was proposed "
            f"is accepted."
        )
    lost = _unexplained(table)
    if not lost.any():
        return problems
    return [
        *problems,
        f"In {lost.sum()} of {len(table)} scenes the hidden entities that draws have do not explain the motion: "
        f"{_named(table['scene'][lost])}; up to {table['unexplained'].max():.0f} nats for each transition and entity "
        f"are left, where noise of the learned size leaves two or three.",
    ]


def _state_problems(table: pd.DataFrame, summary: dict[str, Any]) -> list[str]:
    problems = []
    for name, words in _STATES.items():
        if f"{name}_ess_min" not in table:
            continue
        r_hat, ess = table[f"{name}_r_hat_max"], table[f"{name}_ess_min"]
        if count := int((r_hat > summary["r_hat_limit"]).sum()):
            where = _named(table["scene"][r_hat > summary["r_hat_limit"]])
            what = f"In {count} of {len(table)} scenes chains disagree about {words}: {where}"
            problems.append(f"{what}; the largest R-hat is {r_hat.max():.3f}, above {summary['r_hat_limit']:g}.")
        if count := int((ess < summary["ess_limit"]).sum()):
            what = f"In {count} of {len(table)} scenes {words} have effective sample sizes below"
            problems.append(f"{what} {summary['ess_limit']:g}, the smallest is {ess.min():.0f}.")
    return problems


def _advice(tree: xr.DataTree, table: pd.DataFrame, summary: dict[str, Any]) -> tuple[str, ...]:
    advice, one_mode, num_draws = [], table[table["num_modes"] == 1], summary["num_draws"]
    name = "infer_noisy" if is_noisy(tree) else "infer_hidden" if HIDDEN in tree.children else "infer"
    if not summary["complete"]:
        advice.append(f"Go on with the interrupted run: {name}(resume=draws) with the arguments that it had.")
    if summary["num_chains"] == 1:
        advice.append(f"Run several chains: {name}(num_chains=4).")
    if num_draws < _MIN_DRAWS:
        return (*advice, f"Draw more: {name}(num_draws=500).")
    disagree = len(one_mode) < len(table) or bool(summary["num_disagreeing"])
    limit = summary["r_hat_limit"]
    if name != "infer":
        r_hat = [table[column] for column in table if str(column).endswith("r_hat_max")]
        if disagree or any((values > limit).any() for values in r_hat):
            advice.append(
                f"Chains that disagree have found several motions, or not yet the best: run more chains and warm up "
                f"for longer, {name}(num_chains={2 * summary['num_chains']}, num_warmup=1000)."
            )
    elif disagree:
        replicas = 2 * tree["replicas"].sizes["replica"] if "replicas" in tree.children else 8
        advice.append(f"Let chains cross between modes by parallel tempering: infer(num_replicas={replicas}).")
    if name == "infer" and (one_mode["r_hat_max"] > limit).any():
        known = tree["warmup_sample_stats"].sizes["draw"] if "warmup_sample_stats" in tree.children else 500
        advice.append(f"Warm up for longer: infer(num_warmup={max(2 * known, 1000)}).")
    if (ess := _least_ess(one_mode)) < summary["ess_limit"]:
        times, thin = math.ceil(summary["ess_limit"] / max(ess, 1.0)), int(tree.attrs.get("thin", 1))
        thinned = f" or infer(thin={times * thin})" if name == "infer" else ""
        advice.append(f"Run {times} times as long: {name}(num_draws={times * num_draws}){thinned}.")
    if _unexplained(table).any():
        advice.append(
            "What nothing explains may have been missed by the search (another seed, more frames), or is more than the "
            "hidden entities that were tried (num_hidden='auto'), or follows other laws."
        )
    return tuple(advice)
