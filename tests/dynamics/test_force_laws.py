"""Force laws against SciPy's B-splines, finite differences and closed forms."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from pyro_nri.dynamics.force_laws import NUM_POINTS, NUM_SPLINES, ForceLaws

LOW, HIGH = math.log(0.2), math.log(8.0)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def numbers(*values):
    return torch.tensor(values, dtype=torch.double)


def make_laws(num_types=2, *, circular=False, seed=0, **options):
    made = ForceLaws(num_types, circular=circular, generator=torch.Generator().manual_seed(seed), **options).double()
    made.low.fill_(-math.pi if circular else LOW)
    made.high.fill_(math.pi if circular else HIGH)
    return made


@pytest.fixture(params=[False, True], ids=["distances", "angles"])
def laws(request):
    return make_laws(circular=request.param)


def coordinates(laws, *shape, seed=1, beyond=0.0):
    """Distances inside the range (and beyond it by some share of it), or angles up to three turns off."""
    uniform = torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    if laws.circular:
        return (uniform - 0.5) * 6 * math.pi
    return ((LOW - beyond) + (HIGH - LOW + 2 * beyond) * uniform).exp()


def scipy_curve(laws, coefficient):
    """The spline with these coefficients by SciPy: uniform knots, the range cut into equal intervals."""
    count = NUM_SPLINES if laws.circular else NUM_SPLINES - 3
    low, high = float(laws.low), float(laws.high)
    knots = low + (high - low) / count * np.arange(-3, count + 4)
    values = coefficient.numpy()
    values = np.concatenate([values, values[:3]]) if laws.circular else values
    return BSpline(knots, values, 3, extrapolate=False)


def place(laws, coordinate):
    """Where a coordinate lies on the axis of the splines."""
    if not laws.circular:
        return np.log(coordinate.numpy())
    return np.mod(coordinate.numpy() + math.pi, 2 * math.pi) - math.pi


# --- splines ---------------------------------------------------------------------------------------------------------
def test_basis_is_a_partition_of_one(laws):
    coordinate = torch.cat([coordinates(laws, 500, beyond=2.0), laws.points()])
    index, weight = laws.basis(coordinate)
    assert index.shape == weight.shape == (500 + NUM_POINTS, 4)
    assert (index >= 0).all()
    assert (index < NUM_SPLINES).all()
    assert (weight >= -1e-15).all()
    torch.testing.assert_close(weight.sum(-1), torch.ones_like(coordinate), rtol=1e-12, atol=1e-12)
    assert (index.sort(-1).values.diff(dim=-1) > 0).all()  # four different splines


def test_basis_is_scipys(laws):
    coefficient, coordinate = rand(NUM_SPLINES), coordinates(laws, 300)
    index, weight = laws.basis(coordinate)
    wanted = scipy_curve(laws, coefficient)(place(laws, coordinate))
    assert (coefficient[index] * weight).sum(-1).tolist() == pytest.approx(wanted, abs=1e-9)


def test_beyond_the_range_the_spline_is_constant():
    laws, coefficient = make_laws(), rand(NUM_SPLINES)
    index, weight = laws.basis(numbers(1e-9, 0.1, math.exp(LOW), math.exp(HIGH), 30.0, 1e9))
    found = (coefficient[index] * weight).sum(-1)
    curve = scipy_curve(laws, coefficient)
    ends = [float(curve(LOW))] * 3 + [float(curve(HIGH - 1e-12))] * 3
    assert found.tolist() == pytest.approx(ends, abs=1e-9)


def test_fitted_table_is_the_curve_at_the_points(laws):
    coefficient = rand(2, NUM_SPLINES)
    assert not laws.is_fitted
    laws.set_splines(coefficient)
    assert laws.is_fitted
    assert torch.equal(laws.splines, coefficient)
    inside = laws.points()[:-1]  # SciPy's curve ends before the last point
    for k in range(2):
        wanted = scipy_curve(laws, coefficient[k])(place(laws, inside))
        assert laws.table()[k, :-1].tolist() == pytest.approx(wanted, abs=1e-9)


def test_an_angle_and_its_turns(plant):
    laws = make_laws(circular=True)
    laws.set_splines(rand(2, NUM_SPLINES))
    angle = coordinates(laws, 200)
    torch.testing.assert_close(laws(angle), laws(angle + 4 * math.pi), rtol=0, atol=1e-9)
    torch.testing.assert_close(laws(numbers(math.pi)), laws(numbers(-math.pi)), rtol=0, atol=1e-6)
    plant(laws, torch.sin, lambda angle: 0.3 * (2 * angle).cos())
    wanted = torch.stack([angle.sin(), 0.3 * (2 * angle).cos()], -1)
    torch.testing.assert_close(
        laws(angle), wanted, rtol=0, atol=2e-5
    )  # h² / 8 between points that are 2 pi / 800 apart


def test_planted_laws_are_reproduced(plant):
    """Within the range: cubic splines of r f(r) over log r, then straight lines between 801 points."""
    laws = make_laws(3)
    plant(laws, lambda r: -0.1 * r, lambda r: r**-2, lambda r: (-r).exp(), low=0.2, high=8.0)
    r = coordinates(laws, 500)
    wanted = torch.stack([-0.1 * r, r**-2, (-r).exp()], -1)
    torch.testing.assert_close(laws(r)[:, :2], wanted[:, :2], rtol=3e-5, atol=0)
    torch.testing.assert_close(laws(r)[:, 2], wanted[:, 2], rtol=1e-2, atol=1e-5)


# --- the table -------------------------------------------------------------------------------------------------------
def test_points_span_the_range(laws):
    points = laws.points()
    assert points.shape == (NUM_POINTS,)
    ends = [-math.pi, math.pi] if laws.circular else [0.2, 8.0]
    assert [float(points[0]), float(points[-1])] == pytest.approx(ends)
    spacing = (points if laws.circular else points.log()).diff()
    torch.testing.assert_close(spacing, spacing[:1].expand_as(spacing))


def test_forward_bends_with_the_curve(laws):
    """At the points the table itself, between them a smooth law to 1e-7: straight lines miss by 1e-5."""
    points = laws.points()
    curve = (lambda x: 0.3 * x.sin() + x.cos()) if laws.circular else (lambda x: -0.1 * x**2 + 1 / x)
    laws.fitted_table.copy_(torch.stack([curve(points), -2 * curve(points)]))
    laws.is_fitted.fill_(True)
    table = laws.table().detach()
    size = torch.ones_like(points) if laws.circular else points
    at_points = laws(points) * size[:, None]
    torch.testing.assert_close(at_points.T, table, rtol=1e-9, atol=1e-9)
    coordinate = coordinates(laws, 7, 30)
    found = laws(coordinate)
    wanted = curve(coordinate) if laws.circular else curve(coordinate) / coordinate
    torch.testing.assert_close(found, torch.stack([wanted, -2 * wanted], -1), rtol=1e-7, atol=1e-7)
    axis = place(laws, points)
    axis[-1] = -axis[0] if laws.circular else axis[-1]
    straight = np.interp(place(laws, coordinate), axis, table[0].numpy())
    straight = straight if laws.circular else straight / coordinate.numpy()
    assert np.abs(straight - wanted.numpy()).max() > 1e-6
    # a table that was made before gives the same
    assert torch.equal(laws(coordinate, table), found)


def test_extrapolation():
    """Below the range r f(r) stays; above it the last interval goes on, a straight line over log r."""
    laws = make_laws()
    laws.set_splines(rand(2, NUM_SPLINES))
    table = laws.table()
    below = numbers(1e-6, 0.01, 0.19)
    torch.testing.assert_close(laws(below), table[:, 0] / below[:, None])
    above = numbers(8.5, 12.0, 100.0)
    width = (HIGH - LOW) / (NUM_POINTS - 1)
    slope = (table[:, -1] - table[:, -2]) / width
    wanted = (table[:, -1] + slope * (above.log() - HIGH)[:, None]) / above[:, None]
    torch.testing.assert_close(laws(above), wanted, rtol=1e-9, atol=1e-9)


def test_select_is_forward_at_the_chosen_type(laws):
    coordinate = coordinates(laws, 5, 40, beyond=1.0)
    chosen = torch.randint(2, (5, 40), generator=torch.Generator().manual_seed(2))
    found, every = laws.select(coordinate, chosen, laws.table()).detach(), laws(coordinate).detach()
    for a in range(5):
        for b in range(40):
            assert float(found[a, b]) == pytest.approx(float(every[a, b, chosen[a, b]]), rel=1e-12)


def test_several_sets_of_curves_stand_one_after_the_other(laws):
    sets = rand(2, laws.num_edge_types, NUM_SPLINES)
    before = laws.state_dict()
    both = laws.several(sets)
    r = laws.points()[::50]
    for number, coefficient in enumerate(sets):
        alone = copy.deepcopy(laws)
        alone.set_splines(coefficient)
        for k in range(laws.num_edge_types):
            types = torch.full(r.shape, k)
            found = both.select(r, types + number * laws.num_edge_types, both.table())
            torch.testing.assert_close(found, alone.select(r, types, alone.table()))
    assert all(torch.equal(value, before[name]) for name, value in laws.state_dict().items())


@pytest.mark.parametrize("is_fitted", [False, True])
def test_no_interaction_is_no_force(laws, is_fitted):
    silent = make_laws(3, circular=laws.circular, no_interaction=True)
    if is_fitted:
        silent.set_splines(torch.cat([torch.zeros(1, NUM_SPLINES), rand(2, NUM_SPLINES)]))
    coordinate = coordinates(laws, 50, beyond=1.0)
    force = silent(coordinate)
    assert force.shape == (50, 3)
    assert not force[:, 0].any()
    assert force[:, 1:].abs().min() > 0
    assert not silent.select(coordinate, torch.zeros(50, dtype=torch.long), silent.table()).any()


@pytest.mark.parametrize("circular", [False, True])
def test_types_that_exert_a_force(circular):
    """Beside a law of size 1, one of 0.01 is a law, and one of 1e-4 is an error around 0."""
    laws = make_laws(3, circular=circular)
    size = torch.ones(NUM_SPLINES, dtype=torch.double)
    laws.set_splines(torch.stack([1e-4 * size, -size, 0.01 * size]))
    assert laws.exerting().tolist() == [False, True, True]
    laws.set_splines(torch.stack([1e-4 * size, -1e-4 * size, 0 * size]))  # nothing stronger beside them
    assert laws.exerting().tolist() == [True, True, False]
    laws.set_splines(0 * torch.stack([size, size, size]))
    assert not laws.exerting().any()


def test_a_weak_law_beside_one_that_is_huge_nearby_is_a_law(plant):
    """At the distances that occur a spring is as strong as a charge, and next to it nothing is."""
    laws = make_laws(4)
    plant(laws, lambda r: 1e-6 * r, lambda r: 1 / r**2, lambda r: -0.03 * r, lambda r: 1e-6 / r**2, low=0.015, high=13)
    assert laws.exerting().tolist() == [False, True, True, False]
    plant(laws, lambda r: 1e-7 * r, lambda r: -0.4 * r, lambda r: 0.1 * (r < 0.1), lambda r: 0 * r, low=0.015, high=13)
    assert laws.exerting().tolist() == [False, True, True, False]


def test_gradients_of_the_interpolated_table(laws):
    coordinate = coordinates(laws, 6).requires_grad_()
    table = laws.table().detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda c: laws(c, table.detach()), (coordinate,))
    chosen = torch.tensor([0, 1, 1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda c: laws.select(c, chosen, table.detach()), (coordinate,))
    # towards the table only the four neighbours of each coordinate have one
    laws(coordinate.detach(), table)[..., 0].sum().backward()
    assert not table.grad[1].any()
    assert 6 <= int((table.grad[0] != 0).sum()) <= 24
    scale = torch.ones(6).double() if laws.circular else 1 / coordinate.detach()
    assert float(table.grad.sum()) == pytest.approx(float(scale.sum()), rel=1e-9)


def test_gradients_reach_the_networks_until_splines_are_set(laws):
    laws(coordinates(laws, 20)).square().sum().backward()
    for name, parameter in laws.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    laws.set_splines(rand(2, NUM_SPLINES))
    assert not laws(coordinates(laws, 20)).requires_grad


def test_strength_scales_the_networks(laws):
    before = laws(coordinates(laws, 20)).detach()
    laws.strength.fill_(3.0)
    torch.testing.assert_close(laws(coordinates(laws, 20)).detach(), 3 * before)


def test_splines_are_part_of_the_state(laws):
    laws.set_splines(rand(2, NUM_SPLINES))
    other = make_laws(circular=laws.circular, seed=1)
    other.load_state_dict(laws.state_dict())
    assert torch.equal(other(coordinates(laws, 50)), laws(coordinates(laws, 50)))


# --- slope and range -------------------------------------------------------------------------------------------------
def test_slope_is_the_steepest_law_by_finite_differences(laws, plant):
    if laws.circular:
        plant(laws, torch.sin, lambda angle: 2 * (2 * angle).sin())
    else:
        plant(laws, lambda r: -0.1 * r, lambda r: r**-2, low=0.2, high=8.0)
    coordinate = coordinates(laws, 100)
    step = 1e-3 * (torch.ones_like(coordinate) if laws.circular else coordinate)
    steepness = (laws(coordinate + step) - laws(coordinate - step)).abs() / (2 * step[:, None])
    found = laws.slope(coordinate)
    assert found.shape == (100,)
    # one number for each interval of the table: the curve bends by its width from one to the next
    torch.testing.assert_close(found, steepness.amax(-1), rtol=0.03, atol=0.04)
    if not laws.circular:
        torch.testing.assert_close(found, torch.maximum(torch.tensor(0.1), 2 * coordinate**-3), rtol=0.02, atol=0)


def test_range_comes_from_the_distances():
    laws = make_laws()
    distance = torch.linspace(0.5, 4.0, 10_000).double()
    distance[[17, 4000]] = numbers(1e-5, 0.1)  # the closest of all do not stretch the range
    order = torch.randperm(10_050, generator=torch.Generator().manual_seed(0))
    distance = torch.cat([distance, torch.zeros(50)])[order]
    laws.fit_scaling(distance.reshape(50, 201), 2.5)
    assert math.log(0.5) - 0.5 < float(laws.low) < math.log(0.51) - 0.45
    assert float(laws.high) == pytest.approx(math.log(4.0) + 0.05)
    assert float(laws.strength) == 2.5


def test_range_of_angles_stays():
    laws = make_laws(circular=True)
    laws.fit_scaling(torch.zeros(3), 2.0)
    assert [float(laws.low), float(laws.high), float(laws.strength)] == pytest.approx([-math.pi, math.pi, 2.0])


def test_everything_at_one_place():
    with pytest.raises(ValueError, match="no distance occurs"):
        make_laws().fit_scaling(torch.zeros(3, 4), 1.0)
