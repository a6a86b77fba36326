"""Every way in and out: tables, datasets, NetCDF, NRI arrays."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from pyro_nri.scenes import edges
from pyro_nri.scenes.readers import (
    from_dataframe,
    from_dataset,
    read_netcdf,
    read_nri,
    read_scenes,
    to_dataframe,
    to_dataset,
    write_netcdf,
    write_nri,
)
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference" / "nri"
needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="needs NRI's own files in ../shared/reference/nri, which stay outside the repository"
)


def same(left: Scenes, right: Scenes, *, truth: bool = True) -> None:
    assert torch.equal(left.trajectory, right.trajectory)
    assert torch.equal(left.observation_mask, right.observation_mask)
    assert torch.equal(left.entity_mask, right.entity_mask)
    assert left.time_step == pytest.approx(right.time_step, rel=1e-9)
    for name in ("scene_names", "entity_names", "state_names", "structure_group"):
        assert getattr(left, name) == getattr(right, name)
    for name in ("entity_kind", "edge_type", "initial_state") if truth else ():
        one, other = getattr(left, name), getattr(right, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


def directed() -> Scenes:
    """Two scenes whose types tell every edge from its reverse."""
    edge_type = torch.arange(12).expand(2, 12) % 7
    return Scenes.from_arrays(
        np.random.default_rng(1).normal(size=(2, 6, 4, 4)), time_step=0.1, edge_type=edge_type, scene_names=["u", "v"]
    )


def ragged() -> Scenes:
    """Scenes that differ in entities, with missing frames, groups, kinds and truth."""
    generator = np.random.default_rng(2)
    entity_mask = np.array([[1, 1, 1], [1, 1, 0], [1, 1, 1]], dtype=bool)
    seen = generator.random((3, 6, 3)) < 0.8
    seen[:, [0, -1]] = True
    return Scenes.from_arrays(
        generator.normal(size=(3, 6, 3, 2)),
        time_step=0.25,
        observation_mask=seen,
        entity_mask=entity_mask,
        scene_names=["s1", "s2", "s3"],
        entity_names=[["a", "b", "c"], ["a", "z", ""], ["a", "b", "c"]],
        structure_group=["g", "h", "g"],
        entity_kind=np.array([[0, 1, 2], [1, 0, 0], [0, 1, 2]]),
        edge_type=generator.integers(0, 3, (3, 6)),
        initial_state=generator.normal(size=(3, 3, 2)),
    )


# --- tables ----------------------------------------------------------------------------------------------------------
def table() -> pd.DataFrame:
    return to_dataframe(simulate("springs", 2, num_entities=3, num_frames=4, seed=3))


def test_table_round_trip() -> None:
    scenes = simulate("springs", 3, num_frames=5, seed=0)
    frame = to_dataframe(scenes)
    assert list(frame.columns) == ["scene", "entity", "frame", "time", "x", "y", "vx", "vy"]
    same(from_dataframe(frame), scenes, truth=False)
    assert from_dataframe(frame).time_step == 0.1


def test_table_round_trip_of_ragged_scenes() -> None:
    scenes = ragged()
    frame = to_dataframe(scenes)
    assert len(frame) == int(scenes.observation_mask.sum())
    again = from_dataframe(frame, state=("x", "vx"), group="group", kind="kind", time_step=0.25)
    same(again, scenes, truth=False)
    assert again.entity_kind is not None
    assert scenes.entity_kind is not None
    assert torch.equal(again.entity_kind, scenes.entity_kind * scenes.entity_mask)


def test_order_of_rows_does_not_matter_but_for_the_order_of_scenes() -> None:
    frame = table()
    shuffled = frame.sample(frac=1, random_state=0)
    order = {name: b for b, name in enumerate(dict.fromkeys(shuffled["scene"]))}
    same(from_dataframe(shuffled), from_dataframe(frame)[sorted(range(2), key=lambda b: order[str(b)])], truth=False)


def test_entities_are_sorted_with_numbers_by_value() -> None:
    frame = pd.DataFrame({"entity": ["fish10", "fish2", "carp", "fish1"], "x": 1.0})
    frame = pd.concat([frame.assign(time=time) for time in (0, 1)])
    assert from_dataframe(frame, scene=None, state=["x"]).entity_names == (("carp", "fish1", "fish2", "fish10"),)


def test_absent_times_and_unequal_scenes_are_padded() -> None:
    rows = [("a", "p", 0.0), ("a", "q", 0.0), ("a", "p", 0.1), ("a", "q", 0.1), ("a", "p", 0.3), ("a", "q", 0.3)]
    rows += [("b", name, time) for name in "pqr" for time in (7.0, 7.1)]
    frame = pd.DataFrame(rows, columns=["scene", "entity", "time"]).assign(x=np.arange(12.0))
    scenes = from_dataframe(frame, state=["x"])
    assert scenes.observation_mask[0].tolist() == [[True, True, False]] * 2 + [[False] * 3] + [[True, True, False]]
    assert scenes.observation_mask[1].tolist() == [[True] * 3] * 2 + [[False] * 3] * 2
    assert scenes.trajectory[0, 3, 1, 0] == 5
    assert scenes.entity_names == (("p", "q", ""), ("p", "q", "r"))


@pytest.mark.parametrize("offset", [0.0, 1.7e9, -3.0])
def test_times_may_be_rounded(offset: float) -> None:
    time = offset + np.repeat(np.arange(2000), 2) / 30
    frame = pd.DataFrame({"entity": ["p", "q"] * 2000, "time": time, "x": 1.0})
    jitter = np.random.default_rng(0).uniform(-1e-8, 1e-8, len(frame))
    for times in (time, time + jitter, time.astype(np.float32) if offset <= 0 else time):
        scenes = from_dataframe(frame.assign(time=times), scene=None, state=["x"])
        assert scenes.num_frames == 2000
        assert scenes.time_step == pytest.approx(1 / 30, rel=1e-6)


def test_scene_labels_of_any_kind() -> None:
    frame = table()
    assert from_dataframe(frame.assign(scene=frame["scene"].astype(int))).scene_names == ("0", "1")
    assert from_dataframe(frame.assign(scene=frame["scene"].astype("category"))).scene_names == ("0", "1")
    one = frame[frame["scene"] == "1"].drop(columns="scene")
    assert from_dataframe(one, scene=None).scene_names == ("0",)


def test_nan_masks_or_fails() -> None:
    frame = table()
    frame.loc[4, "vy"] = np.nan
    with pytest.raises(
        ValueError, match=r"column 'vy' \(state\) is empty .* scene '0', entity '1', time 0.1; give missing="
    ):
        from_dataframe(frame)
    scenes = from_dataframe(frame, missing="mask")
    assert int((~scenes.observation_mask).sum()) == 1
    assert not scenes.observation_mask[0, 1, 1]


Change = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (lambda f: f.drop(columns="scene"), {}, r"no column 'scene' \(argument scene\).*scene=None"),
        (lambda f: f.drop(columns="time"), {}, r"no column 'time' \(argument time\)"),
        (lambda f: f.drop(columns=["vx", "vy"]), {}, r"no column 'vx', 'vy' \(argument state\).*velocities"),
        (lambda f: f, {"group": "tank"}, r"no column 'tank' \(argument group\)"),
        (lambda f: f, {"state": ["x", "x"]}, "column 'x' is asked for more than once"),
        (lambda f: f, {"state": []}, "state names no column"),
        (lambda f: pd.concat([f, f[["x"]]], axis=1), {}, "more than one column 'x'"),
        (lambda f: f[:0], {}, "frame has no rows"),
        (lambda f: f.assign(x="left"), {}, "column 'x' must be numeric.*'left'"),
        (lambda f: f.assign(x=True), {}, "column 'x' must be numeric"),
        (lambda f: f.assign(x=1j), {}, "column 'x' must hold real numbers"),
        (lambda f: f.assign(time=pd.Timestamp(0)), {}, "column 'time' must be numeric"),
        (
            lambda f: f.assign(time=f["time"].where(f["time"] > 0)),
            {},
            r"column 'time' \(time\) has an entry that is empty",
        ),
        (lambda f: f.assign(entity=f["entity"].where(f.index > 0)), {}, "column 'entity' has an empty entry in row 0"),
        (
            lambda f: pd.concat([f, f[:1]]),
            {},
            "more than one row for scene '0', entity '0', time 0 .time step 0.1., one is wanted",
        ),
        (lambda f: f.assign(time=f["time"] ** 1.5), {}, "must be regular: time"),
        (lambda f: f.assign(time=f["time"] * (1.0 + (f["scene"] == "1"))), {}, "scene '0' has 0.1, scene '1' has 0.2"),
        (lambda f: f.assign(time=0.0, entity=range(len(f))), {}, "one time in every scene"),
        (lambda f: f, {"time_step": 0.07}, "must be regular"),
        (lambda f: f, {"time_step": -1.0}, "time_step must be a positive number, found -1"),
        (lambda f: f.assign(time=f["time"].replace(f["time"].max(), 5e4)), {}, "check for a stray time"),
        (lambda f: f.assign(x=np.inf), {"missing": "mask"}, r"column 'x' \(state\) is empty or not finite"),
        (lambda f: f, {"missing": "drop"}, "missing must be 'error' or 'mask', found 'drop'"),
        (lambda f: f.assign(g=range(len(f))), {"group": "g"}, r"'g' \(group\) must be constant within each scene"),
        (lambda f: f.assign(k=range(len(f))), {"kind": "k"}, r"'k' \(kind\) must be constant within each entity"),
        (lambda f: f.assign(k=0.5), {"kind": "k"}, r"'k' \(kind\) must hold whole numbers"),
        (lambda f: f[f["entity"] == "0"], {}, "at least two"),
    ],
)
def test_bad_tables(change: Change, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        from_dataframe(change(table()), **arguments)
    assert "\n" not in str(caught.value)


def test_frames_missing_everywhere_in_one_scene_need_the_time_step() -> None:
    frame = table()
    thinned = frame[(frame["scene"] == "0") | frame["frame"].isin([0, 2])]
    with pytest.raises(ValueError, match="give time_step if frames are missing"):
        from_dataframe(thinned)
    scenes = from_dataframe(thinned, time_step=0.1)
    assert scenes.observation_mask[1, :, 0].tolist() == [True, False, True, False]


# --- datasets and NetCDF ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("make", [directed, ragged, lambda: simulate("charged", 2, num_frames=3, seed=1)])
def test_dataset_and_netcdf_round_trip(make: Callable[[], Scenes], tmp_path: Path) -> None:
    scenes = make()
    same(from_dataset(to_dataset(scenes)), scenes)
    write_netcdf(scenes, tmp_path / "scenes.nc")
    same(read_netcdf(tmp_path / "scenes.nc"), scenes)
    assert [path.name for path in tmp_path.iterdir()] == ["scenes.nc"]


def test_dataset_may_come_in_any_order() -> None:
    scenes = directed()
    dataset = to_dataset(scenes).transpose("state", "edge", "entity", "frame", "scene")
    same(from_dataset(dataset.isel(edge=np.random.default_rng(0).permutation(12))), scenes)


def test_dataset_names_edges_by_entity() -> None:
    dataset = to_dataset(directed())
    edge = int(((dataset["sender"] == "2") & (dataset["receiver"] == "1")).to_numpy().argmax())
    matrix = edges.to_matrix(directed().edge_type)  # type: ignore[arg-type]
    assert dataset["edge_type"][0, edge] == matrix[0, 2, 1] != matrix[0, 1, 2]


def test_dataset_of_a_user_needs_little() -> None:
    dataset = xr.Dataset(
        {"trajectory": (("scene", "entity", "frame", "state"), np.ones((1, 2, 3, 2)))}, attrs={"time_step": 2}
    )
    assert from_dataset(dataset).trajectory.shape == (1, 3, 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop_vars("trajectory"), "no variable 'trajectory'"),
        (lambda d: d.drop_attrs(), "no attribute 'time_step'"),
        (lambda d: d.assign_attrs(time_step="long"), "'time_step' must be a number"),
        (lambda d: d.assign_attrs(format_version=9), "format_version 9"),
        (lambda d: d.rename(frame="t"), "must have dimensions scene, frame, entity, state"),
        (lambda d: d.assign(trajectory=d["trajectory"].astype(str)), "'trajectory' must hold real numbers"),
        (lambda d: d.assign(trajectory=d["trajectory"] * np.nan), "mark missing states in observation_mask"),
        (lambda d: d.drop_vars("sender"), "needs the coordinates sender and receiver"),
        (lambda d: d.assign_coords(sender=d["receiver"]), "every ordered pair"),
        (lambda d: d.isel(edge=slice(3)), "every ordered pair"),
        (lambda d: d.assign(entity_mask=(("scene", "entity"), np.full((2, 4), 2))), "must hold True and False"),
    ],
)
def test_bad_datasets(change: Callable[[xr.Dataset], xr.Dataset], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_dataset(change(to_dataset(directed())))


def test_netcdf_refuses_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "scenes.nc"
    with pytest.raises(ValueError, match="does not exist"):
        read_netcdf(path)
    write_netcdf(directed(), path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is not a whole NetCDF file"):
            read_netcdf(path)
    path.write_text("scene,entity\n")
    with pytest.raises(ValueError, match="is not a whole NetCDF file"):
        read_netcdf(path)
    xr.Dataset({"a": ("b", [1])}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="not one of scenes"):
        read_netcdf(path)
    to_dataset(directed()).drop_vars("sender").to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match=r"scenes\.nc.*sender and receiver"):
        read_netcdf(path)


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scenes.nc"
    write_netcdf(directed(), path)
    before = path.read_bytes()

    def die(self: xr.Dataset, target: Path, **_: object) -> None:
        Path(target).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", die)
    with pytest.raises(KeyboardInterrupt):
        write_netcdf(ragged(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- NRI arrays ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", ["receiver", "sender"])
def test_nri_round_trip_of_directed_edges(rows: str, tmp_path: Path) -> None:
    scenes = directed()
    write_nri(scenes, tmp_path, system="springs4", split="valid", rows=rows)
    again = read_nri(tmp_path, system="springs4", split="valid", rows=rows)
    assert torch.equal(again.trajectory, scenes.trajectory)
    assert torch.equal(again.edge_type, scenes.edge_type)  # type: ignore[arg-type]
    assert again.scene_names == ("valid-0", "valid-1")
    # The file itself, read by hand: who acts on whom.
    matrix = np.load(tmp_path / "edges_valid_springs4.npy")
    types = edges.to_matrix(scenes.edge_type).numpy()  # type: ignore[arg-type]
    sender, receiver = 3, 1
    found = matrix[0, receiver, sender] if rows == "receiver" else matrix[0, sender, receiver]
    assert found == types[0, sender, receiver] != types[0, receiver, sender]


def test_nri_row_orders_are_transposes(tmp_path: Path) -> None:
    write_nri(directed(), tmp_path, system="s", split="train", rows="receiver")
    other = read_nri(tmp_path, system="s", split="train", rows="sender")
    assert torch.equal(other.edge_type[:, edges.reverse_edges(4)], directed().edge_type)  # type: ignore[index, arg-type]


def test_nri_rows_of_the_simulator_are_receivers(tmp_path: Path) -> None:
    """In NRI's files a row says which entities pull on it: the force law decides, not a convention of ours."""
    scenes = simulate("springs", 20, num_entities=3, frame_spacing=1, symmetric=False, seed=4)
    write_nri(scenes, tmp_path, system="springs3", split="train")
    location, velocity, matrix = (np.load(tmp_path / f"{part}_train_springs3.npy") for part in ("loc", "vel", "edges"))
    separation = location[:, 0, :, :, None] - location[:, 0, :, None, :]  # [B, 2, receiver, sender]
    force = (-0.1 * matrix[:, None] * separation).sum(-1)
    np.testing.assert_allclose((velocity[:, 1] - velocity[:, 0]) / 0.001, force, atol=1e-10)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1], [0, 1]), ([-1, 1], [0, 1]), ([1], [1]), ([-1], [0]), ([0], [0]), ([0, 2, 5], [0, 2, 5])],
)
def test_nri_edge_values_become_the_same_types_whichever_occur(
    values: list[int], expected: list[int], tmp_path: Path
) -> None:
    write_nri(directed(), tmp_path, system="s", split="train")
    matrix = np.random.default_rng(0).choice(np.array(values, dtype=float), size=(2, 4, 4))
    matrix[:, range(4), range(4)] = 0.25  # the diagonal says nothing
    np.save(tmp_path / "edges_train_s.npy", matrix)
    found = read_nri(tmp_path, system="s", split="train").edge_type
    assert found is not None
    assert found.unique().tolist() == expected


