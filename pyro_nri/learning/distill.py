"""The neural proposal distilled on posterior draws, so that a receiver's edges are proposed jointly.

While modules are trained, the encoder learns from the structures of the moment and from each edge alone. Afterwards the
posterior of any window of any scene can be drawn from, and a proposal that maximises the likelihood of these draws
comes as close to the posterior as it can: the loss is the Kullback-Leibler divergence from it, up to a constant (Wang,
Wu, Moore & Russell 2018, "Meta-learning MCMC proposals"). Short windows leave edges in doubt, and there it matters most
that edges are proposed together. Modules, noise and prior are only read.
"""

import copy
import math
import time
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_nri.inference.chains import make_chains, surrogate_of
from pyro_nri.inference.encoder import Encoder, learned_q
from pyro_nri.inference.exact import can_enumerate, enumerate_posterior
from pyro_nri.inference.streams import Stream, generator, keys
from pyro_nri.learning.bouncegrad import PROGRESS_BAR, Diverged
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.learning.pace import cosine_rate, share_done
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Steps by default.
DEFAULT_STEPS = 1000
#: Frames of the shortest window.
MIN_FRAMES = 4
#: Steps for each new round of posterior draws, and rounds that are kept to learn from again.
STEPS_PER_ROUND, MAX_ROUNDS = 4, 100
#: Weight of the independent distributions of edges beside the joint ones.
EDGE_SHARE = 0.2
#: Weight of a receiver whose draws all agree, where one whose draws never agree has 1 more.
SURE_WEIGHT = 0.2
#: Where the posterior is not enumerated: chains, and their steps for each entity before the first draw.
NUM_CHAINS, WARMUP_SWEEPS = 4, 20
START_TEMPERATURE = 100.0


class DistillLosses(NamedTuple):
    """What one step measured on its batch, both in nats for each edge.

    Attributes:
        joint_loss: cross-entropy of the joint distributions towards posterior draws.
        edge_loss: the same of the independent distributions of edges.
    """

    joint_loss: float
    edge_loss: float


