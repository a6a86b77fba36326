"""Blocks learned in warm-up: their tree against networkx, their probabilities written another way, what they gain."""

import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch

from pyro_nri.inference.chains import make_chains
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.learned import LEARNED_SHARE, LearnedBlock
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.trees import PSEUDO_DRAWS, fit_tree
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import ReceiverTable, code_types
from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.scenes import edges


def tables(types, num_types):
    """Smoothed shares of pairs ``[M, M, K, K]`` of draws ``[S, M]``, by counting."""
    size = types.shape[1]
    pair = np.full((size, size, num_types, num_types), PSEUDO_DRAWS / num_types**2)
    for row in types.tolist():
        for d, e in itertools.product(range(size), repeat=2):
            pair[d, e, row[d], row[e]] += 1
    return pair / (len(types) + PSEUDO_DRAWS)


def tree_probability(types, exists, num_types, floor=0.0):
    """Probability of a row of types by the tree of networkx, as a function."""
    pair = tables(types, num_types)
    graph = nx.Graph()
    there = [e for e in range(len(exists)) if exists[e]]
    graph.add_nodes_from(there)
    for d, e in itertools.combinations(there, 2):
        joint = pair[d, e]
        product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
        graph.add_edge(d, e, weight=float((joint * np.log(joint / product)).sum()))
    tree = nx.maximum_spanning_tree(graph)
    parents = dict(nx.bfs_predecessors(tree, there[0]))

    def probability(row):
        value = 1.0
        for e in range(len(exists)):
            if not exists[e]:
                value *= float(row[e] == 0)
            else:
                joint = pair[parents[e], e, row[parents[e]]] if e in parents else pair[e, e].sum(1)
                value *= (1 - floor) * joint[row[e]] / joint.sum() + floor / num_types
        return value

    return probability


@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("absent", [None, 0, 2])
def test_trees_are_those_of_networkx(num_types, absent):
    generator = torch.Generator().manual_seed(num_types)
    exists = torch.ones(2, 4, dtype=torch.bool)
    first = torch.randint(num_types, (60, 2, 1), generator=generator)
    noise = torch.rand(60, 2, 4, generator=generator) < torch.tensor([0.0, 0.2, 0.5, 0.8])
    types = torch.where(noise, torch.randint(num_types, (60, 2, 4), generator=generator), first)
    types[..., 3] = torch.where(noise[..., 3], types[..., 3], types[..., 1])
    if absent is not None:
        exists[:, absent] = False
        types[..., absent] = 0
    tree = fit_tree(types, exists, num_types)
    every = torch.tensor(list(itertools.product(range(num_types), repeat=4)))
    found = tree.log_prob(every[:, None].expand(-1, 2, -1)).exp()
    for row in range(2):
        probability = tree_probability(types[:, row].numpy(), exists[row].tolist(), num_types)
        expected = torch.tensor([probability(each) for each in every.tolist()], dtype=torch.double)
        torch.testing.assert_close(found[:, row], expected)
    torch.testing.assert_close(found.sum(0), torch.ones(2, dtype=torch.double))


def make_block(prior_name="independent", num_types=2, num_groups=2, floor=None):
    prior = make_prior(prior_name, num_types, learn_weights=False).double()(
        torch.ones(num_groups, 12, dtype=torch.bool)
    )
    generator = torch.Generator().manual_seed(5)
    base = torch.randn(num_groups, 4, 3, num_types, generator=generator, dtype=torch.double)
    start = IncomingDistribution.edge_by_edge(base.softmax(-1), torch.ones(num_groups, 4, 3, dtype=torch.bool))
    return LearnedBlock(prior, start, floor=floor), prior, base.softmax(-1)


