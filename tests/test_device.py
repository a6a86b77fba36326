"""What runs on the CPU runs on an accelerator too, with the same answers.

``PYRO_NRI_TEST_DEVICE`` names the device, "cuda" by default; without it these tests are skipped.
"""

import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pyro.infer import MCMC

from pyro_nri.baselines.rows import BASELINES, fit_baseline
from pyro_nri.baselines.variational import fit_variational
from pyro_nri.cli import main
from pyro_nri.cross_fitting import cross_fit, fit_ensemble
from pyro_nri.fitting import fit
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.inference.kernel import StructureKernel
from pyro_nri.inference.noisy_run import infer_noisy
from pyro_nri.inference.proposals import PROPOSALS
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.learning.mixtures import infer_ensemble
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.forecasts import leave_future_out, psis_loo
from pyro_nri.posterior.frames import edges_frame
from pyro_nri.posterior.halves import compare_halves
from pyro_nri.posterior.laws import laws_frame
from pyro_nri.posterior.marginals import compare_priors
from pyro_nri.posterior.predictions import predict
from pyro_nri.posterior.report import write_report
from pyro_nri.posterior.selection import compare_models
from pyro_nri.scenes.netcdf import write_netcdf
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

DEVICE = os.environ.get("PYRO_NRI_TEST_DEVICE", "cuda")


def is_there(name):
    try:
        return torch.zeros(1, device=name).sum().item() == 0
    except (RuntimeError, AssertionError, ImportError):
        return False


pytestmark = pytest.mark.skipif(not is_there(DEVICE), reason=f"this machine has no {DEVICE}")

#: Choices of the model, with the options of a short training.
MODELS = {
    "message passing": ({}, {}),
    "student-t noise, symmetric": ({"noise": "student_t", "prior": "symmetric"}, {}),
    "annealing": ({}, {"inner": "annealing"}),
    "given": ({}, {"structure": True}),
    "two frames ahead": ({"horizon": 2, "noise": "normal"}, {"inner": "annealing"}),
    "pair forces": ({"dynamics": "pair-forces"}, {}),
    "charges": ({"dynamics": "pair-forces", "prior": "charges"}, {}),
    "sparse": ({"dynamics": "pair-forces", "prior": "sparse"}, {}),
}

#: Moves that a combination does not have.
REFUSED = {
    "message passing": ["delayed"],
    "charges": ["balanced", "rounds", "delayed"],
    "two frames ahead": ["exact", "rounds"],
}


@pytest.fixture(scope="module")
def scenes():
    """Springs: two recordings of one structure, a scene with an entity less, a state that was not seen."""
    made = simulate("springs", 8, num_entities=4, num_frames=14, seed=3)
    present, seen = made.entity_mask.clone(), made.observation_mask.clone()
    present[1, 3] = False
    seen[1, :, 3] = False
    seen[2, 5, 0] = False
    made = Scenes.from_arrays(
        made.trajectory,
        time_step=made.time_step,
        observation_mask=seen,
        entity_mask=present,
        state_names=made.state_names,
        edge_type=torch.where(replace(made, entity_mask=present).edge_mask, made.edge_type, 0),
    )
    return made.share_structure([0, 1, 2, 3, 4, 5, 6, 6])


@pytest.fixture(scope="module")
def models(scenes):
    """Trained on the CPU, and moved."""

    def trained(name):
        if name not in made:
            spec, options = MODELS[name]
            if "structure" in options:
                options = {"structure": scenes.edge_type[scenes.group_first_scene]}
            made[name] = fit(scenes, spec=ModelSpec(2, **spec), num_steps=3, law_bootstrap=3, seed=0, **options)
        return made[name]

    made = {}
    return trained


@pytest.fixture
def moved(models):
    """A checkpoint on the device, back on the CPU afterwards."""
    lent = []

    def lend(name):
        checkpoint = models(name)
        checkpoint.to(DEVICE)
        lent.append(checkpoint)
        return checkpoint

    yield lend
    for checkpoint in lent:
        checkpoint.to("cpu")


def same(first, second, tolerance=1e-4):
    torch.testing.assert_close(torch.as_tensor(first), torch.as_tensor(second), atol=tolerance, rtol=tolerance)


