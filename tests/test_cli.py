"""The command line: the whole job, every way to give scenes, and what is left when a run is interrupted."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

import pyro_nri
import pyro_nri.commands as commands
import pyro_nri.demo as demo
from pyro_nri.arguments import frame_range
from pyro_nri.cli import main
from pyro_nri.dynamics.force_laws import NUM_POINTS, NUM_SPLINES
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import scenes_of, to_datatree, to_draws
from pyro_nri.posterior.frames import edges_frame, read_frame
from pyro_nri.posterior.laws import laws_frame
from pyro_nri.posterior.predictions import predict
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.scenes import edges
from pyro_nri.scenes.netcdf import read_netcdf, write_netcdf
from pyro_nri.scenes.nri_arrays import write_nri
from pyro_nri.scenes.readers import read_scenes
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.scenes.tables import from_dataframe, to_dataframe

ROOT = Path(__file__).parent.parent
TRAIN = ("--num-edge-types", 2, "--batch-size", 4, "--seed", 0, "--quiet", "--num-steps")
MCMC = ("--method", "mcmc", "--num-chains", 2, "--num-warmup", 10, "--num-draws", 70, "--seed", 5, "--quiet")


def quietly(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pyro-nri {pyro_nri.__version__}\n"
    assert pyro_nri.__version__ == metadata.version("pyro-nri")


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder with training and test scenes, a model, and an exact posterior."""
    folder = tmp_path_factory.mktemp("job")
    for name, seed, num_scenes in (("train", 1, 8), ("test", 2, 4)):
        quietly(
            *("simulate", "springs", "--num-scenes", num_scenes, "--num-entities", 3, "--num-frames", 25),
            *("--seed", seed, "--out", folder / f"{name}.nc", "--quiet"),
        )
    quietly("train", folder / "train.nc", *TRAIN, 10, "--out", folder / "model.pt")
    quietly(
        *("infer", folder / "test.nc", "--model", folder / "model.pt", "--method", "exact"),
        *("--num-draws", 20, "--seed", 0, "--quiet", "--out", folder / "posterior.nc"),
    )
    return folder


