"""The encoder as a classifier of edges."""

from dataclasses import replace

import pytest
import torch

from pyro_nri.baselines.encoders import ENCODERS, make_encoder
from pyro_nri.baselines.supervised import fit_supervised
from pyro_nri.scenes.scenes import Scenes


def accuracy(found, scenes):
    return float((found.edge_probability(scenes).argmax(-1) == scenes.edge_type).double().mean())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_overfits_ten_scenes(springs, encoder):
    ten = springs[:10]
    assert accuracy(fit_supervised(ten, encoder=encoder, num_steps=200, width=32, seed=0), ten) == 1.0


def test_symmetry_is_kept_and_costs_nothing(springs):
    found = fit_supervised(springs[:10], symmetric=True, num_steps=200, width=32, seed=0)
    assert accuracy(found, springs[:10]) == 1.0
    matrix = found.edge_probability(springs)[:, [0, 1, 3]], found.edge_probability(springs)[:, [2, 4, 5]]
    torch.testing.assert_close(*matrix)  # 0>1, 0>2, 1>2 and their reverses
    single = fit_supervised(springs[:10], num_steps=3, width=32, seed=0).edge_probability(springs)
    assert not torch.allclose(single[:, [0, 1, 3]], single[:, [2, 4, 5]])


def test_recordings_of_one_structure_add_up(springs):
    halves = Scenes.from_arrays(
        torch.cat([springs.trajectory[:4, :12], springs.trajectory[:4, 12:]]),
        structure_group=[*"abcd", *"abcd"],
        edge_type=springs.edge_type[:4].repeat(2, 1),
        time_step=0.1,
    )
    found = fit_supervised(halves, num_steps=3, width=8, seed=0)
    each = found.edge_probability(halves.share_structure("none"))
    both = each[:4] * each[4:]
    torch.testing.assert_close(found.edge_probability(halves), both / both.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_chunks_are_put_together_in_order(springs, monkeypatch):
    found = fit_supervised(springs, num_steps=1, width=8, seed=0)
    whole = found.edge_probability(springs)
    monkeypatch.setattr("pyro_nri.baselines.encoders.CHUNK_GROUPS", 5)
    torch.testing.assert_close(found.edge_probability(springs), whole)


def test_refuses(springs):
    with pytest.raises(ValueError, match="needs scenes whose structures are known"):
        fit_supervised(replace(springs, edge_type=None), seed=0)
    with pytest.raises(ValueError, match="encoder must be one of transition, mlp, cnn"):
        fit_supervised(springs, encoder="gnn", seed=0)
    read = {name: make_encoder(name, 2, springs, width=8, generator=torch.Generator()) for name in ENCODERS}
    with pytest.raises(ValueError, match="the mlp encoder reads 24 frames, found 20"):
        read["mlp"](springs.frames(0, 20))
    with pytest.raises(ValueError, match="the cnn encoder needs 14 frames, found 13"):
        read["cnn"](springs.frames(0, 13))
    seen = torch.ones(12, 24, 3, dtype=torch.bool)
    seen[0, 3, 1] = False
    gaps = replace(springs, observation_mask=seen)
    for name in ("mlp", "cnn"):
        with pytest.raises(ValueError, match="frames are missing; use the transition encoder"):
            read[name](gaps)
    assert read["transition"](gaps).logits.isfinite().all()
