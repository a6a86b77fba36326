"""The impulse likelihood against loops over frames and codes, with SciPy's densities."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.model import receivers
from pyro_nri.model.impulse import (
    GramLikelihood,
    chosen_impulses,
    draw_precision,
    impulse_log_prob,
    most_likely_structure,
    refined_features,
    table_of_impulses,
)
from pyro_nri.model.impulse_power import believed_table
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

NOISES = ["normal", "student_t", "geometric"]


def ordered_pairs(num_entities):
    return [(i, j) for i in range(num_entities) for j in range(num_entities) if i != j]


def all_structures(num_types, num_entities):
    return torch.tensor(list(itertools.product(range(num_types), repeat=num_entities * (num_entities - 1))))


def charges(num_scenes=4, num_entities=3, num_frames=8, *, seed=0, missing=0.0, padded=(), groups=None):
    """Simulated charges; ``padded`` scenes lack their last entity; ``missing`` is a share of states."""
    scenes = simulate("charged", num_scenes, num_entities=num_entities, num_frames=num_frames, seed=seed)
    entity_mask = torch.ones(num_scenes, num_entities, dtype=torch.bool)
    entity_mask[list(padded), -1] = False
    seen = torch.rand(num_scenes, num_frames, num_entities, generator=torch.Generator().manual_seed(seed)) >= missing
    return Scenes.from_arrays(
        scenes.trajectory,
        time_step=scenes.time_step,
        observation_mask=seen,
        entity_mask=entity_mask,
        structure_group=groups,
        edge_type=scenes.edge_type,
    )


def plant(laws, *forces, low=0.02, high=15.0):
    """Fit the splines to functions ``f(r)`` between two distances by least squares."""
    laws.low.fill_(math.log(low))
    laws.high.fill_(math.log(high))
    points = laws.points()
    index, weight = laws.basis(points)
    basis = torch.zeros(len(points), laws.splines.shape[1], dtype=points.dtype).scatter_add(1, index, weight)
    values = torch.stack([points * force(points) for force in forces], -1)
    laws.set_splines(torch.linalg.lstsq(basis, values).solution.T)


def coulomb(model):
    plant(model.dynamics.laws, lambda r: -(r**-2), lambda r: r**-2, *[lambda r: -0.1 * r] * (model.num_edge_types - 2))


def make_model(scenes, num_types=2, *, noise="normal", planted=False, **options):
    """Scaled on the scenes, noise parameters that matter; laws are fresh networks or Coulomb's."""
    options = {"noise": noise, "boundary": 5.0, "state_names": scenes.state_names} | options
    spec = ModelSpec(num_types, dynamics="pair-forces", **options)
    model = build_model(spec, torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.impulse_noise.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double) - 1)
            if parameter.shape == (model.dynamics.context_size,):
                parameter.div_(5)
    if planted:
        coulomb(model)
    return model


def features_of(model, scenes):
    """As the likelihood sees them: refined where laws are fitted."""
    noise = model.impulse_noise
    return refined_features(model.dynamics, scenes, lambda smooth: most_likely_structure(model.dynamics, noise, smooth))


def log_density(noise, value, mean, context):
    """Of one transition of one receiver, by SciPy; scales by hand."""
    name, size = type(noise).__name__, len(value)
    log_factor = 0.0
    if name == "GeometricNoise":
        standard = ((context - noise.context_mean) / noise.context_scale).clamp(-8, 8)
        log_factor = float((standard * noise.context_weight.detach()).sum())
    relative = noise.log_relative_scale.detach().tolist()
    scale = [float(c) * (math.exp(r + log_factor) + 1e-6) for c, r in zip(noise.change_scale, relative, strict=True)]
    if name == "GeometricNoise":
        return float(stats.multivariate_t.logpdf(value, mean, np.diag(np.square(scale)), df=4))
    kind = stats.norm if name == "NormalNoise" else stats.t(4)
    return sum(float(kind.logpdf((value[s] - mean[s]) / scale[s])) - math.log(scale[s]) for s in range(size))


