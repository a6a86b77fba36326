"""Wrong input at the command line: exit code 2, one plain sentence, and nothing written."""

import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.cli import main
from pyro_nri.learning.checkpoint import load_checkpoint, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import scenes_of, to_datatree, to_draws
from pyro_nri.posterior.storage import read_posterior, write_posterior

ROOT = Path(__file__).parent.parent
ROWS = ["scene,entity,time,x,y,vx,vy"] + [f"s,{e},{t},{t * e},0.5,1,0" for t in range(6) for e in range(3)]
TABLE = "\n".join(ROWS) + "\n"
TRAIN = "train {} --num-edge-types 2 --num-steps 1 --seed 0 --quiet --out out.pt"
INFER = "infer {} --model {} --num-draws 2 --num-warmup 2 --seed 0 --quiet --out out.nc"
NOISY = "--observation noisy --measurement-noise"
SPRINGS = str(ROOT / "data" / "models" / "springs5.pt")
CHAINS = "--method mcmc --num-chains 2 --num-draws 8 --num-warmup 3 --seed 0 --quiet"
PREDICT = "predict {} --model {} --posterior {} --start 2 --out out.nc"
SCORE = "score {} --truth {}"
EXPORT = "export {} --out tables"


class Attack:
    """Unpickling this runs a command."""

    def __reduce__(self):
        return os.system, ("touch it_ran",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files, good and bad, that the cases below name."""
    before = Path.cwd()
    path = tmp_path_factory.mktemp("input")
    os.chdir(path)
    for name, seed, num_scenes, num_entities in (("train", 1, 4, 3), ("a", 2, 3, 3), ("b", 3, 3, 3), ("four", 4, 3, 4)):
        run(
            f"simulate springs --num-scenes {num_scenes} --num-entities {num_entities} --num-frames 12 --seed {seed} "
            f"--quiet --out {name}.nc"
        )
    run("simulate springs --num-scenes 4 --num-entities 3 --num-frames 12 --seed 2 --quiet --out more.nc")
    run("simulate springs --num-scenes 1 --num-entities 6 --num-frames 12 --seed 2 --quiet --out six.nc")
    run("train train.nc --num-edge-types 2 --num-steps 2 --seed 0 --quiet --out m.pt")
    run("train train.nc --num-edge-types 2 --num-steps 2 --seed 1 --quiet --out other_model.pt")
    run(f"infer a.nc --model m.pt {CHAINS} --out p.nc")
    run(f"infer four.nc --model m.pt {CHAINS} --out p4.nc")
    _tables_and_arrays(path)
    _models(path)
    _posteriors(path)
    for name in ("out.pt", "out.nc", "file"):
        (path / name).write_text("made earlier")
    yield path
    os.chdir(before)


def _tables_and_arrays(path):
    tables = {
        "good": TABLE,
        "one_frame": "\n".join([ROWS[0], *(row for row in ROWS if row.split(",")[2] == "0")]),
        "one_entity": "\n".join([ROWS[0], *(row for row in ROWS if row.startswith("s,1"))]),
        "twice": TABLE + ROWS[5] + "\n",
        "unequal": re.sub(r"(s,.),2,", r"\1,2.3,", TABLE),
        "two_steps": TABLE + "".join(f"t,{e},{t / 2},1,1,1,1\n" for t in range(4) for e in range(2)),
        "text": TABLE.replace("0.5", "half"),
        "gap": TABLE.replace("s,1,2,2,0.5", "s,1,2,2,"),
        "empty": "",
        "header": ROWS[0],
        "semicolons": TABLE.replace(",", ";"),
        "two_columns": TABLE.replace(",vx,vy", ",u,v"),
    }
    for name, text in tables.items():
        (path / f"{name}.csv").write_text(text)
    for suffix in ("csv", "nc", "parquet", "npz", "pt"):
        (path / f"garbage.{suffix}").write_bytes(bytes(range(256)) * 20)
    motion = np.random.default_rng(0).normal(size=(2, 6, 2, 3))
    hole = motion.copy()
    hole[0, 1, 0, 2] = np.nan
    arrays = {
        "flat": (motion[0], motion[0], None),
        "velocity": (motion, motion[:1], None),
        "matrix": (motion, motion, np.zeros((2, 3, 4))),
        "halves": (motion, motion, np.full((2, 3, 3), 0.5)),
        "hole": (hole, motion, None),
        "still": (motion[:, :1], motion[:, :1], None),
        "lonely": (motion[..., :1], motion[..., :1], np.zeros((2, 1, 1))),
        "objects": (motion.astype(object), motion, None),
    }
    for name, (location, velocity, matrix) in arrays.items():
        (path / name).mkdir()
        np.save(path / name / "loc_train_a.npy", location)
        np.save(path / name / "vel_train_a.npy", velocity)
        np.save(path / name / "edges_train_a.npy", np.zeros((2, 3, 3)) if matrix is None else matrix)
    (path / "nothing").mkdir()
    _cut(path / "a.nc", path / "cut_scenes.nc")


def _models(path):
    _cut(path / "m.pt", path / "cut.pt")
    content = (path / "m.pt").read_bytes()
    with zipfile.ZipFile(path / "m.pt") as archive:  # records are stored as they are, with padding between
        largest = archive.read(max(archive.infolist(), key=lambda record: record.file_size))
    middle = content.index(largest) + len(largest) // 2
    (path / "flipped.pt").write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    torch.save(Attack(), path / "attack.pt")
    (path / "attack_pickle.pt").write_bytes(pickle.dumps(Attack()))
    torch.save({"state_dict": {"weight": torch.ones(2)}}, path / "foreign.pt")
    torch.save({**torch.load(path / "m.pt", weights_only=True), "model": {"score_scale": 3}}, path / "hollow.pt")
    save_checkpoint(new_checkpoint(ModelSpec(2, state_names=("x", "y")), seed=0), path / "small_state.pt")
    save_checkpoint(new_checkpoint(ModelSpec(20), seed=0), path / "many.pt")


def _posteriors(path):
    _cut(path / "p.nc", path / "cut_posterior.nc")
    tree = read_posterior(path / "p.nc")
    own = ("model", "model_fingerprint", "num_warmup", "thin", "proposal")
    attributes = {name: tree.attrs[name] for name in own}
    draws, scenes = replace(to_draws(tree), attributes={}, complete=False), scenes_of(tree)
    write_posterior(to_datatree(draws, scenes, attributes=attributes), path / "unfinished.nc")
    write_posterior(to_datatree(draws.first(0), scenes, attributes=attributes), path / "no_draws.nc")
    newer = tree.copy()
    newer.attrs["posterior_format"] = 99
    write_posterior(newer, path / "newer.nc")
    del tree["posterior"]["sender"]
    write_posterior(tree, path / "no_sender.nc")
    checkpoint = load_checkpoint(path / "m.pt")
    checkpoint.training["choices"] = {}
    save_checkpoint(checkpoint, path / "started.pt.unfinished")


def _cut(source, target):
    target.write_bytes(source.read_bytes()[: int(0.6 * source.stat().st_size)])


def run(line):
    try:
        return main(shlex.split(line))
    except SystemExit as stop:
        return stop.code


def everything(path):
    return {
        str(each): blake2b(each.read_bytes()).hexdigest() if each.is_file() else "folder" for each in path.rglob("*")
    }


def train(scenes, more=""):
    return f"{TRAIN.format(scenes)} {more}"


def infer(scenes="a.nc", more="", model="m.pt"):
    return f"{INFER.format(scenes, model)} {more}"


SCENES = {
    "none.nc": r"'none.nc' does not exist; scenes are a .nc file, a folder of NRI arrays, a .csv or .parquet",
    "n" * 300 + ".nc": "File name too long",
    "nothing": "'nothing' must hold NRI arrays loc_SPLIT_SYSTEM.npy",
    "flat": r"loc_train_a.npy must have shape \[sims, T, 2, n\], found \[6, 2, 3\]",
    "velocity": r"vel_train_a.npy must have the shape of loc, \[2, 6, 2, 3\], found \[1, 6, 2, 3\]",
    "matrix": r"edges_train_a.npy must have shape \[2, 3, 3\] to fit loc, found \[2, 3, 4\]",
    "halves": "edges_train_a.npy must hold whole numbers that name edge types, found 0.5",
    "hole": "scene 'train-0', entity '2' is not finite at frame 1",
    "still": "trajectory has 1 frame, at least two",
    "lonely": "trajectory has 1 entity, at least two",
    "objects": "loc_train_a.npy' is not a whole NumPy array file of numbers",
    "one_frame.csv": "'one_frame.csv': column 'time' .* one time in every scene, at least two frames",
    "one_entity.csv": "'one_entity.csv': .* 1 entity, at least two",
    "twice.csv": "more than one row for scene 's', entity '1', time 1",
    "unequal.csv": "column 'time' .* must be regular",
    "two_steps.csv": "must have one time step in all scenes, found two: scene 's' has 1, scene 't' has 0.5",
    "text.csv": "column 'y' must be numeric, found .* such as 'half'",
    "gap.csv": "column 'y' .* is empty or not finite for scene 's', entity '1', time 2; give missing='mask'",
    "empty.csv": "'empty.csv' is not a readable CSV table",
    "header.csv": "no rows",
    "semicolons.csv": "no column 'scene' .* its columns are scene;entity;time",
    "good.csv --state x,z": "no column 'z' .* its columns are scene, entity, time, x, y, vx, vy",
    "good.csv --share-structure tank": "no column 'tank'",
    "good.csv --split train": "system and split choose files of a folder",
    "a.nc --share-structure tank": "name columns of a table, 'a.nc' is none",
    "garbage.csv": "'garbage.csv' is not a readable CSV table",
    "garbage.nc": "'garbage.nc' is not a whole NetCDF file",
    "garbage.parquet": "'garbage.parquet' is not a readable parquet table",
    "garbage.npz": "of an unknown kind, the name should end in .nc, .csv or .parquet",
    "cut_scenes.nc": "'cut_scenes.nc' is not a whole NetCDF file",
    "p.nc": "'p.nc' is a NetCDF file, but not one of scenes",
    "m.pt": "'m.pt' is of an unknown kind",
}

MODELS = {
    "none.pt": "model file 'none.pt' does not exist",
    "nothing": "model file 'nothing' does not exist",
    "cut.pt": "model file 'cut.pt' is damaged",
    "flipped.pt": "model file 'flipped.pt' is damaged",
    "garbage.pt": "model file 'garbage.pt' is damaged",
    "attack.pt": "model file 'attack.pt' .* was not loaded",
    "attack_pickle.pt": "model file 'attack_pickle.pt' .* (was not loaded|is not a model file)",
    "foreign.pt": "'foreign.pt' is not a model file of pyro_nri",
    "hollow.pt": "model file 'hollow.pt' is incomplete",
    "p.nc": "model file 'p.nc' is damaged",
    "small_state.pt": "the model was made for state variables x, y, the scenes have x, y, vx, vy",
}

POSTERIORS = {
    "none.nc": "there is no posterior file none.nc",
    "nothing": "nothing is not a readable NetCDF file",
    "cut_posterior.nc": "cut_posterior.nc is not a readable NetCDF file; it may be damaged or cut off",
    "garbage.nc": "garbage.nc is not a readable NetCDF file",
    "a.nc": "a.nc is not a posterior that pyro_nri wrote",
    "m.pt": "m.pt is not a readable NetCDF file",
    "no_sender.nc": "no_sender.nc is not a whole posterior: posterior/sender is missing",
    "no_draws.nc": "'no_draws.nc' holds no draw yet, .* go on with infer --resume",
}

OUTPUTS = {
    "file/new": "'file/new' cannot be written: .*file' is no folder",
    "nothing": "must be the name of a file, 'nothing' is a folder",
    "''": "must be the name of a file",
    "n" * 300: "cannot be written: File name too long",
}

ARGUMENTS = {
    "": "the following arguments are required: COMMAND",
    "teach a.nc": "invalid choice: 'teach' .choose from 'simulate', 'train'",
    train(
        "a.nc", "--num-edge-types 0"
    ): "--num-edge-types: must be a whole number of at least 1 and at most 127, found 0",
    train("a.nc", "--num-edge-types=-3"): "found -3",
    train("a.nc", "--num-edge-types 1.5"): "found '1.5'",
    train("a.nc", "--num-edge-types 1000000"): "at most 127, found 1000000",
    train("a.nc", "--frames 3:2"): "frames 3:2 of 12 leave 0 frames, at least two",
    train("a.nc", "--search-frames 3:4"): "frames 3:4 of 12 leave 1 frames",
    train("a.nc", "--batch-size 0"): "--batch-size: must be a whole number of at least 1, found 0",
    train("a.nc", "--distill-steps=-1"): "--distill-steps: must be a whole number of at least 0, found -1",
    train("a.nc", "--learning-rate inf"): "--learning-rate: must be a number above 0, found inf",
    train("a.nc", "--minutes 1"): "--minutes: not allowed with argument --num-steps",
    train("a.nc", "--num-steps 9 --learning-rate 1e30"): "training broke down: .*; a smaller learning rate may help",
    train("good.csv", "--edges given"): "--edges given needs scenes whose structures are known",
    train("six.nc", "--num-edge-types 30 --inner exact"): "inner='exact' does not fit 6 entities, 30 types",
    train("a.nc", "--device nonsense"): "--device 'nonsense' is not available on this machine",
    train("a.nc", "--device meta"): "--device 'meta' is not available on this machine",
    train("a.nc", "--resume"): "there is nothing to resume: 'out.pt.unfinished' does not exist",
    train("train.nc", "--resume --out started.pt"): "'started.pt.unfinished' was made with .* not .* same arguments",
    infer("a.nc", "--frames 3:2"): "frames 3:2 of 12 leave 0 frames",
    infer("a.nc", "--frames x"): "--frames: must be A:B with whole numbers, found 'x'",
    infer("a.nc", "--frames 1:2:3"): "--frames: must be A:B with whole numbers, found '1:2:3'",
    infer("a.nc", "--frames 12:"): "frames 12:None of 12 leave 0 frames",
    infer("a.nc", "--num-draws=-1"): "--num-draws: must be a whole number of at least 1, found -1",
    infer("a.nc", "--num-warmup=-1"): "--num-warmup: must be a whole number of at least 0, found -1",
    infer("a.nc", "--seed=-1"): "--seed: must be a whole number of at least 0, found -1",
    infer("a.nc", "--num-threads 0"): "--num-threads: must be a whole number of at least 1",
    infer("a.nc", "--method guess"): "invalid choice: 'guess'",
    infer("a.nc", "--device hpu"): "--device 'hpu' is not available on this machine",
    infer("two_columns.csv", "--state x,y,u,v"): "made for state variables x, y, vx, vy, the scenes have x, y, u, v",
    infer("six.nc", "--method exact", "many.pt"): "structures are too many to list, at most .*; use method 'mcmc'",
    infer("a.nc", "--measurement-noise 0.1"): "--measurement-noise goes with --observation noisy",
    infer("a.nc", "--observation noisy"): "measurement noise need a model with pair forces",
    infer("a.nc", "--observation noisy --frames :4", SPRINGS): "need scenes of at least 5 frames, found 4",
    infer("a.nc", f"{NOISY} 0.1"): "measurement noise need a model with pair forces, .* this one has other dynamics",
    infer("a.nc", f"{NOISY} 0"): "--measurement-noise: must be a number above 0, found 0",
    infer("a.nc", f"{NOISY}=-0.1"): "--measurement-noise: must be a number above 0, found -0.1",
    infer("a.nc", f"{NOISY} nan"): "--measurement-noise: must be a number above 0, found nan",
    infer("a.nc", f"{NOISY} 0.1,x"): "--measurement-noise: must be a number above 0, found 'x'",
    infer("a.nc", f"{NOISY} 0.1,0.2"): "one number or one for each of 4 state variables, found 2",
    infer("a.nc", f"{NOISY} 0.1 --num-hidden auto"): "--num-hidden must be 0, 1 or 2",
    infer("a.nc", f"{NOISY} 0.1 --num-hidden 3"): "invalid choice: '3'",
    infer("a.nc", f"{NOISY} 0.1 --method exact"): "--method exact does not go with --observation noisy",
    infer("a.nc", f"{NOISY} 0.1 --num-replicas 4"): "--num-replicas 4 does not go with --observation noisy",
    infer("a.nc", "--num-hidden 1 --method exact", SPRINGS): "--method exact does not go with --num-hidden 1",
    infer("a.nc", "--num-hidden auto --num-replicas 4", SPRINGS): "--num-replicas 4 does not go with --num-hidden auto",
    infer("a.nc", "--num-hidden 2 --thin 3", SPRINGS): "--thin 3 does not go with --num-hidden 2",
    infer("a.nc", "--num-hidden 1 --likelihood forward", SPRINGS): "--likelihood forward does not go with",
    infer("a.nc", f"{NOISY} 0.1 --frames :1"): "frames None:1 of 12 leave 1 frames, at least two are needed",
    infer("a.nc", f"{NOISY} 0.1 --frames :4", SPRINGS): "need scenes of at least 5 frames, found 4",
    infer("a.nc", f"{NOISY} 0.1 --share-structure all", SPRINGS): "must not share structures",
    infer("a.nc", "--resume --out new.nc"): "there is nothing to resume: 'new.nc' does not exist",
    infer("a.nc", "--resume --out p.nc"): "'p.nc' is complete, there is nothing to resume",
    PREDICT.format("a.nc", "m.pt", "p4.nc"): "scene '0' has other entities",
    PREDICT.format("b.nc", "m.pt", "p.nc"): "scene '0' moves otherwise than in the posterior",
    PREDICT.format("more.nc", "m.pt", "p.nc"): "scene '3' is not in the posterior",
    PREDICT.format("a.nc", "other_model.pt", "p.nc"): "'p.nc' was inferred with another model than 'other_model.pt'",
    PREDICT.format("a.nc", "m.pt", "p.nc") + " --start 12": "start must be a frame from 0 to 11, found 12",
    PREDICT.format("a.nc", "m.pt", "p.nc") + " --start=-1": "--start: must be a whole number of at least 0, found -1",
    PREDICT.format("a.nc", "m.pt", "p.nc") + " --num-steps 0": "--num-steps: must be a whole number of at least 1",
    SCORE.format("p.nc", "b.nc"): "scene '0' moves otherwise than in the posterior",
    SCORE.format("p.nc", "good.csv"): "truth has no edge types to score against",
    SCORE.format("p.nc", "none.nc"): "'none.nc' does not exist",
    SCORE.format("p4.nc", "a.nc"): "truth has no entity '3' in scene '0'",
    SCORE.format("p.nc", "a.nc") + " --model none.pt": "model file 'none.pt' does not exist",
    SCORE.format("p.nc", "a.nc") + " --model other_model.pt": "inferred with another model",
    "export p.nc --out file": "'file/edges.csv' cannot be written",
    "export p.nc --out tables --format xlsx": "invalid choice: 'xlsx'",
    "export p.nc --out tables --num-top 0": "--num-top: must be a whole number of at least 1",
    "export p.nc --out tables --scenes 9": "the posterior has no scene '9'",
    "export p.nc --out tables --model other_model.pt": "'p.nc' was inferred with another model than 'other_model.pt'",
    "report p.nc --out new.html --scenes 0 9": "the posterior has no scene '9'",
    "report p.nc --out new.html --model other_model.pt": "was inferred with another model than 'other_model.pt'",
    "report p.nc --out new.html --truth none.nc": "'none.nc' does not exist",
    "report p.nc --out new.html --truth b.nc": "scene '0' moves otherwise than in the posterior",
    "report p4.nc --out new.html --truth a.nc": "truth has no entity '3' in scene '0'",
    "report newer.nc --out new.html": "newer.nc has posterior format 99, this version of pyro_nri reads 1",
    PREDICT.format("a.nc", "m.pt", "p.nc") + " --out a.png": "--out must end in .nc, .csv or .parquet, found 'a.png'",
    PREDICT.format("a.nc", "m.pt", "p.nc") + " --interval 2": "--interval: must be a number above 0 and at most 1",
    "demo --quiet --out file": "'file/model.pt.*' cannot be written",
    "simulate springs --num-scenes 0 --seed 0 --out new.nc": "--num-scenes: must be a whole number of at least 1",
    "simulate springs --num-scenes 1 --num-entities 1 --seed 0 --out new.nc": "of at least 2, found 1",
    "simulate springs --num-scenes 1 --measurement-noise=-1 --seed 0 --out new.nc": "a number of at least 0, found -1",
    "simulate pendulum --num-scenes 1 --seed 0 --out new.nc": "invalid choice: 'pendulum'",
}

RESUME = f"infer a.nc --model m.pt {CHAINS} --num-draws 20 --resume --out unfinished.nc"
RESUMED = {
    "--seed 1": "its seed is 0, this run has 1",
    "--thin 2": "was made with thin 1, not 2",
    "--num-warmup 9": "was made with num warmup 3, not 9",
    "--num-chains 3": "its num_chains is 2, this run has 3",
    "--proposal uniform": "was made with proposal auto, not uniform",
    "--frames :10": "was made with other scenes or frames",
    "--model other_model.pt": "was made with model fingerprint",
}

CASES = {
    **{train(scenes): sentence for scenes, sentence in SCENES.items()},
    **{infer(model=model): sentence for model, sentence in MODELS.items()},
    **{SCORE.format(tree, "a.nc"): sentence for tree, sentence in POSTERIORS.items()},
    **{
        PREDICT.format("a.nc", "m.pt", tree): POSTERIORS[tree]
        for tree in ("none.nc", "cut_posterior.nc", "no_draws.nc")
    },
    **{EXPORT.format(tree): POSTERIORS[tree] for tree in ("none.nc", "m.pt", "a.nc", "no_draws.nc")},
    **{f"report {tree} --out new.html": POSTERIORS[tree] for tree in ("none.nc", "a.nc", "no_draws.nc")},
    **{f"report p.nc --out {out}": sentence for out, sentence in OUTPUTS.items()},
    **{f"{train('a.nc')} --out {out}": sentence for out, sentence in OUTPUTS.items()},
    **{f"{infer()} --out {out}": sentence for out, sentence in OUTPUTS.items()},
    **{f"{PREDICT.format('a.nc', 'm.pt', 'p.nc')} --out {out}": sentence for out, sentence in OUTPUTS.items()},
    **{f"simulate springs --num-scenes 1 --seed 0 --out {out}": sentence for out, sentence in OUTPUTS.items()},
    **{f"{RESUME} {change}": sentence for change, sentence in RESUMED.items()},
    **ARGUMENTS,
}


@pytest.mark.parametrize(("line", "sentence"), CASES.items(), ids=[line[:90] for line in CASES])
def test_one_sentence_and_nothing_written(folder, capsys, line, sentence):
    before = everything(folder)
    capsys.readouterr()
    code = run(line)
    out, err = capsys.readouterr()
    assert err.count("\n") == 1, err
    assert re.match(f"pyro-nri: .*{sentence}", err), err
    assert (code, out if not line.startswith("demo") else "") == (2, "")
    assert everything(folder) == before  # in particular, no code of a model file ran


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
@pytest.mark.parametrize("line", [train("a.nc", "--device cuda"), infer("a.nc", "--device cuda")])
def test_no_such_device(folder, capsys, line):
    test_one_sentence_and_nothing_written(folder, capsys, line, "--device 'cuda' is not available on this machine")


def test_attacks_are_real(folder):
    torch.load(folder / "attack.pt", weights_only=False)
    (folder / "it_ran").unlink()


def test_byte_order_mark_is_no_part_of_a_name(folder, tmp_path, capsys):
    (tmp_path / "mark.csv").write_text(TABLE, encoding="utf-8-sig")
    assert run(train(tmp_path / "mark.csv", f"--out {tmp_path / 'm.pt'}")) == 0


def test_part_of_a_posterior_is_said_to_be_one(folder, tmp_path, capsys):
    assert run(f"export unfinished.nc --out {tmp_path}") == 0
    assert "run that was interrupted and holds only part of its draws" in capsys.readouterr().err


def test_an_empty_state_can_mean_that_it_was_not_seen(folder, tmp_path):
    options = f"--missing mask --time-step 1 --scene none --out {tmp_path / 'm.pt'}"
    assert run(train("gap.csv", options)) == 0
    training = load_checkpoint(tmp_path / "m.pt").training
    assert (training["num_scenes"], training["num_frames"]) == (1, 6)


def test_a_process_of_its_own(folder):
    """Nothing else reaches standard error, neither from libraries nor when the process ends."""
    content = bytearray((folder / "a.nc").read_bytes())
    content[len(content) // 3 : 2 * len(content) // 3] = bytes(2 * len(content) // 3 - len(content) // 3)
    (folder / "zeros.nc").write_bytes(content)
    line = [sys.executable, "-m", "pyro_nri.cli", *shlex.split(train("zeros.nc"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    (folder / "zeros.nc").unlink()
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "pyro-nri: 'zeros.nc' is not a whole NetCDF file\n"
