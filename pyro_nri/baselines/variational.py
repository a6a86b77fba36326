"""Neural relational inference (Kipf et al. 2018) as stochastic variational inference in Pyro.

The guide is the encoder: one independent distribution for each edge, drawn from through the Gumbel-softmax
relaxation. The program is the decoder with the same modules, noise and prior as the main method; its divergence from
the prior is that of the categorical distributions themselves, in closed form, as NRI has it.
"""

from dataclasses import replace
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

from pyro_nri.baselines.baseline import AbstractBaseline, check_rollout
from pyro_nri.baselines.decoders import AbstractDecoder, GraphDecoder, RecurrentDecoder
from pyro_nri.baselines.encoders import group_logits, group_probability, make_encoder
from pyro_nri.baselines.relaxation import RelaxedTypes
from pyro_nri.baselines.supervised import members_of_groups
from pyro_nri.baselines.training import Training, minimise
from pyro_nri.dynamics.message_passing import PRESETS
from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.streams import generator
from pyro_nri.model.priors import IndependentPrior, SymmetricPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes

#: Decoders by name.
DECODERS = ("mlp", "rnn")


class Variational(nn.Module, AbstractBaseline):
    """Encoder and decoder as Pyro guide and program.

    Args:
        model: noise, prior and, for the graph decoder, dynamics.
        encoder: a module from scenes to a categorical distribution with batch shape ``[B, E]``.
        decoder: by default the dynamics of the model.
        temperature: of the relaxation; NRI has 0.5.
        hard: whether draws are 0 or 1 in training.

    Raises:
        ValueError: the prior is neither independent nor symmetric.
    """

    infers_structure = True
    predicts_motion = True

    def __init__(
        self,
        model: SceneModel,
        encoder: Encoder,
        decoder: AbstractDecoder | None = None,
        *,
        temperature: float = 0.5,
        hard: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model.prior, IndependentPrior | SymmetricPrior):
            raise ValueError(
                f"the guide draws edges or pairs independently: the prior must be independent or symmetric, found "
                f"{type(model.prior).__name__}"
            )
        self.model = model
        self.encoder = encoder
        self.decoder = GraphDecoder(model.dynamics) if decoder is None else decoder
        self.temperature = temperature
        self.hard = hard
        self.random = generator(0, "relaxed")
        self.training_done: Training | None = None

    # --- the program and its guide -----------------------------------------------------------------------------------
    def program(self, scenes: Scenes) -> None:
        """Trajectories given relaxed types ``edge_weight`` ``[G, E, K]``, which the guide draws.

        Args:
            scenes: prepared scenes; their frame 0 is a covariate.
        """
        prior = self.model.structure_prior(scenes).edge_log_weight().expand(scenes.num_groups, -1, -1)
        with pyro.plate("structure", scenes.num_groups, dim=-1):
            weight = pyro.sample("edge_weight", self._relaxed(prior))
        with pyro.plate("scene", scenes.num_scenes, dim=-1):
            trajectory = self.trajectory(scenes, weight[scenes.group_index])
            pyro.sample("trajectory", trajectory, obs=scenes.trajectory[:, 1:])

    def guide(self, scenes: Scenes, logits: Tensor | None = None) -> None:
        """Draws of the encoder's types; the factor ``divergence`` is what they cost against the prior.

        Args:
            scenes: prepared scenes.
            logits: in place of the encoder's, ``[G, E, K]``.
        """
        if logits is None:
            logits = self.logits(scenes)
        with pyro.plate("structure", scenes.num_groups, dim=-1):
            pyro.sample("edge_weight", self._relaxed(logits))
            pyro.factor("divergence", self.divergence(scenes, logits), has_rsample=True)

    def loss(self, scenes: Scenes, logits: Tensor | None = None) -> Tensor:
        """Negative evidence lower bound for each observed state variable, from one draw."""
        bound: Tensor = Trace_ELBO().differentiable_loss(self.program, partial(self.guide, logits=logits), scenes)
        return bound / (self._scored(scenes).sum() * scenes.state_size).clamp(min=1)

    def logits(self, scenes: Scenes) -> Tensor:
        """Log probabilities of the guide, ``[G, E, K]``: the evidence of a group's scenes adds up."""
        return group_logits(self.encoder, scenes, tied=self.tied)

    def divergence(self, scenes: Scenes, logits: Tensor) -> Tensor:
        """Kullback-Leibler divergence of the guide's categorical distributions from the prior, ``[G]``."""
        log_q = logits.log_softmax(-1)
        log_prior = self.model.prior.type_logits.log_softmax(-1)  # [K]
        each = (log_q.exp() * (log_q - log_prior)).sum(-1) * scenes.edge_mask[scenes.group_first_scene]
        return each.sum(-1) / (2 if self.tied else 1)

    def trajectory(self, scenes: Scenes, weight: Tensor) -> dist.TorchDistribution:
        """Distribution of frames 1 to T - 1 given weights of the types, batch ``[B]``, event ``[T - 1, N, D]``."""
        predictions = self.decoder(scenes, weight, horizon=self.model.horizon)
        context = None
        if self.model.noise.uses_context:
            context = self.model.geometry(scenes.trajectory[:, :-1], scenes.edge_mask[:, None])
        each: dist.TorchDistribution = self.model.noise(predictions, context)  # batch [B, T - 1, N]
        whole: dist.TorchDistribution = each.mask(self._scored(scenes)).to_event(2)
        return whole

    def _scored(self, scenes: Scenes) -> Tensor:
        zeros = torch.zeros(scenes.num_scenes, scenes.num_edges, dtype=torch.long, device=scenes.trajectory.device)
        return self.model.trajectory(scenes, zeros).scored

    def _relaxed(self, logits: Tensor) -> RelaxedTypes:
        return RelaxedTypes(logits, self.temperature, hard=self.hard, tied=self.tied, random=self.random)

    @property
    def tied(self) -> bool:
        """Whether both edges of a pair have one type."""
        return isinstance(self.model.prior, SymmetricPrior)

    # --- answers -----------------------------------------------------------------------------------------------------
    def edge_probability(self, scenes: Scenes) -> Tensor:
        return group_probability(self.encoder, self.model.prepare(scenes), tied=self.tied)

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        check_rollout(scenes, start, num_steps)
        if structure is None:
            structure = self.edge_probability(scenes.frames(0, start)).argmax(-1)
        prepared = self.model.prepare(scenes)
        weight = nn.functional.one_hot(structure, self.model.num_edge_types)[scenes.group_index.cpu()]
        with torch.no_grad():
            path = self.decoder.rollout(prepared, weight.to(prepared.trajectory), start=start, num_steps=num_steps)
        return path.cpu()


