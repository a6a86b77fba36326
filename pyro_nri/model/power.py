"""How far a density of one step is believed, so that its posterior of structures is as sure as it may be."""

import torch
from torch import Tensor, nn


class DensityPower(nn.Module):
    """Power to which a receiver's likelihood is raised: ``exp(w0 + w1 log(number of its transitions / 48))``.

    The density takes the errors of learned modules for independent from frame to frame, though they repeat; and
    measurement noise, which enters two neighbouring transitions, for independent too. Weights 0, the start, leave it as
    it is. Fitted by :func:`pyro_nri.learning.agreement.fit_power`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(2))
        self.weight: Tensor

    @property
    def is_one(self) -> bool:
        """Whether the density is left as it is."""
        return not bool(self.weight.any())

    def forward(self, transition_mask: Tensor) -> Tensor:
        """Power of each receiver's log-likelihood, float64 ``[B, N]``.

        Args:
            transition_mask: transitions that count, bool ``[B, T - 1, N]``.
        """
        return power_of_frames(transition_mask.sum(1), self.weight.double())


def power_of_frames(number: Tensor, weight: Tensor) -> Tensor:
    """See :class:`DensityPower`: shaped as the number of transitions; differentiable in the weights ``[2]``."""
    length = (number.clamp(min=1).to(weight) / 48).log()  # against the 49 frames of NRI's protocol
    return (weight[0] + weight[1] * length).clamp(-5, 5).exp()
