"""Population Monte Carlo: importance sampling from mixtures that are refitted to their own weighted draws, then frozen.

For posteriors that are curved so strongly that bumps at modes miss most of them: some directions of the latents are
known a thousand times better than others and follow them along a bent sheet. Those *stiff* directions are drawn from
Laplace's approximation given the *loose* ones, found anew for every draw, so that a mixture has to cover the loose ones
only. All latents have standard normal priors, so directions may be turned at will. The sheet must not fold back: given
the loose directions there may be one place for the stiff ones; a second one would be missed, as would a distant mode.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.gauss_newton import LeastSquares, Mode
from pyro_nri.inference.laplace import FREEDOM, Integral, LaplaceMixture, integrate, mixture_of
from pyro_nri.inference.streams import Stream, keys

#: Directions known better than this, in standard deviations of the prior, are stiff.
STIFF = 0.1
#: The least share of effective draws to which a mixture is fitted: weights are flattened until they have it.
LEAST_EFFECTIVE = 0.1
#: Spread of stiff directions in standard deviations of Laplace's approximation: a little wider.
WIDER = 1.15
#: Modes whose log integral is this far below the highest are left out; the weights of the others are flattened by the
#: second number, for integrals after Laplace are rough.
NEAR_BEST, FLATTER = 20.0, 5.0
#: Steps to conditional modes: with one slope for all, then at most so many with slopes of their own, until a step is
#: this short in standard deviations.
SHARED_STEPS, OWN_STEPS, SHORT = 3, 6, 0.1
#: Rows to evaluate at a time.
ROWS = 4000


class Population(NamedTuple):
    """Weighted draws.

    Attributes:
        value: latents ``[S, B, P]``.
        loose: loose directions ``[S, B, L]``.
        log_target: log joint density minus the log density of the stiff directions given the loose, ``[S, B]``.
        log_weight: that minus the log density of the mixture, ``[S, B]``.
    """

    value: Tensor
    loose: Tensor
    log_target: Tensor
    log_weight: Tensor

    @property
    def integral(self) -> Integral:
        """Log marginal density, its error and the effective number of draws, ``[B]`` each."""
        return integrate(self.log_weight)

    def resample(self, uniform: Tensor, number: int) -> Tensor:
        """Draws of equal weight ``[number, B, P]``, systematic from one uniform for each problem, ``[B]``."""
        place = (torch.arange(number, device=uniform.device) + uniform[:, None]) / number  # [B, number]
        cumulative = self.log_weight.softmax(0).cumsum(0).T.contiguous()
        index = torch.searchsorted(cumulative, place).clamp(max=len(self.value) - 1).T  # [number, B]
        return self.value.gather(0, index[..., None].expand(*index.shape, self.value.shape[-1]))


@dataclass(frozen=True)
class Directions:
    """Directions of the latents of B problems, stiff ones first, and how the stiff follow the loose.

    Attributes:
        problem: log density of rows ``[S * B]`` of P latents, problems running fastest.
        reference: a mode, in the turned directions, ``[B, P]``.
        turn: the directions as columns, orthonormal, ``[B, P, P]``.
        slope: derivatives of the residuals along the stiff directions at the reference, ``[B, M, F]``.
        precision: of the turned latents at the reference, ``[B, P, P]``.
    """

    problem: LeastSquares
    reference: Tensor
    turn: Tensor
    slope: Tensor
    precision: Tensor

    @property
    def num_stiff(self) -> int:
        """F."""
        return self.slope.shape[-1]

    def latents(self, turned: Tensor) -> Tensor:
        """Latents from turned ones, ``[*batch, B, P]`` both."""
        return torch.einsum("bpq,...bq->...bp", self.turn, turned)

    def turned(self, latents: Tensor) -> Tensor:
        """Turned latents, ``[*batch, B, P]`` both."""
        return torch.einsum("bpq,...bp->...bq", self.turn, latents)

    def follow(self, loose: Tensor) -> tuple[Tensor, Tensor]:
        """Laplace's approximation of the stiff directions given the loose.

        A linear guess from the reference, some steps with the slope of the reference, then steps with slopes of their
        own until they are short. What happens to a draw does not depend on the others.

        Args:
            loose: ``[S, B, P - F]``.

        Returns:
            Modes ``[S, B, F]`` and lower Cholesky factors of their precisions ``[S, B, F, F]``.
        """
        number, stiff = self.num_stiff, self.precision[:, : self.num_stiff, : self.num_stiff]
        gain = torch.linalg.solve(stiff, self.precision[:, :number, number:])
        moved = torch.einsum("bfl,sbl->sbf", gain, loose - self.reference[:, number:])
        value = torch.cat([self.reference[:, :number] - moved, loose], -1)
        root = torch.linalg.cholesky(stiff)
        for _ in range(SHARED_STEPS):
            uphill = self._uphill(value, self.slope)[1]
            change = torch.cholesky_solve(uphill.permute(1, 2, 0), root).permute(2, 0, 1)
            value = torch.cat([value[..., :number] + change, loose], -1)
        roots = value.new_zeros(*value.shape[:2], number, number)
        far = torch.ones_like(value[..., 0], dtype=torch.bool)  # [S, B]
        for _ in range(OWN_STEPS):
            rows = far.any(-1).nonzero().squeeze(-1)
            if not len(rows):
                break
            change, own_root = self._own_step(value[rows])
            moving = far[rows]
            value[rows, :, :number] += torch.where(moving[..., None], change, 0.0)
            roots[rows] = torch.where(moving[..., None, None], own_root, roots[rows])
            far[rows] = moving & (torch.einsum("sbfg,sbf->sbg", own_root, change).norm(dim=-1) > SHORT)
        return value[..., :number], roots

    def _own_step(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """A step of Gauss and Newton along the stiff directions, and the Cholesky factor of the precision there."""
        number = self.num_stiff
        basis = self.problem.difference * torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)[:number]
        near = torch.cat([value[None], value + basis[:, None, None]])  # [F + 1, S, B, P]
        residual = self.problem.residuals(self.latents(near).flatten(1, 2))
        slope = ((residual[1:] - residual[0]) / self.problem.difference).movedim(0, -1)
        slope = torch.nan_to_num(slope.reshape(*value.shape[:2], *slope.shape[-2:]), 0.0, 0.0, 0.0)
        weight, uphill = self._uphill(value, slope, residual[0])
        own = torch.einsum("sbmf,sbm,sbmg->sbfg", slope, weight, slope) + torch.eye(number, dtype=value.dtype)
        root, failed = torch.linalg.cholesky_ex(own)
        # Where bodies collide there is no slope: such a draw stays where it is, and its weight says what it is worth.
        failed = (failed > 0) | ~root.isfinite().all(-1).all(-1)
        shared = torch.linalg.cholesky(self.precision[:, :number, :number]).expand_as(root)
        root = torch.where(failed[..., None, None], shared, root)
        change = torch.cholesky_solve(uphill[..., None], root).squeeze(-1)
        return torch.where(failed[..., None] | ~change.isfinite(), 0.0, change), root

    def _uphill(self, value: Tensor, slope: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Weights of the residuals ``[S, B, M]``, gradient of the log density along the stiff directions."""
        if residual is None:
            residual = self.problem.residuals(self.latents(value).flatten(0, 1))
        weight = self.problem.precision(residual).reshape(*value.shape[:2], -1)
        pull = torch.nan_to_num(weight * residual.reshape(weight.shape), 0.0, 0.0, 0.0)
        letters = "bmf" if slope.ndim == 3 else "sbmf"
        return weight, -torch.einsum(f"{letters},sbm->sbf", slope, pull) - value[..., : slope.shape[-1]]


