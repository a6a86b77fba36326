"""Recurrent networks that know nothing of edges (paper, Table 1; NRI's baselines)."""

import torch
from torch import Tensor, nn

from pyro_nri.baselines.baseline import AbstractBaseline, check_rollout
from pyro_nri.baselines.training import Training, minimise
from pyro_nri.dynamics.modules import ModuleLibrary
from pyro_nri.dynamics.scaling import StateUnits, fit_scaling
from pyro_nri.inference.streams import generator
from pyro_nri.scenes.scenes import Scenes

#: Frames at the end of each scene that training predicts from its own predictions, as NRI does.
NUM_FREE = 10
#: Scenes that are read at a time where nothing is trained.
CHUNK_SCENES = 500

Memory = tuple[Tensor, Tensor]


class Lstm(nn.Module, AbstractBaseline):
    """NRI's two forms: one network for every entity alone ("single"), or one for all of them together ("joint").

    Two linear layers embed a state, two LSTM layers remember, two linear layers give the change to the next state. The
    joint form puts the embeddings of all entities side by side and so assumes that entities keep their order and
    number.

    Args:
        state_size: D.
        num_entities: N, for the joint form; None for the single one.
        width: W, of an entity's embedding and memory; NRI has 256.
        generator: source of the initial weights.
    """

    predicts_motion = True

    def __init__(
        self, state_size: int, *, num_entities: int | None = None, width: int = 64, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.num_entities = num_entities
        self.width = width
        together = num_entities or 1
        size = together * width
        self.embed = ModuleLibrary(1, (state_size, width, width), activate_output=True, generator=generator)
        self.memory = _memory(size, generator)
        self.change = ModuleLibrary(1, (size, size, together * state_size), activate_output=False, generator=generator)
        self.units = StateUnits(state_size)
        self.training_done: Training | None = None

    def forward(self, states: Tensor, memory: Memory | None = None) -> tuple[Tensor, Tensor, Memory]:
        """Read states, predict the one after each.

        Args:
            states: ``[B, T, N, D]``, raw units.
            memory: what an earlier call left; by default nothing.

        Returns:
            The state after each ``[B, T, N, D]``; what the last layer holds after each, ``[B, T, N, W]`` (single) or
            ``[B, T, 1, N W]`` (joint); the memory.
        """
        num_scenes, num_frames, num_entities, state_size = states.shape
        embedded = self.embed(self.units(states)).squeeze(-2)  # [B, T, N, W]
        alone = self.num_entities is None
        rows = embedded.transpose(1, 2).flatten(0, 1) if alone else embedded.flatten(2)  # [B N, T, W] or [B, T, N W]
        held, memory = self.memory(rows, memory)
        change = self.change(held).squeeze(-2)
        if alone:
            held = held.unflatten(0, (num_scenes, num_entities)).transpose(1, 2)
            change = change.unflatten(0, (num_scenes, num_entities)).transpose(1, 2)
        else:
            held = held[:, :, None]
            change = change.reshape(num_scenes, num_frames, num_entities, state_size)
        return states + self.units.change_scale * change, held, memory

    def loss(self, scenes: Scenes, scale: Tensor) -> Tensor:
        """Mean squared error in scaled units; the last ten frames are predicted from predictions."""
        states = scenes.trajectory
        num_free = min(NUM_FREE, scenes.num_frames // 2)
        first, _, memory = self(states[:, :-num_free])
        frames, state = [first], first[:, -1:]
        for _ in range(num_free - 1):
            state, _, memory = self(state, memory)
            frames.append(state)
        error = ((torch.cat(frames, 1) - states[:, 1:]) / scale).square().mean(-1)  # [B, T - 1, N]
        present = scenes.entity_mask[:, None].expand_as(error)
        return error[present].mean()

    def last_states(self, scenes: Scenes) -> Tensor:
        """What the last layer holds of each entity after all frames, ``[B, N, W]``.

        Raises:
            ValueError: the form is joint.
        """
        if self.num_entities is not None:
            raise ValueError("a joint LSTM holds nothing of single entities; use the single form")
        prepared = self._prepare(scenes)
        with torch.no_grad():
            parts = [self(part)[1][:, -1] for part in prepared.trajectory.split(CHUNK_SCENES)]
        return torch.cat(parts).cpu()

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        check_rollout(scenes, start, num_steps)
        prepared = self._prepare(scenes, start)
        paths = []
        with torch.no_grad():
            for states in prepared.trajectory[:, : start + 1].split(CHUNK_SCENES):
                every, _, memory = self(states)
                frames = [every[:, -1:]]
                for _ in range(num_steps - 1):
                    state, _, memory = self(frames[-1], memory)
                    frames.append(state)
                paths.append(torch.cat(frames, 1))
        return torch.cat(paths).cpu()

    def _prepare(self, scenes: Scenes, last: int | None = None) -> Scenes:
        """Scenes in the units' dtype, complete up to frame ``last``."""
        if self.num_entities is not None and scenes.num_entities != self.num_entities:
            raise ValueError(f"the joint LSTM reads {self.num_entities} entities, found {scenes.num_entities}")
        seen = scenes.complete_frame if last is None else scenes.complete_frame[:, : last + 1]
        if not seen.all():
            raise ValueError("an LSTM reads whole paths, and frames are missing")
        return scenes.to(self.units.scale.dtype, self.units.scale.device)


def fit_lstm(
    scenes: Scenes,
    *,
    form: str = "single",
    width: int = 64,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Lstm:
    """Train a recurrent network to predict motion.

    Args:
        scenes: training scenes without missing frames; their structures are not looked at.
        form: "single" or "joint".
        width: W; NRI has 256.
        batch_size: number of scenes in a batch.
        learning_rate: of Adam at the start.
        num_steps: length of the training in gradient steps; by default 1,000.
        minutes: length by the clock instead.
        seed: fixes all random numbers.
        device: where to train; the network comes back on the CPU.
        show_progress: progress bar on standard error.

    Raises:
        ValueError: an argument is out of range, or frames are missing.
    """
    if form not in ("single", "joint"):
        raise ValueError(f"form must be single or joint, found {form!r}")
    together = scenes.num_entities if form == "joint" else None
    lstm = Lstm(scenes.state_size, num_entities=together, width=width, generator=generator(seed, "lstm"))
    lstm.units.fit(scenes)
    lstm.to(device)
    prepared = lstm._prepare(scenes)
    scale = fit_scaling(scenes).scale.to(lstm.units.scale)
    with torch.no_grad():  # a loss of one is that of standing still
        still = (prepared.trajectory[:, 1:] - prepared.trajectory[:, :-1]) / scale
        scale = scale * still.square().mean().sqrt()
    lstm.training_done = minimise(
        lambda members, _: lstm.loss(prepared[members], scale),
        lstm.parameters(),
        scenes.num_scenes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_steps=num_steps,
        minutes=minutes,
        seed=seed,
        show_progress=show_progress,
    )
    lstm.to("cpu")
    return lstm


def _memory(size: int, generator: torch.Generator) -> nn.LSTM:
    """Two LSTM layers with weights drawn from a source of their own, as torch draws them."""
    layers = nn.LSTM(size, size, num_layers=2, batch_first=True, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for weight in layers.parameters():
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) / size**0.5)
    return layers
