"""``infer``: right by every route, and the same whatever is computed beside it, whenever it is interrupted."""

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pyro_nri.inference.run import infer
from pyro_nri.model.receivers import code_types
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


def joint_by_enumeration(model, scenes, every):
    """Posterior probabilities [J, G] of listed structures, from the program's twin."""
    with torch.no_grad():
        joint = model.log_joint(scenes, torch.tensor(every)[:, None].expand(-1, scenes.num_groups, -1)).numpy()
    weight = np.exp(joint - joint.max(0))
    return weight / weight.sum(0), np.log(weight.sum(0)) + joint.max(0)


def with_table(model):
    """The same model, with like charges of type 1 if its prior waits for a table."""
    if model.prior.is_open:
        model.prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    return model


def marginals(every, probability, num_types):
    is_type = np.stack([np.array(every) == k for k in range(num_types)], -1)
    return np.tensordot(probability.T, is_type, axes=1)  # [G, E, K]


def assert_same(one, two, rtol=0.0):
    """Draws equal to the last bit; densities too, unless ``rtol`` allows for another order of sums."""
    for name in ("edge_type", "accepted", "proposed", "move_kind", "temperature"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    for name in ("log_joint", "edge_probability", "log_marginal"):
        assert (getattr(one, name) is None) == (getattr(two, name) is None)
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=rtol, err_msg=name)
    assert (one.group_names, one.method, one.complete) == (two.group_names, two.method, two.complete)
    assert (one.move_names, one.num_edge_types) == (two.move_names, two.num_edge_types)
    assert (one.warmup is None) == (two.warmup is None)
    if one.warmup is not None:
        assert_same(one.warmup, two.warmup, rtol)


# --- right -----------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, {"padded": [1]}),
        ({"prior": "symmetric", "num_edge_types": 3}, {"missing": 0.1}),
        ({"horizon": 3}, {"groups": ["a", "b", "a"]}),
        ({"prior": "sparse", "num_edge_types": 3}, {"padded": [1]}),
        ({"prior": "charges"}, {"padded": [1]}),
    ],
)
def test_exact(make_model, make_scenes, all_structures, options, what):
    model, scenes = with_table(make_model(**options)), make_scenes(**what)
    every = all_structures(model.num_edge_types)
    probability, log_marginal = joint_by_enumeration(model, scenes, every)
    draws = infer(model, scenes, num_chains=4, num_draws=300, seed=2)
    assert draws.method == "exact"
    assert draws.edge_type.shape == (4, 300, scenes.num_groups, 6)
    assert draws.edge_type.dtype == np.int8
    wanted = marginals(every, probability, model.num_edge_types)
    np.testing.assert_allclose(draws.edge_probability, wanted, atol=1e-10)
    np.testing.assert_allclose(draws.log_marginal, log_marginal, rtol=1e-10)
    share = np.stack([draws.edge_type == k for k in range(model.num_edge_types)], -1).mean((0, 1))
    assert (np.abs(share - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / 1200) + 1e-12).all()
    with torch.no_grad():
        joint = model.log_joint(scenes, torch.as_tensor(draws.edge_type[:, 7]).long())
    np.testing.assert_allclose(draws.log_joint[:, 7], joint, rtol=1e-9)
    assert (draws.temperature == 1).all()


ROUTES = [("table", "uniform"), ("table", "exact"), ("table", "neural"), ("messages", "uniform"), ("none", "neural")]


