"""The motion of hidden entities as the program has it: every frame near what the laws make of the one before.

A path that runs free from its first frame on is a function of that frame. Where forces change fast it is a poor one:
errors of laws and integrators, harmless in each frame, grow with every close encounter until the path has nothing to
do with the motion. Here a hidden entity is one whose frames are missing: its next state lies as near its prediction as
that of any other entity, by the noise that was learned for the forward density. A frame then depends on its neighbours
alone.
"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.model.noise import AbstractNoise, StudentTNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.hidden_entities import with_hidden
from pyro_nri.scenes.scenes import Scenes

#: Size of the differences by which predictions are differentiated, scaled units.
DIFFERENCE = 1e-6
#: Nats for each transition and entity by which explained frames are less likely than exact predictions, at most. Noise
#: of the learned size makes it two or three; a hidden charge or spring that is left out, 30 to 100.
MOST_UNEXPLAINED = 10.0


class Linearised(NamedTuple):
    """Motion near a path: what a change leaves of it is ``residual - jacobian @ change``, plus the change that follows.

    Attributes:
        path: of the hidden entities, scaled units, ``[R, T, N_hidden, D]``.
        residual: next states less their predictions, raw units, ``[R, T - 1, N + N_hidden, D]``.
        jacobian: of the predictions, ``[R, T - 1, N + N_hidden, D, P]``; ``P = N_hidden D``.
        unit: inverse squares of the scales of the noise, of the residuals' shape; 0 where nothing counts.
        weight: weights of least squares, the same.
        scale: raw units in a scaled one, ``[D]``.
    """

    path: Tensor
    residual: Tensor
    jacobian: Tensor
    unit: Tensor
    weight: Tensor
    scale: Tensor


class HiddenMotion:
    """Log density of recorded frames and paths of hidden entities under given structures.

    Each of R rows is a scene under a structure. Paths are in scaled units, their first frame standard normal.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes; every present entity seen in every frame.
        num_hidden: N_hidden.
        structure: of all entities, hidden ones last, long ``[R, E]``.
        row: scene of each structure, long ``[R]``; default: one structure for each scene.
    """

    def __init__(
        self,
        model: SceneModel,
        scenes: Scenes,
        num_hidden: int,
        structure: Tensor,
        *,
        row: Tensor | None = None,
    ) -> None:
        self.dynamics: PairForces = model.impulse_parts[0]
        self.noise: AbstractNoise = copy.deepcopy(model.noise).double().requires_grad_(False)
        self.geometry = model.geometry
        self.num_substeps = self.dynamics.num_substeps
        scenes = model.prepare(scenes).to(torch.float64)
        row = torch.arange(scenes.num_scenes) if row is None else row
        wide = with_hidden(scenes, num_hidden)
        self.present = wide.entity_mask[row]
        self.edge_mask = wide.edge_mask[row]
        self.recorded = torch.where(scenes.entity_mask[:, None, :, None], scenes.trajectory, 0.0)[row]
        self.structure = structure
        self.num_hidden = num_hidden
        self.lag = self.dynamics.clock_lag.double()
        self.offset, self.scale = model.score_offset.double(), model.score_scale.double()
        laws = self.dynamics.laws
        self.table = laws.table().detach().double() * laws.exerting()[:, None]  # what others have learned is error
        self.is_forgiving = True

    @property
    def num_frames(self) -> int:
        """T."""
        return self.recorded.shape[1]

    def __getitem__(self, index: Tensor) -> "HiddenMotion":
        """The same of some rows, long ``[R']``."""
        part = copy.copy(self)
        for name in ("present", "edge_mask", "recorded", "structure"):
            setattr(part, name, getattr(self, name)[index])
        return part

    def frames(self, start: int, end: int) -> "HiddenMotion":
        """The same of frames ``start`` to ``end``, the latter left out."""
        part = copy.copy(self)
        part.recorded = self.recorded[:, start:end]
        return part

    def under(self, structure: Tensor) -> "HiddenMotion":
        """The same under other structures, long ``[R, E]``."""
        other = copy.copy(self)
        other.structure = structure
        return other

    def refined(self, factor: int) -> "HiddenMotion":
        """The same with more sub-steps in a frame: those of the recorded motion where it tells them."""
        other = copy.copy(self)
        other.num_substeps = int(self.dynamics.leapfrog_steps) or self.num_substeps * factor
        return other

    def turned(self) -> "HiddenMotion":
        """The same with time running backwards; the last frame of its paths is the first."""
        other = copy.copy(self)
        other.recorded, other.lag = self._turned(self.recorded), -self.lag
        return other

    def turned_path(self, path: Tensor) -> Tensor:
        """Paths ``[*batch, T, N_hidden, D]`` of :meth:`turned` from those of this, and the other way round."""
        return (self._turned(path * self.scale + self.offset) - self.offset) / self.scale

    def _turned(self, states: Tensor) -> Tensor:
        sign = torch.ones_like(self.scale)
        sign[self.dynamics.velocities] = -1.0
        return states.flip(-3) * sign

    def blunted(self, share: float) -> "HiddenMotion":
        """The same with noise of one size everywhere, a share of scaled units."""
        other = copy.copy(self)
        noise = StudentTNoise(len(self.scale)).double()
        noise.change_scale.copy_(self.scale)
        noise.log_relative_scale.data.fill_(math.log(share))
        other.noise = noise.requires_grad_(False)
        return other

    def widened(self, factor: float, *, is_forgiving: bool = True) -> "HiddenMotion":
        """The same with noise ``factor`` times as wide; normal noise of its scales where not ``is_forgiving``."""
        other = copy.copy(self)
        other.noise = copy.deepcopy(self.noise)
        other.noise.change_scale.mul_(factor)
        other.is_forgiving = is_forgiving
        return other

    def inside(self, path: Tensor) -> Tensor:
        """Paths ``[*batch, T, N_hidden, D]`` of which states behind a wall are mirrored, as the dynamics mirror them.

        A state and its mirror image lead to nearly the same next state: one frame behind a wall is a violent one that
        explains the others as well.
        """
        state = path * self.scale + self.offset
        still = torch.zeros_like(self.scale[0])
        moved = self.dynamics.move(state, torch.zeros_like(state[..., self.dynamics.positions]), still, still)
        return torch.where(moved == state, path, (moved - self.offset) / self.scale)

    def predict(self, path: Tensor) -> tuple[Tensor, Tensor | None]:
        """Next states of all entities ``[*batch, R, T, N + N_hidden, D]`` and the context of their noise.

        Args:
            path: one state of the hidden entities for each recorded frame, ``[*batch, R, T, N_hidden, D]``.
        """
        recorded = self.recorded[:, : path.shape[-3]].expand(*path.shape[:-2], *self.recorded.shape[-2:])
        state = torch.cat([recorded, path * self.scale + self.offset], -2)
        context = self.geometry(state, self.edge_mask[:, None]) if self.noise.uses_context else None
        structure = self.structure[:, None].expand(*state.shape[:-2], -1)
        exists = self.edge_mask[:, None].expand_as(structure)
        return self.dynamics.moved(state, structure, exists, self.table, self.num_substeps, self.lag), context

    def _residual(self, path: Tensor, prediction: Tensor) -> Tensor:
        recorded = self.recorded[:, 1:].expand(*path.shape[:-4], *self.recorded[:, 1:].shape)
        later = torch.cat([recorded, path[..., 1:, :, :] * self.scale + self.offset], -2)
        return torch.where(self.present[:, None, :, None], later - prediction, 0.0)

    def residual(self, path: Tensor) -> tuple[Tensor, Tensor | None]:
        """Next states less their predictions, ``[*batch, R, T - 1, N + N_hidden, D]``, and contexts."""
        prediction, context = self.predict(path[..., :-1, :, :])
        return self._residual(path, prediction), context

    def log_start(self, path: Tensor) -> Tensor:
        """Log density of the first frame of paths, ``[*batch, R]``."""
        first = path[..., 0, :, :]
        return -(first.square() + math.log(2 * math.pi)).sum((-1, -2)) / 2

    def log_density(self, path: Tensor) -> Tensor:
        """Of paths ``[*batch, R, T, N_hidden, D]``: ``[*batch, R]``, -inf where it is not finite."""
        return self.log_density_of(path, *self.residual(path))

    def log_density_of(self, path: Tensor, residual: Tensor, context: Tensor | None) -> Tensor:
        """The same where residuals and contexts are known."""
        if self.is_forgiving:
            each = self.noise(torch.zeros_like(residual), context).log_prob(residual)
        else:
            unit = self.unit_precision(residual, context)
            each = torch.where(unit > 0, unit.log() - unit * residual.square(), 0.0).sum(-1) / 2
        total = torch.where(self.present[:, None], each, 0.0).sum((-1, -2)) + self.log_start(path)
        return torch.where(total.isfinite(), total, torch.full_like(total, -torch.inf))

    def unexplained(self, path: Tensor) -> Tensor:
        """Nats for each transition and entity by which paths are less likely than exact predictions: ``[*batch, R]``.

        Noise of the learned size leaves about two (normal) or three (Student-t).
        """
        residual, context = self.residual(path)
        zero = torch.zeros_like(residual)
        noise = self.noise(zero, context)
        lost = noise.log_prob(zero) - noise.log_prob(residual)
        lost = torch.where(lost.isfinite(), lost, torch.inf)
        present = self.present[:, None].expand(lost.shape)
        return torch.where(present, lost, 0.0).sum((-1, -2)) / present.sum((-1, -2))

    def unit_share(self, size: int) -> float:
        """Inverse square of the scale of the noise, over its precision where a residual of D variables is 0."""
        shape = self.noise.mixture_shape(size)
        # (nu + n) / nu / scale² for Student-t noise with n variables that are violent together
        return 1.0 if shape is None else 1 - (size if self.noise.uses_context else 1) / (2 * shape)

    def unit_precision(self, residual: Tensor, context: Tensor | None) -> Tensor:
        """Inverse squares of the scales of the noise, shaped as the residual; 0 for who is absent."""
        unit = self.noise.precision(torch.zeros_like(residual), context) * self.unit_share(residual.shape[-1])
        return torch.where(self.present[:, None, :, None], unit, 0.0)

    def linearise(self, path: Tensor) -> Linearised:
        """Near paths ``[R, T, N_hidden, D]``."""
        flat = path[:, :-1].flatten(-2)  # [R, T - 1, P]
        steps = DIFFERENCE * torch.eye(flat.shape[-1], dtype=flat.dtype)
        steps = torch.cat([torch.zeros_like(steps[:1]), steps])[:, None, None]
        every, context = self.predict((flat + steps).unflatten(-1, path.shape[-2:]))  # [P + 1, R, T - 1, ...]
        jacobian = ((every[1:] - every[0]) / DIFFERENCE).movedim(0, -1)
        context = None if context is None else context[0]
        residual = self._residual(path, every[0])
        unit = self.unit_precision(residual, context)
        weight = self.noise.precision(residual, context) if self.is_forgiving else unit
        counts = jacobian.isfinite().all(-1) & residual.isfinite() & unit.isfinite() & (unit > 0)
        zero = residual.new_zeros(())
        return Linearised(
            path,
            torch.where(counts, residual, zero),
            torch.where(counts[..., None], jacobian, zero),
            torch.where(counts, unit, zero),
            torch.where(counts, weight, zero),
            self.scale,
        )
