"""Moves of labels where structures are padded, ambiguous or impossible. Probabilities: test_transition.py."""

import math

import numpy as np
import pytest
import torch

from pyro_nri.inference import metropolis
from pyro_nri.inference.labels import ExactLabel, LabelBlock, PriorDraw, UniformLabel
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.structures import ChargesDistribution

PAIRS = [(i, j) for i in range(4) for j in range(4) if i != j]
#: Two groups of four entities: all, without entity 1.
PRESENT = [[True] * 4, [True, False, True, True]]
MASK = torch.tensor([[p[i] and p[j] for i, j in PAIRS] for p in PRESENT])
TABLES = {"charges": [[1, 0], [0, 1]], "one attracts": [[0, 0], [0, 1]], "sender decides": [[0, 0], [1, 1]]}


def make(name="charges"):
    prior = ChargesDistribution(torch.tensor(TABLES[name]), 2, MASK)
    generator = torch.Generator().manual_seed(0)
    table = ReceiverTable(torch.randn(2, 4, 8, generator=generator, dtype=torch.double), 2, MASK)
    log_q = torch.randn(2, 12, 2, generator=generator, dtype=torch.double)
    moves = [UniformLabel(prior), PriorDraw(prior), LabelBlock(prior, log_q), ExactLabel(prior, table)]
    return prior, table, moves


def propose(proposal, structure, seed=0, step=0):
    shape = (*structure.shape[:2], proposal.num_uniforms)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return proposal.propose({"edge_type": structure}, uniform, step, 1.0)


def structure_of(table, labels, present):
    return [table[labels[i]][labels[j]] if present[i] and present[j] else 0 for i, j in PAIRS]


@pytest.mark.parametrize("name", TABLES)
def test_one_label_changes(name):
    """What a move makes is what another label of one present entity makes, in some labeling of the structure."""
    _, _, moves = make(name)
    table = TABLES[name]
    labels = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 1]])
    start = [structure_of(table, each, present) for each, present in zip(labels.tolist(), PRESENT, strict=True)]
    before = torch.tensor(start).expand(400, -1, -1)
    for proposal in (moves[0], *moves[2:]):
        after = propose(proposal, before).latents["edge_type"]
        for g, present in enumerate(PRESENT):
            every = list(np.ndindex(2, 2, 2, 2))
            alike = [each for each in every if structure_of(table, each, present) == start[g]]
            reachable = set()
            for each in alike:
                for n in range(4):
                    if present[n]:
                        new = structure_of(table, (*each[:n], 1 - each[n], *each[n + 1 :]), present)
                        reachable.add(tuple(new))
            found = set(map(tuple, after[:, g].tolist())) - {tuple(start[g])}
            assert found == reachable - {tuple(start[g])}


def test_ratio_of_a_uniform_label_is_that_of_the_numbers_of_labelings():
    """All apart, "one attracts": none or one of four has label 1 (5 labelings); two of them: 1 labeling."""
    prior, _, moves = make("one attracts")
    before = torch.zeros(300, 2, 12, dtype=torch.long)
    move = propose(moves[0], before)
    changed = (move.latents["edge_type"] != 0).any(-1)
    for g, num_alike in enumerate((5, 4)):
        ratio = (move.log_reverse - move.log_forward)[:, g]
        assert changed[:, g].any()
        assert ratio[changed[:, g]].tolist() == pytest.approx([math.log(num_alike)] * int(changed[:, g].sum()))
        assert ratio[~changed[:, g]].tolist() == pytest.approx([0.0] * int((~changed[:, g]).sum()))
    joint = [prior.log_prob(z) for z in (move.latents["edge_type"], before)]
    torch.testing.assert_close(joint[0] - joint[1], move.log_forward - move.log_reverse)  # they cancel: no bias


def test_exact_labels_are_always_accepted():
    for name in TABLES:
        prior, table, moves = make(name)
        target = StructureTarget(table, prior)
        before = prior.expand((200, 2)).from_uniform(
            torch.rand(200, 2, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)
        )
        for temperature in (1.0, 3.0):
            uniform = torch.rand(200, 2, 6, generator=torch.Generator().manual_seed(2), dtype=torch.double)
            move = moves[3].propose({"edge_type": before}, uniform, 0, temperature)
            new, old = target(move.latents), target({"edge_type": before})
            gain = (new.log_likelihood - old.log_likelihood) / temperature + new.log_prior - old.log_prior
            torch.testing.assert_close(gain + move.log_reverse, move.log_forward)


def test_a_structure_that_no_labels_give_is_left_by_prior_draws():
    """Such a start has no probability: moves of labels stay, a draw of the prior always leads away."""
    prior, table, moves = make()
    impossible = torch.zeros(20, 2, 12, dtype=torch.long)
    impossible[..., 2] = 1
    target = StructureTarget(table, prior)
    assert (target({"edge_type": impossible}).log_joint == -torch.inf).all()
    for proposal in (moves[0], *moves[2:]):
        move = propose(proposal, impossible)
        assert torch.equal(move.latents["edge_type"], impossible)
        assert not move.log_forward.any()
        assert not move.log_reverse.any()
    state = metropolis.init({"edge_type": impossible}, target)
    stream = Stream(0, keys(["a", "b"]), 20)
    state, info = metropolis.step(state, stream, 0, proposal=moves[1], target=target)
    assert info.accepted.all()
    assert state.score.log_joint.isfinite().all()
    state = metropolis.init({"edge_type": impossible}, target)
    for number in range(300):
        state, _ = metropolis.step(
            state, stream, number, proposal=make_proposal("uniform", prior), target=target, temperature=2.0
        )
    assert state.score.log_joint.isfinite().all()


def test_chains_never_leave_the_support():
    for name in TABLES:
        prior, table, _ = make(name)
        target = StructureTarget(table, prior)
        start = prior.from_uniform(torch.rand(50, 2, 12, generator=torch.Generator().manual_seed(3)).double())
        state = metropolis.init({"edge_type": start}, target)
        stream = Stream(1, keys(["a", "b"]), 50)
        proposal = make_proposal("auto", prior, likelihood=table, log_q=torch.zeros(2, 12, 2).double())
        for number in range(60):
            state, _ = metropolis.step(state, stream, number, proposal=proposal, target=target)
            assert state.score.log_joint.isfinite().all()


def test_bad_arguments():
    prior, table, _ = make()
    with pytest.raises(ValueError, match=r"log_q must have shape \[2, 12, 2\], found \[2, 12, 3\]"):
        LabelBlock(prior, torch.zeros(2, 12, 3))
    with pytest.raises(ValueError, match=r"floor must be between 0 and 1, found -0\.1"):
        LabelBlock(prior, torch.zeros(2, 12, 2), floor=-0.1)
    with pytest.raises(ValueError, match="scan must be 'random' or 'turn', found 'zigzag'"):
        ExactLabel(prior, table, scan="zigzag")
