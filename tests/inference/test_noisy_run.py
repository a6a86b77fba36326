"""Recordings with measurement noise through the public function: what it finds, keeps, resumes and refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.inference.noisy_run import infer_noisy
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.convert import to_datatree, to_draws
from pyro_nri.posterior.recorded_section import recorded_entities
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

NOISE = 0.01
OPTIONS = {"num_chains": 2, "num_draws": 8, "num_warmup": 2, "seed": 0}


@pytest.fixture(scope="module", autouse=True)
def short_searches():
    """These scenes are easy: few searches will do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_nri.inference.noisy_search.WINDOWS", (0.5, 1.0))
        patch.setattr("pyro_nri.inference.noisy_joint.NUM_ANNEALED", 60)
        patch.setattr("pyro_nri.inference.noisy_joint.NUM_RUNGS", 20)
        yield


@pytest.fixture(scope="module")
def laws():
    return load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "springs5.pt")


@pytest.fixture(scope="module")
def scenes():
    return simulate("springs", 3, num_entities=3, num_frames=12, measurement_noise=NOISE, seed=3)


@pytest.fixture(scope="module")
def draws(laws, scenes):
    return infer_noisy(laws.model, scenes, NOISE, **OPTIONS)


def test_shapes_and_what_is_kept(draws, scenes):
    assert draws.edge_type.shape == (2, 8, 3, 6)
    assert draws.recorded.state.shape == (2, 8, 3, 3, 4)
    assert draws.recorded.measurement_noise.tolist() == [NOISE] * 4
    assert draws.hidden is None
    assert draws.complete
    assert np.isfinite(draws.log_joint).all()
    assert draws.seed == 0
    assert draws.group_names == scenes.group_names


@pytest.mark.slow
@pytest.mark.statistical
def test_intervals_hold_the_true_states_and_are_narrower_than_the_noise(laws):
    scenes = simulate("springs", 12, num_entities=3, num_frames=20, measurement_noise=NOISE, seed=4)
    draws = infer_noisy(laws.model, scenes, NOISE, num_chains=2, num_draws=60, num_warmup=20, seed=0)
    inferred = torch.tensor(laws.alignment).argsort()[scenes.edge_type]
    found = torch.nn.functional.one_hot(torch.tensor(draws.edge_type).long(), 2).double().mean((0, 1))
    right = (found.argmax(-1) == inferred).double().mean()
    assert abs(float(right - found.amax(-1).mean())) < 4 * (0.25 / 72) ** 0.5
    assert float(right) > 0.8
    state = draws.recorded.state.reshape(-1, 12, 3, 4)
    low, high = np.quantile(state, [0.05, 0.95], axis=0)
    truth = scenes.initial_state.numpy()
    holds = ((low <= truth) & (truth <= high)).mean((1, 2))  # [B]
    assert abs(holds.mean() - 0.9) < 4 * holds.std(ddof=1) / 12**0.5
    better = np.abs(state.mean(0) - truth).mean()
    assert better < 0.7 * np.abs(scenes.trajectory[:, 0].numpy() - truth).mean()
    # Negative control: with a quarter of the noise the same intervals are too narrow.
    sure = infer_noisy(laws.model, scenes, NOISE / 4, num_chains=2, num_draws=60, num_warmup=20, seed=0)
    low, high = np.quantile(sure.recorded.state.reshape(-1, 12, 3, 4), [0.05, 0.95], axis=0)
    assert ((low <= truth) & (truth <= high)).mean() < 0.6


@pytest.mark.slow
def test_draws_of_a_scene_do_not_depend_on_the_others(laws, scenes, draws):
    alone = infer_noisy(laws.model, scenes[[1]], NOISE, **OPTIONS)
    assert np.array_equal(alone.edge_type[:, :, 0], draws.edge_type[:, :, 1])
    np.testing.assert_allclose(alone.recorded.state[:, :, 0], draws.recorded.state[:, :, 1], rtol=1e-6)
    other = infer_noisy(laws.model, scenes[[1]], NOISE, **{**OPTIONS, "seed": 1})
    assert not np.array_equal(other.recorded.state, alone.recorded.state)


@pytest.mark.slow
def test_interruption_and_resume(laws, scenes, draws, monkeypatch):
    monkeypatch.setattr("pyro_nri.inference.noisy_run.CHUNK_SCENES", 1)

    def stop(part):
        if len(part.group_names) == 2:
            raise KeyboardInterrupt

    stopped = infer_noisy(laws.model, scenes, NOISE, on_chunk=stop, **OPTIONS)
    assert not stopped.complete
    assert stopped.group_names == scenes.group_names[:2]
    whole = infer_noisy(laws.model, scenes, NOISE, resume=stopped, **OPTIONS)
    assert whole.complete
    assert np.array_equal(whole.edge_type, draws.edge_type)
    np.testing.assert_allclose(whole.recorded.state, draws.recorded.state, rtol=1e-6)
    with pytest.raises(ValueError, match=r"resume is of another run: its measurement_noise is \[0\.01"):
        infer_noisy(laws.model, scenes, 0.02, resume=stopped, **OPTIONS)
    with pytest.raises(ValueError, match="resume is of a run that took the recorded states for exact"):
        infer_noisy(laws.model, scenes, NOISE, resume=replace(stopped, recorded=None), **OPTIONS)


