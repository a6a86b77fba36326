"""What the Metropolis step samples: the posterior over structures under frozen modules."""

from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Score, State
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import StructureDistribution


class StructureTarget:
    """Log joint of ``edge_type``.

    Args:
        likelihood: of G structures.
        prior: of the same structures, batch ``[G]``.
    """

    def __init__(self, likelihood: AbstractLikelihood, prior: StructureDistribution) -> None:
        self.likelihood = likelihood
        self.prior = prior

    def __call__(self, latents: Latents, known: State | None = None) -> Score:
        """Score structures ``[C, G, E]``; receivers that did not change since ``known`` are not evaluated again."""
        structure: Tensor = latents["edge_type"]
        before = None if known is None else (known.latents["edge_type"], known.score.terms)
        terms = self.likelihood.receiver_terms(structure, before)
        return Score(terms.sum(-1), self.prior.log_prob(structure).detach().double(), terms)
