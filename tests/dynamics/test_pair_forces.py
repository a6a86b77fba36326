"""Pair forces against SciPy's integrators, the simulator, conservation laws and loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from pyro_nri.dynamics.integrated_paths import refine
from pyro_nri.dynamics.pair_forces import PHASE_STATE, PairForces
from pyro_nri.dynamics.rollout import rollout, teacher_forcing
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

PAIRS = {n: [(i, j) for i in range(n) for j in range(n) if i != j] for n in (2, 3, 4, 5)}


def nothing(r):
    return 0 * r


def spring(r):
    return -0.1 * r


def repel(r):
    return r**-2


def attract(r):
    return -(r**-2)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


def symmetric(structure, num_entities):
    """Both edges of a pair take the type of the one from the lower to the higher entity."""
    number = {pair: e for e, pair in enumerate(PAIRS[num_entities])}
    return structure[..., [number[min(pair), max(pair)] for pair in PAIRS[num_entities]]]


def acceleration(position, structure, forces):
    """By loops: positions ``[N, S]``, one type for each edge, laws ``f(r)`` on numbers."""
    total = np.zeros_like(position)
    for (i, j), k in zip(PAIRS[len(position)], structure, strict=True):
        apart = position[j] - position[i]
        total[j] += float(forces[k](torch.tensor(np.hypot(*apart)))) * apart / np.hypot(*apart)
    return total


def solved(state, structure, forces, times):
    """States ``[len(times), N, 4]`` by SciPy, no walls."""
    num_entities = len(state)

    def rate(_, flat):
        position, velocity = flat.reshape(2, num_entities, 2)
        return np.concatenate([velocity, acceleration(position, structure, forces)]).ravel()

    start = np.concatenate([state[:, :2], state[:, 2:]]).ravel()
    found = solve_ivp(rate, (0, times[-1]), start, t_eval=times, method="DOP853", rtol=1e-11, atol=1e-12)
    return np.concatenate(list(found.y.T.reshape(len(times), 2, num_entities, 2).swapaxes(0, 1)), -1)


# --- the integrator --------------------------------------------------------------------------------------------------
def test_halving_the_substeps_quarters_the_error(make_pair_forces):
    start, structure = 2 * rand(4, 4), integers(2, 12, seed=1)
    wanted = torch.from_numpy(solved(start.numpy(), structure.tolist(), (spring, nothing), [3.0])[0])
    errors = []
    for num_substeps in (2, 4, 8, 16):
        dynamics = make_pair_forces(spring, nothing, time_step=3.0, num_substeps=num_substeps)
        errors.append(float((dynamics.step(start, structure) - wanted).norm()))
    ratios = [a / b for a, b in itertools.pairwise(errors)]
    assert ratios == pytest.approx([4.0] * 3, rel=0.15)


@pytest.mark.parametrize("forces", [(nothing, spring), (nothing, repel)])
def test_close_to_scipy(make_pair_forces, forces):
    start = rand(3, 4)
    start[:, :2] = numbers(0.0, 0.0, 2.0, 0.5, -1.0, 1.5).reshape(3, 2)
    structure = integers(2, 6, seed=3)
    dynamics = make_pair_forces(*forces, num_substeps=20)
    wanted = torch.from_numpy(solved(start.numpy(), structure.tolist(), forces, 0.1 * np.arange(1, 6)))
    torch.testing.assert_close(rollout(dynamics, start, structure, 5), wanted, rtol=0, atol=2e-4)


def energy(state, linked):
    position, velocity = state[..., :2], state[..., 2:]
    total = velocity.square().sum((-1, -2)) / 2
    for (i, j), k in zip(PAIRS[4], linked, strict=True):
        if i < j and k:
            total = total + 0.1 * (position[..., i, :] - position[..., j, :]).square().sum(-1) / 2
    return total


def test_energy_is_kept_to_the_order_of_the_integrator(make_pair_forces):
    """Springs without walls: half as long sub-steps, a quarter of the error, and it does not grow."""
    start, structure = rand(4, 4), symmetric(integers(2, 12, seed=1), 4)
    assert structure.any()
    before = energy(start, structure.tolist())
    errors = {}
    for num_substeps in (2, 4):
        dynamics = make_pair_forces(nothing, spring, time_step=1.0, num_substeps=num_substeps)
        path = rollout(dynamics, start, structure, 200)
        errors[num_substeps] = (energy(path, structure.tolist()) - before).abs()
        assert errors[num_substeps][-50:].max() < 1.3 * errors[num_substeps][:50].max()
    assert float(errors[2].max() / errors[4].max()) == pytest.approx(4.0, rel=0.1)
    assert float(errors[4].max() / before) < 0.01


@pytest.mark.parametrize("is_symmetric", [True, False])
def test_momentum(make_pair_forces, is_symmetric):
    dynamics = make_pair_forces(attract, spring)
    start, structure = rand(3, 4, 4), integers(2, 3, 12, seed=1)
    structure = symmetric(structure, 4) if is_symmetric else structure
    path = rollout(dynamics, start, structure, 20)
    momentum, place = path[..., 2:].sum(-2), path[..., :2].sum(-2)  # [B, T, S]
    error = (momentum - start[:, None, :, 2:].sum(-2)).abs().max()
    if is_symmetric:
        assert error < 1e-10
        time = 0.1 * torch.arange(1, 21, dtype=torch.double)[:, None]
        straight = start[:, None, :, :2].sum(-2) + time * start[:, None, :, 2:].sum(-2)
        torch.testing.assert_close(place, straight, rtol=1e-10, atol=1e-10)
    else:
        assert error > 1e-3


def test_a_directed_edge_moves_its_receiver_alone(make_pair_forces):
    dynamics = make_pair_forces(nothing, spring)
    start = rand(3, 4)
    number = {pair: e for e, pair in enumerate(PAIRS[3])}
    structure = torch.zeros(6, dtype=torch.long)
    structure[number[2, 0]] = 1
    after = dynamics.step(start, structure)
    change = after[:, 2:] - start[:, 2:]
    torch.testing.assert_close(change[1:], torch.zeros_like(change[1:]))
    towards = start[2, :2] - start[0, :2]
    assert change[0] @ towards > 0
    assert float(change[0].norm()) == pytest.approx(0.01 * float(towards.norm()), rel=0.2)


@pytest.mark.parametrize("system", ["springs", "charged"])
def test_the_simulators_frames(make_pair_forces, system):
    """True law and structure: one step from each frame gives the next one, bounces included.

    The simulator's velocities are half a sub-step of 0.001 older than its positions, an error of 5e-4 accelerations.
    """
    forces = (nothing, spring) if system == "springs" else (attract, repel)
    box = 1.5 if system == "springs" else 2.5
    scenes = simulate(system, 10, num_frames=40, seed=0, box=box)
    dynamics = make_pair_forces(*forces, boundary=box, low=0.005)
    predicted = teacher_forcing(dynamics, scenes.trajectory, scenes.edge_type)
    error = (predicted - scenes.trajectory[:, 1:]).abs()
    turned = (scenes.trajectory[:, 1:, :, 2:] * scenes.trajectory[:, :-1, :, 2:] < 0).any(-1)
    bounced = turned & (scenes.trajectory[:, 1:, :, :2].abs() > box - 0.3).any(-1)
    assert bounced.sum() > 5
    position, velocity = error[..., :2].amax(-1), error[..., 2:].amax(-1)
    if system == "springs":
        assert position.max() < 2e-4
        assert velocity[~bounced].max() < 2e-4
        assert velocity[bounced].max() < 3e-3  # the sub-step of 0.005 in which the velocity turns
    else:  # few frames hold encounters that 20 sub-steps do not follow
        assert position.median() < 1e-4
        assert position[bounced].median() < 2e-4
        assert velocity.median() < 5e-4
        assert (velocity < 1e-2).double().mean() > 0.75


def fold(position, low, high):
    """Motion in a box from motion without walls: a triangle wave, and the sign of its slope."""
    width = high - low
    inside = torch.remainder(position - low, 2 * width)
    return low + torch.where(inside > width, 2 * width - inside, inside), torch.where(inside > width, -1.0, 1.0)


def test_walls_reflect(make_pair_forces):
    dynamics = make_pair_forces(nothing, boundary=1.0)
    dynamics.low.copy_(numbers(-1.0, -torch.inf))
    dynamics.high.copy_(numbers(1.5, torch.inf))
    start = rand(6, 3, 4).clamp(-0.97, 0.93)
    start[..., 2] *= 5.03
    path = rollout(dynamics, start, torch.zeros(6, 6, dtype=torch.long), 40)
    time = 0.1 * torch.arange(1, 41, dtype=torch.double)[:, None]
    free = start[:, None, :, :2] + time[..., None] * start[:, None, :, 2:]
    position, sign = fold(free[..., 0], -1.0, 1.5)
    torch.testing.assert_close(path[..., 0], position, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path[..., 1], free[..., 1], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path[..., 2], sign * start[:, None, :, 2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(path[..., 3], start[:, None, :, 3].expand(6, 40, 3))
    assert (sign < 0).any()


# --- one step, many ways ---------------------------------------------------------------------------------------------
def test_messages_of_all_types_hold_those_of_a_structure(make_pair_forces):
    dynamics = make_pair_forces(spring, repel, attract)
    state, structure = rand(2, 5, 4, 4), integers(3, 2, 5, 12)
    every, chosen = dynamics.messages(state), dynamics.messages(state, structure)
    assert every.shape == (2, 5, 12, 3, 2)
    assert chosen.shape == (2, 5, 12, 2)
    for b, t, e in itertools.product(range(2), range(5), range(12)):
        torch.testing.assert_close(chosen[b, t, e], every[b, t, e, structure[b, t, e]], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("state_names", [("x", "y", "vx", "vy"), PHASE_STATE])
def test_many_structures_for_one_state(make_pair_forces, state_names):
    forces = (torch.sin, torch.cos) if state_names == PHASE_STATE else (spring, repel)
    dynamics = make_pair_forces(*forces, state_names=state_names, num_substeps=3)
    state, structure = rand(2, 3, len(state_names)), integers(2, 7, 2, 6)
    found = dynamics.step(state, structure)
    assert found.shape == (7, 2, 3, len(state_names))
    for c in range(7):
        torch.testing.assert_close(found[c], dynamics.step(state, structure[c]), rtol=1e-12, atol=1e-12)


def test_padding_is_not_felt(make_pair_forces):
    dynamics = make_pair_forces(spring, repel, boundary=2.0)
    small, among = rand(3, 4).clamp(-1, 1), integers(2, 6)
    types = dict(zip(PAIRS[3], among.tolist(), strict=True))
    structure = torch.tensor([types.get(pair, 1) for pair in PAIRS[4]])
    mask = torch.tensor([3 not in pair for pair in PAIRS[4]])
    large = torch.cat([small, torch.zeros(1, 4)])
    found = rollout(dynamics, large, structure, 5, edge_mask=mask)
    torch.testing.assert_close(found[:, :3], rollout(dynamics, small, among, 5), rtol=1e-12, atol=1e-12)
    assert not found[:, 3].any()  # alone and at rest


def test_any_order_of_the_state(make_pair_forces):
    state, structure = rand(3, 4), integers(2, 6)
    usual = make_pair_forces(spring, repel, boundary=2.0).step(state, structure)
    names = ("vy", "x", "vx", "y")
    order = [("x", "y", "vx", "vy").index(name) for name in names]
    mixed = make_pair_forces(spring, repel, boundary=2.0, state_names=names).step(state[:, order], structure)
    torch.testing.assert_close(mixed, usual[:, order], rtol=1e-12, atol=1e-12)


def test_three_dimensions_turn_with_the_scene(make_pair_forces):
    names = ("x", "y", "z", "vx", "vy", "vz")
    dynamics = make_pair_forces(spring, repel, state_names=names)
    rotation = torch.linalg.qr(rand(3, 3)).Q
    state, structure = rand(4, 6), integers(2, 12)

    def turn(state):
        return torch.cat([state[..., :3] @ rotation, state[..., 3:] @ rotation], -1)

    torch.testing.assert_close(dynamics.step(turn(state), structure), turn(dynamics.step(state, structure)))


@pytest.mark.parametrize("horizon", [1, 3])
def test_teacher_forcing_is_a_loop(make_pair_forces, horizon):
    dynamics = make_pair_forces(spring, repel, num_substeps=4)
    trajectory, structure = rand(2, 6, 3, 4), integers(2, 5, 2, 6)
    found = teacher_forcing(dynamics, trajectory, structure, horizon=horizon)
    for c, b in itertools.product(range(5), range(2)):
        for t in range(5):
            if t % horizon == 0:
                state = trajectory[b, t]
            state = dynamics.step(state, structure[c, b])
            torch.testing.assert_close(found[c, b, t], state, rtol=1e-10, atol=1e-12)


def test_gradients_reach_the_laws():
    dynamics = PairForces(2, ("x", "vx"), boundary="none", num_substeps=2, generator=torch.Generator().manual_seed(0))
    dynamics = dynamics.double()
    dynamics.laws.low.fill_(-3.0)
    dynamics.laws.high.fill_(2.0)
    dynamics.step(rand(5, 3, 2), integers(2, 5, 6)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in dynamics.parameters())
    state = rand(3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: dynamics.step(s, integers(2, 6)), (state,))


# --- oscillators -----------------------------------------------------------------------------------------------------
def test_oscillators_against_scipy(make_pair_forces):
    """dphi_j/dt = omega_j + sum_i sin(phi_i - phi_j) over coupled senders i; error of second order."""
    structure = numbers(1, 0, 0, 1, 1, 1).long()  # directed
    phase, own = numbers(0.3, 2.0, 4.5), numbers(1.0, 3.0, 7.0)

    def rate(_, phase):
        total = own.numpy().copy()
        for (i, j), k in zip(PAIRS[3], structure.tolist(), strict=True):
            total[j] += k * math.sin(phase[i] - phase[j])
        return total

    times = 0.1 * np.arange(1, 6)
    solution = solve_ivp(rate, (0, 0.5), phase.numpy(), t_eval=times, method="DOP853", rtol=1e-11, atol=1e-12)
    wanted = torch.from_numpy(np.stack([np.stack([p, rate(0, p), own.numpy()], -1) for p in solution.y.T]))
    start = torch.stack([phase, torch.from_numpy(rate(0, phase.numpy())), own], -1)
    errors = []
    for num_substeps in (2, 4, 8):
        dynamics = make_pair_forces(torch.zeros_like, torch.sin, state_names=PHASE_STATE, num_substeps=num_substeps)
        path = rollout(dynamics, start, structure, 5)
        assert torch.equal(path[..., 2], own.expand(5, 3))
        errors.append(float((path - wanted).abs().max()))
    assert errors[-1] < 2e-3
    assert [a / b for a, b in itertools.pairwise(errors)] == pytest.approx([4.0] * 2, rel=0.2)


def test_oscillators_of_the_simulator(make_pair_forces):
    scenes = simulate("kuramoto", 5, num_frames=20, seed=0)
    dynamics = make_pair_forces(torch.zeros_like, torch.sin, state_names=scenes.state_names, num_substeps=20)
    predicted = teacher_forcing(dynamics, scenes.trajectory, scenes.edge_type)
    assert (predicted - scenes.trajectory[:, 1:]).abs().max() < 1e-3


# --- scales ----------------------------------------------------------------------------------------------------------
def fresh(num_types=2, state_names=("x", "y", "vx", "vy"), **options):
    return PairForces(num_types, state_names, generator=torch.Generator().manual_seed(0), **options).double()


@pytest.mark.parametrize(
    ("boundary", "wall"), [("estimate", 3.0), ("none", float("inf")), (2.5, 2.5), (4, 4.0)], ids=str
)
def test_fit_scaling(boundary, wall):
    scenes = simulate("charged", 20, num_entities=4, num_frames=30, frame_spacing=50, box=3.0, seed=0)
    dynamics = fresh(boundary=boundary)
    dynamics.fit_scaling(scenes)
    assert float(dynamics.time_step) == pytest.approx(0.05)
    assert dynamics.high.tolist() == pytest.approx([wall] * 2, abs=1e-3)
    assert dynamics.low.tolist() == pytest.approx([-wall] * 2, abs=1e-3)
    moved = (scenes.trajectory[:, 1:, :, :2] - scenes.trajectory[:, :-1, :, :2]).norm(dim=-1)
    assert float(dynamics.length) == pytest.approx(float(moved.median()), rel=1e-6)
    position = scenes.trajectory[..., :2]
    farthest = max(float((position[:, :, i] - position[:, :, j]).norm(dim=-1).max()) for i, j in PAIRS[4])
    assert float(dynamics.laws.high) == pytest.approx(math.log(farthest) + 0.05)
    assert float(dynamics.laws.strength) > 0


def test_fit_scaling_of_oscillators():
    scenes = simulate("kuramoto", 5, num_frames=10, seed=0)
    dynamics = fresh(state_names=PHASE_STATE)
    dynamics.fit_scaling(scenes)
    assert float(dynamics.laws.high) == pytest.approx(math.pi)
    pull = (scenes.trajectory[..., 1] - scenes.trajectory[..., 2]).abs()[:, 1:]
    assert float(dynamics.laws.strength) == pytest.approx(float(pull.median()))


def test_nothing_seen_at_both_ends():
    """Entity 0 is missing in every second frame: no transition has all entities at both ends."""
    mask = torch.ones(1, 6, 3, dtype=torch.bool)
    mask[:, 1::2, 0] = False
    scenes = Scenes.from_arrays(rand(1, 6, 3, 4), observation_mask=mask)
    assert scenes.transition_mask.any()
    with pytest.raises(ValueError, match="no transition is observed at both ends by all entities"):
        fresh().fit_scaling(scenes)


# --- integrated paths ------------------------------------------------------------------------------------------------
@pytest.fixture
def encounter(make_pair_forces):
    """Three charges, 0 and 1 opposite: they swing round each other within a frame; SciPy's path, true structure."""
    start = np.array([[-0.6, 0.16, 1.5, 0.0], [0.6, -0.16, -1.5, 0.0], [2.5, 2.0, 0.0, 0.0]])
    charge = [1, -1, 1]
    structure = [int(charge[i] == charge[j]) for i, j in PAIRS[3]]
    path = solved(start, structure, (attract, repel), 0.1 * np.arange(1, 11))
    scenes = Scenes.from_arrays(np.concatenate([start[None], path])[None], time_step=0.1)
    return make_pair_forces(attract, repel, low=0.02), scenes, torch.tensor([structure])


