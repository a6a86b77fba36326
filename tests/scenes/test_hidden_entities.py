"""Room for entities that nobody recorded."""

import pytest
import torch

from pyro_nri.scenes import edges
from pyro_nri.scenes.hidden_entities import embedded, with_hidden
from pyro_nri.scenes.scenes import Scenes


@pytest.fixture
def scenes():
    trajectory = torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Scenes.from_arrays(trajectory, entity_kind=[0, 1, 0, 1], edge_type=torch.ones(3, 12, dtype=torch.long))


def test_hidden_entities_are_last_and_unseen(scenes):
    wide = with_hidden(scenes, torch.tensor([0, 2, 1]))
    assert wide.num_entities == 6
    assert wide.entity_mask.sum(-1).tolist() == [4, 6, 5]
    assert not wide.observation_mask[:, :, 4:].any()
    assert torch.equal(wide.trajectory[:, :, :4], scenes.trajectory)
    assert wide.entity_names[1] == ("0", "1", "2", "3", "hidden 1", "hidden 2")
    assert wide.edge_type is None
    assert with_hidden(scenes, 1, most=3).num_entities == 7
    assert with_hidden(scenes, 0).num_entities == 4


def test_structures_are_embedded(scenes):
    structure = torch.arange(12).expand(2, 3, 12) % 3
    wide = embedded(structure, 4, 6)
    assert torch.equal(edges.to_matrix(wide)[..., :4, :4], edges.to_matrix(structure))
    assert edges.to_matrix(wide)[..., 4:].sum() == 0
    assert embedded(structure, 4, 4) is structure


def test_bad_input_is_named(scenes):
    with pytest.raises(ValueError, match="num_hidden must be 0 or more, found -1"):
        with_hidden(scenes, -1)
    with pytest.raises(ValueError, match="most must be at least the largest num_hidden, 2, found 1"):
        with_hidden(scenes, 2, most=1)
    again = Scenes.from_arrays(scenes.trajectory, entity_names=["a", "b", "c", "hidden 1"])
    with pytest.raises(ValueError, match="scene '0' has an entity 'hidden 1' already"):
        with_hidden(again, 1)
