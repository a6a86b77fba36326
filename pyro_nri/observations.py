"""What ``infer`` does where states are in doubt: those of hidden entities, and recorded ones with measurement noise."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from pyro_nri.inference.draws import Draws
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.inference.noisy_run import infer_noisy
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.scenes.scenes import Scenes

#: Options that belong to inference of structures alone, and their values where they are not given.
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

    Args:
        arguments: those of ``infer``.

    Raises:
        ValueError: noise is not asked for, or an option belongs to inference of structures alone.
    """
    if arguments.observation == "exact" and arguments.measurement_noise is not None:
        raise ValueError("--measurement-noise goes with --observation noisy, and states are taken for exact here")
    if arguments.observation == "noisy" and arguments.num_hidden == "auto":
        raise ValueError("--observation noisy needs a number of hidden entities: --num-hidden must be 0, 1 or 2")
    if not infers_states(arguments):
        return
    for name, values in _OF_STRUCTURES.items():
        if (found := getattr(arguments, name)) not in values:
            raise ValueError(f"--{name.replace('_', '-')} {found} does not go with {_option(arguments)}")


def infers_states(arguments: argparse.Namespace) -> bool:
    """Whether anything but structures is to be inferred.

    Args:
        arguments: those of ``infer``.
    """
    return bool(arguments.num_hidden != "0" or arguments.observation == "noisy")


def infer_states(
    arguments: argparse.Namespace,
    checkpoint: Checkpoint | Ensemble,
    scenes: Scenes,
    resume: Draws | None,
    on_chunk: Callable[[Draws], None],
) -> Draws:
    """Draws of structures and states.

    Args:
        arguments: those of ``infer``.
        checkpoint: trained pair forces.
        scenes: what was recorded.
        resume: draws of an interrupted run of the same command, or None.
        on_chunk: called with the draws of all scenes so far.

    Raises:
        ValueError: the model is an ensemble, or model and scenes do not allow what is asked.
    """
    if isinstance(checkpoint, Ensemble):
        raise ValueError(f"{_option(arguments)} needs a single model, found an ensemble: give one of its models")
    chains = {name: getattr(arguments, name) for name in ("num_chains", "num_draws", "num_warmup", "seed")}
    run: dict[str, Any] = {"resume": resume, "on_chunk": on_chunk, "show_progress": not arguments.quiet}
    number = arguments.num_hidden if arguments.num_hidden == "auto" else int(arguments.num_hidden)
    if arguments.observation == "noisy":
        return infer_noisy(checkpoint.model, scenes, arguments.measurement_noise, number, **chains, **run)
    return infer_hidden(checkpoint.model, scenes, number, **chains, **run)


def told_of_noise(draws: Draws, state_names: Sequence[str]) -> list[str]:
    """What a user should know of the noise that draws were made under.

    Args:
        draws: of structures and states.
        state_names: of the recordings.
    """
    if draws.recorded is None or not draws.recorded.noise_estimated:
        return []
    noise = ", ".join(
        f"{name} {value:.3g}" for name, value in zip(state_names, draws.recorded.measurement_noise, strict=True)
    )
    return [f"the standard deviation of the measurement was estimated from these scenes: {noise} (raw units)"]


def _option(arguments: argparse.Namespace) -> str:
    """The option by which states are in doubt."""
    return "--observation noisy" if arguments.observation == "noisy" else f"--num-hidden {arguments.num_hidden}"