def test_charged_files_hold_signs(tmp_path: Path) -> None:
    scenes = simulate("charged", 4, num_frames=2, seed=0)
    write_nri(scenes, tmp_path, system="charged5", split="test")
    matrix = np.load(tmp_path / "edges_test_charged5.npy")
    assert set(np.unique(matrix)) == {-1.0, 1.0}
    assert (matrix[:, range(5), range(5)] == 1).all()
    again = read_nri(tmp_path, system="charged5", split="test")
    assert torch.equal(again.edge_type, scenes.edge_type)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "array", "message"),
    [
        ("edges", np.full((2, 4, 4), 0.5), "whole numbers that name edge types, found 0.5"),
        ("edges", np.full((2, 4, 4), np.nan), "whole numbers"),
        ("edges", np.resize([-1.0, 0.0, 1.0], (2, 4, 4)), r"-1 and \+1, or whole numbers of 0 or more, found -1, 0, 1"),
        ("edges", np.zeros((2, 5, 5)), r"must have shape \[2, 4, 4\] to fit loc, found \[2, 5, 5\]"),
        ("vel", np.zeros((2, 6, 2, 3)), r"must have the shape of loc, \[2, 6, 2, 4\], found \[2, 6, 2, 3\]"),
        ("loc", np.zeros((2, 6, 4)), r"shape \[sims, T, 2, n\], found \[2, 6, 4\]"),
        ("loc", np.zeros((2, 6, 3, 4)), r"shape \[sims, T, 2, n\], found \[2, 6, 3, 4\]"),
        ("loc", np.array(["a"]), "an array of real numbers"),
        ("loc", np.full((2, 6, 2, 4), np.nan), "not finite"),
    ],
)
def test_bad_nri_arrays(part: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    write_nri(directed(), tmp_path, system="s", split="train")
    np.save(tmp_path / f"{part}_train_s.npy", array)
    with pytest.raises(ValueError, match=message):
        read_nri(tmp_path, system="s", split="train")


def test_bad_nri_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loc_train_springs5.npy' does not exist; NRI arrays are a folder"):
        read_nri(tmp_path)
    write_nri(directed(), tmp_path, system="s", split="train")
    with pytest.raises(ValueError, match="rows must be 'receiver' or 'sender', found 'column'"):
        read_nri(tmp_path, system="s", rows="column")
    np.save(tmp_path / "vel_train_s.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a whole NumPy array file"):
        read_nri(tmp_path, system="s")
    (tmp_path / "vel_train_s.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="not a whole NumPy array file"):
        read_nri(tmp_path, system="s")


@pytest.mark.parametrize(
    ("scenes", "system", "message"),
    [
        (ragged(), "s", "state x, y, vx, vy"),
        (from_dataframe(to_dataframe(directed())[1:]), "s", "missing frames"),
        (from_dataframe(to_dataframe(directed())), "s", "true edge types, these scenes have none"),
        (directed().share_structure("all"), "s", "shared structures"),
        (directed(), "charged4", "edge types 0 and 1, found type 6"),
    ],
)
def test_what_nri_arrays_cannot_hold(scenes: Scenes, system: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_nri(scenes, tmp_path, system=system, split="train")
    assert list(tmp_path.iterdir()) == []


@needs_reference
@pytest.mark.parametrize(("system", "linked"), [("springs5", {0.0, 1.0}), ("charged5", {-1.0, 1.0})])
def test_nri_own_files_are_understood(system: str, linked: set[float]) -> None:
    scenes = read_nri(REFERENCE, system=system, split="test")
    location, velocity, matrix = (np.load(REFERENCE / f"{part}_test_{system}.npy") for part in ("loc", "vel", "edges"))
    assert set(np.unique(matrix)) == linked
    assert (scenes.num_scenes, scenes.num_frames, scenes.num_entities) == (100, 99, 5)
    b, t, n = 17, 42, 3
    state = [*location[b, t, :, n], *velocity[b, t, :, n]]
    assert scenes.trajectory[b, t, n].tolist() == state
    assert scenes.edge_type is not None
    high = max(linked)
    assert edges.to_matrix(scenes.edge_type)[b, 1, 2] == int(matrix[b, 2, 1] == high)


# --- one door --------------------------------------------------------------------------------------------------------
def test_read_scenes_by_kind(tmp_path: Path) -> None:
    scenes = simulate("springs", 2, num_frames=4, seed=0)
    write_netcdf(scenes, tmp_path / "a.nc")
    same(read_scenes(tmp_path / "a.nc"), scenes)
    frame = to_dataframe(scenes)
    frame.to_csv(tmp_path / "a.csv", index=False)
    same(read_scenes(tmp_path / "a.csv"), scenes, truth=False)
    frame.to_parquet(tmp_path / "a.parquet")
    same(read_scenes(str(tmp_path / "a.parquet")), scenes, truth=False)
    write_nri(scenes, tmp_path / "nri", system="springs5", split="test")
    assert torch.equal(read_scenes(tmp_path / "nri").trajectory, scenes.trajectory)
    assert read_scenes(tmp_path / "nri", time_step=1.0).time_step == 1.0


def test_names_in_a_csv_stay_as_written(tmp_path: Path) -> None:
    frame = to_dataframe(simulate("springs", 1, num_entities=2, num_frames=2, seed=0))
    frame.assign(scene="007", entity=["01", "02"] * 2, tank="003").to_csv(tmp_path / "a.csv", index=False)
    scenes = read_scenes(tmp_path / "a.csv", group="tank")
    assert scenes.scene_names == ("007",)
    assert scenes.entity_names == (("01", "02"),)
    assert scenes.structure_group == ("003",)


def test_read_scenes_refuses_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, message: str, **arguments: Any) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            read_scenes(source, **arguments)
        assert "\n" not in str(caught.value)

    scenes = simulate("springs", 2, num_frames=3, seed=0)
    refused(tmp_path / "none.nc", "does not exist")
    (tmp_path / "a.txt").write_text("")
    refused(tmp_path / "a.txt", "unknown kind")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "not a readable CSV")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    refused(tmp_path / "a.parquet", "not a readable parquet")
    to_dataframe(scenes).drop(columns=["vx", "vy"]).to_csv(tmp_path / "still.csv", index=False)
    refused(tmp_path / "still.csv", r"still.csv': frame has no column 'vx', 'vy'.*velocities too")
    write_netcdf(scenes, tmp_path / "a.nc")
    refused(tmp_path / "a.nc", "time_step is part of a NetCDF", time_step=0.1)
    refused(tmp_path / "a.nc", "system and split choose files of a folder", split="test")
    refused(tmp_path / "a.nc", "group and kind name columns of a table", group="tank")
    refused(tmp_path, "those that fit are none")
    for split in ("train", "test"):
        write_nri(scenes, tmp_path, system="springs5", split=split)
    refused(tmp_path, "those that fit are springs5 test, springs5 train")
    assert read_scenes(tmp_path, split="test").scene_names[0] == "test-0"

    def without_engine(*_: object, **__: object) -> None:
        raise ImportError("no engine")

    monkeypatch.setattr(pd, "read_parquet", without_engine)
    refused(tmp_path / "a.parquet", r"needs pyarrow: pip install 'pyro-nri\[parquet\]'")