class Distillation:
    """Train the joint distributions of an encoder on posterior draws of a frozen model.

    One :meth:`step`: a window of some scenes with draws of their posterior, new or of an earlier round, and one
    gradient step. Draws are exact where receiver tables allow to enumerate, else those of annealed Metropolis chains.

    Args:
        model: trained model; only read.
        encoder: trained in place; it must have couplings.
        scenes: B scenes in G groups, raw units; truth is never looked at.
        num_steps: length of the training that the schedule is laid out for.
        minutes: if given, the schedule follows the clock instead, whichever is further.
        batch_size: number of structures in a round.
        num_draws: posterior draws of each.
        learning_rate: largest of Adam: it rises within the first 5 % and falls to one hundredth along a cosine.
        seed: fixes all random numbers.

    Raises:
        ValueError: an argument is out of range, or model, encoder and scenes do not fit.
    """

    def __init__(
        self,
        model: SceneModel,
        encoder: Encoder,
        scenes: Scenes,
        *,
        num_steps: int = DEFAULT_STEPS,
        minutes: float | None = None,
        batch_size: int = 32,
        num_draws: int = 16,
        learning_rate: float = 1e-2,
        seed: int,
    ) -> None:
        for name, value in (("num_steps", num_steps), ("batch_size", batch_size), ("num_draws", num_draws)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        if minutes is not None and not minutes > 0:
            raise ValueError(f"minutes must be positive, found {minutes}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, found {learning_rate}")
        for name, found, wanted in (
            ("types of edge", encoder.num_edge_types, model.num_edge_types),
            ("state variables", encoder.state_size, len(model.state_names)),
        ):
            if found != wanted:
                raise ValueError(f"the encoder is made for {found} {name}, the model has {wanted}")
        if encoder.coupling is None:
            raise ValueError("the encoder has no couplings to train; add_coupling gives it some")
        model.prior.check_closed()
        model.prepare(scenes)  # refuses scenes of another kind
        self.model = model
        self.encoder = encoder
        self.scenes = scenes
        self.num_steps = num_steps
        self.minutes = minutes
        self.batch_size = min(batch_size, scenes.num_groups)
        self.num_draws = num_draws
        self.learning_rate = learning_rate
        self.seed = seed
        self.optimizer = torch.optim.Adam(encoder.parameters(), lr=learning_rate)
        self.rounds: list[tuple[Scenes, Tensor]] = []
        self.num_rounds = 0
        self.num_done = 0
        self.seconds = 0.0

    @property
    def progress(self) -> float:
        """How far training has gone, 0 to 1."""
        return share_done(self.num_done, self.num_steps, self.seconds, self.minutes)

    def step(self) -> DistillLosses:
        """One gradient step on a round of posterior draws, a new one every few steps."""
        started = time.monotonic()
        random = generator(self.seed, "distill", self.num_done)
        if self.num_done % STEPS_PER_ROUND == 0:
            self.rounds = [*self.rounds[-MAX_ROUNDS + 1 :], self._new_round()]
            chosen = len(self.rounds) - 1
        else:
            chosen = int(torch.randint(len(self.rounds), (), generator=random))
        scenes, drawn = self.rounds[chosen]
        rate = min(1.0, 0.01 + self.progress / 0.05) * cosine_rate(self.progress)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * rate
        self.optimizer.zero_grad()
        joint_loss, edge_loss = losses(self.encoder, scenes, drawn, tied=self.model.structure_prior(scenes).tied)
        (joint_loss + EDGE_SHARE * edge_loss).backward()
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), 10.0)
        self.optimizer.step()
        self.num_done += 1
        self.seconds += time.monotonic() - started
        return DistillLosses(float(joint_loss.detach()), float(edge_loss.detach()))

    def _new_round(self) -> tuple[Scenes, Tensor]:
        """A window of some scenes, and draws of the posterior given it, long ``[S, G, E]``."""
        random = generator(self.seed, "round", self.num_rounds)
        groups = torch.randperm(self.scenes.num_groups, generator=random)[: self.batch_size]
        members = torch.isin(self.scenes.group_index.cpu(), groups)
        scenes = random_window(self.scenes[members], random)
        drawn = draw_posterior(
            self.model, scenes, self.num_draws, encoder=self.encoder, seed=self.seed, number=self.num_rounds
        )
        self.num_rounds += 1
        return self.model.prepare(scenes), drawn

    def run(self, *, show_progress: bool = False) -> list[DistillLosses]:
        """Train until the schedule ends.

        Args:
            show_progress: progress bar on standard error.

        Returns:
            The losses of all steps.

        Raises:
            Diverged: a loss is no longer a number.
        """
        history = []
        with tqdm(total=1000, disable=not show_progress, desc="distill", bar_format=PROGRESS_BAR) as bar:
            while self.progress < 1:
                history.append(self.step())
                if not math.isfinite(sum(history[-1])):
                    raise Diverged(
                        f"distillation broke down: the losses are {history[-1].joint_loss} and "
                        f"{history[-1].edge_loss}; a smaller learning rate may help"
                    )
                bar.n = round(1000 * self.progress)
                if self.num_done % 10 == 0:
                    bar.set_postfix_str(f"step {self.num_done}, loss {history[-1].joint_loss:.3f}")
        return history


def losses(encoder: Encoder, scenes: Scenes, drawn: Tensor, *, tied: bool) -> tuple[Tensor, Tensor]:
    """Cross-entropy of an encoder towards posterior draws, in nats for each edge.

    That of the joint distributions is a weighted mean over receivers: few of them leave their edges in doubt, and these
    are the ones that chains must move. The best distribution of each receiver does not depend on its weight.

    Args:
        encoder: with couplings.
        scenes: B scenes in G groups.
        drawn: structures, long ``[S, G, E]``.
        tied: whether both edges of a pair have one type.

    Returns:
        That of the joint distributions of the edges into each receiver; that of the distributions of single edges.
    """
    edge, joint = encoder.incoming(scenes, tied=tied)
    into = edges.incoming_edges(scenes.num_entities).to(drawn.device)
    exists = scenes.edge_mask[scenes.group_first_scene].to(drawn.device)  # [G, E]
    incoming = drawn[..., into]  # [S, G, N, N - 1]
    differ = (incoming != incoming.roll(1, 0)).any(-1).to(joint.base.dtype).mean(0)  # [G, N]
    weight = SURE_WEIGHT + differ
    num_edges = exists[:, into].sum(-1)
    joint_loss = -(weight * joint.log_prob(incoming).mean(0)).sum() / (weight * num_edges).sum()
    edge_loss = -(edge.log_prob(drawn).mean(0) * exists).sum() / exists.sum()
    return joint_loss, edge_loss


def random_window(scenes: Scenes, random: torch.Generator) -> Scenes:
    """Consecutive frames at a random place; short windows are as likely as long ones, on a logarithmic scale."""
    low = min(MIN_FRAMES, scenes.num_frames)
    share = float(torch.rand((), generator=random))
    length = round(low * (scenes.num_frames / low) ** share)
    start = int(torch.randint(scenes.num_frames - length + 1, (), generator=random))
    return scenes.frames(start, start + length)


