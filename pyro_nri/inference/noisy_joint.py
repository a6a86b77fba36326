"""Chains over structures and latents of the noisy program at once, where structures are too many to list.

Nothing factorises: each structure has its own path, fitted to the whole recording. Around a reference, a plausible
structure and its path, a model that is linear in latents and in the types of edges says in closed form how well every
other structure could be fitted: a stand-in for the posterior of structures, without a path. Annealed searches on it
find the references. A step of a chain takes Metropolis steps or an excursion on the stand-in, fits the structure where
they lead with the derivatives of the references, draws latents around the fit, and accepts both by the exact density
(the surrogate transition method: Liu 2001, *Monte Carlo Strategies in Scientific Computing*, section 9.4.3). What
stand-in and fits get wrong costs acceptance only: both depend on structure and references alone, whoever asks for them.
Far from the references the stand-in may be so wrong that a chain would never leave; so each step ends with a change of
a single edge that does without it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.gauss_newton import LeastSquares, Mode
from pyro_nri.inference.laplace import LaplaceMixture, mixture_of
from pyro_nri.inference.moves import AbstractProposal
from pyro_nri.inference.noisy_modes import density_of, find_modes, least_squares
from pyro_nri.inference.streams import Stream
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes.scenes import Scenes

#: Steps on the stand-in in each step of a chain.
NUM_INNER = 40
#: Temperatures of an excursion, and the highest.
NUM_RUNGS, LAST_TEMPERATURE = 100, 30.0
#: Steps of an annealed search on the stand-in, and its first temperature; the last is 1.
NUM_ANNEALED, FIRST_TEMPERATURE = 300, 50.0
#: Steps of the search for the modes of the reference.
NUM_CLIMBS = 6
#: Paths that are followed at once.
MAX_PATHS = 8192
#: Share of prior draws among proposed latents, so that nothing is left out.
PRIOR_SHARE = 0.02


class Fits:
    """Stand-in and fits of B scenes around M references.

    Args:
        model: the program.
        scenes: B scenes.
        prior: of their structures, batch ``[B]``.
        structure: of the references, long ``[M, B, E]``; two may have the same, and other modes.
        starts: latents from which their modes are sought, ``[M, B, P]``.

    Attributes:
        references: structures, long ``[M, B, E]``.
        starts: their modes, ``[M, B, P]``.
    """

    def __init__(
        self, model: NoisyModel, scenes: Scenes, prior: StructureDistribution, structure: Tensor, starts: Tensor
    ) -> None:
        self.model, self.scenes, self.prior, self.references = model, scenes, prior, structure
        modes = find_modes(model, scenes, structure, starts, num_steps=NUM_CLIMBS)
        self.starts = modes.value.transpose(0, 1).contiguous()
        self.precision = modes.precision.transpose(0, 1)  # [M, B, P, P]
        self.root, _ = torch.linalg.cholesky_ex(self.precision)
        problem, shape = least_squares(model, scenes, structure), self.starts.shape[:2]
        residual, jacobian = problem.jacobian(self.starts.flatten(0, 1))
        weight = problem.precision(residual).reshape(*shape, -1)  # [M, B, R]
        residual, jacobian = _finite(residual).reshape(*shape, -1), _finite(jacobian)
        self.weighted = jacobian.reshape(*shape, *jacobian.shape[1:]) * weight[..., None]  # [M, B, R, P]
        self._expand(structure, residual, weight)
        self.rows: dict[tuple[int, bytes], int] = {}
        self.fitted: list[tuple[Tensor, ...]] = []

    def _expand(self, structure: Tensor, residual: Tensor, weight: Tensor) -> None:
        """The stand-in: a quadratic form in the one-hot of a structure around each reference."""
        num_types, num_edges = self.prior.num_edge_types, structure.shape[-1]
        edge = torch.arange(num_edges).repeat_interleave(num_types)  # [F], F = E K
        kind = torch.arange(num_types).repeat(num_edges)
        differs = (structure[..., edge] != kind) & self.prior.edge_mask[:, edge]  # [M, B, F]
        effects = residual.new_zeros(*differs.shape, residual.shape[-1])  # [M, B, F, R]
        for part in differs.nonzero().split(MAX_PATHS):
            m, b, f = part.unbind(-1)
            changed = structure[m, b].scatter(-1, edge[f, None], kind[f, None])
            problem = least_squares(self.model, self.scenes[b], changed)
            effects[m, b, f] = _finite(problem.residuals(self.starts[m, b])) - residual[m, b]
        half = weight.sqrt()
        pulled = torch.linalg.solve_triangular(self.root, self.weighted.mT @ effects.mT, upper=False)  # [M, B, P, F]
        first = torch.einsum("mbrp,mbr->mbp", self.weighted, residual) + self.starts
        first = torch.linalg.solve_triangular(self.root, first[..., None], upper=False).squeeze(-1)
        scaled = effects * half[..., None, :]
        self.quadratic = scaled @ scaled.mT - pulled.mT @ pulled  # [M, B, F, F]
        self.linear = torch.einsum("mbfr,mbr->mbf", scaled, half * residual) - torch.einsum(
            "mbpf,mbp->mbf", pulled, first
        )
        # The constant of the scene matters to none of its structures, but to the weight of one mode beside another.
        self.height = (first.square().sum(-1) - (half * residual).square().sum(-1) - self.starts.square().sum(-1)) / 2
        self.height = self.height - self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # [M, B]

    def stand_in(self, structure: Tensor) -> Tensor:
        """Log of the stand-in for the posterior of structures ``[C, B, E]``, up to a constant of the scene."""
        one_hot = torch.nn.functional.one_hot(structure, self.prior.num_edge_types).flatten(-2).to(self.linear)
        bent = torch.einsum("cbf,mbfg,cbg->mcb", one_hot, self.quadratic, one_hot) / 2
        evidence = self.height[:, None] - torch.einsum("cbf,mbf->mcb", one_hot, self.linear) - bent
        apart = (structure != self.references[:, None]).sum(-1)  # [M, C, B]
        evidence = torch.where(apart == apart.amin(0), evidence, -torch.inf)
        total: Tensor = evidence.amax(0) + self.prior.log_prob(structure).detach().double()
        return torch.nan_to_num(total, nan=-torch.inf)

    def mixtures(self, structure: Tensor) -> LaplaceMixture:
        """Proposals of latents under structures ``[C, B, E]``: of C * B problems."""
        plain = structure.to(torch.int8).numpy()
        asked = [[(b, row.tobytes()) for b, row in enumerate(chain)] for chain in plain]
        wanted: dict[tuple[int, bytes], tuple[int, int]] = {}
        for c, chain in enumerate(asked):
            for b, name in enumerate(chain):
                if name not in self.rows:
                    wanted.setdefault(name, (c, b))
        if wanted:
            chains, scene = torch.tensor(list(wanted.values())).unbind(-1)
            self._fit(scene, structure[chains, scene])
            self.rows |= {name: len(self.rows) + place for place, name in enumerate(wanted)}
        row = torch.tensor([self.rows[name] for chain in asked for name in chain])
        if len(self.fitted) > 1:
            self.fitted = [tuple(torch.cat(parts) for parts in zip(*self.fitted, strict=True))]
        value, density = (part[row] for part in self.fitted[0])
        scene = torch.arange(structure.shape[1]).repeat(len(structure))
        precision = self.precision[:, scene].transpose(0, 1)
        one = torch.ones_like(value[0, 0])
        mode = Mode(value, density, precision)
        return mixture_of(mode, mode.log_evidence, torch.zeros_like(one), one, PRIOR_SHARE)

    def _fit(self, scene: Tensor, structure: Tensor) -> None:
        """Fit scenes ``[R']`` under structures ``[R', E]``, by steps with the derivatives of the reference."""
        problem = least_squares(self.model, self.scenes[scene], structure)
        weighted, root = self.weighted[:, scene], self.root[:, scene]
        value = self.starts[:, scene]
        density, change = _linear_step(problem, value, weighted, root)
        for _ in range(2):
            tried = value + change
            new, new_change = _linear_step(problem, tried, weighted, root)
            better = (new >= density)[..., None]
            value = torch.where(better, tried, value)
            change = torch.where(better, new_change, change / 2)
            density = torch.maximum(new, density)
        self.fitted.append((value.transpose(0, 1), density.T))


def _linear_step(problem: LeastSquares, value: Tensor, weighted: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Log density ``[M, R']`` and the step to its mode ``[M, R', P]``, with derivatives of the reference."""
    flat = value.flatten(0, 1)
    residual = problem.residuals(flat)
    total = problem.log_prior(flat) + problem.log_likelihood(residual)
    density = torch.nan_to_num(total, nan=-torch.inf, posinf=-torch.inf).reshape(value.shape[:-1])
    slope = -torch.einsum("mbrp,mbr->mbp", weighted, _finite(residual).reshape(*value.shape[:-1], -1)) - value
    return density, torch.cholesky_solve(slope[..., None], root).squeeze(-1)


