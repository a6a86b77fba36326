"""Laws beyond what data resolve, against powers of the distance."""

import math

import pytest
import torch

from pyro_nri.dynamics.force_laws import NUM_SPLINES, ForceLaws
from pyro_nri.learning.law_continuation import continue_laws, resolved_from

PLACE = math.log(0.02) + (torch.arange(NUM_SPLINES).double() - 1) * (math.log(200) / (NUM_SPLINES - 3))
QUIET = torch.full((2, NUM_SPLINES), 1e-6, dtype=torch.double)


@pytest.fixture
def laws():
    made = ForceLaws(2, circular=False, generator=torch.Generator().manual_seed(0)).double()
    made.low.fill_(math.log(0.02))
    made.high.fill_(math.log(4))
    return made


def power(exponent, strength=1.0):
    """Coefficients of ``r f(r) = strength * r ** exponent``: a geometric series."""
    return strength * (exponent * PLACE).exp()


@pytest.mark.parametrize("exponent", [-6.0, -1.0, 0.5, 2.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_power_goes_on(laws, exponent, sign):
    """Below 0.3 everything is garbage with a large error; what comes out is the power, and its force."""
    whole = torch.stack([power(exponent, sign), power(2.0, 1e-3)])
    fitted, error = whole.clone(), 1e-6 * whole.abs()
    lost = math.log(0.3) > PLACE
    fitted[0, lost] = torch.randn(int(lost.sum()), generator=torch.Generator().manual_seed(1)).double()
    error[0, lost] = 10.0
    found = continue_laws(laws, fitted, error.square().diag_embed(), time_step=1e-3)
    torch.testing.assert_close(found, whole, rtol=1e-9, atol=0)
    laws.set_splines(found)
    r = torch.tensor([0.025, 0.05, 0.2], dtype=torch.double)
    knot = 1 / (
        2 / 3 + math.cosh(exponent * float(PLACE[1] - PLACE[0])) / 3
    )  # of a spline, and the curve's value there
    wanted = sign * r ** (exponent - 1) / knot
    torch.testing.assert_close(laws(r)[:, 0], wanted, rtol=2e-3, atol=0)


def test_turns_within_a_frame_are_not_resolved(laws):
    """Charges that pull with 1 / r² turn half around in a frame of 0.1 below r = (2 * 0.1² / pi²) ** (1 / 3)."""
    whole = torch.stack([power(-1.0, -1.0), power(2.0, 1e-3)])
    edge = (2 * 0.1**2 / math.pi**2) ** (1 / 3)
    distance = PLACE.exp()
    assert resolved_from(distance, whole / distance, 0.1) == pytest.approx(edge, rel=0.1)
    assert resolved_from(distance, whole / distance, 1e-4) == 0
    fitted = whole.clone()
    fitted[0, math.log(edge) > PLACE] *= 1.5  # surely wrong
    found = continue_laws(laws, fitted, QUIET.square().diag_embed(), time_step=0.1)
    torch.testing.assert_close(found[0], whole[0], rtol=1e-6, atol=0)


def test_what_is_resolved_stays(laws):
    whole = torch.stack([power(-1.0), power(2.0, -0.1)])
    assert torch.equal(continue_laws(laws, whole, (1e-3 * whole).square().diag_embed(), time_step=1e-4), whole)


def test_laws_without_a_sign_stay(laws):
    """No force: the coefficients scatter around 0, and a guess would be noise with a power."""
    random = torch.Generator().manual_seed(0)
    whole = torch.stack([1e-5 * torch.randn(NUM_SPLINES, generator=random).double(), power(2.0, -0.1)])
    error = torch.full_like(whole, 1e-5)
    found = continue_laws(laws, whole, error.square().diag_embed(), time_step=0.1)
    assert torch.equal(found[0], whole[0])
    laws = ForceLaws(2, circular=False, no_interaction=True, generator=random).double()
    laws.low.fill_(math.log(0.02))
    laws.high.fill_(math.log(4))
    whole[0] = 0
    assert torch.equal(continue_laws(laws, whole, error.square().diag_embed(), time_step=0.1)[0], whole[0])


def test_every_draw_goes_on_by_its_own_power(laws):
    exponents = torch.linspace(-1.1, -0.9, 7)
    draws = torch.stack([torch.stack([power(float(e)), power(2.0, -0.1)]) for e in exponents])
    fitted, error = draws.clone(), 1e-6 * draws[3].abs()
    fitted[:, 0, :20] = 7.0
    error[0, :20] = 100.0
    torch.testing.assert_close(
        continue_laws(laws, fitted, error.square().diag_embed(), time_step=1e-4), draws, rtol=1e-9, atol=0
    )


def test_what_goes_on_is_not_tilted_by_the_last_coefficients(laws):
    """Just above the place where a law is lost it is known to a few per cent: the line of all others counts more."""
    whole = torch.stack([power(-1.0), power(2.0, -0.1)])
    random, lost = torch.Generator().manual_seed(2), 24
    relative = 1e-5 * torch.exp(0.9 * (lost + 9 - torch.arange(NUM_SPLINES)).clamp(min=0).double())  # 3e-2 at the end
    relative[:lost] = 5.0
    step = torch.eye(NUM_SPLINES, dtype=torch.double) - 0.9 * torch.diag(torch.ones(NUM_SPLINES - 1), 1).double()
    root = torch.linalg.inv(step) * relative  # neighbours err in opposite directions
    covariance = (
        torch.stack([root @ root.T, 1e-12 * torch.eye(NUM_SPLINES).double()]) * whole[:, :, None] * whole[:, None]
    )
    errors = []
    for _ in range(20):
        fitted = whole.clone()
        fitted[0] *= 1 + root @ torch.randn(NUM_SPLINES, generator=random).double()
        found = continue_laws(laws, fitted, covariance, time_step=1e-4)
        assert torch.equal(found[1], whole[1])
        errors.append(torch.stack([(each[0, :lost] / whole[0, :lost] - 1).abs().max() for each in (found, fitted)]))
    errors = torch.stack(errors)
    kept = (1 + relative[lost]).log()  # what the first resolved coefficient alone would add to all below it
    assert errors[:, 0].median() < 0.1 * kept
    assert errors[:, 1].median() > 1


def test_a_law_that_bends_goes_on_along_its_bend(laws):
    """Coulomb's force behind a screen: what goes on has the slope of the lower end, not that of the whole window."""
    r = PLACE.exp()
    whole = torch.stack([-(-r / 0.5).exp() / r, power(2.0, 0.1)])
    fitted, error = whole.clone(), 1e-5 * whole.abs()
    lost = r < 0.2
    fitted[0, lost], error[0, lost] = 3.0, 100.0
    found = continue_laws(laws, fitted, error.square().diag_embed(), time_step=1e-4)
    near = lost & (r > 0.1)
    # Half the change of slope, r / 0.5, over log 2, and not the window's mean slope of -2, which would be off by 0.5.
    torch.testing.assert_close(found[0, near], whole[0, near], rtol=0.12, atol=0)
    torch.testing.assert_close(found[0, ~lost], whole[0, ~lost], rtol=1e-4, atol=0)


def test_a_law_that_changes_its_sign_stays(laws):
    """Small coefficients beside a zero are as well known as their neighbours."""
    r = PLACE.exp()
    whole = torch.stack([-0.5 * r * (r - 1.0), power(2.0, -0.1)])
    for shift in torch.linspace(-1, 1, 9).double():
        fitted = whole.clone()
        fitted[0] = -0.5 * r * (r - 1.0 - 0.02 * shift)
        error = torch.full_like(whole, 1e-3)
        found = continue_laws(laws, fitted, error.square().diag_embed(), time_step=1e-4)
        seen = r > 0.3
        torch.testing.assert_close(found[:, seen], fitted[:, seen], rtol=0, atol=2e-3)


def test_a_covariance_that_is_none_leaves_the_law(laws):
    whole = torch.stack([power(-1.0), power(2.0, -0.1)])
    covariance = (1e-6 * whole).square().diag_embed()
    covariance[0, :20, :20] = 100.0 * torch.eye(20)
    covariance[0, 30, 31] = covariance[0, 31, 30] = 1.0  # larger than both variances
    assert torch.equal(continue_laws(laws, whole, covariance, time_step=1e-4)[0], whole[0])
    covariance[0, 30, 30] = -1e-14  # rounding
    assert continue_laws(laws, whole, covariance, time_step=1e-4).isfinite().all()
