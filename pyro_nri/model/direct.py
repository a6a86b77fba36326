"""The program's log-likelihood, evaluated anew for each structure."""

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_nri.model.receivers import CHUNK_FLOATS, AbstractLikelihood
from pyro_nri.model.trajectory import Trajectory
from pyro_nri.scenes.scenes import Scenes


class DirectLikelihood(AbstractLikelihood):
    """Density of the trajectories given structures; any horizon, any number of sub-steps.

    Args:
        trajectory: from B scenes and structures ``[C, B, E]`` to the distribution of their trajectories, frozen.
        scenes: prepared scenes.
        num_edge_types: K.
    """

    is_cached = False

    def __init__(self, trajectory: Callable[[Scenes, Tensor], Trajectory], scenes: Scenes, num_edge_types: int) -> None:
        self.trajectory = trajectory
        self.scenes = scenes
        self.num_edge_types = num_edge_types
        self.edge_mask = scenes.edge_mask[scenes.group_first_scene]
        self.size = scenes.num_frames * scenes.num_edges * 64  # floats of one scene's messages

    def receiver_terms(self, structure: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        scenes, group = self.scenes, self.scenes.group_index
        if known is None:
            changed = torch.ones(structure.shape[:2], dtype=torch.bool, device=structure.device)
            terms = structure.new_zeros((*structure.shape[:2], scenes.num_entities), dtype=torch.float64)
        else:
            changed = (structure != known[0]).any(-1)
            terms = torch.where(changed[..., None], torch.zeros_like(known[1]), known[1])
        # One row for each changed structure and each recording of its group, in parts whose messages stay in a
        # processor's cache.
        rows = changed[:, group].nonzero()  # [R, 2]
        with torch.no_grad():
            for part in rows.split(max(1, CHUNK_FLOATS // self.size)) if len(rows) else ():
                chain, scene = part.unbind(-1)
                recordings = scenes[scene.cpu()]
                trajectory = self.trajectory(recordings, structure.long()[chain, group[scene]])
                value = trajectory.log_prob_entities(recordings.trajectory[:, 1:]).double()
                terms.index_put_((chain, group[scene]), value, accumulate=True)
        return terms
