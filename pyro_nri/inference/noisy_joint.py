"""Chains over structures and latents of the noisy program at once, where structures are too many to list.

Nothing factorises: each structure has its own path, fitted to the whole recording. Around a reference, the path of one
plausible structure, a model that is linear in latents and in the types of edges says in closed form how well every
other structure could be fitted: a stand-in for the posterior of structures, without a path. A step takes some
Metropolis steps on it, fits the structure where they lead with the derivatives of the reference, draws latents around
the fit, and accepts both by the exact density (the surrogate transition method: Liu 2001, *Monte Carlo Strategies in
Scientific Computing*, section 9.4.3). What stand-in and fits get wrong costs acceptance only. Both depend on structure
and reference alone, whoever asks for them.
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
#: Steps of the search for the modes of the reference.
NUM_CLIMBS = 10
#: Paths that are followed at once.
MAX_PATHS = 8192
#: Share of prior draws among proposed latents, so that nothing is left out.
PRIOR_SHARE = 0.02


class Fits:
    """Stand-in and fits of B scenes around a reference.

    Args:
        model: the program.
        scenes: B scenes.
        prior: of their structures, batch ``[B]``.
        structure: the reference, long ``[B, E]``.
        starts: latents from which its modes are sought, ``[M, B, P]``.

    Attributes:
        starts: modes of the reference, ``[M, B, P]``.
    """

    def __init__(
        self, model: NoisyModel, scenes: Scenes, prior: StructureDistribution, structure: Tensor, starts: Tensor
    ) -> None:
        self.model, self.scenes, self.prior = model, scenes, prior
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
        """The stand-in: a quadratic form in the one-hot of a structure."""
        num_types, num_edges = self.prior.num_edge_types, structure.shape[-1]
        num_scenes = len(structure)
        edge, kind = (part.flatten() for part in torch.meshgrid(
            torch.arange(num_edges), torch.arange(num_types), indexing="ij"
        ))
        changed = structure.expand(len(edge), *structure.shape).clone()  # [E * K, B, E]
        changed[torch.arange(len(edge))[:, None], torch.arange(num_scenes), edge[:, None]] = kind[:, None]
        own = (changed == structure).all(-1) | ~self.prior.edge_mask[:, edge].T  # [E * K, B]
        effects = torch.zeros(len(edge), *residual.shape, dtype=residual.dtype)  # [E * K, M, B, R]
        place, scene = (~own).nonzero().unbind(-1)
        size = max(1, MAX_PATHS // len(self.starts))
        for f, b in zip(place.split(size), scene.split(size), strict=True):
            problem = least_squares(self.model, self.scenes[b], changed[f, b])
            after = _finite(problem.residuals(self.starts[:, b].flatten(0, 1))).reshape(len(self.starts), len(b), -1)
            effects[f, :, b] = (after - residual[:, b]).transpose(0, 1)
        half = weight.sqrt()
        pulled = torch.einsum("mbrp,fmbr->fmbp", self.weighted, effects)
        pulled = torch.linalg.solve_triangular(self.root, pulled.permute(1, 2, 3, 0), upper=False)  # [M, B, P, F]
        first = torch.einsum("mbrp,mbr->mbp", self.weighted, residual) + self.starts
        first = torch.linalg.solve_triangular(self.root, first[..., None], upper=False).squeeze(-1)
        scaled = (effects * half).permute(1, 2, 0, 3)  # [M, B, F, R]
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
        log_weight: by how much this exceeds what the proposal gives it, ``[C, B]``.
        accepted: whether the last step was taken, bool ``[C, B]``.
    """

    structure: Tensor
    value: Tensor
    log_joint: Tensor
    log_weight: Tensor
    accepted: Tensor


def init(fits: Fits, structure: Tensor, stream: Stream) -> State:
    """Chains at structures ``[C, B, E]``, their latents drawn from the fits."""
    return _drawn(fits, structure, fits.stand_in(structure), stream.child("begin"), 0)


def step(state: State, fits: Fits, moves: AbstractProposal, stream: Stream, number: int) -> State:
    """One step: a few on the stand-in, then structure and latents together by the exact density.

    Args:
        state: where the chains are.
        fits: of the same scenes; new ones are added.
        moves: on structures.
        stream: of C chains.
        number: of the step.
    """
    structure = state.structure
    height = fits.stand_in(structure)
    for inner in range(number * NUM_INNER, (number + 1) * NUM_INNER):
        uniform = stream.child("inner").uniform(inner, 1 + moves.num_uniforms)
        move = moves.propose({"edge_type": structure}, uniform[..., 1:], inner, 1.0)
        new = move.latents["edge_type"]
        new_height = fits.stand_in(new)
        log_ratio = new_height - height + move.log_reverse - move.log_forward
        taken = uniform[..., 0].log() < torch.nan_to_num(log_ratio, nan=-torch.inf, neginf=-torch.inf)
        structure = torch.where(taken[..., None], new, structure)
        height = torch.where(taken, new_height, height)
    new_state = _drawn(fits, structure, height, stream.child("latents"), number)
    uniform = stream.child("accept").uniform(number, 1)[..., 0]
    log_ratio = torch.nan_to_num(new_state.log_weight - state.log_weight, nan=-torch.inf, neginf=-torch.inf)
    accepted = uniform.log() < log_ratio
    parts = (
        torch.where(accepted.reshape(accepted.shape + (1,) * (b.ndim - 2)), b, a)
        for a, b in zip(state[:-1], new_state[:-1], strict=True)
    )
    return State(*parts, accepted)


def _drawn(fits: Fits, structure: Tensor, height: Tensor, stream: Stream, number: int) -> State:
    """Latents from the fits of structures whose stand-in is ``height``, and how far that is from the exact density."""
    mixture = fits.mixtures(structure)
    flat, _ = mixture.sample(stream.uniform(number, mixture.num_slots).flatten(0, 1))
    value = flat.reshape(*height.shape, -1)
    log_proposal = mixture.log_prob(flat).reshape(height.shape)
    with torch.no_grad():
        density = density_of(fits.model, fits.scenes, structure)(value)
    log_joint = density + fits.prior.log_prob(structure).detach().double()
    weight = torch.where(height.isfinite(), log_joint - log_proposal - height, -torch.inf)
    return State(structure, value, log_joint, weight, torch.ones_like(height, dtype=torch.bool))
