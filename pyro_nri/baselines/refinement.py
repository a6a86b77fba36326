"""Edges of new scenes by gradient, under modules that stay as they are: the cheap rival of a search."""

import copy

import torch
from torch import Tensor

from pyro_nri.baselines.baseline import AbstractBaseline, check_rollout
from pyro_nri.baselines.encoders import CHUNK_GROUPS
from pyro_nri.baselines.variational import Variational
from pyro_nri.inference.streams import generator
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class Refined(AbstractBaseline):
    """A variational baseline whose edges are improved for each new scene: the cheap rival of a search.

    The modules stay as they are. The logits of every edge begin where the encoder has them and climb the evidence
    lower bound of their own scene; what is returned is their mean over the second half of the steps.

    Args:
        variational: a trained one.
        num_steps: gradient steps for each scene.
        learning_rate: of Adam, in units of logits.
        seed: fixes the draws.
    """

    infers_structure = True
    predicts_motion = True

    def __init__(
        self, variational: Variational, *, num_steps: int = 50, learning_rate: float = 0.3, seed: int = 0
    ) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {num_steps}")
        if not learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, found {learning_rate}")
        self.variational = variational
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.seed = seed

    def to(self, device: torch.device | str) -> "Refined":
        self.variational.to(device)
        return self

    def edge_probability(self, scenes: Scenes) -> Tensor:
        owner = copy.copy(self.variational)
        owner.random = generator(self.seed, "refined")
        prepared, parts = owner.model.prepare(scenes), []
        group = prepared.group_index
        for some in torch.arange(prepared.num_groups).split(CHUNK_GROUPS):
            parts.append(self._climb(owner, prepared[torch.isin(group.cpu(), some)]))
        return torch.cat(parts)

    def _climb(self, owner: Variational, scenes: Scenes) -> Tensor:
        with torch.no_grad():
            logits = owner.logits(scenes)
        logits = logits.requires_grad_()
        optimizer, total = torch.optim.Adam([logits], lr=self.learning_rate), torch.zeros_like(logits).double()
        kept = range(self.num_steps // 2, self.num_steps)
        for step in range(self.num_steps):
            current = logits
            if owner.tied:
                current = (logits + logits[:, edges.reverse_edges(scenes.num_entities).to(logits.device)]) / 2
            (logits.grad,) = torch.autograd.grad(owner.loss(scenes, current), [logits])
            optimizer.step()
            if step in kept:
                total += logits.detach().log_softmax(-1)
        return (total / len(kept)).softmax(-1).cpu()

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        check_rollout(scenes, start, num_steps)
        if structure is None:
            structure = self.edge_probability(scenes.frames(0, start)).argmax(-1)
        return self.variational.predict(scenes, start=start, num_steps=num_steps, structure=structure)