# --- training --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", MODELS)
def test_training_gives_nearly_the_same_model(scenes, models, name):
    spec, options = MODELS[name]
    if "structure" in options:
        options = {"structure": scenes.edge_type[scenes.group_first_scene]}
    arguments = {"spec": ModelSpec(2, **spec), "num_steps": 3, "law_bootstrap": 3, "seed": 0, **options}
    found = fit(scenes, device=DEVICE, **arguments)
    assert all(value.device.type == "cpu" for value in found.model.state_dict().values())
    here = models(name)
    if "dynamics" in spec:  # of so few scenes noise and what laws say beyond the data hang on rounding
        assert abs(found.training["edge_accuracy"] - here.training["edge_accuracy"]) < 0.1
        laws, others = laws_frame(found), laws_frame(here)
        covered = (laws["covered"] & others["covered"]).to_numpy()
        assert covered.any() or name == "charges"  # which are no springs
        same(laws["force"].to_numpy()[covered], others["force"].to_numpy()[covered], 1e-2)
    else:
        for key, value in here.model.state_dict().items():
            same(found.model.state_dict()[key], value, 1e-2)


def test_an_interrupted_training_goes_on_there(scenes):
    kept = []
    whole = fit(scenes, 2, num_steps=4, seed=0, save=kept.append, save_every=0.0, device=DEVICE)
    middle = next(checkpoint for checkpoint in kept if checkpoint.training["num_steps"] == 2)
    resumed = fit(scenes, 2, num_steps=4, seed=0, resume=middle, device=DEVICE)
    for key, value in whole.model.state_dict().items():
        same(resumed.model.state_dict()[key], value, 1e-3)


def test_the_preset_of_the_paper_and_distilling(scenes):
    assert fit(scenes, 2, preset="paper", num_steps=2, seed=0, device=DEVICE).training["num_steps"] == 2
    assert fit(scenes, 2, num_steps=2, distill_steps=2, seed=0, device=DEVICE).encoder is not None


@pytest.mark.parametrize("name", BASELINES)
def test_baselines(name):
    scenes = simulate("springs", 4, num_entities=3, num_frames=14, seed=4)
    options = {} if name in ("static", "correlation_path") else {"num_steps": 2, "device": DEVICE}
    found = fit_baseline(name, scenes, seed=0, **options)
    answers = []
    for device in ("cpu", DEVICE):
        found.to(device)
        probability = found.edge_probability(scenes) if found.infers_structure else torch.zeros(())
        path = found.predict(scenes, start=8, num_steps=3) if found.predicts_motion else torch.zeros(())
        answers.append((probability, path))
    for here, there in zip(*answers, strict=True):
        same(there, here, 1e-2)


def test_baselines_answer_in_parts(monkeypatch):
    monkeypatch.setattr("pyro_nri.baselines.encoders.CHUNK_GROUPS", 3)
    monkeypatch.setattr("pyro_nri.baselines.refinement.CHUNK_GROUPS", 3)
    scenes = simulate("springs", 4, num_entities=3, num_frames=14, seed=4)
    found = fit_baseline("variational_refined", scenes, seed=0, num_steps=2, device=DEVICE).to(DEVICE)
    assert found.edge_probability(scenes).shape == (4, 6, 2)
    assert found.variational.edge_probability(scenes).shape == (4, 6, 2)


@pytest.mark.parametrize(
    "options", [{"encoder": "cnn"}, {"encoder": "mlp", "num_frames": 10}, {"decoder": "rnn"}, {"hard": True}], ids=str
)
def test_forms_of_the_variational_baseline(options):
    scenes = simulate("springs", 4, num_entities=3, num_frames=14, seed=4)
    found = fit_variational(scenes, 2, num_steps=2, seed=0, device=DEVICE, **options)
    assert found.training_done.num_steps == 2


# --- inference -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in MODELS if name != "two frames ahead"])
def test_enumeration_gives_the_same_probabilities(scenes, models, moved, name):
    there = infer(moved(name).model, scenes, num_draws=20, seed=0)
    models(name).to("cpu")
    here = infer(models(name).model, scenes, num_draws=20, seed=0)
    same(there.edge_probability, here.edge_probability, 1e-3)
    assert there.edge_type.shape == here.edge_type.shape
    assert len(edges_frame(to_datatree(there, scenes))) > 0


@pytest.mark.parametrize("name", ["message passing", "charges", "two frames ahead"])
@pytest.mark.parametrize("proposal", PROPOSALS)
def test_chains(scenes, moved, name, proposal):
    is_refused = proposal in REFUSED[name]
    checkpoint = moved(name)
    options = {"encoder": checkpoint.encoder, "proposal": proposal, "num_chains": 2, "num_warmup": 4, "num_draws": 4}
    with pytest.raises(ValueError, match="need") if is_refused else nullcontext():
        draws = infer(checkpoint.model, scenes, method="mcmc", seed=0, **options)
        assert draws.edge_type.shape[:2] == (2, 4)


