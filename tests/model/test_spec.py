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


@pytest.mark.parametrize("spec", [SPEC, ModelSpec(2)])
def test_round_trip_through_json(spec):
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_the_model_is_what_the_spec_says():
    model = build_model(SPEC, torch.Generator().manual_seed(0))
    assert (model.num_edge_types, model.state_names, model.horizon, model.num_hidden) == (3, ("x", "vx"), 4, 1)
    assert type(model.prior).__name__ == "SymmetricPrior"
    assert not model.prior.type_logits.requires_grad
    assert type(model.noise).__name__ == "NormalNoise"
    assert (model.dynamics.no_interaction, model.dynamics.num_entity_kinds) == (True, 2)


def test_weights_come_from_the_generator():
    one, same, other = (build_model(SPEC, torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dynamics": "magic"}, "dynamics must be one of message-passing, found 'magic'"),
        ({"prior": "flat"}, "prior must be one of"),
        ({"noise": "pink"}, "noise must be one of"),
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
