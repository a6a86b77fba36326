"""Several models from one set of scenes: what each is trained on, what is kept, and the commands."""

import json
import math
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

import pyro_nri.commands as commands
import pyro_nri.cross_fitting as cross_fitting
from pyro_nri.cli import main
from pyro_nri.cross_fitting import cross_fit, deal_folds, fit_ensemble, pick_groups
from pyro_nri.fitting import fit
from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble, load_checkpoint, load_model, save_checkpoint
from pyro_nri.learning.matching import match_models
from pyro_nri.learning.mixtures import CONDITIONING, infer_ensemble, trained_on, unseen
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.storage import read_posterior
from pyro_nri.scenes.netcdf import write_netcdf
from pyro_nri.scenes.simulate import simulate

SPEC = ModelSpec(2)
EXACT = {"method": "exact", "num_draws": 4, "seed": 0}


@pytest.fixture(scope="module")
def scenes():
    """Six recordings of four structures."""
    found = simulate("springs", 6, num_entities=3, num_frames=12, seed=5)
    return found.share_structure(["a", "b", "b", "c", "d", "d"])


@pytest.fixture(scope="module")
def folds(scenes):
    return cross_fit(scenes, num_folds=3, spec=SPEC, num_steps=3, seed=0)


def same(one, other):
    """Whether two ensembles hold the same models, bit for bit, and say the same about them."""
    for left, right in zip(one.members, other.members, strict=True):
        before, after = left.model.state_dict(), right.model.state_dict()
        if not all(torch.equal(before[name], after[name]) for name in before):
            return False
        if (left.training_scenes, left.alignment) != (right.training_scenes, right.alignment):
            return False
    names = ("labels", "alignment", "training_scenes", "fingerprint")
    kept = ("seed", "num_folds", "num_models", "num_steps", "inner", "agreement")
    return all(getattr(one, name) == getattr(other, name) for name in names) and all(
        one.training.get(name) == other.training.get(name) for name in kept
    )


# --- what models are trained on --------------------------------------------------------------------------------------
@pytest.mark.parametrize(("num_groups", "num_folds"), [(2, 2), (7, 3), (12, 5), (5, 5)])
def test_folds_cover_all_structures_evenly(num_groups, num_folds):
    fold = deal_folds(num_groups, num_folds, seed=1)
    sizes = torch.bincount(fold, minlength=num_folds)
    assert (len(fold), len(sizes)) == (num_groups, num_folds)  # one fold each: disjoint and covering
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(fold, deal_folds(num_groups, num_folds, seed=1))
    assert num_groups < 12 or not torch.equal(fold, deal_folds(num_groups, num_folds, seed=2))


def test_each_fold_is_inferred_by_models_of_the_others(scenes, folds):
    usable = unseen(folds, scenes)  # [M, G]
    assert (usable.sum(0) == 1).all()  # each structure was held out once
    assert usable.sum(1).sort().values.tolist() == [1, 1, 2]
    for member, held_out in zip(folds.members, usable, strict=True):
        seen = [name for name, out in zip(scenes.fingerprints, held_out[scenes.group_index], strict=True) if not out]
        assert member.training_scenes == tuple(seen)  # whole structure groups, in order
        assert member.training["num_scenes"] == len(seen)
        assert member.law_draws is None
    assert not trained_on(folds, scenes).any()
    assert folds.training_scenes == scenes.fingerprints
    assert folds.training["num_steps"] == 9


def test_leave_one_out(scenes):
    found = cross_fit(scenes, num_folds=4, spec=SPEC, num_steps=1, seed=0)
    assert unseen(found, scenes).sum(1).tolist() == [1, 1, 1, 1]


def test_models_of_a_fold_come_from_resamples_of_the_others(scenes):
    found = cross_fit(scenes, num_folds=2, num_models=3, spec=SPEC, num_steps=1, seed=0)
    fold = deal_folds(4, 2, seed=0)
    usable = unseen(found, scenes)
    assert len(found.members) == 6
    for number in range(2):
        assert usable[3 * number : 3 * number + 3, fold == number].all()
        assert not usable[3 * number : 3 * number + 3, fold != number].all(1).any()  # each saw something
    assert len({member.fingerprint for member in found.members}) == 6


def test_resampled_structures_are_structures_of_their_own(scenes):
    again = pick_groups(scenes, [1, 3, 1])
    assert again.scene_names == ("0: 1", "0: 2", "1: 4", "1: 5", "2: 1", "2: 2")
    assert again.group_names == ("0: b", "1: d", "2: b")
    assert torch.equal(again.trajectory, scenes.trajectory[[1, 2, 4, 5, 1, 2]])
    assert pick_groups(scenes, [0, 3]).scene_names == ("0", "4", "5")


