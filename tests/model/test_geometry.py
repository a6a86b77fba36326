"""The geometry of a frame against numbers computed by hand and loops."""

import math

import pytest
import torch

from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.model.geometry import NUM_FEATURES, Geometry
from pyro_nri.model.noise import make_noise
from pyro_nri.model.priors import IndependentPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

STATE = ("x", "y", "vx", "vy")


def make(*, length=0.1, time_step=0.5, low=(-5.0, -5.0), high=(5.0, 5.0), names=STATE):
    made = Geometry(names).double()
    made.length.fill_(length)
    made.time_step.fill_(time_step)
    made.low.copy_(torch.tensor(low))
    made.high.copy_(torch.tensor(high))
    return made


def everything(num_entities):
    return torch.ones(num_entities * (num_entities - 1), dtype=torch.bool)


def by_loops(geometry, state, present):
    """Features of each present entity, in plain numbers."""
    length, dt = float(geometry.length), float(geometry.time_step)
    rows = {}
    for j in present:
        now, nearest = [], []
        for i in present:
            if i == j:
                continue
            apart = [float(state[j][s] - state[i][s]) for s in range(2)]
            closing = [float(state[j][2 + s] - state[i][2 + s]) for s in range(2)]
            ways = []  # straight motion within the frame, tried at many times
            for share in range(2001):
                ways.append(math.hypot(*(a + dt * share / 2000 * c for a, c in zip(apart, closing, strict=True))))
            now.append((ways[0] + 1e-3 * length) / length)
            nearest.append((min(ways) + 1e-3 * length) / length)
        margin = min(
            min(float(state[j][s]) - float(geometry.low[s]), float(geometry.high[s]) - float(state[j][s]))
            for s in range(2)
        )
        speed = math.hypot(float(state[j][2]), float(state[j][3])) * dt / length
        closest = math.log(min(nearest))
        rows[j] = [
            math.log(min(now)),
            closest,
            closest**2,
            math.log(sum(d**-2 for d in nearest)),
            math.log(min(max(margin / length, 0.0), 20.0) + 0.1),
            math.log(speed + 0.1),
        ]
    return rows


def test_two_entities_by_hand():
    """4 apart, closing at 6 + 2 in a frame of 0.5: they pass each other at a distance of 1, after 0.5 time units."""
    geometry = make(length=2.0)
    state = torch.tensor([[0.0, 0.0, 6.0, 0.0], [4.0, 1.0, -2.0, 0.0]]).double()
    found = geometry(state, everything(2))
    assert found.shape == (2, NUM_FEATURES)
    now, passing = math.log((17**0.5 + 0.002) / 2), math.log((1 + 0.002) / 2)
    shared = [now, passing, passing**2, -2 * passing]
    # distance to the edge 5 and 1; way of the frame 3 and 1
    assert found[0].tolist() == pytest.approx([*shared, math.log(5 / 2 + 0.1), math.log(3 / 2 + 0.1)])
    assert found[1].tolist() == pytest.approx([*shared, math.log(1 / 2 + 0.1), math.log(1 / 2 + 0.1)])


