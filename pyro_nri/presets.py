"""Whole methods by name: what a preset puts in the place of the usual defaults."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Preset(NamedTuple):
    """Defaults of a method; whatever is asked for explicitly comes before them.

    Attributes:
        spec: of :class:`~pyro_nri.model.spec.ModelSpec`.
        training: of :class:`~pyro_nri.learning.bouncegrad.BounceGrad`.
        encoder_width: of the learned proposal.
    """

    spec: Mapping[str, Any]
    training: Mapping[str, Any]
    encoder_width: int


#: "paper" is the method of Alet et al. 2019 as its section 4, appendix and released code have it: networks of width 256
#: (edge module of three layers, node module of four), predictions over 10 frames, squared error (normal noise) and no
#: prior, structures searched by annealing with one move for each visit of a scene, a proposal trained by SGD towards
#: the current structures, batches of 128, Adam at 1e-4 (its rate for charged particles; for springs it has 1e-2).
#:
#: Ours differs in this: states are standardised and changes come in units of the typical change (the paper: states in
#: [-1, 1]); the noise has a learned scale, so that the temperature is in units of the log joint, starts at 1, is moved
#: by factors of 1.1 as in the paper, and its target falls with the progress of the training and not with the number of
#: passes; the rate falls along a cosine; half of the moves are single edges and half the paper's receiver blocks; the
#: proposal shares its first layers over time, at width 256 without dropout (NRI's MLP encoder: 512, dropout 0.5).
PRESETS = {
    "small": Preset({}, {}, 64),
    "paper": Preset(
        {"preset": "paper", "horizon": 10, "noise": "normal", "learn_type_weights": False},
        {"inner": "annealing", "num_moves": 1, "batch_size": 128, "learning_rate": 1e-4, "encoder_sgd": 1e-3},
        256,
    ),
}


def find_preset(name: str, dynamics: str = "message-passing") -> Preset:
    """The preset of a name.

    Raises:
        ValueError: the name is unknown, or the paper's method is asked for with dynamics that it does not have.

    >>> find_preset("paper").spec["horizon"]
    10
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, found {name!r}")
    if name == "paper" and dynamics != "message-passing":
        raise ValueError(f"the preset 'paper' is one of message passing, found dynamics {dynamics!r}")
    return PRESETS[name]
