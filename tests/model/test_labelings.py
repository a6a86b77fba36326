"""Counts and draws of labelings, against all labelings of few entities."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.model.labelings import Labelings

TABLES = {
    "charges": [[1, 0], [0, 1]],
    "one attracts": [[0, 0], [0, 1]],
    "sender decides": [[0, 0], [1, 1]],
    "directed": [[0, 1], [2, 0]],
    "constant": [[0, 0], [0, 0]],
    "three labels": [[0, 1, 2], [1, 0, 1], [2, 1, 0]],
    "two of three alike": [[0, 0, 1], [0, 0, 1], [1, 1, 0]],
    "told apart by the third": [[0, 0, 1], [0, 0, 0], [1, 0, 1]],
}


def pairs(num_entities):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


def structure_of(table, labels, present):
    """Types edge by edge; 0 where an end is missing."""
    return tuple(table[labels[i]][labels[j]] if present[i] and present[j] else 0 for i, j in pairs(len(labels)))


def edge_mask(present):
    return torch.tensor([present[i] and present[j] for i, j in pairs(len(present))])


def by_structure(table, present):
    """Every labeling (label 0 where an entity is missing), sorted by the structure that it gives."""
    values = [range(len(table)) if there and sum(present) > 1 else [0] for there in present]
    found = {}
    for labels in itertools.product(*values):
        found.setdefault(structure_of(table, labels, present), []).append(labels)
    return found


@pytest.mark.parametrize("present", [[True, True], [True] * 3, [True] * 5, [False, True, True, False, True]])
@pytest.mark.parametrize("name", TABLES)
def test_counts(name, present):
    """Of every structure that labels give, and of as many that they do not."""
    table = TABLES[name]
    found = by_structure(table, present)
    possible = list(found)
    rng = np.random.default_rng(0)
    mask = edge_mask(present)
    strange = [tuple((rng.integers(0, 3, len(mask)) * mask.numpy()).tolist()) for _ in possible]
    structures = possible + strange
    labelings = Labelings(torch.tensor(table), torch.tensor(structures), mask.expand(len(structures), -1))
    counts = labelings.log_count.exp().tolist()
    assert counts == pytest.approx([len(found.get(z, ())) for z in structures])
    draws = labelings.draw(torch.rand(len(structures), len(present), generator=torch.Generator().manual_seed(0)))
    for z, labels in zip(structures, draws.tolist(), strict=True):
        assert tuple(labels) in found[z] if z in found else not any(labels)


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["charges", "one attracts", "constant", "two of three alike", "three labels"])
def test_draws_are_uniform(name):
    table, present, num = TABLES[name], [True, True, False, True], 6000
    found = by_structure(table, present)
    structures = torch.tensor(list(found))
    stack = structures.expand(num, -1, -1)  # [num, J, E]: batch shapes are kept
    uniform = torch.rand(num, len(structures), 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    labelings = Labelings(torch.tensor(table), stack, edge_mask(present))
    assert labelings.log_count.shape == (num, len(structures))
    draws = labelings.draw(uniform)
    for j, possible in enumerate(found.values()):
        number = {labels: n for n, labels in enumerate(possible)}
        counts = np.bincount([number[tuple(labels)] for labels in draws[:, j].tolist()], minlength=len(possible))
        if len(possible) > 1:
            assert stats.chisquare(counts).pvalue > 1e-4


def test_many_entities_and_many_labelings():
    """2^40 labelings of a constant structure, 41 of one without a second odd entity, 2 of charges."""
    ones = torch.ones(1, 40 * 39, dtype=torch.bool)
    empty = torch.zeros(1, 40 * 39, dtype=torch.long)
    for name, count in (("constant", 2**40), ("one attracts", 41), ("told apart by the third", None)):
        log_count = Labelings(torch.tensor(TABLES[name]), empty, ones).log_count
        if count is not None:
            assert float(log_count.exp()) == pytest.approx(count)
    labels = torch.arange(40) % 2
    charges = torch.tensor([structure_of(TABLES["charges"], labels.tolist(), [True] * 40)])
    labelings = Labelings(torch.tensor(TABLES["charges"]), charges, ones)
    assert float(labelings.log_count.exp()) == pytest.approx(2)
    assert labelings.draw(torch.rand(1, 40))[0].tolist() in (labels.tolist(), (1 - labels).tolist())


def test_nothing_possible():
    labelings = Labelings(torch.tensor(TABLES["charges"]), torch.tensor([[7, 7], [-1, -1]]), torch.ones(2, 2).bool())
    assert labelings.log_count.tolist() == [-torch.inf] * 2
    assert not labelings.draw(torch.rand(2, 2)).any()


def test_a_single_structure_without_batch():
    labelings = Labelings(torch.tensor(TABLES["charges"]), torch.tensor([1, 1]), torch.ones(2).bool())
    assert float(labelings.log_count.exp()) == pytest.approx(2)
    assert labelings.draw(torch.tensor([0.1, 0.2])).shape == (2,)
