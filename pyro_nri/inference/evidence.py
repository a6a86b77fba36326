"""Which constraint on structures the data speak for, by exact log marginal likelihoods."""

import torch
from torch import Tensor

from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.priors import ChargesPrior
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution


def choose_table(prior: ChargesPrior, likelihood: AbstractLikelihood, edge_mask: Tensor) -> tuple[Tensor, Tensor]:
    """The table of types by labels under which the data of all groups are likeliest.

    For each candidate the labelings of each group are summed over by enumeration. The prior itself stays as it is.

    Args:
        prior: prior over labels, open or not.
        likelihood: log-likelihood of structures of G groups under the modules as they are.
        edge_mask: existing edges of the groups, bool ``[G, E]``.

    Returns:
        The table, long ``[L, L]``, and the log marginal likelihood of each of ``prior.candidate_tables()``, summed over
        the groups, float64 ``[J]``.

    Raises:
        ValueError: shapes or types do not fit, or there are too many labelings or tables to list.
    """
    if edge_mask.shape != likelihood.edge_mask.shape:
        raise ValueError(f"edge_mask must have shape {list(likelihood.edge_mask.shape)}, found {list(edge_mask.shape)}")
    if prior.num_edge_types != likelihood.num_edge_types:
        raise ValueError(
            f"prior must have {likelihood.num_edge_types} edge types, as the likelihood, found {prior.num_edge_types}"
        )
    candidates = prior.candidate_tables().to(edge_mask.device)
    log_marginal = []
    for table in candidates:
        distribution = ChargesDistribution(table, prior.num_edge_types, edge_mask, validate_args=False)
        log_marginal.append(enumerate_posterior(likelihood, distribution).log_marginal.sum())
    each = torch.stack(log_marginal)
    return candidates[each.argmax()], each


def fit_type_weights(likelihood: AbstractLikelihood, edge_mask: Tensor, *, tied: bool = False) -> Tensor:
    """Weights of the types under which the data of all groups are likeliest, by expectation and maximisation.

    Args:
        likelihood: log-likelihood of structures of G groups under the modules as they are.
        edge_mask: existing edges of the groups, bool ``[G, E]``.
        tied: whether z_ij = z_ji.

    Returns:
        Log weights, float64 ``[K]``, normalised.

    Raises:
        ValueError: there are too many structures to list.
    """
    num_types = likelihood.num_edge_types
    weight = torch.full((num_types,), 1 / num_types, dtype=torch.float64, device=edge_mask.device)
    for _ in range(100):
        prior = EdgeDistribution(weight.log(), edge_mask, tied=tied, validate_args=False)
        expected = enumerate_posterior(likelihood, prior).edge_probability[edge_mask].sum(0)
        before, weight = weight, (expected / expected.sum()).clamp(min=1e-300)
        if (weight - before).abs().max() < 1e-5:
            break
    return (weight / weight.sum()).log()


def require_density(likelihood: AbstractLikelihood, what: str) -> None:
    """Refuse to answer from a likelihood that is no density what only a density of the trajectory can answer.

    Args:
        likelihood: what would be asked.
        what: what is asked for, as it begins a sentence: "a held-out score".

    Raises:
        ValueError: the likelihood is no density.
    """
    if not likelihood.is_density:
        raise ValueError(
            f"{what} needs a density of the frames, and this likelihood is none: the impulse likelihood is a composite "
            f"one (its path contains the observed next state, its Jacobian is dropped), and a density raised to the "
            f"power to which it is believed is none any more; either may rank structures and their priors under one "
            f"law and noise, but no noises, boundaries, dynamics or numbers of types; use kind='forward'"
        )