def table_by_loops(model, scenes):
    """Receiver, code -> log-likelihood, for each scene ``[B, N, R]``."""
    features = features_of(model, scenes)
    impulses = features.impulses(model.dynamics.laws).detach().numpy()
    num_types, num_entities = model.num_edge_types, scenes.num_entities
    codes = list(itertools.product(range(num_types), repeat=num_entities - 1))
    table = torch.zeros(scenes.num_scenes, num_entities, len(codes), dtype=torch.double)
    for b, t, j in np.ndindex(*features.mask.shape):
        if not features.mask[b, t, j]:
            continue
        for number, types in enumerate(codes):
            mean = sum(impulses[b, t, j, place, k] for place, k in enumerate(types))
            value, context = features.target[b, t, j].numpy(), features.context[b, t, j]
            table[b, j, number] += log_density(model.impulse_noise, value, mean, context)
    return table


def log_likelihood_by_table(table, structures, num_types):
    """Sums ``[J, B]`` of the entries that structures ``[J, E]`` point to."""
    num_entities = table.shape[1]
    pairs = ordered_pairs(num_entities)
    total = torch.zeros(len(structures), len(table), dtype=torch.double)
    for number, structure in enumerate(structures.tolist()):
        types = dict(zip(pairs, structure, strict=True))
        for j in range(num_entities):
            code = 0
            for i in range(num_entities):
                if i != j:
                    code = code * num_types + types[i, j]
            total[number] += table[:, j, code]
    return total


CASES = {
    "normal": ({"noise": "normal"}, {}),
    "student_t, missing": ({"noise": "student_t"}, {"missing": 0.05}),
    "geometric, padded": ({"noise": "geometric"}, {"padded": [1], "missing": 0.05}),
    "three types": ({"num_types": 3, "noise": "student_t"}, {"num_scenes": 2}),
    "integrated paths": ({"noise": "student_t", "planted": True}, {"padded": [2], "num_frames": 16, "seed": 2}),
    "integrated paths, geometric": (
        {"noise": "geometric", "planted": True},
        {"missing": 0.03, "num_frames": 16, "seed": 2},
    ),
    "four entities": ({"noise": "normal"}, {"num_entities": 4, "num_scenes": 2, "num_frames": 5}),
    "no interaction": ({"noise": "normal", "no_interaction": True}, {}),
}


@pytest.fixture(params=CASES)
def case(request, already={}):  # noqa: B006 - each case is evaluated once for all tests
    if request.param not in already:
        options, what = CASES[request.param]
        scenes = charges(**what)
        model = make_model(scenes, **options)
        already[request.param] = model, scenes, table_by_loops(model, scenes)
    return already[request.param]


# --- tables and caches -----------------------------------------------------------------------------------------------
def test_table_by_loops(case):
    model, scenes, wanted = case
    likelihood = model.likelihood(scenes, kind="impulse", cache="table")
    assert type(likelihood).__name__ == "ReceiverTable"
    assert likelihood.table.dtype == torch.double
    torch.testing.assert_close(likelihood.table, wanted, rtol=1e-9, atol=1e-8)
    assert likelihood.is_density is False
    assert torch.equal(likelihood.edge_mask, scenes.edge_mask)


@pytest.mark.parametrize("name", CASES)
def test_paths_of_the_cases(name):
    """Integrated ones where laws are fitted and an encounter is close."""
    options, what = CASES[name]
    scenes = charges(**what)
    blocks = features_of(make_model(scenes, **options), scenes).blocks
    assert len(blocks) == 1 + ("integrated" in name)


@pytest.mark.parametrize("cache", ["table", "messages"])
def test_every_structure_by_every_route(case, cache):
    model, scenes, table = case
    num_types = model.num_edge_types
    structures = all_structures(num_types, scenes.num_entities)
    if len(structures) > 800:
        structures = structures[torch.randperm(len(structures), generator=torch.Generator().manual_seed(0))[:300]]
    likelihood = model.likelihood(scenes, kind="impulse", cache=cache)
    assert not likelihood.is_density
    found = likelihood.log_likelihood(structures[:, None].expand(-1, scenes.num_scenes, -1))
    wanted = log_likelihood_by_table(table, structures, num_types)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("cache", ["table", "messages"])
