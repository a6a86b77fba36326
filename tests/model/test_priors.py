"""Priors: what is learned, what is chosen once and frozen, and what is refused. Distributions: test_structures.py."""

import io
import itertools

import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive

from pyro_nri.model.priors import (
    PRIORS,
    ChargesPrior,
    IndependentPrior,
    SparsePrior,
    SymmetricPrior,
    make_prior,
)
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.model.structures import ChargesDistribution, EdgeDistribution, SparseDistribution

MASK = torch.ones(6, dtype=torch.bool)
CHARGES = torch.tensor([[1, 0], [0, 1]])


def test_names():
    kinds = {
        "independent": (IndependentPrior, EdgeDistribution, False),
        "symmetric": (SymmetricPrior, EdgeDistribution, True),
        "charges": (ChargesPrior, EdgeDistribution, False),  # open
        "sparse": (SparsePrior, SparseDistribution, True),
    }
    assert set(kinds) == set(PRIORS)
    for name, (kind, distribution, tied) in kinds.items():
        prior = make_prior(name, 2)
        assert type(prior) is kind
        assert type(prior(MASK)) is distribution
        assert prior(MASK).tied is tied
        assert prior(MASK).num_edge_types == 2
        assert prior(MASK.expand(5, 6)).batch_shape == (5,)


def test_type_weights_are_learnable_or_fixed():
    learned, fixed = IndependentPrior(3), SymmetricPrior(3, learn_weights=False)
    learned(MASK).log_prob(torch.tensor([0, 1, 1, 2, 2, 2])).backward()
    # d/dlogit_k of sum_e log softmax(logit)[z_e] = count_k - E / K
    assert learned.type_logits.grad.tolist() == pytest.approx([1 - 2, 2 - 2, 3 - 2], abs=1e-6)
    assert not fixed(MASK).log_prob(torch.zeros(6, dtype=torch.long)).requires_grad
    assert not any(parameter.requires_grad for parameter in SparsePrior(3).parameters())
    assert [make_prior("charges", 3, learn_weights=each).type_logits.requires_grad for each in (True, False)] == [1, 0]


def test_concentration_of_a_sparse_prior():
    wanted = SparseDistribution(2, MASK, concentration=(2.0, 5.0)).log_prob(torch.ones(6, dtype=torch.long))
    assert SparsePrior(2, concentration=(2.0, 5.0))(MASK).log_prob(torch.ones(6, dtype=torch.long)) == wanted
    assert SparsePrior(2)(MASK).log_prob(torch.ones(6, dtype=torch.long)) != wanted


# --- charges: open, then frozen --------------------------------------------------------------------------------------
def test_an_open_prior_is_the_independent_one():
    prior = ChargesPrior(2).double()
    with torch.no_grad():
        prior.type_logits.copy_(torch.tensor([0.3, -0.4]))
    assert prior.is_open
    assert prior.table.tolist() == [[-1, -1], [-1, -1]]
    independent = IndependentPrior(2).double()
    independent.load_state_dict({"type_logits": prior.type_logits})
    structures = torch.tensor(list(itertools.product(range(2), repeat=6)))
    torch.testing.assert_close(prior(MASK).log_prob(structures), independent(MASK).log_prob(structures))
    assert prior(MASK).log_prob(structures[3]).requires_grad
    with pytest.raises(ValueError, match="the prior is open: training did not choose its table"):
        prior.check_closed()


def test_a_table_freezes_it():
    prior = ChargesPrior(2)
    prior.set_table(CHARGES)
    assert not prior.is_open
    prior.check_closed()
    distribution = prior(MASK)
    assert isinstance(distribution, ChargesDistribution)
    assert float(distribution.log_prob(torch.ones(6, dtype=torch.long)).exp()) == pytest.approx(1 / 4)
    prior.set_table(1 - CHARGES)  # what was made before does not follow
    assert float(distribution.log_prob(torch.ones(6, dtype=torch.long)).exp()) == pytest.approx(1 / 4)
    assert prior(MASK).log_prob(torch.ones(6, dtype=torch.long)) == -torch.inf
    for other in (IndependentPrior(2), SymmetricPrior(2), SparsePrior(2)):
        assert not other.is_open
        other.check_closed()


