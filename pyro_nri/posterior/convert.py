"""Draws to an ArviZ DataTree and back.

Groups of the tree (axis letters: C chains, S draws, G structures, B recordings, M edges that exist, K types):

- ``posterior``: ``edge_type`` (chain, draw, edge), int8. Coordinates on the flat ``edge`` dimension: ``scene``,
  ``sender``, ``receiver`` (names), ``scene_index`` and ``edge_index`` (the edge's place in ``[G, E]``).
- ``sample_stats``: ``log_joint`` (chain, draw, scene) and ``temperature`` (chain, draw); of a Markov chain also
  ``accepted``, ``proposed`` (chain, draw, scene) and ``move_kind`` (chain, draw).
- ``edge_posterior``, where inference knows more than its draws: ``edge_probability`` (edge, type), exact or
  Rao-Blackwellised as its attribute ``estimator`` says; ``receiver_probability`` (scene, entity, code), exact, of the
  types of each receiver's incoming edges; ``log_marginal`` (scene).
- ``observed_data``: ``trajectory`` (recording, frame, entity, state), raw units, NaN where nothing was seen.
- ``hidden_posterior``, where hidden entities were inferred: see :func:`~pyro_nri.posterior.hidden.hidden_dataset`;
  their edges are among all others, under the names "hidden 1", ...
- ``recorded_posterior``, where recordings have measurement noise: initial states of the recorded entities, see
  :func:`~pyro_nri.posterior.recorded.recorded_dataset`.
- ``constant_data``: masks, names, kinds, time step, and if known the prior's ``type_probability`` (type; the prior's
  name is its attribute), the truth and the alignment of type labels.
- ``warmup_posterior``, ``warmup_sample_stats``: the annealed and discarded steps.

A ``scene`` of the tree is one structure: a group of recordings that share it (by default a group of one). Edges of
padded entities are left out, so scenes with unequal numbers of entities fit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyro_nri.inference.draws import Draws
from pyro_nri.posterior.hidden import hidden_dataset, hidden_of
from pyro_nri.posterior.prior_records import prior_record, prior_variable
from pyro_nri.posterior.recorded import GROUP, recorded_dataset, recorded_of
from pyro_nri.posterior.recordings import constant_data, observed_data, scenes_from
from pyro_nri.posterior.replicas import replicas_dataset, replicas_of
from pyro_nri.posterior.sample_stats import flags, moves_of, sample_stats
from pyro_nri.scenes import edges
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.version import LIBRARY, installed_version

FORMAT_VERSION = 1

_OWN_ATTRIBUTES = (
    "inference_library",
    "inference_library_version",
    "posterior_format",
    "method",
    "seed",
    "num_edge_types",
    "num_evaluations",
    "complete",
    "conditioning",
)


def to_datatree(
    draws: Draws,
    scenes: Scenes,
    *,
    attributes: Mapping[str, str | int | float] | None = None,
    type_names: Sequence[str] | None = None,
    type_alignment: NDArray[np.integer] | Sequence[int] | None = None,
    first_frame: int = 0,
) -> xr.DataTree:
    """Name every axis of ``draws`` and put the data beside them.

    Args:
        draws: draws of G structures.
        scenes: the scenes they were drawn for, without hidden entities; their G structure groups in the same order.
        attributes: more attributes of the root, beside ``draws.attributes``: command, time, model.
        type_names: K names of the edge types; default "type_0", "type_1", ...
        type_alignment: for each of the K inferred types the true type that it stands for, or -1; ``[K]``.
        first_frame: number of the first frame of ``scenes`` in the recording that it was cut from.

    Returns:
        The tree that the head of this file describes.

    Raises:
        ValueError: draws and scenes do not belong together, an argument has another length than K, or an attribute has
            a name that the tree uses itself.
    """
    if draws.hidden is not None and scenes.num_edges < draws.edge_type.shape[-1]:
        scenes = with_hidden(scenes, torch.as_tensor(draws.hidden.num_hidden), most=draws.hidden.state.shape[3])
    num_types = draws.num_edge_types
    if not 1 <= num_types <= 127:
        raise ValueError(f"num_edge_types must be between 1 and 127, found {num_types}")
    if draws.group_names != scenes.group_names:
        raise ValueError("draws and scenes do not have the same structure groups in the same order")
    if draws.edge_type.shape[2:] != (scenes.num_groups, scenes.num_edges):
        raise ValueError(
            f"draws.edge_type must have shape [C, S, {scenes.num_groups}, {scenes.num_edges}] for these scenes, "
            f"found {list(draws.edge_type.shape)}"
        )
    names = tuple(f"type_{k}" for k in range(num_types)) if type_names is None else tuple(map(str, type_names))
    if len(names) != num_types:
        raise ValueError(f"type_names must have {num_types} entries, found {len(names)}")
    more = {**draws.attributes, **(attributes or {})}
    if taken := sorted(set(more) & set(_OWN_ATTRIBUTES)):
        raise ValueError(f"attributes must not be called {', '.join(taken)}: the posterior sets these itself")
    root = {
        "inference_library": LIBRARY,
        "inference_library_version": installed_version(),
        "posterior_format": FORMAT_VERSION,
        "method": draws.method,
        "seed": draws.seed,
        "num_edge_types": num_types,
        "num_evaluations": draws.num_evaluations,
        "complete": int(draws.complete),
        "conditioning": "given the learned modules: their uncertainty is not part of this posterior",
        **{key: int(value) if isinstance(value, bool) else value for key, value in more.items()},
    }
    edge = _edge_coordinates(scenes)
    groups = {
        "/": xr.Dataset(attrs=root),
        "posterior": _posterior(draws, edge, names),
        "sample_stats": sample_stats(draws),
    }
    if any(known is not None for known in (draws.edge_probability, draws.receiver_probability, draws.log_marginal)):
        groups["edge_posterior"] = _edge_posterior(draws, edge, names)
    groups["observed_data"] = observed_data(scenes, first_frame)
    groups["constant_data"] = constant_data(scenes, edge, names, type_alignment)
    if draws.move_names:
        groups["constant_data"] = groups["constant_data"].assign_coords(move=np.array(draws.move_names, dtype=str))
    if draws.prior is not None:
        groups["constant_data"]["type_probability"] = prior_variable(draws.prior)
    if draws.warmup is not None:
        own = {"num_evaluations": draws.warmup.num_evaluations, "complete": int(draws.warmup.complete)}
        groups["warmup_posterior"] = _posterior(draws.warmup, edge, names).assign_attrs(own)
        groups["warmup_sample_stats"] = sample_stats(draws.warmup)
    if draws.hidden is not None:
        groups["hidden_posterior"] = hidden_dataset(draws.hidden, scenes, draws.group_names, first_frame)
    if draws.recorded is not None:
        groups[GROUP] = recorded_dataset(draws.recorded, scenes.state_names, draws.group_names)
    for name, part in (("replicas", draws), ("warmup_replicas", draws.warmup)):
        if part is not None and part.replicas is not None:
            groups[name] = replicas_dataset(part.replicas, draws.group_names)
    return xr.DataTree.from_dict(groups)


def to_draws(tree: xr.DataTree) -> Draws:
    """Undo :func:`to_datatree`: draws ``[C, S, G, E]``, to resume a run or to compute with.

    Raises:
        ValueError: a group is missing.
    """
    warmup = None
    if "warmup_posterior" in tree.children:
        warmup = _draws_of(tree, "warmup_", tree.children["warmup_posterior"].attrs)
    attributes = {str(key): value for key, value in tree.attrs.items() if key not in _OWN_ATTRIBUTES}
    return _draws_of(tree, "", tree.attrs, warmup=warmup, attributes=attributes)


def scenes_of(tree: xr.DataTree) -> Scenes:
    """Scenes that the posterior was drawn for: B recordings, with the truth if it was known.

    Raises:
        ValueError: a group is missing.
    """
    return scenes_from(group(tree, "observed_data"), group(tree, "constant_data"))


def group(tree: xr.DataTree, name: str) -> xr.Dataset:
    """Dataset of one group of a posterior.

    Raises:
        ValueError: there is no such group.
    """
    if name not in tree.children:
        raise ValueError(f"the posterior has no group {name!r}, found {', '.join(tree.children) or 'none'}")
    return tree.children[name].to_dataset()


# --- parts of the tree -----------------------------------------------------------------------------------------------
def _edge_coordinates(scenes: Scenes) -> dict[str, Any]:
    """Coordinates of the flat edge dimension: all edges that exist, by structure group, then row-major by sender."""
    first = scenes.group_first_scene
    scene_index, edge_index = np.nonzero(scenes.edge_mask[first].cpu().numpy())
    entity_names = np.array([scenes.entity_names[b] for b in first], dtype=str)
    sender, receiver = (ends(scenes.num_entities).numpy()[edge_index] for ends in (edges.senders, edges.receivers))
    return {
        "edge": np.arange(len(edge_index)),
        "scene": ("edge", np.array(scenes.group_names, dtype=str)[scene_index]),
        "sender": ("edge", entity_names[scene_index, sender]),
        "receiver": ("edge", entity_names[scene_index, receiver]),
        "scene_index": ("edge", scene_index),
        "edge_index": ("edge", edge_index),
    }


def _posterior(draws: Draws, edge: dict[str, Any], type_names: tuple[str, ...]) -> xr.Dataset:
    num_chains, num_draws = draws.edge_type.shape[:2]
    values = draws.edge_type[:, :, edge["scene_index"][1], edge["edge_index"][1]].astype(np.int8, copy=False)
    return xr.Dataset(
        {"edge_type": (("chain", "draw", "edge"), values, flags(type_names))},
        coords={"chain": np.arange(num_chains), "draw": np.arange(num_draws), **edge},
    )


def _edge_posterior(draws: Draws, edge: dict[str, Any], type_names: tuple[str, ...]) -> xr.Dataset:
    # Here `scene` is the dimension of log_marginal, so the edges say their scene by its index alone.
    dataset = xr.Dataset(
        coords={
            **{name: value for name, value in edge.items() if name != "scene"},
            "scene": np.array(draws.group_names, dtype=str),
            "type": np.array(type_names, dtype=str),
        }
    )
    if draws.edge_probability is not None:
        dataset["edge_probability"] = (
            ("edge", "type"),
            draws.edge_probability[edge["scene_index"][1], edge["edge_index"][1]],
            {"estimator": "exact" if draws.method == "exact" else "rao-blackwell"},
        )
    if draws.receiver_probability is not None:
        dataset["receiver_probability"] = (("scene", "entity", "code"), draws.receiver_probability)
    if draws.log_marginal is not None:
        dataset["log_marginal"] = ("scene", draws.log_marginal)
    if draws.log_marginal_error is not None:
        dataset["log_marginal_error"] = ("scene", draws.log_marginal_error)
    return dataset


def _draws_of(
    tree: xr.DataTree,
    prefix: str,
    counts: Mapping[Any, Any],
    warmup: Draws | None = None,
    attributes: dict[str, Any] | None = None,
) -> Draws:
    posterior, stats = group(tree, f"{prefix}posterior"), group(tree, f"{prefix}sample_stats")
    constant = group(tree, "constant_data")
    num_structures, num_edges = stats.sizes["scene"], edges.num_edges(constant.sizes["entity"])
    place = posterior["scene_index"].values * num_edges + posterior["edge_index"].values
    values = posterior["edge_type"].values
    edge_type = np.zeros((*values.shape[:2], num_structures * num_edges), np.int8)
    edge_type[..., place] = values
    num_types, moves = int(tree.attrs["num_edge_types"]), moves_of(stats, str(tree.attrs["method"]))
    edge_probability = receiver_probability = log_marginal = log_marginal_error = None
    if not prefix and "edge_posterior" in tree.children:
        known = group(tree, "edge_posterior")
        if "edge_probability" in known:
            laid_out = np.zeros((num_structures * num_edges, num_types))
            laid_out[:, 0] = 1  # a padded edge has type 0
            laid_out[place] = known["edge_probability"].values
            edge_probability = laid_out.reshape(num_structures, num_edges, num_types)
        if "receiver_probability" in known:
            receiver_probability = known["receiver_probability"].values
        if "log_marginal" in known:
            log_marginal = known["log_marginal"].values
        if "log_marginal_error" in known:
            log_marginal_error = known["log_marginal_error"].values
    return Draws(
        edge_type=edge_type.reshape(*values.shape[:2], num_structures, num_edges),
        log_joint=stats["log_joint"].values,
        accepted=moves.accepted,
        proposed=moves.proposed,
        move_kind=moves.kind,
        temperature=stats["temperature"].values[0],
        move_names=tuple(constant["move"].values.tolist()) if "move" in constant else (),
        num_edge_types=num_types,
        group_names=tuple(stats["scene"].values.tolist()),
        method=str(tree.attrs["method"]),
        seed=int(tree.attrs["seed"]),
        num_evaluations=int(counts["num_evaluations"]),
        edge_probability=edge_probability,
        receiver_probability=receiver_probability,
        prior=prior_record(constant),
        log_marginal=log_marginal,
        log_marginal_error=log_marginal_error,
        hidden=hidden_of(group(tree, "hidden_posterior")) if "hidden_posterior" in tree.children else None,
        recorded=recorded_of(group(tree, GROUP)) if not prefix and GROUP in tree.children else None,
        replicas=replicas_of(group(tree, f"{prefix}replicas")) if f"{prefix}replicas" in tree.children else None,
        warmup=warmup,
        complete=bool(counts["complete"]),
        attributes=attributes or {},
    )
