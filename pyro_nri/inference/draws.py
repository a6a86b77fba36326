"""What inference hands over: draws of structures, exact probabilities where they exist, and how they were made."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws of the structures of G groups of scenes, of C chains with S draws each. Axis letters as in :class:`Scenes`.

    Attributes:
        edge_type: int8 ``[C, S, G, E]``, 0 where an end of the edge is padding.
        log_joint: log joint density of each draw, float64 ``[C, S, G]``.
        accepted: whether the step that led to the draw changed the structure, bool ``[C, S, G]``.
        proposed: whether that step proposed a change at all, bool ``[C, S, G]``.
        move_kind: number into ``move_names`` of the step's move, int8 ``[S]``; for thinned draws, of the last step.
        temperature: float64 ``[S]``, 1 everywhere in ``Draws`` that are not warm-up.
        move_names: names of the kinds of move.
        num_edge_types: K.
        group_names: G names of the structures.
        method: "exact" (independent draws of an enumerated posterior) or "mcmc".
        seed: the seed of the run.
        num_evaluations: likelihood evaluations made for each chain and structure.
        edge_probability: float64 ``[G, E, K]``: exact where ``method`` is "exact", Rao-Blackwellised (mean of a move's
            conditionals over draws) where a kernel offers it, else None.
        log_marginal: exact log marginal likelihood, float64 ``[G]``, else None.
        warmup: the annealed and discarded steps, or None.
        complete: False if the run was interrupted.
        attributes: anything else worth keeping, plain str, int or float.
    """

    edge_type: NDArray[np.int8]
    log_joint: NDArray[np.float64]
    accepted: NDArray[np.bool_]
    proposed: NDArray[np.bool_]
    move_kind: NDArray[np.int8]
    temperature: NDArray[np.float64]
    move_names: tuple[str, ...]
    num_edge_types: int
    group_names: tuple[str, ...]
    method: str
    seed: int
    num_evaluations: int
    edge_probability: NDArray[np.float64] | None = None
    log_marginal: NDArray[np.float64] | None = None
    warmup: "Draws | None" = None
    complete: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)
