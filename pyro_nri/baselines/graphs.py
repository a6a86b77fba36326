"""The main method's networks under structures that are full, given, or inferred (paper, Table 1)."""

from typing import Any

import torch
from torch import Tensor

from pyro_nri.baselines.baseline import AbstractBaseline, check_rollout, true_types
from pyro_nri.inference.run import infer
from pyro_nri.learning.bouncegrad import BounceGrad
from pyro_nri.learning.checkpoint import Checkpoint, new_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.scenes import Scenes

#: Where structures come from.
EDGES = ("full", "given", "infer")


class GraphNetwork(AbstractBaseline):
    """A trained model, and where it has its structures from.

    Args:
        checkpoint: trained model with its encoder.
        edges: "full" (one type of edge between all), "given" (the truth of the scenes) or "infer" (the posterior).
        inference: further arguments of :func:`~pyro_nri.inference.run.infer`.

    Raises:
        ValueError: ``edges`` is unknown, or a full graph has more than one type.
    """

    predicts_motion = True

    def __init__(self, checkpoint: Checkpoint, *, edges: str = "infer", **inference: Any) -> None:
        if edges not in EDGES:
            raise ValueError(f"edges must be one of {', '.join(EDGES)}, found {edges!r}")
        if edges == "full" and checkpoint.spec.num_edge_types != 1:
            raise ValueError(f"a full graph has one type of edge, found a model of {checkpoint.spec.num_edge_types}")
        self.checkpoint = checkpoint
        self.edges = edges
        self.infers_structure = edges == "infer"
        self.uses_labels = edges == "given"
        self.inference = {"num_draws": 100, "seed": 0, **inference}

    def to(self, device: torch.device | str) -> "GraphNetwork":
        self.checkpoint.to(device)
        return self

    def edge_probability(self, scenes: Scenes) -> Tensor:
        if self.edges != "infer":
            raise ValueError(f"structures are {self.edges}, not inferred")
        draws = infer(self.checkpoint.model, scenes, encoder=self.checkpoint.encoder, **self.inference)
        if draws.edge_probability is not None:
            return torch.as_tensor(draws.edge_probability)
        drawn = torch.as_tensor(draws.edge_type).long().flatten(0, 1)  # [C S, G, E]
        num_types = self.checkpoint.spec.num_edge_types
        count = torch.nn.functional.one_hot(drawn, num_types).double().sum(0)
        return (count + 0.5) / (len(drawn) + num_types / 2)

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        check_rollout(scenes, start, num_steps)
        if self.edges == "full":
            structure = torch.zeros(scenes.num_groups, scenes.num_edges, dtype=torch.long)
        elif self.edges == "given":
            structure = true_types(scenes, "prediction under true structures")
        elif structure is None:
            structure = self.edge_probability(scenes.frames(0, start)).argmax(-1)
        seen = scenes.frames(0, start + 1) if start else scenes
        return self.checkpoint.model.predict(seen, structure[None], start=start, num_steps=num_steps)[0].cpu()


def fit_full_graph(scenes: Scenes, *, spec: ModelSpec | None = None, seed: int, **options: Any) -> GraphNetwork:
    """One type of edge between all entities: what a graph network knows that looks for no relations.

    Args:
        scenes: training scenes; their structures are not looked at.
        spec: of the model; its number of types is set to 1.
        seed: fixes all random numbers.
        options: ``num_steps``, ``minutes``, ``batch_size``, ``learning_rate`` of :class:`BounceGrad`, and
            ``show_progress``.
    """
    shape = (spec or ModelSpec(1)).to_dict() | {"num_edge_types": 1, "state_names": scenes.state_names}
    structure = torch.zeros(scenes.num_groups, scenes.num_edges, dtype=torch.long)
    return _fitted(scenes, ModelSpec.from_dict(shape | {"no_interaction": False}), structure, "full", seed, options)


def fit_true_graph(scenes: Scenes, *, spec: ModelSpec | None = None, seed: int, **options: Any) -> GraphNetwork:
    """The true structures given, in training and in prediction: the ceiling of what structures can do for prediction.

    Args:
        scenes: training scenes whose structures are known.
        spec: of the model; by default message passing with as many types as occur.
        seed: fixes all random numbers.
        options: as those of :func:`fit_full_graph`.

    Raises:
        ValueError: the structures of the scenes are not known.
    """
    structure = true_types(scenes, "training under true structures")
    if spec is None:
        spec = ModelSpec(int(structure.max()) + 1, scenes.state_names)
    return _fitted(scenes, spec, structure, "given", seed, options)


def _fitted(
    scenes: Scenes, spec: ModelSpec, structure: Tensor, edges: str, seed: int, options: dict[str, Any]
) -> GraphNetwork:
    """Gradient steps of the modules alone."""
    checkpoint = new_checkpoint(spec, encoder_width=None, seed=seed)
    checkpoint.model.fit_scaling(scenes)
    show_progress, minutes = bool(options.pop("show_progress", False)), options.get("minutes")
    device = options.pop("device", "cpu")
    checkpoint.to(device)
    chosen = {"batch_size": 16, "num_steps": 1000 if minutes is None else 10**9, **options}
    trainer = BounceGrad(checkpoint.model, scenes, structure=structure, seed=seed, **chosen)
    trainer.run(show_progress=show_progress)
    checkpoint.to("cpu")
    checkpoint.training = {"seed": seed, "num_scenes": scenes.num_scenes, "num_steps": trainer.num_done}
    checkpoint.training |= {"seconds": trainer.seconds, "inner": trainer.inner}
    checkpoint.training_scenes = scenes.fingerprints
    return GraphNetwork(checkpoint, edges=edges)
