"""Moves on the labels behind structures, for the prior "charges".

Only the structure is stored. A move draws one of the labelings that give it, all equally likely, and changes the label
of one entity; the labeling is then forgotten. With ``n(z)`` labelings of a structure ``z``, the way there has the
probability ``1 / n(z)`` times that of the new label, the way back ``1 / n(z')`` times that of the old one: an exact
Metropolis step on structures for every table, however many labelings give one structure.
"""

from abc import abstractmethod

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice, proposed_probability, shift
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.structures import ChargesDistribution
from pyro_nri.scenes import edges


class PriorDraw(AbstractProposal):
    """All labels at once, from the prior; for chains that no change of single labels leads to another mode.

    Args:
        prior: prior over labels of the G structures.
    """

    move_names = ("prior_draw",)

    def __init__(self, prior: ChargesDistribution) -> None:
        self.prior = prior
        self.num_uniforms = prior.num_entities

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        new = self.prior.from_uniform(uniform)
        log_forward, log_reverse = (self.prior.log_prob(z) for z in (new, latents["edge_type"]))
        # From a structure that the prior excludes every way out is welcome.
        return Move({"edge_type": new}, log_forward, log_reverse.clamp(min=torch.finfo(torch.float64).min), 0)


class UniformLabel(AbstractProposal):
    """The label of one entity, uniform among all, becomes another one, uniform among the others.

    Args:
        prior: prior over labels of the G structures.
    """

    move_names = ("uniform_label",)

    def __init__(self, prior: ChargesDistribution) -> None:
        self.prior = prior
        self.choose = Choice(prior.entity_mask)
        self.num_uniforms = 2 + prior.num_entities

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        labelings = self.prior.labelings(structure)
        labels = labelings.draw(uniform[..., 2:])  # [C, G, N]
        entity = self.choose(uniform[..., 0], step)[..., None]
        label = labels.gather(-1, entity) + shift(uniform[..., 1], self.prior.num_labels)[..., None]
        new = self.prior.structure_of(labels.scatter(-1, entity, label % self.prior.num_labels))
        return _move(structure, new, -labelings.log_count, -self.prior.labelings(new).log_count, labelings.log_count)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(_doubt_of_entities(doubt))


class AbstractLabelBlock(AbstractProposal):
    """The label of one entity is drawn anew, with weights that depend on the structures that its labels make.

    Args:
        prior: prior over labels of the G structures.
        scan: "random" entity, or entities in "turn".

    Raises:
        ValueError: ``scan`` is unknown.
    """

    def __init__(self, prior: ChargesDistribution, *, scan: str = "random") -> None:
        self.prior = prior
        self.choose = Choice(prior.entity_mask, scan)
        self.num_uniforms = 2 + prior.num_entities

    @abstractmethod
    def log_weight(self, structure: Tensor, temperature: float | Tensor) -> Tensor:
        """Log weight ``[L C, G]`` of structures ``[L C, G, E]``, labels first; a temperature may be ``[C, G]``."""

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure, num_labels = latents["edge_type"], self.prior.num_labels
        labelings = self.prior.labelings(structure)
        labels = labelings.draw(uniform[..., 2:])  # [C, G, N]
        entity = self.choose(uniform[..., 0], step)
        each = with_each_label(labels, entity, num_labels)
        each = self.prior.structure_of(each)  # [L, C, G, E]
        flat = each.flatten(0, 1)
        log_count = self.prior.labelings(flat).log_count  # [L C, G]
        log_weight = self.log_weight(flat, temperature).unflatten(0, each.shape[:2])
        log_prob = log_weight.log_softmax(0)
        old = labels.gather(-1, entity[..., None]).movedim(-1, 0)  # [1, C, G]
        chosen = categorical(log_prob.exp().movedim(0, -1), uniform[..., 1])[None]
        new = each.gather(0, chosen[..., None].expand(-1, -1, -1, each.shape[-1]))[0]
        log_reverse = (log_prob.gather(0, old) - log_count.unflatten(0, each.shape[:2]).gather(0, chosen))[0]
        log_forward = log_prob.gather(0, chosen)[0] - labelings.log_count
        return _move(structure, new, log_forward, log_reverse, labelings.log_count)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(_doubt_of_entities(doubt))


