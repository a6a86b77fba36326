"""What was observed: a frozen batch of trajectories in raw units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

from pyro_nri.scenes import edges
from pyro_nri.scenes.checks import check_array, check_entity_names, check_names


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
        entity_mask = check_array("entity_mask", entity_mask, (num_scenes, num_entities), torch.bool, fill=True)
        observation_mask = check_array(
            "observation_mask", observation_mask, (num_scenes, num_frames, num_entities), torch.bool, fill=True
        )
        observation_mask = observation_mask & entity_mask[:, None, :]
        scene_names = check_names("scene_names", scene_names, num_scenes)
        if len(set(scene_names)) < num_scenes:
            repeated = next(name for name in scene_names if scene_names.count(name) > 1)
            raise ValueError(f"scene_names must be unique, found {repeated!r} more than once")
        all_entity_names = check_entity_names(entity_names, entity_mask, scene_names)
        if (few := entity_mask.sum(-1) < 2).any():
            scene = scene_names[int(few.nonzero()[0])]
            raise ValueError(f"scene {scene!r} has fewer than two entities, at least two are needed for an edge")
        bad = ~torch.isfinite(trajectory) & observation_mask[..., None]
        if bad.any():
            b, t, n, _ = (int(i) for i in bad.nonzero()[0])
            raise ValueError(
                f"trajectory of scene {scene_names[b]!r}, entity {all_entity_names[b][n]!r} is not finite at frame "
                f"{t}; mark missing states in observation_mask"
            )
        if state_names is None:
            state_names = {2: ("x", "vx"), 4: ("x", "y", "vx", "vy")}.get(
                state_size, tuple(f"s{d}" for d in range(state_size))
            )
        groups = scene_names if structure_group is None else check_names("structure_group", structure_group, num_scenes)
        if edge_type is not None:
            edge_type = check_array("edge_type", edge_type, (num_scenes, edges.num_edges(num_entities)), torch.long)
            if (edge_type < 0).any():
                raise ValueError(f"edge_type must be 0 or more, found {int(edge_type.min())}")
            edge_type = edge_type * _edge_mask(entity_mask)
        if entity_kind is not None:
            kinds = torch.as_tensor(entity_kind, dtype=torch.long)
            entity_kind = check_array(
                "entity_kind",
                kinds.expand(num_scenes, -1) if kinds.ndim == 1 else kinds,
                (num_scenes, num_entities),
                torch.long,
            )
            if (entity_kind < 0).any():
                raise ValueError(f"entity_kind must be 0 or more, found {int(entity_kind.min())}")
        if initial_state is not None:
            initial_state = check_array(
                "initial_state", initial_state, (num_scenes, num_entities, state_size), torch.float64
            )
        scenes = cls(
            trajectory=torch.where(observation_mask[..., None], trajectory, torch.zeros_like(trajectory)),
            time_step=time_step,
            observation_mask=observation_mask,
            entity_mask=entity_mask,
            scene_names=scene_names,
            entity_names=all_entity_names,
            state_names=check_names("state_names", state_names, state_size),
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
                    f"structure_group {self.structure_group[scene]!r}: scene {self.scene_names[scene]!r} has other "
                    f"entities than scene {self.scene_names[first[group]]!r}, which shares its structure"
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

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """A short hash of each scene's first ten frames, by which a scene is known again under any name."""
        first = self.trajectory[:, :10].double().cpu().numpy()
        present = self.entity_mask.cpu().numpy()
        return tuple(
            blake2b(frames[:, mask].tobytes(), digest_size=8).hexdigest()
            for frames, mask in zip(first, present, strict=True)
        )

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
        first: dict[str, int] = {}
        for scene, name in enumerate(self.structure_group):
            first.setdefault(name, scene)
        return list(first.values())

    def share_structure(self, group: str | Sequence[object] | Mapping[str, object]) -> "Scenes":
        """The same scenes with other structure groups.

        Args:
            group: "none" (each scene its own), "all" (one for all), B group names, or a mapping from scene name.

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
            names = check_names("group", group, self.num_scenes)
        scenes = replace(self, structure_group=names)
        scenes._check_groups()
        return scenes

    # --- parts -------------------------------------------------------------------------------------------------------
    def __getitem__(self, index: Any) -> "Scenes":
        """Some of the scenes: a slice, an integer (one scene), integers or a bool mask ``[B]``."""
        chosen = torch.arange(self.num_scenes)[index.cpu() if isinstance(index, Tensor) else index].reshape(-1)
        if len(chosen) == 0:
            raise ValueError("index selects no scene, at least one is needed")
        where = chosen.to(self.trajectory.device)
        order = chosen.tolist()
        optional: dict[str, Any] = {
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

        Args:
            start: first frame; default: 0. Negative numbers count from the end.
            stop: frame behind the last one; default: the end.

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

        Args:
            num_transitions: of each window, which then has one frame more.

        Raises:
            ValueError: ``num_transitions`` is smaller than 1.
        """
        if num_transitions < 1:
            raise ValueError(f"num_transitions must be at least 1, found {num_transitions}")
        starts = range(0, self.num_frames - 1, num_transitions)
        index = torch.tensor([list(range(start, start + num_transitions + 1)) for start in starts])  # [W, length]
        inside = (index < self.num_frames).to(self.trajectory.device)
        index = index.clamp(max=self.num_frames - 1).to(self.trajectory.device)
        seen = self.observation_mask[:, index] & inside[..., None]  # [B, W, length, N]
        states = torch.where(seen[..., None], self.trajectory[:, index], self.trajectory.new_zeros(()))

        def repeated(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(value for value in values for _ in starts)

        whole = self[list(repeated(range(self.num_scenes)))]
        return replace(
            whole,
            trajectory=states.flatten(0, 1),
            observation_mask=seen.flatten(0, 1),
            scene_names=tuple(f"{name}[{w}]" for name in self.scene_names for w in range(len(starts))),
            initial_state=None,
        )

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


def _edge_mask(entity_mask: Tensor) -> Tensor:
    return edges.from_matrix(entity_mask[:, :, None] & entity_mask[:, None, :])