@pytest.mark.statistical
@pytest.mark.parametrize(("cache", "proposal"), ROUTES)
@pytest.mark.parametrize("prior", ["independent", "symmetric", "sparse", "charges"])
def test_chains(make_model, make_scenes, make_encoder, all_structures, cache, proposal, prior):
    """Marginals of every route within four standard errors of enumeration; the errors come from independent chains."""
    model, scenes = with_table(make_model(prior=prior)), make_scenes(padded=[1], missing=0.05)
    # Look-ups are cheap: enough draws that the bound on averaged conditionals is several of their standard errors.
    every, num_chains, num_draws = all_structures(2), 100, 240 if cache == "table" else 60
    wanted = marginals(every, joint_by_enumeration(model, scenes, every)[0], 2)[..., 1]  # [G, E]
    draws = infer(
        model,
        scenes,
        method="mcmc",
        cache=cache,
        proposal=proposal,
        encoder=make_encoder() if proposal == "neural" else None,
        num_chains=num_chains,
        num_draws=num_draws,
        num_warmup=60,
        seed=3,
    )
    chain_means = (draws.edge_type == 1).mean(1)  # [C, G, E]
    standard_error = chain_means.std(0, ddof=1) / np.sqrt(num_chains)
    assert (np.abs(chain_means.mean(0) - wanted) <= 4 * standard_error + 1e-12).all()
    assert standard_error.max() < 0.03
    with torch.no_grad():
        joint = model.log_joint(scenes, torch.as_tensor(draws.edge_type[:, -1]).long())
    np.testing.assert_allclose(draws.log_joint[:, -1], joint, rtol=1e-9)
    assert (draws.temperature == 1).all()
    assert draws.log_marginal is None
    assert 0 < draws.accepted.sum() < draws.accepted.size
    if cache == "table":  # conditionals averaged over draws: closer to the truth than counting
        error = np.abs(draws.edge_probability[..., 1] - wanted)
        assert error.max() < (0.02 if prior == "sparse" else 0.01)  # what other pairs do matters more there
        np.testing.assert_allclose(draws.edge_probability.sum(-1), 1)
        counted = np.abs(chain_means.mean(0) - wanted)
        assert np.square(error).mean() < np.square(counted).mean()
    else:
        assert draws.edge_probability is None


def test_draws_keep_what_divides_the_prior_out(make_model, make_scenes):
    """The prior, and the exact probabilities of receivers' codes, which add up to those of edges."""
    scenes = make_scenes(3)
    for prior in ("independent", "symmetric", "sparse"):
        model = make_model(prior=prior)
        exact, drawn = (
            infer(model, scenes, method=method, num_chains=2, num_draws=4, num_warmup=2, seed=0)
            for method in ("exact", "mcmc")
        )
        assert exact.prior == drawn.prior
        assert exact.prior.name == prior
        assert sum(exact.prior.type_probability) == pytest.approx(1)
        assert drawn.receiver_probability is None
        if prior != "independent":
            assert exact.receiver_probability is None
            continue
        assert exact.prior.type_probability == pytest.approx(model.prior.type_logits.softmax(-1).tolist())
        types = code_types(model.num_edge_types, scenes.num_entities).numpy()
        incoming = edges.incoming_edges(scenes.num_entities).numpy()
        for k in range(model.num_edge_types):
            found = exact.receiver_probability @ (types == k)  # [G, N, N - 1]
            assert found == pytest.approx(exact.edge_probability[:, incoming, k])
        halves = infer(model, scenes, num_draws=4, num_shards=2, seed=0)
        assert halves.receiver_probability == pytest.approx(exact.receiver_probability)


def test_float32_models_work(make_model, make_scenes):
    model, scenes = make_model().float(), make_scenes()
    exact, other = infer(model, scenes, seed=0), infer(make_model(), scenes, seed=0)
    np.testing.assert_allclose(exact.edge_probability, other.edge_probability, atol=1e-3)
    draws = infer(model, scenes, method="mcmc", num_draws=5, num_warmup=3, seed=0)
    assert draws.log_joint.dtype == np.float64


def test_warm_up_anneals_and_draws_do_not(make_model, make_scenes):
    draws = infer(make_model(), make_scenes(), method="mcmc", num_warmup=9, num_draws=5, start_temperature=8.0, seed=0)
    assert draws.warmup.temperature.tolist() == pytest.approx([8, 4, 2, 1, 1, 1, 1, 1, 1], rel=0.9)
    assert draws.warmup.temperature[0] == 8.0
    assert draws.warmup.temperature[4:].tolist() == [1.0] * 5
    assert (np.diff(draws.warmup.temperature) <= 0).all()
    assert draws.temperature.tolist() == [1.0] * 5
    assert draws.warmup.edge_type.shape == (4, 9, 3, 6)
    assert infer(make_model(), make_scenes(), method="mcmc", num_warmup=0, num_draws=2, seed=0).warmup is None


