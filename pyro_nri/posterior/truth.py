"""The known structures beside a posterior: found by names, not by places."""

from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from pyro_nri.posterior.align import fit_alignment
from pyro_nri.posterior.convert import group
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class KnownEdges(NamedTuple):
    """Edges whose types are known, beside what a posterior says of them.

    Attributes:
        probability: of each inferred type, ``[M, K]``.
        true_edge_type: ``[M]``.
        scene: number of each edge's scene, ``[M]``.
        alignment: true type of each inferred type, or -1, ``[K]``.
        origin: where the alignment is from: "given", "from the training scenes" or "fitted on the scored scenes".
        estimator: of the probabilities: "exact", "rao-blackwell" or "counts".
    """

    probability: NDArray[np.float64]
    true_edge_type: NDArray[np.int64]
    scene: NDArray[np.int64]
    alignment: NDArray[np.int64]
    origin: str
    estimator: str


def has_truth(tree: xr.DataTree) -> bool:
    """Whether the posterior carries the true structures of its scenes."""
    return "true_edge_type" in group(tree, "constant_data")


def known_edges(tree: xr.DataTree, truth: Scenes | None = None, alignment: ArrayLike | None = None) -> KnownEdges:
    """The edges of a posterior with their true types, and the alignment of its type labels.

    Args:
        tree: a posterior.
        truth: scenes with ``edge_type``, matched by names; default: the truth that the posterior carries.
        alignment: true type of each inferred type or -1, ``[K]``; default: the one that the posterior carries from its
            training scenes, else one to one, fitted on these edges.

    Raises:
        ValueError: the truth is not known, or lacks a scene or an entity of the posterior.
    """
    constant = group(tree, "constant_data")
    if truth is not None:
        true_edge_type = match_truth(tree, truth)
    elif has_truth(tree):
        true_edge_type = constant["true_edge_type"].values.astype(np.int64)
    else:
        raise ValueError("the posterior does not know the true structures; give truth, scenes with edge types")
    probability, estimator = edge_probability(tree)
    origin = "given"
    if alignment is None and "type_alignment" in constant:
        alignment, origin = constant["type_alignment"].values, "from the training scenes"
    if alignment is None:
        best, origin = probability.argmax(1), "fitted on the scored scenes"
        alignment = fit_alignment(best, true_edge_type, num_edge_types=probability.shape[1])
    labels = np.asarray(alignment, np.int64)
    scene = group(tree, "posterior")["scene_index"].values.astype(np.int64)
    return KnownEdges(probability, true_edge_type, scene, labels, origin, estimator)


def match_truth(tree: xr.DataTree, truth: Scenes) -> NDArray[np.int64]:
    """True type of each edge of the posterior, ``[M]``, found by scene and entity names.

    A scene of the posterior is looked up in ``truth`` by the names of its recordings, and if none is there by its own
    name, as a scene or as a group.

    Raises:
        ValueError: the truth is not known, lacks a scene or an entity, or differs between recordings of one scene.
    """
    if truth.edge_type is None:
        raise ValueError("truth has no edge types to score against")
    posterior, constant = group(tree, "posterior"), group(tree, "constant_data")
    groups = constant["structure_group"].values.tolist()
    recordings = constant["recording"].values.tolist()
    row = {name: b for b, name in enumerate(truth.scene_names)}
    first_of_group = dict(zip(truth.group_names, truth.group_first_scene, strict=True))
    found: dict[str, list[int]] = {name: [] for name in dict.fromkeys(groups)}
    for name, recording in zip(groups, recordings, strict=True):
        if recording in row:
            found[name].append(row[recording])
    true_types, own_entities = truth.edge_type.cpu().numpy(), constant["entity_name"].values.tolist()
    chosen, place = np.zeros(len(found), np.int64), np.full((len(found), constant.sizes["entity"]), -1)
    for g, (name, rows) in enumerate(found.items()):
        if not rows:
            rows = [b for b in (row.get(name), first_of_group.get(name)) if b is not None]
        if not rows:
            raise ValueError(f"truth has no scene {name!r}, which the posterior has")
        chosen[g] = rows[0]
        if (true_types[rows] != true_types[rows[0]]).any():
            raise ValueError(
                f"truth has different edge types for recordings of scene {name!r}, which share a structure"
            )
        number = {entity: n for n, entity in enumerate(truth.entity_names[rows[0]]) if entity}
        for n, entity in enumerate(own_entities[groups.index(name)]):
            if entity and entity not in number:
                raise ValueError(f"truth has no entity {entity!r} in scene {name!r}, which the posterior has")
            place[g, n] = number.get(entity, -1)
    scene, edge = posterior["scene_index"].values, posterior["edge_index"].values
    num_entities = constant.sizes["entity"]
    sender, receiver = edges.senders(num_entities).numpy()[edge], edges.receivers(num_entities).numpy()[edge]
    number_of = edges.edge_number(truth.num_entities).numpy()
    matched = true_types[chosen[scene], number_of[place[scene, sender], place[scene, receiver]]]
    return np.asarray(matched, np.int64)
