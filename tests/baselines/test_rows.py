"""What every baseline owes, whichever it is."""

from dataclasses import replace

import pyro
import pytest
import torch

from pyro_nri.baselines.rows import BASELINES, fit_baseline
from pyro_nri.scenes.simulate import simulate

NO_TRAINING = ("static", "correlation_path")


@pytest.fixture(scope="module", params=BASELINES)
def fitted(request, springs):
    before = torch.get_rng_state(), sorted(pyro.get_param_store().keys())
    options = {} if request.param in NO_TRAINING else {"num_steps": 2}
    found = fit_baseline(request.param, springs, seed=0, **options)
    if request.param == "variational_refined":
        found.num_steps = 2
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == sorted(pyro.get_param_store().keys())
    return found


def test_structures(fitted, springs):
    others = simulate("springs", 4, num_entities=3, num_frames=24, seed=8)
    if not fitted.infers_structure:
        with pytest.raises(ValueError, match=r"infers no structure|not inferred"):
            fitted.edge_probability(others)
        return
    found = fitted.edge_probability(others)
    assert found.shape == (4, 6, 2)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 6, dtype=torch.double))
    unknown = replace(others, edge_type=None)
    torch.testing.assert_close(fitted.edge_probability(unknown), found)  # the truth is not looked at


def test_motion(fitted, springs):
    if not fitted.predicts_motion:
        with pytest.raises(ValueError, match="predicts no motion"):
            fitted.predict(springs, start=15, num_steps=4)
        return
    path = fitted.predict(springs, start=15, num_steps=4)
    assert path.shape == (12, 4, 3, 4)
    assert path.isfinite().all()
    later = replace(springs, trajectory=springs.trajectory.clone())
    later.trajectory[:, 16:] = 100.0
    torch.testing.assert_close(fitted.predict(later, start=15, num_steps=4), path)
    with pytest.raises(ValueError, match="start must be a frame"):
        fitted.predict(springs, start=24, num_steps=1)


def test_labels_are_looked_at_only_where_that_is_said(springs):
    shuffled = replace(springs, edge_type=springs.edge_type[torch.arange(12) - 1])
    for name in BASELINES:
        options = {} if name in NO_TRAINING else {"num_steps": 1}
        one, other = (fit_baseline(name, scenes, seed=0, **options) for scenes in (springs, shuffled))
        if one.uses_labels or not one.predicts_motion:
            assert one.uses_labels, name
            continue
        structure = torch.zeros(12, 6, dtype=torch.long)
        paths = [each.predict(springs, start=15, num_steps=2, structure=structure) for each in (one, other)]
        assert torch.equal(*paths), name


def test_refuses(springs):
    with pytest.raises(ValueError, match="baseline must be one of static, lstm_single"):
        fit_baseline("gru", springs, seed=0)
    with pytest.raises(ValueError, match="preset must be one of small, paper"):
        fit_baseline("static", springs, preset="huge", seed=0)
