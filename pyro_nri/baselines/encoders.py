"""How NRI's encoders read the path of an edge, and encoders by name."""

import torch
from torch import Tensor, nn

from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.inference.encoder import Encoder
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Encoders by name.
ENCODERS = ("transition", "mlp", "cnn")
#: Structures that are read at a time where nothing is trained.
CHUNK_GROUPS = 200


class PathReader(nn.Module):
    """NRI's MLP encoder: the whole path of an entity is one vector, and an edge joins those of its two ends.

    It reads paths of one length only.

    Args:
        num_frames: T.
        state_size: D.
        width: W.
        generator: source of the initial weights.
    """

    def __init__(self, num_frames: int, state_size: int, *, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.path = ModuleLibrary(1, (num_frames * state_size, width, width), activate_output=True, generator=generator)
        self.edge = ModuleLibrary(1, (2 * width, width, width), activate_output=True, generator=generator)

    def forward(self, states: Tensor, scenes: Scenes) -> Tensor:
        """First embedding of each edge, ``[B, E, W]``, of scaled states ``[B, T, N, D]``.

        Raises:
            ValueError: scenes have another number of frames, or frames are missing.
        """
        if states.shape[1] != self.num_frames:
            raise ValueError(
                f"the mlp encoder reads {self.num_frames} frames, found {states.shape[1]}; use the transition encoder"
            )
        _refuse_gaps(scenes, "mlp")
        entity = self.path(states.transpose(1, 2).flatten(2)).squeeze(-2)  # [B, N, W]
        result: Tensor = self.edge(_ends(entity)).squeeze(-2)
        return result


class ConvolutionReader(nn.Module):
    """NRI's CNN encoder: convolutions over the frames of both ends of an edge, and a mean over time with attention.

    Two convolutions of width 5 with a maximum over pairs of frames between them; without batch normalisation.

    Args:
        state_size: D.
        width: W.
        generator: source of the initial weights.
    """

    #: Frames of the shortest path: what two convolutions and the maximum between them need.
    MIN_FRAMES = 14

    def __init__(self, state_size: int, *, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.first = _convolution(2 * state_size, width, 5, generator)
        self.second = _convolution(width, width, 5, generator)
        self.value = _convolution(width, width, 1, generator)
        self.attention = _convolution(width, 1, 1, generator)

    def forward(self, states: Tensor, scenes: Scenes) -> Tensor:
        """First embedding of each edge, ``[B, E, W]``, of scaled states ``[B, T, N, D]``.

        Raises:
            ValueError: there are too few frames, or frames are missing.
        """
        if states.shape[1] < self.MIN_FRAMES:
            raise ValueError(f"the cnn encoder needs {self.MIN_FRAMES} frames, found {states.shape[1]}")
        _refuse_gaps(scenes, "cnn")
        both = _ends(states).permute(0, 2, 3, 1)  # [B, E, 2 D, T]
        hidden = torch.relu(self.first(both.flatten(0, 1)))
        hidden = torch.relu(self.second(nn.functional.max_pool1d(hidden, 2)))
        weight = self.attention(hidden).softmax(-1)
        result: Tensor = (self.value(hidden) * weight).mean(-1).unflatten(0, both.shape[:2])
        return result


def make_encoder(
    name: str, num_edge_types: int, scenes: Scenes, *, width: int = 64, generator: torch.Generator
) -> Encoder:
    """An encoder with fresh weights, scaled for training scenes.

    Args:
        name: "transition" (the main method's: shared over time, any number of frames), "mlp" or "cnn" (NRI's).
        num_edge_types: K.
        scenes: training scenes.
        width: W.
        generator: source of the initial weights.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in ENCODERS:
        raise ValueError(f"encoder must be one of {', '.join(ENCODERS)}, found {name!r}")
    reader: nn.Module | None = None
    if name == "mlp":
        reader = PathReader(scenes.num_frames, scenes.state_size, width=width, generator=generator)
    elif name == "cnn":
        reader = ConvolutionReader(scenes.state_size, width=width, generator=generator)
    encoder = Encoder(num_edge_types, scenes.state_size, width=width, reader=reader, generator=generator)
    encoder.fit_scaling(scenes)
    return encoder


def group_logits(encoder: Encoder, scenes: Scenes, *, tied: bool = False) -> Tensor:
    """Log probabilities of the types of each group's edges, ``[G, E, K]``: the evidence of its scenes adds up.

    Args:
        encoder: any.
        scenes: B scenes in G groups.
        tied: whether both edges of a pair have one type: their logits are then averaged.
    """
    each = encoder(scenes).logits  # [B, E, K]
    group = scenes.group_index.to(each.device)
    total = each.new_zeros(scenes.num_groups, *each.shape[1:]).index_add(0, group, each)
    if tied:
        total = (total + total[:, edges.reverse_edges(scenes.num_entities).to(total.device)]) / 2
    result: Tensor = total.log_softmax(-1)
    return result


def group_probability(encoder: Encoder, scenes: Scenes, *, tied: bool = False) -> Tensor:
    """Probabilities of the types ``[G, E, K]``, float64 and without gradients, some groups at a time."""
    owner, parts = scenes.group_index.cpu(), []
    with torch.no_grad():
        for groups in torch.arange(scenes.num_groups).split(CHUNK_GROUPS):
            part = scenes if scenes.num_groups <= CHUNK_GROUPS else scenes[torch.isin(owner, groups)]
            parts.append(group_logits(encoder, part, tied=tied).double().softmax(-1).cpu())
    return torch.cat(parts)


def _ends(entity: Tensor) -> Tensor:
    """Sender's and receiver's rows side by side, ``[*batch, N, F]`` to ``[*batch, E, 2 F]``."""
    num_entities = entity.shape[-2]
    sender, receiver = edges.senders(num_entities), edges.receivers(num_entities)
    return torch.cat([entity[..., sender.to(entity.device), :], entity[..., receiver.to(entity.device), :]], -1)


def _refuse_gaps(scenes: Scenes, name: str) -> None:
    if not scenes.complete_frame.all():
        raise ValueError(f"the {name} encoder reads whole paths, and frames are missing; use the transition encoder")


def _convolution(size_in: int, size_out: int, length: int, generator: torch.Generator) -> nn.Conv1d:
    """A convolution with weights drawn as those of the modules, from a source of its own."""
    layer: nn.Conv1d = nn.utils.skip_init(nn.Conv1d, size_in, size_out, length)
    bound = (6 / (length * (size_in + size_out))) ** 0.5
    with torch.no_grad():
        layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) * 2 * bound - bound)
        layer.bias.zero_()  # type: ignore[union-attr]
    return layer