def test_thinned_draws_are_every_third(make_model, make_scenes):
    options = {"method": "mcmc", "num_warmup": 4, "seed": 0, "segment_draws": 5}
    every = infer(make_model(), make_scenes(), num_draws=36, **options)
    thinned = infer(make_model(), make_scenes(), num_draws=12, thin=3, **options)
    assert np.array_equal(thinned.edge_type, every.edge_type[:, 2::3])
    assert np.array_equal(thinned.log_joint, every.log_joint[:, 2::3])
    assert thinned.num_evaluations == every.num_evaluations == 36


def test_method_by_name(make_model, make_scenes):
    large = make_scenes(num_scenes=1, num_entities=6, num_frames=3)
    assert infer(make_model(), large, num_draws=2, seed=0).method == "exact"
    options = {"num_draws": 2, "num_warmup": 0, "seed": 0, "cache": "messages"}
    assert infer(make_model(), large, **options).method == "mcmc"
    with pytest.raises(ValueError, match="structures are too many"):
        infer(make_model(), large, method="exact", **options)


# --- the same --------------------------------------------------------------------------------------------------------
RUNS = {
    "sparse": {"method": "mcmc", "prior": "sparse"},
    "labels": {"method": "mcmc", "prior": "charges"},
    "labels, exact": {"method": "exact", "prior": "charges"},
    "exact": {"method": "exact"},
    "uniform": {"method": "mcmc", "proposal": "uniform"},
    "neural": {"method": "mcmc", "proposal": "neural"},
    "blocks": {"method": "mcmc", "proposal": "exact"},
}


@pytest.fixture(params=RUNS)
def start(request, make_model, make_scenes, make_encoder):
    """A run by name: ``start(scenes, **options)``."""
    options = RUNS[request.param].copy()
    model, encoder = with_table(make_model(prior=options.pop("prior", "independent"))), make_encoder()
    fixed = {"num_draws": 20, "num_warmup": 7, "num_chains": 3, "seed": 11, **options}
    if request.param in ("neural", "labels"):
        fixed["encoder"] = encoder
    return lambda scenes, **options: infer(model, scenes, **(fixed | options))


def test_the_same_seed_gives_the_same_draws(start, make_scenes):
    one = start(make_scenes())
    assert_same(one, start(make_scenes()))
    assert not np.array_equal(one.edge_type, start(make_scenes(), seed=12).edge_type)


def test_any_subset_and_order_of_scenes(start, make_scenes):
    scenes = make_scenes(num_scenes=7)
    whole = start(scenes)
    order = random.Random(0).sample(range(7), 4)
    part = start(scenes[order])
    assert part.group_names == tuple(f"s{b}" for b in order)
    np.testing.assert_array_equal(part.edge_type, whole.edge_type[:, :, order])
    np.testing.assert_allclose(part.log_joint, whole.log_joint[:, :, order], rtol=1e-12)
    np.testing.assert_allclose(part.edge_probability, whole.edge_probability[order], atol=1e-12)


def test_any_number_of_chains(start, make_scenes):
    few, many = start(make_scenes(), num_chains=2), start(make_scenes(), num_chains=5)
    np.testing.assert_array_equal(few.edge_type, many.edge_type[:2])
    assert len({chain.tobytes() for chain in many.edge_type}) == 5


@pytest.mark.parametrize("groups", [None, ["a", "b", "a", "c", "d", "b", "e"]])
def test_shards_and_executors(start, make_scenes, groups):
    scenes = make_scenes(num_scenes=7, groups=groups)
    whole = start(scenes)
    # BLAS may sum a product of another number of rows in another order: densities agree to rounding, draws exactly.
    assert_same(start(scenes, num_shards=3), whole, rtol=1e-12)
    assert_same(start(scenes, num_shards=50), whole, rtol=1e-12)
    with ThreadPoolExecutor(2) as executor:
        assert_same(start(scenes, num_shards=4, executor=executor), whole, rtol=1e-12)
        assert_same(start(scenes, executor=executor), whole)


def test_segments_change_nothing(start, make_scenes):
    one, other = start(make_scenes(), segment_draws=3), start(make_scenes(), segment_draws=1000)
    np.testing.assert_array_equal(one.edge_type, other.edge_type)
    if one.warmup is not None:
        np.testing.assert_array_equal(one.warmup.edge_type, other.warmup.edge_type)
    np.testing.assert_allclose(one.edge_probability, other.edge_probability, rtol=1e-12)