def residual(dynamics, features, structure):
    """Length of what the law leaves of each entity's change of velocity, ``[B, T - 1, N]``."""
    impulses = features.impulses(dynamics.laws)
    num_entities = impulses.shape[2]
    number = {pair: e for e, pair in enumerate(PAIRS[num_entities])}
    left = features.target.clone()
    for b, j in itertools.product(range(len(left)), range(num_entities)):
        for place, i in enumerate([i for i in range(num_entities) if i != j]):
            left[b, :, j] -= impulses[b, :, j, place, structure[b, number[i, j]]]
    return left.norm(dim=-1)


def test_integrated_paths_follow_a_close_encounter(encounter):
    dynamics, scenes, structure = encounter
    distance = (scenes.trajectory[0, :, 0, :2] - scenes.trajectory[0, :, 1, :2]).norm(dim=-1)
    assert distance.min() < 0.35
    cubic = dynamics.features(scenes)
    refined = refine(dynamics, cubic, scenes, [structure])
    assert len(refined.blocks) == 2
    stiff = refined.blocks[1].row
    assert 1 <= len(stiff) <= 5  # of ten frames
    before, after = residual(dynamics, cubic, structure), residual(dynamics, refined, structure)
    worst = int(before[0].amax(-1).argmax())
    assert worst in stiff[:, 1].tolist()
    assert float(before[0, worst].max() / after[0, worst].max()) > 30
    assert after.max() < 0.05
    quiet = [t for t in range(10) if t not in stiff[:, 1].tolist()]
    assert torch.equal(after[:, quiet], before[:, quiet])
    assert torch.equal(refined.target, cubic.target)
    assert torch.equal(refined.mask, cubic.mask)
    assert refined.context.isfinite().all()
    flag = refined.context[..., -2]
    assert {int(t) for t in flag[0, :, 0].nonzero()} == set(stiff[:, 1].tolist())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_reference_that_fits_is_chosen(encounter, place):
    dynamics, scenes, structure = encounter
    references = [torch.zeros_like(structure), torch.ones_like(structure)]  # all attract, all repel
    references.insert(place, structure)
    cubic = dynamics.features(scenes)
    right, chosen = refine(dynamics, cubic, scenes, [structure]), refine(dynamics, cubic, scenes, references)
    wrong = refine(dynamics, cubic, scenes, [1 - structure])
    worst = int(residual(dynamics, cubic, structure)[0].amax(-1).argmax())
    before, after = residual(dynamics, right, structure), residual(dynamics, chosen, structure)
    # the close pair attracts in two of the references; the third entity is too far to matter for the path
    assert float(after[0, worst].max()) < 3 * float(before[0, worst].max()) + 1e-4
    assert float(residual(dynamics, wrong, structure)[0, worst].max()) > 30 * float(after[0, worst].max())


