"""Every script in analyses/ runs small, writes whole tables and pictures, and does not repeat what is finished."""

import importlib.util
from pathlib import Path

import matplotlib.image
import pandas as pd
import pytest
import torch

from pyro_nri.posterior.frames import read_frame, write_frame

ANALYSES = Path(__file__).parent.parent / "analyses"
MAX_LINES = 200
PROBABILITIES = ("edge_accuracy", "expected_accuracy", "ece")


def load(name):
    spec = importlib.util.spec_from_file_location(f"analyses_{name}", ANALYSES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def refuse(*arguments, **options):
    raise AssertionError("a finished cell was run again")


def check_picture(path):
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[0] >= 300
    assert pixels.shape[1] >= 500
    assert pixels[..., :3].std() > 0.01  # something is drawn


def check_scores(frame, columns):
    assert frame[list(columns)].notna().all(axis=None)
    for name in PROBABILITIES:
        assert frame[name].between(0, 1).all()
    assert (frame["log_score"] <= 0).all()
    assert (frame[["training_seconds", "inference_seconds"]] > 0).all(axis=None)


def test_scripts_are_short_and_say_what_they_do():
    for path in ANALYSES.glob("*.py"):
        lines = path.read_text().splitlines()
        assert len(lines) <= MAX_LINES, f"{path.name} has {len(lines)} lines"
        assert any(line.startswith(f"    python analyses/{path.name}") for line in lines[:5]), path.name
        assert lines[0].endswith("?"), path.name


@pytest.mark.slow
def test_charged_particles(tmp_path, capsys, monkeypatch):
    script = load("charged_particles")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "charged_particles_smoke.csv"
    frame = read_frame(path)
    assert frame["dynamics"].tolist() == ["pair-forces"] * 4 + ["message-passing"]
    assert frame["window"].tolist() == [5, 10, 20, 24, 24]
    check_scores(frame, [*PROBABILITIES, "log_score", "log_score_softened", "low", "high"])
    check_picture(path.with_suffix(".png"))
    table, windows = capsys.readouterr().out.strip().split("\n\n")
    assert [len(part.splitlines()) for part in (table, windows)] == [2 + 2, 2 + 4]
    full = script.cells(3, {}, smoke=False)
    assert len(full) == 3 * (2 * 3 * 3 + 1)

    write_frame(frame.iloc[:4], path)  # as if it had been stopped before the last model
    done, work = [], script.run_cell
    monkeypatch.setattr(script, "run_cell", lambda cell: done.append(cell["dynamics"]) or work(cell))
    script.main(["--smoke", "--out", str(tmp_path)])
    assert done == ["message-passing"]
    again = read_frame(path)
    pd.testing.assert_frame_equal(again.iloc[:4], frame.iloc[:4])
    assert len(again) == 5


@pytest.mark.slow
def test_wrong_scenes(tmp_path, capsys, monkeypatch):
    script = load("wrong_scenes")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "wrong_scenes_smoke.csv"
    frame = read_frame(path)
    assert len(frame) == 20
    assert frame["num_wrong"].is_monotonic_decreasing
    listed = frame["wrong_edges"].astype(object).fillna("").astype(str).str.count(">")  # empty where all is right
    assert (listed == frame["num_wrong"]).all()
    assert frame["mean_confidence"].notna().equals(frame["num_wrong"] > 0)
    assert frame["close_frames"].between(0, 1).all()
    assert (frame["smallest_distance"] > 0).all()
    check_picture(path.with_suffix(".png"))
    assert "of 20 scenes have wrong edges" in capsys.readouterr().out
    path.with_suffix(".png").unlink()
    monkeypatch.setattr(script, "train_and_infer", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    check_picture(path.with_suffix(".png"))


def test_orbit_of_two_charges_alone():
    """A circle of radius r around the middle: v² / r = 1 / (2 r)², so v = 1 / (2 sqrt(r)); a turn takes 2 pi r / v."""
    script = load("wrong_scenes")
    radius, speed = 0.25, 1.0
    state = [[[radius, 0, 0, speed], [-radius, 0, 0, -speed], [50, 0, 0, 0]]] * 2
    scenes = script.Scenes.from_arrays([state], time_step=0.1, edge_type=[[0, 1, 0, 1, 1, 1]])
    found = script.orbit_frames(scenes)[0]
    assert found[[0, 2]] == pytest.approx(2 * 3.141592653589793 * radius / speed / 0.1)
    assert (found[[1, 3, 4, 5]] == float("inf")).all()


@pytest.mark.slow
def test_force_laws(tmp_path, capsys, monkeypatch):
    script = load("force_laws")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "force_laws_smoke.csv"
    frame = read_frame(path)
    assert frame["system"].tolist() == ["springs", "springs", "kuramoto", "springs"]
    assert frame["control"].tolist() == ["none", "none", "none", "other scenes"]
    assert frame["entities"].tolist() == [3, 4, 3, 3]
    check_scores(frame, [*PROBABILITIES, "log_score", "low", "high"])
    assert len(capsys.readouterr().out.strip().splitlines()) == 2 + 4
    assert frame.loc[2, "law_error"] < 1e-3
    for system in ("springs", "kuramoto"):
        laws = read_frame(tmp_path / f"force_laws_smoke_{system}.csv")
        assert sorted(laws["aligned_type"].unique()) == [0, 1]
        assert laws["force"].notna().all()
        check_picture(tmp_path / f"force_laws_smoke_{system}.png")
    assert len(script.cells(3, {}, smoke=False)) == 3 * 10
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)


@pytest.mark.parametrize("control", ["frames", "own frames", "other scenes"])
def test_negative_controls_move_what_they_say(control):
    script = load("force_laws")
    cell = {"system": "springs", "control": "none", "num_frames": 8}
    kept = script.scenes_of(cell, 5, 3, 4).trajectory
    moved = script.scenes_of({**cell, "control": control}, 5, 3, 4).trajectory
    assert not moved.equal(kept)
    assert moved.flatten().sort().values.equal(kept.flatten().sort().values)
    if control == "frames":  # every frame is one of the scene's
        assert all(any(frame.equal(old) for old in kept[b]) for b in range(5) for frame in moved[b])
    if control == "own frames":  # every state is one of the entity's
        assert all(any(moved[b, 0, n].equal(old) for old in kept[b, :, n]) for b in range(5) for n in range(4))
    if control == "other scenes":  # every path is whole, and of another scene but for the first entity
        assert all(moved[b, :, n].equal(kept[(b - n) % 5, :, n]) for b in range(5) for n in range(4))


@pytest.mark.slow
def test_compare_conditions(tmp_path, capsys, monkeypatch):
    script = load("compare_conditions")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "compare_conditions_smoke.csv"
    frame, frames = read_frame(path), read_frame(tmp_path / "compare_conditions_smoke_frames.csv")
    pairs = list(dict.fromkeys(zip(frame["group_a"], frame["group_b"], strict=True)))
    assert pairs == list(script.PAIRS)
    assert (frame["low"] <= frame["effect"]).all()
    assert (frame["effect"] <= frame["high"]).all()
    known = frame.dropna(subset="true_effect")  # whole recordings leave no doubt of any edge
    assert set(known["quantity"]) == set(script.SHOWN)
    assert known["effect"].to_numpy() == pytest.approx(known["true_effect"], abs=0.01)
    reciprocity = frame[frame["quantity"] == "reciprocity"].set_index(["group_a", "group_b"])
    assert reciprocity.loc[("dense", "sparse"), "p_value"] == 1
    assert reciprocity.loc[("dense", "one-sided"), "p_value"] < 0.05
    assert frames["num_frames"].tolist() == [5, 12]
    check_picture(path.with_suffix(".png"))
    paragraphs = path.with_suffix(".txt").read_text().strip().split("\n\n")
    assert len(paragraphs) == 2
    assert paragraphs[1] in capsys.readouterr().out
    monkeypatch.setattr(script, "compare", refuse)
    monkeypatch.setattr(script, "compare_windows", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)


@pytest.mark.slow
def test_data_efficiency(tmp_path, monkeypatch):
    script = load("data_efficiency")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "data_efficiency_smoke.csv"
    frame = read_frame(path)
    assert frame["num_frames"].tolist() == [49, 5, 10, 20]
    check_scores(frame, [*PROBABILITIES, "log_score", "low", "high"])
    check_picture(path.with_suffix(".png"))
    more = ["--only", "springs", "message-passing", "velocities", "noise"]
    script.main(["--smoke", "--out", str(tmp_path), *more])
    again = read_frame(path)
    pd.testing.assert_frame_equal(again.iloc[:4], frame, check_dtype=False)
    assert again["measurement_noise"].tolist()[4:] == [1e-3, 1e-2, 5e-2, 0]
    assert again["velocities"].tolist()[4:] == ["observed"] * 3 + ["finite differences"]
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    full = script.cells(3, {}, script.USUAL, [])
    assert len(full) == 3 * ((1 + 6 + 3 + 3 + 1) * 2 + (1 + 6)) * 2
    variational = [cell for cell in full if cell["dynamics"] == "variational"]
    assert {cell["num_train"] for cell in variational} == set(script.SCENES)


def test_data_efficiency_of_the_variational_rival(tmp_path):
    script = load("data_efficiency")
    script.main(["--smoke", "--out", str(tmp_path), "--only", "springs", "variational", "frames"])
    frame = read_frame(tmp_path / "data_efficiency_smoke.csv")
    assert frame[["dynamics", "num_frames"]].to_dict("records") == [{"dynamics": "variational", "num_frames": 49}]
    check_scores(frame, [*PROBABILITIES, "log_score", "low", "high"])


@pytest.mark.slow
def test_graph_classes(tmp_path, capsys, monkeypatch):
    script = load("graph_classes")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "graph_classes_smoke.csv"
    frame = read_frame(path)
    assert frame["classes"].tolist() == ["seen", "unseen"] * 6
    assert frame["trained_on"].tolist() == (["seen classes"] * 2 + ["all classes"] * 2) * 3
    assert frame["edge_accuracy"].between(0, 1).all()
    check_picture(path.with_suffix(".png"))
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 3
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)


