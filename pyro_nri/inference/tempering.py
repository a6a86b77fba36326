"""Parallel tempering: replicas between the posterior and the prior exchange their structures.

Replica r samples ``prior * likelihood ** beta[r]``, from ``beta = 1`` (the posterior) down to ``beta = 0`` (the prior,
where every step is a fresh draw). After each step neighbours are exchanged, even and odd pairs by turns, with the
probability that leaves all of them invariant. What the hot replicas find reaches the cold one, so that modes between
which no single move leads are visited in proportion to their mass; and the exchanges measure the log marginal.

The ladder is set for each structure during warm-up, so that all pairs of neighbours are exchanged equally often, from
the cumulative rejection as in Syed et al. 2022, "Non-reversible parallel tempering: a scalable highly parallel MCMC
scheme". Afterwards it is frozen.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Score, State
from pyro_nri.inference.streams import Stream

#: Smallest inverse temperature of the first ladder, beside that of the prior.
FIRST_SMALLEST = 1e-4
#: The ladder is set anew after this many steps, and whenever their number has doubled.
FIRST_ROUND = 16


@dataclass
class Ladder:
    """Inverse temperatures of R replicas for each of G structures, and what their exchanges said so far.

    Attributes:
        inverse_temperature: 1 first, 0 last, falling, float64 ``[R, G]``.
        rejection: sums of the probability that neighbours are not exchanged, ``[R - 1, G]``.
        num_steps: steps that were summed.
        log_up: log sums over steps of ``likelihood ** (d / 2)`` at the hotter of two neighbours, with ``d`` the
            difference of their inverse temperatures, ``[R - 1, C, G]``.
        log_down: log sums of ``likelihood ** (-d / 2)`` at the colder one.
    """

    inverse_temperature: Tensor
    rejection: Tensor
    num_steps: int
    log_up: Tensor
    log_down: Tensor

    @classmethod
    def start(cls, num_replicas: int, num_chains: int, num_groups: int, device: torch.device | str = "cpu") -> "Ladder":
        """A geometric ladder that ends at the prior.

        Raises:
            ValueError: there are fewer than 2 replicas.
        """
        if num_replicas < 2:
            raise ValueError(f"num_replicas must be at least 2 for parallel tempering, found {num_replicas}")
        share = torch.linspace(0, 1, num_replicas - 1, dtype=torch.float64, device=device)
        beta = torch.cat([FIRST_SMALLEST**share, share.new_zeros(1)])
        return cls(beta[:, None].repeat(1, num_groups), *_nothing(num_replicas, num_chains, num_groups, device))

    @property
    def num_replicas(self) -> int:
        """R."""
        return len(self.inverse_temperature)

    def temperature(self, num_chains: int) -> Tensor:
        """Temperature of each replica, chain and structure, replicas first: ``[R C, G]``, infinite at the prior."""
        temperature: Tensor = (1 / self.inverse_temperature).repeat_interleave(num_chains, 0)
        return temperature

    def forget(self) -> None:
        """Start counting anew."""
        num_pairs, num_chains, num_groups = self.log_up.shape
        device = self.log_up.device
        self.rejection, self.num_steps, self.log_up, self.log_down = _nothing(
            num_pairs + 1, num_chains, num_groups, device
        )

    def exchange(self, state: State, stream: Stream, number: int) -> State:
        """Exchange neighbours: pairs that begin with an even replica at even steps, the others at odd ones.

        Args:
            state: of R C chains, replicas first.
            stream: over the same chains.
            number: number of the step.
        """
        num_replicas = self.num_replicas
        log_likelihood = state.score.log_likelihood.unflatten(0, (num_replicas, -1))  # [R, C, G]
        step = (self.inverse_temperature[:-1] - self.inverse_temperature[1:])[:, None]  # [R - 1, 1, G]
        cold, hot = log_likelihood[:-1], log_likelihood[1:]
        log_ratio = step * (hot - cold)  # [R - 1, C, G]
        self.rejection = self.rejection + (1 - log_ratio.clamp(max=0).exp()).mean(1)
        self.num_steps += 1
        self.log_up = torch.logaddexp(self.log_up, step / 2 * hot)
        self.log_down = torch.logaddexp(self.log_down, -step / 2 * cold)
        uniform = stream.child("exchange").uniform(number, 1).squeeze(-1).unflatten(0, (num_replicas, -1))[:-1]
        turn = torch.arange(num_replicas - 1, device=step.device) % 2 == number % 2
        exchanged = (uniform.log() < log_ratio) & turn[:, None, None]  # [R - 1, C, G]
        source = torch.arange(num_replicas, device=step.device)[:, None, None].expand(log_likelihood.shape).clone()
        source[:-1] += exchanged.long()
        source[1:] -= exchanged.long()

        def moved(value: Tensor) -> Tensor:
            each = value.unflatten(0, (num_replicas, -1))
            index = source.reshape(source.shape + (1,) * (each.ndim - 3)).expand(each.shape)
            chosen: Tensor = each.gather(0, index).flatten(0, 1)
            return chosen

        latents = {name: moved(value) for name, value in state.latents.items()}
        return State(latents, Score(*(moved(value) for value in state.score)))

    def adapt(self) -> None:
        """Set the ladder so that all neighbours are rejected equally often, by what was counted; then count anew."""
        if self.num_steps == 0 or self.num_replicas == 2:
            self.forget()
            return
        rejection = (self.rejection / self.num_steps).clamp(min=1e-3)  # no two replicas become one
        total = torch.cat([torch.zeros_like(rejection[:1]), rejection.cumsum(0)])  # [R, G]
        wanted = total[-1] * torch.linspace(0, 1, self.num_replicas, dtype=torch.float64, device=total.device)[:, None]
        # Between two rungs the rejection grows about evenly in log beta; the prior counts as a last small rung.
        last = self.inverse_temperature[-2] ** 2 / self.inverse_temperature[-3]
        place = torch.cat([self.inverse_temperature[:-1], last[None]]).log()
        index = torch.searchsorted(total.T.contiguous(), wanted.T.contiguous()).T.clamp(1, self.num_replicas - 1)
        low, high = total.gather(0, index - 1), total.gather(0, index)
        share = (wanted - low) / (high - low)
        moved = (place.gather(0, index - 1) * (1 - share) + place.gather(0, index) * share).exp()
        moved[0], moved[-1] = 1, 0
        self.inverse_temperature = moved
        self.forget()

    def log_marginal(self) -> tuple[Tensor, Tensor]:
        """Log marginal likelihood ``[G]`` and its standard error from the spread of the chains (NaN for one chain).

        Stepping stones from the prior, where it is 0. Each is a bridge: with ``d`` the difference of inverse
        temperatures, the ratio of two normalisers is the mean of ``likelihood ** (d / 2)`` at the hotter replica over
        that of ``likelihood ** (-d / 2)`` at the colder one (Meng & Wong 1996, "Simulating ratios of normalizing
        constants via a simple identity").
        """
        num_chains = self.log_up.shape[1]
        pooled = (self.log_up.logsumexp(1) - self.log_down.logsumexp(1)).sum(0)
        each = (self.log_up - self.log_down).sum(0)  # [C, G]
        error = each.std(0) / math.sqrt(num_chains) if num_chains > 1 else torch.full_like(pooled, torch.nan)
        return pooled, error


def is_round(number: int) -> bool:
    """Whether the ladder is set after so many steps: 16, 32, 64, ..."""
    return number >= FIRST_ROUND and number % FIRST_ROUND == 0 and (number // FIRST_ROUND).bit_count() == 1


def _nothing(
    num_replicas: int, num_chains: int, num_groups: int, device: torch.device | str
) -> tuple[Tensor, int, Tensor, Tensor]:
    rejection = torch.zeros(num_replicas - 1, num_groups, dtype=torch.float64, device=device)
    empty = torch.full((num_replicas - 1, num_chains, num_groups), -torch.inf, dtype=torch.float64, device=device)
    return rejection, 0, empty, empty.clone()
