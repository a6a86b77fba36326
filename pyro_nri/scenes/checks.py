"""Checks of what a user hands over; each failure is one sentence that names the argument."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_array(
    name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, fill: bool | float | None = None
) -> Tensor:
    """``value`` as a tensor of the shape and type; ``fill`` stands for a missing one."""
    if value is None:
        return torch.full(shape, fill, dtype=dtype)  # type: ignore[arg-type]
    tensor = torch.as_tensor(value)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, found {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point() and not torch.equal(tensor, tensor.round()):
        raise ValueError(f"{name} must hold whole numbers")
    return tensor.to(dtype)


def check_names(what: str, names: Sequence[object] | None, count: int) -> tuple[str, ...]:
    """``count`` names as strings; numbers stand for missing ones."""
    result = tuple(str(name) for name in (range(count) if names is None else names))
    if len(result) != count:
        raise ValueError(f"{what} must have {count} entries, found {len(result)}")
    return result


def check_entity_names(
    names: Sequence[object] | Sequence[Sequence[object]] | None, entity_mask: Tensor, scene_names: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    """Names of the entities of each scene, unique within it, "" for padding."""
    num_scenes, num_entities = entity_mask.shape
    if names is None or len(names) == 0 or isinstance(names[0], str) or not isinstance(names[0], Sequence):
        rows = (check_names("entity_names", names, num_entities),) * num_scenes
    else:
        if len(names) != num_scenes:
            raise ValueError(f"entity_names must have an entry for each of {num_scenes} scenes, found {len(names)}")
        rows = tuple(check_names("entity_names", row, num_entities) for row in names)  # type: ignore[arg-type]
    result = []
    for scene, row, mask in zip(scene_names, rows, entity_mask.tolist(), strict=True):
        kept = tuple(name if present else "" for name, present in zip(row, mask, strict=True))
        present_names = [name for name, present in zip(row, mask, strict=True) if present]
        if len(set(present_names)) < len(present_names):
            raise ValueError(f"entity_names of scene {scene!r} must be unique, found {present_names}")
        result.append(kept)
    return tuple(result)