def directions(problem: LeastSquares, mode: Mode, num_stiff: int | None = None) -> Directions:
    """Turn the latents of B problems so that those that are known best come first.

    Args:
        problem: log density of rows, with standard normal priors and ``difference`` above 0.
        mode: a mode of each problem, ``[B]``.
        num_stiff: F; default: directions known to :data:`STIFF` in the mean problem.

    Raises:
        ValueError: the priors are not standard normal, or derivatives are not differences.
    """
    if bool((problem.prior_mean != 0).any()) or bool((problem.prior_scale != 1).any()) or not problem.difference > 0:
        raise ValueError("problem must have standard normal priors and take derivatives by differences")
    value, turn = torch.linalg.eigh(mode.precision)  # ascending
    turn, value = turn.flip(-1), value.flip(-1)
    if num_stiff is None:
        num_stiff = int((value.log().mean(0) > -2 * math.log(STIFF)).sum())
    num_stiff = min(num_stiff, value.shape[-1] - 1)  # a mixture is over one direction at least
    turned = torch.einsum("bpq,bp->bq", turn, mode.value)
    _, derivative = problem.jacobian(mode.value)
    slope = torch.einsum("bmp,bpf->bmf", derivative, turn[..., :num_stiff])
    return Directions(problem, turned, turn, slope, torch.diag_embed(value))


