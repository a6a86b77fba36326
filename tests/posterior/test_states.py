"""Whether chains agree about initial states: two that do not must be told, one hidden entity by two names must not."""

import arviz as az
import numpy as np
import pytest
import xarray as xr

from pyro_nri.inference.draws import Draws, HiddenDraws, RecordedDraws
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import to_datatree, to_draws
from pyro_nri.posterior.recorded import initial_states_frame
from pyro_nri.posterior.states import renamed_hidden, states_frame
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

NUM_CHAINS, NUM_DRAWS, NUM_FRAMES = 2, 400, 6
PLACES = np.array([[2.0, -1.0, 0.3, 0.0], [-1.5, 1.0, -0.2, 0.4]])


def scenes():
    trajectory = np.random.default_rng(0).standard_normal((2, NUM_FRAMES, 3, 4))
    return Scenes.from_arrays(trajectory, scene_names=["a", "b"], entity_names=["x", "y", "z"])


def posterior(*, place=None, swapped=None, num_hidden=2, recorded=None):
    """Two scenes; hidden entities stay near ``PLACES``, linked with x by the first and with y by the second.

    ``place`` ``[C, D]`` moves each chain's first hidden entity of scene b; ``swapped`` ``[C, S]`` calls them otherwise.
    """
    random = np.random.default_rng(1)
    state = PLACES[:num_hidden] + 0.1 * random.standard_normal((NUM_CHAINS, NUM_DRAWS, 2, num_hidden, 4))
    if place is not None:
        state[:, :, 1, 0] += place[:, None]
    total = 3 + num_hidden
    matrix = np.zeros((NUM_CHAINS, NUM_DRAWS, 2, total, total), np.int8)
    for number in range(num_hidden):
        matrix[..., 3 + number, number] = 1
    matrix[..., 0, 1] = random.random((NUM_CHAINS, NUM_DRAWS, 2)) < 0.5
    if swapped is not None:
        order = [0, 1, 2, 4, 3]
        state[swapped] = state[swapped][:, :, ::-1]
        matrix[swapped] = matrix[swapped][..., order, :][..., order]
    edge_type = matrix[..., edges.senders(total).numpy(), edges.receivers(total).numpy()]
    shape = (NUM_CHAINS, NUM_DRAWS, 2)
    hidden = None
    if num_hidden:
        path, known = np.zeros((10, 2, num_hidden, NUM_FRAMES, 4)), np.zeros((1, 2))
        hidden = HiddenDraws(state, path, np.full(2, num_hidden), (num_hidden,), known, known)
    draws = Draws(
        edge_type=edge_type,
        log_joint=random.standard_normal(shape),
        accepted=np.ones(shape, bool),
        proposed=np.ones(shape, bool),
        move_kind=np.zeros(NUM_DRAWS, np.int8),
        temperature=np.ones(NUM_DRAWS),
        move_names=("hidden state and edges",),
        num_edge_types=2,
        group_names=("a", "b"),
        method="mcmc",
        seed=0,
        num_evaluations=1,
        hidden=hidden,
        recorded=None if recorded is None else RecordedDraws(recorded, np.full(4, 0.1)),
    )
    return to_datatree(draws, scenes())


def test_chains_that_agree_pass():
    found = check(posterior())
    assert found.passed, str(found)
    assert list(found.table.columns[-2:]) == ["hidden_r_hat_max", "hidden_ess_min"]
    assert float(found.table["hidden_r_hat_max"].max()) < 1.02
    assert float(found.table["hidden_ess_min"].min()) > 400


def test_chains_at_different_hidden_states_are_told():
    """Their edges agree, so that nothing but the states says so."""
    found = check(posterior(place=np.array([[0.0] * 4, [1.0, 0, 0, 0]])))
    assert not found.passed
    told = "In 1 of 2 scenes chains disagree about initial states of hidden entities: scene b; the largest R-hat is "
    assert found.problems[0].startswith(told)
    assert "initial states of hidden entities" in found.verdict
    assert found.table["hidden_r_hat_max"].tolist()[0] < 1.05
    assert any("infer_hidden(num_chains=4, num_warmup=1000)" in advice for advice in found.advice)
    assert not any("num_replicas" in advice for advice in found.advice)


def test_constant_states_of_different_chains_are_told():
    tree = posterior(num_hidden=1)
    state = tree["hidden_posterior"]["hidden_state"]
    state.values[:, :, 1] = state.values[:, :1, 1]
    found = check(tree)
    assert "the largest R-hat is inf, above 1.05" in " ".join(found.problems)


