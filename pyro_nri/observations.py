"""What ``infer`` does where states are in doubt: those of hidden entities, and recorded ones with measurement noise."""

import argparse
from collections.abc import Callable
from typing import Any

from pyro_nri.inference.draws import Draws
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.inference.noisy_run import infer_noisy
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.scenes.scenes import Scenes

#: Options that belong to chains over structures alone, and their values where they are not given.
_OF_STRUCTURES = {
    "method": ("auto", "mcmc"),
    "proposal": ("auto",),
    "likelihood": ("auto",),
    "num_replicas": (1,),
    "thin": (1,),
    "device": ("cpu",),
}


def check_observation(arguments: argparse.Namespace) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        ValueError: noise is missing or not asked for, or an option belongs to exact states.
    """
    if arguments.observation == "exact":
        if arguments.measurement_noise is not None:
            raise ValueError("--measurement-noise goes with --observation noisy, and states are taken for exact here")
        return
    if arguments.measurement_noise is None:
        raise ValueError("--observation noisy needs --measurement-noise, its standard deviation in the data's units")
    if arguments.num_hidden == "auto":
        raise ValueError("--observation noisy needs a number of hidden entities: --num-hidden must be 0, 1 or 2")
    for name, values in _OF_STRUCTURES.items():
        if (found := getattr(arguments, name)) not in values:
            raise ValueError(f"--{name.replace('_', '-')} {found} does not go with --observation noisy")


def infers_states(arguments: argparse.Namespace) -> bool:
    """Whether anything but structures is to be inferred."""
    return bool(arguments.num_hidden != "0" or arguments.observation == "noisy")


def infer_states(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint | Ensemble,
    scenes: Scenes,
    resume: Draws | None,
    on_chunk: Callable[[Draws], None],
) -> Draws:
    """Draws of structures and states."""
    if isinstance(checkpoint, Ensemble):
        option = "--observation noisy" if arguments.observation == "noisy" else "--num-hidden"
        raise ValueError(f"{option} needs a single model, found an ensemble: give one of its models")
    chains = {name: getattr(arguments, name) for name in ("num_chains", "num_draws", "num_warmup", "seed")}
    run: dict[str, Any] = {"resume": resume, "on_chunk": on_chunk, "show_progress": not arguments.quiet}
    number = arguments.num_hidden if arguments.num_hidden == "auto" else int(arguments.num_hidden)
    if arguments.observation == "noisy":
        return infer_noisy(checkpoint.model, scenes, arguments.measurement_noise, number, **chains, **run)
    return infer_hidden(checkpoint.model, scenes, number, **chains, **run)
