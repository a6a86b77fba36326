"""The commands that compare models and priors: their tables, and what they refuse in one sentence."""

import json

import pytest

from pyro_nri.cli import main
from pyro_nri.learning.checkpoint import Ensemble, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.frames import read_frame
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
    return folder


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
