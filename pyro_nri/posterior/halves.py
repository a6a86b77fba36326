"""Whether the two halves of a scene agree on its structure: what data without labels say against a model."""

import math

import pandas as pd
import torch

from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.model.impulse import impulse_table
from pyro_nri.model.impulse_power import ImpulsePower
from pyro_nri.model.program import MAX_TABLE_CODES, SceneModel
from pyro_nri.model.receivers import ReceiverTable, num_codes
from pyro_nri.scenes.scenes import Scenes

#: Halves contradict each other where two structures are this many times as likely as one. If the model is right, that
#: happens in one scene of as many, at most.
ODDS = 20.0


def compare_halves(model: Checkpoint | SceneModel, scenes: Scenes) -> pd.DataFrame:
    """Log Bayes factor of one structure for both halves of a scene, against a structure for each half.

    A structure that stays the same explains both halves. Where each half wants one of its own, the structure changes,
    or the model does not describe what moves the entities, and probabilities of edges mean little: laws learned from
    entities that do not interact at all give posteriors that are sure, and different in each half. No truth is needed.
    If model and prior are right, a factor below 1 / x has at most probability 1 / x. A factor near 1 says that a half
    is too short to tell. Likelihoods enter as they are, before they are raised to a power that makes them as unsure as
    contradictions demand; that of pair forces is no density, so that its bound is one by experience.

    Args:
        model: trained model; horizon 1.
        scenes: B scenes of 4 frames or more in G structure groups, raw units.

    Returns:
        One row for each structure: ``scene``; ``log_bayes_factor``, positive where one structure is enough; ``agree``,
        share of edges that have the same most probable type in both halves; ``contradict``, whether two structures are
        more than 20 times as likely.

    Raises:
        ValueError: scenes are too short or do not fit the model, or their structures cannot be enumerated.

    Example:
        >>> from pyro_nri.fitting import fit
        >>> from pyro_nri.scenes.simulate import simulate
        >>> checkpoint = fit(simulate("springs", 8, num_entities=3, seed=0), num_edge_types=2, num_steps=5, seed=0)
        >>> compare_halves(checkpoint, simulate("springs", 2, num_entities=3, seed=1)).shape
        (2, 4)
    """
    net = model.model if isinstance(model, Checkpoint) else model
    if scenes.num_frames < 4:
        raise ValueError(f"scenes must have 4 frames or more to be halved, found {scenes.num_frames}")
    if net.horizon > 1 or num_codes(net.num_edge_types, scenes.num_entities) > MAX_TABLE_CODES:
        raise ValueError(
            f"halves are compared by enumeration, which needs horizon 1 and few types and entities; found horizon "
            f"{net.horizon}, {net.num_edge_types} types, {scenes.num_entities} entities"
        )
    prior = net.structure_prior(net.prepare(scenes))
    middle = scenes.num_frames // 2
    parts = (scenes.frames(0, middle), scenes.frames(middle, scenes.num_frames))
    with torch.no_grad():
        first, second = (_table(net, part) for part in parts)
        both = ReceiverTable(
            first.table + second.table, first.num_edge_types, first.edge_mask, is_density=first.is_density
        )
        one, *two = (enumerate_posterior(likelihood, prior) for likelihood in (both, first, second))
    factor = (one.log_marginal - two[0].log_marginal - two[1].log_marginal).cpu().numpy()
    mask = first.edge_mask
    same = (two[0].edge_probability.argmax(-1) == two[1].edge_probability.argmax(-1)) & mask
    return pd.DataFrame(
        {
            "scene": scenes.group_names,
            "log_bayes_factor": factor,
            "agree": (same.sum(-1) / mask.sum(-1).clamp(min=1)).cpu().numpy(),
            "contradict": factor < -math.log(ODDS),
        }
    )


def _table(model: SceneModel, scenes: Scenes) -> ReceiverTable:
    if model.impulse_noise is not None:
        dynamics, noise, _ = model.impulse_parts
        return impulse_table(dynamics, noise, ImpulsePower(), scenes.to(torch.float64, model.score_scale.device))
    table = model.likelihood(scenes, kind="forward", cache="table")
    assert isinstance(table, ReceiverTable)
    return table
