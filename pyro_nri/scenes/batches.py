"""Batches of scenes put one behind the other."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def concatenate(parts: Sequence[Scenes]) -> Scenes:
    """Put batches one behind the other; entities are padded to the largest N. Frames, state and time step must agree.

    ``edge_type``, ``entity_kind`` and ``initial_state`` are kept only if every part has them.

    Raises:
        ValueError: parts differ in frames, state variables or time step, or scene names repeat.
    """
    if not parts:
        raise ValueError("parts is empty, at least one batch is needed")
    first = parts[0]
    for part in parts[1:]:
        for what in ("num_frames", "state_names", "time_step"):
            if getattr(part, what) != getattr(first, what):
                raise ValueError(
                    f"parts must have the same {what}, found {getattr(first, what)} and {getattr(part, what)}"
                )
    num_entities = max(part.num_entities for part in parts)
    padded = [_pad(part, num_entities) for part in parts]

    def joined(name: str) -> Tensor | None:
        values = [getattr(part, name) for part in padded]
        return None if any(value is None for value in values) else torch.cat(values)

    return Scenes.from_arrays(
        joined("trajectory"),
        time_step=first.time_step,
        observation_mask=joined("observation_mask"),
        entity_mask=joined("entity_mask"),
        scene_names=sum((part.scene_names for part in padded), ()),
        entity_names=sum((part.entity_names for part in padded), ()),
        state_names=first.state_names,
        structure_group=sum((part.structure_group for part in padded), ()),
        entity_kind=joined("entity_kind"),
        edge_type=joined("edge_type"),
        initial_state=joined("initial_state"),
    )


def _pad(scenes: Scenes, num_entities: int) -> Scenes:
    """``scenes`` with unobserved entities added until there are ``num_entities``."""
    extra = num_entities - scenes.num_entities
    if extra == 0:
        return scenes
    pad = torch.nn.functional.pad
    edge_type = scenes.edge_type
    if edge_type is not None:
        edge_type = edges.from_matrix(pad(edges.to_matrix(edge_type), (0, extra, 0, extra)))
    return replace(
        scenes,
        trajectory=pad(scenes.trajectory, (0, 0, 0, extra)),
        observation_mask=pad(scenes.observation_mask, (0, extra)),
        entity_mask=pad(scenes.entity_mask, (0, extra)),
        entity_names=tuple(names + ("",) * extra for names in scenes.entity_names),
        entity_kind=None if scenes.entity_kind is None else pad(scenes.entity_kind, (0, extra)),
        edge_type=edge_type,
        initial_state=None if scenes.initial_state is None else pad(scenes.initial_state, (0, 0, 0, extra)),
    )
