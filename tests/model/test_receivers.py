"""Receiver tables and message caches against direct evaluation of every structure."""

import itertools

import pytest
import torch

from pyro_nri.model import receivers
from pyro_nri.model.receivers import code_types, codes_of, num_codes, receiver_table, structure_of
from pyro_nri.scenes.batches import concatenate
from pyro_nri.scenes.scenes import Scenes


def ordered_pairs(num_entities):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


def code_by_digits(structure, num_types, num_entities, receiver):
    """Types of the edges into a receiver, senders ascending, as digits of a number in base K."""
    types = dict(zip(ordered_pairs(num_entities), structure, strict=True))
    code = 0
    for sender in range(num_entities):
        if sender != receiver:
            code = code * num_types + types[sender, receiver]
    return code


@pytest.mark.parametrize(("num_types", "num_entities"), [(1, 3), (2, 2), (2, 3), (3, 3), (2, 4)])
def test_codes_number_the_incoming_types(num_types, num_entities):
    every = list(itertools.product(range(num_types), repeat=num_entities * (num_entities - 1)))
    codes = codes_of(torch.tensor(every), num_types)
    wanted = [[code_by_digits(z, num_types, num_entities, j) for j in range(num_entities)] for z in every]
    assert codes.tolist() == wanted
    assert structure_of(codes, num_types).tolist() == [list(z) for z in every]
    digits = [list(types) for types in itertools.product(range(num_types), repeat=num_entities - 1)]
    assert code_types(num_types, num_entities).tolist() == digits
    assert num_codes(num_types, num_entities) == len(digits)


def all_structures(num_types, num_entities):
    return torch.tensor(list(itertools.product(range(num_types), repeat=num_entities * (num_entities - 1))))


def direct(model, scenes, structures):
    """Log-likelihood [J, G] summed scene by scene from the trajectory distribution."""
    scenes = model.prepare(scenes)
    total = torch.zeros(len(structures), scenes.num_groups, dtype=torch.double)
    for b in range(scenes.num_scenes):
        one = scenes[b]
        group = scenes.group_names.index(scenes.structure_group[b])
        value = model.trajectory(one, structures[:, None]).log_prob(one.trajectory[:, 1:])  # [J, 1]
        total[:, group] += value[:, 0].detach()
    return total


CASES = {
    "two types": ({"num_edge_types": 2}, {}),
    "three types": ({"num_edge_types": 3, "noise": "student_t"}, {"missing": 0.1}),
    "no interaction": ({"num_edge_types": 3, "no_interaction": True}, {"padded": [1]}),
    "kinds": ({"num_edge_types": 2, "num_entity_kinds": 2}, {"kinds": 2, "missing": 0.1}),
    "shared": ({"num_edge_types": 2}, {"groups": ["a", "b", "a", "a"], "missing": 0.05}),
    "geometric": ({"num_edge_types": 2, "noise": "geometric"}, {"padded": [1], "missing": 0.05}),
    "geometric, shared": ({"num_edge_types": 2, "noise": "geometric"}, {"groups": ["a", "b", "a", "a"]}),
    "padded, N = 4": ({"num_edge_types": 2}, {"num_entities": 4, "padded": [0, 2], "num_scenes": 3}),
}


@pytest.fixture(params=CASES)
def case(request, make_model, make_scenes, already={}):  # noqa: B006 - each case is evaluated once for all tests
    if request.param not in already:
        options, what = CASES[request.param]
        model, scenes = make_model(**options), make_scenes(**what)
        structures = all_structures(model.num_edge_types, scenes.num_entities)
        already[request.param] = model, scenes, structures, direct(model, scenes, structures)
    return already[request.param]


