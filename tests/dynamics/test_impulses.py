"""Paths and impulses against exact polynomials, SciPy's quadrature and loops over edges and nodes."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.interpolate import BSpline

from pyro_nri.dynamics.force_laws import NUM_SPLINES
from pyro_nri.dynamics.impulses import (
    ImpulseFeatures,
    PathBlock,
    gauss_lobatto,
    hermite,
    incoming_senders,
    path_block,
    reflected,
    replace_frames,
    unfold,
)
from pyro_nri.dynamics.integrated_paths import refine
from pyro_nri.model.impulse import chosen_impulses
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

TIGHT = {"rtol": 1e-10, "atol": 1e-12}
NO_WALL = torch.tensor(torch.inf)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


# --- paths -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("num_nodes", [2, 3, 5, 12])
def test_quadrature_is_exact_for_polynomials(num_nodes):
    node, weight = gauss_lobatto(num_nodes, numbers(0.0))
    assert node.dtype == weight.dtype == torch.double
    assert float(weight.sum()) == pytest.approx(1, rel=1e-12)
    assert node[0] == 0
    assert node[-1] == 1
    for power in range(2 * num_nodes - 2):
        assert float((weight * node**power).sum()) == pytest.approx(1 / (power + 1), rel=1e-10)


def cubic(coefficient, time):
    """Positions and velocities of ``sum_p c_p t**p``: coefficients ``[4, *batch]``, times ``[Q]``."""
    time = time.reshape(-1, *[1] * (coefficient.ndim - 1))
    position = sum(coefficient[p] * time**p for p in range(4))
    velocity = sum(p * coefficient[p] * time ** (p - 1) for p in range(1, 4))
    return position.movedim(0, -2), velocity.movedim(0, -2)


def test_hermite_is_exact_for_cubic_paths():
    coefficient = rand(4, 5, 3, 2)
    share, dt = numbers(0.0, 0.1, 0.5, 0.77, 1.0), 0.3
    position, velocity = cubic(coefficient, numbers(0.0, dt))
    found = hermite(position[..., 0, :], position[..., 1, :], velocity[..., 0, :], velocity[..., 1, :], dt, share)
    assert found.shape == (5, 3, 5, 2)
    torch.testing.assert_close(found, cubic(coefficient, dt * share)[0], **TIGHT)


def fold(position, velocity, low, high):
    """Motion in a box from motion without walls: a triangle wave."""
    width = high - low
    turn = np.floor((position - low) / width)
    inside = position - low - turn * width
    odd = turn % 2 == 1
    return low + np.where(odd, width - inside, inside), np.where(odd, -velocity, velocity)


@pytest.fixture
def bounces():
    """Straight motion in the box [-1, 2] x [-3, 1.5]; every second scene moves past one wall or two."""
    rng = np.random.default_rng(0)
    low, high = np.array([-1.0, -3.0]), np.array([2.0, 1.5])
    start = rng.uniform(low, high, (20, 4, 2))
    velocity = rng.normal(0, 3, (20, 1, 4, 2))
    time = 0.2 * np.arange(30)[None, :, None, None]
    free = start[:, None] + velocity * time
    position, folded = fold(free, np.broadcast_to(velocity, free.shape), low, high)
    return torch.from_numpy(position), torch.from_numpy(folded), torch.from_numpy(low), torch.from_numpy(high)


def test_unfold_recognises_every_bounce(bounces):
    position, velocity, low, high = bounces
    end, after, wall = unfold(position, velocity, low, high, 0.2)
    assert end.shape == after.shape == wall.shape == (20, 29, 4, 2)
    turned = torch.sign(velocity[:, 1:]) != torch.sign(velocity[:, :-1])
    for side, sign in ((low, -1), (high, 1)):
        hit = turned & (torch.sign(velocity[:, :-1]) == sign)
        assert hit.sum() > 50
        assert torch.equal(wall == side, hit)
    assert torch.equal(wall.isnan(), ~turned)
    # unfolded, all motion is straight
    torch.testing.assert_close(end, position[:, :-1] + 0.2 * velocity[:, :-1], **TIGHT)
    torch.testing.assert_close(after, velocity[:, :-1], **TIGHT)


def test_unfold_without_walls_changes_nothing(bounces):
    position, velocity, low, _ = bounces
    end, after, wall = unfold(position, velocity, -NO_WALL.expand(2), NO_WALL.expand(2), 0.2)
    assert torch.equal(end, position[:, 1:])
    assert torch.equal(after, velocity[:, 1:])
    assert wall.isnan().all()
    # one wall alone: only its own bounces are seen
    _, _, wall = unfold(position, velocity, torch.stack([low[0], -NO_WALL.double()]), NO_WALL.expand(2), 0.2)
    assert ((wall == low[0]) | wall.isnan()).all()
    assert (wall[..., 0] == low[0]).any()
    assert wall[..., 1].isnan().all()


def test_a_turn_before_the_wall_is_no_bounce():
    """A ball thrown against a steady force comes back on a parabola that touches the wall."""
    time = 0.1 * torch.arange(40, dtype=torch.double)
    position = (1 - (time - 2) ** 2)[None, :, None, None]  # comes to 1 and turns
    velocity = (-2 * (time - 2))[None, :, None, None]
    _, _, wall = unfold(position, velocity, numbers(-10.0), numbers(1.02), 0.1)
    assert wall.isnan().all()


def test_reflected_folds_back(bounces):
    position, velocity, low, high = bounces
    end, after, wall = unfold(position, velocity, low, high, 0.2)
    node, _ = gauss_lobatto(12, position)
    free = hermite(position[:, :-1], end, velocity[:, :-1], after, 0.2, node)
    path, sign = reflected(free, wall)
    assert path.shape == sign.shape == (20, 29, 4, 12, 2)
    wanted, direction = fold(free.numpy(), np.ones(free.shape), low.numpy(), high.numpy())
    torch.testing.assert_close(path, torch.from_numpy(wanted), **TIGHT)
    assert torch.equal(sign, torch.from_numpy(direction))
    assert (sign < 0).any()


def test_held_and_free_parts_of_limited_forces(make_pair_forces):
    """Design times splines plus what is held is the whole impulse; the lag shifts the time that is integrated over."""
    scenes = simulate("charged", 12, seed=1)
    dynamics = make_pair_forces(lambda r: -1 / r**2, lambda r: 1 / r**2, boundary=5.0, low=0.01)
    dynamics.force_limit.fill_(8.0)
    dynamics.clock_lag.fill_(0.0005)
    features = refine(dynamics, dynamics.features(scenes), scenes, [scenes.edge_type])
    assert not features.blocks[1].free.all()
    incoming = scenes.edge_type[:, edges.incoming_edges(5)]
    whole = chosen_impulses(features.impulses(dynamics.laws), incoming)
    held = chosen_impulses(features.held_impulses(dynamics.laws), incoming)
    free = features.design(dynamics.laws, incoming) @ dynamics.laws.splines.flatten()
    torch.testing.assert_close(free + held, whole, rtol=1e-3, atol=1e-4)
    assert held.abs().max() > 1
    # a longer lag moves the impulse by lag_impulses
    change = chosen_impulses(features.lag_impulses(dynamics.laws), incoming)
    dynamics.clock_lag.fill_(0.0105)
    later = chosen_impulses(dynamics.features(scenes).impulses(dynamics.laws), incoming)
    dynamics.clock_lag.fill_(0.0005)
    calm = dynamics.features(scenes)
    first = chosen_impulses(calm.impulses(dynamics.laws), incoming)
    torch.testing.assert_close(later - first, chosen_impulses(calm.lag_impulses(dynamics.laws), incoming) * 0.01 / 0.1)
    assert change.shape == later.shape


def test_the_limit_is_part_of_what_is_explained(make_pair_forces):
    """Scenes moved under a limit: with it, impulses along their paths explain them; without it, less well."""
    law = (lambda r: -1 / r**2, lambda r: 1 / r**2)
    scenes = simulate("charged", 30, seed=2)  # the simulator's limit is 100
    residual = {}
    for limit in (100.0, math.inf):
        dynamics = make_pair_forces(*law, boundary=5.0, low=0.01)
        dynamics.clock_lag.fill_(0.0005)
        dynamics.force_limit.fill_(limit)
        features = refine(dynamics, dynamics.features(scenes), scenes, [scenes.edge_type])
        scene, frame = features.blocks[1].row.unbind(-1)
        closest = features.blocks[1].coordinate.amin(-1).amin(-1)  # [R, N]
        incoming = scenes.edge_type[:, edges.incoming_edges(5)]
        gap = (features.target - chosen_impulses(features.impulses(dynamics.laws), incoming)).norm(dim=-1)
        residual[limit] = float(gap[scene, frame][closest < 0.08].median())
    assert residual[100.0] < residual[math.inf] / 5


def test_senders_ascend():
    assert incoming_senders(4, torch.device("cpu")).tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]


def test_distances_and_directions_by_loops():
    path, sign = rand(2, 3, 4, 5, 2), torch.sign(rand(2, 3, 4, 5, 2, seed=1))
    weight = numbers(0.1, 0.2, 0.4, 0.2, 0.1)
    exists = torch.rand(2, 1, 4, 3, generator=torch.Generator().manual_seed(2)) > 0.3
    block = path_block(path, sign, weight, exists, None)
    assert block.row is None
    assert torch.equal(block.weight, weight)
    for b, t, j, place, q in np.ndindex(2, 3, 4, 3, 5):
        i = [i for i in range(4) if i != j][place]
        apart = (path[b, t, j, q] - path[b, t, i, q]).tolist()
        assert float(block.coordinate[b, t, j, place, q]) == pytest.approx(math.hypot(*apart), rel=1e-12)
        scale = bool(exists[b, 0, j, place]) / math.hypot(*apart)
        wanted = [scale * apart[s] * float(sign[b, t, j, q, s]) for s in range(2)]
        assert block.direction[b, t, j, place, q].tolist() == pytest.approx(wanted, rel=1e-12)


def test_entities_at_one_place():
    path = torch.zeros(1, 2, 3, 2, dtype=torch.double)
    block = path_block(path, torch.ones_like(path), numbers(0.2, 0.6, 0.2), torch.ones(1, 2, 1, dtype=torch.bool), None)
    assert (block.coordinate > 0).all()
    assert not block.direction.any()


# --- impulses of known laws ------------------------------------------------------------------------------------------
LAWS = (lambda r: -0.1 * r, lambda r: r**-2, lambda r: (2 * r.log()).sin() / r)


def straight(position, velocity, dt=0.5):
    """Two frames of straight motion: positions and velocities ``[N, 2]`` as a scene."""
    position, velocity = (torch.tensor(x, dtype=torch.double) for x in (position, velocity))
    frames = [torch.cat([position + t * dt * velocity, velocity], -1) for t in range(2)]
    return Scenes.from_arrays(torch.stack(frames)[None], time_step=dt)


def test_impulses_along_straight_paths(make_pair_forces):
    """Mean over the frame of the force on each receiver by each sender, by SciPy's adaptive quadrature."""
    dynamics = make_pair_forces(*LAWS)
    position, velocity = [[0.0, 0.0], [1.5, 0.2], [-0.3, -1.0]], [[0.4, 1.0], [-1.0, 0.3], [0.2, -0.5]]
    features = dynamics.features(straight(position, velocity))
    impulses = features.impulses(dynamics.laws)
    assert impulses.shape == (1, 1, 3, 2, 3, 2)
    assert not features.target.abs().max() > 1e-12
    for j in range(3):
        for place, i in enumerate([i for i in range(3) if i != j]):
            for k, law in enumerate(LAWS):
                for s in range(2):

                    def force(share, i=i, j=j, s=s, law=law):
                        apart = np.subtract(position[j], position[i]) + 0.5 * share * np.subtract(
                            velocity[j], velocity[i]
                        )
                        return float(law(torch.tensor(math.hypot(*apart)))) * apart[s] / math.hypot(*apart)

                    wanted = quad(force, 0, 1)[0]
                    assert float(impulses[0, 0, j, place, k, s]) == pytest.approx(wanted, rel=2e-3, abs=2e-4)
    spring = impulses[0, 0, :, :, 0]  # r f(r) is smooth: only the straight lines between points are off
    for j in range(3):
        for place, i in enumerate([i for i in range(3) if i != j]):
            middle = np.subtract(position[j], position[i]) + 0.25 * np.subtract(velocity[j], velocity[i])
            assert spring[j, place].tolist() == pytest.approx(-0.1 * middle, rel=1e-4)


