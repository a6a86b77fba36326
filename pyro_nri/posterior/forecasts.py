"""How well a model foretells a scene's own frames: later ones from earlier ones, and windows from all others."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import torch
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.evidence import require_density
from pyro_nri.inference.heldout import held_out_score
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.model.program import SceneModel
from pyro_nri.posterior.convert import scenes_of, to_draws
from pyro_nri.posterior.diagnostics import quantity_diagnostics
from pyro_nri.posterior.same_recordings import check_recordings
from pyro_nri.scenes.scenes import Scenes

Floats = NDArray[np.float64]


def leave_future_out(
    model: Checkpoint | SceneModel,
    scenes: Scenes,
    *,
    starts: Sequence[int] | None = None,
    num_draws: int = 16,
    kind: str = "forward",
    seed: int,
) -> pd.DataFrame:
    """Log density of each block of frames, forecast from all frames before it.

    The blocks of a scene add up to the log density of all frames after the first start, by the chain rule: a score for
    comparing models on scenes of which there are few. See :func:`~pyro_nri.inference.heldout.held_out_score`.

    Args:
        model: trained model; the scenes should be ones that it was not trained on.
        scenes: B scenes of T frames in G structure groups.
        starts: first frame of each block; the last one ends with the scene. A quarter, half and three quarters of T by
            default.
        num_draws: drawn structures that a forecast averages over.
        kind: likelihood of the later frames; one that is no density is refused.
        seed: fixes the draws.

    Returns:
        One row for each structure and block: ``scene``, ``start``, ``stop`` (frames of the block, half-open) and
        ``log_score``, nats for raw units.

    Raises:
        ValueError: starts do not ascend within the frames, or the likelihood is no density.
    """
    frames = scenes.num_frames
    chosen = sorted({max(2, frames * part // 4) for part in (1, 2, 3)}) if starts is None else list(starts)
    bounds = [*chosen, frames]
    if not chosen or chosen[0] < 2 or any(low >= high for low, high in pairwise(bounds)):
        raise ValueError(f"starts must ascend from at least 2 to at most {frames - 1}, found {chosen}")
    net, encoder = _parts(model)
    frames_of = []
    for start, stop in pairwise(bounds):
        score = held_out_score(
            net,
            scenes.frames(0, stop),
            num_search_frames=start,
            num_draws=num_draws,
            kind=kind,
            encoder=encoder,
            seed=seed,
        )
        frames_of.append(
            pd.DataFrame({"scene": list(scenes.group_names), "start": start, "stop": stop, "log_score": score})
        )
    frame = pd.concat(frames_of, ignore_index=True).astype({"scene": "str"})
    order = {name: g for g, name in enumerate(scenes.group_names)}
    place = frame["scene"].map(order).to_numpy(np.int64)
    return frame.iloc[np.lexsort((frame["start"].to_numpy(), place))].reset_index(drop=True)


def psis_loo(
    model: Checkpoint | SceneModel,
    tree: xr.DataTree,
    scenes: Scenes | None = None,
    *,
    over: str = "windows",
    num_transitions: int = 1,
    kind: str = "forward",
) -> pd.DataFrame:
    """Leave-one-out log scores of windows of each scene, by ArviZ's Pareto-smoothed importance sampling.

    A window is ``num_transitions`` transitions from its observed first frame (teacher forcing). ArviZ warns where the
    importance weights of a window have too heavy a tail; the warning is passed on, and the table says where.

    Args:
        model: the model that the posterior was inferred with.
        tree: the posterior, inferred with ``likelihood="forward"``: the weights take each window out of it to the power
            1, and others have windows in them as far as they are believed, or impulses.
        scenes: the scenes and frames that it is of; by default those that it holds.
        over: "windows". Leaving whole scenes out is refused.
        num_transitions: transitions in a window.
        kind: likelihood of the windows; one that is no density is refused.

    Returns:
        One row for each structure: ``scene``, ``num_windows``, ``num_structures`` (distinct ones among the draws: with
        a single one nothing can be reweighted, and the score is that of the structure), ``elpd_loo``, ``se``,
        ``p_loo``, ``pareto_k`` (the largest; NaN for a single structure), ``num_bad`` (windows whose k is above what
        ArviZ holds good) and ``warning`` (ArviZ's).

    Raises:
        ValueError: scenes are to be left out, or do not belong to the posterior, or the likelihood is no density.
    """
    if over == "scenes":
        raise ValueError(
            "leave-one-out over scenes cannot be had from their posteriors: nothing but a scene's own data informs its "
            "structure, so without them the importance weights have infinite variance; score held-out scenes by "
            "compare_models, or leave out windows"
        )
    if over != "windows":
        raise ValueError(f"over must be 'windows', found {over!r}")
    draws = to_draws(tree)
    scenes = scenes_of(tree) if scenes is None else scenes
    check_recordings(tree, scenes)
    if draws.group_names != scenes.group_names:
        raise ValueError("scenes must be those of the posterior, in the same order")
    net, _ = _parts(model)
    windows = scenes.windows(num_transitions)
    owner = windows.group_index.numpy()  # [G W]
    likelihoods, distinct = _window_log_likelihood(net, windows, draws.edge_type, owner, kind)
    rows = []
    for g, name in enumerate(scenes.group_names):
        seen = windows.transition_mask[torch.from_numpy(owner == g)].flatten(1).any(1).numpy()
        found = _loo(likelihoods[g][..., seen], independent=draws.method == "exact")
        rows.append({"scene": name, "num_windows": int(seen.sum()), "num_structures": distinct[g], **found})
    return pd.DataFrame(rows).astype({"scene": "str"})


def _parts(model: Checkpoint | SceneModel) -> tuple[SceneModel, Encoder | None]:
    return (model.model, model.encoder) if isinstance(model, Checkpoint) else (model, None)


def _window_log_likelihood(
    model: SceneModel, windows: Scenes, edge_type: NDArray[np.int8], owner: NDArray[np.int64], kind: str
) -> tuple[list[Floats], list[int]]:
    """For each structure the log-likelihood of its windows under each draw ``[C, S, W]``, and its distinct draws."""
    num_chains, num_draws, num_groups, _ = edge_type.shape
    cache = "none" if kind == "forward" else "auto"
    each = windows.share_structure("none")
    with torch.no_grad():
        likelihood = model.likelihood(each, kind=kind, cache=cache)
        require_density(likelihood, "a leave-one-out score")
        unique = [
            np.unique(edge_type[:, :, g].reshape(-1, edge_type.shape[-1]), axis=0, return_inverse=True)
            for g in range(num_groups)
        ]
        counts = [len(rows) for rows, _ in unique]
        values = [np.empty((count, int((owner == g).sum()))) for g, count in enumerate(counts)]
        for rank in range(max(counts)):
            structure = np.stack([rows[min(rank, len(rows) - 1)] for rows, _ in unique])[owner]  # [G W, E]
            chosen = torch.from_numpy(structure).long()[None].to(likelihood.edge_mask.device)
            found = likelihood.log_likelihood(chosen)[0].cpu().numpy()
            for g, count in enumerate(counts):
                if rank < count:
                    values[g][rank] = found[owner == g]
    shape = (num_chains, num_draws, -1)
    return [value[inverse.ravel()].reshape(shape) for value, (_, inverse) in zip(values, unique, strict=True)], counts


def _loo(log_likelihood: Floats, *, independent: bool) -> dict[str, Any]:
    """ArviZ's leave-one-out of one scene, from ``[C, S, W]``; its warnings are left to the caller's filters."""
    num_chains, num_draws, num_windows = log_likelihood.shape
    if (log_likelihood == log_likelihood[:1, :1]).all():
        each = log_likelihood[0, 0]
        error = float(np.sqrt(num_windows * each.var()))
        found = {"elpd_loo": float(each.sum()), "se": error, "p_loo": 0.0}
        return {**found, "pareto_k": np.nan, "num_bad": 0, "warning": False}
    relative = 1.0
    if not independent:
        ess = float(quantity_diagnostics(log_likelihood.sum(-1)).ess)
        relative = 1.0 if np.isnan(ess) else min(1.0, ess / (num_chains * num_draws))
    dataset = xr.Dataset({"window": (("chain", "draw", "place"), log_likelihood)})
    dataset = dataset.assign_coords(chain=np.arange(num_chains), draw=np.arange(num_draws))
    # InferenceData is gone in ArviZ 1.x, which takes the tree, and calls the numbers by shorter names.
    holder = getattr(az, "InferenceData", None)
    data = xr.DataTree.from_dict({"log_likelihood": dataset}) if holder is None else holder(log_likelihood=dataset)
    result = az.loo(data, pointwise=True, var_name="window", reff=relative)
    k = np.asarray(result.pareto_k)
    good = float(getattr(result, "good_k", 0.7))
    return {
        "elpd_loo": float(getattr(result, "elpd_loo", getattr(result, "elpd", np.nan))),
        "se": float(result.se),
        "p_loo": float(getattr(result, "p_loo", getattr(result, "p", np.nan))),
        "pareto_k": float(k.max()),
        "num_bad": int((k > good).sum()),
        "warning": bool(result.warning),
    }
