"""Structures along whose motion paths within hard frames are integrated, looked for in each scene by itself.

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
    frames = _hard(dynamics, features, scenes)
    return _Search(dynamics, frames, scenes.time_step).run(torch.stack(starts))


class _Search:
    """Descent of the misfit of each scene; the candidates of all scenes are integrated together."""

    def __init__(self, dynamics: PairForces, frames: _Frames, duration: float) -> None:
        self.dynamics, self.frames, self.duration = dynamics, frames, duration
        self.rows = {int(b): (frames.scene == b).nonzero().squeeze(-1) for b in frames.scene.unique()}

    def run(self, starts: Tensor) -> Tensor:
        """From starts ``[M, B, E]`` to structures ``[B, E]``."""
        structure = starts[-1].clone()
        first = self.misfits(self.rows, {b: starts[:, b] for b in self.rows})
        now = {}
        for b, misfit in first.items():
            best = int(misfit.sum((-1, -2)).argmin())
            structure[b], now[b] = starts[best, b], misfit[best]
        for _ in range(MAX_CHANGES):
            now = {b: misfit for b, misfit in now.items() if float(misfit.sum()) > MISFIT}
            worst = {b: misfit.sum(-1).topk(min(MAX_FRAMES, len(misfit))).indices for b, misfit in now.items()}
            moved = {b: misfit[worst[b]].amax(0) > GAP_MISFIT for b, misfit in now.items()}  # [N]
            rows = {b: self.rows[b][index] for b, index in worst.items()}
            tried = self.ordered(rows, {b: self.neighbours(structure[b], moved[b]) for b in now})
            better = self.better(tried, now)
            stuck = [b for b in tried if b not in better and float(now[b].sum()) > STUCK]
            wider = {b: torch.cat([self.neighbours(each, moved[b]) for each in tried[b][:BEAM]]) for b in stuck}
            better |= self.better(self.ordered(rows, wider), now)
            for b, (changed, _) in better.items():
                structure[b] = changed
            now = {b: misfit for b, (_, misfit) in better.items()}  # the others end here
        return structure

    def ordered(self, rows: dict[int, Tensor], structures: dict[int, Tensor]) -> dict[int, Tensor]:
        """Structures ``[M, E]`` of each scene, the best on some of its frames first; not scenes without any."""
        misfits = self.misfits(rows, {b: some for b, some in structures.items() if len(some)})
        return {b: structures[b][misfit.sum((-1, -2)).argsort()] for b, misfit in misfits.items()}

    def better(self, ordered: dict[int, Tensor], now: dict[int, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
        """The first of each scene's structures and its misfit ``[R, N]``, where that is less on all its frames."""
        misfits = self.misfits(self.rows, {b: some[:1] for b, some in ordered.items()})
        return {
            b: (ordered[b][0], misfit[0]) for b, misfit in misfits.items() if float(misfit.sum()) < float(now[b].sum())
        }

    def misfits(self, rows: dict[int, Tensor], structures: dict[int, Tensor]) -> dict[int, Tensor]:
        """Of structures ``[M, E]`` of each scene on some of its frames ``[R]``: ``[M, R, N]`` each."""
        if not structures:
            return {}
        row = torch.cat([rows[b].repeat(len(some)) for b, some in structures.items()])
        sizes = [len(some) for some in structures.values()]
        every, first = torch.cat(list(structures.values())), 0
        number = []  # of the structure of each row: structures of large graphs are long
        for b, size in zip(structures, sizes, strict=True):
            number.append(torch.arange(first, first + size, device=row.device).repeat_interleave(len(rows[b])))
            first += size
        found = [
            _misfit(self.dynamics, self.frames.some(some), every[kinds][None], self.duration)[0]
            for some, kinds in zip(row.split(CHUNK), torch.cat(number).split(CHUNK), strict=True)
        ]
        lengths = [size * len(rows[b]) for b, size in zip(structures, sizes, strict=True)]
        parts = zip(structures, torch.cat(found).split(lengths), strict=True)
        return {b: part.unflatten(0, (-1, len(rows[b]))) for b, part in parts}

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