def test_states_that_never_moved_are_told():
    """All chains at one place, as where no proposal is accepted: nothing disagrees, and nothing was sampled."""
    tree = posterior(num_hidden=1)
    hidden = tree["hidden_posterior"].to_dataset()
    state = hidden["hidden_state"].copy()
    state.loc[{"scene": "a"}] = state.loc[{"scene": "a"}].isel(chain=0, draw=0).drop_vars(["chain", "draw"])
    tree["hidden_posterior"] = xr.DataTree(hidden.assign(hidden_state=state))
    frame = states_frame(tree).set_index("scene")
    assert frame.loc["a", "hidden_ess_min"] == 0
    assert frame.loc["b", "hidden_ess_min"] > 300
    assert any("effective sample sizes below" in problem for problem in check(tree).problems)
    assert not any("effective sample sizes below" in problem for problem in check(posterior(num_hidden=1)).problems)


def test_slow_chains_are_told():
    tree = posterior(num_hidden=1)
    state = tree["hidden_posterior"]["hidden_state"]
    state.values[:] = state.values[:, np.arange(NUM_DRAWS) // 20 * 20]
    found = check(tree)
    told = "In 2 of 2 scenes initial states of hidden entities have effective sample sizes below 200, the smallest is"
    assert any(problem.startswith(told) for problem in found.problems)


def test_figures_are_those_of_arviz():
    tree = posterior(num_hidden=1, place=np.array([[0.0] * 4, [0.1, 0, 0, 0.2]]))
    state = tree["hidden_posterior"]["hidden_state"].to_dataset().rename(state="component")
    r_hat, ess = (of(state)["hidden_state"].max(("hidden", "component")) for of in (az.rhat, lambda x: -az.ess(x)))
    frame = states_frame(tree)
    assert frame["hidden_r_hat_max"].to_numpy() == pytest.approx(r_hat.values)
    assert frame["hidden_ess_min"].to_numpy() == pytest.approx(-ess.values)


@pytest.mark.parametrize("how", ["chain", "draws"])
def test_names_of_hidden_entities_do_not_matter(how):
    swapped = np.zeros((NUM_CHAINS, NUM_DRAWS), bool)
    if how == "chain":
        swapped[1] = True
    else:
        swapped[:] = np.random.default_rng(2).random(swapped.shape) < 0.5
    tree = posterior(swapped=swapped)
    assert float(states_frame(tree)["hidden_r_hat_max"].max()) > (1.5 if how == "chain" else 0)
    found, plain = check(tree), check(posterior())
    assert found.passed, str(found)
    assert found.table["hidden_r_hat_max"].to_numpy() == pytest.approx(plain.table["hidden_r_hat_max"].to_numpy())
    again = renamed_hidden(tree)
    for g, part in again["posterior"]["edge_type"].groupby("scene_index"):
        settled = part.values[..., [i for i in range(part.sizes["edge"]) if i != 0]]  # all but the edge in doubt
        assert (settled == settled[:1, :1]).all(), g


def test_recorded_states(tmp_path):
    random = np.random.default_rng(3)
    state = 0.1 * random.standard_normal((NUM_CHAINS, NUM_DRAWS, 2, 3, 4))
    tree = posterior(num_hidden=1, recorded=state)
    assert check(tree).passed
    frame = initial_states_frame(tree, interval=0.8)
    assert list(frame) == ["scene", "entity", "state", "recorded", "mean", "sd", "low", "high"]
    assert len(frame) == 2 * 3 * 4
    row = frame.query("scene == 'b' and entity == 'y' and state == 'vx'").iloc[0]
    values = state[:, :, 1, 1, 2].ravel()
    wanted = [
        float(scenes().trajectory[1, 0, 1, 2]),
        values.mean(),
        values.std(ddof=1),
        *np.quantile(values, [0.1, 0.9]),
    ]
    assert row[["recorded", "mean", "sd", "low", "high"]].tolist() == pytest.approx(wanted)
    write_posterior(tree, tmp_path / "posterior.nc")
    again = to_draws(read_posterior(tmp_path / "posterior.nc"))
    assert np.array_equal(again.recorded.state, state)
    assert again.recorded.measurement_noise.tolist() == [0.1] * 4
    state[1, :, 0, 2, 3] += 1
    found = check(posterior(num_hidden=1, recorded=state))
    assert "chains disagree about initial states of recorded entities: scene a" in found.problems[0]
    assert any("infer_noisy(" in advice for advice in found.advice)


def test_bad_input():
    with pytest.raises(
        ValueError, match="took recorded states for exact: use infer_noisy, or infer --observation noisy"
    ):
        initial_states_frame(posterior())
    recorded = np.zeros((NUM_CHAINS, NUM_DRAWS, 2, 3, 4))
    with pytest.raises(ValueError, match="interval must lie between 0 and 1, found 90"):
        initial_states_frame(posterior(num_hidden=0, recorded=recorded), interval=90)
