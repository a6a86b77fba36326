"""The likelihood of pair forces beside hidden entities: given their path, observed receivers still factorise."""

import copy

import torch
from torch import Tensor

from pyro_nri.dynamics.hidden_paths import HiddenPath, HiddenPaths
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.model.impulse import most_likely_structure, refined_features
from pyro_nri.model.noise import AbstractNoise, GivenScaleNoise
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import chunk_size, num_codes, sums_of_codes
from pyro_nri.scenes.scenes import Scenes

#: Steps of a frame of hidden paths where forces change little within it, and where they change fast.
STEPS = (2, 8)
#: The same while modes are searched.
SEARCH_STEPS = (1, 3)
#: Forces change fast if ``dt² |df/dr| / 12`` exceeds this somewhere in the closer half of the distances that occur.
STIFF = 0.01


def check_unshared(scenes: Scenes) -> None:
    """Refuse scenes that share a structure.

    Raises:
        ValueError: some do.
    """
    if scenes.num_groups < scenes.num_scenes:
        raise ValueError("scenes with hidden entities must not share structures, found a structure with several")


class HiddenLikelihood:
    """Composite likelihood of observed impulses given the initial states of hidden entities and a structure.

    The path of the hidden entities follows from the learned forces, beside the recorded paths of the others
    (:class:`HiddenPaths`); what observed entities then do not explain of one another's impulses the hidden ones must.
    Hidden entities have no data, so no term of their own.

    Args:
        model: pair forces between particles; frozen here.
        scenes: B scenes, each with a structure of its own; every present entity seen in every frame.
        num_hidden: N_hidden.
        num_steps: of a frame of the hidden paths; default: :data:`STEPS`.

    Raises:
        ValueError: the model has other dynamics, scenes share structures, or a state is missing.
    """

    def __init__(self, model: SceneModel, scenes: Scenes, num_hidden: int, *, num_steps: int | None = None) -> None:
        self.noise: AbstractNoise
        self.dynamics, self.noise, power = model.impulse_parts
        scenes = model.prepare(scenes).to(torch.float64)
        check_unshared(scenes)
        if num_steps is None:
            num_steps = STEPS[1] if self.is_stiff else STEPS[0]
        self.num_hidden = num_hidden
        self.scenes = scenes
        self.paths = HiddenPaths(self.dynamics, scenes, num_steps=num_steps)
        with torch.no_grad():
            features = refined_features(
                self.dynamics,
                scenes,
                lambda features: most_likely_structure(self.dynamics, self.noise, features),
                whiten=False,
            )
            self.impulses = features.impulses(self.dynamics.laws)  # [B, T - 1, N, N - 1, K, S]
            self.strength = power(features)  # [B, N]
        self.target, self.mask = features.target, features.mask
        self.context = features.context if self.noise.uses_context else None
        self.offset, self.scale = model.score_offset.double(), model.score_scale.double()

    @property
    def num_edge_types(self) -> int:
        """K."""
        return self.dynamics.num_edge_types

    @property
    def num_observed(self) -> int:
        """N."""
        return self.scenes.num_entities

    def first_frames(self, num_transitions: int) -> "HiddenLikelihood":
        """The same of the first transitions alone."""
        part = copy.copy(self)
        part.paths = self.paths.first_frames(num_transitions)
        for name in ("impulses", "target", "mask", "context"):
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[:, :num_transitions])
        return part

    def with_steps(self, num_steps: int) -> "HiddenLikelihood":
        """The same with another number of steps of the hidden paths in a frame."""
        other = copy.copy(self)
        other.paths = HiddenPaths(self.dynamics, self.scenes, num_steps=num_steps)
        return other

    @property
    def is_stiff(self) -> bool:
        """Whether forces may change fast within a frame."""
        return is_stiff(self.dynamics)

    def searched(self) -> "HiddenLikelihood":
        """The same with fewer steps, to search on."""
        return self.with_steps(SEARCH_STEPS[1] if self.is_stiff else SEARCH_STEPS[0])

    def blunted(self, share: float) -> "HiddenLikelihood":
        """The same with noise as large as a share of the typical impulse of each scene, and without power."""
        return self.with_scale(share * self.typical_impulse())

    def with_scale(self, scale: Tensor) -> "HiddenLikelihood":
        """The same with noise of a given scale, per unit time, of the impulses of each scene ``[B]``, without power."""
        other = copy.copy(self)
        other.noise = GivenScaleNoise(self.target.shape[-1], 1)
        other.context = scale[:, None, None, None].expand(*self.target.shape[:3], 1)
        other.strength = torch.ones_like(self.strength)
        return other

    def typical_impulse(self) -> Tensor:
        """Typical size of the observed impulses of each scene, ``[B]``."""
        return typical_size(self.target, self.mask)

    def __getitem__(self, index: Tensor) -> "HiddenLikelihood":
        """The same of some scenes, long ``[B']``; a scene may come again."""
        part = copy.copy(self)
        part.scenes = self.scenes  # names and sizes only
        part.paths = self.paths[index]
        for name in ("impulses", "strength", "target", "mask", "context"):
            value = getattr(self, name)
            setattr(part, name, None if value is None else value[index])
        return part

    def path(self, hidden_state: Tensor, into_hidden: Tensor) -> HiddenPath:
        """Paths of the hidden entities.

        Args:
            hidden_state: ``[*batch, B, N_hidden, D]``, scaled units.
            into_hidden: types of the edges into each hidden entity, long ``[*batch, B, N_hidden, N + N_hidden - 1]``.
        """
        weight = torch.nn.functional.one_hot(into_hidden, self.num_edge_types).to(hidden_state)
        before = torch.nn.functional.pad(weight[..., self.num_observed :, :], (0, 0, 0, 1))
        after = torch.nn.functional.pad(weight[..., self.num_observed :, :], (0, 0, 1, 0))
        place = torch.arange(self.num_hidden, device=weight.device)
        is_later = (place > place[:, None])[..., None]  # sender after the receiver: its own place lies between
        among = torch.where(is_later, after, before)
        whole = torch.cat([weight[..., : self.num_observed, :], among], -2)
        return self.paths(hidden_state * self.scale + self.offset, whole)

    def all_impulses(self, hidden: Tensor) -> Tensor:
        """Impulses of all senders on the observed, ``[*batch, B, T - 1, N, N - 1 + N_hidden, K, S]``."""
        observed = self.impulses.expand(*hidden.shape[:-3], *self.impulses.shape[-3:])
        return torch.cat([observed, hidden], -3)

    def residual(self, path: HiddenPath, incoming: Tensor) -> Tensor:
        """What is left of the observed impulses, ``[*batch, B, T - 1, N, S]``.

        Args:
            path: of the hidden entities.
            incoming: types of the edges into each observed entity, long ``[*batch, B, N, N - 1 + N_hidden]``.
        """
        impulses = self.all_impulses(path.impulses)
        index = incoming[..., None, :, :, None, None].expand(*impulses.shape[:-2], 1, impulses.shape[-1])
        return self.target - impulses.gather(-2, index).squeeze(-2).sum(-2)

    def log_prob(self, residual: Tensor) -> Tensor:
        """Terms of observed entities from residuals: ``[*batch, B, N]``."""
        zero = torch.zeros_like(residual)
        log_prob: Tensor = self.noise(zero, self.context).log_prob(residual)
        counted = torch.where(self.mask, log_prob, torch.zeros_like(log_prob))
        total: Tensor = counted.sum(-2) * self.strength
        return total

    def unit_scale(self) -> Tensor:
        """Scale of the noise of each impulse, ``[B, T - 1, N, S]``."""
        zero = torch.zeros_like(self.target)
        freedom = self.noise.precision(zero, self.context)  # (nu + n) / nu / scale² for Student-t noise
        return freedom.clamp(min=1e-300).rsqrt()

    def precision(self, residual: Tensor) -> Tensor:
        """Weights of a least squares fit, shaped as the residual."""
        weight = self.noise.precision(residual, self.context) * self.strength[..., None, :, None]
        return torch.where(self.mask[..., None], weight, torch.zeros_like(weight))

    def table(self, path: HiddenPath) -> Tensor:
        """Log-likelihood of every code of every observed receiver, ``[*batch, B, N, K ** (N - 1 + N_hidden)]``."""
        lead = path.impulses.shape[:-6]
        flat = path.impulses.flatten(0, len(lead) - 1) if lead else path.impulses[None]
        count = num_codes(self.num_edge_types, self.num_observed + self.num_hidden)
        size = chunk_size(self.target.numel() * count, self.target.device)
        context = None if self.context is None else self.context[..., None, :]
        parts = []
        for part in flat.split(size):
            summed = sums_of_codes(self.all_impulses(part))
            log_prob = self.noise(summed, context).log_prob(self.target[..., None, :])
            counted = torch.where(self.mask[..., None], log_prob, torch.zeros_like(log_prob)).sum(-3)
            parts.append(counted * self.strength[..., None])
        return torch.cat(parts).view(*lead, *parts[0].shape[1:])


def is_stiff(dynamics: PairForces) -> bool:
    """Whether forces may change fast within a frame."""
    points = dynamics.laws.points()
    nearer = points[len(points) // 4 : len(points) // 2]
    return bool((dynamics.laws.slope(nearer) * dynamics.time_step**2 / 12).amax() > STIFF)


def typical_size(target: Tensor, mask: Tensor) -> Tensor:
    """Typical size of the impulses ``[B, T - 1, N, S]`` that count, ``[B, T - 1, N]``: ``[B]``, 0 where none does."""
    size = torch.where(mask[..., None], target.abs(), torch.nan).flatten(1)
    return torch.nan_to_num(size.nanmedian(1).values)
