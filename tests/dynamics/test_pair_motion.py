"""The inner loop of pair forces against loops over edges, written with NumPy on one scene at a time."""

import numpy as np
import pytest
import torch

from pyro_nri.scenes import edges
from pyro_nri.scenes.particles import MAX_FORCE, SUBSTEP
from pyro_nri.scenes.simulate import simulate

TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def pull(r):
    return -0.7 * r


def push(r):
    return r**-2


def nothing(r):
    return 0 * r


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def by_loops(state, structure, mask, forces, *, num_steps, duration, lag, limit, wall):
    """One scene ``[N, 4]``: the rule of the documentation, edge by edge."""
    position, velocity = state[:, :2].numpy().copy(), state[:, 2:].numpy().copy()
    num_entities = len(position)
    sender, receiver = edges.senders(num_entities).tolist(), edges.receivers(num_entities).tolist()
    for _ in range(num_steps):
        middle = position + (duration / 2 - lag) * velocity
        total = np.zeros_like(position)
        for e, (i, j) in enumerate(zip(sender, receiver, strict=True)):
            apart = middle[j] - middle[i]
            r = np.hypot(*apart)
            if mask[e]:
                total[j] += forces[int(structure[e])](r) * apart / r
        after = velocity + duration * np.clip(total, -limit, limit)
        position = position + duration * (velocity + after) / 2 + lag * (after - velocity)
        after = np.where(position > wall, -np.abs(after), np.where(position < -wall, np.abs(after), after))
        position = np.where(position > wall, 2 * wall - position, position)
        position = np.where(position < -wall, -2 * wall - position, position)
        velocity = after
    return torch.from_numpy(np.concatenate([position, velocity], -1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize(("lag", "limit", "wall"), [(0.0, np.inf, np.inf), (0.003, 0.8, 1.5)])
def test_motion_is_that_of_loops(make_pair_forces, symmetric, masked, lag, limit, wall):
    forces = (nothing, push, pull)
    options = {} if wall == np.inf else {"boundary": wall}
    dynamics = make_pair_forces(*forces, num_substeps=7, **options)
    dynamics.clock_lag.fill_(lag)
    dynamics.force_limit.fill_(limit)
    state, structure = rand(5, 4, 4) / 4, integers(3, 2, 5, 12)
    state[..., :2] += torch.tensor([[-1.5, -1.5], [-1.5, 1.0], [1.0, 1.0], [1.0, -1.5]])
    if symmetric:
        structure = structure.minimum(structure[..., edges.reverse_edges(4)])
    mask = torch.ones(5, 12, dtype=torch.bool)
    if masked:
        mask[1] = edges.from_matrix(torch.ones(4, 4).index_fill(0, torch.tensor([3]), 0)).bool()
        mask[2, 5] = False
    found = dynamics.step(state, structure, edge_mask=mask if masked else None)
    assert found.shape == (2, 5, 4, 4)
    settings = {"num_steps": 7, "duration": 0.1 / 7, "lag": lag, "limit": limit, "wall": wall}
    for c in range(2):
        for b in range(5):
            wanted = by_loops(state[b], structure[c, b], mask[b], forces, **settings)
            torch.testing.assert_close(found[c, b], wanted, rtol=1e-5, atol=1e-5)  # splines of the laws
    if limit < 1:
        free = dynamics.motion(state, structure, mask, dynamics.laws.table(), 1, torch.tensor(0.1), torch.tensor(0.0))
        assert free[0].force(free[0].flat(state[..., :2])).abs().max() > limit  # the limit and the walls did matter
        assert (state[..., :2].abs() > wall).any()


def test_motion_does_not_depend_on_what_moves_beside(make_pair_forces):
    dynamics = make_pair_forces(push, pull, num_substeps=20, low=1e-3)
    state, structure = rand(9, 5, 4), integers(2, 9, 20)
    whole = dynamics.step(state, structure)
    assert torch.equal(
        torch.cat([dynamics.step(state[b : b + 2], structure[b : b + 2]) for b in range(0, 9, 2)]), whole
    )


def test_gradients_by_finite_differences(make_pair_forces):
    dynamics = make_pair_forces(push, pull, num_substeps=3, low=1e-3)
    structure = integers(2, 2, 6)
    assert torch.autograd.gradcheck(lambda s: dynamics.step(s, structure), (rand(2, 3, 4).requires_grad_(),))


def test_limits_and_lags_of_their_own(make_pair_forces):
    """A number for each of the batch gives what it gives alone."""
    dynamics = make_pair_forces(push, pull, num_substeps=4, low=1e-3)
    state, structure, table = rand(3, 4, 4), integers(2, 3, 12), dynamics.laws.table()
    lags, limits = torch.tensor([0.0, 0.01, -0.01]).double(), torch.tensor([0.1, 1.0, torch.inf]).double()
    duration = torch.tensor(0.02).double()

    def last(part, lag, limit):
        motion, moved = dynamics.motion(state[part], structure[part], None, table, 4, duration, lag, limit)
        return [motion.unflat(each) for each in list(moved)[-1]]

    together = last(slice(None), lags[:, None, None], limits[:, None, None])
    for b in range(3):
        for all_of_them, alone in zip(together, last(slice(b, b + 1), lags[b], limits[b]), strict=True):
            torch.testing.assert_close(all_of_them[b], alone[0], **TIGHT)


def test_a_leapfrog_is_followed_through_close_encounters(make_pair_forces):
    """With the simulator's laws, cap, lag and sub-steps a frame of charges comes out to the digits of the splines."""
    scenes = simulate("charged", 20, seed=5)
    dynamics = make_pair_forces(lambda r: -(r**-2), push, low=1e-3, boundary=5.0)
    dynamics.clock_lag.fill_(SUBSTEP / 2)
    dynamics.force_limit.fill_(MAX_FORCE)
    assert dynamics.for_rollouts() is dynamics
    coarse = dynamics.step(scenes.trajectory[:, :-1], scenes.edge_type[:, None])
    dynamics.leapfrog_steps.fill_(100)
    assert dynamics.for_rollouts().num_substeps == 100
    assert dynamics.num_substeps == 20
    fine = dynamics.for_rollouts().step(scenes.trajectory[:, :-1], scenes.edge_type[:, None])
    error = [(path - scenes.trajectory[:, 1:]).abs().amax((2, 3)).flatten() for path in (coarse, fine)]
    assert error[1].quantile(0.99) < 1e-4
    assert error[0].quantile(0.99) > 1e-2