def _finite(values: Tensor) -> Tensor:
    return torch.nan_to_num(values, 0.0, 0.0, 0.0)


class State(NamedTuple):
    """Where C chains of B scenes are.

    Attributes:
        structure: long ``[C, B, E]``.
        value: latents in rows, scaled units, ``[C, B, P]``.
        log_joint: of structure, latents and recording, ``[C, B]``.
        log_proposal: density of the latents where latents of this structure are proposed, ``[C, B]``.
        accepted: whether the last step changed anything, bool ``[C, B]``.
    """

    structure: Tensor
    value: Tensor
    log_joint: Tensor
    log_proposal: Tensor
    accepted: Tensor


def init(fits: Fits, structure: Tensor, stream: Stream) -> State:
    """Chains at structures ``[C, B, E]``, their latents drawn from the fits."""
    return _drawn(fits, structure, stream.child("begin"), 0)


def step(state: State, fits: Fits, moves: AbstractProposal, stream: Stream, number: int) -> State:
    """One step: some on the stand-in, accepted with new latents by the exact density; then one change without it.

    Args:
        state: where the chains are.
        fits: of the same scenes; new ones are added.
        moves: on structures.
        stream: of C chains.
        number: of the step.
    """
    first = fits.stand_in(state.structure)
    if number % 2:
        structure, height = _excursion(fits, state.structure, first, moves, stream.child("excursion"), number)
    else:
        places = range(number * NUM_INNER, (number + 1) * NUM_INNER)
        structure, height = _on_stand_in(fits, state.structure, first, moves, stream.child("inner"), places)
    uniform = stream.child("accept").uniform(number, 2)
    after = _chosen(state, _drawn(fits, structure, stream.child("latents"), number), first - height, uniform[..., 0])
    move = moves.propose(
        {"edge_type": after.structure}, stream.child("single").uniform(number, moves.num_uniforms), number, 1.0
    )
    changed = _drawn(fits, move.latents["edge_type"], stream.child("single latents"), number)
    last = _chosen(after, changed, move.log_reverse - move.log_forward, uniform[..., 1])
    return last._replace(accepted=last.accepted | after.accepted)


