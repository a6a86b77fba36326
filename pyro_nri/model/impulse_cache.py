"""The impulse likelihood of scenes whose receiver table would be too large, as it is and blunted for searches."""

import copy

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.model.noise import AbstractNoise
from pyro_nri.model.propagation import ENOUGH, propagate
from pyro_nri.model.receivers import AbstractLikelihood, MessageCache
from pyro_nri.model.relaxed import relax
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Noise of searches, shares of the typical impulse: the widest first.
BLUNT = (1e-2, 1e-3, 1e-4, 1e-5)


class ImpulseCache(MessageCache):
    """Composite likelihood whose messages are the impulses.

    Args:
        impulses: ``[B, T - 1, N, N - 1, K, S]``.
        features: of the same scenes; their paths are not needed.
        noise: frozen.
        strength: how far each receiver's likelihood is believed, ``[B, N]``.
        scenes: B scenes in G groups.
    """

    def __init__(
        self, impulses: Tensor, features: ImpulseFeatures, noise: AbstractNoise, strength: Tensor, scenes: Scenes
    ) -> None:
        self.features, self.noise, self.strength = features, noise, strength
        self.guess: Tensor | None = None
        self.sharp: ImpulseCache | None = None  # what this is the blunted likelihood of
        relaxed = relax(impulses, features, noise, scenes.group_index)
        super().__init__(impulses, self._terms, scenes, is_density=False, relaxed=relaxed)

    def blunted(self) -> list[AbstractLikelihood]:
        """With noise of at least :data:`BLUNT` shares of the typical impulse, as far as they are wider than its own."""
        own = float((self.noise.scale / self.noise.change_scale).detach().median())
        blunt: list[AbstractLikelihood] = []
        for share in (each for each in BLUNT if each > 2 * own):
            with torch.no_grad():
                other = copy.copy(self)
                other.sharp, other.noise = self, self.noise.blunted(share)
                other.relaxed = relax(self.messages.movedim(4, 1), self.features, other.noise, self.scenes.group_index)
                other.score = other._terms
                blunt.append(other)
        return blunt

    def likely_types(self) -> Tensor:
        """By expectation propagation; the same for the blunted likelihoods, whatever their noise."""
        if self.sharp is not None:
            return self.sharp.likely_types()
        if self.guess is None:
            features, group = self.features, self.scenes.group_index
            with torch.no_grad():
                zero = torch.zeros_like(features.target)
                context = features.context if self.noise.uses_context else None
                rough = ENOUGH * self.noise.precision(zero, context).rsqrt()
                each = torch.where(features.mask, self.noise(zero, context).log_prob(rough), 0.0).sum(1) * self.strength
                enough = each.new_zeros(self.scenes.num_groups, each.shape[-1]).index_add(0, group, each)
                impulses = self.messages.movedim(4, 1)
                incoming = propagate(impulses, features, self.noise, group, self._of_types, enough)
                self.guess = edges.from_incoming(incoming.movedim(-1, 0)).movedim(0, -1)
        return self.guess

    def _of_types(self, incoming: Tensor) -> Tensor:
        """Log-likelihood ``[G, N]`` of types ``[G, N, N - 1]``."""
        return self.receiver_terms(edges.from_incoming(incoming)[None])[0]

    def _terms(self, scene: Tensor, receiver: Tensor, summed: Tensor) -> Tensor:
        features = self.features
        context = features.context[scene, :, receiver] if self.noise.uses_context else None
        target, mask = features.target[scene, :, receiver], features.mask[scene, :, receiver]
        log_prob = self.noise(summed, context).log_prob(target) * self.strength[scene, receiver, None]
        return torch.where(mask, log_prob, torch.zeros_like(log_prob))
