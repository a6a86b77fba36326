"""What training scenes themselves say against a trained model, in words."""

import math

from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.posterior.halves import ODDS

#: Share of receivers that strangers may explain as well before it is told.
MAX_CHANCE = 0.1


def objections(model: Checkpoint | Ensemble) -> list[str]:
    """A sentence, without capital and full stop, for each reason why structures found with a model mean little.

    Args:
        model: trained by :func:`pyro_nri.fit`; of an ensemble the worst member counts.
    """
    members = model.members if isinstance(model, Ensemble) else [model]
    return [sentence for sentence in (_contradiction(members), _strangers(members)) if sentence is not None]


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


def _strangers(members: list[Checkpoint]) -> str | None:
    """Whether entities of other scenes explain the training scenes as well as their own."""
    powers = [member.model.impulse_power for member in members]
    share = max((float(power.chance[0]) for power in powers if power is not None), default=0.0)
    if share < MAX_CHANCE:
        return None
    return (
        f"entities of other scenes would explain the motion of {share:.0%} of the receivers of the training scenes as "
        f"well as those who were there: as far as the laws can tell, nothing links them"
    )
