"""The Scenes container: masks, parts, groups, refusals."""

from typing import Any

import numpy as np
import pytest
import torch

from pyro_nri.scenes import edges
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes


def arrays(num_scenes: int = 3, num_frames: int = 8, num_entities: int = 4, state_size: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(num_scenes, num_frames, num_entities, state_size, generator=generator, dtype=torch.float64)


def full(**changes: Any) -> Scenes:
    """Three scenes of four entities with everything that Scenes can hold; scene 2 lacks its last entity."""
    trajectory = arrays()
    entity_mask = torch.ones(3, 4, dtype=torch.bool)
    entity_mask[2, 3] = False
    observation_mask = torch.ones(3, 8, 4, dtype=torch.bool)
    observation_mask[1, 4, 2] = False
    arguments: dict[str, Any] = {
        "time_step": 0.5,
        "observation_mask": observation_mask,
        "entity_mask": entity_mask,
        "scene_names": ["a", "b", "c"],
        "entity_names": [["p", "q", "r", "s"]] * 3,
        "entity_kind": [0, 1, 0, 1],
        "edge_type": torch.arange(36).reshape(3, 12) % 5,
        "initial_state": trajectory[:, 0],
    }
    return Scenes.from_arrays(trajectory, **(arguments | changes))


def test_defaults() -> None:
    scenes = Scenes.from_arrays(arrays().numpy())
    assert (len(scenes), scenes.num_frames, scenes.num_entities, scenes.state_size, scenes.num_edges) == (
        3,
        8,
        4,
        4,
        12,
    )
    assert scenes.scene_names == scenes.structure_group == ("0", "1", "2")
    assert scenes.entity_names == (("0", "1", "2", "3"),) * 3
    assert scenes.state_names == ("x", "y", "vx", "vy")
    assert scenes.observation_mask.all()
    assert scenes.edge_mask.all()
    assert scenes.edge_type is None
    assert "truth unknown" in repr(scenes)
    assert Scenes.from_arrays(arrays(state_size=2)).state_names == ("x", "vx")
    assert Scenes.from_arrays(arrays(state_size=3)).state_names == ("s0", "s1", "s2")


def test_padding_and_missing_frames_are_zero_and_masked() -> None:
    trajectory = arrays()
    trajectory[1, 4, 2] = torch.nan  # not observed there: no reason to complain
    scenes = full()
    assert torch.isfinite(scenes.trajectory).all()
    assert (scenes.trajectory[1, 4, 2] == 0).all()
    assert not scenes.observation_mask[2, :, 3].any()
    assert scenes.entity_names[2] == ("p", "q", "r", "")
    touches = (edges.senders(4) == 3) | (edges.receivers(4) == 3)
    assert torch.equal(scenes.edge_mask[2], ~touches)
    assert scenes.edge_type is not None
    assert (scenes.edge_type[2][touches] == 0).all()


def test_transition_needs_all_senders_before_and_the_entity_after() -> None:
    scenes = full()
    mask = scenes.observation_mask
    for b in range(3):
        present = [n for n in range(4) if scenes.entity_mask[b, n]]
        for t in range(7):
            for n in range(4):
                expected = all(mask[b, t, m] for m in present) and bool(mask[b, t + 1, n])
                assert scenes.transition_mask[b, t, n] == expected, (b, t, n)
    # In words for the one hole, entity 2 at frame 4 of scene 1: it is no target at 3 -> 4, nobody is one at 4 -> 5.
    assert scenes.transition_mask[1, 3].tolist() == [True, True, False, True]
    assert not scenes.transition_mask[1, 4].any()
    assert scenes.transition_mask[1, 5].all()


@pytest.mark.parametrize("num_transitions", [1, 2, 3, 4, 7, 10])
def test_windows_lose_no_transition_and_count_none_twice(num_transitions: int) -> None:
    scenes = full()
    windows = scenes.windows(num_transitions)
    assert windows.num_frames == num_transitions + 1
    assert windows.initial_state is None

    def transitions(part: Scenes) -> list[tuple[float, ...]]:
        pairs = torch.cat([part.trajectory[:, :-1], part.trajectory[:, 1:]], dim=-1)
        return sorted(tuple(row) for row in pairs[part.transition_mask].tolist())

    assert transitions(windows) == transitions(scenes)
    assert windows.group_names == ("a", "b", "c")
    assert set(windows.scene_names) == {f"{name}[{w}]" for name in "abc" for w in range(-(-7 // num_transitions))}


def test_windows_refuse_nothing_to_cut() -> None:
    with pytest.raises(ValueError, match="num_transitions must be at least 1"):
        full().windows(0)


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (1, ("b",)),
        (-1, ("c",)),
        (slice(1, None), ("b", "c")),
        ([2, 0], ("c", "a")),
        (torch.tensor([True, False, True]), ("a", "c")),
        (np.array([0, 2]), ("a", "c")),
    ],
)
def test_slicing_keeps_everything_together(index: Any, names: tuple[str, ...]) -> None:
    scenes = full()
    part = scenes[index]
    assert part.scene_names == names
    for b, name in enumerate(names):
        old = scenes.scene_names.index(name)
        for field in ("trajectory", "observation_mask", "entity_mask", "entity_kind", "edge_type", "initial_state"):
            assert torch.equal(getattr(part, field)[b], getattr(scenes, field)[old]), field
        assert part.entity_names[b] == scenes.entity_names[old]
        assert part.structure_group[b] == scenes.structure_group[old]


def test_slicing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="selects no scene"):
        full()[5:]


def test_frames() -> None:
    scenes = full()
    part = scenes.frames(2, 6)
    assert part.num_frames == 4
    assert torch.equal(part.trajectory, scenes.trajectory[:, 2:6])
    assert part.initial_state is None
    assert scenes.frames(0, 3).initial_state is not None
    assert scenes.frames(-3).num_frames == 3
    with pytest.raises(ValueError, match="leave 1 frames"):
        scenes.frames(7, 20)


def test_groups() -> None:
    scenes = full(entity_mask=None, structure_group=["u", "v", "u"])
    assert scenes.group_names == ("u", "v")
    assert scenes.num_groups == 2
    assert scenes.group_index.tolist() == [0, 1, 0]
    assert scenes.group_first_scene == [0, 1]
    assert scenes.share_structure("none").num_groups == 3
    assert scenes.share_structure("all").group_index.tolist() == [0, 0, 0]
    assert scenes.share_structure({"a": 1, "b": 2, "c": 2}).structure_group == ("1", "2", "2")
    assert scenes.share_structure(["k", "k", "l"]).group_first_scene == [0, 2]
    assert scenes.structure_group == ("u", "v", "u")  # the original stays


def test_groups_of_many_scenes_are_found_in_linear_time() -> None:
    scenes = Scenes.from_arrays(torch.zeros(30_000, 2, 2, 1))  # minutes if each group were searched from the start
    assert scenes.group_first_scene == list(range(30_000))


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("some", "must be 'none', 'all'"),
        ({"a": 0}, "no entry for scene 'b'"),
        (["k", "l"], "group must have 3 entries, found 2"),
        ("all", "other entities"),  # scene c has fewer
    ],
)
def test_bad_groups(group: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full().share_structure(group)


def test_concatenate_pads_entities_and_keeps_edges_in_place() -> None:
    small_type = torch.tensor([[1, 2, 3, 4, 5, 6]])
    small = Scenes.from_arrays(
        arrays(1, 8, 3), time_step=0.5, scene_names=["d"], entity_names=["p", "q", "r"], edge_type=small_type
    )
    both = concatenate([small, full()])
    assert both.scene_names == ("d", "a", "b", "c")
    assert both.entity_names[0] == ("p", "q", "r", "")
    assert both.entity_mask[0].tolist() == [True, True, True, False]
    assert both.edge_type is not None
    assert torch.equal(edges.to_matrix(both.edge_type[0])[:3, :3], edges.to_matrix(small_type[0]))
    assert (both.edge_type[0][~both.edge_mask[0]] == 0).all()
    assert both.entity_kind is None  # one part has none
    assert both.initial_state is None
    whole = full()
    again = concatenate([whole[:1], whole[1:]])
    assert torch.equal(again.trajectory, whole.trajectory)
    assert again.entity_kind is not None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (full(scene_names=["x", "y", "z"]).frames(0, 4), "num_frames"),
        (full(scene_names=["x", "y", "z"], time_step=1.0), "time_step"),
        (full(scene_names=["x", "y", "z"], state_names=["p", "q", "r", "s"]), "state_names"),
        (full(), "scene_names must be unique"),
    ],
)
def test_concatenate_refuses_what_does_not_fit(other: Scenes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        concatenate([full(), other])


def test_concatenate_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="parts is empty"):
        concatenate([])