def test_no_global_random_numbers(start, make_scenes):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    start(make_scenes())
    assert torch.equal(torch.get_rng_state(), before)


class Interrupted:
    """A writer that keeps what it is given, and is hit by Ctrl-C after some segments."""

    def __init__(self, num_segments):
        self.num_segments = num_segments
        self.seen = []

    def __call__(self, draws):
        self.seen.append(draws)
        if len(self.seen) == self.num_segments:
            raise KeyboardInterrupt


@pytest.mark.parametrize("thin", [1, 2])
@pytest.mark.parametrize("num_segments", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("proposal", ["uniform", "neural", "exact"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    make_model, make_scenes, make_encoder, proposal, num_segments, thin
):
    """Segments of 4: warm-up of 10 takes three of them, the draws five more."""
    options = {"method": "mcmc", "proposal": proposal, "num_chains": 2, "num_draws": 18, "num_warmup": 10, "seed": 1}
    options |= {"segment_draws": 4, "thin": thin, "encoder": make_encoder() if proposal == "neural" else None}
    model, scenes = make_model(), make_scenes(padded=[1])
    whole = infer(model, scenes, **options)
    writer = Interrupted(num_segments)
    broken = infer(model, scenes, on_segment=writer, **options)
    assert not broken.complete
    assert_same(broken, writer.seen[-1])
    assert broken.edge_type.shape[1] == max(0, num_segments - 3) * 4
    assert broken.warmup.edge_type.shape[1] == min(10, 4 * num_segments)
    np.testing.assert_array_equal(broken.edge_type, whole.edge_type[:, : broken.edge_type.shape[1]])
    assert_same(infer(model, scenes, resume=broken, **options), whole)


def test_interrupted_twice_and_then_resumed_when_done(make_model, make_scenes):
    options = {"method": "mcmc", "num_chains": 2, "num_draws": 20, "num_warmup": 6, "seed": 1, "segment_draws": 3}
    model, scenes = make_model(), make_scenes()
    whole = infer(model, scenes, **options)
    once = infer(model, scenes, on_segment=Interrupted(1), **options)
    twice = infer(model, scenes, on_segment=Interrupted(4), resume=once, **options)
    done = infer(model, scenes, resume=twice, **options)
    assert_same(done, whole)
    assert_same(infer(model, scenes, resume=done, **options), whole)
    longer = infer(model, scenes, resume=done, **(options | {"num_draws": 30}))
    np.testing.assert_array_equal(longer.edge_type, infer(model, scenes, **(options | {"num_draws": 30})).edge_type)


def test_interrupted_before_the_first_segment(make_model, make_scenes, monkeypatch):
    from pyro_nri.inference.chains import Chains

    def step(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Chains, "step", step)
    with pytest.raises(KeyboardInterrupt):
        infer(make_model(), make_scenes(), method="mcmc", seed=0)


def test_writers_see_every_segment(make_model, make_scenes):
    seen = []
    options = {"method": "mcmc", "num_draws": 10, "num_warmup": 5, "segment_draws": 4, "seed": 0}
    draws = infer(make_model(), make_scenes(), on_segment=seen.append, **options)
    assert [each.warmup.edge_type.shape[1] for each in seen] == [4, 5, 5, 5, 5]
    assert [each.edge_type.shape[1] for each in seen] == [0, 0, 4, 8, 10]
    assert [each.complete for each in seen] == [False] * 4 + [True]
    assert_same(seen[-1], draws)


# --- shared structures -----------------------------------------------------------------------------------------------
def test_ten_recordings_of_one_system(make_model, make_scenes, make_encoder, all_structures):
    """The posterior is that of the summed log-likelihood, by every route."""
    model, scenes = make_model(scale=3.0), make_scenes(num_scenes=10, missing=0.05)
    every = all_structures(2)
    each = np.stack(
        [model.log_likelihood(scenes[b], torch.tensor(every)[:, None])[:, 0].detach().numpy() for b in range(10)]
    )
    log_weight = np.log(np.exp([0.4, -0.3]) / np.exp([0.4, -0.3]).sum())
    joint = each.sum(0) + np.array([sum(log_weight[k] for k in z) for z in every])
    weight = np.exp(joint - joint.max())
    wanted = marginals(every, (weight / weight.sum())[:, None], 2)[0, :, 1]
    assert 0.02 < wanted.min() < wanted.max() < 0.98
    shared = scenes.share_structure("all")
    for cache in ("table", "messages", "none"):
        exact = infer(model, shared, method="exact", cache=cache, num_draws=2, seed=0)
        assert exact.group_names == ("all",)
        np.testing.assert_allclose(exact.edge_probability[0, :, 1], wanted, atol=1e-9)
        draws = infer(
            model,
            shared,
            method="mcmc",
            cache=cache,
            encoder=make_encoder(),
            num_chains=60,
            num_draws=60,
            num_warmup=40,
            seed=1,
        )
        assert draws.edge_type.shape == (60, 60, 1, 6)
        chain_means = (draws.edge_type[:, :, 0] == 1).mean(1)
        standard_error = chain_means.std(0, ddof=1) / np.sqrt(60)
        assert (np.abs(chain_means.mean(0) - wanted) <= 4 * standard_error).all()


def test_groups_do_not_depend_on_the_order_of_scenes(make_model, make_scenes):
    scenes = make_scenes(num_scenes=5, groups=["a", "b", "a", "b", "c"])
    one, other = (infer(make_model(), each, num_draws=3, seed=0) for each in (scenes, scenes[[4, 3, 2, 1, 0]]))
    assert other.group_names == ("c", "b", "a")
    np.testing.assert_allclose(other.edge_probability, one.edge_probability[[2, 1, 0]], atol=1e-10)
    np.testing.assert_array_equal(other.edge_type, one.edge_type[:, :, [2, 1, 0]])


@pytest.mark.parametrize("num_transitions", [1, 4, 5, 20])
def test_a_recording_cut_into_windows(make_model, make_scenes, num_transitions):
    model, whole = make_model(scale=3.0), make_scenes(num_scenes=2, num_frames=14, missing=0.05)
    windows = whole.windows(num_transitions)
    cut = windows.share_structure({name: name.split("[")[0] for name in windows.scene_names})
    one, other = (infer(model, each, num_draws=5, num_warmup=3, seed=0) for each in (whole, cut))
    assert other.group_names == one.group_names == ("s0", "s1")
    np.testing.assert_allclose(other.edge_probability, one.edge_probability, atol=1e-9)
    np.testing.assert_allclose(other.log_marginal, one.log_marginal, rtol=1e-9)
    np.testing.assert_array_equal(other.edge_type, one.edge_type)
    chains = [infer(model, each, method="mcmc", num_draws=5, num_warmup=3, seed=0).edge_type for each in (whole, cut)]
    np.testing.assert_array_equal(*chains)


def test_more_frames_tell_more(make_model, make_scenes):
    """A sanity check on the sign of it all: data from the model itself, more of it, less entropy."""
    model, scenes = make_model(scale=0.3), make_scenes(num_scenes=20, num_frames=30)
    torch.manual_seed(0)
    truth = torch.randint(2, (20, 6))
    frames = model.trajectory(model.prepare(scenes), truth).sample()
    drawn = Scenes.from_arrays(torch.cat([scenes.trajectory[:, :1], frames], 1))
    right = []
    for stop in (3, 10, 30):
        found = infer(model, drawn.frames(0, stop), num_draws=1, seed=0).edge_probability
        right.append(np.take_along_axis(found, truth[..., None].numpy(), -1).mean())
    assert right[0] < right[1] < right[2]
    assert right[2] > 0.8


# --- priors over labels ----------------------------------------------------------------------------------------------
@pytest.mark.statistical
def test_more_labels_than_can_be_listed(make_model, make_scenes):
    """20 entities: the chains find the signs that the motion was made with, up to the flip that changes nothing."""
    model = with_table(make_model(prior="charges", scale=0.1))
    scenes = make_scenes(num_scenes=2, num_entities=20, num_frames=8)
    signs = torch.randint(2, (2, 20), generator=torch.Generator().manual_seed(2))
    truth = model.structure_prior(scenes).structure_of(signs)
    torch.manual_seed(0)
    frames = model.trajectory(model.prepare(scenes), truth).sample()
    drawn = Scenes.from_arrays(torch.cat([scenes.trajectory[:, :1], frames], 1))
    with pytest.raises(ValueError, match=r"2\^20 structures are too many"):
        infer(model, drawn, method="exact", seed=0)
    draws = infer(model, drawn, num_chains=2, num_warmup=150, num_draws=50, seed=0)
    assert draws.method == "mcmc"
    assert draws.edge_probability is None  # no table at this size: edges are counted
    right = draws.edge_type == truth.numpy()
    assert right.mean() > 0.9


def test_open_priors_are_refused(make_model, make_scenes):
    with pytest.raises(ValueError, match="the prior is open: training did not choose its table"):
        infer(make_model(prior="charges"), make_scenes(), seed=0)


# --- refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "method must be one of auto, exact, mcmc, found 'guess'"),
        ({"num_chains": 0}, "num_chains must be at least 1, found 0"),
        ({"num_draws": 0}, "num_draws must be at least 1, found 0"),
        ({"thin": 0}, "thin must be at least 1, found 0"),
        ({"num_shards": 0}, "num_shards must be at least 1, found 0"),
        ({"num_warmup": -1}, "num_warmup must be 0 or more, found -1"),
        ({"start_temperature": 0.5}, "start_temperature must be at least 1, found 0.5"),
        ({"method": "mcmc", "proposal": "neural"}, "needs an encoder"),
        ({"method": "mcmc", "proposal": "exact", "cache": "none"}, "need a receiver table"),
        ({"cache": "disk"}, "cache must be auto, table, messages or none"),
    ],
)
def test_bad_arguments(make_model, make_scenes, options, message):
    with pytest.raises(ValueError, match=message):
        infer(make_model(), make_scenes(), seed=0, **options)