def draw_posterior(
    model: SceneModel, scenes: Scenes, num_draws: int, *, encoder: Encoder | None = None, seed: int, number: int = 0
) -> Tensor:
    """Posterior draws of the structures of scenes: exact where receiver tables allow it, else of short chains.

    Args:
        model: only read.
        scenes: B scenes in G groups, raw units.
        num_draws: S.
        encoder: helps the chains.
        seed: fixes the random numbers, with ``number``.
        number: of the round of draws.

    Returns:
        Long ``[S, G, E]``.
    """
    with torch.no_grad():
        likelihood = model.likelihood(scenes)
        prepared = model.prepare(scenes)
        prior = model.structure_prior(prepared)
        if isinstance(likelihood, ReceiverTable) and can_enumerate(likelihood, prior):
            stream = Stream(seed, keys(scenes.group_names, prior.edge_mask.device), num_draws).child("distill")
            return enumerate_posterior(likelihood, prior).sample(stream, number)
        edge_q, incoming = (None, None) if encoder is None else learned_q(encoder, prepared, tied=prior.tied)
        num_warmup = WARMUP_SWEEPS * scenes.num_entities
        chains = make_chains(
            likelihood,
            prior,
            group_names=scenes.group_names,
            proposal="auto",
            log_q=edge_q,
            incoming=incoming,
            surrogate=surrogate_of(model, likelihood, scenes, "auto"),
            num_chains=min(NUM_CHAINS, num_draws),
            num_warmup=num_warmup,
            start_temperature=START_TEMPERATURE,
            seed=int(torch.randint(2**62, (), generator=generator(seed, "chains", number))),
        )
        kept: list[Tensor] = []
        for done in range(1, num_warmup + scenes.num_entities * -(-num_draws // chains.num_chains) + 1):
            chains.step()
            if done > num_warmup and done % scenes.num_entities == 0:
                kept.append(chains.structure)
        return torch.cat(kept)[:num_draws]


def distill(
    checkpoint: Checkpoint,
    scenes: Scenes,
    *,
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    rank: int = 8,
    show_progress: bool = False,
    **options: Any,
) -> Checkpoint:
    """Train the encoder of a trained model to propose all edges into a receiver jointly.

    The encoder starts as it is, with couplings that say nothing unless it was distilled before. The posterior does not
    change, only how fast chains move through it, so scenes may be those that the model was trained on, or any others.

    Args:
        checkpoint: trained model with an encoder; left as it is.
        scenes: B scenes in G groups, without need of truth.
        num_steps: gradient steps; by default 1000.
        minutes: length by the clock instead.
        seed: fixes all random numbers.
        rank: of new couplings.
        show_progress: progress bar on standard error.
        options: further arguments of :class:`Distillation`: ``batch_size``, ``num_draws``, ``learning_rate``.

    Returns:
        A checkpoint with the same model and the distilled encoder.

    Raises:
        ValueError: an argument is out of range, or there is no encoder that fits model and scenes.

    Example:
        >>> from pyro_nri.fitting import fit
        >>> from pyro_nri.scenes.simulate import simulate
        >>> scenes = simulate("springs", 8, num_entities=3, seed=0)
        >>> distilled = distill(fit(scenes, 2, num_steps=5, seed=0), scenes, num_steps=5, seed=0)
        >>> distilled.encoder.incoming(scenes)[1].event_shape  # one type for each sender
        torch.Size([2])
    """
    if checkpoint.encoder is None:
        raise ValueError("the checkpoint has no encoder, which is what distillation trains")
    if num_steps is None:
        num_steps = DEFAULT_STEPS if minutes is None else 10**9
    result = copy.deepcopy(checkpoint)
    assert result.encoder is not None
    if result.encoder.coupling is None:
        result.encoder.add_coupling(rank, generator=generator(seed, "coupling"))
    trainer = Distillation(
        result.model, result.encoder, scenes, num_steps=num_steps, minutes=minutes, seed=seed, **options
    )
    history = trainer.run(show_progress=show_progress)
    result.training["distillation"] = {
        "seed": seed,
        "num_scenes": scenes.num_scenes,
        "num_steps": trainer.num_done,
        "seconds": trainer.seconds,
        "loss": sum(each.joint_loss for each in history[-20:]) / len(history[-20:]),
    }
    return result