def some_structures(prior_name, num_types, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    structure = torch.randint(num_types, (*shape, 12), generator=generator)
    if prior_name == "symmetric":
        structure = torch.minimum(structure, structure[..., edges.reverse_edges(4)])
    return structure


@pytest.mark.parametrize("prior_name", ["independent", "symmetric"])
@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("is_adapted", [False, True])
def test_blocks_are_drawn_with_the_probabilities_that_they_tell(prior_name, num_types, is_adapted):
    """Forward and reverse are a mixture's, written out; draws have its shares; the tied direction follows."""
    floor, chains, repeats = 0.1, 2, 1500
    block, _, share = make_block(prior_name, num_types, floor=floor)
    seen = some_structures(prior_name, num_types, (chains, 40, 2), seed=1)
    if is_adapted:
        block.adapt(torch.ones(chains, 2, 12, dtype=torch.double), seen)
    structure = some_structures(prior_name, num_types, (chains, 2), seed=2)
    into, reversed_edges = edges.incoming_edges(4), edges.reverse_edges(4)

    def known(chain, group, receiver):
        """Probability of a receiver's types, as a function."""
        each = (1 - floor) * share[group, receiver] + floor / num_types  # [3, K]
        types = seen[chain, :, group][:, into[receiver]].numpy()
        learned = tree_probability(types, [True] * 3, num_types, floor)

        def given(row):
            return math.prod(float(each[e, k]) for e, k in enumerate(row))

        return (lambda row: LEARNED_SHARE * learned(row) + (1 - LEARNED_SHARE) * given(row)) if is_adapted else given

    every = list(itertools.product(range(num_types), repeat=3))
    probability = {
        place: {row: known(*place)(row) for row in every}
        for place in itertools.product(range(chains), range(2), range(4))
    }
    count = {place: dict.fromkeys(every, 0) for place in probability}
    generator = torch.Generator().manual_seed(3)
    for step in range(repeats):
        uniform = torch.rand(chains, 2, block.num_uniforms, generator=generator, dtype=torch.double)
        move = block.propose({"edge_type": structure}, uniform, step, 1.0)
        new = move.latents["edge_type"]
        if prior_name == "symmetric":
            assert torch.equal(new, new[..., reversed_edges])
        receivers = block.choose(uniform[..., 0], step)
        for chain, group in itertools.product(range(chains), range(2)):
            place = (chain, group, int(receivers[chain, group]))
            own = into[place[2]]
            row, old = (tuple(each[chain, group, own].tolist()) for each in (new, structure))
            count[place][row] += 1
            assert float(move.log_forward[chain, group].exp()) == pytest.approx(probability[place][row])
            assert float(move.log_reverse[chain, group].exp()) == pytest.approx(probability[place][old])
            others = torch.ones(12, dtype=torch.bool)
            others[own] = False
            if prior_name == "symmetric":
                others[reversed_edges[own]] = False
            assert torch.equal(new[chain, group, others], structure[chain, group, others])
    for place, counts in count.items():
        total = sum(counts.values())
        for row, number in counts.items():
            wanted = probability[place][row]
            assert abs(number - total * wanted) < 4.5 * math.sqrt(total * wanted * (1 - wanted)) + 1


def test_what_is_not_there_is_never_proposed():
    """Padded senders keep type 0 before and after warm-up."""
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, (edges.senders(4) == 3) | (edges.receivers(4) == 3)] = False
    prior = make_prior("independent", 2, learn_weights=False).double()(mask)
    proposal = make_proposal("neural", prior, log_q=torch.zeros(1, 12, 2).double())
    structure = torch.zeros(2, 1, 12, dtype=torch.long)
    seen = torch.randint(2, (2, 30, 1, 12), generator=torch.Generator().manual_seed(0)) * mask
    generator = torch.Generator().manual_seed(1)
    for is_adapted in (False, True):
        if is_adapted:
            proposal.adapt(torch.ones(2, 1, 12, dtype=torch.double) * mask, seen)
        moved = torch.zeros(12, dtype=torch.bool)
        for step in range(300):
            uniform = torch.rand(2, 1, proposal.num_uniforms, generator=generator, dtype=torch.double)
            new = proposal.propose({"edge_type": structure}, uniform, step, 1.0).latents["edge_type"]
            moved |= (new != 0).any(0).any(0)
        assert torch.equal(moved, mask[0])


def parity_table(strength):
    """Receivers of four senders whose links come in even numbers, and in one of two patterns more often."""
    types = code_types(2, 5)
    log_like = -strength * (types.sum(-1) % 2).double()
    pattern = ((types == torch.tensor([1, 1, 0, 0])).all(-1) | (types == torch.tensor([0, 0, 1, 1])).all(-1)).double()
    return ReceiverTable((log_like + 0.5 * strength * pattern).expand(1, 5, -1), 2, torch.ones(1, 20, dtype=torch.bool))


def chains_of(table, prior, *, proposal, seed=0, num_warmup=400):
    options = {"log_q": torch.full((1, 20, 2), 0.5).double().log(), "start_temperature": 4.0}
    chains = make_chains(
        table, prior, group_names=("a",), proposal=proposal, num_chains=4, num_warmup=num_warmup, seed=seed, **options
    )
    chains.record(num_warmup, 1, ("a",))
    return chains


def test_warm_up_teaches_blocks_that_move_more():
    table = parity_table(3.5)
    prior = make_prior("independent", 2, learn_weights=False).double()(table.edge_mask)
    effective = {}
    for proposal in ("uniform", "neural"):
        found = chains_of(table, prior, proposal=proposal).record(2000, 1, ("a",))
        effective[proposal] = np.median(edge_diagnostics(found.edge_type.reshape(4, 2000, -1), 2).ess[:, 1])
    assert effective["neural"] > 2 * effective["uniform"]


def test_a_run_goes_on_with_what_warm_up_taught():
    """A chain that is made anew from its warm-up draws makes the same steps."""
    table = parity_table(2.0)
    prior = make_prior("independent", 2, learn_weights=False).double()(table.edge_mask)
    options = {"group_names": ("a",), "proposal": "neural", "num_chains": 4, "num_warmup": 100, "seed": 3}
    options |= {"log_q": torch.zeros(1, 20, 2).double(), "start_temperature": 2.0}
    whole = make_chains(table, prior, **options)
    warmup = whole.record(100, 1, ("a",))
    last = whole.structure
    first = whole.record(50, 1, ("a",))
    seen = torch.as_tensor(warmup.edge_type)
    again = make_chains(table, prior, structure=last, number=100, seen=seen, **options)
    assert (again.record(50, 1, ("a",)).edge_type == first.edge_type).all()


def test_large_distributions_are_not_learned(monkeypatch):
    monkeypatch.setattr("pyro_nri.inference.learned.MOST_NUMBERS", 10)
    block, _, _ = make_block()
    block.adapt(torch.ones(3, 2, 12, dtype=torch.double), torch.zeros(3, 5, 2, 12, dtype=torch.long))
    assert block.learned is None
    block.adapt(torch.ones(3, 2, 12, dtype=torch.double))
    assert block.learned is None


def test_bad_input_is_named():
    prior = make_prior("independent", 2)(torch.ones(2, 12, dtype=torch.bool))
    start = IncomingDistribution.edge_by_edge(torch.full((2, 3, 2, 2), 0.5), torch.ones(2, 3, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"incoming must have shape \[2, 4, 3\] and 2 types of edge"):
        LearnedBlock(prior, start)
