"""Small posteriors that can be listed: scenes, float64 models, and structures in plain Python."""

import itertools

import pytest
import torch

from pyro_nri.inference.encoder import Encoder
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes


@pytest.fixture
def make_model():
    def make(num_edge_types=2, *, seed=0, scale=1.0, **options):
        """``scale`` widens the noise: posteriors with a single structure test nothing."""
        options = {"state_names": ("x", "vx"), "noise": "normal"} | options
        model = build_model(ModelSpec(num_edge_types, **options), torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            model.prior.type_logits.copy_(torch.tensor([0.4, -0.3, 0.1, 0.0])[:num_edge_types])
            model.dynamics.units.change_scale.fill_(0.5)
            model.noise.change_scale.fill_(scale)
        return model

    return make


@pytest.fixture
def make_scenes():
    def make(num_scenes=3, num_entities=3, num_frames=6, *, seed=0, missing=0.0, padded=(), groups=None):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(num_scenes, num_frames, num_entities, 2, generator=generator, dtype=torch.double)
        entity_mask = torch.ones(num_scenes, num_entities, dtype=torch.bool)
        entity_mask[list(padded), -1] = False
        return Scenes.from_arrays(
            steps.cumsum(1),
            observation_mask=torch.rand(num_scenes, num_frames, num_entities, generator=generator) >= missing,
            entity_mask=entity_mask,
            scene_names=[f"s{b}" for b in range(num_scenes)],
            structure_group=groups,
        )

    return make


@pytest.fixture
def make_encoder():
    def make(num_edge_types=2, seed=0):
        """Random weights, with an output that is far from uniform."""
        encoder = Encoder(num_edge_types, 2, width=16, generator=torch.Generator().manual_seed(seed)).double()
        with torch.no_grad():
            encoder.output.weights[-1].mul_(4)
        return encoder

    return make


@pytest.fixture
def all_structures():
    def make(num_edge_types, num_entities=3, *, tied=False):
        """Every structure as a tuple; tied ones have equal types in both directions."""
        pairs = [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]
        every = itertools.product(range(num_edge_types), repeat=len(pairs))
        if not tied:
            return list(every)
        return [z for z in every if all(z[e] == z[pairs.index((j, i))] for e, (i, j) in enumerate(pairs))]

    return make