def test_moves_from_known_structures(case, cache):
    model, scenes, _ = case
    likelihood = model.likelihood(scenes, kind="impulse", cache=cache)
    shape = (5, scenes.num_scenes, scenes.num_edges)
    before, after = (
        torch.randint(model.num_edge_types, shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    after[0] = before[0]
    after[1, :, 1:] = before[1, :, 1:]
    found = likelihood.receiver_terms(after, (before, likelihood.receiver_terms(before)))
    torch.testing.assert_close(found, likelihood.receiver_terms(after), rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("cache", ["table", "messages"])
@pytest.mark.parametrize("planted", [False, True])
def test_groups_add_up(cache, planted):
    groups = ["a", "b", "a", "a"]
    scenes = charges(groups=groups, missing=0.03, num_frames=16, seed=2)
    model = make_model(scenes, noise="geometric", planted=planted)
    structures = all_structures(2, 3)
    shared = model.likelihood(scenes, kind="impulse", cache=cache)
    each = model.likelihood(scenes.share_structure("none"), kind="impulse", cache=cache)
    wanted = each.log_likelihood(structures[:, None].expand(-1, 4, -1))
    wanted = torch.stack([wanted[:, 0] + wanted[:, 2] + wanted[:, 3], wanted[:, 1]], -1)
    found = shared.log_likelihood(structures[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-8)
    assert shared.edge_mask.shape == (2, 6)


@pytest.mark.parametrize("cache", ["table", "messages"])
def test_chunks_change_nothing(cache, monkeypatch):
    scenes = charges(6, num_frames=16, missing=0.03, groups=list("abacba"), seed=2)
    model = make_model(scenes, noise="geometric", planted=True)
    every = all_structures(2, 3)[:, None].expand(-1, 3, -1)
    wanted = model.likelihood(scenes, kind="impulse", cache=cache).log_likelihood(every)
    monkeypatch.setattr(receivers, "CHUNK_FLOATS", 500)
    found = model.likelihood(scenes, kind="impulse", cache=cache).log_likelihood(every)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-8)


def test_terms_of_given_structures_sum_to_the_table(case):
    model, scenes, table = case
    features = features_of(model, scenes)
    structure = torch.randint(model.num_edge_types, scenes.edge_mask.shape, generator=torch.Generator().manual_seed(3))
    number = {pair: e for e, pair in enumerate(ordered_pairs(scenes.num_entities))}
    others = [[i for i in range(scenes.num_entities) if i != j] for j in range(scenes.num_entities)]
    incoming = structure[:, [[number[i, j] for i in senders] for j, senders in enumerate(others)]]
    terms = impulse_log_prob(features.impulses(model.dynamics.laws), features, model.impulse_noise, incoming)
    assert terms.shape == features.mask.shape
    assert not terms[~features.mask].any()
    wanted = [
        log_likelihood_by_table(table[b : b + 1], structure[b : b + 1], model.num_edge_types)[0, 0].item()
        for b in range(scenes.num_scenes)
    ]
    assert terms.sum((1, 2)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-7)


def test_gradients_reach_laws_and_noise():
    scenes = charges()
    model = make_model(scenes, noise="geometric")
    features = model.dynamics.features(scenes)
    incoming = torch.randint(2, (4, 3, 2), generator=torch.Generator().manual_seed(0))
    impulse_log_prob(features.impulses(model.dynamics.laws), features, model.impulse_noise, incoming).sum().backward()
    for part in (model.dynamics.laws, model.impulse_noise):
        for name, parameter in part.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in model.noise.parameters())  # that of the density has no part


# --- the true law ----------------------------------------------------------------------------------------------------
def residual_scale(model, scenes):
    """Fit one number, the scale of Student-t noise, to the median residual under the truth."""
    features = features_of(model, scenes)
    number = {pair: e for e, pair in enumerate(ordered_pairs(scenes.num_entities))}
    others = [[i for i in range(scenes.num_entities) if i != j] for j in range(scenes.num_entities)]
    incoming = scenes.edge_type[:, [[number[i, j] for i in senders] for j, senders in enumerate(others)]]
    residual = features.target - chosen_impulses(features.impulses(model.dynamics.laws), incoming)
    with torch.no_grad():
        model.impulse_noise.change_scale.fill_(float(residual[features.mask].abs().median()))
        model.impulse_noise.log_relative_scale.fill_(0.5)
    return float(residual[features.mask].abs().median())


def test_the_truth_is_most_likely():
    """Coulomb's law and the noise of its residuals: nearly every edge of new scenes."""
    scenes = charges(20, num_entities=4, num_frames=30, seed=5)
    model = make_model(scenes, noise="student_t", planted=True)
    residual_scale(model, scenes)
    features = features_of(model, scenes)
    found = most_likely_structure(model.dynamics, model.impulse_noise, features)
    assert (found == scenes.edge_type).double().mean() > 0.97
    table = table_of_impulses(features.impulses(model.dynamics.laws), features, model.impulse_noise)
    number = {pair: e for e, pair in enumerate(ordered_pairs(4))}
    for b, j in np.ndindex(20, 4):
        types = [int(found[b, number[i, j]]) for i in range(4) if i != j]
        assert int(table[b, j].argmax()) == types[0] * 4 + types[1] * 2 + types[2]


@pytest.fixture
def sender_by_sender(monkeypatch):
    """As if there were too many codes to try them all."""
    monkeypatch.setattr("pyro_nri.model.impulse.num_codes", lambda *_: 10**9)


@pytest.mark.usefixtures("sender_by_sender")
@pytest.mark.parametrize("num_types", [2, 3])
def test_senders_one_after_the_other(num_types):
    """Next to no receiver can be improved by another type of a single edge."""
    scenes = charges(10, num_entities=4, num_frames=20, seed=5, missing=0.03)
    model = make_model(scenes, num_types, noise="student_t", planted=True)
    features = features_of(model, scenes)
    structure = most_likely_structure(model.dynamics, model.impulse_noise, features)
    likelihood = model.likelihood(scenes, kind="impulse", cache="messages")
    before = likelihood.receiver_terms(structure[None])
    improved = torch.zeros_like(before, dtype=torch.bool)
    for e in range(12):
        for k in range(num_types):
            after = structure.clone()
            after[:, e] = k
            improved |= likelihood.receiver_terms(after[None]) > before + 1e-6
    assert improved.double().mean() < 0.1


@pytest.mark.usefixtures("sender_by_sender")
def test_senders_one_after_the_other_find_the_truth():
    scenes = charges(20, num_entities=4, num_frames=30, seed=5)
    model = make_model(scenes, noise="student_t", planted=True)
    residual_scale(model, scenes)
    found = most_likely_structure(model.dynamics, model.impulse_noise, features_of(model, scenes))
    assert (found == scenes.edge_type).double().mean() > 0.9


def test_neither_padding_nor_missing_states_bias_the_guess():
    scenes = charges(20, num_entities=4, num_frames=30, seed=5, missing=0.05, padded=range(0, 20, 2))
    model = make_model(scenes, noise="student_t", planted=True)
    residual_scale(model, charges(20, num_entities=4, num_frames=30, seed=6))
    found = most_likely_structure(model.dynamics, model.impulse_noise, features_of(model, scenes))
    # a padded entity of the simulation still pulls at the others: look at the whole scenes
    whole = slice(1, None, 2)
    assert (found[whole] == scenes.edge_type[whole]).double().mean() > 0.95


def test_single_precision_agrees():
    """float32 laws and tables differ from float64 by far less than a nat."""
    scenes = charges(6, num_entities=4, num_frames=20, padded=[0], missing=0.05)
    model = make_model(scenes, noise="student_t", planted=True)
    residual_scale(model, charges(6, num_entities=4, num_frames=20, seed=1))
    double = model.likelihood(scenes).table
    single = model.float().likelihood(scenes).table
    assert single.dtype == torch.double  # sums are always in float64
    difference = (single - single.max(-1, keepdim=True).values) - (double - double.max(-1, keepdim=True).values)
    weight = (double - double.max(-1, keepdim=True).values).clamp(min=-30)
    likely = weight > -20
    assert single.isfinite().all()
    assert difference[likely].abs().max() < 0.05


# --- the Gram form ---------------------------------------------------------------------------------------------------
def gram_of(model, scenes, precision=None):
    features = features_of(model, scenes)
    with torch.no_grad():
        impulses = features.impulses(model.dynamics.laws)
        if precision is None:
            precision = model.impulse_noise.precision(features.target, features.context)
    return GramLikelihood(impulses, features, precision.detach(), scenes), impulses, features


@pytest.mark.parametrize(
    "what", [{}, {"missing": 0.05, "padded": [1]}, {"groups": ["a", "b", "a", "a"], "missing": 0.05}], ids=str
)
@pytest.mark.parametrize("options", [{}, {"num_types": 3}, {"planted": True}], ids=str)
def test_gram_form_is_the_gaussian_likelihood(options, what):
    scenes = charges(**what)
    model = make_model(scenes, **options)
    gram, _, _ = gram_of(model, scenes)
    assert not gram.is_density
    assert torch.equal(gram.edge_mask, scenes.edge_mask[scenes.group_first_scene])
    table = model.likelihood(scenes, kind="impulse", cache="table")
    structures = all_structures(model.num_edge_types, 3)[:, None].expand(-1, scenes.num_groups, -1)
    found, wanted = gram.receiver_terms(structures), table.receiver_terms(structures)
    assert found.shape == (len(structures), scenes.num_groups, 3)
    scale = wanted.abs().amax(0).clamp(min=1.0)
    assert ((found - wanted).abs() / scale).max() < 1e-5
    # differences between structures, which are what a sampler sees
    rise, drop = found - found[:1], wanted - wanted[:1]
    torch.testing.assert_close(rise, drop, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "a"]])
