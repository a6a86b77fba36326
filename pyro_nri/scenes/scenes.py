"""What was observed: a frozen batch of trajectories in raw units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_nri.scenes import edges


@dataclass(frozen=True, eq=False)
class Scenes:
    """A batch of B scenes in raw units, padded to the largest number of entities N. Build it with :meth:`from_arrays`.

    Attributes:
        trajectory: states, float ``[B, T, N, D]``, raw units; 0 where nothing was observed.
        time_step: time between two frames, one for the whole batch.
        observation_mask: whether the entity was seen at the frame, bool ``[B, T, N]``.
        entity_mask: whether the entity exists in the scene (False: padding), bool ``[B, N]``.
        scene_names: B unique names.
        entity_names: for each scene its N entity names, "" for padding.
        state_names: D names of the state variables.
        structure_group: for each scene the name of the group of scenes that share one structure with it.
        entity_kind: known kind of each entity, long ``[B, N]``, or None.
        edge_type: true type of each edge, long ``[B, E]``, 0 where an end is padding, or None.
        initial_state: true state before the first frame's noise, float ``[B, N, D]``, or None (simulated scenes only).
    """

    trajectory: Tensor
    time_step: float
    observation_mask: Tensor
    entity_mask: Tensor
    scene_names: tuple[str, ...]
    entity_names: tuple[tuple[str, ...], ...]
    state_names: tuple[str, ...]
    structure_group: tuple[str, ...]
    entity_kind: Tensor | None = None
    edge_type: Tensor | None = None
    initial_state: Tensor | None = None

    @classmethod
    def from_arrays(
        cls,
        trajectory: Any,
        *,
        time_step: float = 1.0,
        observation_mask: Any = None,
        entity_mask: Any = None,
        scene_names: Sequence[object] | None = None,
        entity_names: Sequence[object] | Sequence[Sequence[object]] | None = None,
        state_names: Sequence[str] | None = None,
        structure_group: Sequence[object] | None = None,
        entity_kind: Any = None,
        edge_type: Any = None,
        initial_state: Any = None,
    ) -> "Scenes":
        """Check arrays and make scenes of them.

        Args:
            trajectory: ``[B, T, N, D]``, raw units; floats are kept in float64.
            time_step: time between two frames.
            observation_mask: bool ``[B, T, N]``; default: everything was seen.
            entity_mask: bool ``[B, N]``; default: no padding.
            scene_names: B unique names; default "0", "1", ...
            entity_names: N names for all scenes, or N names for each of the B scenes; default "0", "1", ...
            state_names: D names; default x, y, vx, vy for D = 4, x, vx for D = 2, else s0, s1, ...
            structure_group: B group names; default: each scene is its own group.
            entity_kind: integer ``[B, N]`` or ``[N]``.
            edge_type: true types, integer ``[B, E]``, edges row-major by sender.
            initial_state: ``[B, N, D]``.

        Raises:
            ValueError: an array has another shape, an observed state is not finite, there are fewer than two frames or
                entities, names repeat, or scenes of one structure group do not have the same entities.
        """
        trajectory = torch.as_tensor(trajectory, dtype=torch.float64)
        if trajectory.ndim != 4:
            raise ValueError(f"trajectory must have shape [B, T, N, D], found {list(trajectory.shape)}")
        num_scenes, num_frames, num_entities, state_size = trajectory.shape
        if num_scenes < 1:
            raise ValueError("trajectory has no scene, at least one is needed")
        if num_frames < 2:
            raise ValueError(f"trajectory has {num_frames} frame, at least two are needed to see a motion")
        if num_entities < 2:
            raise ValueError(f"trajectory has {num_entities} entity, at least two are needed for an edge")
        if state_size < 1:
            raise ValueError("trajectory has no state variable, at least one is needed")
        time_step = float(time_step)
        if not 0 < time_step < float("inf"):
            raise ValueError(f"time_step must be a positive number, found {time_step}")
        entity_mask = _array("entity_mask", entity_mask, (num_scenes, num_entities), torch.bool, fill=True)
        observation_mask = _array(
            "observation_mask", observation_mask, (num_scenes, num_frames, num_entities), torch.bool, fill=True
        )
        observation_mask = observation_mask & entity_mask[:, None, :]
        scene_names = _names("scene_names", scene_names, num_scenes)
        if len(set(scene_names)) < num_scenes:
            repeated = next(name for name in scene_names if scene_names.count(name) > 1)
            raise ValueError(f"scene_names must be unique, found {repeated!r} more than once")
        all_entity_names = _entity_names(entity_names, entity_mask, scene_names)
        if (few := entity_mask.sum(-1) < 2).any():
            scene = scene_names[int(few.nonzero()[0])]
            raise ValueError(f"scene {scene!r} has fewer than two entities, at least two are needed for an edge")
        bad = ~torch.isfinite(trajectory) & observation_mask[..., None]
        if bad.any():
            b, t, n, _ = (int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"trajectory of scene {scene_names[b]!r}, entity {all_entity_names[b][n]!r} is not finite at frame {t}; "
                f"mark missing states in observation_mask"
            )
        if state_names is None:
            state_names = {2: ("x", "vx"), 4: ("x", "y", "vx", "vy")}.get(
                state_size, tuple(f"s{d}" for d in range(state_size))
            )
        groups = scene_names if structure_group is None else _names("structure_group", structure_group, num_scenes)
        if edge_type is not None:
            edge_type = _array("edge_type", edge_type, (num_scenes, edges.num_edges(num_entities)), torch.long)
            if (edge_type < 0).any():
                raise ValueError(f"edge_type must be 0 or more, found {int(edge_type.min())}")
            edge_type = edge_type * _edge_mask(entity_mask)
        if entity_kind is not None:
            kinds = torch.as_tensor(entity_kind, dtype=torch.long)
            entity_kind = _array(
                "entity_kind",
                kinds.expand(num_scenes, -1) if kinds.ndim == 1 else kinds,
                (num_scenes, num_entities),
                torch.long,
            )
            if (entity_kind < 0).any():
                raise ValueError(f"entity_kind must be 0 or more, found {int(entity_kind.min())}")
        if initial_state is not None:
            initial_state = _array("initial_state", initial_state, (num_scenes, num_entities, state_size), torch.float64)
        scenes = cls(
            trajectory=torch.where(observation_mask[..., None], trajectory, torch.zeros_like(trajectory)),
            time_step=time_step,
            observation_mask=observation_mask,
            entity_mask=entity_mask,
            scene_names=scene_names,
            entity_names=all_entity_names,
            state_names=_names("state_names", state_names, state_size),
            structure_group=groups,
            entity_kind=entity_kind,
            edge_type=edge_type,
            initial_state=initial_state,
        )
        scenes._check_groups()
        return scenes

    def _check_groups(self) -> None:
        first = self.group_first_scene
        for scene, group in enumerate(self.group_index.tolist()):
            if self.entity_names[scene] != self.entity_names[first[group]]:
                raise ValueError(
                    f"structure_group {self.structure_group[scene]!r}: scene {self.scene_names[scene]!r} has other entities "
                    f"than scene {self.scene_names[first[group]]!r}; scenes that share a structure need the same entities"
                )

    # --- sizes -------------------------------------------------------------------------------------------------------
    @property
    def num_scenes(self) -> int:
        """B, the number of scenes."""
        return self.trajectory.shape[0]

    @property
    def num_frames(self) -> int:
        """T, the number of frames."""
        return self.trajectory.shape[1]

    @property
    def num_entities(self) -> int:
        """N, the number of entities, padding included."""
        return self.trajectory.shape[2]

    @property
    def state_size(self) -> int:
        """D, the number of state variables."""
        return self.trajectory.shape[3]

    @property
    def num_edges(self) -> int:
        """E = N (N - 1), the number of edges, those of padded entities included."""
        return edges.num_edges(self.num_entities)

    def __len__(self) -> int:
        return self.num_scenes

    def __repr__(self) -> str:
        return (
            f"Scenes({self.num_scenes} scenes, {self.num_frames} frames, {self.num_entities} entities, "
            f"state {', '.join(self.state_names)}, {self.num_groups} structures, "
            f"truth {'known' if self.edge_type is not None else 'unknown'})"
        )

    # --- masks -------------------------------------------------------------------------------------------------------
    @property
    def edge_mask(self) -> Tensor:
        """Whether both ends of the edge exist in the scene, bool ``[B, E]``."""
        return _edge_mask(self.entity_mask)

    @property
    def complete_frame(self) -> Tensor:
        """Whether every entity of the scene was seen at the frame, bool ``[B, T]``."""
        return (self.observation_mask | ~self.entity_mask[:, None, :]).all(-1)

    @property
    def transition_mask(self) -> Tensor:
        """Whether the transition from frame t to t + 1 of the entity can be scored, bool ``[B, T - 1, N]``.

        All entities must be seen at frame t (each may send a message), and the entity itself at frame t + 1.
        """
        return self.complete_frame[:, :-1, None] & self.observation_mask[:, 1:]

    # --- shared structures -------------------------------------------------------------------------------------------
    @property
    def group_names(self) -> tuple[str, ...]:
        """G unique names of structure groups, in the order in which they first appear."""
        return tuple(dict.fromkeys(self.structure_group))

    @property
    def num_groups(self) -> int:
        """G, the number of structures to infer."""
        return len(self.group_names)

    @property
    def group_index(self) -> Tensor:
        """Number of the structure group of each scene, long ``[B]``."""
        number = {name: g for g, name in enumerate(self.group_names)}
        return torch.tensor([number[name] for name in self.structure_group], device=self.trajectory.device)

    @property
    def group_first_scene(self) -> list[int]:
        """For each structure group the number of its first scene; G integers."""
        return [self.structure_group.index(name) for name in self.group_names]

    def share_structure(self, group: str | Sequence[object] | Mapping[str, object]) -> "Scenes":
        """The same scenes with other structure groups.

        Args:
            group: "none" (each scene its own), "all" (one structure for all), B group names, or a mapping from scene name.

        Raises:
            ValueError: the groups do not fit the scenes.
        """
        if isinstance(group, str):
            if group not in ("none", "all"):
                raise ValueError(f"group must be 'none', 'all' or one name for each scene, found {group!r}")
            names = self.scene_names if group == "none" else ("all",) * self.num_scenes
        elif isinstance(group, Mapping):
            if missing := [name for name in self.scene_names if name not in group]:
                raise ValueError(f"group has no entry for scene {missing[0]!r}")
            names = tuple(str(group[name]) for name in self.scene_names)
        else:
            names = _names("group", group, self.num_scenes)
        scenes = replace(self, structure_group=names)
        scenes._check_groups()
        return scenes

    # --- parts -------------------------------------------------------------------------------------------------------
    def __getitem__(self, index: Any) -> "Scenes":
        """Some of the scenes: a slice, an integer (one scene), integers or a bool mask ``[B]``."""
        chosen = torch.arange(self.num_scenes)[index].reshape(-1)
        if len(chosen) == 0:
            raise ValueError("index selects no scene, at least one is needed")
        where = chosen.to(self.trajectory.device)
        order = chosen.tolist()
        optional = {
            name: None if (value := getattr(self, name)) is None else value[where]
            for name in ("entity_kind", "edge_type", "initial_state")
        }
        return replace(
            self,
            trajectory=self.trajectory[where],
            observation_mask=self.observation_mask[where],
            entity_mask=self.entity_mask[where],
            scene_names=tuple(self.scene_names[b] for b in order),
            entity_names=tuple(self.entity_names[b] for b in order),
            structure_group=tuple(self.structure_group[b] for b in order),
            **optional,
        )

    def frames(self, start: int | None = None, stop: int | None = None) -> "Scenes":
        """Frames ``start`` to ``stop`` (half-open, as a Python slice); ``initial_state`` is kept only from frame 0.

        Raises:
            ValueError: fewer than two frames would remain.
        """
        window = range(self.num_frames)[start:stop]
        if len(window) < 2:
            raise ValueError(
                f"frames {start}:{stop} of {self.num_frames} leave {len(window)} frames, at least two are needed"
            )
        return replace(
            self,
            trajectory=self.trajectory[:, start:stop],
            observation_mask=self.observation_mask[:, start:stop],
            initial_state=self.initial_state if window[0] == 0 else None,
        )

    def windows(self, num_transitions: int) -> "Scenes":
        """Cut every scene into windows of ``num_transitions`` transitions that share the scene's structure.

        Neighbouring windows have one frame in common, so no transition is lost and none is counted twice; the last
        window is padded with unobserved frames.

        Raises:
            ValueError: ``num_transitions`` is smaller than 1.
        """
        if num_transitions < 1:
            raise ValueError(f"num_transitions must be at least 1, found {num_transitions}")
        starts = range(0, self.num_frames - 1, num_transitions)
        length = num_transitions + 1
        parts = []
        for w, start in enumerate(starts):
            part = self.frames(start, start + length)
            short = length - part.num_frames
            parts.append(
                replace(
                    part,
                    trajectory=torch.nn.functional.pad(part.trajectory, (0, 0, 0, 0, 0, short)),
                    observation_mask=torch.nn.functional.pad(part.observation_mask, (0, 0, 0, short)),
                    scene_names=tuple(f"{name}[{w}]" for name in self.scene_names),
                    initial_state=None,
                )
            )
        return concatenate(parts)

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "Scenes":
        """The same scenes with floats in ``dtype`` and all tensors on ``device``."""

        def move(value: Tensor | None) -> Tensor | None:
            if value is None:
                return None
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        moved = {
            name: move(getattr(self, name))
            for name in ("trajectory", "observation_mask", "entity_mask", "entity_kind", "edge_type", "initial_state")
        }
        return replace(self, **moved)  # type: ignore[arg-type]


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
                raise ValueError(f"parts must have the same {what}, found {getattr(first, what)} and {getattr(part, what)}")
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


def _edge_mask(entity_mask: Tensor) -> Tensor:
    return edges.from_matrix(entity_mask[:, :, None] & entity_mask[:, None, :])


def _array(
    name: str, value: Any, shape: tuple[int, ...], dtype: torch.dtype, fill: bool | float | None = None
) -> Tensor:
    if value is None:
        return torch.full(shape, fill, dtype=dtype)  # type: ignore[arg-type]
    tensor = torch.as_tensor(value)
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {list(shape)}, found {list(tensor.shape)}")
    if dtype == torch.long and tensor.is_floating_point():
        if not torch.equal(tensor, tensor.round()):
            raise ValueError(f"{name} must hold whole numbers")
    return tensor.to(dtype)


def _names(what: str, names: Sequence[object] | None, count: int) -> tuple[str, ...]:
    result = tuple(str(name) for name in (range(count) if names is None else names))
    if len(result) != count:
        raise ValueError(f"{what} must have {count} entries, found {len(result)}")
    return result


def _entity_names(
    names: Sequence[object] | Sequence[Sequence[object]] | None, entity_mask: Tensor, scene_names: tuple[str, ...]
) -> tuple[tuple[str, ...], ...]:
    num_scenes, num_entities = entity_mask.shape
    if names is None or len(names) == 0 or isinstance(names[0], str) or not isinstance(names[0], Sequence):
        rows = (_names("entity_names", names, num_entities),) * num_scenes
    else:
        if len(names) != num_scenes:
            raise ValueError(f"entity_names must have an entry for each of {num_scenes} scenes, found {len(names)}")
        rows = tuple(_names("entity_names", row, num_entities) for row in names)  # type: ignore[arg-type]
    result = []
    for scene, row, mask in zip(scene_names, rows, entity_mask.tolist(), strict=True):
        kept = tuple(name if present else "" for name, present in zip(row, mask, strict=True))
        present_names = [name for name, present in zip(row, mask, strict=True) if present]
        if len(set(present_names)) < len(present_names):
            raise ValueError(f"entity_names of scene {scene!r} must be unique, found {present_names}")
        result.append(kept)
    return tuple(result)