def test_a_wrong_reference_is_seen_in_the_context(encounter):
    """Paths from both ends that do not meet: the error of the path is in the context, where noise can see it."""
    dynamics, scenes, structure = encounter
    cubic = dynamics.features(scenes)
    right, wrong = (refine(dynamics, cubic, scenes, [each]) for each in (structure, 1 - structure))
    stiff = right.blocks[1].row[:, 1]
    assert (wrong.context[0, stiff, :2, 3] > right.context[0, stiff, :2, 3]).any()


@pytest.mark.parametrize(("turns", "is_fast"), [(1.2, True), (0.3, False)])
def test_who_turns_whom_about_within_a_frame(make_pair_forces, turns, is_fast):
    """Two opposite charges on a circle: fast where they go round in less than a frame, and nobody else is."""
    speed = 2 * math.pi * turns / 0.1  # angular
    distance = (2 / speed**2) ** (1 / 3)
    angle = torch.tensor(speed * 0.1) * torch.arange(8)
    way = torch.stack([angle.cos(), angle.sin(), -speed * angle.sin(), speed * angle.cos()], -1) * distance / 2
    path = torch.stack([way, -way, torch.tensor([3.0, 3.0, 0.0, 0.0]).expand(8, 4)], 1)
    scenes = Scenes.from_arrays(path[None].numpy(), time_step=0.1)
    dynamics = make_pair_forces(attract, repel, low=0.3 * distance)
    structure = torch.tensor([[int(i + j != 1) for i, j in PAIRS[3]]])
    cubic = dynamics.features(scenes)
    assert cubic.fast_share is None
    share = refine(dynamics, cubic, scenes, [structure]).fast_share
    assert share.tolist() == [[[float(is_fast), 0.0], [float(is_fast), 0.0], [0.0, 0.0]]]


