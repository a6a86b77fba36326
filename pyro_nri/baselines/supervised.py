"""The encoder alone, trained on true structures: the gold standard of NRI and of the paper's Table 2."""

import torch
from torch import Tensor, nn

from pyro_nri.baselines.baseline import AbstractBaseline, check_num_types, true_types
from pyro_nri.baselines.encoders import group_logits, group_probability, make_encoder
from pyro_nri.baselines.training import Training, minimise
from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.streams import generator
from pyro_nri.scenes.scenes import Scenes


class Supervised(nn.Module, AbstractBaseline):
    """An encoder as a classifier of edges.

    Args:
        encoder: a module from scenes to a categorical distribution with batch shape ``[B, E]``.
        symmetric: whether both edges of a pair have one type.
    """

    infers_structure = True
    uses_labels = True

    def __init__(self, encoder: Encoder, *, symmetric: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.symmetric = symmetric
        self.training_done: Training | None = None

    def edge_probability(self, scenes: Scenes) -> Tensor:
        return group_probability(self.encoder, scenes, tied=self.symmetric)


def fit_supervised(
    scenes: Scenes,
    *,
    num_edge_types: int | None = None,
    encoder: str = "transition",
    symmetric: bool = False,
    width: int = 64,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Supervised:
    """Train an encoder on scenes whose structures are known.

    Args:
        scenes: training scenes.
        num_edge_types: K; by default as many as occur.
        encoder: "transition", "mlp" or "cnn", see :func:`~pyro_nri.baselines.encoders.make_encoder`.
        symmetric: whether both edges of a pair have one type.
        width: of the hidden layers; NRI has 256.
        batch_size: number of structures in a batch.
        learning_rate: of Adam at the start.
        num_steps: length of the training in gradient steps; by default 1,000.
        minutes: length by the clock instead.
        seed: fixes all random numbers.
        device: where to train; the encoder comes back on the CPU.
        show_progress: progress bar on standard error.

    Raises:
        ValueError: an argument is out of range, or structures are not known.
    """
    truth = true_types(scenes, "the supervised encoder")
    num_types = check_num_types(truth, num_edge_types)
    made = make_encoder(encoder, num_types, scenes, width=width, generator=generator(seed, "encoder"))
    supervised = Supervised(made.to(device), symmetric=symmetric)
    moved = scenes.to(made.units.scale.dtype, device)
    members = members_of_groups(scenes)
    truth = truth.to(device)

    def loss(groups: list[int], _: float) -> Tensor:
        part = moved[[scene for group in groups for scene in members[group]]]
        log_prob = group_logits(made, part, tied=symmetric).gather(-1, truth[groups][..., None]).squeeze(-1)
        return -log_prob[part.edge_mask[part.group_first_scene]].mean()

    supervised.training_done = minimise(
        loss,
        made.parameters(),
        scenes.num_groups,
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_steps=num_steps,
        minutes=minutes,
        seed=seed,
        show_progress=show_progress,
    )
    supervised.to("cpu")
    return supervised


def members_of_groups(scenes: Scenes) -> list[list[int]]:
    """Numbers of the scenes of each group."""
    members: list[list[int]] = [[] for _ in range(scenes.num_groups)]
    for scene, group in enumerate(scenes.group_index.tolist()):
        members[group].append(scene)
    return members