@pytest.mark.parametrize("name", ["message passing", "pair forces", "two frames ahead"])
def test_tempering(scenes, moved, name):
    checkpoint = moved(name)
    draws = infer(
        checkpoint.model, scenes, method="mcmc", num_replicas=3, num_chains=2, num_warmup=6, num_draws=6, seed=0
    )
    assert draws.edge_type.shape[:2] == (2, 6)


@pytest.mark.parametrize("name", ["message passing", "pair forces"])
def test_many_entities(moved, name):
    many = simulate("springs", 2, num_entities=15, num_frames=6, seed=5)
    draws = infer(moved(name).model, many, num_chains=2, num_warmup=3, num_draws=3, seed=0)
    assert draws.edge_type.shape == (2, 3, 2, 210)


@pytest.mark.parametrize("likelihood", ["auto", "forward"])
def test_the_kernel_under_pyro(scenes, moved, likelihood):
    checkpoint = moved("pair forces")
    kernel = StructureKernel(checkpoint.model, seed=0, likelihood=likelihood)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(scenes)
    assert len(mcmc.get_samples()) > 0


def shipped(system):
    """A model of the project on the device, and a scene of three of four entities."""
    checkpoint = load_checkpoint(Path(__file__).parent.parent / "data" / "models" / f"{system}5.pt")
    checkpoint.to(DEVICE)
    whole = simulate(system, 1, num_entities=4, num_frames=10, seed=6)
    seen = Scenes.from_arrays(whole.trajectory[:, :, :3], time_step=whole.time_step, state_names=whole.state_names)
    return checkpoint.model, seen


@pytest.mark.parametrize("system", ["springs", "charged"])
def test_hidden_entities(system):
    model, seen = shipped(system)
    draws = infer_hidden(model, seen, 1, num_chains=2, num_draws=2, num_warmup=2, seed=0)
    assert len(edges_frame(to_datatree(draws, seen))) > 0


def test_noisy_recordings():
    model, seen = shipped("springs")
    draws = infer_noisy(model, seen, 0.01, num_chains=2, num_draws=2, num_warmup=2, seed=0)
    assert draws.edge_type.shape[:2] == (2, 2)


def test_ensembles(scenes):
    spec = ModelSpec(2, dynamics="pair-forces")
    made = fit_ensemble(scenes, spec=spec, num_models=2, num_steps=2, seed=0, device=DEVICE)
    made.to(DEVICE)
    draws = infer_ensemble(made, scenes, fingerprints=scenes.fingerprints, num_draws=2, seed=0)
    assert draws.edge_probability.shape == (7, 12, 2)
    crossed = cross_fit(scenes, spec=spec, num_folds=2, num_steps=2, seed=0, device=DEVICE)
    assert len(crossed.members) == 2


# --- what is asked of a posterior ------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution:UserWarning")
@pytest.mark.parametrize("name", ["message passing", "pair forces"])
def test_answers(scenes, moved, name, tmp_path):
    checkpoint = moved(name)
    tree = to_datatree(infer(checkpoint.model, scenes.frames(0, 10), num_draws=8, seed=0), scenes.frames(0, 10))
    assert len(compare_halves(checkpoint, scenes)) > 0
    assert len(compare_priors(checkpoint, scenes, ["independent", "symmetric"])) > 0
    new = simulate("springs", 3, num_entities=4, num_frames=14, seed=30)
    assert len(compare_models({"one": checkpoint, "other": checkpoint}, new, seed=0)) > 0
    assert len(psis_loo(checkpoint, tree, scenes.frames(0, 10), num_transitions=3)) > 0
    assert len(leave_future_out(checkpoint, scenes, seed=0)) > 0
    paths = predict(checkpoint.model, tree, scenes, start=10, num_steps=2)
    assert paths["mean"].shape == (8, 2, 4, 4)
    if name == "pair forces":
        assert len(laws_frame(checkpoint)) > 0
    write_report(tree, tmp_path / "report.html", checkpoint=checkpoint, truth=scenes, num_replicates=20)


def test_the_shell(tmp_path):
    scenes = simulate("springs", 6, num_entities=3, num_frames=12, seed=7)
    path, model, out = (str(tmp_path / name) for name in ("scenes.nc", "model.pt", "posterior.nc"))
    write_netcdf(scenes, path)
    common = ["--device", DEVICE, "--seed", "0", "--quiet"]
    for dynamics in ("message-passing", "pair-forces"):
        train = ["train", path, "--num-edge-types", "2", "--dynamics", dynamics, "--num-steps", "3"]
        assert main([*train, *common, "--out", model]) == 0
        assert main(["infer", path, "--model", model, *common, "--num-draws", "4", "--out", out]) == 0
