"""Scenes from and to a long table: one row for each scene, entity and time."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pyro_nri.scenes.scenes import Scenes

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# Times may be off their grid by this share of the scene's duration (or by the resolution of their float type) ...
_TIME_TOLERANCE = 1e-6
# ... but never by more than this share of the time step, else a frame could be taken for its neighbour.
_LARGEST_DEVIATION = 0.01
# A table may leave out rows, yet a grid this many times larger than the table is a mistake in the times.
_LARGEST_GRID = 100


def from_dataframe(
    frame: pd.DataFrame,
    *,
    scene: str | None = "scene",
    entity: str = "entity",
    time: str = "time",
    state: Sequence[str] = ("x", "y", "vx", "vy"),
    time_step: float | None = None,
    group: str | None = None,
    kind: str | None = None,
    missing: str = "error",
) -> Scenes:
    """Make scenes of a long table with one row for each scene, entity and time.

    Scenes come in the order in which they first appear, the entities of a scene sorted by name with numbers by value
    ("fish2" before "fish10"), whatever the order of the rows. Frame 0 of a scene is its earliest time; rows that are
    absent are entities not seen at that frame. Scenes with fewer frames or entities than others are padded.

    Args:
        frame: the table, raw units.
        scene: column that names the scene, or None: all rows are one scene.
        entity: column that names the entity within its scene.
        time: column of times; within a scene they lie on a regular grid, of which times may be absent.
        state: D columns of the state variables; positions first, velocities after.
        time_step: time between two frames, in the unit of ``time``; default: the smallest difference of times, which
            has to be the same in every scene.
        group: column that names the structure group, constant within a scene; default: each scene is its own.
        kind: column with the known kind of the entity (whole numbers, 0 or more), constant for an entity of a scene.
        missing: what a NaN in a state column means: "error", or "mask" = the entity was not seen at that time.

    Returns:
        Scenes with ``state_names`` = ``state`` and without truth.

    Raises:
        ValueError: a column is missing, not numeric or not constant where it must be, rows repeat, times are not on a
            grid, or a state is not finite.

    >>> table = pd.DataFrame({"entity": ["a", "b"] * 2, "time": [0, 0, 0.5, 0.5], "x": range(4), "vx": 1.0})
    >>> from_dataframe(table, scene=None, state=("x", "vx"))
    Scenes(1 scenes, 2 frames, 2 entities, state x, vx, 1 structures, truth unknown)
    """
    if missing not in ("error", "mask"):
        raise ValueError(f"missing must be 'error' or 'mask', found {missing!r}")
    states = (state,) if isinstance(state, str) else tuple(state)
    _check_columns(frame, states, {"scene": scene, "entity": entity, "time": time, "group": group, "kind": kind})
    if time_step is not None and not 0 < time_step < float("inf"):
        raise ValueError(f"time_step must be a positive number, found {time_step}")

    if scene is None:
        scene_code, scene_names = np.zeros(len(frame), dtype=np.int64), ["0"]
    else:
        scene_code, scene_names = _labels(frame, scene)
    times = _numbers(frame, time)
    if not np.isfinite(times).all():
        raise ValueError(f"column {time!r} (time) has an entry that is empty or not finite, every row needs a time")
    frame_number, step = _frame_numbers(scene_code, times, frame[time].dtype, time_step, scene_names, time)
    entity_code, entity_names, entity_mask = _entities(frame, entity, scene_code, len(scene_names))

    num_scenes, num_frames, num_entities = len(scene_names), int(frame_number.max()) + 1, entity_mask.shape[1]
    if num_scenes * num_frames * num_entities > _LARGEST_GRID * len(frame) + 10**6:
        raise ValueError(
            f"column {time!r} (time) needs a grid of {num_frames} frames of {step:g} for {len(frame)} rows; "
            f"check for a stray time or entity, or give time_step"
        )
    cell = (scene_code * num_frames + frame_number) * num_entities + entity_code
    observed = np.zeros(num_scenes * num_frames * num_entities, dtype=bool)
    observed[cell] = True
    if int(observed.sum()) < len(frame):
        row = int(pd.Series(cell).duplicated().to_numpy().argmax())
        where = _row(frame, row, scene, entity, time)
        raise ValueError(f"frame has more than one row for {where} (time step {step:g}), one is wanted")

    values = np.stack([_numbers(frame, column) for column in states], axis=-1)  # [rows, D]
    bad = np.isinf(values).any(-1) if missing == "mask" else ~np.isfinite(values).all(-1)
    if bad.any():
        row = int(bad.argmax())
        column = states[int((~np.isfinite(values[row])).argmax())]
        advice = "" if missing == "mask" else "; give missing='mask' (--missing mask) where empty means not seen"
        where = _row(frame, row, scene, entity, time)
        raise ValueError(f"column {column!r} (state) is empty or not finite for {where}{advice}")
    seen = np.isfinite(values).all(-1)
    observed[cell[~seen]] = False
    trajectory = np.zeros((len(observed), len(states)))
    trajectory[cell[seen]] = values[seen]

    groups = None
    if group is not None:
        group_code, group_names = _labels(frame, group)
        first = _constant(group_code, scene_code, num_scenes, frame, group, "group", "scene")
        groups = [group_names[code] for code in first]
    kinds = None
    if kind is not None:
        kind_values = _numbers(frame, kind)
        if not (np.isfinite(kind_values) & (kind_values >= 0) & (kind_values == np.rint(kind_values))).all():
            raise ValueError(f"column {kind!r} (kind) must hold whole numbers of 0 or more")
        owner = scene_code * num_entities + entity_code
        whole = kind_values.astype(np.int64)
        kinds = _constant(whole, owner, num_scenes * num_entities, frame, kind, "kind", "entity of a scene")
        kinds = kinds.reshape(num_scenes, num_entities)
    return Scenes.from_arrays(
        trajectory.reshape(num_scenes, num_frames, num_entities, len(states)),
        time_step=step,
        observation_mask=observed.reshape(num_scenes, num_frames, num_entities),
        entity_mask=entity_mask,
        scene_names=scene_names,
        entity_names=entity_names,
        state_names=states,
        structure_group=groups,
        entity_kind=kinds,
    )


def to_dataframe(scenes: Scenes) -> pd.DataFrame:
    """Lay scenes out as a long table, in raw units: one row for each entity and frame that was observed.

    :func:`from_dataframe` makes the same scenes of it again, except for what such a table cannot hold: the truth, and
    frames before the first or after the last observation of a scene.

    Args:
        scenes: the scenes.

    Returns:
        Columns scene, entity, frame (number), time, the state variables; group if scenes are grouped otherwise than
        each on its own; kind if entity kinds are known. Rows are ordered by scene, frame, entity.
    """
    where = scenes.observation_mask.nonzero().cpu().numpy()
    scene, frame, entity = where.T
    states = scenes.trajectory.cpu().numpy()[scene, frame, entity]
    names = np.asarray(scenes.entity_names, dtype=object)
    columns = {
        "scene": np.asarray(scenes.scene_names, dtype=object)[scene],
        "entity": names[scene, entity],
        "frame": frame,
        "time": frame * scenes.time_step,
        **{name: states[:, d] for d, name in enumerate(scenes.state_names)},
    }
    if scenes.structure_group != scenes.scene_names:
        columns["group"] = np.asarray(scenes.structure_group, dtype=object)[scene]
    if scenes.entity_kind is not None:
        columns["kind"] = scenes.entity_kind.cpu().numpy()[scene, entity]
    return pd.DataFrame(columns)


def _check_columns(frame: pd.DataFrame, states: tuple[str, ...], roles: dict[str, str | None]) -> None:
    """Raise if a column that is asked for is absent, asked for twice, or ambiguous; or if there are no rows."""
    if not states:
        raise ValueError("state names no column, at least one state variable is needed")
    found = ", ".join(str(column) for column in frame.columns)
    for role, column in roles.items():
        if column is not None and column not in frame.columns:
            advice = "; give scene=None (--scene none) if all rows are one scene" if role == "scene" else ""
            raise ValueError(f"frame has no column {column!r} (argument {role}), its columns are {found}{advice}")
    if absent := [column for column in states if column not in frame.columns]:
        raise ValueError(
            f"frame has no column {', '.join(map(repr, absent))} (argument state), its columns are {found}; every "
            f"state variable has to be given, velocities too"
        )
    wanted = [*states, *(column for column in roles.values() if column is not None)]
    for column in wanted:
        if wanted.count(column) > 1:
            raise ValueError(f"column {column!r} is asked for more than once, in state or for two arguments")
        if list(frame.columns).count(column) > 1:
            raise ValueError(f"frame has more than one column {column!r}, one is wanted")
    if len(frame) == 0:
        raise ValueError("frame has no rows, at least two entities at two times are needed")


def _numbers(frame: pd.DataFrame, column: str) -> Floats:
    """A numeric column as floats, empty entries as NaN."""
    values = frame[column]
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise ValueError(f"column {column!r} must be numeric, found {values.dtype} such as {values.iloc[0]!r}")
    if pd.api.types.is_complex_dtype(values):
        raise ValueError(f"column {column!r} must hold real numbers, found {values.dtype}")
    return values.to_numpy(dtype=np.float64, na_value=np.nan)


def _labels(frame: pd.DataFrame, column: str) -> tuple[Integers, list[str]]:
    """Code of each row and the names the codes stand for, in the order in which they first appear."""
    code, found = pd.factorize(frame[column])
    if (code < 0).any():
        raise ValueError(f"column {column!r} has an empty entry in row {int((code < 0).argmax())}, a name is wanted")
    # Different labels may read the same (1 and "1"): they are one name.
    renumber, names = pd.factorize(np.array([str(label) for label in found], dtype=object))
    return renumber.astype(np.int64)[code], [str(name) for name in names]


def _natural(name: str) -> tuple[list[str | int], str]:
    """Sort key that orders numbers inside names by value."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if p % 2 else part for p, part in enumerate(parts)], name


