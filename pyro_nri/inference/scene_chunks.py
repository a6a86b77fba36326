"""Runs over many scenes, some at a time, that can be interrupted and go on."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from pyro_nri.inference.draws import Draws, concatenate_draws
from pyro_nri.scenes.scenes import Scenes


def check_counts(num_chains: int, num_draws: int, num_warmup: int) -> None:
    """Refuse too few.

    Raises:
        ValueError: one of them is too small.
    """
    counts = (("num_chains", num_chains, 1), ("num_draws", num_draws, 1), ("num_warmup", num_warmup, 0))
    for name, value, least in counts:
        if value < least:
            raise ValueError(f"{name} must be at least {least}, found {value}")


def check_resumed(
    draws: Draws, scenes: Scenes, choices: dict[str, tuple[Any, Any]], num_chains: int, num_draws: int, seed: int
) -> None:
    """Refuse to go on with another run.

    Args:
        draws: of the interrupted run.
        scenes: of this run; the draws are of the first ones.
        choices: by name, what is found in the draws and what this run has.
        num_chains: of this run.
        num_draws: of this run.
        seed: of this run.

    Raises:
        ValueError: the draws are of another run.
    """
    compared = {
        "structures": (draws.group_names, scenes.group_names[: len(draws.group_names)]),
        **choices,
        "num_chains": (draws.edge_type.shape[0], num_chains),
        "num_draws": (draws.edge_type.shape[1], num_draws),
        "seed": (draws.seed, seed),
    }
    for name, (found, wanted) in compared.items():
        if found != wanted:
            raise ValueError(f"resume is of another run: its {name} is {found}, this run has {wanted}")


def run_chunks(
    scenes: Scenes,
    size: int,
    run: Callable[[slice, Callable[[float], None]], Draws],
    *,
    resume: Draws | None,
    on_chunk: Callable[[Draws], None] | None,
    show_progress: bool,
) -> Draws:
    """Run over scenes, chunk by chunk.

    Args:
        scenes: B scenes, each with its own structure.
        size: scenes of a chunk.
        run: draws of some scenes; it may be told shares of its work that are done, from 0 to 1.
        resume: draws of the first scenes, which are done.
        on_chunk: called with the draws of all scenes so far.
        show_progress: progress bar on standard error.

    Returns:
        Draws of all scenes; after an interruption from the keyboard of those that were done, not ``complete``.
    """
    parts = [] if resume is None else [resume]
    first = sum(len(part.group_names) for part in parts)
    bar = tqdm(total=scenes.num_scenes, initial=first, disable=not show_progress, desc="infer", unit="scene")
    try:
        for start in range(first, scenes.num_scenes, size):
            stop = min(start + size, scenes.num_scenes)

            def tick(share: float, start: int = start, stop: int = stop) -> None:
                bar.update(round(start + share * (stop - start), 2) - bar.n)

            parts.append(run(slice(start, stop), tick))
            tick(1.0)
            if on_chunk is not None:
                on_chunk(replace(concatenate_draws(parts), complete=stop == scenes.num_scenes))
    except KeyboardInterrupt:
        if not parts:
            raise
        return replace(concatenate_draws(parts), complete=False)
    finally:
        bar.close()
    return replace(concatenate_draws(parts), complete=True)
