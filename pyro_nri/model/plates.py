"""The plates of the program: structures, and the scenes that share them."""

from collections.abc import Callable

import pyro
from torch import Tensor

from pyro_nri.model.structures import StructureDistribution
from pyro_nri.scenes.scenes import Scenes


def sample_structures(scenes: Scenes, prior: StructureDistribution, site: Callable[[Tensor], Tensor]) -> Tensor:
    """Draw ``edge_type`` and what follows from it in the plates that Pyro needs.

    Args:
        scenes: B scenes in G structure groups.
        prior: of the G structures.
        site: what is drawn in the plate ``scene``, given the structure of each scene, long ``[*batch, B, E]``.

    Returns:
        What ``site`` returns. Where each scene has its own structure, one plate holds both.
    """
    if scenes.num_groups == scenes.num_scenes:
        with pyro.plate("scene", scenes.num_scenes, dim=-1):
            return site(pyro.sample("edge_type", prior))
    with pyro.plate("structure", scenes.num_groups, dim=-1):
        edge_type = pyro.sample("edge_type", prior)
    with pyro.plate("scene", scenes.num_scenes, dim=-1):
        return site(edge_type[..., scenes.group_index, :])