def _entities(
    frame: pd.DataFrame, column: str, scene_code: Integers, num_scenes: int
) -> tuple[Integers, list[list[str]], NDArray[np.bool_]]:
    """Number of each row's entity in its scene, names for each scene ("" padded), and the mask ``[B, N]``."""
    code, names = _labels(frame, column)
    order = sorted(range(len(names)), key=lambda e: _natural(names[e]))
    rank = np.empty(len(names), dtype=np.int64)
    rank[order] = np.arange(len(names))
    pairs, of_row = np.unique(scene_code * len(names) + rank[code], return_inverse=True)
    pair_scene = pairs // len(names)
    starts = np.searchsorted(pair_scene, np.arange(num_scenes))
    position = np.arange(len(pairs)) - starts[pair_scene]
    mask = np.zeros((num_scenes, int(position.max()) + 1), dtype=bool)
    mask[pair_scene, position] = True
    padded = np.full(mask.shape, "", dtype=object)
    padded[pair_scene, position] = np.array([names[e] for e in order], dtype=object)[pairs % len(names)]
    return position[of_row], padded.tolist(), mask


def _frame_numbers(
    scene_code: Integers, times: Floats, dtype: object, time_step: float | None, scene_names: list[str], column: str
) -> tuple[Integers, float]:
    """Frame number of each row, and the time step."""
    given = time_step is not None
    order = np.lexsort((times, scene_code))
    sorted_code, sorted_times = scene_code[order], times[order]
    starts = np.flatnonzero(np.diff(sorted_code, prepend=-1))
    first, last = sorted_times[starts], sorted_times[np.append(starts[1:], len(times)) - 1]
    span = last - first  # [B]
    resolution = np.finfo(np.float32 if str(dtype).lower() == "float32" else np.float64).eps
    slack = 8 * resolution * np.maximum(np.abs(first), np.abs(last))
    if not (span > slack).any():
        raise ValueError(f"column {column!r} (time) has one time in every scene, at least two frames are needed")
    if time_step is None:
        gaps = np.diff(sorted_times, prepend=sorted_times[0])
        gaps[starts] = 0
        largest = np.maximum.reduceat(gaps, starts)
        # Differences as small as these are one time, written twice with another rounding.
        gaps[gaps <= np.maximum(slack, _TIME_TOLERANCE * largest)[sorted_code]] = np.inf
        smallest = np.minimum.reduceat(gaps, starts)
        # A scene seen at one time has no step of its own. Elsewhere the whole duration gives the most exact step.
        known = np.isfinite(smallest)
        intervals = np.where(known, np.rint(span / smallest), 0)
        own = np.divide(span, intervals, where=known, out=np.full_like(span, np.nan))
        longest = int(intervals.argmax())
        # Twelve digits: 0.1 should come out as 0.1, so that tables that belong together can be joined.
        time_step = float(f"{own[longest]:.12g}")
        other = known & (np.abs(own - time_step) > _LARGEST_DEVIATION * time_step / 2)
        if other.any():
            b = int(other.argmax())
            found = f"{scene_names[longest]!r} has {time_step:g}, scene {scene_names[b]!r} has {own[b]:g}"
            raise ValueError(
                f"column {column!r} (time) must have one time step in all scenes, found two: scene {found}; "
                f"give time_step if frames are missing"
            )
    number = np.rint((times - first[scene_code]) / time_step)
    deviation = np.abs(times - first[scene_code] - number * time_step)
    allowed = slack + np.minimum(_TIME_TOLERANCE * np.maximum(time_step, span), _LARGEST_DEVIATION * time_step)
    if (off := deviation > allowed[scene_code]).any():
        row = int(off.argmax())
        raise ValueError(
            f"column {column!r} (time) must be regular: time {times[row]:g} of scene {scene_names[scene_code[row]]!r} "
            f"is not a whole number of steps of {time_step:g} after {first[scene_code[row]]:g}"
        )
    jump = np.diff(number[order], prepend=0)
    jump[starts] = 0
    if not given and (jump > 1).sum() > (jump == 1).sum():
        # Two irregular neighbours are enough to find a small step on whose grid almost every frame is missing.
        raise ValueError(
            f"column {column!r} (time) must be regular: most neighbouring times are more than one step {time_step:g} "
            f"apart; give time_step if frames are missing"
        )
    if number.max() >= 2**31:
        raise ValueError(f"column {column!r} (time) spans {number.max():.0f} steps of {time_step:g}, too many")
    return number.astype(np.int64), time_step


def _constant(
    values: Integers, owner: Integers, num_owners: int, frame: pd.DataFrame, column: str, role: str, what: str
) -> Integers:
    """The one value of each owner; raise if it has two. Owners without rows get 0."""
    result = np.zeros(num_owners, dtype=np.int64)
    result[owner] = values
    if (differs := result[owner] != values).any():
        row = int(differs.argmax())
        other = int((owner == owner[row]).nonzero()[0][-1])
        found = f"{frame[column].iloc[row]!r} and {frame[column].iloc[other]!r}"
        raise ValueError(f"column {column!r} ({role}) must be constant within each {what}, found {found} in one")
    return result


def _row(frame: pd.DataFrame, row: int, scene: str | None, entity: str, time: str) -> str:
    """Where a row is, in words."""
    parts = [] if scene is None else [f"scene {str(frame[scene].iloc[row])!r}"]
    return ", ".join([*parts, f"entity {str(frame[entity].iloc[row])!r}, time {frame[time].iloc[row]:g}"])
