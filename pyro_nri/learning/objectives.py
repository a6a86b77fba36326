"""What training evaluates on a batch: the likelihood that structures are searched by, and the loss of the modules."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.model.impulse import impulse_log_prob, table_of_impulses
from pyro_nri.model.program import SceneModel
from pyro_nri.model.receivers import AbstractLikelihood, grouped_table
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Scenes whose impulse features are kept for the whole training; those of more are made anew for each batch.
MAX_KEPT_SCENES = 400


class AbstractObjective(ABC):
    """Evaluates batches of the training scenes under the modules as they are."""

    @abstractmethod
    def likelihood(self, members: list[int], cache: str) -> AbstractLikelihood:
        """Likelihood of the structures of some scenes on the search frames.

        Args:
            members: numbers of the scenes, whole groups.
            cache: how it is prepared, see :meth:`SceneModel.likelihood`.
        """

    @abstractmethod
    def loss(self, members: list[int], structure: Tensor) -> Tensor:
        """Negative log joint of scenes and structures for each observed variable, on the scoring frames.

        Args:
            members: numbers of the scenes, whole groups.
            structure: long ``[G, E]``, one for each of their groups.
        """


class ForwardObjective(AbstractObjective):
    """The density of the program.

    Args:
        model: its modules are trained.
        search: all scenes, search frames.
        scoring: all scenes, scoring frames; prepared.
    """

    def __init__(self, model: SceneModel, search: Scenes, scoring: Scenes) -> None:
        self.model = model
        self.search = search
        self.scoring = scoring

    def likelihood(self, members: list[int], cache: str) -> AbstractLikelihood:
        return self.model.likelihood(self.search[members], cache=cache)

    def loss(self, members: list[int], structure: Tensor) -> Tensor:
        scenes = self.scoring[members]
        scored = self.model.trajectory(scenes, structure[scenes.group_index]).scored
        num_values = (scored.sum() * scenes.state_size).clamp(min=1)
        return -self.model.log_joint(scenes, structure[None]).sum() / num_values


class ImpulseObjective(AbstractObjective):
    """The composite likelihood of pair forces along cubic paths.

    Args:
        model: its laws are trained.
        search: all scenes in raw units, search frames.
        scoring: all scenes in raw units, scoring frames.
    """

    def __init__(self, model: SceneModel, search: Scenes, scoring: Scenes) -> None:
        self.model = model
        self.dynamics, self.noise, _ = model.impulse_parts
        self.search = search
        self.scoring = scoring
        self.kept: dict[int, ImpulseFeatures] = {}

    def _features(self, scenes: Scenes, members: list[int]) -> ImpulseFeatures:
        if scenes.num_scenes > MAX_KEPT_SCENES:
            return self.dynamics.features(scenes[members])
        if id(scenes) not in self.kept:
            self.kept[id(scenes)] = self.dynamics.features(scenes)
        return self.kept[id(scenes)][members]

    def likelihood(self, members: list[int], cache: str) -> AbstractLikelihood:
        if cache != "table":
            return self.model.likelihood(self.search[members], kind="impulse", cache=cache)
        features = self._features(self.search, members)
        with torch.no_grad():
            table = table_of_impulses(features.impulses(self.dynamics.laws), features, self.noise)
        return grouped_table(table, self.model.num_edge_types, self.search[members], is_density=False)

    def loss(self, members: list[int], structure: Tensor) -> Tensor:
        scenes = self.scoring[members]
        features = self._features(self.scoring, members)
        incoming = edges.incoming_edges(scenes.num_entities).to(structure.device)
        log_prob = impulse_log_prob(
            features.impulses(self.dynamics.laws),
            features,
            self.noise,
            structure[scenes.group_index][:, incoming],
        )
        total = log_prob.sum() + self.model.structure_prior(scenes).log_prob(structure).sum()
        return -total / (features.mask.sum() * features.target.shape[-1]).clamp(min=1)
