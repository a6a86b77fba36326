"""The commands that compare structures, models and priors: their tables, and what they refuse in one sentence."""

import json

import pandas as pd
import pytest

from pyro_nri.cli import main
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Ensemble, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.frames import read_frame
from pyro_nri.posterior.storage import write_posterior
from pyro_nri.scenes.readers import write_netcdf
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models that were not trained, but know the units of scenes of seed 0; scenes of seed 1."""
    folder = tmp_path_factory.mktemp("comparisons")
    scenes = simulate("springs", 3, num_entities=3, num_frames=6, seed=0)
    made = {}
    for name, options in {"forces": {"dynamics": "pair-forces"}, "three": {"num_edge_types": 3}, "two": {}}.items():
        made[name] = new_checkpoint(ModelSpec(**{"num_edge_types": 2, **options}), encoder_width=None, seed=0)
        made[name].model.fit_scaling(scenes)
        made[name].training_scenes = scenes.fingerprints
        save_checkpoint(made[name], folder / f"{name}.pt")
    save_checkpoint(Ensemble([made["two"], made["two"]]), folder / "both.pt")
    write_netcdf(scenes, folder / "train.nc")
    write_netcdf(simulate("springs", 4, num_entities=3, num_frames=6, seed=1), folder / "scenes.nc")
    write_netcdf(simulate("springs", 2, num_entities=3, num_frames=6, seed=1, frame_spacing=50), folder / "fine.nc")
    write_netcdf(simulate("kuramoto", 2, num_entities=3, num_frames=6, seed=1), folder / "phases.nc")
    _write_posteriors(folder, made["two"])
    return folder


def _write_posteriors(folder, checkpoint):
    for name, seed, first in (("left", 2, 0), ("right", 3, 6)):
        scenes = simulate("springs", 6, num_entities=3, num_frames=6, seed=seed, first_scene=first)
        tree = to_datatree(infer(checkpoint.model, scenes, num_draws=20, seed=0), scenes)
        write_posterior(tree, folder / f"{name}.nc")
    again = to_datatree(infer(checkpoint.model, scenes, num_draws=20, num_chains=2, method="mcmc", seed=1), scenes)
    write_posterior(again, folder / "again.nc")
    one = to_datatree(infer(checkpoint.model, scenes, num_draws=1, num_chains=1, seed=0), scenes)
    write_posterior(one, folder / "one.nc")
    tree.attrs["posterior_format"] = 99
    write_posterior(tree, folder / "newer.nc")
    table = pd.DataFrame({"scene": range(12), "tank": ["a", "b", "c"] * 4, "dose": [0.1 * b for b in range(12)]})
    table.to_csv(folder / "conditions.csv", index=False)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)

    def run(*words):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_structures_of_two_groups(run):
    words = ["compare", "left.nc", "right.nc", "--num-permutations", "50", "--quantities", "density", "reciprocity"]
    code, out, err = run(*words, "--out", "groups.csv", "--json")
    assert (code, err) == (0, "")
    result, frame = json.loads(out), read_frame("groups.csv")
    assert frame["quantity"].tolist() == ["density"] * 2 + ["reciprocity"] * 2
    assert set(frame["group_a"] + frame["group_b"]) == {"leftright"}
    assert result["table"]["effect"] == pytest.approx(frame["effect"].tolist())
    assert "rows" in run(*words, "--out", "groups.parquet")[1]
    pd.testing.assert_frame_equal(read_frame("groups.parquet"), frame)


def test_structures_by_a_column(run):
    words = ["compare", "left.nc", "right.nc", "--table", "conditions.csv", "--num-permutations", "20"]
    assert run(*words, "--by", "tank", "--quantities", "density", "--out", "tanks.csv")[0] == 0
    frame = read_frame("tanks.csv")
    assert (frame["group_a"] + frame["group_b"]).unique().tolist() == ["ab", "ac", "bc"]
    assert (frame["num_scenes_a"] == 4).all()
    assert run(*words, "--by", "dose", "--quantities", "degree", "--out", "dose.csv")[0] == 0
    assert read_frame("dose.csv")["quantity"].unique().tolist() == ["degree slope", "degree rank correlation"]
    alone = ["compare", "left.nc", "--table", "conditions.csv", "--by", "tank", "--quantities", "density"]
    assert run(*alone, "--out", "alone.csv")[0] == 0
    assert (read_frame("alone.csv")["num_scenes_a"] == 2).all()


def test_structures_of_the_same_scenes(run):
    code, out, _ = run("compare", "right.nc", "again.nc", "--mode", "same-scenes", "--out", "same.csv")
    assert code == 0
    assert "total variation, right against again" in out
    frame = read_frame("same.csv")
    assert frame["type"].tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert (frame["num_scenes_a"] == 6).all()


def test_models(run):
    words = ["compare-models", "forces.pt", "both.pt", "three.pt", "--scenes", "scenes.nc", "--out", "models.csv"]
    code, out, _ = run(*words, "--json")
    assert code == 0
    result, frame = json.loads(out), read_frame("models.csv")
    assert frame.name.tolist() == list(result["table"]) == ["forces.pt", "both.pt", "three.pt"]
    assert frame.num_fits.tolist() == [1, 2, 1]
    assert frame.num_edge_types.tolist() == [2, 2, 3]
    assert frame.name[frame.chosen].tolist() == [result["chosen"]]
    for name, row in result["table"].items():
        assert frame.set_index("name").score[name] == row["score"]
    assert "to the best" in run(*words)[1]


def test_halves(run):
    words = ["compare-halves", "forces.pt", "--scenes", "scenes.nc", "--out", "halves.csv"]
    code, out, _ = run(*words, "--json")
    assert code == 0
    result, frame = json.loads(out), read_frame("halves.csv")
    assert result["scenes"] == len(frame) > 0
    assert result["contradict"] == frame["contradict"].sum()
    assert result["median_log_bayes_factor"] == pytest.approx(frame["log_bayes_factor"].median())
    assert result["edges_that_agree"] == pytest.approx(frame["agree"].mean())


def test_priors(run):
    words = ["compare-priors", "forces.pt", "--scenes", "scenes.nc", "--out", "priors.csv"]
    code, out, _ = run(*words, "--table-scenes", "train.nc", "--type-weights", "fitted", "--json")
    assert code == 0
    result, frame = json.loads(out), read_frame("priors.csv")
    assert frame.prior.tolist() == list(result["table"]) == ["independent", "symmetric", "charges", "sparse"]
    assert result["largest"] == frame.prior[frame.log_marginal.argmax()]
    assert "fitted on other scenes" in frame.note[0]
    assert run(*words, "--priors", "sparse")[0] == 0
    assert read_frame("priors.csv").prior.tolist() == ["sparse"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("compare left.nc", "one posterior is no two groups: give another one, or by"),
        ("compare left.nc right.nc again.nc", "compare takes one or two posteriors, found 3"),
        ("compare left.nc left.nc", "both posteriors are called 'left'; give --names"),
        ("compare left.nc missing.nc", "there is no posterior file missing.nc"),
        ("compare left.nc newer.nc", "has posterior format 99, this version of pyro_nri reads 1; please update"),
        ("compare left.nc one.nc", "one holds 1 draw, at least two are needed to compare"),
        ("compare left.nc right.nc --mode same-scenes", "no scene in common: the first has '0', '1', '2', ..."),
        ("compare left.nc right.nc --mode same-scenes --by tank", "by goes with mode 'groups'"),
        ("compare left.nc right.nc --mode same-scenes --quantities density", "--quantities goes with --mode groups"),
        ("compare left.nc right.nc --relabel 0 0", "relabel must hold each of the types 0 to 1 once, found [0, 0]"),
        ("compare left.nc --relabel 0 1 --by tank", "--relabel goes with two posteriors and no --by"),
        ("compare left.nc --by tank", "the posterior has no column 'tank' of its scenes, only recording"),
        ("compare left.nc --by moon --table conditions.csv", "the posterior has no column 'moon'"),
        ("compare left.nc right.nc --table conditions.csv", "table goes with by"),
        ("compare left.nc right.nc --level 2", "argument --level: must be a number of at least 0.5 and at most 0.999"),
        (
            "compare-models forces.pt --scenes scenes.nc --likelihood impulse",
            "the impulse likelihood is a composite one",
        ),
        ("compare-models forces.pt --scenes train.nc", "model 'forces.pt' was trained on 3 of these scenes"),
        ("compare-models two.pt --scenes fine.nc", "their frames are 0.05 apart, it was trained on frames 0.1 apart"),
        ("compare-models two.pt --scenes phases.nc", "the scenes have phi, vphi, omega"),
        ("compare-models two.pt two.pt --scenes scenes.nc", "model file 'two.pt' is named more than once"),
        ("compare-models two.pt --scenes scenes.nc --num-search-frames 6", "at least 2 and at most 5, found 6"),
        ("compare-models two.pt", "required: --scenes"),
        ("compare-halves both.pt --scenes scenes.nc", "holds an ensemble of 2 models"),
        ("compare-halves two.pt --scenes phases.nc", "the scenes have phi, vphi, omega"),
        ("compare-halves forces.pt --scenes fine.nc", "are 0.05 apart, the model was trained on frames 0.1 apart"),
        ("compare-priors both.pt --scenes scenes.nc", "holds an ensemble of 2 models"),
        ("compare-priors two.pt --scenes phases.nc", "the scenes have phi, vphi, omega"),
    ],
)
def test_refusals(run, words, sentence):
    code, out, err = run(*words.split(), "--out", "table.csv")
    assert code == 2
    assert out == ""
    assert sentence in err
    assert err.startswith("pyro-nri: ")
    assert err.count("\n") == 1