def test_held_out_classes_share_no_graph():
    script = load("graph_classes")
    cell = {"num_entities": 5, "seed": 3}
    parts = [script.scenes_of(cell, classes, 60, seed=1, num_frames=2) for classes in ("seen", "unseen")]
    graphs = [{tuple(graph) for graph in script.canonical_structure(part.edge_type).tolist()} for part in parts]
    assert not graphs[0] & graphs[1]
    assert len(script.seen_classes(5, 3)) == 19  # 1, 1, 1, 2, 3, 3, 3, 2, 1, 1, 1 by number of springs
    assert not script.seen_classes(5, 3).equal(script.seen_classes(5, 4))
    frame = pd.DataFrame(
        {
            "method": "a",
            "trained_on": ["seen classes"] * 2 + ["all classes"] * 2,
            "classes": ["seen", "unseen"] * 2,
            "edge_accuracy": [0.9, 0.7, 0.85, 0.8],
            "edge_accuracy_low": [0.88, 0.68, 0.83, 0.78],
            "edge_accuracy_high": [0.92, 0.72, 0.87, 0.82],
        }
    )
    found = script.summary(frame).iloc[0]  # 20 % less on unseen classes, where 5 % would be due to their difficulty
    assert found["gap"] == pytest.approx(15)
    assert (found["low"], found["high"]) == (pytest.approx(15 - 4), pytest.approx(15 + 4))