def test_nothing_to_refine(make_pair_forces, encounter):
    dynamics, scenes, structure = encounter
    cubic = dynamics.features(scenes)
    assert refine(dynamics, cubic, scenes, []) is cubic
    soft = make_pair_forces(nothing, spring)
    features = soft.features(scenes)
    assert refine(soft, features, scenes, [structure]) is features
    oscillators = simulate("kuramoto", 2, num_frames=4, num_entities=3, seed=0)
    phases = make_pair_forces(torch.sin, torch.cos, state_names=PHASE_STATE)
    features = phases.features(oscillators)
    assert refine(phases, features, oscillators, [oscillators.edge_type]) is features


def solved_with_wall(state, structure, forces, times, wall):
    """As :func:`solved`, with an elastic wall: the integration stops at it and goes on with the velocity turned."""
    num_entities = len(state)

    def rate(_, flat):
        position, velocity = flat.reshape(2, num_entities, 2)
        return np.concatenate([velocity, acceleration(position, structure, forces)]).ravel()

    def touches(n):
        def distance(_, flat):
            return wall - flat[2 * n]

        distance.terminal, distance.direction = True, -1
        return distance

    events = [touches(n) for n in range(num_entities)]
    flat, now, frames = np.concatenate([state[:, :2], state[:, 2:]]).ravel(), 0.0, []
    while len(frames) < len(times):
        until = times[len(frames)]
        found = solve_ivp(rate, (now, until), flat, events=events, method="DOP853", rtol=1e-11, atol=1e-12)
        flat, now = found.y[:, -1], found.t[-1]
        hit = [n for n in range(num_entities) if len(found.t_events[n])]
        for n in hit:
            flat[2 * n] = wall - 1e-13
            flat[2 * num_entities + 2 * n] *= -1
        if not hit:
            frames.append(np.concatenate(flat.reshape(2, num_entities, 2), -1))
    return np.stack(frames)


