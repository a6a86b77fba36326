"""Structures along whose motion paths within hard frames are integrated, looked for scene by scene.

A path through a close encounter is right only if it was integrated under the right types of all edges that matter.
The right structure brings the motion from one end of a frame to the other, in every frame; so where a structure leaves
gaps, its neighbours are tried on the frames with the largest ones: other types for a pair, for one of its edges, for
all edges of an entity.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.impulses import ImpulseFeatures
from pyro_nri.dynamics.integrated_paths import gap_floor, hard_frames, path_gaps
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes

#: Misfit of a gap, and the share of gaps beyond which no structure is looked for.
GAP_MISFIT, MAX_GAPS = 1.0, 0.7
#: Scenes whose frames have a smaller misfit together are left as they are: chaotic orbits have that under the truth.
MISFIT = 10.0
#: Changes of a structure at most, and frames with the largest gaps by which they are chosen.
MAX_CHANGES, MAX_FRAMES = 8, 6
#: Where no neighbour is better though the misfit is larger than this, those of so many of the best ones are tried.
STUCK, BEAM = 30.0, 5
#: Candidates times frames that are integrated at once.
CHUNK = 2000


class _Frames(NamedTuple):
    """Hard frames of some scenes."""

    scene: Tensor  # [R]
    start: Tensor  # [R, N, D]
    end: Tensor
    edge_mask: Tensor  # [R, E]
    floor: Tensor  # [R]

    def some(self, index: Tensor) -> "_Frames":
        """The same of some rows."""
        return _Frames(*(each[index] for each in self))


def doubtful_scenes(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, structure: Tensor) -> Tensor:
    """Numbers of the scenes in which motion under a structure ``[B, E]`` leaves some gaps, long ``[R]``.

    Scenes with gaps nearly everywhere are not among them: no structure explains those.
    """
    frames = _hard(dynamics, features, scenes)
    misfit = _misfit(dynamics, frames, structure[frames.scene][None], scenes.time_step)[0]  # [R, N]
    zero = misfit.new_zeros(scenes.num_scenes)
    total = zero.index_add(0, frames.scene, misfit.sum(-1))
    gaps = zero.index_add(0, frames.scene, (misfit > GAP_MISFIT).to(misfit).mean(-1))
    count = zero.index_add(0, frames.scene, torch.ones_like(misfit[:, 0]))
    return ((total > MISFIT) & (gaps < MAX_GAPS * count)).nonzero().squeeze(-1)


def improve(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes, starts: list[Tensor]) -> Tensor:
    """For each scene a structure with small gaps, from the best of several on.

    Args:
        dynamics: with fitted laws.
        features: of the same scenes, along cubic paths.
        scenes: B scenes in raw units; each is treated by itself.
        starts: structures to start from, long ``[B, E]`` each; scenes without hard frames keep the last.

    Returns:
        Long ``[B, E]``.
    """
    frames, found = _hard(dynamics, features, scenes), starts[-1].clone()
    for b in frames.scene.unique().tolist():
        own = frames.some(frames.scene == b)
        found[b] = _Search(dynamics, own, scenes.time_step).run(torch.stack([start[b] for start in starts]))
    return found


class _Search:
    """Descent of the misfit of one scene."""

    def __init__(self, dynamics: PairForces, frames: _Frames, duration: float) -> None:
        self.dynamics, self.frames, self.duration = dynamics, frames, duration

    def run(self, starts: Tensor) -> Tensor:
        misfit = self.misfit(self.frames, starts)  # [M, R, N]
        best = int(misfit.sum((-1, -2)).argmin())
        structure, now = starts[best], misfit[best]
        for _ in range(MAX_CHANGES):
            if float(now.sum()) <= MISFIT:
                break
            index = now.sum(-1).topk(min(MAX_FRAMES, len(now))).indices
            worst, moved = self.frames.some(index), now[index].amax(0) > GAP_MISFIT  # [N]
            tried = self.sorted(worst, self.neighbours(structure, moved))
            better = self.better(tried, now)
            if better is None and float(now.sum()) > STUCK and len(tried):
                wider = torch.cat([self.neighbours(each, moved) for each in tried[:BEAM]])
                better = self.better(self.sorted(worst, wider), now)
            if better is None:
                break
            structure, now = better
        return structure

    def sorted(self, frames: _Frames, structures: Tensor) -> Tensor:
        """Structures ``[M, E]``, the best first."""
        return structures[self.misfit(frames, structures).sum((-1, -2)).argsort()] if len(structures) else structures

    def better(self, ordered: Tensor, now: Tensor) -> tuple[Tensor, Tensor] | None:
        """The first of structures ``[M, E]`` and its misfit ``[R, N]``, if that is less on all frames together."""
        if not len(ordered):
            return None
        (misfit,) = self.misfit(self.frames, ordered[:1])
        return (ordered[0], misfit) if float(misfit.sum()) < float(now.sum()) else None

    def misfit(self, frames: _Frames, structures: Tensor) -> Tensor:
        """Of each of M structures ``[M, E]``: ``[M, R, N]``."""
        size = max(1, CHUNK // len(frames.scene))
        rows = structures[:, None].expand(-1, len(frames.scene), -1)
        return torch.cat([_misfit(self.dynamics, frames, some, self.duration) for some in rows.split(size)])

    def neighbours(self, structure: Tensor, moved: Tensor) -> Tensor:
        """Structures with other types for a pair, edge or entity, where the motion of an entity is off, ``[M, E]``."""
        num_entities, num_types = len(moved), self.dynamics.num_edge_types
        sender, receiver = edges.senders(num_entities).to(moved.device), edges.receivers(num_entities).to(moved.device)
        result = []
        for edge in (moved[sender] | moved[receiver]).nonzero().squeeze(-1):
            here = torch.arange(len(structure), device=moved.device) == edge
            back = (sender == receiver[edge]) & (receiver == sender[edge])
            for kind in range(num_types):
                result += [torch.where(some, kind, structure) for some in (here, here | back)]
        for entity in moved.nonzero().squeeze(-1):
            own = (sender == entity) | (receiver == entity)
            result += [torch.where(own, (structure + shift) % num_types, structure) for shift in range(1, num_types)]
        every = torch.stack([structure, *result]).unique(dim=0)
        others: Tensor = every[(every != structure).any(-1)]
        return others


def _hard(dynamics: PairForces, features: ImpulseFeatures, scenes: Scenes) -> _Frames:
    scene, frame = hard_frames(dynamics, features, scenes).nonzero().unbind(-1)
    trajectory = scenes.trajectory.double()
    floor = gap_floor(dynamics, scenes)
    return _Frames(scene, trajectory[scene, frame], trajectory[scene, frame + 1], scenes.edge_mask[scene], floor[scene])


def _misfit(dynamics: PairForces, frames: _Frames, structures: Tensor, duration: float) -> Tensor:
    """How large the gaps are under structures ``[M, R, E]``: 0 for none, 1 or more for one, ``[M, R, N]``."""
    gap = path_gaps(dynamics, frames.start, frames.end, structures, frames.edge_mask, duration)
    misfit: Tensor = (gap / frames.floor[:, None]).square().log1p()
    return misfit