@pytest.mark.slow
@pytest.mark.parametrize("only", ["supervised", "static"])  # of which one predicts nothing, one infers nothing
def test_physical_systems_in_part(tmp_path, only):
    script = load("physical_systems")
    script.main(["--smoke", "--only", only, "--out", str(tmp_path)])
    check_picture(tmp_path / "physical_systems_smoke.png")
    assert f"| springs | {only}" in (tmp_path / "physical_systems_smoke.md").read_text()


@pytest.mark.slow
def test_physical_systems(tmp_path, capsys, monkeypatch):
    script = load("physical_systems")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "physical_systems_smoke.csv"
    frame = read_frame(path)
    assert sorted(frame["method"]) == sorted(script.METHODS)
    assert frame["trained"].drop_duplicates().tolist() == list(script.TRAINED)
    infers = frame["edge_accuracy"].notna()
    assert (
        frame.loc[infers, ["edge_accuracy", "expected_accuracy"]]
        .apply(lambda score: score.between(0, 1))
        .all(axis=None)
    )
    moves = frame[frame["mse_1"].notna()]
    assert (moves[[f"mse_{step}{end}" for step in (1, 10, 20) for end in ("", "_median")]] > 0).all(axis=None)
    assert (infers | frame["mse_1"].notna()).all()
    assert frame.set_index("method")["uses_labels"][["correlation_path", "supervised", "true_graph"]].all()
    assert not frame.set_index("method")["uses_labels"][["variational", "message_passing", "lstm_joint"]].any()
    check_picture(path.with_suffix(".png"))
    lines = path.with_suffix(".md").read_text().splitlines()
    assert lines == capsys.readouterr().out.strip().splitlines()
    assert [line.split(" | ")[1].rstrip(" *") for line in lines[2:]] == list(script.METHODS)
    assert lines[2].endswith("| 7.93e-05, 7.59e-03 | 6 | 0.0 |")
    published = pd.read_csv(script.PUBLISHED)
    assert set(published["method"]) < set(script.METHODS)
    assert not published.duplicated(["system", "method"]).any()
    assert len(script.cells("full", 2, [])) == 2 * 2 * len(script.TRAINED)
    assert [cell["trained"] for cell in script.cells("small", 1, ["charged", "paper"])] == ["paper"]
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)


