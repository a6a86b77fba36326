"""Which prior of structures the data speak for: one table of exact log marginal likelihoods."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from pyro_nri.inference.evidence import choose_table, fit_type_weights
from pyro_nri.inference.exact import can_enumerate, enumerate_posterior
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.model.priors import PRIORS, ChargesPrior, SparsePrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution, StructureDistribution
from pyro_nri.posterior.selection import paired_difference
from pyro_nri.scenes.scenes import Scenes


def compare_priors(
    model: Checkpoint | SceneModel,
    scenes: Scenes,
    priors: Sequence[str] = PRIORS,
    *,
    table_scenes: Scenes | None = None,
    type_weights: str = "equal",
    num_labels: int = 2,
    kind: str = "auto",
) -> pd.DataFrame:
    """Exact log marginal likelihoods of priors of structures, under the same frozen modules and noise.

    Structures are summed over by enumeration. Modules, noise and likelihood are the same in every row, so the composite
    likelihood of pair forces may answer too, and a density as far as it is believed; the note says so. No prior may use
    more of the data than the others: weights that the model learned under its own prior play no part, types are equally
    likely, or "independent" and "symmetric" each get the K - 1 weights that suit them best on ``table_scenes``;
    "sparse" integrates its density out and "charges" has equally likely labels, so neither has weights. The table of
    "charges" is the model's own if that has one, else the likeliest one on ``table_scenes``. Without ``table_scenes``
    both choices are made on the scored scenes and the note says so: a table chosen there beats the average over the J
    tables by at most log J in all, fitted weights cost about half a nat each.

    Args:
        model: trained model.
        scenes: B scenes in G structure groups.
        priors: names of priors.
        table_scenes: scenes on which tables and weights are chosen, such as the training scenes.
        type_weights: "equal" or "fitted".
        num_labels: L of "charges".
        kind: likelihood, see :meth:`SceneModel.likelihood`.

    Returns:
        One row for each prior: ``prior``; ``log_marginal``, summed over the structures, NaN where they cannot be
        enumerated; ``difference`` to the largest one and its ``standard_error`` over structures (NaN for one of them);
        ``num_structures``, G; ``note``.

    Raises:
        ValueError: a name is unknown, or the scenes do not fit the model.
    """
    for name in priors:
        if name not in PRIORS:
            raise ValueError(f"prior must be one of {', '.join(PRIORS)}, found {name!r}")
    if type_weights not in ("equal", "fitted"):
        raise ValueError(f"type_weights must be equal or fitted, found {type_weights!r}")
    net = model.model if isinstance(model, Checkpoint) else model
    likelihood = _frozen(net, scenes, kind)
    others = None if table_scenes is None else _frozen(net, table_scenes, kind)
    log_marginal = np.full((len(priors), scenes.num_groups), np.nan)
    notes, kinds = [], ("power of a density", "composite likelihood")
    for row, name in enumerate(priors):
        try:
            prior, note = _prior(name, net, likelihood, others, fitted=type_weights == "fitted", num_labels=num_labels)
            log_marginal[row] = enumerate_posterior(likelihood, prior).log_marginal.cpu().numpy()
        except ValueError as error:  # too many structures, or types that the prior does not admit
            note = str(error)
        notes.append(note if likelihood.is_density else f"{note}; {kinds[net.impulse_noise is not None]}")
    total = log_marginal.sum(1)
    best = log_marginal[np.nanargmax(total)] if not np.isnan(total).all() else log_marginal[0]
    compared = [paired_difference(each, best) for each in log_marginal]
    return pd.DataFrame(
        {
            "prior": list(priors),
            "log_marginal": total,
            "difference": [difference for difference, _ in compared],
            "standard_error": [error for _, error in compared],
            "num_structures": scenes.num_groups,
            "note": notes,
        }
    )


def _frozen(model: SceneModel, scenes: Scenes, kind: str) -> AbstractLikelihood:
    with torch.no_grad():
        return model.likelihood(scenes, kind=kind)


def _prior(
    name: str,
    model: SceneModel,
    likelihood: AbstractLikelihood,
    others: AbstractLikelihood | None,
    *,
    fitted: bool,
    num_labels: int,
) -> tuple[StructureDistribution, str]:
    """Distribution of the structures by the name of the prior, and what was chosen how.

    Raises:
        ValueError: the prior does not admit the number of types, or its structures cannot be enumerated.
    """
    mask, num_types = likelihood.edge_mask, likelihood.num_edge_types
    chooser, where = (likelihood, "the scored scenes") if others is None else (others, "other scenes")
    if name == "sparse":
        sparse = SparsePrior(num_types)(mask)
        _check(likelihood, sparse)
        return sparse, "density of pairs integrated out; type 0 stands for no interaction"
    if name == "charges":
        own = model.prior
        if isinstance(own, ChargesPrior) and not own.is_open and own.num_labels == num_labels:
            table, note = own.table, "chosen in training"
        else:
            table, each = choose_table(ChargesPrior(num_types, num_labels=num_labels), chooser, chooser.edge_mask)
            note = f"likeliest of {len(each)} on {where}"
        charges = ChargesDistribution(table.to(mask.device), num_types, mask, validate_args=False)
        _check(likelihood, charges)
        return charges, f"table {table.tolist()}, {note}"
    tied = name == "symmetric"
    weight = torch.zeros(num_types, dtype=torch.float64, device=mask.device).log_softmax(0)
    prior = EdgeDistribution(weight, mask, tied=tied, validate_args=False)
    _check(likelihood, prior)
    if not fitted:
        return prior, "types equally likely"
    weight = fit_type_weights(chooser, chooser.edge_mask, tied=tied).to(mask.device)
    shares = ", ".join(f"{share:.3f}" for share in weight.exp().tolist())
    return EdgeDistribution(weight, mask, tied=tied, validate_args=False), f"weights {shares}, fitted on {where}"


def _check(likelihood: AbstractLikelihood, prior: StructureDistribution) -> None:
    if not can_enumerate(likelihood, prior):
        num_values, num_parts = prior.choices
        raise ValueError(f"{num_values}^{num_parts} structures are too many to enumerate")