def test_to_changes_floats_only() -> None:
    scenes = full().to(torch.float32)
    assert scenes.trajectory.dtype == torch.float32
    assert scenes.initial_state is not None
    assert scenes.initial_state.dtype == torch.float32
    assert scenes.edge_type is not None
    assert scenes.edge_type.dtype == torch.long
    assert scenes.observation_mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_step": 0}, "time_step must be a positive number, found 0"),
        ({"time_step": float("nan")}, "time_step must be a positive number"),
        ({"observation_mask": torch.ones(3, 8)}, r"observation_mask must have shape \[3, 8, 4\], found \[3, 8\]"),
        ({"entity_mask": torch.ones(3, 5)}, r"entity_mask must have shape \[3, 4\], found \[3, 5\]"),
        ({"entity_mask": torch.eye(4)[:3]}, "scene 'a' has fewer than two entities"),
        ({"scene_names": ["a", "b"]}, "scene_names must have 3 entries, found 2"),
        ({"scene_names": ["a", "b", "a"]}, "scene_names must be unique, found 'a'"),
        ({"entity_names": ["p", "p", "q", "r"]}, "entity_names of scene 'a' must be unique"),
        ({"entity_names": [["p", "q", "r", "s"]] * 2}, "an entry for each of 3 scenes, found 2"),
        ({"state_names": ["x"]}, "state_names must have 4 entries, found 1"),
        ({"structure_group": ["u"]}, "structure_group must have 3 entries, found 1"),
        ({"edge_type": torch.zeros(3, 6)}, r"edge_type must have shape \[3, 12\], found \[3, 6\]"),
        ({"edge_type": torch.full((3, 12), -1)}, "edge_type must be 0 or more, found -1"),
        ({"edge_type": torch.full((3, 12), 0.5)}, "edge_type must hold whole numbers"),
        ({"entity_kind": [0, 1, 2, -1]}, "entity_kind must be 0 or more, found -1"),
        ({"entity_kind": [0, 1]}, r"entity_kind must have shape \[3, 4\], found \[3, 2\]"),
        ({"initial_state": torch.zeros(3, 4)}, r"initial_state must have shape \[3, 4, 4\], found \[3, 4\]"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        full(**changes)


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (torch.zeros(3, 4, 2), r"shape \[B, T, N, D\], found \[3, 4, 2\]"),
        (torch.zeros(0, 4, 2, 2), "no scene"),
        (torch.zeros(1, 1, 2, 2), "1 frame, at least two"),
        (torch.zeros(1, 4, 1, 2), "1 entity, at least two"),
        (torch.zeros(1, 4, 2, 0), "no state variable"),
        (torch.full((1, 4, 2, 2), torch.inf), "scene '0', entity '0' is not finite at frame 0"),
    ],
)
def test_bad_trajectory(trajectory: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scenes.from_arrays(trajectory)