@pytest.fixture
def run(capsys):
    """Run a command: exit code, standard output, standard error."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def as_json(run):
    """Run a command with --json: all of standard output must be one JSON document without NaN."""

    def as_json(*arguments):
        code, out, _ = run(*arguments, "--json")
        assert code == 0

        def refuse(name):
            raise AssertionError(f"{name} is not JSON")

        return json.loads(out, parse_constant=refuse)

    return as_json


def same_weights(one, other):
    """Whether two model files hold the same tensors, bit for bit."""
    contents = [torch.load(path, weights_only=True) for path in (one, other)]
    weights = [content["model"] | content["encoder"]["state"] for content in contents]
    assert weights[0].keys() == weights[1].keys()
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


# --- the whole job ---------------------------------------------------------------------------------------------------
def test_simulate(job, as_json, tmp_path):
    out = tmp_path / "new" / "scenes.nc"
    result = as_json(
        *("simulate", "charged", "--num-scenes", 2, "--num-entities", 3, "--num-frames", 6, "--frame-spacing", 20),
        *("--measurement-noise", 0.1, "--seed", 4, "--out", out),
    )
    assert result == {"scenes": 2, "entities": 3, "frames": 6, "wrote": str(out)}
    found = read_netcdf(out)
    wanted = simulate("charged", 2, num_entities=3, num_frames=6, frame_spacing=20, measurement_noise=0.1, seed=4)
    assert torch.equal(found.trajectory, wanted.trajectory)
    assert torch.equal(found.edge_type, wanted.edge_type)
    assert list(out.parent.iterdir()) == [out]


def test_conditions_are_simulated_from_the_shell(as_json, tmp_path):
    out = str(tmp_path / "scenes.nc")
    as_json(
        *("simulate", "springs", "--num-scenes", 3, "--num-frames", 4, "--link-probability", 0.3, "--asymmetric"),
        *("--first-scene", 7, "--seed", 1, "--out", out),
    )
    wanted = simulate("springs", 3, num_frames=4, seed=1, link_probability=0.3, symmetric=False, first_scene=7)
    found = read_netcdf(out)
    assert found.scene_names == ("7", "8", "9")
    assert torch.equal(found.edge_type, wanted.edge_type)
    assert torch.equal(found.trajectory, wanted.trajectory)


def test_simulated_tables(run, tmp_path):
    code, _, err = run("simulate", "springs", "--num-scenes", 2, "--seed", 1, "--quiet", "--out", tmp_path / "s.csv")
    assert code == 0
    assert "a table holds the trajectories only" in err
    wanted = simulate("springs", 2, seed=1).trajectory
    assert torch.allclose(read_scenes(tmp_path / "s.csv").trajectory, wanted)


def test_scenes_in_other_units_are_not_trusted(job, run, as_json, tmp_path):
    scenes = read_netcdf(job / "test.nc")
    write_netcdf(replace(scenes, trajectory=1000 * scenes.trajectory), tmp_path / "mm.nc")
    options = ("--num-draws", 4, "--seed", 0, "--quiet", "--out", tmp_path / "p.nc")
    code, _, err = run("infer", tmp_path / "mm.nc", "--model", job / "model.pt", *options)
    assert code == 0
    assert "States are far from those that the model was trained on" in err
    found = as_json("diagnose", tmp_path / "p.nc")
    assert not found["passed"]
    assert found["verdict"].startswith("Do not trust this posterior: its scenes are unlike those")
    report = as_json("report", tmp_path / "p.nc", "--out", tmp_path / "page.html")
    assert not report["trusted"]


def test_train(job, as_json, tmp_path):
    out = tmp_path / "model.pt"
    result = as_json("train", job / "train.nc", *TRAIN, 10, "--out", out)
    assert (result["steps"], result["inner"], result["wrote"]) == (10, "exact", str(out))
    assert np.isfinite(result["loss"])
    assert result["training_edge_accuracy"] >= 0.5  # the better of two labellings
    assert same_weights(out, job / "model.pt")  # the seed fixes it
    checkpoint = load_checkpoint(out)
    assert sorted(checkpoint.alignment) == [0, 1]
    assert checkpoint.trainer is None
    assert checkpoint.training["num_steps"] == 10
    assert checkpoint.training["command"].startswith(f"pyro-nri train {job / 'train.nc'} --num-edge-types 2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_train_that_distils(job, as_json, tmp_path):
    """Modules are those of a training without it; chains then propose jointly."""
    out = tmp_path / "model.pt"
    result = as_json("train", job / "train.nc", *TRAIN, 10, "--distill-steps", 4, "--out", out)
    assert np.isfinite(result["distillation_loss"])
    found, plain = load_checkpoint(out), load_checkpoint(job / "model.pt")
    assert found.encoder.rank == 8
    assert found.fingerprint == plain.fingerprint
    assert found.training["distillation"]["num_steps"] == 4
    as_json("infer", job / "test.nc", "--model", out, *MCMC, "--proposal", "neural", "--out", tmp_path / "p.nc")
    assert "joint_block" in to_draws(read_posterior(tmp_path / "p.nc")).move_names


def test_training_that_was_interrupted_before_distillation_existed_goes_on(job, as_json, tmp_path):
    command = ("train", job / "train.nc", *TRAIN, 8, "--inner", "annealing", "--out")
    stopped("save_checkpoint", 5, signal.SIGKILL, *command, tmp_path / "m.pt")
    unfinished = load_checkpoint(tmp_path / "m.pt.unfinished")
    assert unfinished.training["choices"].pop("distill_steps") == 0
    save_checkpoint(unfinished, tmp_path / "m.pt.unfinished")
    assert as_json(*command, tmp_path / "m.pt", "--resume")["steps"] == 8


def test_infer(job, run, tmp_path):
    checkpoint, scenes = load_checkpoint(job / "model.pt"), read_netcdf(job / "test.nc")
    exact = read_posterior(job / "posterior.nc")
    wanted = infer(checkpoint.model, scenes, method="exact", num_draws=20, seed=0)
    found = to_draws(exact)
    assert found.method == "exact"
    assert (found.edge_type == wanted.edge_type).all()
    assert (found.edge_probability == wanted.edge_probability).all()
    assert torch.equal(scenes_of(exact).edge_type, scenes.edge_type)
    assert exact["constant_data"]["type_alignment"].values.tolist() == checkpoint.alignment
    loud = [argument for argument in MCMC if argument != "--quiet"]
    command = ("infer", job / "test.nc", "--model", job / "model.pt", *loud, "--num-draws", 120, "--json")
    code, out, err = run(*command, "--proposal", "exact", "--out", tmp_path / "p.nc")
    assert code == 0
    assert "100%" in err  # progress is no part of standard output
    size = {"method": "mcmc", "num_scenes": 4, "num_edges": 24, "num_chains": 2, "num_draws": 120}
    assert size.items() <= json.loads(out).items()
    tree = read_posterior(tmp_path / "p.nc")
    assert tree["posterior"]["edge_type"].shape == (2, 120, 24)
    assert tree["warmup_posterior"]["edge_type"].shape == (2, 10, 24)
    assert tree.attrs["complete"] == 1
    # Gibbs moves at 240 draws are near enumeration: the standard error of a probability is below 0.1.
    difference = edges_frame(tree)["probability"] - edges_frame(exact)["probability"]
    assert difference.abs().max() < 0.3
    assert difference.abs().mean() < 0.05


def test_predict(job, as_json, tmp_path):
    out = tmp_path / "predictions.nc"
    result = as_json(
        *("predict", job / "test.nc", "--model", job / "model.pt", "--posterior", job / "posterior.nc"),
        *("--start", 20, "--num-steps", 7, "--out", out),
    )
    assert result == {"recordings": 4, "frames": 7, "wrote": str(out)}
    found = xr.load_dataset(out, engine="h5netcdf")
    tree, scenes = read_posterior(job / "posterior.nc"), read_netcdf(job / "test.nc")
    wanted = predict(load_checkpoint(job / "model.pt"), tree, scenes, start=20, num_steps=7)
    xr.testing.assert_allclose(found, wanted)
    assert found["frame"].values.tolist() == list(range(21, 28))  # beyond the 25 frames that were seen
    assert found.attrs["command"].startswith("pyro-nri predict")
    table = tmp_path / "predictions.csv"
    more = ("--num-draws", 3, "--interval", 0.5, "--out", table)
    as_json(
        *("predict", job / "test.nc", "--model", job / "model.pt", "--posterior", job / "posterior.nc"),
        *("--start", 20, "--num-steps", 7, *more),
    )
    frame = read_frame(table)
    assert frame.columns.tolist() == ["recording", "frame", "entity", "state", "mean", "low", "high"]
    assert len(frame) == 4 * 7 * 3 * 4
    arguments = {"start": 20, "num_steps": 7, "num_draws": 3, "interval": 0.5}
    few = predict(load_checkpoint(job / "model.pt"), tree, scenes, **arguments)
    where = (frame["recording"] == "1") & (frame["frame"] == 24) & (frame["entity"] == "2") & (frame["state"] == "vx")
    wanted = few.sel(recording="1", frame=24, entity=2, state="vx")
    assert frame.loc[where, "low"].item() == pytest.approx(float(wanted["low"]))


def test_score(job, as_json, run):
    command = ("score", job / "posterior.nc", "--truth", job / "test.nc")
    result = as_json(*command, "--model", job / "model.pt", "--frames-after", 10)
    for name in ("edge_accuracy", "brier", "log_score", "ece", "mse_1", "mse_10"):
        assert result[name]["low"] <= result[name]["value"] <= result[name]["high"], name
    assert result["mse_1"]["value"] < result["mse_10"]["value"]
    assert result["mse_20"].pop("reason") == "frame 30 is not in the 25 frames given"
    assert result["mse_20"] == {"value": None, "low": None, "high": None}
    assert result["alignment"] == "from the training scenes"
    assert result["type_alignment"] == load_checkpoint(job / "model.pt").alignment
    # By hand: the aligned most probable type against the truth.
    frame, truth = edges_frame(read_posterior(job / "posterior.nc")), read_netcdf(job / "test.nc").edge_type
    best = frame[frame["map"]]["edge_type"].to_numpy()
    accuracy = (np.array(result["type_alignment"])[best] == truth.numpy().ravel()).mean()
    assert result["edge_accuracy"]["value"] == pytest.approx(accuracy)
    without = as_json(*command)
    for name in ("mse_1", "mse_10", "mse_20"):
        assert without[name] == {"value": None, "low": None, "high": None, "reason": "no model was given"}
    assert "unknown: no model was given" in run(*command)[1]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_export(job, as_json, tmp_path, kind):
    result = as_json("export", job / "posterior.nc", "--out", tmp_path / "tables", "--format", kind)
    tables = ("edges", "structures", "uncertainty", "diagnostics", "bayes_factors")
    names = [f"{name}.{kind}" for name in tables]
    assert result == {"wrote": [str(tmp_path / "tables" / name) for name in names]}
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(names)
    wanted = edges_frame(read_posterior(job / "posterior.nc"))
    pd.testing.assert_frame_equal(read_frame(tmp_path / "tables" / f"edges.{kind}"), wanted, check_dtype=False)
    assert set(read_frame(tmp_path / "tables" / f"diagnostics.{kind}")["scene"]) == {"0", "1", "2", "3"}
    structure = read_frame(tmp_path / "tables" / f"structures.{kind}")["structure"]
    assert structure.str.fullmatch("[01]{6}").all()
    some = ("--scenes", "3", "1", "--wide", "--num-top", 1, "--model", job / "model.pt")
    as_json("export", job / "posterior.nc", "--out", tmp_path / "some", "--format", kind, *some)
    assert read_frame(tmp_path / "some" / f"structures.{kind}")["scene"].tolist() == ["1", "3"]
    wide = read_frame(tmp_path / "some" / f"edges.{kind}")
    assert len(wide) == 2 * 6
    assert {"probability_0", "probability_1"} <= set(wide)


def test_report(job, as_json, run, tmp_path):
    out = tmp_path / "report.html"
    given = ("--model", job / "model.pt", "--truth", job / "test.nc", "--scenes", "2", "--title", "Four scenes")
    result = as_json("report", job / "posterior.nc", "--out", out, *given)
    assert set(result) == {"verdict", "trusted", "reasons", "wrote"}
    text = out.read_text()
    assert "<title>Four scenes</title>" in text
    assert "pyro-nri infer" in text
    assert "pyro-nri report" in text
    assert "Scenes 2: probability that the edge" in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_laws(as_json, run, job, tmp_path):
    spec = ModelSpec(2, dynamics="pair-forces")
    checkpoint = new_checkpoint(spec, seed=0)
    checkpoint.model.dynamics.laws.set_splines(torch.ones(2, NUM_SPLINES))
    checkpoint.law_draws = 1 + torch.linspace(-0.1, 0.1, 21).double()[:, None, None].expand(-1, 2, NUM_SPLINES)
    checkpoint.law_support = torch.full((2, NUM_POINTS), 9.0)
    model, table, picture = (tmp_path / name for name in ("model.pt", "laws.csv", "laws.png"))
    save_checkpoint(checkpoint, model)
    out = as_json("laws", model, "--out", table, "--plot", picture, "--truth", "charged")
    assert out == {"edge_types": 2, "wrote": [str(table), str(picture)]}
    assert read_frame(table).equals(laws_frame(checkpoint))
    assert picture.stat().st_size > 5_000
    save_checkpoint(new_checkpoint(spec, seed=0), model)
    code, _, err = run("laws", model, "--out", table)
    assert (code, "there are no intervals" in err) == (0, True)
    code, _, err = run("laws", job / "model.pt", "--out", tmp_path / "none.csv")
    assert code == 2
    assert err == "pyro-nri: laws belong to a model with pair forces, found dynamics 'message-passing'\n"
    assert not (tmp_path / "none.csv").exists()


def test_demo(monkeypatch, run, tmp_path):
    real = demo.read_nri
    monkeypatch.setattr(demo, "read_nri", lambda *args, **more: real(*args, **more)[:6].frames(0, 12))
    small = {"NUM_STEPS": 2, "NUM_CHAINS": 2, "NUM_WARMUP": 4, "NUM_DRAWS": 5, "THIN": 1, "WINDOWS": (12, 4)}
    for name, value in small.items():
        monkeypatch.setattr(demo, name, value)
    _, out, err = run("demo", "--json", "--quiet", "--out", tmp_path / "demo")
    result = json.loads(out)
    assert "Learning two kinds of interaction" in err
    for window in ("12_frames", "4_frames"):
        assert result[window]["num_edges"] == 6 * 20
    assert all(Path(path).stat().st_size > 0 for path in result["wrote"])
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {Path(path).name for path in result["wrote"]}


# --- other ways to give scenes ---------------------------------------------------------------------------------------
def test_long_table_with_other_names(job, as_json, tmp_path):
    names = {"scene": "film", "entity": "fish", "time": "second", "x": "east", "y": "north"}
    table = to_dataframe(read_netcdf(job / "train.nc")).rename(columns=names)
    table["film"] = "00" + table["film"]
    table["tank"] = np.where(table["film"] < "004", "a", "b")
    table.drop(columns=["vx", "vy", "frame"]).to_csv(tmp_path / "fish.csv", index=False)
    columns = ("--scene", "film", "--entity", "fish", "--time", "second", "--state", "east,north")
    command = (tmp_path / "fish.csv", *columns)
    as_json("train", *command, *TRAIN, 2, "--share-structure", "tank", "--out", tmp_path / "m.pt")
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    assert checkpoint.spec.state_names == ("east", "north")
    assert checkpoint.alignment is None  # a table has no truth
    options = ("--model", tmp_path / "m.pt", "--num-draws", 5, "--seed", 0, "--quiet")
    for share, groups in (("none", [f"00{b}" for b in range(8)]), ("all", ["all"]), ("tank", ["a", "b"])):
        as_json("infer", *command, *options, "--share-structure", share, "--out", tmp_path / "p.nc")
        tree = read_posterior(tmp_path / "p.nc")
        assert tree["sample_stats"]["scene"].values.tolist() == groups
        assert scenes_of(tree).scene_names == tuple(f"00{b}" for b in range(8))
        assert tree["posterior"].sizes["edge"] == 6 * len(groups)
    assert "type_alignment" not in tree["constant_data"]


def test_nri_arrays(job, as_json, tmp_path):
    scenes = read_netcdf(job / "test.nc")
    for split, part in (("train", scenes[:3]), ("test", scenes)):
        write_nri(part, tmp_path / "arrays", system="springs3", split=split)
    names = ("--system", "springs3", "--split", "test")
    options = ("--model", job / "model.pt", "--num-draws", 20, "--method", "exact", "--seed", 0, "--quiet")
    as_json("infer", tmp_path / "arrays", *names, *options, "--out", tmp_path / "p.nc")
    found, wanted = (edges_frame(read_posterior(folder)) for folder in (tmp_path / "p.nc", job / "posterior.nc"))
    assert set(found["scene"]) == {"test-0", "test-1", "test-2", "test-3"}
    np.testing.assert_array_equal(found["probability"], wanted["probability"])
    score = ("score", tmp_path / "p.nc", "--truth", tmp_path / "arrays", "--system", "springs3", "--split", "test")
    named = as_json("score", job / "posterior.nc", "--truth", job / "test.nc")
    # Springs are symmetric: both readings of rows agree.
    assert as_json(*score, "--rows", "sender")["edge_accuracy"] == named["edge_accuracy"]


def test_frames(job, as_json, tmp_path):
    options = ("--model", job / "model.pt", "--num-draws", 5, "--seed", 0, "--quiet", "--out", tmp_path / "p.nc")
    for text, frames in (("-5:", range(20, 25)), ("5:15", range(5, 15))):
        as_json("infer", job / "test.nc", *options, f"--frames={text}")
        observed = read_posterior(tmp_path / "p.nc")["observed_data"]
        assert observed["frame"].values.tolist() == list(frames)
        wanted = read_netcdf(job / "test.nc").trajectory[:, list(frames)].numpy()
        np.testing.assert_array_equal(observed["trajectory"].values, wanted)
    as_json("score", tmp_path / "p.nc", "--truth", job / "test.nc", "--model", job / "model.pt", "--frames-after", 3)
    assert frame_range(":") == (None, None)


def test_edges_given_and_full(job, as_json, tmp_path):
    given = as_json("train", job / "train.nc", *TRAIN, 2, "--edges", "given", "--out", tmp_path / "g.pt")
    assert (given["inner"], given["training_edge_accuracy"]) == ("given", 1)
    assert load_checkpoint(tmp_path / "g.pt").alignment == [0, 1]
    as_json("train", job / "train.nc", *TRAIN, 2, "--edges", "full", "--out", tmp_path / "f.pt")
    assert load_checkpoint(tmp_path / "f.pt").spec.num_edge_types == 1


# --- what inference may know -----------------------------------------------------------------------------------------
def test_training_scenes_are_warned_of(job, run, tmp_path):
    table = to_dataframe(read_netcdf(job / "train.nc"))
    table["scene"] = "s" + table["scene"]  # known again under any name
    write_netcdf(from_dataframe(table, time_step=0.1)[[2, 5]], tmp_path / "two.nc")
    quietly("train", job / "train.nc", *TRAIN, 1, "--frames=4:20", "--out", tmp_path / "m.pt")
    options = ("--num-draws", 2, "--seed", 0, "--quiet", "--out", tmp_path / "p.nc")
    for model in (job / "model.pt", tmp_path / "m.pt"):
        code, _, err = run("infer", tmp_path / "two.nc", "--model", model, *options)
        assert (code, err.count("\n")) == (0, 1)
        assert err.startswith("pyro-nri: 2 of these scenes were trained on")
    assert run("infer", job / "test.nc", "--model", job / "model.pt", *options)[2] == ""


@pytest.mark.parametrize("method", ["exact", "mcmc"])
def test_alignment_is_never_read_by_inference(job, as_json, tmp_path, method):
    checkpoint = load_checkpoint(job / "model.pt")
    posteriors = []
    for alignment in (checkpoint.alignment[::-1], None):
        checkpoint.alignment = alignment
        save_checkpoint(checkpoint, tmp_path / "m.pt")
        options = ("--model", tmp_path / "m.pt", *MCMC, "--method", method, "--num-draws", 20)
        as_json("infer", job / "test.nc", *options, "--out", tmp_path / "p.nc")
        posteriors.append(read_posterior(tmp_path / "p.nc"))
        if method == "mcmc":
            continue
        score = as_json("score", tmp_path / "p.nc", "--truth", job / "test.nc")
        assert score["alignment"] == ("from the training scenes" if alignment else "fitted on the scored scenes")
        assert score["type_alignment"] == alignment or alignment is None
    for name in ("posterior", "sample_stats", "edge_posterior"):
        xr.testing.assert_identical(*(tree[name].to_dataset() for tree in posteriors))


# --- interruption ----------------------------------------------------------------------------------------------------
DRIVER = """
import os, signal, sys
import pyro_nri
import pyro_nri.commands as commands
from pyro_nri.cli import main