def test_resume_of_another_run(make_model, make_scenes):
    options = {"method": "mcmc", "num_draws": 4, "num_warmup": 2, "seed": 0}
    model, scenes = make_model(), make_scenes()
    draws = infer(model, scenes, **options)
    for change, what in (({"seed": 1}, "seed"), ({"num_chains": 2}, "num_chains")):
        with pytest.raises(ValueError, match=f"resume is of another run: its {what} is"):
            infer(model, scenes, resume=draws, **(options | change))
    with pytest.raises(ValueError, match="its structures is"):
        infer(model, scenes[:2], resume=draws, **options)
    with pytest.raises(ValueError, match="resume goes with a single shard"):
        infer(model, scenes, resume=draws, num_shards=2, **options)


@pytest.mark.parametrize("change", [{"num_warmup": 5}, {"thin": 2}, {"proposal": "uniform"}])
def test_resume_with_other_arguments_is_no_continuation(make_model, make_scenes, change):
    """It would neither be the run that was interrupted nor the one that is asked for."""
    options = {"method": "mcmc", "num_draws": 8, "num_warmup": 2, "seed": 0, "segment_draws": 4}
    broken = infer(make_model(), make_scenes(), on_segment=Interrupted(2), **options)
    with pytest.raises(ValueError, match="resume is of another run"):
        infer(make_model(), make_scenes(), resume=broken, **(options | change))