def fit_variational(
    scenes: Scenes,
    num_edge_types: int | None = None,
    *,
    spec: ModelSpec | None = None,
    encoder: str = "transition",
    decoder: str = "mlp",
    temperature: float = 0.5,
    hard: bool = False,
    variance: float | None = None,
    num_frames: int | None = None,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    device: torch.device | str = "cpu",
    show_progress: bool = False,
) -> Variational:
    """Train encoder and decoder together by the evidence lower bound; true structures are not looked at.

    Args:
        scenes: training scenes.
        num_edge_types: K; the other choices of the model are then the defaults of :class:`ModelSpec`, with the equal
            and fixed type weights of NRI.
        spec: all choices of the model, in place of ``num_edge_types``. The prior is independent or symmetric; NRI has
            horizon 10.
        encoder: "transition" (the main method's), "mlp" or "cnn" (NRI's own).
        decoder: "mlp" (the dynamics of the main method) or "rnn" (NRI's recurrent one).
        temperature: of the relaxation.
        hard: whether draws are 0 or 1, with the gradient of the soft ones.
        variance: fix normal noise of this variance in scaled units (NRI: 5e-5) in place of the noise of ``spec``,
            whose scales are learned.
        num_frames: train on windows of so many frames, drawn anew at each step; by default on all frames.
        batch_size: number of structures in a batch.
        learning_rate: of Adam at the start.
        num_steps: length of the training in gradient steps; by default 1,000.
        minutes: length by the clock instead.
        seed: fixes all random numbers.
        device: where to train; the networks come back on the CPU.
        show_progress: progress bar on standard error.

    Raises:
        ValueError: an argument is out of range or unknown.

    Example:
        >>> from pyro_nri.scenes.simulate import simulate
        >>> scenes = simulate("springs", 4, num_entities=3, num_frames=12, seed=0)
        >>> found = fit_variational(scenes, 2, num_steps=2, seed=0)
        >>> found.edge_probability(scenes).shape
        torch.Size([4, 6, 2])
    """
    if (spec is None) == (num_edge_types is None):
        raise ValueError("give either num_edge_types or spec")
    if decoder not in DECODERS:
        raise ValueError(f"decoder must be one of {', '.join(DECODERS)}, found {decoder!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if variance is not None and not variance > 0:
        raise ValueError(f"variance must be positive, found {variance}")
    if num_frames is not None and not 2 <= num_frames <= scenes.num_frames:
        raise ValueError(f"num_frames must be from 2 to {scenes.num_frames}, found {num_frames}")
    if spec is None:
        assert num_edge_types is not None
        spec = ModelSpec(num_edge_types, scenes.state_names, learn_type_weights=False)
    if variance is not None:
        spec = replace(spec, noise="normal")
    width = PRESETS[spec.preset]["width"]
    model = build_model(spec, generator(seed, "model"))
    model.fit_scaling(scenes)
    if variance is not None:
        with torch.no_grad():
            model.noise.log_relative_scale.copy_((variance**0.5 * model.score_scale / model.noise.change_scale).log())
    length = scenes if num_frames is None else scenes.frames(0, num_frames)
    made = make_encoder(encoder, spec.num_edge_types, length, width=width, generator=generator(seed, "encoder"))
    made.fit_scaling(scenes)
    recurrent = None
    if decoder == "rnn":
        recurrent = RecurrentDecoder(
            spec.num_edge_types,
            scenes.state_size,
            width=width,
            no_interaction=spec.no_interaction,
            generator=generator(seed, "decoder"),
        )
        recurrent.fit_scaling(scenes)
    baseline = Variational(model, made, recurrent, temperature=temperature, hard=hard)
    baseline.to(device)
    prepared, members = model.prepare(scenes), members_of_groups(scenes)
    random = generator(seed, "window")
    baseline.random = generator(seed, "relaxed")

    def loss(groups: list[int], _: float) -> Tensor:
        part = prepared[[scene for group in groups for scene in members[group]]]
        if num_frames is not None:
            start = int(torch.randint(scenes.num_frames - num_frames + 1, (1,), generator=random))
            part = part.frames(start, start + num_frames)
        return baseline.loss(part)

    networks = [*made.parameters(), *baseline.decoder.parameters()]
    baseline.training_done = minimise(
        loss,
        networks,
        scenes.num_groups,
        few=[] if variance is not None else [*model.noise.parameters(), *model.prior.parameters()],
        batch_size=batch_size,
        learning_rate=learning_rate,
        num_steps=num_steps,
        minutes=minutes,
        seed=seed,
        show_progress=show_progress,
    )
    baseline.to("cpu")
    return baseline
