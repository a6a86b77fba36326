"""Descriptions of models: there and back, and what they refuse."""

import json
from dataclasses import replace

import pytest
import torch

from pyro_nri.model.spec import ModelSpec, build_model

SPEC = ModelSpec(
    num_edge_types=3,
    state_names=("x", "vx"),
    preset="small",
    prior="symmetric",
    noise="normal",
    horizon=4,
    no_interaction=True,
    num_entity_kinds=2,
    learn_type_weights=False,
    num_hidden=1,
)


PAIR_FORCES = ModelSpec(2, dynamics="pair-forces", boundary=4.5, num_substeps=7, prior="symmetric")


@pytest.mark.parametrize("spec", [SPEC, ModelSpec(2), PAIR_FORCES])
def test_round_trip_through_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_model_is_what_the_spec_says():
    model = build_model(SPEC, torch.Generator().manual_seed(0))
    assert (model.num_edge_types, model.state_names, model.horizon, model.num_hidden) == (3, ("x", "vx"), 4, 1)
    assert type(model.prior).__name__ == "SymmetricPrior"
    assert not model.prior.type_logits.requires_grad
    assert type(model.noise).__name__ == "NormalNoise"
    assert (model.dynamics.no_interaction, model.dynamics.num_entity_kinds) == (True, 2)


def test_pair_forces_of_a_spec():
    """In float64, with the composite likelihood's noise beside that of the density."""
    model = build_model(PAIR_FORCES, torch.Generator().manual_seed(0))
    assert type(model.dynamics).__name__ == "PairForces"
    assert (model.dynamics.boundary, model.dynamics.num_substeps) == (4.5, 7)
    assert model.dtype == torch.double
    assert {p.dtype for p in model.parameters()} == {torch.double}
    assert [type(noise).__name__ for noise in (model.noise, model.impulse_noise)] == ["GeometricNoise"] * 2
    assert model.noise.log_relative_scale.shape == (4,)
    assert model.impulse_noise.log_relative_scale.shape == (2,)
    assert model.impulse_noise.context_weight.shape == (model.dynamics.context_size,)
    silent = build_model(replace(PAIR_FORCES, no_interaction=True), torch.Generator().manual_seed(0))
    assert not silent.dynamics.laws.table()[0].any()


@pytest.mark.parametrize(
    ("options", "noise"),
    [
        ({}, "student_t"),
        ({"dynamics": "pair-forces"}, "geometric"),
        ({"dynamics": "pair-forces", "state_names": ("phi", "vphi", "omega")}, "student_t"),
        ({"dynamics": "pair-forces", "noise": "normal"}, "normal"),
        ({"noise": "geometric"}, "geometric"),
    ],
)
def test_noise_that_suits_the_dynamics(options, noise):
    spec = ModelSpec(2, **options)
    assert spec.noise == noise
    model = build_model(spec, torch.Generator().manual_seed(0))
    assert (
        type(model.noise).__name__
        == {"student_t": "StudentT", "geometric": "Geometric", "normal": "Normal"}[noise] + "Noise"
    )
    assert (model.impulse_noise is None) == (spec.dynamics == "message-passing")


def test_weights_come_from_the_generator():
    one, same, other = (build_model(SPEC, torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dynamics": "magic"}, "dynamics must be one of message-passing, pair-forces, found 'magic'"),
        ({"prior": "flat"}, "prior must be one of"),
        ({"noise": "pink"}, "noise must be one of"),
        ({"dynamics": "pair-forces"}, "pair forces treat all entities alike, found 2 kinds"),
        (
            {"dynamics": "pair-forces", "num_entity_kinds": 1, "boundary": "round"},
            "boundary must be 'estimate', 'none'",
        ),
        ({"dynamics": "pair-forces", "num_entity_kinds": 1, "num_substeps": 0}, "num_substeps must be at least 1"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"num_edge_types": 1}, "at least 2 where type 0 means no interaction"),
    ],
)
def test_unknown_choices(change, message):
    with pytest.raises(ValueError, match=message):
        build_model(replace(SPEC, **change), torch.Generator())


def test_unknown_and_missing_entries():
    with pytest.raises(ValueError, match="unknown entry 'colour'"):
        ModelSpec.from_dict(SPEC.to_dict() | {"colour": "red"})
    for name in ("num_edge_types", "state_names"):
        values = SPEC.to_dict()
        del values[name]
        with pytest.raises(ValueError, match="incomplete"):
            ModelSpec.from_dict(values)
