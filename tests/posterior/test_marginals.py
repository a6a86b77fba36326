"""Log marginals of priors on three entities, against sums over all structures in plain Python."""

import itertools

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.model.priors import PRIORS
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.posterior.marginals import compare_priors
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

PAIRS = [(i, j) for i in range(3) for j in range(3) if i != j]


def make_model(num_edge_types=2, *, seed=0, **options):
    options = {"state_names": ("x", "vx"), "noise": "normal"} | options
    model = build_model(ModelSpec(num_edge_types, **options), torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        model.prior.type_logits.copy_(torch.tensor([0.9, -0.7, 0.1])[:num_edge_types])  # plays no part
        model.dynamics.units.change_scale.fill_(0.5)
        model.noise.change_scale.fill_(0.5)
    return model


def walks(num_scenes=4, num_frames=5, seed=0, present=None, groups=None, missing=0.0):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(num_scenes, num_frames, 3, 2, generator=generator, dtype=torch.double)
    return Scenes.from_arrays(
        steps.cumsum(1),
        entity_mask=present,
        structure_group=groups,
        scene_names=[f"s{b}" for b in range(num_scenes)],
        observation_mask=torch.rand(num_scenes, num_frames, 3, generator=generator) >= missing,
    )


def program(model, scenes):
    """Likelihood of all structures by the program itself: ``[K ** 6, G]``, and the structures."""
    every = list(itertools.product(range(model.num_edge_types), repeat=6))
    structure = torch.tensor(every)[:, None].expand(-1, scenes.num_groups, -1)
    with torch.no_grad():
        return every, model.log_likelihood(scenes, structure).exp().numpy()


def by_hand(model, scenes, prior, *, table=None, weights=None, known=None):
    """Log marginal of each group."""
    num_types = model.num_edge_types
    weights = [1 / num_types] * num_types if weights is None else weights
    every, likelihood = program(model, scenes) if known is None else known
    density = [[quad(lambda r, n=n, m=m: r**m * (1 - r) ** (n - m), 0, 1)[0] for m in range(n + 1)] for n in range(4)]
    found = []
    for g, first in enumerate(scenes.group_first_scene):
        there = scenes.entity_mask[first].tolist()
        pairs = [e for e, (i, j) in enumerate(PAIRS) if there[i] and there[j]]
        ties = [e for e in pairs if PAIRS[e][0] < PAIRS[e][1]]
        total = 0.0
        for z, own in zip(every, likelihood[:, g], strict=True):
            if any(z[e] for e in range(6) if e not in pairs):
                continue  # an edge with a missing end has type 0
            tied = all(z[e] == z[PAIRS.index(PAIRS[e][::-1])] for e in range(6))
            if prior == "independent":
                p = np.prod([weights[z[e]] for e in pairs])
            elif prior == "symmetric":
                p = tied * np.prod([weights[z[e]] for e in ties])
            elif prior == "sparse":
                number = sum(z[e] > 0 for e in ties)
                p = tied * density[len(ties)][number] / (num_types - 1) ** number
            else:
                made = [
                    all(table[labels[PAIRS[e][0]]][labels[PAIRS[e][1]]] == z[e] for e in pairs)
                    for labels in itertools.product(range(len(table)), repeat=3)
                ]
                p = np.mean(made)
            total += p * own
        found.append(np.log(total))
    return np.array(found)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"present": [[True] * 3, [True, False, True], [True] * 3, [True] * 3]},
        {"groups": ["a", "b", "a", "c"], "missing": 0.1},
    ],
)
def test_against_sums_by_hand(options):
    model, scenes = make_model(), walks(**options)
    frame = compare_priors(model, scenes).set_index("prior")
    assert frame.index.tolist() == list(PRIORS)
    tables = [by_hand(model, scenes, "charges", table=t) for t in all_tables()]
    each = {name: by_hand(model, scenes, name) for name in ("independent", "symmetric", "sparse")}
    each["charges"] = max(tables, key=np.sum)
    best = max(each.values(), key=np.sum)
    for name, wanted in each.items():
        row, difference = frame.loc[name], wanted - best
        assert row.log_marginal == pytest.approx(wanted.sum(), abs=1e-8)
        assert row.difference == pytest.approx(difference.sum(), abs=1e-8)
        assert row.standard_error == pytest.approx(np.sqrt(len(difference)) * difference.std(ddof=1), abs=1e-8)
        assert row.num_structures == scenes.num_groups
    assert frame.note["independent"] == "types equally likely"
    assert "likeliest of 8 on the scored scenes" in frame.note["charges"]