@pytest.mark.parametrize("was_frozen", [False, True])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_the_table_is_in_the_state_dict(was_frozen, is_frozen):
    """Open and frozen states load into open and frozen priors."""
    spec = ModelSpec(2, prior="charges", num_labels=3)
    saved, loaded = (build_model(spec, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    table = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    if is_frozen:
        saved.prior.set_table(table)
    if was_frozen:
        loaded.prior.set_table(1 - table)
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert loaded.prior.is_open is not is_frozen
    assert torch.equal(loaded.prior.table, saved.prior.table)
    assert loaded.double().prior.table.dtype == torch.long


def relabelled(table, order):
    return tuple(tuple(table[i][j] for j in order) for i in order)


@pytest.mark.parametrize(("num_types", "num_labels"), [(1, 2), (2, 2), (3, 2), (4, 2), (2, 3), (3, 3)])
def test_candidate_tables(num_types, num_labels):
    """One of each family of tables that differ by the names of labels only; every type occurs."""
    found = [
        tuple(map(tuple, table)) for table in ChargesPrior(num_types, num_labels=num_labels).candidate_tables().tolist()
    ]
    rows = itertools.product(range(num_types), repeat=num_labels)
    every = list(itertools.product(list(rows), repeat=num_labels))
    complete = {table for table in every if set(itertools.chain(*table)) == set(range(num_types))}
    orders = list(itertools.permutations(range(num_labels)))
    families = {frozenset(relabelled(table, order) for order in orders) for table in complete}
    assert len(found) == len(families)
    assert {frozenset(relabelled(table, order) for order in orders) for table in found} == families


def test_candidates_for_two_types_and_labels():
    found = ChargesPrior(2).candidate_tables()
    assert found.shape == (8, 2, 2)
    assert found.dtype == torch.long
    assert [[0, 1], [1, 0]] in found.tolist()
    assert [[1, 0], [0, 1]] in found.tolist()


# --- in the Pyro program ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "b"]])
@pytest.mark.parametrize("name", ["sparse", "charges", "directed charges", "open charges"])
def test_the_traced_program_is_log_joint(make_model, make_scenes, name, groups):
    model, scenes = make_model(3, prior=name.split()[-1]), make_scenes(padded=[1, 3], groups=groups)
    if name == "charges":
        model.prior.set_table(torch.tensor([[1, 0], [0, 2]]))
    if name == "directed charges":
        model.prior.set_table(torch.tensor([[0, 1], [2, 0]]))
    torch.manual_seed(0)
    for _ in range(5):
        trace = poutine.trace(model).get_trace(scenes)
        structure = trace.nodes["edge_type"]["value"]
        joint = model.log_joint(scenes, structure[None])
        assert joint.isfinite().all()
        assert float(joint.sum().detach()) == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-10)
    drawn = Predictive(model, num_samples=7, parallel=True)(scenes, condition=False)
    assert model.structure_prior(scenes).log_prob(drawn["edge_type"].reshape(7, -1, 6)).isfinite().all()
    assert drawn["trajectory"].isfinite().all()


# --- refused ---------------------------------------------------------------------------------------------------------
def test_bad_arguments():
    with pytest.raises(ValueError, match="prior must be one of independent, symmetric, charges, sparse, found 'flat'"):
        make_prior("flat", 2)
    with pytest.raises(ValueError, match="num_edge_types must be at least 1, found 0"):
        make_prior("independent", 0)
    with pytest.raises(ValueError, match="num_edge_types must be at least 2 for a sparse prior, found 1"):
        make_prior("sparse", 1)
    with pytest.raises(ValueError, match=r"concentration must be two positive numbers, found \(1.0, 0.0\)"):
        SparsePrior(2, concentration=(1.0, 0.0))
    with pytest.raises(ValueError, match="num_labels must be at least 2, found 1"):
        make_prior("charges", 1, num_labels=1)
    with pytest.raises(ValueError, match=r"num_edge_types must be at most 4, .*a table of 2 labels, found 5"):
        make_prior("charges", 5)


@pytest.mark.parametrize(
    "table", [[[0, 1, 0], [1, 0, 1]], [[0, 2], [1, 0]], [[0, -1], [1, 0]], [0, 1], [[0.5, 1.0], [1.0, 0.5]]]
)
def test_bad_tables(table):
    prior = ChargesPrior(2)
    with pytest.raises(ValueError, match=r"table must have shape \[2, 2\] and types 0 to 1, found shape"):
        prior.set_table(torch.tensor(table))
    assert prior.is_open


def test_too_many_tables():
    with pytest.raises(ValueError, match=r"4\^9 tables are too many to look through, at most 65536; use fewer labels"):
        ChargesPrior(4, num_labels=3).candidate_tables()