def loose_mixture(ways: Directions, modes: Mode, log_weight: Tensor, prior_share: float = 0.1) -> LaplaceMixture:
    """Bumps over the loose directions at modes ``[B, M]``, weighted by ``log_weight`` ``[B, M]``."""
    number = ways.num_stiff
    value = torch.einsum("bpq,bmp->bmq", ways.turn, modes.value)
    precision = torch.einsum("bpq,bmpr,brs->bmqs", ways.turn, modes.precision, ways.turn)
    lead, cross = precision[..., :number, :number], precision[..., :number, number:]
    rest = precision[..., number:, number:] - cross.mT @ torch.linalg.solve(lead, cross)
    one = torch.ones_like(value[0, 0, number:])
    bumps = Mode(value[..., number:], modes.log_density, (rest + rest.mT) / 2)
    return mixture_of(bumps, log_weight, torch.zeros_like(one), one, prior_share)


def infer_population(
    problem: LeastSquares,
    modes: Mode,
    names: Sequence[str],
    *,
    seed: int,
    num_draws: int,
    num_adapt: int | None = None,
    num_bumps: int = 12,
) -> Population:
    """Weighted draws and log marginals of B problems, from the modes that a search has found.

    Directions are those of the highest mode; the mixture starts from the ``num_bumps`` modes with the largest integrals
    after Laplace, is refitted three times, and drawn from.

    Args:
        problem: log densities of rows ``[S * B, P]``, with standard normal priors.
        modes: ``[B, M]``.
        names: of the B problems: with the seed they fix the random numbers.
        seed: any integer.
        num_draws: S.
        num_adapt: draws in each round of refitting; default: a third of ``num_draws``.
        num_bumps: bumps of the mixture.
    """
    order = modes.log_evidence.argsort(-1, descending=True)[:, :num_bumps]  # [B, bumps]
    row = torch.arange(len(order), device=order.device)[:, None]
    top = Mode(*(part[row, order] for part in modes))
    height = top.log_evidence
    with torch.no_grad():
        ways = directions(problem, Mode(*(part[:, 0] for part in top)))
        flat = torch.where(height > height[:, :1] - NEAR_BEST, height / FLATTER, -torch.inf)
        mixture = loose_mixture(ways, top, flat, 0.3)
        stream = Stream(seed, keys(names, order.device), num_draws)
        number = max(num_draws // 3, 1) if num_adapt is None else num_adapt
        mixture = adapt(ways, mixture, replace(stream, num_chains=number).child("adapt"), num_rounds=3, prior_share=0.1)
        return draw_population(ways, mixture, stream.child("draw"))


def draw_population(ways: Directions, proposal: LaplaceMixture, stream: Stream) -> Population:
    """Importance-sample B problems: loose directions from the mixture, stiff ones from Laplace's approximation.

    Args:
        ways: directions.
        proposal: mixture over the loose ones.
        stream: uniform numbers of S "chains" and B problems.
    """
    number = ways.num_stiff
    loose, _ = proposal.sample(stream.uniform(0, proposal.num_slots))  # [S, B, L]
    normal = torch.special.ndtri(stream.child("stiff").uniform(0, number).clamp(min=2.0**-54))
    constant = number / 2 * math.log(2 * math.pi)
    size = max(1, ROWS // ((number + 1) * loose.shape[1]))
    values, targets = [], []
    with torch.no_grad():
        for some, standard in zip(loose.split(size), normal.split(size), strict=True):
            stiff, root = ways.follow(some)
            root = root / WIDER
            apart = torch.linalg.solve_triangular(root.mT, standard[..., None], upper=True).squeeze(-1)
            value = ways.latents(torch.cat([stiff + apart, some], -1))
            log_stiff = root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - constant - standard.square().sum(-1) / 2
            density = ways.problem.log_density(value.flatten(0, 1)).reshape(value.shape[:2])
            values.append(value)
            targets.append(density - log_stiff)
    log_target = torch.cat(targets)
    return Population(torch.cat(values), loose, log_target, log_target - proposal.log_prob(loose))


def adapt(
    ways: Directions, proposal: LaplaceMixture, stream: Stream, *, num_rounds: int = 4, prior_share: float = 0.05
) -> LaplaceMixture:
    """Refit a mixture to its own draws for some rounds; the result is frozen, to be drawn from once more.

    Each round is fitted to the draws of all rounds so far, weighted as draws from the mean of their mixtures (Cornuet
    and others 2012, "Adaptive multiple importance sampling"), so that a round with few effective draws does no harm.

    Args:
        ways: directions.
        proposal: a first mixture over the loose ones.
        stream: uniform numbers of S "chains" and B problems.
        num_rounds: rounds of S draws each.
        prior_share: weight of the prior in refitted mixtures.
    """
    proposals, rounds = [], []
    for step in range(num_rounds):
        proposals.append(proposal)
        rounds.append(draw_population(ways, proposal, stream.child(f"round {step}")))
        loose = torch.cat([each.loose for each in rounds])
        log_mean = torch.stack([each.log_prob(loose) for each in proposals]).logsumexp(0) - math.log(len(proposals))
        log_weight = torch.cat([each.log_target for each in rounds]) - log_mean
        proposal = refit(proposal, loose, log_weight, prior_share=prior_share)
    return proposal


def refit(
    proposal: LaplaceMixture, draws: Tensor, log_weight: Tensor, *, num_steps: int = 10, prior_share: float = 0.05
) -> LaplaceMixture:
    """A mixture with as many bumps, fitted to weighted draws by expectation and maximisation for Student-t bumps.

    Args:
        proposal: where the bumps are now.
        draws: ``[S, B, L]``.
        log_weight: ``[S, B]``; a problem whose weights rest on too few draws has them flattened.
        num_steps: rounds.
        prior_share: weight of the prior afterwards.
    """
    weight = _flattened(log_weight)
    size = draws.shape[-1]
    centre, root, log_share = proposal.centre, proposal.root, proposal.log_weight
    mean = torch.einsum("sb,sbp->bp", weight, draws)
    spread = torch.einsum("sb,sbp,sbq->bpq", weight, draws - mean, draws - mean)
    for _ in range(num_steps):
        standard = torch.einsum("bmqp,sbmq->sbmp", root, draws[:, :, None] - centre)
        square = standard.square().sum(-1)  # [S, B, M]
        log_det = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        bump = log_share + log_det - (FREEDOM + size) / 2 * torch.log1p(square / FREEDOM)
        share = weight[..., None] * bump.softmax(-1)
        pull = share * (FREEDOM + size) / (FREEDOM + square)
        centre = torch.einsum("sbm,sbp->bmp", pull, draws) / pull.sum(0).clamp(min=1e-300)[..., None]
        apart = draws[:, :, None] - centre
        total = share.sum(0)  # [B, M]
        covariance = torch.einsum("sbm,sbmp,sbmq->bmpq", pull, apart, apart) / total.clamp(min=1e-300)[..., None, None]
        # A bump that few draws speak for leans on the spread of all.
        trust = (total / (total + 0.01))[..., None, None]
        least = 1e-6 * torch.diag_embed(spread.diagonal(dim1=-2, dim2=-1))
        covariance = trust * covariance + (1 - trust) * spread[:, None] + least[:, None]
        root = torch.linalg.cholesky(torch.linalg.inv(covariance))
        log_share = total.clamp(min=1e-4).log()
    bumps = Mode(centre, torch.zeros_like(log_share), root @ root.mT)
    return mixture_of(bumps, log_share, proposal.prior_mean, proposal.prior_scale, prior_share)


def _flattened(log_weight: Tensor) -> Tensor:
    """Normalised weights ``[S, B]``, raised to the largest power up to 1 at which enough draws are effective."""
    low, high = torch.zeros_like(log_weight[0]), torch.ones_like(log_weight[0])
    log_weight = log_weight.clamp(min=-1e300)
    for _ in range(40):
        middle = (low + high) / 2
        enough = 1 / (middle * log_weight).softmax(0).square().sum(0) >= LEAST_EFFECTIVE * len(log_weight)
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return (torch.where(low > 0.999, torch.ones_like(low), low) * log_weight).softmax(0)
