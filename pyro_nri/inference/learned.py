"""A receiver's incoming edges at once, from what the chain itself saw of them in warm-up."""

import torch
from torch import Tensor

from pyro_nri.inference.blocks import JointBlock
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.trees import fit_tree
from pyro_nri.model.structures import StructureDistribution

#: Share of blocks that are drawn from what warm-up taught; the others are as before.
LEARNED_SHARE = 0.6
#: Distributions of more numbers than this, of all receivers of a scene together, are not learned.
MOST_NUMBERS = 50_000


class LearnedBlock(JointBlock):
    """All incoming edges of one receiver at once, from a distribution that is learned in warm-up and then frozen.

    Before that, and for a share of the blocks after it, from one that is given. What a chain saw in warm-up becomes a
    tree of dependence for each receiver (:func:`fit_tree`): edges that the data tell apart only together are proposed
    together. Arguments and errors are those of :class:`JointBlock`.
    """

    move_names = ("learned_block",)

    def __init__(
        self,
        prior: StructureDistribution,
        incoming: IncomingDistribution,
        *,
        floor: float | None = None,
        scan: str = "random",
    ) -> None:
        super().__init__(prior, incoming, floor=floor, scan=scan)
        self.num_edge_types = prior.num_edge_types
        self.exists = prior.edge_mask[:, self.edge]  # [G, N, N - 1]
        self.learned: IncomingDistribution | None = None  # batch [C, G, N]
        self.num_uniforms += 1

    def _draw(self, old: Tensor, receiver: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        new, log_q = super()._draw(old, receiver, uniform[..., 1:])
        if self.learned is None:
            return new, log_q
        chain, group = (torch.arange(size, device=old.device) for size in old.shape[:2])
        learned = self.learned[chain[:, None], group, receiver]
        is_learned = uniform[..., :1] < LEARNED_SHARE
        new = torch.where(is_learned, learned.from_uniform(uniform[..., 1:]), new)
        both = torch.stack([new, old])
        given = self.incoming[group, receiver].log_prob(both)
        share = given.new_tensor([LEARNED_SHARE, 1 - LEARNED_SHARE]).log()
        return new, torch.logaddexp(share[0] + learned.log_prob(both), share[1] + given)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        super().adapt(doubt)
        if seen is None or seen.shape[1] == 0:
            return
        types = seen.movedim(1, 0)[..., self.edge]  # [S, C, G, N, N - 1]
        if self.edge.numel() * self.edge.shape[-1] * self.num_edge_types**2 <= MOST_NUMBERS:
            learned = fit_tree(types, self.exists.expand(types.shape[1:]), self.num_edge_types)
            self.learned = learned.with_floor(self.incoming.floor)
