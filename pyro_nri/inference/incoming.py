"""The types of a receiver's incoming edges as one joint distribution, sender after sender."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_nri.inference.streams import categorical


class IncomingDistribution(dist.TorchDistribution):
    """Joint distribution of the types of the edges into receivers: each sender's logits know the types drawn before it.

    ``p(z) = prod_e [(1 - floor) softmax(base[e] + sum_d coupling[e, :, d, z_d])[z_e] + floor / K]``, the sum over
    senders d that come before e. Batch shape ``[*batch]``, usually ``[G, N]``; event shape ``[N - 1]``, senders
    ascending; values long. A sender that does not exist has type 0 and says nothing of others.

    Args:
        base: logits, ``[*batch, N - 1, K]``.
        coupling: what type l of sender d adds to the logit of type k of sender e, ``[*batch, N - 1 (e), K (k), N - 1
            (d), K (l)]``; entries whose d does not come before e are not read.
        exists: which senders exist, bool ``[*batch, N - 1]``; default: all.
        order: senders in the order in which they are drawn, long ``[*batch, N - 1]``; default: ascending.
        floor: share of the uniform distribution at each sender, which keeps all types in reach.

    Raises:
        ValueError: a shape does not fit or ``floor`` is not in [0, 1].

    Example:
        Exactly one of two senders is linked.

        >>> coupling = torch.zeros(2, 2, 2, 2)
        >>> coupling[1, :, 0, :] = torch.tensor([[-99.0, 99.0], [99.0, -99.0]])
        >>> one_of_two = IncomingDistribution(torch.zeros(2, 2), coupling)
        >>> one_of_two.log_prob(torch.tensor([[0, 0], [0, 1], [1, 0]])).exp().tolist()
        [0.0, 0.5, 0.5]
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(
        self,
        base: Tensor,
        coupling: Tensor,
        *,
        exists: Tensor | None = None,
        order: Tensor | None = None,
        floor: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        senders = base.shape[:-1]  # [*batch, N - 1]
        wanted = (*base.shape, *base.shape[-2:])
        if tuple(coupling.shape) != wanted:
            raise ValueError(f"coupling must have shape {list(wanted)}, found {list(coupling.shape)}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, found {floor}")
        if exists is None:
            exists = torch.ones(senders, dtype=torch.bool, device=base.device)
        if order is None:
            order = torch.arange(senders[-1], device=base.device).expand(senders)
        for name, value in (("exists", exists), ("order", order)):
            if value.shape != senders:
                raise ValueError(f"{name} must have shape {list(senders)}, found {list(value.shape)}")
        self.num_edge_types = base.shape[-1]
        self.base = base
        self.exists = exists
        self.order = order
        self.floor = floor
        speaks = comes_before(order) & exists[..., :, None] & exists[..., None, :]
        self.coupling = torch.where(speaks[..., :, None, :, None], coupling, torch.zeros_like(coupling))
        super().__init__(senders[:-1], senders[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Types 0 to K - 1 for each sender."""
        return constraints.independent(constraints.integer_interval(0, self.num_edge_types - 1), 1)

    def __getitem__(self, index: Any) -> "IncomingDistribution":
        """The distributions of some receivers: ``index`` goes into the batch."""
        return self._like(*(value[index] for value in self._parts))

    def expand(self, batch_shape: Any, _instance: Any = None) -> "IncomingDistribution":
        """The same distributions with a larger batch shape."""
        inner = len(self.batch_shape)
        return self._like(*(value.expand(*batch_shape, *value.shape[inner:]) for value in self._parts))

    def with_floor(self, floor: float) -> "IncomingDistribution":
        """The same distributions with another share of the uniform one at each sender."""
        return IncomingDistribution(
            self.base, self.coupling, exists=self.exists, order=self.order, floor=floor, validate_args=False
        )

    def double(self) -> "IncomingDistribution":
        """The same distributions in float64."""
        return self._like(self.base.double(), self.coupling.double(), self.exists, self.order)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability ``[*sample, *batch]`` of types ``[*sample, *batch, N - 1]``, in one pass."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.long()
        one_hot = torch.nn.functional.one_hot(value, self.num_edge_types).to(self.base.dtype)
        flat = self.coupling.flatten(-4, -3).flatten(-2)  # [*batch, (N - 1) K, (N - 1) K]
        said = (flat @ one_hot.flatten(-2)[..., None]).squeeze(-1)  # [*sample, *batch, (N - 1) K]
        log_prob = self._log_prob(self.base + said.unflatten(-1, self.base.shape[-2:]), self.exists)
        return log_prob.gather(-1, value[..., None]).squeeze(-1).sum(-1)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Types as a function of uniform numbers in [0, 1): ``[*batch, N - 1]`` to long ``[*batch, N - 1]``."""
        drawn = torch.zeros(uniform.shape, dtype=torch.long, device=uniform.device)
        said = self.base.new_zeros(*uniform.shape, self.num_edge_types)  # what earlier draws say of each sender
        flat = self.coupling.flatten(-2).expand(*said.shape, -1)  # [*batch, N - 1, K, (N - 1) K]
        every = self.base.expand(said.shape)
        for number in range(uniform.shape[-1]):
            sender = self.order[..., number, None].expand(*uniform.shape[:-1], 1)
            logits = (every + said).gather(-2, sender[..., None].expand(*sender.shape, self.num_edge_types))
            exists = self.exists.expand(uniform.shape).gather(-1, sender)
            probability = self._log_prob(logits, exists).exp()  # [*batch, 1, K]
            types = categorical(probability, uniform.gather(-1, sender))
            drawn.scatter_(-1, sender, types)
            place = (sender * self.num_edge_types + types)[..., None, None]
            said = said + flat.gather(-1, place.expand(*said.shape, 1)).squeeze(-1)
        return drawn

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw types, long ``[*sample, *batch, N - 1]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_uniform(torch.rand(shape, dtype=torch.float64, device=self.base.device))

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        return self.base, self.coupling, self.exists, self.order

    def _like(self, base: Tensor, coupling: Tensor, exists: Tensor, order: Tensor) -> "IncomingDistribution":
        return IncomingDistribution(
            base, coupling, exists=exists, order=order, floor=self.floor, validate_args=self._validate_args
        )

    def _log_prob(self, logits: Tensor, exists: Tensor) -> Tensor:
        """Log probability of each type, ``[*batch, R, K]``, of R senders."""
        log_prob = logits.log_softmax(-1)
        if self.floor:
            log_prob = ((1 - self.floor) * log_prob.exp() + self.floor / self.num_edge_types).log()
        absent = torch.full_like(log_prob, -torch.inf)
        absent[..., 0] = 0
        return torch.where(exists[..., None], log_prob, absent)


def comes_before(order: Tensor) -> Tensor:
    """Whether sender d (last axis) comes before sender e: order ``[*batch, M]`` to bool ``[*batch, M (e), M (d)]``.

    >>> comes_before(torch.tensor([1, 0])).tolist()
    [[False, True], [False, False]]
    """
    place = order.argsort(-1)
    return place[..., None, :] < place[..., :, None]