def search(fits: Fits, moves: AbstractProposal, stream: Stream) -> State:
    """Better references: from each of them an annealed search on the stand-in, kept where it leads to a better fit.

    Args:
        fits: around one reference for each of C chains.
        moves: on structures.
        stream: of C chains.
    """
    before = init(fits, fits.references, stream.child("before"))
    steps = range(NUM_ANNEALED)
    structure, _ = _on_stand_in(
        fits, fits.references, fits.stand_in(fits.references), moves, stream.child("annealed"), steps, FIRST_TEMPERATURE
    )
    after = init(fits, structure, stream.child("after"))
    better = after.log_joint > before.log_joint
    return _either(better, after, before)


def _on_stand_in(
    fits: Fits,
    structure: Tensor,
    height: Tensor,
    moves: AbstractProposal,
    stream: Stream,
    steps: range,
    first_temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Metropolis steps on the stand-in from structures ``[C, B, E]``: where they end, and its log there ``[C, B]``."""
    for place, inner in enumerate(steps):
        beta = first_temperature ** (place / len(steps) - 1)
        structure, height = _change(fits, structure, height, moves, stream, inner, inner, beta)
    return structure, height


def _excursion(
    fits: Fits, structure: Tensor, height: Tensor, moves: AbstractProposal, stream: Stream, number: int
) -> tuple[Tensor, Tensor]:
    """A tempered transition on the stand-in, over the barriers between its modes (Neal 1996, Statistics and Computing).

    Changes at ever higher temperature, then at ever lower ones; where it ends is accepted or refused as a whole.
    """
    ladder = [LAST_TEMPERATURE ** -(rung / NUM_RUNGS) for rung in range(NUM_RUNGS + 1)]
    new, new_height, log_ratio = structure, height, torch.zeros_like(height)
    first = number * 2 * NUM_RUNGS
    for rung in range(NUM_RUNGS):
        log_ratio = log_ratio + (ladder[rung + 1] - ladder[rung]) * new_height
        new, new_height = _change(fits, new, new_height, moves, stream, first + rung, rung, ladder[rung + 1])
    for rung in reversed(range(NUM_RUNGS)):
        place = first + 2 * NUM_RUNGS - 1 - rung
        new, new_height = _change(fits, new, new_height, moves, stream, place, rung, ladder[rung + 1])
        log_ratio = log_ratio - (ladder[rung + 1] - ladder[rung]) * new_height
    taken = _accepts(log_ratio, stream.child("accept").uniform(number, 1)[..., 0])
    return _where(taken, new, structure), torch.where(taken, new_height, height)


def _change(
    fits: Fits,
    structure: Tensor,
    height: Tensor,
    moves: AbstractProposal,
    stream: Stream,
    place: int,
    turn: int,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """A Metropolis step on the stand-in to the power ``beta``; the turn says which move, the place which numbers."""
    uniform = stream.uniform(place, 1 + moves.num_uniforms)
    move = moves.propose({"edge_type": structure}, uniform[..., 1:], turn, 1.0)
    new = move.latents["edge_type"]
    new_height = fits.stand_in(new)
    taken = _accepts(beta * (new_height - height) + move.log_reverse - move.log_forward, uniform[..., 0])
    return _where(taken, new, structure), torch.where(taken, new_height, height)


def _chosen(old: State, new: State, log_ratio: Tensor, uniform: Tensor) -> State:
    """The new state where it is accepted; ``log_ratio`` is that of proposing structures, back over forth."""
    gain = new.log_joint - new.log_proposal - old.log_joint + old.log_proposal
    accepted = _accepts(gain + log_ratio, uniform)
    return _either(accepted, new, old)


def _either(accepted: Tensor, new: State, old: State) -> State:
    """The new state where it is accepted ``[C, B]``, else the old one."""
    return State(*(_where(accepted, b, a) for a, b in zip(old, new, strict=True)))._replace(accepted=accepted)


def _where(condition: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """For each chain and scene ``[C, B]`` one of two."""
    return torch.where(condition.reshape(condition.shape + (1,) * (new.ndim - 2)), new, old)


def _accepts(log_ratio: Tensor, uniform: Tensor) -> Tensor:
    return uniform.log() < torch.nan_to_num(log_ratio, nan=-torch.inf, neginf=-torch.inf)


def _drawn(fits: Fits, structure: Tensor, stream: Stream, number: int) -> State:
    """Structures with latents from their fits."""
    mixture = fits.mixtures(structure)
    flat, _ = mixture.sample(stream.uniform(number, mixture.num_slots).flatten(0, 1))
    value, shape = flat.unflatten(0, structure.shape[:2]), structure.shape[:2]
    with torch.no_grad():
        density = density_of(fits.model, fits.scenes, structure)(value)
    log_joint = density + fits.prior.log_prob(structure).detach().double()
    log_proposal = mixture.log_prob(flat).reshape(shape)
    return State(structure, value, log_joint, log_proposal, torch.ones(shape, dtype=torch.bool))
