"""Scenes with room for entities that nobody recorded."""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def with_hidden(scenes: Scenes, num_hidden: int | Tensor, *, most: int | None = None) -> Scenes:
    """Scenes whose last entities are hidden: named "hidden 1", ..., and observed in no frame.

    Args:
        scenes: B scenes of N entities.
        num_hidden: of all scenes, or of each, long ``[B]``; scenes with fewer than the most are padded.
        most: N_hidden; default: the largest number.

    Returns:
        Scenes of N + N_hidden entities, without truth.

    Raises:
        ValueError: a number is negative, or an entity has one of the names already.

    >>> with_hidden(Scenes.from_arrays(torch.zeros(2, 3, 4, 4)), 1).entity_names[0]
    ('0', '1', '2', '3', 'hidden 1')
    """
    count = torch.as_tensor(num_hidden).expand(scenes.num_scenes).long()
    if int(count.min()) < 0:
        raise ValueError(f"num_hidden must be 0 or more, found {int(count.min())}")
    most = int(count.max()) if most is None else most
    if most < int(count.max()):
        raise ValueError(f"most must be at least the largest num_hidden, {int(count.max())}, found {most}")
    if most == 0:
        return replace(scenes, edge_type=None, initial_state=None)
    names = tuple(f"hidden {number + 1}" for number in range(most))
    for entity_names, scene in zip(scenes.entity_names, scenes.scene_names, strict=True):
        if taken := set(names) & set(entity_names):
            raise ValueError(f"scene {scene!r} has an entity {min(taken)!r} already: give it another name")
    pad = torch.nn.functional.pad
    present = torch.arange(most) < count[:, None]
    kind = scenes.entity_kind
    return replace(
        scenes,
        trajectory=pad(scenes.trajectory, (0, 0, 0, most)),
        observation_mask=pad(scenes.observation_mask, (0, most)),
        entity_mask=torch.cat([scenes.entity_mask, present.to(scenes.entity_mask.device)], -1),
        entity_names=tuple((*each, *names) for each in scenes.entity_names),
        entity_kind=None if kind is None else pad(kind, (0, most)),
        edge_type=None,
        initial_state=None,
    )


def embedded(structure: Tensor, num_entities: int, most: int) -> Tensor:
    """Structures ``[*batch, E]`` of ``num_entities`` entities as those of ``most``: new edges have type 0."""
    if num_entities == most:
        return structure
    matrix = edges.to_matrix(structure)
    return edges.from_matrix(torch.nn.functional.pad(matrix, (0, most - num_entities, 0, most - num_entities)))
