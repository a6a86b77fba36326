"""Message passing against a loop over entities and edges, written from the paper's section 3.1."""

import pytest
import torch
from torch import nn

from pyro_nri.dynamics.dynamics import choose_messages, sum_messages
from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.scenes.scenes import Scenes


def ordered_pairs(num_entities):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def dynamics(num_edge_types=3, state_size=4, seed=0, **options):
    """Float64 modules with random biases and scales of its own for each state variable."""
    generator = torch.Generator().manual_seed(seed)
    made = MessagePassing(num_edge_types, state_size, generator=generator, **options).double()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "biases" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        made.units.offset.copy_(torch.randn(state_size, generator=generator))
        made.units.scale.copy_(torch.rand(state_size, generator=generator) + 0.5)
        made.units.change_scale.copy_(torch.rand(state_size, generator=generator) + 0.5)
    return made


def linear(weight, bias):
    made = nn.Linear(*weight.shape).double()
    with torch.no_grad():
        made.weight.copy_(weight.T)
        made.bias.copy_(bias)
    return made


def edge_network(made, k):
    """The paper's edge module: ReLU on every layer."""
    layers = []
    for weight, bias in zip(made.edge_modules.weights, made.edge_modules.biases, strict=True):
        layers += [linear(weight[k], bias[k]), nn.ReLU()]
    return nn.Sequential(*layers)


def node_network(made, kind):
    """The paper's node module on the concatenation (s_j, sum of messages): ReLU, linear output."""
    weight = torch.cat([made.state_map.weights[0][kind], made.message_map.weights[0][0]])
    bias = made.state_map.biases[0][kind] + made.message_map.biases[0][0]
    layers = [linear(weight, bias)]
    for weight, bias in zip(made.node_modules.weights, made.node_modules.biases, strict=True):
        layers += [nn.ReLU(), linear(weight[kind], bias[kind])]
    return nn.Sequential(*layers)


def step_by_loops(made, state, structure, present=None, kind=None):
    """Next state ``[N, D]`` of one scene, entity by entity; padded entities are skipped."""
    num_entities = len(state)
    present = [True] * num_entities if present is None else present
    types = {pair: int(structure[e]) for e, pair in enumerate(ordered_pairs(num_entities))}
    scaled = (state - made.units.offset) / made.units.scale
    following = []
    for j in range(num_entities):
        total = torch.zeros(made.message_map.weights[0].shape[1], dtype=torch.double)
        for i in range(num_entities):
            if i == j or not (present[i] and present[j]):
                continue
            k = types[i, j] - (1 if made.no_interaction else 0)
            if k >= 0:
                total = total + edge_network(made, k)(torch.cat([scaled[i], scaled[j]]))
        network = node_network(made, 0 if kind is None else int(kind[j]))
        following.append(state[j] + made.units.change_scale * network(torch.cat([scaled[j], total])))
    return torch.stack(following)