def all_tables():
    """Tables of two labels that use both types; those that only swap labels come twice."""
    every = itertools.product(range(2), repeat=4)
    return [[[a, b], [c, d]] for a, b, c, d in every if {a, b, c, d} == {0, 1}]


def test_three_types():
    model, scenes = make_model(3), walks(2)
    frame = compare_priors(model, scenes, ("sparse", "symmetric")).set_index("prior")
    for name in frame.index:
        assert frame.log_marginal[name] == pytest.approx(by_hand(model, scenes, name).sum(), abs=1e-8)


@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_fitted_weights(prior):
    """The best share on a grid, chosen on other scenes or on these."""
    model, scenes, others = make_model(), walks(3), walks(5, seed=1)
    grid = np.linspace(0.005, 0.995, 100)
    for chosen_on in (None, others):
        frame = compare_priors(model, scenes, [prior], table_scenes=chosen_on, type_weights="fitted")
        source = scenes if chosen_on is None else chosen_on
        known = program(model, source)
        share = max(grid, key=lambda w: by_hand(model, source, prior, weights=[w, 1 - w], known=known).sum())
        wanted = by_hand(model, scenes, prior, weights=[share, 1 - share]).sum()
        assert frame.log_marginal[0] == pytest.approx(wanted, abs=0.02)
        assert ("fitted on other scenes" in frame.note[0]) == (chosen_on is not None)


def test_table_from_other_scenes_or_from_training():
    model, scenes, others = make_model(), walks(), walks(seed=3)
    note = compare_priors(model, scenes, ["charges"], table_scenes=others).note[0]
    best = max(all_tables(), key=lambda t: by_hand(model, others, "charges", table=t).sum())
    swapped = [[best[1][1], best[1][0]], [best[0][1], best[0][0]]]
    assert note in [f"table {t}, likeliest of 8 on other scenes" for t in (best, swapped)]
    trained = make_model(prior="charges")
    trained.prior.set_table(torch.tensor([[1, 0], [0, 0]]))
    frame = compare_priors(Checkpoint(ModelSpec(2), trained), scenes, ["charges"])
    assert frame.note[0] == "table [[1, 0], [0, 0]], chosen in training"
    assert frame.log_marginal[0] == pytest.approx(by_hand(trained, scenes, "charges", table=[[1, 0], [0, 0]]).sum())


def test_what_cannot_be_enumerated_has_a_note():
    scenes = simulate("springs", 2, num_entities=7, num_frames=4, seed=0)
    model = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    frame = compare_priors(model, scenes).set_index("prior")
    assert frame.log_marginal[["independent", "charges"]].notna().all()
    assert frame.log_marginal[["symmetric", "sparse"]].isna().all()
    assert frame.note["symmetric"] == "2^21 structures are too many to enumerate"
    assert frame.difference.max() == 0
    one = build_model(ModelSpec(1), torch.Generator().manual_seed(0))
    one.fit_scaling(scenes)
    frame = compare_priors(one, scenes).set_index("prior")
    assert frame.log_marginal.isna().tolist() == [False, False, False, True]
    assert frame.log_marginal["charges"] == pytest.approx(frame.log_marginal["independent"])
    assert frame.note["sparse"] == "num_edge_types must be at least 2 for a sparse prior, found 1"
    unknown = compare_priors(model, scenes, ["sparse"])
    assert unknown[["log_marginal", "difference", "standard_error"]].isna().all(axis=None)


def test_composite_likelihood_may_rank_priors():
    scenes = simulate("springs", 3, num_entities=3, num_frames=6, seed=0)
    model = build_model(ModelSpec(2, dynamics="pair-forces"), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    composite = compare_priors(model, scenes)
    assert composite.log_marginal.notna().all()
    assert composite.note.str.endswith("; composite likelihood").all()
    density = compare_priors(model, scenes, ["symmetric", "charges"], kind="forward")
    assert density.log_marginal.notna().all()
    assert not density.note.str.contains("composite").any()


def test_bad_arguments():
    model, scenes = make_model(), walks(1)
    with pytest.raises(ValueError, match="prior must be one of independent, symmetric, charges, sparse, found 'flat'"):
        compare_priors(model, scenes, ["flat"])
    with pytest.raises(ValueError, match="type_weights must be equal or fitted, found 'mine'"):
        compare_priors(model, scenes, type_weights="mine")
    frame = compare_priors(model, scenes)
    assert frame.standard_error[frame.difference < 0].isna().all()  # one structure is no sample
