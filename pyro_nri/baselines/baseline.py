"""What a fitted row of a table can say of scenes."""

from typing import Self

import torch
from torch import Tensor

from pyro_nri.scenes.scenes import Scenes


class AbstractBaseline:
    """A method that was fitted to training scenes: it infers structures, predicts motion, or both.

    Attributes:
        infers_structure: whether :meth:`edge_probability` says anything.
        predicts_motion: whether :meth:`predict` says anything.
        uses_labels: whether fitting looked at the true structures of the training scenes.
    """

    infers_structure: bool = False
    predicts_motion: bool = False
    uses_labels: bool = False

    def to(self, device: torch.device | str) -> Self:
        """Move the networks, if there are any; answers are on the CPU wherever they are made."""
        return self

    def edge_probability(self, scenes: Scenes) -> Tensor:
        """Probability of each type at each edge, from all frames.

        Args:
            scenes: B scenes in G groups, raw units; their truth is not looked at.

        Returns:
            ``[G, E, K]``, float64; rows sum to one.

        Raises:
            ValueError: the method infers no structure, or cannot read such scenes.
        """
        raise ValueError(f"{type(self).__name__} infers no structure")

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        """Predict the frames after an observed one. Frames after ``start`` are never looked at.

        Args:
            scenes: B scenes in G groups, raw units.
            start: the last frame that may be seen.
            num_steps: frames to predict.
            structure: long ``[G, E]``, for methods that predict under one; by default the most probable structure
                given the frames before ``start``.

        Returns:
            Frames ``start + 1`` to ``start + num_steps``, ``[B, num_steps, N, D]``, raw units.

        Raises:
            ValueError: the method predicts no motion, or a number is out of range.
        """
        raise ValueError(f"{type(self).__name__} predicts no motion")


def check_rollout(scenes: Scenes, start: int, num_steps: int) -> None:
    """Refuse a rollout that cannot begin.

    Raises:
        ValueError: ``start`` is no frame of the scenes, or ``num_steps`` is below 1.
    """
    if not 0 <= start < scenes.num_frames:
        raise ValueError(f"start must be a frame from 0 to {scenes.num_frames - 1}, found {start}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, found {num_steps}")


def true_types(scenes: Scenes, reason: str) -> Tensor:
    """True structures of the groups, long ``[G, E]``.

    Raises:
        ValueError: they are not known; ``reason`` begins the sentence.
    """
    if scenes.edge_type is None:
        raise ValueError(f"{reason} needs scenes whose structures are known, and these have none")
    return scenes.edge_type[scenes.group_first_scene]


def check_num_types(truth: Tensor, num_edge_types: int | None) -> int:
    """K, at least as many as occur.

    Raises:
        ValueError: more types occur.
    """
    found = int(truth.max()) + 1
    if num_edge_types is None:
        return max(2, found)
    if num_edge_types < found:
        raise ValueError(f"num_edge_types must be at least {found}, the types of the scenes, found {num_edge_types}")
    return num_edge_types