def test_alternatives_of_an_edge(num_types, groups):
    """Every edge and every type it could take, against two evaluations, for the Gram matrices and for the others."""
    scenes = charges(groups=groups, padded=() if groups else [1])
    model = make_model(scenes, num_types)
    gram, _, _ = gram_of(model, scenes)
    shape = (4, scenes.num_groups, 6)
    structure = torch.randint(num_types, shape, generator=torch.Generator().manual_seed(0))
    for likelihood in (
        gram,
        model.likelihood(scenes, cache="table"),
        model.likelihood(scenes, cache="messages"),
        model.likelihood(scenes, kind="forward"),
    ):
        structure = structure * likelihood.edge_mask
        edge = torch.tensor([4, 0, 3, 3]).expand(*shape[:2], 4)  # any order, repeated
        found = likelihood.edge_alternatives(structure, edge)
        assert found.shape == (*shape[:2], 4, num_types)
        every = torch.arange(6).expand(shape)
        found = likelihood.edge_alternatives(structure, every)
        found = found - found.gather(-1, structure[..., None])
        before = likelihood.receiver_terms(structure)
        for e, k in itertools.product(range(6), range(num_types)):
            after = structure.clone()
            after[..., e] = k
            change = (likelihood.receiver_terms(after) - before).sum(-1)
            exists = likelihood.edge_mask[:, e]
            torch.testing.assert_close(found[:, exists, e, k], change[:, exists], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("noise", ["student_t", "geometric"])
def test_gram_form_given_precisions(noise):
    """Drawn precisions make it the density of independent Gaussians, by SciPy."""
    scenes = charges(2, num_frames=5, missing=0.05)
    model = make_model(scenes, noise=noise)
    features = features_of(model, scenes)
    residual = features.target - features.impulses(model.dynamics.laws).detach()[..., 0, :].sum(-2)
    random = torch.Generator().manual_seed(0)
    precision = draw_precision(residual, model.impulse_noise, features.context, random).detach()
    assert precision.shape == features.target.shape
    assert (precision > 0).all()
    gram, impulses, _ = gram_of(model, scenes, precision)
    structures = all_structures(2, 3)[::7]
    found = gram.log_likelihood(structures[:, None].expand(-1, 2, -1))
    pairs = ordered_pairs(3)
    for number, structure in enumerate(structures.tolist()):
        types = dict(zip(pairs, structure, strict=True))
        for b in range(2):
            total = 0.0
            for t, j in np.ndindex(4, 3):
                if features.mask[b, t, j]:
                    senders = [i for i in range(3) if i != j]
                    mean = sum(impulses[b, t, j, place, types[i, j]] for place, i in enumerate(senders))
                    scale = precision[b, t, j].rsqrt()
                    total += stats.norm.logpdf(features.target[b, t, j], mean, scale).sum()
            assert found[number, b].item() == pytest.approx(total, rel=1e-9, abs=1e-8)


@pytest.mark.statistical
def test_mixture_of_gram_likelihoods_is_the_student_t_likelihood():
    """Mean over prior precisions of the Gaussian likelihoods, for one transition of one receiver."""
    scenes = charges(1, num_frames=2, seed=3)
    model = make_model(scenes, noise="geometric")
    features = features_of(model, scenes)
    with torch.no_grad():
        impulses = features.impulses(model.dynamics.laws)
        table = table_of_impulses(impulses, features, model.impulse_noise)[0, 0]  # [R]
        # twice the degrees of freedom at residual 0: gamma with mean 1, shape 2, over the squared scale
        at_zero = model.impulse_noise.precision(torch.zeros_like(features.target), features.context)
    inverse_square = at_zero[0, 0, 0] * 4 / 6  # (df + 0) / (df + S)
    weight = torch.from_numpy(np.random.default_rng(0).gamma(2, 1 / 2, 400_000))
    target = features.target[0, 0, 0]
    for number, types in enumerate(itertools.product(range(2), repeat=2)):
        residual = target - sum(impulses[0, 0, 0, place, k] for place, k in enumerate(types))
        log_density = (weight[:, None] * inverse_square / (2 * math.pi)).log().sum(-1) / 2
        log_density = log_density - weight * (residual.square() * inverse_square).sum() / 2
        assert log_density.exp().mean().log().item() == pytest.approx(table[number].item(), abs=0.02)


# --- which likelihood ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("noise", NOISES)
def test_which_likelihood(noise):
    scenes = charges()
    model = make_model(scenes, noise=noise)
    for kind, cache, name, is_density in [
        ("auto", "auto", "ReceiverTable", False),
        ("auto", "table", "ReceiverTable", False),
        ("auto", "messages", "ImpulseCache", False),
        ("impulse", "auto", "ReceiverTable", False),
        ("impulse", "messages", "ImpulseCache", False),
        ("forward", "auto", "DirectLikelihood", True),
        ("forward", "none", "DirectLikelihood", True),
    ]:
        likelihood = model.likelihood(scenes, kind=kind, cache=cache)
        assert (type(likelihood).__name__, likelihood.is_density) == (name, is_density)
    large = charges(1, num_entities=14, num_frames=3)
    assert type(make_model(large, noise=noise).likelihood(large)).__name__ == "ImpulseCache"


def test_one_substep_has_a_forward_table():
    scenes = charges(missing=0.05, padded=[2])
    model = make_model(scenes, noise="geometric", num_substeps=1)
    structures = all_structures(2, 3)[:, None].expand(-1, 4, -1)
    wanted = model.likelihood(scenes, kind="forward", cache="none").log_likelihood(structures)
    for cache, name in (("auto", "ReceiverTable"), ("table", "ReceiverTable"), ("messages", "MessageCache")):
        likelihood = model.likelihood(scenes, kind="forward", cache=cache)
        assert (type(likelihood).__name__, likelihood.is_density) == (name, True)
        torch.testing.assert_close(likelihood.log_likelihood(structures), wanted, rtol=1e-9, atol=1e-7)


def test_refusals():
    scenes = charges()
    model = make_model(scenes)
    with pytest.raises(ValueError, match="kind must be auto, forward or impulse, found 'exact'"):
        model.likelihood(scenes, kind="exact")
    with pytest.raises(ValueError, match="cache must be auto, table, messages or none, found 'disk'"):
        model.likelihood(scenes, cache="disk")
    for cache in ("table", "messages"):
        with pytest.raises(ValueError, match="cache must be 'none' for horizon 1 and 20 sub-steps"):
            model.likelihood(scenes, kind="forward", cache=cache)
    with pytest.raises(ValueError, match="impulse likelihood has one step and a cache, found horizon 1, 'none'"):
        model.likelihood(scenes, kind="impulse", cache="none")
    longer = make_model(scenes, horizon=3)
    with pytest.raises(ValueError, match="impulse likelihood has one step and a cache, found horizon 3"):
        longer.likelihood(scenes, kind="impulse")
    assert longer.likelihood(scenes).is_density
    networks = build_model(ModelSpec(2), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="belongs to pair forces, and this model has other dynamics"):
        networks.likelihood(scenes, kind="impulse")
    assert networks.likelihood(scenes).is_density


# --- power -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cache", ["table", "messages"])
def test_power_by_loops(cache):
    """Each receiver's log-likelihood times exp(weight @ (1, share, log length, share log length, any))."""
    scenes = charges(4, num_frames=20, missing=0.03, seed=2)
    model = make_model(scenes, noise="student_t", planted=True)
    structures = all_structures(2, 3)[:, None].expand(-1, 4, -1)
    plain = model.likelihood(scenes, cache=cache).receiver_terms(structures)
    weight = [-0.4, -1.0, 0.3, 0.5, -0.2]
    model.impulse_power.weight.copy_(torch.tensor(weight))
    features = features_of(model, scenes)
    integrated = torch.zeros_like(features.mask)
    if len(features.blocks) == 2:
        scene, frame = features.blocks[1].row.unbind(-1)
        integrated[scene, frame] = True
    shares = set()
    found = model.likelihood(scenes, cache=cache).receiver_terms(structures)
    for b, j in np.ndindex(4, 3):
        frames = [t for t in range(19) if features.mask[b, t, j]]
        share = sum(bool(integrated[b, t, j]) for t in frames) / len(frames)
        length = math.log(len(frames) / 48)
        shares.add(share > 0)
        covariates = [1.0, share, length, share * length, float(share > 0)]
        power = math.exp(sum(w * c for w, c in zip(weight, covariates, strict=True)))
        torch.testing.assert_close(found[:, b, j], power * plain[:, b, j], rtol=1e-6, atol=1e-8)
    assert True in shares


def test_power_of_oscillators():
    """No path is ever integrated."""
    scenes = simulate("kuramoto", 3, num_entities=3, num_frames=10, seed=0)
    model = make_model(scenes, noise="student_t")
    features = model.dynamics.features(scenes)
    assert model.impulse_power(features).tolist() == [[1.0] * 3] * 3
    covariates = model.impulse_power.covariates(features)
    assert covariates[..., 2].tolist() == [pytest.approx([math.log(9 / 48)] * 3)] * 3
    assert not covariates[..., [1, 3, 4]].any()


def test_a_model_may_lose_paths():
    """Receiver tables believe what the model says; cached messages know the power alone."""
    scenes = charges(60, num_frames=20, seed=1)[40:43]  # in one of them two charges orbit each other
    model = make_model(scenes, noise="student_t", planted=True)
    plain = model.likelihood(scenes, cache="table").table
    messages = model.likelihood(scenes, cache="messages").receiver_terms(torch.zeros(1, 3, 6, dtype=torch.long))
    model.impulse_power.lost.fill_(0.2)
    fast = features_of(model, scenes).fast_share
    assert fast.max() > 0.5
    none = torch.zeros(3, 3, 5, dtype=torch.float64)
    expected = believed_table(plain, none, none[0, 0], model.impulse_power.lost.double(), fast=fast)
    assert not torch.equal(expected, plain)
    torch.testing.assert_close(model.likelihood(scenes, cache="table").table, expected, rtol=1e-6, atol=1e-6)
    again = model.likelihood(scenes, cache="messages").receiver_terms(torch.zeros(1, 3, 6, dtype=torch.long))
    assert torch.equal(again, messages)
