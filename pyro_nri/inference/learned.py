"""A receiver's incoming edges at once, from what the chain itself saw of them in warm-up."""

import torch
from torch import Tensor

from pyro_nri.inference.blocks import JointBlock
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.trees import fit_tree

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

    num_choices = 2
    learned: IncomingDistribution | None = None  # batch [C, G, N]

    def _draw(self, old: Tensor, receiver: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        is_learned, each = uniform[..., :1] < LEARNED_SHARE, uniform[..., 1:]
        if self.learned is None:
            return super()._draw(old, receiver, each)
        chain, group = (torch.arange(size, device=old.device) for size in old.shape[:2])
        given, learned = self.incoming[group, receiver], self.learned[chain[:, None], group, receiver]
        new = torch.where(is_learned, learned.from_uniform(each), given.from_uniform(each))
        both = torch.stack([new, old])
        share = uniform.new_tensor([LEARNED_SHARE, 1 - LEARNED_SHARE]).log()
        return new, torch.logaddexp(share[0] + learned.log_prob(both), share[1] + given.log_prob(both))

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        super().adapt(doubt)
        if seen is None or seen.shape[1] == 0:
            return
        types = seen.movedim(1, 0)[..., self.edge]  # [S, C, G, N, N - 1]
        if self.edge.numel() * self.edge.shape[-1] * self.prior.num_edge_types**2 <= MOST_NUMBERS:
            exists = self.prior.edge_mask[:, self.edge].expand(types.shape[1:])
            self.learned = fit_tree(types, exists, self.prior.num_edge_types).with_floor(self.incoming.floor)