def test_choices_reach_each_model(scenes, monkeypatch):
    calls = []

    def recorded(part, **options):
        calls.append((part, options))
        return fit(part, **{**options, "minutes": None, "num_steps": 1})

    monkeypatch.setattr(cross_fitting, "fit", recorded)
    structure = scenes.edge_type[scenes.group_first_scene]
    cross_fit(scenes, num_folds=2, spec=SPEC, minutes=3.0, structure=structure, batch_size=2, seed=0)
    assert len({options["seed"] for _, options in calls}) == 2
    for part, options in calls:
        assert (options["minutes"], options["batch_size"]) == (1.5, 2)
        assert torch.equal(
            options["structure"], structure[[scenes.group_names.index(name) for name in part.group_names]]
        )


# --- the same again --------------------------------------------------------------------------------------------------
def test_the_seed_fixes_everything(scenes, folds):
    assert same(folds, cross_fit(scenes, num_folds=3, spec=SPEC, num_steps=3, seed=0))
    assert not same(folds, cross_fit(scenes, num_folds=3, spec=SPEC, num_steps=3, seed=1))
    one, other = (infer_ensemble(folds, scenes, **EXACT) for _ in range(2))
    np.testing.assert_array_equal(one.edge_type, other.edge_type)
    np.testing.assert_array_equal(one.edge_probability, other.edge_probability)


def test_truth_is_never_looked_at(scenes, folds):
    blind = cross_fit(replace(scenes, edge_type=None), num_folds=3, spec=SPEC, num_steps=3, seed=0)
    assert [member.fingerprint for member in blind.members] == [member.fingerprint for member in folds.members]
    assert blind.labels == folds.labels
    assert blind.alignment is None
    assert folds.labels[0] == [0, 1]
    assert folds.alignment == folds.members[0].alignment  # as fit() found it on that model's own scenes


def test_round_trip(folds, scenes, tmp_path):
    folds.labels[1] = [1, 0]
    save_checkpoint(folds, tmp_path / "model.pt")
    loaded = load_model(tmp_path / "model.pt")
    assert isinstance(loaded, Ensemble)
    assert same(loaded, folds)
    assert loaded.training == folds.training
    assert [member.training for member in loaded.members] == [member.training for member in folds.members]
    one, other = (infer_ensemble(each, scenes, **EXACT) for each in (folds, loaded))
    np.testing.assert_array_equal(one.edge_probability, other.edge_probability)
    with pytest.raises(ValueError, match=r"model.pt' holds an ensemble of 3 models, which serves to infer"):
        load_checkpoint(tmp_path / "model.pt")
    save_checkpoint(folds.members[0], tmp_path / "one.pt")
    assert isinstance(load_model(tmp_path / "one.pt"), Checkpoint)