def test_what_is_behind_a_wall_pushes_in_the_mirror(make_pair_forces):
    """Receiver 0 meets the wall at x = 1 after 40 % of the frame; sender 1 stands still far away.

    In the unfolded velocity the x part of a force after the bounce counts with the other sign.
    """
    dynamics = make_pair_forces(lambda r: -0.1 * r, boundary=1.0)
    position, velocity = np.array([[0.8, 0.0], [-0.9, 0.9]]), np.array([[1.0, 0.3], [0.0, 0.0]])
    end, after = fold(position + 0.5 * velocity, velocity, -1.0, 1.0)
    frames = np.stack([np.concatenate([position, velocity], -1), np.concatenate([end, after], -1)])
    features = dynamics.features(Scenes.from_arrays(frames[None], time_step=0.5))
    assert float(features.target.abs().max()) < 1e-12  # no force: the unfolded velocity stays
    found = features.impulses(dynamics.laws)[0, 0, 0, 0, 0]
    wanted = np.zeros(2)
    for u, w in zip(*(values.numpy() for values in gauss_lobatto(12, numbers(0.0))), strict=True):
        place, sign = fold(position[0] + 0.5 * u * velocity[0], np.ones(2), -1.0, 1.0)
        wanted += w * -0.1 * (place - position[1]) * sign
    assert found.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-9)
    # the same by integration on both sides of the bounce; 12 nodes do not see exactly where it is
    exact = [
        quad(lambda u: -0.1 * (1 - abs(0.2 - 0.5 * u) + 0.9) * (1 if u < 0.4 else -1), 0, 1, points=[0.4])[0],
        -0.1 * (0.075 - 0.9),
    ]
    assert found.tolist() == pytest.approx(exact, abs=0.03)