name, calls, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
commands.SECONDS_BETWEEN_SAVES = 0
write, count = getattr(commands, name), 0

def write_and_stop(*arguments):
    global count
    write(*arguments)
    count += 1
    if count == calls:
        os.kill(os.getpid(), number)

setattr(commands, name, write_and_stop)
sys.exit(main(sys.argv[4:]))
"""


def stopped(writer, calls, number, *arguments):
    """Run a command in a process of its own, which gets the signal when it has written ``calls`` times."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-c", DRIVER, writer, calls, int(number), *arguments]
    return subprocess.run([str(word) for word in line], env=environment, capture_output=True, text=True, timeout=120)


def test_killed_training_goes_on_bit_for_bit(job, as_json, tmp_path):
    command = ("train", job / "train.nc", *TRAIN, 8, "--inner", "annealing", "--out")
    process = stopped("save_checkpoint", 5, signal.SIGKILL, *command, tmp_path / "m.pt")
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt.unfinished"]
    assert load_checkpoint(tmp_path / "m.pt.unfinished").trainer["num_done"] == 4
    as_json(*command, tmp_path / "m.pt", "--resume")
    as_json(*command, tmp_path / "whole.pt")
    assert same_weights(tmp_path / "m.pt", tmp_path / "whole.pt")
    one, other = (load_checkpoint(tmp_path / name) for name in ("m.pt", "whole.pt"))
    assert (one.spec, one.alignment, one.training_scenes) == (other.spec, other.alignment, other.training_scenes)
    assert not (tmp_path / "m.pt.unfinished").exists()


