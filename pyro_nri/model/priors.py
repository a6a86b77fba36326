"""Which structures are likely before any motion was seen."""

import itertools
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution, SparseDistribution
from pyro_nri.model.structures import StructureDistribution as StructureDistribution

#: Largest number of tables that are looked through for those of a prior over labels.
MAX_TABLES = 2**16


class AbstractPrior(nn.Module, ABC):
    """Prior over structures with type weights that training may adapt.

    Args:
        num_edge_types: K.
        learn_weights: whether the weights of the types are learned; equal and fixed otherwise.

    Raises:
        ValueError: K is below 1.
    """

    type_logits: Tensor

    def __init__(self, num_edge_types: int, *, learn_weights: bool = True) -> None:
        super().__init__()
        if num_edge_types < 1:
            raise ValueError(f"num_edge_types must be at least 1, found {num_edge_types}")
        self.num_edge_types = num_edge_types
        self.learn_weights = learn_weights
        logits = torch.zeros(num_edge_types)
        if learn_weights:
            self.type_logits = nn.Parameter(logits)
        else:  # no parameter: Pyro would warn that it is not trained
            self.register_buffer("type_logits", logits)

    @property
    def is_open(self) -> bool:
        """Whether training still has to choose something that the prior cannot do without."""
        return False

    def check_closed(self) -> None:
        """Refuse to go on with an open prior.

        Raises:
            ValueError: the prior is open.
        """
        if self.is_open:
            raise ValueError(
                "the prior is open: training did not choose its table; choose one with choose_table and set_table"
            )

    @abstractmethod
    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        """Distribution of the structures of scenes whose existing edges are ``edge_mask``, bool ``[*batch, E]``."""


class IndependentPrior(AbstractPrior):
    """Each edge has its type independently of all others."""

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        return EdgeDistribution(self.type_logits.log_softmax(-1), edge_mask, validate_args=False)


class SymmetricPrior(AbstractPrior):
    """Both edges of a pair have one type, z_ij = z_ji; pairs are independent."""

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        return EdgeDistribution(self.type_logits.log_softmax(-1), edge_mask, tied=True, validate_args=False)


class SparsePrior(AbstractPrior):
    """As symmetric; the number of pairs that interact (any type but 0) is Beta-Bernoulli in each structure.

    The share of interacting pairs is integrated out, so that each structure may be as dense as its data say, and the
    interacting types are alike: there are no weights to learn.

    Args:
        num_edge_types: K, type 0 included.
        concentration: (a, b) of ``rho ~ Beta(a, b)``, the probability that a pair interacts.

    Raises:
        ValueError: K is below 2 or a concentration is not positive.
    """

    def __init__(self, num_edge_types: int, *, concentration: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__(num_edge_types, learn_weights=False)
        if num_edge_types < 2:
            raise ValueError(f"num_edge_types must be at least 2 for a sparse prior, found {num_edge_types}")
        if min(concentration) <= 0:
            raise ValueError(f"concentration must be two positive numbers, found {concentration}")
        self.concentration = concentration

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        return SparseDistribution(self.num_edge_types, edge_mask, concentration=self.concentration, validate_args=False)


class ChargesPrior(AbstractPrior):
    """Each entity has one of L labels, all alike; a table gives the type of an edge from the labels of its ends.

    The table is chosen once by :func:`~pyro_nri.inference.evidence.choose_table` while the modules are trained, and
    frozen. Until then the prior is *open*: its entries are -1, and structures are searched without the constraint,
    under independent edges with weights that may be learned.

    Args:
        num_edge_types: K.
        num_labels: L.
        learn_weights: whether the weights of the types are learned while the prior is open.

    Attributes:
        table: type by the labels of sender and receiver, long ``[L, L]``; part of the state dict, open or not.

    Raises:
        ValueError: there are fewer than two labels, or more types than entries of the table.
    """

    table: Tensor

    def __init__(self, num_edge_types: int, *, num_labels: int = 2, learn_weights: bool = True) -> None:
        super().__init__(num_edge_types, learn_weights=learn_weights)
        if num_labels < 2:
            raise ValueError(f"num_labels must be at least 2, found {num_labels}")
        if num_edge_types > num_labels**2:
            raise ValueError(
                f"num_edge_types must be at most {num_labels**2}, the entries of a table of {num_labels} labels, "
                f"found {num_edge_types}"
            )
        self.num_labels = num_labels
        self.register_buffer("table", torch.full((num_labels, num_labels), -1))

    @property
    def is_open(self) -> bool:
        return bool((self.table < 0).any())

    def set_table(self, table: Tensor) -> None:
        """Fix the table; from now on only structures that labels can give are possible.

        Raises:
            ValueError: the table has another shape, or other entries than types.
        """
        wanted = [self.num_labels, self.num_labels]
        is_type = not table.is_floating_point() and ((table >= 0) & (table < self.num_edge_types)).all()
        if list(table.shape) != wanted or not is_type:
            raise ValueError(
                f"table must have shape {wanted} and types 0 to {self.num_edge_types - 1}, "
                f"found shape {list(table.shape)} and entries {table.tolist()}"
            )
        self.table.copy_(table)

    def candidate_tables(self) -> Tensor:
        """All tables that use every type, one of those that only swap labels, long ``[J, L, L]``.

        Raises:
            ValueError: there are too many tables to look through.
        """
        size = self.num_labels
        if self.num_edge_types ** (size * size) > MAX_TABLES:
            raise ValueError(
                f"{self.num_edge_types}^{size * size} tables are too many to look through, at most {MAX_TABLES}; "
                "use fewer labels, or set_table"
            )
        place = self.num_edge_types ** torch.arange(size * size - 1, -1, -1).reshape(size, size)
        number = torch.arange(self.num_edge_types ** (size * size))
        tables = number[:, None, None] // place % self.num_edge_types  # [K^(L L), L, L]
        keep = torch.ones(len(tables), dtype=torch.bool)
        for k in range(self.num_edge_types):
            keep &= (tables == k).any(-1).any(-1)
        for permutation in itertools.permutations(range(size)):
            order = list(permutation)
            keep &= number <= (tables[:, order][:, :, order] * place).sum((-2, -1))
        return tables[keep]

    def forward(self, edge_mask: Tensor) -> StructureDistribution:
        if self.is_open:
            return EdgeDistribution(self.type_logits.log_softmax(-1), edge_mask, validate_args=False)
        return ChargesDistribution(self.table.clone(), self.num_edge_types, edge_mask, validate_args=False)


PRIORS = ("independent", "symmetric", "charges", "sparse")


def make_prior(name: str, num_edge_types: int, *, learn_weights: bool = True, num_labels: int = 2) -> AbstractPrior:
    """Prior by name.

    Args:
        name: "independent", "symmetric", "charges" or "sparse".
        num_edge_types: K.
        learn_weights: whether the weights of the types are learned ("sparse" has none).
        num_labels: L, of "charges".

    Raises:
        ValueError: the name is unknown, or the prior does not admit the other arguments.
    """
    if name == "independent":
        return IndependentPrior(num_edge_types, learn_weights=learn_weights)
    if name == "symmetric":
        return SymmetricPrior(num_edge_types, learn_weights=learn_weights)
    if name == "charges":
        return ChargesPrior(num_edge_types, num_labels=num_labels, learn_weights=learn_weights)
    if name == "sparse":
        return SparsePrior(num_edge_types)
    raise ValueError(f"prior must be one of {', '.join(PRIORS)}, found {name!r}")