def test_impulses_are_the_change_of_velocity_in_slow_motion(make_pair_forces):
    """Springs, the simulator's truth: what the law says of the paths is what the velocities did."""
    dynamics = make_pair_forces(lambda r: 0 * r, lambda r: -0.1 * r, boundary=5.0)
    scenes = simulate("springs", 10, num_frames=30, seed=0)
    features = dynamics.features(scenes)
    impulses = features.impulses(dynamics.laws)  # [B, T - 1, N, N - 1, K, S]
    incoming = scenes.edge_type[:, torch.tensor([[e for e in range(20) if receiver(e) == j] for j in range(5)])]
    summed = (impulses[..., 1, :] * incoming[:, None, ..., None]).sum(-2)
    residual = (features.target - summed).norm(dim=-1)
    assert features.mask.all()
    assert float(residual.median()) < 2e-4
    assert float(features.target.norm(dim=-1).median()) > 0.1


def receiver(edge, num_entities=5):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j][edge][1]


def test_design_rows_by_loops(make_pair_forces):
    """Each row: for each spline of each type the quadrature of its push on the receiver, with SciPy's splines."""
    dynamics = make_pair_forces(*LAWS[:2])
    laws = dynamics.laws
    scenes = Scenes.from_arrays(rand(2, 3, 3, 4), time_step=0.2)
    features = dynamics.features(scenes)
    incoming = torch.randint(2, (2, 3, 2), generator=torch.Generator().manual_seed(1))
    found = features.design(laws, incoming)
    assert found.shape == (2, 2, 3, 2, 2 * NUM_SPLINES)
    width = float(laws.high - laws.low) / (NUM_SPLINES - 3)
    knots = float(laws.low) + width * np.arange(-3, NUM_SPLINES + 1)
    (block,) = features.blocks
    wanted = torch.zeros_like(found)
    for b, t, j, place in np.ndindex(2, 2, 3, 2):
        distance = block.coordinate[b, t, j, place].numpy()
        place_on_law = np.log(distance).clip(float(laws.low), float(laws.high))
        values = BSpline.design_matrix(place_on_law, knots, 3).toarray() / distance[:, None]  # [Q, NUM_SPLINES]
        column = int(incoming[b, j, place]) * NUM_SPLINES
        part = torch.einsum("qm,qs,q->sm", torch.from_numpy(values), block.direction[b, t, j, place], block.weight)
        wanted[b, t, j, :, column : column + NUM_SPLINES] += part
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("system", ["charged", "kuramoto"])
def test_design_times_splines_is_the_chosen_impulse(make_pair_forces, system):
    """Up to the straight lines between the points of the table."""
    scenes = simulate(system, 3, num_frames=8, num_entities=4, seed=0)
    laws = (torch.sin, lambda a: a.cos() - 1) if system == "kuramoto" else LAWS[:2]
    dynamics = make_pair_forces(*laws, state_names=scenes.state_names)
    features = dynamics.features(scenes)
    incoming = torch.randint(2, (3, 4, 3), generator=torch.Generator().manual_seed(1))
    found = features.design(dynamics.laws, incoming) @ dynamics.laws.splines.flatten()
    impulses = features.impulses(dynamics.laws)
    wanted = torch.zeros_like(found)
    for b, j, place in np.ndindex(3, 4, 3):
        wanted[b, :, j] += impulses[b, :, j, place, incoming[b, j, place]]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_impulses_of_oscillators(make_pair_forces):
    """Rate minus own rate at the end of a frame, against the coupling at the same moment: no path at all."""
    scenes = simulate("kuramoto", 4, num_frames=10, num_entities=3, seed=0)
    dynamics = make_pair_forces(torch.zeros_like, torch.sin, state_names=scenes.state_names)
    features = dynamics.features(scenes)
    phase, rate, own = scenes.trajectory.unbind(-1)
    torch.testing.assert_close(features.target[..., 0], (rate - own)[:, 1:])
    impulses = features.impulses(dynamics.laws)
    assert impulses.shape == (4, 9, 3, 2, 2, 1)
    for j in range(3):
        for place, i in enumerate([i for i in range(3) if i != j]):
            wanted = (phase[:, 1:, i] - phase[:, 1:, j]).sin()
            torch.testing.assert_close(impulses[:, :, j, place, 1, 0], wanted, rtol=0, atol=2e-5)
    edge = {(i, j): e for e, (i, j) in enumerate([(i, j) for i in range(3) for j in range(3) if i != j])}
    for j in range(3):
        senders = [i for i in range(3) if i != j]
        summed = sum(impulses[:, :, j, p, 1] * scenes.edge_type[:, None, [edge[i, j]]] for p, i in enumerate(senders))
        torch.testing.assert_close(features.target[:, :, j], summed, rtol=0, atol=5e-5)