@pytest.mark.parametrize(
    ("margin", "wanted"), [(-3.0, 0.1), (0.0, 0.1), (1.0, 10.1), (1.9, 19.1), (2.5, 20.1), (4.0, 20.1)]
)
def test_far_from_the_edge_it_does_not_matter_how_far(margin, wanted):
    """In ways of a frame of 0.1: from 0, at the edge and beyond it, to 20."""
    state = torch.tensor([[5.0 - margin, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).double()
    assert make(length=0.1)(state, everything(2))[0, 4].exp().item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(("closing", "passing"), [(2.0, 3.0), (-2.0, 4.0), (0.0, 4.0), (8.0, 0.0)])
def test_closest_approach_lies_within_the_frame(closing, passing):
    """4 apart; they come closer by half of ``closing``, or they part and are closest now."""
    geometry = make(length=2.0)
    state = torch.tensor([[0.0, 0.0, closing, 0.0], [4.0, 0.0, 0.0, 0.0]]).double()
    found = geometry(state, everything(2))
    assert found[0, 1].exp() * 2 - 0.002 == pytest.approx(passing, abs=1e-9)
    assert found[0, 0].exp() * 2 - 0.002 == pytest.approx(4.0)


def test_many_entities_by_loops():
    geometry = make(length=0.3, low=(-2.0, -1.0), high=(1.5, 2.5))
    state = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = geometry(state, everything(4))
    assert found.shape == (3, 2, 4, NUM_FEATURES)
    for b in range(3):
        for t in range(2):
            for j, row in by_loops(geometry, state[b, t], range(4)).items():
                assert found[b, t, j].tolist() == pytest.approx(row, abs=1e-3)


def test_padding_is_not_felt():
    geometry = make(length=0.3)
    state = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    state[3] = 0
    mask = torch.tensor([3 not in (i, j) for i in range(4) for j in range(4) if i != j])
    found = geometry(state, mask)
    alone = geometry(state[:3], everything(3))
    torch.testing.assert_close(found[:3], alone, rtol=0, atol=1e-5)  # a padded sender is a thousand lengths away
    assert found.isfinite().all()


def test_extremes_are_finite():
    """At one place, at rest, outside the region."""
    state = torch.zeros(3, 4, dtype=torch.double)
    state[2] = torch.tensor([100.0, 0.0, 1e4, 0.0])
    assert make()(state, everything(3)).isfinite().all()
    assert make().float()(state.float(), everything(3)).isfinite().all()


def test_order_and_number_of_axes():
    state = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    low, high = (-2.0, -1.0), (1.5, 2.5)
    usual = make(low=low, high=high)(state, everything(3))
    names = ("vy", "x", "vx", "y")
    mixed = make(low=low, high=high, names=names)(state[..., [STATE.index(n) for n in names]], everything(3))
    torch.testing.assert_close(mixed, usual)
    one = make(low=(-2.0,), high=(2.0,), names=("x", "vx"))
    assert one(state[..., :2], everything(3)).shape == (5, 3, NUM_FEATURES)


def test_fit_scaling():
    scenes = simulate("springs", 5, num_entities=3, num_frames=10, seed=0)
    seen = torch.rand(5, 10, 3, generator=torch.Generator().manual_seed(0)) > 0.2
    outlier = scenes.trajectory.clone()
    outlier[~seen] = 1e6  # what was not seen does not count
    geometry = Geometry(STATE).double()
    geometry.fit_scaling(Scenes.from_arrays(outlier, observation_mask=seen, time_step=scenes.time_step))
    states = scenes.trajectory[seen]
    assert geometry.low.tolist() == pytest.approx(states[:, :2].amin(0).tolist())
    assert geometry.high.tolist() == pytest.approx(states[:, :2].amax(0).tolist())
    way = sorted(math.hypot(*velocity) * 0.1 for velocity in states[:, 2:].tolist())
    assert float(geometry.length) == pytest.approx(way[(len(way) - 1) // 2])
    assert float(geometry.time_step) == pytest.approx(0.1)


def test_nothing_moves():
    geometry = Geometry(STATE).double()
    geometry.fit_scaling(Scenes.from_arrays(torch.zeros(1, 3, 2, 4)))
    assert float(geometry.length) > 0
    assert geometry(torch.zeros(2, 4).double(), everything(2)).isfinite().all()


@pytest.mark.parametrize(
    ("names", "applies"), [(STATE, True), (("x", "vx", "mass"), True), (("s0", "s1"), False), (("vx", "vy"), False)]
)
def test_states_without_velocities_have_no_geometry(names, applies):
    assert Geometry(names).applies is applies
    dynamics = MessagePassing(2, len(names), generator=torch.Generator().manual_seed(0))

    def model():
        noise = make_noise("geometric", len(names), NUM_FEATURES)
        return SceneModel(dynamics, noise, IndependentPrior(2), state_names=names)

    if applies:
        model()
    else:
        with pytest.raises(ValueError, match=f"geometric noise needs positions and their velocities.* {names[0]}"):
            model()