@pytest.mark.parametrize("cache", ["table", "messages", "none"])
def test_every_structure_by_every_route(case, cache):
    model, scenes, structures, wanted = case
    likelihood = model.likelihood(scenes, cache=cache)
    assert likelihood.is_density
    every = structures[:, None].expand(-1, scenes.num_groups, -1)
    terms = likelihood.receiver_terms(every)
    assert terms.dtype == torch.double
    assert terms.shape == (len(structures), scenes.num_groups, scenes.num_entities)
    torch.testing.assert_close(terms.sum(-1), wanted, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(likelihood.log_likelihood(every), wanted, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("cache", ["table", "messages", "none"])
def test_moves_from_known_structures(case, cache):
    """Terms with ``known`` equal terms without, whatever changed: nothing, one edge, all."""
    model, scenes, structures, _ = case
    likelihood = model.likelihood(scenes, cache=cache)
    generator = torch.Generator().manual_seed(0)
    shape = (6, scenes.num_groups)
    before_number = torch.randint(len(structures), shape, generator=generator)
    after_number = torch.randint(len(structures), shape, generator=generator)
    before, after = structures[before_number], structures[after_number]
    after[0] = before[0]
    after[1] = before[1]
    after[1, ..., 2] = (before[1, ..., 2] + 1) % model.num_edge_types
    known = (before, likelihood.receiver_terms(before))
    kept = known[1].clone()
    again = likelihood.receiver_terms(after, known)
    torch.testing.assert_close(again, likelihood.receiver_terms(after), rtol=1e-10, atol=1e-8)
    assert torch.equal(known[1], kept)  # what was known is not written over
    assert torch.equal(again[0], known[1][0])


def test_known_terms_are_taken_not_computed(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    likelihood = model.likelihood(scenes, cache="messages")
    before = torch.zeros(1, 4, 6, dtype=torch.long)
    marked = torch.full((1, 4, 3), 123.0, dtype=torch.double)
    after = before.clone()
    after[0, 2, 0] = 1  # edge 0 -> 1
    found = likelihood.receiver_terms(after, (before, marked))
    changed = found != 123
    assert changed.nonzero().tolist() == [[0, 2, 1]]


def test_table_and_edge_mask(make_model, make_scenes):
    model, scenes = make_model(3), make_scenes(padded=[1])
    table = receiver_table(model.dynamics, model.noise, model.prepare(scenes))
    assert table.table.shape == (4, 3, 9)
    assert torch.equal(table.edge_mask, scenes.edge_mask)
    assert not table.table[1, 2].any()  # the padded receiver
    # codes of receiver 0 differ in the padded sender 2 (last digit): same value
    torch.testing.assert_close(table.table[1, 0].reshape(3, 3)[:, :1].expand(3, 3), table.table[1, 0].reshape(3, 3))


def test_chunks_change_nothing(make_model, make_scenes, monkeypatch):
    model, scenes = make_model(), make_scenes(num_scenes=7, missing=0.1, groups=list("abacbca"))
    every = all_structures(2, 3)[:, None].expand(-1, 3, -1)
    whole = {cache: model.likelihood(scenes, cache=cache).log_likelihood(every) for cache in ("table", "messages")}
    monkeypatch.setattr(receivers, "CHUNK_FLOATS", 3000)
    for cache, wanted in whole.items():
        found = model.likelihood(scenes, cache=cache).log_likelihood(every)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-9)


def test_a_scene_does_not_feel_its_padding(make_model, make_scenes):
    model, small = make_model(), make_scenes(num_scenes=2)
    walks = make_scenes(num_scenes=1, num_entities=5, seed=3).trajectory
    large = Scenes.from_arrays(walks, scene_names=["large"])
    padded = model.likelihood(concatenate([small, large]), cache="messages")
    alone = model.likelihood(small, cache="messages")
    structures = all_structures(2, 3)
    types = [dict(zip(ordered_pairs(3), z, strict=True)) for z in structures.tolist()]
    wide = torch.tensor([[each.get(pair, 0) for pair in ordered_pairs(5)] for each in types])
    found = padded.log_likelihood(wide[:, None].expand(-1, 3, -1))[:, :2]
    torch.testing.assert_close(found, alone.log_likelihood(structures[:, None].expand(-1, 2, -1)))


def test_which_cache_fits(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    assert type(model.likelihood(scenes)).__name__ == "ReceiverTable"
    assert type(model.likelihood(make_scenes(num_scenes=1, num_entities=14))).__name__ == "MessageCache"
    longer = make_model(horizon=3)
    assert type(longer.likelihood(scenes)).__name__ == "DirectLikelihood"
    for cache in ("table", "messages"):
        with pytest.raises(ValueError, match="cache must be 'none' for horizon 3"):
            longer.likelihood(scenes, cache=cache)
    with pytest.raises(ValueError, match="cache must be auto, table, messages or none, found 'disk'"):
        model.likelihood(scenes, cache="disk")
    with pytest.raises(ValueError, match="num_hidden must be 0"):
        make_model(num_hidden=1).likelihood(scenes)


@pytest.mark.parametrize("horizon", [2, 3])
def test_direct_likelihood_of_longer_horizons(make_model, make_scenes, horizon):
    model = make_model(horizon=horizon)
    scenes = make_scenes(missing=0.1, groups=["a", "b", "a", "b"])
    structures = all_structures(2, 3)
    found = model.likelihood(scenes).log_likelihood(structures[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(found, direct(model, scenes, structures), rtol=1e-10, atol=1e-8)
