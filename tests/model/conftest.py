"""Small scenes and float64 models with weights that matter."""

import pyro
import pytest
import torch

from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes


@pytest.fixture(autouse=True)
def fresh_param_store():
    """Pyro keeps parameters by name for the whole process: each test begins with none."""
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


@pytest.fixture
def make_model():
    def make(num_edge_types=2, *, seed=0, **options):
        options = {"state_names": ("x", "vx"), "noise": "normal"} | options
        model = build_model(ModelSpec(num_edge_types, **options), torch.Generator().manual_seed(seed)).double()
        generator = torch.Generator().manual_seed(seed + 100)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "weights" not in name and parameter.requires_grad:  # biases, noise scales, type weights
                    parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
            model.score_offset.copy_(torch.tensor([0.3, -0.2]))
            model.score_scale.copy_(torch.tensor([1.5, 0.7]))
            model.dynamics.units.change_scale.fill_(0.4)
        return model

    return make


@pytest.fixture
def make_scenes():
    def make(num_scenes=4, num_entities=3, num_frames=5, *, seed=0, missing=0.0, padded=(), groups=None, kinds=0):
        """Random walks; ``padded`` scenes lack their last entity; ``missing`` is a share of states."""
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(num_scenes, num_frames, num_entities, 2, generator=generator, dtype=torch.double)
        entity_mask = torch.ones(num_scenes, num_entities, dtype=torch.bool)
        entity_mask[list(padded), -1] = False
        return Scenes.from_arrays(
            0.7 * steps.cumsum(1),
            observation_mask=torch.rand(num_scenes, num_frames, num_entities, generator=generator) >= missing,
            entity_mask=entity_mask,
            structure_group=groups,
            entity_kind=torch.randint(kinds, (num_scenes, num_entities), generator=generator) if kinds else None,
        )

    return make
