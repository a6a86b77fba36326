"""The types of a receiver's incoming edges as one joint distribution, sender after sender."""

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


class IncomingDistribution(dist.TorchDistribution):
    """Joint distribution of the types of the edges into receivers: each sender's logits know the types drawn before it.

    ``p(z) = prod_e [(1 - floor) softmax(base[e] + sum_d coupling[e, :, d, z_d])[z_e] + floor / K]``, the sum over
    senders d that come before e. Batch shape ``[*batch]``, usually ``[G, N]``; event shape ``[N - 1]``, senders
    ascending; values long. A sender that does not exist has type 0 and says nothing of others.

    Args:
        base: logits, ``[*batch, N - 1, K]``.
        coupling: what type l of sender d adds to the logit of type k of sender e, ``[*batch, N - 1 (e), K (k), N - 1
            (d), K (l)]``; entries whose d does not come before e are not read. None: nothing is said.
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
        coupling: Tensor | None,
        *,
        exists: Tensor | None = None,
        order: Tensor | None = None,
        floor: float = 0.0,
        validate_args: bool | None = None,
    ) -> None:
        senders = base.shape[:-1]  # [*batch, N - 1]
        wanted = (*base.shape, *base.shape[-2:])
        if coupling is not None and tuple(coupling.shape) != wanted:
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
        if coupling is not None:
            speaks = comes_before(order) & exists[..., :, None] & exists[..., None, :]
            coupling = torch.where(speaks[..., :, None, :, None], coupling, torch.zeros_like(coupling))
        self.coupling = coupling
        super().__init__(senders[:-1], senders[-1:], validate_args=validate_args)

    @classmethod
    def edge_by_edge(cls, probability: Tensor, exists: Tensor) -> "IncomingDistribution":
        """Senders that say nothing of one another, from the probability of each type, ``[*batch, N - 1, K]``."""
        return cls(probability.clamp(min=1e-300).log(), None, exists=exists, validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Types 0 to K - 1 for each sender."""
        return constraints.independent(constraints.integer_interval(0, self.num_edge_types - 1), 1)

    def __getitem__(self, index: Any) -> "IncomingDistribution":
        """The distributions of some receivers: ``index`` goes into the batch."""
        return self._each(lambda value: value[index])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "IncomingDistribution":
        """The same distributions with a larger batch shape."""
        inner = len(self.batch_shape)
        return self._each(lambda value: value.expand(*batch_shape, *value.shape[inner:]))

    def with_floor(self, floor: float) -> "IncomingDistribution":
        """The same distributions with another share of the uniform one at each sender.

        Raises:
            ValueError: ``floor`` is not in [0, 1].
        """
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must be between 0 and 1, found {floor}")
        changed = self._each(lambda value: value)
        changed.floor = floor
        return changed

    def double(self) -> "IncomingDistribution":
        """The same distributions in float64."""
        coupling = None if self.coupling is None else self.coupling.double()
        return self._like(self.base.double(), coupling, self.exists, self.order)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability ``[*sample, *batch]`` of types ``[*sample, *batch, N - 1]``, in one pass."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.long()
        logits = self.base.expand(*value.shape, -1)
        if self.coupling is not None:
            one_hot = torch.nn.functional.one_hot(value, self.num_edge_types).to(self.base.dtype)
            flat = self.coupling.flatten(-4, -3).flatten(-2)  # [*batch, (N - 1) K, (N - 1) K]
            said = (flat @ one_hot.flatten(-2)[..., None]).squeeze(-1)  # [*sample, *batch, (N - 1) K]
            logits = logits + said.unflatten(-1, self.base.shape[-2:])
        log_prob = self._log_probability(logits, self.exists)
        return log_prob.gather(-1, value[..., None]).squeeze(-1).sum(-1)

    def from_uniform(self, uniform: Tensor) -> Tensor:
        """Types as a function of uniform numbers in [0, 1): ``[*batch, N - 1]`` to long ``[*batch, N - 1]``."""
        if self.coupling is None:
            logits = self.base.expand(*uniform.shape, -1)
            return self._types(logits, self.exists.expand(uniform.shape), uniform)
        order = self.order.expand(uniform.shape)
        last = self.base.shape[-2:]  # N - 1, K
        by_sender = order[..., None].expand(*uniform.shape, last[1])
        base = self.base.expand(by_sender.shape).gather(-2, by_sender)
        coupling = self.coupling.flatten(-2).expand(*by_sender.shape, -1)
        coupling = coupling.gather(-3, by_sender[..., None].expand(coupling.shape)).unflatten(-1, last)
        to_sender = order[..., None, None, :, None].expand(coupling.shape)
        coupling = coupling.gather(-2, to_sender)  # both axes in the order of drawing
        exists, uniform = self.exists.expand(order.shape).gather(-1, order), uniform.gather(-1, order)
        said = torch.zeros_like(base)  # what earlier draws say of each sender, [*batch, N - 1, K]
        drawn = []
        for number in range(last[0]):
            logits = base[..., number, :] + said[..., number, :]
            types = self._types(logits, exists[..., number], uniform[..., number])
            drawn.append(types)
            chosen = types[..., None, None, None].expand(*said.shape, 1)
            said = said + coupling[..., number, :].gather(-1, chosen).squeeze(-1)
        return torch.empty_like(order).scatter_(-1, order, torch.stack(drawn, -1))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw types, long ``[*sample, *batch, N - 1]``."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.from_uniform(torch.rand(shape, dtype=torch.float64, device=self.base.device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "IncomingDistribution":
        """The same of changed tensors."""
        coupling = None if self.coupling is None else change(self.coupling)
        return self._like(change(self.base), coupling, change(self.exists), change(self.order))

    def _like(self, base: Tensor, coupling: Tensor | None, exists: Tensor, order: Tensor) -> "IncomingDistribution":
        new = IncomingDistribution.__new__(IncomingDistribution)  # what is not read is zero already
        new.num_edge_types, new.floor = self.num_edge_types, self.floor
        new.base, new.coupling, new.exists, new.order = base, coupling, exists, order
        dist.TorchDistribution.__init__(new, base.shape[:-2], base.shape[-2:-1], validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _types(self, logits: Tensor, exists: Tensor, uniform: Tensor) -> Tensor:
        """Types of senders from logits ``[*batch, K]`` and uniform numbers ``[*batch]``."""
        cumulative = self._probability(logits, exists).cumsum(-1)
        # The target is below the total, so a type of probability zero is never drawn.
        return (cumulative[..., :-1] <= uniform[..., None] * cumulative[..., -1:]).sum(-1)

    def _probability(self, logits: Tensor, exists: Tensor) -> Tensor:
        """Probability of each type ``[*batch, K]`` of senders."""
        probability = logits.softmax(-1)
        if self.floor:
            probability = (1 - self.floor) * probability + self.floor / self.num_edge_types
        return torch.where(exists[..., None], probability, _absent(probability))

    def _log_probability(self, logits: Tensor, exists: Tensor) -> Tensor:
        """Its logarithm; precise, and with finite gradients, without a floor too."""
        if self.floor:
            return self._probability(logits, exists).log()
        return torch.where(exists[..., None], logits.log_softmax(-1), _absent(logits).log())


def _absent(like: Tensor) -> Tensor:
    """Type 0 with certainty, ``[K]``."""
    probability = like.new_zeros(like.shape[-1])
    probability[0] = 1
    return probability


def comes_before(order: Tensor) -> Tensor:
    """Whether sender d (last axis) comes before sender e: order ``[*batch, M]`` to bool ``[*batch, M (e), M (d)]``.

    >>> comes_before(torch.tensor([1, 0])).tolist()
    [[False, True], [False, False]]
    """
    place = order.argsort(-1)
    return place[..., None, :] < place[..., :, None]