OPTIONS = [
    {},
    {"no_interaction": True},
    {"num_entity_kinds": 2},
    {"num_entity_kinds": 3, "no_interaction": True},
    {"preset": "paper"},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("several_structures", [False, True])
def test_step_is_the_papers_formula(options, several_structures):
    num_scenes, num_entities, num_types = 3, 4, 3
    made = dynamics(num_types, **options)
    generator = torch.Generator().manual_seed(1)
    state = rand(num_scenes, num_entities, 4, seed=2)
    kind = None
    if made.num_entity_kinds > 1:
        kind = torch.randint(made.num_entity_kinds, (num_scenes, num_entities), generator=generator)
    present = torch.tensor([[True] * 4, [True, True, False, True], [True, True, False, False]])
    mask = torch.tensor([[bool(p[i] and p[j]) for i, j in ordered_pairs(num_entities)] for p in present])
    # With several structures for each state all messages are computed once; with one, only those chosen.
    shape = (2, num_scenes, 12) if several_structures else (num_scenes, 12)
    structure = torch.randint(num_types, shape, generator=generator)
    following = made.step(state, structure, edge_mask=mask, entity_kind=kind)
    assert following.shape == (*shape[:-1], num_entities, 4)
    for b in range(num_scenes):
        for index in [(0, b), (1, b)] if several_structures else [(b,)]:
            wanted = step_by_loops(
                made, state[b], structure[index], present[b].tolist(), None if kind is None else kind[b]
            )
            torch.testing.assert_close(following[index], wanted, rtol=1e-10, atol=1e-10)


def test_padding_changes_nothing():
    made = dynamics(2)
    state, structure = rand(3, 4), torch.randint(2, (6,), generator=torch.Generator().manual_seed(1))
    alone = made.step(state, structure)
    types = dict(zip(ordered_pairs(3), structure.tolist(), strict=True))
    for seed in (5, 6):  # whatever the padded entity's state and types are
        padded_state = torch.cat([state, 100 * rand(2, 4, seed=seed)])
        padded = torch.tensor([types.get(pair, seed % 2) for pair in ordered_pairs(5)])
        mask = torch.tensor([i < 3 and j < 3 for i, j in ordered_pairs(5)])
        torch.testing.assert_close(made.step(padded_state, padded, edge_mask=mask)[:3], alone, rtol=1e-12, atol=1e-12)


def test_no_interaction_sends_nothing():
    made = dynamics(3, no_interaction=True)
    state, structure = rand(4, 4), torch.zeros(12, dtype=torch.long)
    assert not made.messages(state, structure).any()
    assert not made.messages(state)[:, 0].any()
    one = made.step(state, structure)
    far = state.clone()
    far[1:] = rand(3, 4, seed=9)
    assert torch.equal(made.step(far, structure)[0], one[0])  # entity 0 does not notice the others
    assert made.messages(state, structure + 1).any()


@pytest.mark.parametrize("kinds", [1, 2])
def test_permutation_equivariance(kinds):
    made = dynamics(3, num_entity_kinds=kinds)
    num_entities, pairs = 5, ordered_pairs(5)
    generator = torch.Generator().manual_seed(4)
    state = rand(num_entities, 4)
    kind = torch.randint(kinds, (num_entities,), generator=generator)
    structure = torch.randint(3, (20,), generator=generator)
    types = dict(zip(pairs, structure.tolist(), strict=True))
    order = [3, 0, 4, 1, 2]  # the entity at each new place
    renamed = torch.tensor([types[order[i], order[j]] for i, j in pairs])
    moved = made.step(state[order], renamed, entity_kind=kind[order])
    torch.testing.assert_close(moved, made.step(state, structure, entity_kind=kind)[order], rtol=1e-12, atol=1e-12)


def test_step_broadcasts_over_chains():
    made = dynamics(2, num_entity_kinds=2)
    num_chains, num_scenes = 3, 2
    state = rand(num_scenes, 3, 4)
    structure = torch.randint(2, (num_chains, num_scenes, 6), generator=torch.Generator().manual_seed(0))
    kind = torch.tensor([[0, 1, 1], [1, 0, 1]])
    together = made.step(state, structure, entity_kind=kind)
    assert together.shape == (num_chains, num_scenes, 3, 4)
    for c in range(num_chains):
        torch.testing.assert_close(
            together[c], made.step(state, structure[c], entity_kind=kind), rtol=1e-12, atol=1e-12
        )
    # one structure on many states
    states = rand(num_chains, num_scenes, 3, 4, seed=1)
    each = made.step(states, structure[0], entity_kind=kind)
    for c in range(num_chains):
        torch.testing.assert_close(each[c], made.step(states[c], structure[0], entity_kind=kind))
    # a chain axis of length one on either side
    torch.testing.assert_close(made.step(state[None], structure, entity_kind=kind), together)
    torch.testing.assert_close(made.step(state, structure[:1], entity_kind=kind), together[:1])


def test_messages_of_one_structure_are_chosen_from_all():
    made = dynamics(3, no_interaction=True)
    state, structure = rand(2, 4, 4), torch.randint(3, (2, 12), generator=torch.Generator().manual_seed(0))
    chosen = choose_messages(made.messages(state), structure)
    torch.testing.assert_close(chosen, made.messages(state, structure), rtol=1e-12, atol=1e-12)


def test_sum_messages_by_receiver():
    messages = rand(12, 2)
    total = sum_messages(messages)
    for j in range(4):
        wanted = sum(messages[e] for e, (_, receiver) in enumerate(ordered_pairs(4)) if receiver == j)
        torch.testing.assert_close(total[j], wanted)


def widths(*parts):
    return [tuple(weight.shape[1:]) for part in parts for weight in part.weights]


def test_preset_sizes_are_the_papers():
    """Edge MLP 8-256-256-256, node MLP 260-256-256-256-4 (its first layer in two parts, 4 + 256 inputs)."""
    made = dynamics(2, preset="paper")
    assert widths(made.edge_modules) == [(8, 256), (256, 256), (256, 256)]
    assert made.edge_modules.num_modules == 2
    assert widths(made.state_map, made.message_map) == [(4, 256), (256, 256)]
    assert widths(made.node_modules) == [(256, 256), (256, 256), (256, 4)]
    small = dynamics(2)
    assert widths(small.edge_modules)[0] == (8, 64)
    assert max(max(pair) for pair in widths(small.edge_modules, small.node_modules)) == 64
    assert dynamics(2, no_interaction=True).edge_modules.num_modules == 1


def test_gradients():
    """Of one step, in state and weights. The networks have kinks, but none within the differences taken here."""
    made = dynamics(2, state_size=2, num_entity_kinds=2, no_interaction=True)
    names = [name for name, _ in made.named_parameters()]
    weights = [p.detach()[..., :].clone().requires_grad_() for _, p in made.named_parameters()]
    structure, kind = torch.tensor([1, 0, 1, 1, 0, 1]), torch.tensor([0, 1, 0])

    def energy(state, *values):
        parameters = dict(zip(names, values, strict=True))
        following = torch.func.functional_call(made, parameters, (state, structure), {"entity_kind": kind})
        return (following**2).sum()

    made.forward = made.step  # functional_call goes through forward; dynamics are called by step
    state = rand(3, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: made.step(s, structure, entity_kind=kind), (state,))
    # One random direction in weight space each: the whole Jacobian has thousands of columns.
    assert torch.autograd.gradcheck(energy, (state, *weights), fast_mode=True)


def test_fit_scaling_makes_units_irrelevant():
    """Other units, other predictions in the same way: centimetres, or another origin, teach the same networks."""
    trajectory = rand(4, 6, 3, 4)
    factor, shift = torch.tensor([7.0, 7.0, 0.2, 0.2]).double(), torch.tensor([50.0, 50.0, -3.0, -3.0]).double()
    structure = torch.randint(2, (4, 6), generator=torch.Generator().manual_seed(0))
    metres, others = dynamics(2), dynamics(2)
    metres.fit_scaling(Scenes.from_arrays(trajectory))
    others.fit_scaling(Scenes.from_arrays(trajectory * factor + shift))
    state = trajectory[:, 0]
    wanted = metres.step(state, structure) * factor + shift
    torch.testing.assert_close(others.step(state * factor + shift, structure), wanted, rtol=1e-9, atol=1e-9)
    change = (trajectory[:, 1:] - trajectory[:, :-1])[..., 2:]
    assert metres.units.change_scale[2:].tolist() == pytest.approx([float((change**2).mean() ** 0.5)] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_edge_types": 0}, "num_edge_types must be at least 1"),
        ({"num_edge_types": 1, "no_interaction": True}, "at least 2"),
        ({"num_entity_kinds": 0}, "num_entity_kinds must be at least 1"),
        ({"preset": "huge"}, "preset must be one of small, paper, found 'huge'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        dynamics(**options)


def test_missing_kinds_are_named():
    made = dynamics(2, num_entity_kinds=2)
    with pytest.raises(ValueError, match="entity_kind is missing"):
        made.step(rand(3, 4), torch.zeros(6, dtype=torch.long))