@pytest.mark.slow
def test_posterior_analysis(tmp_path, capsys, monkeypatch):
    script = load("posterior_analysis")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "posterior_analysis_smoke.csv"
    frame, edges = read_frame(path), read_frame(tmp_path / "posterior_analysis_smoke_edges.csv")
    assert len(frame) == 6
    assert frame["expected_errors"].is_monotonic_decreasing
    assert frame["expected_distance"].ge(0).all()
    assert frame["num_uncertain"].sum() == len(edges)
    assert edges["log_bayes_factor"].notna().all()
    check_picture(path.with_suffix(".png"))
    told = capsys.readouterr().out
    assert "rust this" in told  # or do not
    assert f"{len(edges)} of 120 edges are in doubt" in told
    monkeypatch.setattr(script, "make_posterior", refuse)
    source = tmp_path / "posterior_analysis_smoke.nc"
    script.main(["--posterior", str(source), "--scene", "3", "--out", str(tmp_path)])  # without a model
    assert read_frame(tmp_path / "posterior_analysis.csv").equals(frame)


@pytest.mark.slow
def test_neptune(tmp_path, capsys, monkeypatch):
    script = load("neptune")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "neptune_smoke.csv"
    frame = read_frame(path)
    assert frame["sky"].tolist() == ["ephemeris", "no unseen body"]
    assert frame["mass_prior"].tolist() == ["any planet"] * 2
    assert frame.notna().all(axis=None)
    for column in ("longitude", "latitude", "distance", "mass"):
        assert (frame[f"{column}_low"] <= frame[column]).all()
        assert (frame[column] <= frame[f"{column}_high"]).all()
    assert frame["rms_none"].between(0.5, 1.5).all()  # eight years are too few to need an unseen body
    assert (frame["log_bayes"].abs() < 5).all()
    assert len(read_frame(tmp_path / "neptune_smoke_draws.csv")) == 30
    check_picture(path.with_suffix(".png"))
    assert len(capsys.readouterr().out.strip().split("\n\n")) == 2
    full = script.cells(3, smoke=False)
    assert len(full) == 3 + 2 + 3 * 3
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)


def test_sky_of_neptune_is_what_the_program_follows():
    """DE405's Uranus is that of the integrator with Neptune, to a twentieth of an arc-second, and is not without it."""
    script = load("neptune")
    bodies = pd.read_csv(script.DATA / "bodies.csv")
    state = torch.tensor(bodies[list(script.STATE)].to_numpy())
    sky = pd.read_csv(script.DATA / "sky.csv")
    seen = torch.tensor(sky.filter(like="uranus").to_numpy())
    assert torch.allclose(seen.norm(dim=-1), torch.ones(66).double(), atol=1e-10)
    gravity = script.Gravity(script.STATE, time_step=1.0, num_substeps=2)
    worst = {}
    for number in (4, 5):
        path = torch.cat(
            [state[None, :number], script.rollout(gravity, state[:number], script.everything(number)[0], 65)]
        )
        apart = script.DirectionMeasurement(script.STATE)(path)[:, script.URANUS] - seen
        worst[number] = float(apart.norm(dim=-1).max()) / script.SECOND
    assert worst[5] < 0.1
    assert worst[4] > 10


@pytest.mark.slow
def test_hidden_particle(tmp_path, capsys, monkeypatch):
    script = load("hidden_particle")
    script.main(["--smoke", "--out", str(tmp_path)])
    path = tmp_path / "hidden_particle_smoke.csv"
    frame = read_frame(path)
    assert frame["setting"].tolist() == ["edges given", "edges unknown"]
    assert frame["degree"].tolist() == [2, 0]  # the second pulls on nothing: nobody can find it
    assert frame["mse"].iloc[0] < 1e-6 < frame["mse"].iloc[1]
    assert (frame["observed_edges"] == 1).all()
    assert frame["hidden_edges"].iloc[0] == 1
    check_picture(path.with_suffix(".png"))
    assert "edges unknown" in capsys.readouterr().out
    assert len(read_frame(tmp_path / "hidden_particle_smoke_summary.csv")) == 4
    monkeypatch.setattr(script, "run_cell", refuse)
    script.main(["--smoke", "--out", str(tmp_path)])
    pd.testing.assert_frame_equal(read_frame(path), frame)