@pytest.mark.parametrize("name", ["members", "labels", "alignment", "training", "training_scenes"])
def test_a_file_with_a_missing_or_wrong_entry(folds, tmp_path, name):
    save_checkpoint(folds, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    value = content.pop(name)
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model file"):
        load_model(tmp_path / "model.pt")
    if name in ("members", "labels"):
        for wrong in (5, value[:1] if name == "labels" else []):
            torch.save({**content, name: wrong}, tmp_path / "model.pt")
            with pytest.raises(ValueError, match=r"model file|labels must be|members must hold"):
                load_model(tmp_path / "model.pt")


# --- interruption ----------------------------------------------------------------------------------------------------
def test_finished_models_are_kept(scenes, folds, tmp_path, monkeypatch):
    kept = []
    whole = fit_ensemble(scenes, num_models=3, spec=SPEC, num_steps=4, seed=0, save=kept.append, save_every=0.0)
    # Two models are finished, the third has done two of its steps.
    middle = next(found for found in kept if found.training["num_steps"] == 10)
    assert [member.trainer is None for member in middle.members] == [True, True, False]
    save_checkpoint(middle, tmp_path / "m.pt")
    calls = []

    def recorded(*arguments, **options):
        calls.append(options["resume"])
        return fit(*arguments, **options)

    monkeypatch.setattr(cross_fitting, "fit", recorded)
    again = {"num_models": 3, "spec": SPEC, "num_steps": 4, "seed": 0, "resume": load_model(tmp_path / "m.pt")}
    resumed = fit_ensemble(scenes, **again)
    assert [each.training["num_steps"] for each in calls] == [2]
    assert same(resumed, whole)
    for change, sentence in (
        ({"seed": 1}, "resume was made with seed 0, found 1"),
        ({"num_models": 4}, "resume was made with num_models 3, found 4"),
        ({"spec": ModelSpec(3)}, "other choices of model"),
        ({"resume": whole}, "finished training"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fit_ensemble(scenes, **{**again, **change})
    with pytest.raises(ValueError, match="other scenes"):
        fit_ensemble(scenes[:4], **again)
    with pytest.raises(ValueError, match="resume was made with num_folds None, found 3"):
        cross_fit(scenes, **{**again, "num_models": 1}, num_folds=3)


@pytest.mark.parametrize("better", [True, False, None], ids=["better", "worse", "diverged"])
def test_a_model_apart_from_the_others_gets_another_start(scenes, folds, monkeypatch, better):
    calls, agreements = [], iter([(0.9, 0.5, 0.9), (1.0, 1.0, 1.0)])

    def recorded(part, **options):
        if len(calls) == 3 and better is None:
            raise Diverged("broke down")
        calls.append((part, options["seed"]))
        found = fit(part, **options)
        if len(calls) == 4:
            found.training["loss"] = -math.inf if better else math.inf
        return found

    def match(models, *arguments, **options):
        real = match_models(models, *arguments, **options)
        return real._replace(agreement=next(agreements))

    monkeypatch.setattr(cross_fitting, "fit", recorded)
    monkeypatch.setattr(cross_fitting, "match_models", match)
    found = cross_fit(scenes, num_folds=3, spec=SPEC, num_steps=3, seed=0)
    same_as_before = [one.fingerprint == two.fingerprint for one, two in zip(found.members, folds.members, strict=True)]
    assert same_as_before == [True, not better, True]
    assert [member.training_scenes for member in found.members] == [member.training_scenes for member in folds.members]
    assert found.training["agreement"] == [1.0, 1.0, 1.0]
    if better is not None:
        assert calls[3][0].scene_names == calls[1][0].scene_names
        assert len({seed for _, seed in calls}) == 4


def test_bad_arguments(scenes):
    for options, sentence in (
        ({"num_folds": 1}, "num_folds must be at least 2, found 1"),
        ({"num_folds": 5}, "num_folds must be at most the number of structures, 4, found 5"),
        ({"num_folds": 2, "num_models": 0}, "num_models must be at least 1, found 0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            cross_fit(scenes, spec=SPEC, seed=0, **options)
    with pytest.raises(ValueError, match="num_models must be at least 2 for an ensemble, found 1"):
        fit_ensemble(scenes, num_models=1, spec=SPEC, seed=0)


# --- the commands ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def job(tmp_path_factory, scenes):
    folder = tmp_path_factory.mktemp("job")
    write_netcdf(scenes.share_structure("none"), folder / "few.nc")
    write_netcdf(simulate("springs", 2, num_entities=3, num_frames=12, seed=9), folder / "new.nc")
    code = main([*TRAIN, str(folder / "few.nc"), "--cross-fit", "3", "--out", str(folder / "folds.pt")])
    assert code == 0
    return folder


TRAIN = ["train", "--num-edge-types", "2", "--num-steps", "3", "--seed", "0", "--quiet"]


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_train_and_infer_the_same_scenes(job, run, tmp_path):
    code, out, err = run(*TRAIN, job / "few.nc", "--cross-fit", 3, "--frames=1:9", "--json", "--out", tmp_path / "m.pt")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("pyro-nri: models disagree on many edges, so their types may not correspond; train longer")
    result = json.loads(out)
    assert min(result["agreement_of_models"]) < 0.75
    assert (result["models"], result["steps"], len(result["agreement_of_models"])) == (3, 9, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    options = ("--method", "exact", "--num-draws", 4, "--seed", 0, "--quiet", "--out", tmp_path / "p.nc")
    for name in ("few.nc", "new.nc"):
        code, out, err = run("infer", job / name, "--model", tmp_path / "m.pt", *options)
        assert (code, err) == (0, "")  # no model saw its scene: nothing is used twice
    ensemble, tree = load_model(tmp_path / "m.pt"), read_posterior(tmp_path / "p.nc")
    assert tree.attrs["model_fingerprint"] == ensemble.fingerprint
    assert (tree.attrs["conditioning"], tree.attrs["num_models"]) == (CONDITIONING, 3)
    assert tree["constant_data"]["type_alignment"].values.tolist() == ensemble.alignment
    code, out, err = run("score", tmp_path / "p.nc", "--truth", job / "new.nc", "--json")
    assert (code, json.loads(out)["alignment"]) == (0, "from the training scenes")


def test_commands_give_what_the_library_gives(job, run, scenes, tmp_path):
    options = ("--method", "mcmc", "--num-draws", 5, "--num-warmup", 3, "--seed", 1, "--quiet")
    assert run("infer", job / "few.nc", "--model", job / "folds.pt", *options, "--out", tmp_path / "p.nc")[0] == 0
    found = cross_fit(scenes.share_structure("none"), num_folds=3, spec=SPEC, num_steps=3, seed=0)
    assert same(found, load_model(job / "folds.pt"))
    draws = infer_ensemble(
        found, scenes.share_structure("none"), method="mcmc", num_draws=5, num_warmup=3, thin=1, seed=1
    )
    values = read_posterior(tmp_path / "p.nc")["posterior"]["edge_type"].values
    np.testing.assert_array_equal(values, draws.edge_type.reshape(4, 5, -1))


def test_scenes_that_every_model_saw_are_warned_of(job, run, tmp_path):
    assert run(*TRAIN, job / "few.nc", "--num-models", 2, "--out", tmp_path / "m.pt")[0] == 0
    ensemble = load_model(tmp_path / "m.pt")
    assert [member.training["num_scenes"] for member in ensemble.members] == [6, 6]  # repetitions count
    options = ("--num-draws", 4, "--seed", 0, "--quiet", "--out", tmp_path / "p.nc")
    code, _, err = run("infer", job / "few.nc", "--model", tmp_path / "m.pt", *options)
    number = len(set(ensemble.members[0].training_scenes) & set(ensemble.members[1].training_scenes))
    assert number > 0
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith(f"pyro-nri: {number} of these scenes were trained on by every model: their posterior uses")
    assert run("infer", job / "new.nc", "--model", tmp_path / "m.pt", *options)[::2] == (0, "")


def test_refused_in_one_sentence(job, run, tmp_path):
    out = ("--seed", 0, "--quiet", "--out")
    infer = ("infer", job / "few.nc", "--model", job / "folds.pt", *out, tmp_path / "p.nc")
    assert run(*infer, "--num-draws", 4)[0] == 0
    predict = ("predict", job / "few.nc", "--model", job / "folds.pt", "--posterior", tmp_path / "p.nc", "--start", 2)
    score = ("score", tmp_path / "p.nc", "--truth", job / "few.nc", "--model", job / "folds.pt")
    model = "folds.pt' holds an ensemble of 3 models, which serves to infer; here one model is needed"
    for line, sentence in (
        ((*TRAIN, job / "few.nc", "--cross-fit", 7, "--out", tmp_path / "m.pt"), "at most the number of structures, 6"),
        ((*predict, "--quiet", "--out", tmp_path / "paths.nc"), model),
        (score, model),
        ((*infer, "--num-draws", 9, "--resume"), "resume goes with a single model, found an ensemble of 3"),
    ):
        code, _, err = run(*line)
        assert (code, err.count("\n")) == (2, 1)
        assert sentence in err
    assert [path.name for path in tmp_path.iterdir()] == ["p.nc"]
    with pytest.raises(SystemExit):
        run(*TRAIN, job / "few.nc", "--cross-fit", 1, "--out", tmp_path / "m.pt")


def test_interrupted_training_goes_on(job, run, tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "SECONDS_BETWEEN_SAVES", 0.0)
    real, calls = commands.save_checkpoint, []

    def press(*arguments):
        real(*arguments)
        calls.append(1)
        if len(calls) == 8:  # within the second model
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # test runners may ignore it
    command = (*TRAIN, job / "few.nc", "--cross-fit", 3, "--out", tmp_path / "m.pt")
    try:
        monkeypatch.setattr(commands, "save_checkpoint", press)
        code, out, err = run(*command)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (code, out, err.count("\n")) == (130, "", 1)
    unfinished = load_model(tmp_path / "m.pt.unfinished")
    assert [member.trainer is None for member in unfinished.members] == [True, False]
    assert run(*command)[0] == 2  # there is something to resume
    other = [word for word in command if word not in ("--cross-fit", 3)]
    code, _, err = run(*other, "--resume")
    assert (code, err.count("\n")) == (2, 1)
    assert "was made with cross fit 3, not None" in err
    assert run(*command, "--resume")[0] == 0
    assert same(load_model(tmp_path / "m.pt"), load_model(job / "folds.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