class LabelBlock(AbstractLabelBlock):
    """One label from given edge probabilities, the counterpart of the paper's receiver block (section 4).

    The weight of a label is the product over the entity's edges of ``(1 - floor) q + floor / K`` at the types that it
    makes of them.

    Args:
        prior: prior over labels of the G structures.
        log_q: log probability of each type at each edge, ``[G, E, K]``, for example an encoder's.
        floor: share of the uniform distribution, which keeps every structure in reach.
        scan: "random" entity, or entities in "turn".

    Raises:
        ValueError: a shape does not fit, ``floor`` is not in [0, 1] or ``scan`` is unknown.
    """

    move_names = ("label_block",)

    def __init__(self, prior: ChargesDistribution, log_q: Tensor, *, floor: float = 0.05, scan: str = "random") -> None:
        super().__init__(prior, scan=scan)
        self.log_q = proposed_probability(prior, log_q, floor).log()
        self.is_irreducible = floor > 0

    def log_weight(self, structure: Tensor, temperature: float | Tensor) -> Tensor:
        log_q = self.log_q.expand(len(structure), -1, -1, -1).gather(-1, structure[..., None])
        # Tied directions say the same of a pair, once.
        return log_q.sum((-2, -1)) / (2 if self.prior.tied else 1)


class ExactLabel(AbstractLabelBlock):
    """One label from its exact conditional given all other labels (a Gibbs block): always accepted.

    Args:
        prior: prior over labels of the G structures.
        table: receiver log-likelihoods.
        scan: "random" entity, or entities in "turn".

    Raises:
        ValueError: ``scan`` is unknown.
    """

    move_names = ("exact_label",)

    def __init__(self, prior: ChargesDistribution, table: ReceiverTable, *, scan: str = "random") -> None:
        super().__init__(prior, scan=scan)
        self.table = table

    def log_weight(self, structure: Tensor, temperature: float | Tensor) -> Tensor:
        # All labelings are alike: what the prior of a structure counts is shared among them.
        num_repeats = len(structure) // len(temperature) if isinstance(temperature, Tensor) and temperature.ndim else 1
        each = temperature.repeat(num_repeats, 1) if isinstance(temperature, Tensor) else temperature
        return self.table.log_likelihood(structure) / each


def label_conditionals(table: ReceiverTable, prior: ChargesDistribution, structure: Tensor, uniform: Tensor) -> Tensor:
    """Probability of each type at each edge given the label of one of its ends: ``[C, G, E, K]``.

    The label of the other end is integrated out given all other labels, by look-ups; the mean over the two ends.
    Averaged over draws these conditionals are the Rao-Blackwellised edge probabilities.

    Args:
        table: receiver log-likelihoods.
        prior: prior over labels of the G structures.
        structure: long ``[C, G, E]``, of positive probability.
        uniform: ``[C, G, N]`` in [0, 1), picks one of the labelings of each structure.
    """
    labels = prior.labelings(structure).draw(uniform)  # [C, G, N]
    num_entities, num_types = prior.num_entities, prior.num_edge_types
    sender, receiver = edges.senders(num_entities), edges.receivers(num_entities)
    total = torch.zeros((*structure.shape, num_types), dtype=torch.float64, device=structure.device)
    for entity in range(num_entities):
        chosen = torch.full(labels.shape[:-1], entity, device=labels.device)
        each = prior.structure_of(with_each_label(labels, chosen, prior.num_labels))  # [L, C, G, E]
        weight = table.log_likelihood(each.flatten(0, 1)).unflatten(0, each.shape[:2]).softmax(0)  # [L, C, G]
        own = ((sender == entity) | (receiver == entity)).nonzero().squeeze(-1).to(structure.device)
        is_type = torch.nn.functional.one_hot(each[..., own], num_types)  # [L, C, G, 2 (N - 1), K]
        total[..., own, :] += (weight[..., None, None] * is_type).sum(0)
    return total / 2


def with_each_label(labels: Tensor, entity: Tensor, num_labels: int) -> Tensor:
    """Labelings with each label in turn at one entity ``[C, G]`` of labelings ``[C, G, N]``: ``[L, C, G, N]``."""
    label = torch.arange(num_labels, device=labels.device)[:, None, None, None].expand(-1, *labels.shape[:-1], 1)
    return labels.expand(num_labels, *labels.shape).scatter(-1, entity[None, ..., None].expand_as(label), label)


def _doubt_of_entities(doubt: Tensor) -> Tensor:
    """Sum over the edges of each entity, ``[C, G, N]``, of values ``[C, G, E]``."""
    matrix = edges.to_matrix(doubt)
    summed: Tensor = matrix.sum(-1) + matrix.sum(-2)
    return summed


def _move(structure: Tensor, new: Tensor, log_forward: Tensor, log_reverse: Tensor, log_count: Tensor) -> Move:
    """A move that stays where no labeling gives the structure."""
    is_possible = log_count > -torch.inf
    zero = torch.zeros_like(log_forward)
    return Move(
        {"edge_type": torch.where(is_possible[..., None], new, structure)},
        torch.where(is_possible, log_forward, zero),
        torch.where(is_possible, log_reverse, zero),
        0,
    )
