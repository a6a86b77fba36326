"""Expectation propagation: against enumeration, and structures too large for one."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model import propagation
from pyro_nri.model.propagation import LAST
from pyro_nri.scenes import edges
from pyro_nri.scenes.simulate import simulate


def least_squares(num_senders, num_types, num_rows, *, seed, strength=1.0):
    """Rows whose columns are correlated, types at random, errors of the last square."""
    rng = np.random.default_rng(seed)
    free = num_types - 1
    design = strength * (rng.standard_normal((num_rows, num_senders * free)) + rng.standard_normal((num_rows, 1)))
    types = rng.integers(num_types, size=num_senders)
    weight = np.eye(num_types)[types][:, 1:].reshape(-1)
    right = design @ weight + np.sqrt(LAST) * rng.standard_normal(num_rows)
    return torch.as_tensor(design)[None], torch.as_tensor(right)[None], types


def enumerated(design, right, num_senders, num_types, share):
    """Marginals ``[n, K]`` by listing all types."""
    every = np.array(list(itertools.product(range(num_types), repeat=num_senders)))
    weight = np.eye(num_types)[every][:, :, 1:].reshape(len(every), -1)
    error = (right[0].numpy() - weight @ design[0].numpy().T) ** 2
    log_joint = -error.sum(1) / (2 * LAST) + np.log(share)[every].sum(1)
    probability = np.exp(log_joint - log_joint.max())
    probability /= probability.sum()
    return np.stack([[probability[every[:, s] == k].sum() for k in range(num_types)] for s in range(num_senders)])


@pytest.mark.parametrize("share", [None, 0.8])
@pytest.mark.parametrize(("num_senders", "num_types", "num_rows"), [(8, 2, 10), (5, 3, 12)])
def test_near_enumeration(num_senders, num_types, num_rows, share):
    """An approximation: over 20 problems in doubt the mean difference is small, and none is beyond all bounds."""
    rest = (1 - (share or 1 / num_types)) / (num_types - 1)
    shares = np.array([share or 1 / num_types] + [rest] * (num_types - 1))
    apart, doubt = [], []
    for seed in range(20):
        design, right, _ = least_squares(num_senders, num_types, num_rows, seed=seed)
        wanted = enumerated(design, right, num_senders, num_types, shares)
        found = propagation._propagate(
            design, right, torch.zeros(1, dtype=torch.long), 1, torch.as_tensor(shares), is_robust=False
        )[0].numpy()
        assert np.allclose(found.sum(-1), 1)
        apart.append(np.abs(found - wanted))
        doubt.append(wanted.max(-1) < 0.95)
    assert np.concatenate(doubt).mean() > 0.3
    assert np.mean(apart) < 0.03
    assert np.quantile(np.concatenate([each.ravel() for each in apart]), 0.95) < 0.15


def test_recordings_of_one_structure_are_added():
    design, right, _ = least_squares(8, 2, 12, seed=0)
    share = torch.full((2,), 0.5, dtype=torch.float64)
    whole = propagation._propagate(design, right, torch.zeros(1, dtype=torch.long), 1, share, is_robust=False)
    halves, rights = design.view(2, 6, 8), right.view(2, 6)
    parts = propagation._propagate(halves, rights, torch.zeros(2, dtype=torch.long), 1, share, is_robust=False)
    torch.testing.assert_close(parts, whole)
    beside = torch.cat([halves, torch.randn(1, 6, 8, dtype=torch.float64)])
    owner = torch.tensor([1, 1, 0])
    among = propagation._propagate(beside, torch.cat([rights, rights[:1]]), owner, 2, share, is_robust=False)
    torch.testing.assert_close(among[1], whole[0])


def test_rows_that_are_wrong_weigh_less():
    """Two rows are off by a thousand errors: plain propagation is misled, robust propagation is not."""
    misled = 0
    for seed in range(5):
        design, right, types = least_squares(15, 2, 60, seed=seed, strength=20.0)
        right[0, :2] += 2000.0
        share, owner = torch.full((2,), 0.5, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
        plain, robust = (
            propagation._propagate(design, right, owner, 1, share, is_robust=flag)[0].argmax(-1).numpy()
            for flag in (False, True)
        )
        assert (robust == types).all()
        misled += (plain != types).any()
    assert misled >= 3


@pytest.fixture(scope="module")
def springs():
    return load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "springs5.pt")


def truth_of(scenes, checkpoint):
    return torch.tensor(checkpoint.alignment).argsort()[scenes.edge_type]


def test_fifty_springs_are_found_at_once(springs):
    """2^49 codes for each receiver and no chain; the unconstrained least squares alone do not find them."""
    scenes = simulate("springs", 1, num_entities=50, link_probability=0.1, seed=6)
    with torch.no_grad():
        likelihood = springs.model.likelihood(scenes)
        guess = likelihood.likely_types()
    truth = truth_of(scenes, springs)
    assert torch.equal(guess.argmax(-1), truth)
    assert (likelihood.relaxed.types() == truth[:, edges.incoming_edges(50)]).double().mean() < 0.98
    assert likelihood.blunted()[0].likely_types() is guess  # made once


def test_padding_and_groups(springs):
    """Two recordings of one structure, and a scene with an entity less: as each alone."""
    made = simulate("springs", 3, num_entities=14, num_frames=30, link_probability=0.3, seed=1)
    present = made.entity_mask.clone()
    present[2, 13] = False
    scenes = made.__class__.from_arrays(
        made.trajectory, time_step=made.time_step, entity_mask=present, scene_names=["a", "b", "c"]
    )
    with torch.no_grad():
        together = springs.model.likelihood(scenes).likely_types()
        alone = torch.cat([springs.model.likelihood(scenes[b : b + 1]).likely_types() for b in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    truth = truth_of(made, springs)
    assert torch.equal(together[:2].argmax(-1), truth[:2])


def test_numbers_that_lead_nowhere_leave_equal_probabilities():
    """Rows that are not finite, or say nothing at all."""
    design, right, _ = least_squares(4, 3, 10, seed=0)
    share, owner = torch.full((3,), 1 / 3, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    for factor in (torch.nan, torch.inf, 0.0):
        for is_robust in (False, True):
            found = propagation._propagate(design * factor, right, owner, 1, share, is_robust=is_robust)
            torch.testing.assert_close(found, torch.full((1, 4, 3), 1 / 3, dtype=torch.float64))


def test_senders_that_do_the_same_break_nothing():
    """Equal columns, and errors so small that rounding decides."""
    for seed in range(8):
        design, right, _ = least_squares(4, 2, 10, seed=seed, strength=1e10)
        design[..., 1] = design[..., 0]
        found = propagation._propagate(
            design, right, torch.zeros(1, dtype=torch.long), 1, torch.full((2,), 0.5).double(), is_robust=False
        )
        assert found.isfinite().all()