def test_writers_and_shards_do_not_go_together_in_silence(make_model, make_scenes):
    """Either the writer is called or the call is refused."""
    seen = []
    try:
        infer(
            make_model(),
            make_scenes(),
            method="mcmc",
            num_draws=4,
            num_warmup=2,
            seed=0,
            num_shards=2,
            on_segment=seen.append,
        )
    except ValueError as error:
        seen.append(str(error))
    assert seen


def test_keys_of_draws(make_model, make_scenes):
    for method, (num_chains, num_draws) in itertools.product(("exact", "mcmc"), [(1, 1), (3, 2)]):
        draws = infer(
            make_model(), make_scenes(), method=method, num_chains=num_chains, num_draws=num_draws, num_warmup=1, seed=4
        )
        assert draws.edge_type.shape == (num_chains, num_draws, 3, 6)
        assert draws.log_joint.shape == draws.accepted.shape == draws.proposed.shape == (num_chains, num_draws, 3)
        assert draws.move_kind.shape == draws.temperature.shape == (num_draws,)
        if method == "exact":  # independent draws have no moves
            assert not draws.move_names
            assert not (draws.accepted | draws.proposed).any()
        else:
            assert draws.move_kind.max() < len(draws.move_names)
        assert (draws.method, draws.num_edge_types, draws.group_names) == (method, 2, ("s0", "s1", "s2"))