@pytest.fixture
def keyboard(monkeypatch):
    """Make some call of a function of ``commands`` end with Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners may ignore it
    monkeypatch.setattr(commands, "SECONDS_BETWEEN_SAVES", 0.0)

    def keyboard(name, call):
        real, signals = getattr(commands, name), iter([None] * (call - 1) + [signal.SIGINT])

        def press(*arguments, **more):
            result = real(*arguments, **more)
            if number := next(signals, None):
                signal.raise_signal(number)
            return result

        monkeypatch.setattr(commands, name, press)

    yield keyboard
    signal.signal(signal.SIGINT, before)


def test_interrupted_chains_go_on(job, as_json, run, tmp_path, keyboard):
    command = ("infer", job / "test.nc", "--model", job / "model.pt", *MCMC, "--out")
    process = stopped("write_posterior", 1, signal.SIGINT, *command, tmp_path / "p.nc")
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (130, "", 1)
    assert process.stderr.startswith("pyro-nri: interrupted after 0 of 70 draws, kept in ")  # within the warm-up
    tree = read_posterior(tmp_path / "p.nc")
    assert (tree.attrs["complete"], tree["posterior"].sizes["draw"]) == (0, 0)
    keyboard("write_posterior", 1)
    code, out, err = run(*command, tmp_path / "p.nc", "--resume")
    assert (code, out) == (130, "")
    assert err.startswith("pyro-nri: interrupted after 50 of 70 draws, kept in ")
    assert read_posterior(tmp_path / "p.nc").attrs["complete"] == 0
    commands.SECONDS_BETWEEN_SAVES = 60.0
    as_json(*command, tmp_path / "p.nc", "--resume")
    as_json(*command, tmp_path / "whole.nc")
    resumed, whole = (read_posterior(tmp_path / name) for name in ("p.nc", "whole.nc"))
    assert resumed.attrs["complete"] == 1
    for name in ("posterior", "sample_stats", "edge_posterior", "warmup_posterior", "warmup_sample_stats"):
        xr.testing.assert_identical(resumed[name].to_dataset(), whole[name].to_dataset())


def test_interruption_of_training(job, run, tmp_path, keyboard):
    keyboard("save_checkpoint", 4)
    code, out, err = run("train", job / "train.nc", *TRAIN, 50, "--out", tmp_path / "m.pt")
    assert (code, out, err.count("\n")) == (130, "", 1)
    assert err.startswith("pyro-nri: interrupted, 2 steps are kept in ")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt.unfinished"]
    keyboard("read_scenes", 1)
    code, out, err = run("train", job / "train.nc", *TRAIN, 50, "--out", tmp_path / "other.pt")
    assert (code, out, err) == (130, "", "pyro-nri: interrupted, nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt.unfinished"]


def test_hidden_entities_from_the_shell(tmp_path, capsys):
    whole = simulate("springs", 6, num_entities=4, num_frames=16, seed=5)
    pulls = edges.to_matrix(whole.edge_type)[:, 3, :3].sum(-1)
    scenes = Scenes.from_arrays(whole[pulls == 3].trajectory[:1, :, :3], time_step=0.1)
    write_netcdf(scenes, tmp_path / "scenes.nc")
    model = str(Path(__file__).parent.parent / "data" / "models" / "springs5.pt")
    command = ["infer", str(tmp_path / "scenes.nc"), "--model", model, "--num-hidden", "1", "--num-draws", "20"]
    command += ["--num-warmup", "10", "--num-chains", "2", "--seed", "0", "--out", str(tmp_path / "posterior.nc")]
    assert main([*command, "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_hidden"] == ["1 in 1 scenes"]
    tree = read_posterior(tmp_path / "posterior.nc")
    assert tree["hidden_posterior/hidden_state"].shape == (2, 20, 1, 1, 4)
    assert main([*command, "--quiet", "--resume"]) == 2
    assert "is complete, there is nothing to resume" in capsys.readouterr().err


@pytest.mark.slow
def test_recordings_with_measurement_noise_from_the_shell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pyro_nri.inference.noisy_search.WINDOWS", (1.0,))
    monkeypatch.setattr("pyro_nri.inference.noise_scale.NUM_WINDOWS", 4)
    monkeypatch.setattr("pyro_nri.inference.noisy_joint.NUM_RUNGS", 20)
    scenes = simulate("springs", 2, num_entities=3, num_frames=12, measurement_noise=0.01, seed=5)
    write_netcdf(replace(scenes, initial_state=None, edge_type=None), tmp_path / "scenes.nc")
    model, out = str(Path(__file__).parent.parent / "data" / "models" / "springs5.pt"), str(tmp_path / "posterior.nc")
    command = ["infer", str(tmp_path / "scenes.nc"), "--model", model, "--observation", "noisy", "--num-draws", "10"]
    command += ["--num-warmup", "4", "--num-chains", "2", "--seed", "0", "--out", out]
    noisy = [*command, "--measurement-noise", "0.01,0.01,0.01,0.01"]
    assert main([*noisy, "--quiet", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["num_draws"], result["num_scenes"]) == (10, 2)
    assert any("initial states of recorded entities" in problem for problem in result["problems"])  # so few draws
    tree = read_posterior(out)
    assert tree["recorded_posterior/initial_state"].shape == (2, 10, 2, 3, 4)
    assert tree.attrs["observation"] == "noisy"
    assert main(["export", out, "--out", str(tmp_path / "tables")]) == 0
    table = pd.read_csv(tmp_path / "tables" / "initial_states.csv")
    assert len(table) == 2 * 3 * 4
    assert ((table["low"] <= table["mean"]) & (table["mean"] <= table["high"])).all()
    capsys.readouterr()
    assert main(["diagnose", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recorded_ess_min"] > 0
    assert main(["report", out, "--out", str(tmp_path / "report.html")]) == 0
    assert "Where were they really?" in (tmp_path / "report.html").read_text()
    capsys.readouterr()
    assert main([*noisy, "--quiet", "--resume"]) == 2
    assert "is complete, there is nothing to resume" in capsys.readouterr().err
    part = replace(to_draws(tree), attributes={}, complete=False)
    first = replace(
        part,
        edge_type=part.edge_type[:, :, :1],
        log_joint=part.log_joint[:, :, :1],
        accepted=part.accepted[:, :, :1],
        proposed=part.proposed[:, :, :1],
        group_names=part.group_names[:1],
        recorded=replace(part.recorded, state=part.recorded.state[:, :, :1]),
    )
    names = ("model_fingerprint", "num_warmup", "thin", "proposal", "likelihood", "num_hidden", "observation")
    kept = {name: tree.attrs[name] for name in (*names, "measurement_noise")}
    write_posterior(to_datatree(first, scenes[:1], attributes=kept), out)
    other = [*command, "--measurement-noise", "0.02", "--quiet", "--resume"]
    assert main(other) == 2
    assert "made with measurement noise 0.01,0.01,0.01,0.01, not 0.02" in capsys.readouterr().err
    assert main([*noisy, "--quiet", "--resume"]) == 0
    again = read_posterior(out)
    assert np.array_equal(again["posterior/edge_type"].values, tree["posterior/edge_type"].values)
    capsys.readouterr()
    assert main([*command, "--quiet"]) == 0
    assert "was estimated from these scenes: x 0.0" in capsys.readouterr().err
    assert read_posterior(out)["recorded_posterior/noise_estimated"] == 1