@pytest.mark.slow
def test_hidden_entity_and_missing_frames(laws):
    whole = simulate("springs", 2, num_entities=4, num_frames=16, measurement_noise=NOISE, seed=5)
    seen = Scenes.from_arrays(whole.trajectory[:, :, :3], time_step=0.1)
    draws = infer_noisy(laws.model, seen, NOISE, 1, **OPTIONS)
    assert draws.edge_type.shape == (2, 8, 2, 12)
    assert draws.hidden.state.shape == (2, 8, 2, 1, 4)
    assert draws.hidden.path.shape == (100, 2, 1, 16, 4)
    np.testing.assert_allclose(draws.hidden.path[0, :, 0, 0], draws.hidden.state[0, 0, :, 0])
    assert draws.hidden.probability.tolist() == [[1.0, 1.0]]
    mask = torch.ones(2, 16, 3, dtype=torch.bool)
    mask[0, 4, 1] = False
    blind = Scenes.from_arrays(whole.trajectory[:, :, :3], time_step=0.1, observation_mask=mask)
    assert np.isfinite(infer_noisy(laws.model, blind, NOISE, **OPTIONS).recorded.state).all()
    with pytest.raises(ValueError, match="hidden entities need the others in every frame, scene '0' lacks a state"):
        infer_noisy(laws.model, blind, NOISE, 1, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["symmetric", "charges", "sparse"])
def test_every_prior(laws, scenes, prior):
    model = build_model(replace(laws.spec, prior=prior), torch.Generator().manual_seed(0))
    known = {name: value for name, value in laws.model.state_dict().items() if not name.startswith("prior.")}
    model.load_state_dict(known, strict=False)
    if prior == "charges":
        model.prior.set_table(torch.tensor([[0, 1], [1, 0]]))
    found = infer_noisy(model, scenes[[0]], NOISE, **OPTIONS)
    assert np.array_equal(found.edge_type[..., [0, 1, 3]], found.edge_type[..., [2, 4, 5]])  # both edges of each pair


def test_noise_is_estimated_where_it_is_not_given(laws, scenes, monkeypatch):
    monkeypatch.setattr("pyro_nri.inference.noisy_run.CHUNK_SCENES", 2)
    monkeypatch.setattr("pyro_nri.inference.noise_scale.NUM_WINDOWS", 4)
    kept = []
    whole = infer_noisy(laws.model, scenes, on_chunk=kept.append, **OPTIONS)
    assert whole.recorded.noise_estimated
    # The middle one of 4 windows, each with 3 x 6 numbers of which 3 x 2 fix where its path begins.
    error = 1.25 / (2 * (18 - 6) * 4) ** 0.5
    assert np.abs(np.log(whole.recorded.measurement_noise / NOISE)).max() < 4 * error
    monkeypatch.setattr("pyro_nri.inference.noisy_run.estimate_noise", None)  # what was begun keeps its noise
    resumed = infer_noisy(laws.model, scenes, resume=kept[0], **OPTIONS)
    assert np.array_equal(resumed.recorded.measurement_noise, whole.recorded.measurement_noise)
    assert np.array_equal(resumed.edge_type, whole.edge_type)
    again = infer_noisy(laws.model, scenes, whole.recorded.measurement_noise.tolist(), **OPTIONS)
    assert not again.recorded.noise_estimated
    assert np.array_equal(again.edge_type, whole.edge_type)
    section = recorded_entities(to_datatree(whole, scenes))
    assert "estimated from these recordings" in section.paragraphs[0]
    assert to_draws(to_datatree(whole, scenes)).recorded.noise_estimated


def message_passing():
    return build_model(ModelSpec(2), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("noise", "num_hidden", "change", "said"),
    [
        (0.0, 0, None, "measurement_noise must be a positive standard deviation, found 0"),
        (float("nan"), 0, None, "measurement_noise must be a positive standard deviation, found nan"),
        (1e-200, 0, None, "measurement_noise must be from 1e-100 to 1e\\+100, found 1e-200"),
        (1e200, 0, None, "measurement_noise must be from 1e-100 to 1e\\+100, found 1e\\+200"),
        ((0.1, 0.2), 0, None, "measurement_noise must be one number or one for each of 4 state variables, found 2"),
        (NOISE, 3, None, "num_hidden must be 0, 1 or 2 for recordings with measurement noise, found 3"),
        (NOISE, "auto", None, "num_hidden must be 0, 1 or 2"),
        (NOISE, 0, "short", "need scenes of at least 5 frames, found 4"),
        (NOISE, 0, "shared", "recordings with measurement noise must not share structures"),
        (NOISE, 0, "many", "14 recorded and 0 hidden entities give each receiver 8192 codes of incoming edges"),
        (NOISE, 0, "networks", "need a model with pair forces, .* this one has other dynamics"),
    ],
)
def test_bad_input(laws, scenes, noise, num_hidden, change, said):
    model = message_passing() if change == "networks" else laws.model
    if change == "short":
        scenes = scenes.frames(0, 4)
    if change == "shared":
        scenes = scenes.share_structure("all")
    if change == "many":
        scenes = simulate("springs", 1, num_entities=14, num_frames=6, seed=0)
    with pytest.raises(ValueError, match=said):
        infer_noisy(model, scenes, noise, num_hidden, **OPTIONS)
