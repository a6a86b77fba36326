"""What training scenes themselves say against a trained model, in words."""

import math

from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.posterior.halves import ODDS

#: Share of receivers that may be explained as well by chance before it is told, and by what.
MAX_CHANCE = 0.1
CHANCE = {"strangers": "entities of other scenes", "order": "the same frames in another order"}


def objections(model: Checkpoint | Ensemble) -> list[str]:
    """A sentence, without capital and full stop, for each reason why structures found with a model mean little.

    Args:
        model: trained by :func:`pyro_nri.fit`; of an ensemble the worst member counts.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    against = _contradiction(members)
    return ([] if against is None else [against]) + _chance(members)


def _contradiction(members: list[Checkpoint]) -> str | None:
    """Whether the halves of more training scenes contradict each other than chance allows."""
    found = [member.training["halves"] for member in members if "halves" in member.training]
    if not found:
        return None
    worst = max(found, key=lambda each: each["contradict"] / each["scenes"])
    num_contradict, num_scenes = worst["contradict"], worst["scenes"]
    expected = num_scenes / ODDS
    if num_contradict <= expected + 3 * math.sqrt(expected * (1 - 1 / ODDS)):
        return None
    return (
        f"the two halves of a scene contradict each other on its structure in {num_contradict:,} of {num_scenes:,} "
        f"training scenes, {expected:.3g} at most if the model is right: either structures change, or the model does "
        f"not describe these data and its structures mean little"
    )


def _chance(members: list[Checkpoint]) -> list[str]:
    """Whether the laws explain strangers, or frames in another order, as well as the training scenes."""
    found = [member.training.get("chance", {}) for member in members]
    worst = {name: max(each.get(name, 0.0) for each in found) for name in CHANCE}
    return [
        f"{CHANCE[name]} would explain the motion of {share:.0%} of the receivers of the training scenes as well: "
        f"what the laws find there means nothing"
        for name, share in worst.items()
        if share >= MAX_CHANCE
    ]
