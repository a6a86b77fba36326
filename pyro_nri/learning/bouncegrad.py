"""BounceGrad (paper, section 3.2 and appendix): structures are searched while the modules are trained."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_nri.inference import metropolis
from pyro_nri.inference.blocks import ReceiverBlock
from pyro_nri.inference.encoder import Encoder, log_q
from pyro_nri.inference.evidence import choose_table
from pyro_nri.inference.exact import can_enumerate, enumerate_posterior
from pyro_nri.inference.metropolis import Latents
from pyro_nri.inference.proposals import AbstractProposal, Mixture, UniformEdge, UniformPair
from pyro_nri.inference.schedules import AdaptiveTemperature, falling_target, geometric
from pyro_nri.inference.streams import Stream, generator, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.learning.objectives import AbstractObjective, ForwardObjective, ImpulseObjective
from pyro_nri.learning.pace import cosine_rate, share_done
from pyro_nri.model.priors import ChargesPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import num_codes
from pyro_nri.scenes.scenes import Scenes

#: Structures that say which table of types by labels fits; more cost time and change nothing.
MAX_GROUPS_FOR_TABLE = 200
#: Receiver tables with more entries than this for one scene are not made at every step.
MAX_CODES = 1500
#: For tqdm.
PROGRESS_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}"


class Diverged(ValueError):
    """Training broke down; the message says how, and what may help."""


class Losses(NamedTuple):
    """What one step of training measured on its batch.

    Attributes:
        module_loss: negative log joint of batch trajectories and current structures for each observed state variable.
        encoder_loss: cross-entropy of the encoder towards the current structures, nats for each edge; nan without one.
        temperature: of the search.
        acceptance: share of proposed moves that were accepted; 1 for exact draws.
    """

    module_loss: float
    encoder_loss: float
    temperature: float
    acceptance: float


class BounceGrad:
    """Train the modules of a model, and an encoder, on scenes with unknown structures.

    One :meth:`step`: for a batch of structures, kernel moves (or an exact draw) on the search frames; one gradient step
    of the modules on the scoring frames given these structures; one step of the encoder towards them.

    Args:
        model: its modules, noise and type weights are trained in place.
        scenes: training scenes; truth is never looked at.
        inner: "exact" (structures drawn from the enumerated posterior, tempered early on) or "annealing" (the paper:
            Metropolis moves from the learned proposal, accepted without its ratio, temperature adapted), or "auto":
            exact where it is cheap. With ``structure`` it is "given".
        encoder: the learned proposal; trained in place. Without one, annealing uses uniform moves.
        batch_size: number of structures in a batch.
        learning_rate: of Adam at the start; it falls to one hundredth along a cosine.
        num_steps: length of training that the schedules are laid out for.
        minutes: if given, schedules follow the clock instead, whichever is further; then a resumed run is not
            bit for bit the same as an uninterrupted one.
        start_temperature: exact draws are tempered from here to 1 in the first quarter of training.
        num_moves: kernel moves for each batch, for ``inner="annealing"``.
        encoder_sgd: train the encoder by SGD with momentum 0.9 at this rate, as the paper does, instead of by Adam.
        search_frames: half-open range of frames on which structures are searched; all by default.
        structure: known structures, long ``[G, E]``: nothing is searched.
        seed: fixes all random numbers.

    Raises:
        ValueError: an argument is out of range or does not fit the others.
    """

    def __init__(
        self,
        model: SceneModel,
        scenes: Scenes,
        *,
        inner: str = "auto",
        encoder: Encoder | None = None,
        batch_size: int = 32,
        learning_rate: float = 3e-3,
        num_steps: int = 1000,
        minutes: float | None = None,
        start_temperature: float = 30.0,
        num_moves: int = 20,
        encoder_sgd: float | None = None,
        search_frames: tuple[int | None, int | None] | None = None,
        structure: Tensor | None = None,
        seed: int,
    ) -> None:
        if model.num_hidden:
            raise ValueError(
                f"training does not yet treat hidden entities: num_hidden must be 0, found {model.num_hidden}"
            )
        if inner not in ("auto", "exact", "annealing"):
            raise ValueError(f"inner must be auto, exact or annealing, found {inner!r}")
        for name, value in (("batch_size", batch_size), ("num_steps", num_steps), ("num_moves", num_moves)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        for name, rate in (("learning_rate", learning_rate), ("encoder_sgd", encoder_sgd)):
            if rate is not None and not rate > 0:
                raise ValueError(f"{name} must be positive, found {rate}")
        if minutes is not None and minutes <= 0:
            raise ValueError(f"minutes must be positive, found {minutes}")
        self.model = model
        self.encoder = encoder
        self.scenes = model.prepare(scenes)
        self.search_scenes = self.scenes.frames(*search_frames) if search_frames else self.scenes
        self.objective: AbstractObjective
        if model.impulse_noise is None or model.horizon > 1:
            self.objective = ForwardObjective(model, self.search_scenes, self.scenes)
        else:  # raw scenes: impulses are differences, which need all digits
            raw = scenes.to(device=self.scenes.trajectory.device)
            search = raw.frames(*search_frames) if search_frames else raw
            self.objective = ImpulseObjective(model, search, raw)
        self.groups = [[] for _ in range(scenes.num_groups)]  # type: list[list[int]]
        for scene, group in enumerate(scenes.group_index.tolist()):
            self.groups[group].append(scene)
        self.inner = "given" if structure is not None else self._check_inner(inner)
        self.batch_size = min(batch_size, scenes.num_groups)
        self.num_steps = num_steps
        self.minutes = minutes
        self.num_moves = num_moves
        self.seed = seed
        device = self.scenes.trajectory.device
        self.keys = keys(scenes.group_names, device)
        self.schedule = geometric(start_temperature, 1.0, 1001)
        self.learning_rate = learning_rate
        self.optimizer = torch.optim.Adam(self._parameter_groups(), lr=learning_rate)
        self.encoder_rate = learning_rate if encoder_sgd is None else encoder_sgd
        self.encoder_optimizer: torch.optim.Optimizer | None = None
        if encoder is not None and encoder_sgd is None:
            self.encoder_optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
        elif encoder is not None and encoder_sgd is not None:
            self.encoder_optimizer = torch.optim.SGD(encoder.parameters(), lr=encoder_sgd, momentum=0.9)
        self.annealing = AdaptiveTemperature(1.0)
        self.visited_at = torch.full((len(self.groups),), -1)  # step of the last visit of each structure
        self.num_done = 0
        self.seconds = 0.0
        if structure is None:
            start = Stream(seed, self.keys, 1).child("start").uniform(0, self.scenes.num_edges)[0]
            structure = model.structure_prior(self.scenes).from_uniform(start)
        elif tuple(structure.shape) != (scenes.num_groups, scenes.num_edges) or structure.max() >= model.num_edge_types:
            raise ValueError(
                f"structure must have shape {[scenes.num_groups, scenes.num_edges]} and types below "
                f"{model.num_edge_types}, found {list(structure.shape)} with types up to {int(structure.max())}"
            )
        self.structure = structure.to(device).clone()  # current structures, long [G, E]

    def _parameter_groups(self) -> list[dict[str, Any]]:
        """Modules, and the few numbers of noise and prior, which must keep pace with them: ten times their rate."""
        few = [*self.model.noise.parameters(), *self.model.prior.parameters()]
        if self.model.impulse_noise is not None:
            few += list(self.model.impulse_noise.parameters())
        groups = [(list(self.model.dynamics.parameters()), 1.0), (few, 10.0)]
        return [{"params": [p for p in params if p.requires_grad], "rate": rate} for params, rate in groups]

    def _check_inner(self, inner: str) -> str:
        one = self.search_scenes[:1]
        prior = self.model.structure_prior(one)
        possible = self.model.horizon == 1 and can_enumerate(self.model.likelihood(one), prior)
        if inner == "auto" and not self._few_codes():
            return "annealing"
        if inner == "exact" and not possible:
            raise ValueError(
                f"inner='exact' does not fit {self.scenes.num_entities} entities, {self.model.num_edge_types} types of "
                f"edge and horizon {self.model.horizon}; use inner='annealing'"
            )
        return ("exact" if possible else "annealing") if inner == "auto" else inner

    @property
    def settled(self) -> Tensor:
        """Which structures were visited in the last quarter of the training so far, bool ``[G]``."""
        return self.visited_at >= 3 * self.num_done // 4

    def _few_codes(self) -> bool:
        """Whether a table of all incoming types is cheap enough to be made anew at every step."""
        num_entities = self.scenes.num_entities
        return num_entities * num_codes(self.model.num_edge_types, num_entities) <= MAX_CODES

    # --- one step ----------------------------------------------------------------------------------------------------
    @property
    def progress(self) -> float:
        """How far training has gone, 0 to 1."""
        return share_done(self.num_done, self.num_steps, self.seconds, self.minutes)

    def batch(self) -> Tensor:
        """Numbers of the structures in the next batch: each is visited once before any is visited again."""
        num_groups, size = len(self.groups), self.batch_size
        num_batches = -(-num_groups // size)
        epoch, place = divmod(self.num_done, num_batches)
        order = torch.randperm(num_groups, generator=generator(self.seed, "batch", epoch))
        return order[place * size : (place + 1) * size]

    def step(self, batch: Tensor | None = None) -> Losses:
        """Search, then one gradient step of the modules and one of the encoder.

        Args:
            batch: numbers of structure groups; default: the next batch.
        """
        started = time.monotonic()
        if batch is None:
            batch = self.batch()
        members = [scene for group in batch.tolist() for scene in self.groups[group]]
        search = self.search_scenes[members]
        stream = Stream(self.seed, self.keys[batch], 1).child("search")
        if self.model.prior.is_open and self.progress >= 1 / 4:
            self._close_prior()
        structure, temperature, acceptance = self._search(members, batch, stream)
        self.structure[batch] = structure
        self.visited_at[batch] = self.num_done
        rate = cosine_rate(self.progress)
        module_loss = self._module_step(members, structure, rate)
        encoder_loss = self._encoder_step(self._random_window(search), structure, rate)
        self.num_done += 1
        self.seconds += time.monotonic() - started
        return Losses(module_loss, encoder_loss, temperature, acceptance)

    def _close_prior(self) -> None:
        """Fix what a prior leaves open until modules tell types apart: the table of types by labels."""
        members = [scene for group in self.groups[:MAX_GROUPS_FOR_TABLE] for scene in group]
        likelihood = self.objective.likelihood(members, "table" if self._few_codes() else "auto")
        prior = self.model.prior
        if not isinstance(prior, ChargesPrior):
            return
        prior.set_table(choose_table(prior, likelihood, likelihood.edge_mask)[0])

    def _search(self, members: list[int], batch: Tensor, stream: Stream) -> tuple[Tensor, float, float]:
        if self.inner == "given":
            return self.structure[batch], 1.0, 1.0
        scenes = self.search_scenes[members]
        prior = self.model.structure_prior(scenes)
        if self.inner == "exact":
            temperature = self.schedule(round(1000 * min(1.0, 4 * self.progress)))
            likelihood = self.objective.likelihood(members, "table" if self._few_codes() else "auto")
            posterior = enumerate_posterior(likelihood, prior, temperature)
            return posterior.sample(stream, self.num_done)[0], temperature, 1.0
        cache = "none" if self.model.horizon > 1 else "table" if self._few_codes() else "messages"
        target = StructureTarget(self.objective.likelihood(members, cache), prior)
        components: list[AbstractProposal] = [UniformPair(prior) if prior.tied else UniformEdge(prior)]
        if self.encoder is not None:
            components.append(ReceiverBlock(prior, log_q(self.encoder, scenes)))
        proposal = Mixture(components, seed=self.seed)
        latents: Latents = {"edge_type": self.structure[batch][None]}
        state = metropolis.init(latents, target)
        temperature = self.annealing.temperature
        counts = torch.zeros(4)
        for move in range(self.num_moves):
            state, info = metropolis.step(
                state,
                stream,
                self.num_done * self.num_moves + move,
                proposal=proposal,
                target=target,
                temperature=temperature,
                acceptance="annealing",
            )
            worse_accepted = info.accepted & info.worse
            counts += torch.stack([x.sum() for x in (info.accepted, info.proposed, worse_accepted, info.worse)]).cpu()
        self.annealing = self.annealing.update(int(counts[2]), int(counts[3]), falling_target(self.progress, 1 / 8))
        return state.latents["edge_type"][0], temperature, float(counts[0] / counts[1].clamp(min=1))

    def _module_step(self, members: list[int], structure: Tensor, rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate * group["rate"]
        self.optimizer.zero_grad()
        loss = self.objective.loss(members, structure)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
        return float(loss.detach())

    def _random_window(self, scenes: Scenes) -> Scenes:
        """Consecutive frames of random length and place: the encoder must serve windows of any length."""
        random = generator(self.seed, "window", self.num_done)
        length = int(torch.randint(min(10, scenes.num_frames), scenes.num_frames + 1, (1,), generator=random))
        start = int(torch.randint(scenes.num_frames - length + 1, (1,), generator=random))
        return scenes.frames(start, start + length)

    def _encoder_step(self, scenes: Scenes, structure: Tensor, rate: float) -> float:
        if self.encoder is None or self.encoder_optimizer is None:
            return math.nan
        for group in self.encoder_optimizer.param_groups:
            group["lr"] = self.encoder_rate * rate
        self.encoder_optimizer.zero_grad()
        each = structure[scenes.group_index]
        log_prob = self.encoder(scenes).log_prob(each)  # [B, E]
        loss = -log_prob[scenes.edge_mask].mean()
        loss.backward()
        self.encoder_optimizer.step()
        return float(loss.detach())

    # --- the loop ----------------------------------------------------------------------------------------------------
    def run(
        self,
        *,
        show_progress: bool = False,
        save: Callable[["BounceGrad"], None] | None = None,
        save_every: float = 30.0,
    ) -> list[Losses]:
        """Train until the schedules end.

        Args:
            show_progress: progress bar on standard error.
            save: called every ``save_every`` seconds and at the end, to keep what was done.
            save_every: seconds between two calls of ``save``.

        Returns:
            The losses of the steps that were made in this call.

        Raises:
            Diverged: a loss or a probability is no longer a number.
        """
        history = []
        saved = time.monotonic()
        with tqdm(total=1000, disable=not show_progress, desc="train", bar_format=PROGRESS_BAR) as bar:
            bar.n = round(1000 * self.progress)
            while self.progress < 1:
                try:
                    losses = self.step()
                except ValueError as error:
                    raise Diverged(f"training broke down: {error}; a smaller learning rate may help") from error
                if not math.isfinite(losses.module_loss):
                    raise Diverged(
                        f"training broke down: the loss is {losses.module_loss}; a smaller learning rate may help"
                    )
                history.append(losses)
                bar.n = round(1000 * self.progress)
                if self.num_done % 10 == 0:
                    bar.set_postfix_str(f"step {self.num_done}, loss {losses.module_loss:.3f}")
                if save is not None and time.monotonic() - saved > save_every:
                    save(self)
                    saved = time.monotonic()
        if save is not None:
            save(self)
        return history

    def state_dict(self) -> dict[str, Any]:
        """Everything beside weights that is needed to go on bit for bit: tensors and plain values only."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "encoder_optimizer": None if self.encoder_optimizer is None else self.encoder_optimizer.state_dict(),
            "structure": self.structure.clone(),
            "visited_at": self.visited_at.clone(),
            "annealing": list(self.annealing),
            "num_done": self.num_done,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; model and encoder load their weights themselves.

        Raises:
            ValueError: the state belongs to other scenes.
        """
        if state["structure"].shape != self.structure.shape:
            raise ValueError(
                f"the checkpoint was made on scenes with structures {list(state['structure'].shape)}, "
                f"these have {list(self.structure.shape)}; resume on the same scenes"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        if self.encoder_optimizer is not None and state["encoder_optimizer"] is not None:
            self.encoder_optimizer.load_state_dict(state["encoder_optimizer"])
        self.structure = state["structure"].to(self.structure.device).clone()
        self.visited_at = state["visited_at"].clone()
        self.annealing = AdaptiveTemperature(*state["annealing"])
        self.num_done = state["num_done"]
        self.seconds = state["seconds"]
