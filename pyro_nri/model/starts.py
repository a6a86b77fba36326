"""From latents in scaled units to the state of all entities at frame 0."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.scaling import Scaling

#: Latents by site name.
Latents = dict[str, Tensor]


class AbstractStart(nn.Module, ABC):
    """A map from latents to initial states. All latents have standard normal priors, so the map carries the prior.

    Attributes:
        num_hidden: entities without data, numbered after the observed ones.
    """

    num_hidden: int

    @abstractmethod
    def shapes(self, num_entities: int) -> dict[str, tuple[int, ...]]:
        """Event shape of each latent site, in the order in which they are sampled.

        Args:
            num_entities: N, observed entities.
        """

    @abstractmethod
    def forward(self, latents: Latents) -> Tensor:
        """Raw states of all entities at frame 0.

        Args:
            latents: ``[*batch, *shape]`` each, scaled units.

        Returns:
            ``[*batch, N + N_hidden, D]``.
        """


class ScaledStart(AbstractStart):
    """Every state variable of every entity is latent: ``raw = offset + scale * latent``.

    Sites: ``initial_state`` ``[N, D]``; ``hidden_state`` ``[N_hidden, D]`` where something is hidden.

    Args:
        scaling: constants of scaled units, ``[D]`` each: where the prior lies and how wide it is.
        num_hidden: number of hidden entities.

    Raises:
        ValueError: ``num_hidden`` is negative.
    """

    def __init__(self, scaling: Scaling, *, num_hidden: int = 0) -> None:
        super().__init__()
        if num_hidden < 0:
            raise ValueError(f"num_hidden must be 0 or more, found {num_hidden}")
        self.num_hidden = num_hidden
        self.register_buffer("offset", scaling.offset.clone())
        self.register_buffer("scale", scaling.scale.clone())
        self.offset: Tensor
        self.scale: Tensor

    def shapes(self, num_entities: int) -> dict[str, tuple[int, ...]]:
        size = len(self.offset)
        hidden = {"hidden_state": (self.num_hidden, size)} if self.num_hidden else {}
        return {"initial_state": (num_entities, size), **hidden}

    def forward(self, latents: Latents) -> Tensor:
        state = torch.cat(list(latents.values()), -2) if self.num_hidden else latents["initial_state"]
        return self.offset + self.scale * state
