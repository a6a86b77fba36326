"""Scores of a scene's own frames, against enumeration where structures are few."""

import warnings

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.run import infer
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.forecasts import leave_future_out, psis_loo
from pyro_nri.scenes.simulate import simulate

NUM_FRAMES = 9


@pytest.fixture(scope="module")
def scenes():
    return simulate("springs", 3, num_entities=3, num_frames=NUM_FRAMES, seed=0)


@pytest.fixture(scope="module")
def model(scenes):
    """Untrained modules: frames say little of the types, so posteriors are wide and importance weights tame."""
    model = build_model(ModelSpec(num_edge_types=2), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    return model


def log_marginal(model, scenes):
    with torch.no_grad():
        prepared = model.prepare(scenes)
        return enumerate_posterior(model.likelihood(scenes), model.structure_prior(prepared)).log_marginal.numpy()


@pytest.mark.statistical
def test_blocks_add_up_to_the_density_of_what_follows(model, scenes):
    """The chain rule: log p(later | earlier) = log p(all) - log p(earlier), both by enumeration."""
    frame = leave_future_out(model, scenes, starts=[3, 5, 8], num_draws=3000, seed=0)
    assert frame.columns.tolist() == ["scene", "start", "stop", "log_score"]
    assert frame["scene"].tolist() == ["0"] * 3 + ["1"] * 3 + ["2"] * 3
    assert frame[["start", "stop"]].to_numpy()[:3].tolist() == [[3, 5], [5, 8], [8, 9]]
    wanted = log_marginal(model, scenes) - log_marginal(model, scenes.frames(0, 3))
    assert frame.groupby("scene")["log_score"].sum().to_numpy() == pytest.approx(wanted, abs=0.05)
    block = log_marginal(model, scenes.frames(0, 5)) - log_marginal(model, scenes.frames(0, 3))
    assert frame.loc[frame["start"] == 3, "log_score"].to_numpy() == pytest.approx(block, abs=0.05)
    assert leave_future_out(model, scenes, seed=0)["start"].unique().tolist() == [2, 4, 6]


@pytest.mark.statistical
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto:UserWarning")
def test_loo_is_near_what_enumeration_says(model, scenes):
    draws = infer(model, scenes, num_draws=1000, seed=0)
    frame = psis_loo(model, to_datatree(draws, scenes), num_transitions=2)
    assert frame["scene"].tolist() == ["0", "1", "2"]
    assert (frame["num_windows"] == 4).all()
    assert (frame["num_structures"] > 10).all()
    everything = log_marginal(model, scenes)
    windows = scenes.windows(2)
    for g in range(3):
        elpd = 0.0
        for left_out in range(4):
            kept = [4 * g + w for w in range(4) if w != left_out]
            elpd += everything[g] - log_marginal(model, windows[kept])[0]
        assert frame["elpd_loo"][g] == pytest.approx(elpd, abs=0.1)
        lost = sum_log_mean(model, windows, draws, g) - frame["elpd_loo"][g]
        assert frame["p_loo"][g] == pytest.approx(lost, abs=1e-6)


def sum_log_mean(model, windows, draws, g):
    """Log pointwise predictive density of the windows of a scene, each under all draws."""
    own = windows[[4 * g + w for w in range(4)]].share_structure("none")
    structure = torch.from_numpy(draws.edge_type[:, :, g].reshape(-1, 6)).long()
    with torch.no_grad():
        each = model.likelihood(own).log_likelihood(structure[:, None].expand(-1, 4, -1)).numpy()
    return (logsumexp(each, axis=0) - np.log(len(each))).sum()


def test_warnings_of_arviz_are_kept(model, scenes):
    """Draws of which one, a very rare one, alone explains a window: ArviZ says that the tail is heavy."""
    draws = infer(model, scenes, num_draws=20, num_chains=1, seed=0)
    sharp = build_model(ModelSpec(num_edge_types=2), torch.Generator().manual_seed(0))
    sharp.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, value in sharp.noise.named_parameters():
            if "scale" in name:
                value -= 6.0
    with pytest.warns(UserWarning, match="shape parameter of Pareto"):
        frame = psis_loo(sharp, to_datatree(draws, scenes))
    assert frame["warning"].any()
    assert (frame.loc[frame["warning"], "num_bad"] > 0).all()


def test_a_single_structure_has_its_own_score(model, scenes):
    draws = infer(model, scenes, num_draws=10, seed=0)
    draws.edge_type[:] = draws.edge_type[:1, :1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = psis_loo(model, to_datatree(draws, scenes))
    with torch.no_grad():
        structure = torch.from_numpy(draws.edge_type[:1, 0]).long()
        wanted = model.likelihood(scenes).log_likelihood(structure)[0].numpy()
    assert frame["elpd_loo"].to_numpy() == pytest.approx(wanted, abs=1e-6)
    assert (frame["num_structures"] == 1).all()
    assert frame["pareto_k"].isna().all()


def test_refusals(model, scenes):
    tree = to_datatree(infer(model, scenes, num_draws=5, seed=0), scenes)
    with pytest.raises(ValueError, match=r"leave-one-out over scenes cannot be had.*infinite variance"):
        psis_loo(model, tree, over="scenes")
    with pytest.raises(ValueError, match="over must be 'windows', found 'frames'"):
        psis_loo(model, tree, over="frames")
    with pytest.raises(ValueError, match="scenes must be those of the posterior, in the same order"):
        psis_loo(model, tree, scenes[:2])
    for starts in ([], [1], [5, 4], [9]):
        with pytest.raises(ValueError, match="starts must ascend from at least 2 to at most 8"):
            leave_future_out(model, scenes, starts=starts, seed=0)
    forces = build_model(ModelSpec(num_edge_types=2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    forces.fit_scaling(scenes)
    with pytest.raises(ValueError, match="composite"):
        psis_loo(forces, tree, kind="impulse")