# --- what was not seen -----------------------------------------------------------------------------------------------
@pytest.fixture
def gaps():
    """Missing states, a padded entity in scene 1, and what is stored there must not matter."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.rand(3, 12, 4, generator=generator) > 0.08
    present = torch.ones(3, 4, dtype=torch.bool)
    present[1, 3] = False
    return Scenes.from_arrays(
        rand(3, 12, 4, 4), time_step=0.1, observation_mask=seen, entity_mask=present, state_names=["x", "y", "vx", "vy"]
    )


def test_features_are_finite_and_masked(make_pair_forces, gaps):
    dynamics = make_pair_forces(*LAWS, boundary=3.0)
    features = dynamics.features(gaps)
    for value in (features.target, features.context, *(b.coordinate for b in features.blocks)):
        assert value.isfinite().all()
    assert features.impulses(dynamics.laws).isfinite().all()
    for b in range(3):
        present = [n for n in range(4) if gaps.entity_mask[b, n]]
        for t in range(11):
            both = all(bool(gaps.observation_mask[b, [t, t + 1], n].all()) for n in present)
            assert features.mask[b, t].tolist() == [both and n in present for n in range(4)]
    assert features.mask.any()
    # no force between a padded entity and any other
    direction = features.blocks[0].direction
    assert not direction[1, :, 3].any()
    assert not direction[1, :, :3, 2].any()  # its place among the senders of the others
    assert not features.impulses(dynamics.laws)[1, :, 3].any()


def test_padding_is_not_felt(make_pair_forces, gaps):
    dynamics = make_pair_forces(*LAWS, boundary=3.0)
    padded = dynamics.features(gaps[1])
    alone = dynamics.features(
        Scenes.from_arrays(
            gaps.trajectory[1:2, :, :3], time_step=0.1, observation_mask=gaps.observation_mask[1:2, :, :3]
        )
    )
    seen = alone.mask
    torch.testing.assert_close(padded.target[:, :, :3], alone.target)
    assert torch.equal(padded.mask[:, :, :3], seen)
    of_padded = padded.impulses(dynamics.laws)[:, :, :3, :2]
    torch.testing.assert_close(of_padded, alone.impulses(dynamics.laws))
    # three sums over senders: a padded one stands a thousand steps away
    torch.testing.assert_close(padded.context[:, :, :3][seen], alone.context[seen], rtol=1e-5, atol=1e-5)


def test_two_entities(make_pair_forces):
    dynamics = make_pair_forces(*LAWS)
    scenes = Scenes.from_arrays(rand(2, 5, 2, 4), time_step=0.1)
    features = dynamics.features(scenes)
    assert features.context.shape == (2, 4, 2, dynamics.context_size)
    impulses = features.impulses(dynamics.laws)
    assert impulses.shape == (2, 4, 2, 1, 3, 2)
    torch.testing.assert_close(impulses[:, :, 0], -impulses[:, :, 1], **TIGHT)  # action and reaction


def test_one_axis(make_pair_forces):
    dynamics = make_pair_forces(*LAWS, state_names=("x", "vx"))
    features = dynamics.features(Scenes.from_arrays(rand(2, 5, 3, 2), time_step=0.1))
    assert features.impulses(dynamics.laws).shape == (2, 4, 3, 2, 3, 1)


# --- parts and blocks ------------------------------------------------------------------------------------------------
def test_some_of_the_scenes(make_pair_forces, gaps):
    dynamics = make_pair_forces(*LAWS, boundary=3.0)
    whole = dynamics.features(gaps)
    assert len(whole) == 3
    for index in ([2, 0], slice(1, 3)):
        part, wanted = whole[index], dynamics.features(gaps[index])
        for name in ("target", "mask", "context"):
            assert torch.equal(getattr(part, name), getattr(wanted, name))
        assert torch.equal(part.impulses(dynamics.laws), wanted.impulses(dynamics.laws))


def test_precision(make_pair_forces, gaps):
    single = make_pair_forces(*LAWS).features(gaps).to(torch.float)
    floats = (single.target, single.context, single.blocks[0].coordinate, single.blocks[0].direction)
    assert {value.dtype for value in floats} == {torch.float}
    assert single.mask.dtype == torch.bool
    # missing and padded entities, all of them at the origin, do not break single precision either
    assert single.impulses(make_pair_forces(*LAWS).laws.float()).isfinite().all()


def test_a_later_block_replaces_its_frames(make_pair_forces):
    dynamics = make_pair_forces(*LAWS)
    features = dynamics.features(Scenes.from_arrays(rand(3, 6, 3, 4), time_step=0.1))
    row = torch.tensor([[0, 2], [2, 4]])
    first = features.blocks[0]
    place = (row[:, 0], row[:, 1])
    block = PathBlock(row, 2 * first.coordinate[place], first.direction[place], first.weight)
    context = features.context + 1
    changed = replace_frames(features, block, context)
    assert torch.equal(changed.context, context)
    assert torch.equal(changed.target, features.target)
    twice = PathBlock(None, 2 * first.coordinate, first.direction, first.weight)
    single = ImpulseFeatures(features.target, features.mask, features.context, (twice,))
    incoming = torch.randint(3, (3, 3, 2), generator=torch.Generator().manual_seed(0))
    for of in (lambda each: each.impulses(dynamics.laws), lambda each: each.design(dynamics.laws, incoming)):
        found, before, doubled = of(changed), of(features), of(single)
        for b, t in np.ndindex(3, 5):
            assert torch.equal(found[b, t], (doubled if [b, t] in row.tolist() else before)[b, t])
    with pytest.raises(ValueError, match="features of several path blocks cannot be indexed"):
        changed[:1]