def test_an_encounter_at_a_wall(make_pair_forces):
    """A charge bounces while another pulls at it from nearby: the integrated path bounces too."""
    start = np.array([[0.65, 0.125, 2.9, 0.0], [0.65, -0.125, 0.1, 0.0], [-2.0, 0.0, 0.0, 0.0]])
    structure = torch.zeros(1, 6, dtype=torch.long)  # all attract
    path = solved_with_wall(start, structure[0].tolist(), (attract, repel), 0.1 * np.arange(1, 4), 1.0)
    scenes = Scenes.from_arrays(np.concatenate([start[None], path])[None], time_step=0.1)
    dynamics = make_pair_forces(attract, repel, low=0.02, boundary=8.0)
    dynamics.high[0] = 1.0
    cubic = dynamics.features(scenes)
    refined = refine(dynamics, cubic, scenes, [structure])
    assert refined.blocks[1].row.tolist() == [[0, 0], [0, 1], [0, 2]]
    gain = residual(dynamics, cubic, structure)[0] / residual(dynamics, refined, structure)[0]
    assert gain[0, :2].min() > 100  # no bounce
    # In frame 1 entity 0 bounces, in frame 2 entity 1. The impulse of what bounces itself changes its sign between two
    # nodes of the path, which limits the gain; its neighbour is where it should be.
    assert float(gain[1, 0]) > 2
    assert float(gain[1, 1]) > 8
    assert float(gain[2, 0]) > 8
    assert float(gain[2, 1]) > 2


# --- refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_types": 0}, "num_edge_types must be at least 1, found 0"),
        ({"num_types": 1, "no_interaction": True}, "at least 2 where type 0 means no interaction, found 1"),
        ({"num_entity_kinds": 2}, "pair forces treat all entities alike, found 2 kinds; use message passing"),
        ({"num_substeps": 0}, "num_substeps must be at least 1, found 0"),
        ({"boundary": "soft"}, "boundary must be 'estimate', 'none' or a distance, found 'soft'"),
        ({"boundary": 0.0}, "boundary must be a positive distance, found 0.0"),
        ({"boundary": -5.0}, "boundary must be a positive distance, found -5.0"),
        ({"boundary": float("nan")}, "boundary must be a positive distance, found nan"),
        ({"state_names": ("x", "y")}, "pair forces need positions and their velocities, .* found state x, y"),
        ({"state_names": ("x", "vx", "mass")}, "found state x, vx, mass"),
        ({"state_names": ("phi", "omega")}, "found state phi, omega"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        fresh(**options)
