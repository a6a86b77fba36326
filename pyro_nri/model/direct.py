"""The program's log-likelihood, evaluated anew for each structure."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nri.model.receivers import AbstractLikelihood, chunk_size
from pyro_nri.model.trajectory import Trajectory
from pyro_nri.scenes.scenes import Scenes


class DirectLikelihood(AbstractLikelihood):
    """Density of the trajectories given structures; any horizon, any number of sub-steps.

    Args:
        trajectory: from B scenes and structures ``[C, B, E]`` to the distribution of their trajectories, frozen.
        scenes: prepared scenes.
        num_edge_types: K.
        power: to which each receiver's likelihood is raised, ``[B, N]``; by default it stays a density.
    """

    is_cached = False

    def __init__(
        self,
        trajectory: Callable[[Scenes, Tensor], Trajectory],
        scenes: Scenes,
        num_edge_types: int,
        power: Tensor | None = None,
    ) -> None:
        self.is_density = power is None
        self.power = power
        self.trajectory = trajectory
        self.scenes = scenes
        self.num_edge_types = num_edge_types
        self.edge_mask = scenes.edge_mask[scenes.group_first_scene]
        self.size = scenes.num_frames * scenes.num_edges * 64  # floats of one scene's messages

    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        if known is None:
            return self._all_terms(structure)
        changed = (structure != known[0]).any(-1)  # [C, G]
        if changed.all():
            return self._all_terms(structure)
        scenes, group = self.scenes, self.scenes.group_index
        terms = torch.where(changed[..., None], torch.zeros_like(known[1]), known[1])
        rows = changed[:, group].nonzero()  # [R, 2]: one for each changed structure and each recording of its group
        with torch.no_grad():
            for part in rows.split(chunk_size(self.size, rows.device)) if len(rows) else ():
                chain, scene = part.unbind(-1)
                recordings = scenes[scene.cpu()]
                trajectory = self.trajectory(recordings, structure.long()[chain, group[scene]])
                value = trajectory.log_prob_entities(recordings.trajectory[:, 1:]).double()
                if self.power is not None:
                    value = value * self.power[scene]
                terms.index_put_((chain, group[scene]), value, accumulate=True)
        return terms

    def _all_terms(self, structure: Tensor) -> Tensor:
        """Terms of every structure: what does not depend on the structure is shared by the chains of a scene."""
        scenes, group = self.scenes, self.scenes.group_index
        each = structure.long()[:, group]  # [C, B, E]
        terms = each.new_zeros((*each.shape[:2], scenes.num_entities), dtype=torch.float64)
        num_chains = min(len(each), chunk_size(self.size, each.device))
        num_scenes = chunk_size(num_chains * self.size, each.device)
        with torch.no_grad():
            for first in range(0, scenes.num_scenes, num_scenes):
                some = slice(first, first + num_scenes)
                part = scenes[some]
                for chains in torch.arange(len(each)).split(num_chains):
                    trajectory = self.trajectory(part, each[chains, some])
                    terms[chains, some] = trajectory.log_prob_entities(part.trajectory[:, 1:])
        if self.power is not None:
            terms = terms * self.power
        total = terms.new_zeros(len(each), scenes.num_groups, scenes.num_entities)
        return total.index_add(1, group, terms)
