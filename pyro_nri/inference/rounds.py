"""Many edges from their exact conditionals at once: those that do not feel one another."""

import torch
from torch import Tensor

from pyro_nri.inference.exact import edge_log_weights
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal, Choice
from pyro_nri.inference.streams import categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges


class EdgeRound(AbstractProposal):
    """A round of a tournament: every entity meets one other, and both their edges are drawn from their conditionals.

    No receiver has two of these edges, so where the likelihood factorises over receivers and the prior over edges or
    pairs, the draws are independent given all other edges: a Gibbs block of N edges for the price of N (K - 1)
    evaluations of a receiver. A sparse prior couples the pairs through their number; there the draws are a proposal.

    Args:
        prior: prior of the G structures, not over labels.
        likelihood: of the same structures, one that factorises over receivers.
        scan: a "random" round, or rounds in "turn".

    Raises:
        ValueError: the prior is one over labels, the likelihood does not factorise, or ``scan`` is unknown.
    """

    move_names = ("edge_round",)

    def __init__(self, prior: StructureDistribution, likelihood: AbstractLikelihood, *, scan: str = "random") -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        if not likelihood.is_cached:
            raise ValueError("likelihood must factorise over receivers, found one that does not")
        self.prior = prior
        self.likelihood = likelihood
        device = prior.edge_mask.device
        self.reverse = edges.reverse_edges(prior.num_entities).to(device)
        rounds = tournament(prior.num_entities)  # [rounds, pairs, 2]
        first = edges.edge_number(prior.num_entities)[rounds[..., 0], rounds[..., 1]].to(device)
        self.edges = first if prior.tied else torch.cat([first, self.reverse[first]], dim=-1)  # [rounds, M]
        every = torch.ones(*prior.batch_shape, len(rounds), dtype=torch.bool, device=device)
        self.choose = Choice(every, scan)
        self.num_uniforms = 1 + self.edges.shape[1]

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        edge = self.edges[self.choose(uniform[..., 0], step)]  # [C, G, M]
        log_likelihood, log_prior = edge_log_weights(self.likelihood, self.prior, structure, edge)
        if isinstance(temperature, Tensor):
            temperature = temperature[..., None, None]
        log_likelihood = log_likelihood / temperature
        log_prob = (log_likelihood + log_prior).log_softmax(-1)
        new = categorical(log_prob.exp(), uniform[..., 1:])
        moved = structure.scatter(-1, edge, new)
        if self.prior.tied:
            moved = moved.scatter(-1, self.reverse[edge], new)
        back = (log_likelihood + self.prior.conditional_log_weight(moved, edge)).log_softmax(-1)
        log_forward = log_prob.gather(-1, new[..., None]).sum((-2, -1))
        log_reverse = back.gather(-1, structure.gather(-1, edge)[..., None]).sum((-2, -1))
        return Move({"edge_type": moved}, log_forward, log_reverse, 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.choose.prefer(doubt[..., self.edges].sum(-1))


def tournament(num_entities: int) -> Tensor:
    """Rounds in which every entity meets each other one once, long ``[rounds, N // 2, 2]`` (the circle method).

    >>> tournament(4).tolist()
    [[[0, 3], [1, 2]], [[0, 2], [3, 1]], [[0, 1], [2, 3]]]
    """
    size = num_entities + num_entities % 2  # with an odd number one of them rests: it meets number N
    circle = list(range(1, size))
    rounds = []
    for turn in range(size - 1):
        order = [0, *circle[len(circle) - turn :], *circle[: len(circle) - turn]]
        met = [(order[i], order[size - 1 - i]) for i in range(size // 2)]
        rounds.append([pair for pair in met if num_entities not in pair])
    return torch.tensor(rounds)
