"""Streams: frozen values, sharding, uniformity and independence; categorical draws and their edge cases."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference import streams
from pyro_nri.inference.streams import Stream, categorical, generator, keys

NAMES = [f"scene {b}" for b in range(40)]
LARGEST = 1 - 2**-53

KEY_0, KEY_1 = 5008521226395114669, -4632311750487752424
UNIFORM = [
    [[0.5535316980878319, 0.5512623289489881], [0.5917726486596759, 0.7929879789475606]],
    [[0.09285753642615269, 0.3258446304259951], [0.9858764495732962, 0.9662106420769043]],
]
SHARED = 0.8353390069642527
CHILD = 0.15041513155064634
GENERATOR = 0.5699793424864238


@pytest.fixture
def stream():
    return Stream(seed=7, keys=keys(NAMES), num_chains=3)


# --- frozen values: a change here changes every result that was ever published with a seed ---------------------------
def test_known_answers():
    assert keys(["scene 0", "späť"]).tolist() == [KEY_0, KEY_1]
    stream = Stream(seed=2019, keys=keys(["scene 0", "späť"]), num_chains=2)
    assert stream.uniform(3, 2).tolist() == UNIFORM
    assert stream.shared_uniform(3) == SHARED
    assert stream.child("warmup").uniform(0, 1)[0, 0, 0].item() == CHILD
    assert torch.rand(1, generator=generator(2019, "modules", 1), dtype=torch.float64).item() == GENERATOR


def test_uniform_follows_splitmix_written_with_python_integers():
    """The same hash in unbounded integers: guards against signed shifts and overflow."""
    word = (1 << 64) - 1

    def mix(z):
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    # Vigna's splitmix64.c, seed 1234567: published first outputs.
    state, published = 1234567, [6457827717110365317, 3203168211198807973, 9817491932198370423]
    for value in published:
        state = (state + 0x9E3779B97F4A7C15) & word
        assert mix(state) == value

    words = torch.tensor([0, 1, -1, 2**63 - 1, -(2**63), 1234567], dtype=torch.long)
    assert [w & word for w in streams._mix_(words.clone()).tolist()] == [mix(w & word) for w in words.tolist()]


# --- sharding --------------------------------------------------------------------------------------------------------
def test_any_subset_or_order_of_structures_gives_the_same_bits(stream):
    whole = stream.uniform(5, 4)
    order = torch.tensor(random.Random(0).sample(range(len(NAMES)), 17))
    shard = Stream(seed=7, keys=keys([NAMES[g] for g in order]), num_chains=3)
    assert torch.equal(shard.uniform(5, 4), whole[:, order])
    one = Stream(seed=7, keys=keys(NAMES[11:12]), num_chains=3)
    assert torch.equal(one.uniform(5, 4), whole[:, 11:12])


def test_chains_can_be_drawn_in_parts(stream):
    whole = stream.uniform(5, 4)
    assert torch.equal(replace(stream, num_chains=1).uniform(5, 4), whole[:1])
    assert torch.equal(replace(stream, num_chains=2, first_chain=1).uniform(5, 4), whole[1:])


def test_slots_do_not_depend_on_their_number(stream):
    assert torch.equal(stream.uniform(5, 1), stream.uniform(5, 9)[..., :1])
    assert stream.uniform(5, 0).shape == (3, 40, 0)


def test_steps_can_be_revisited_in_any_order(stream):
    first = stream.uniform(0, 2)
    stream.uniform(1, 2)
    assert torch.equal(stream.uniform(0, 2), first)


def test_shared_uniform_is_the_same_for_all_shards(stream):
    assert stream.shared_uniform(4) == Stream(7, keys(["other"]), 1, first_chain=5).shared_uniform(4)
    assert stream.shared_uniform(4) == Stream(7, torch.empty(0, dtype=torch.long), 1).shared_uniform(4)


def test_children_keep_structures_and_chains_and_have_their_own_numbers(stream):
    child = stream.child("warmup")
    assert torch.equal(child.keys, stream.keys)
    assert child.num_chains == stream.num_chains
    draws = [
        s.uniform(0, 1).flatten().tolist() for s in (stream, child, stream.child("training"), child.child("warmup"))
    ]
    assert not any(set(a) & set(b) for a, b in itertools.combinations(draws, 2))
    assert stream.child("warmup").shared_uniform(0) != stream.shared_uniform(0)


# --- uniformity and independence -------------------------------------------------------------------------------------
def draws(seed=0, names=NAMES, num_chains=5, steps=range(200), num=8):
    """Uniforms [steps, C, G, num]."""
    stream = Stream(seed, keys(names), num_chains)
    return torch.stack([stream.uniform(step, num) for step in steps]).numpy()


@pytest.mark.statistical
def test_uniformity():
    values = draws()
    assert values.dtype == np.float64
    assert values.min() >= 0
    assert values.max() < 1
    assert stats.kstest(values.ravel(), "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(values, bins=1000, range=(0, 1))[0]).pvalue > 1e-3
    bits = (values.ravel() * 2**53).astype(np.int64)
    assert np.array_equal(bits / 2**53, values.ravel())
    for bit in range(53):
        ones = (bits >> bit & 1).mean()
        assert abs(ones - 0.5) < 5 * 0.5 / np.sqrt(bits.size), f"bit {bit}"


@pytest.mark.statistical
def test_shared_uniform_is_uniform_and_serially_independent(stream):
    values = np.array([stream.shared_uniform(step) for step in range(20_000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert_uniform_and_independent(values[:-1], values[1:])


NEIGHBOURS = {
    "steps": lambda u: (u[:-1], u[1:]),
    "far steps": lambda u: (u[:-64], u[64:]),
    "chains": lambda u: (u[:, :-1], u[:, 1:]),
    "names": lambda u: (u[:, :, :-1], u[:, :, 1:]),
    "slots": lambda u: (u[..., :-1], u[..., 1:]),
    "step against slot": lambda u: (u[:-1, ..., 1:], u[1:, ..., :-1]),
    "step against chain": lambda u: (u[:-1, 1:], u[1:, :-1]),
    "chain against slot": lambda u: (u[:, :-1, :, 1:], u[:, 1:, :, :-1]),
}


@pytest.mark.statistical
@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_neighbours_are_independent(neighbour):
    assert_uniform_and_independent(*NEIGHBOURS[neighbour](draws()))


@pytest.mark.statistical
@pytest.mark.parametrize("other", [1, -1, 2**32, 2**64])
def test_seeds_are_independent(other):
    assert_uniform_and_independent(draws(seed=0), draws(seed=other))


@pytest.mark.statistical
def test_children_are_independent():
    stream = Stream(0, keys(NAMES), 5)
    first, second, parent = (
        np.stack([s.uniform(step, 8).numpy() for step in range(200)])
        for s in (stream.child("a"), stream.child("b"), stream)
    )
    assert_uniform_and_independent(first, second)
    assert_uniform_and_independent(first, parent)


@pytest.mark.statistical
def test_sums_over_each_axis_have_the_variance_of_independent_draws():
    """Weak dependence that no pair shows would widen or narrow sums; compares sums of 200 steps with their variance."""
    values = draws(names=[f"s{b}" for b in range(200)])
    for axis in range(4):
        sums = values.sum(axis).ravel() - values.shape[axis] / 2
        expected = values.shape[axis] / 12
        assert abs((sums**2).mean() / expected - 1) < 5 * np.sqrt(2 / sums.size)


def test_no_two_addresses_share_a_number():
    values = np.concatenate([draws(seed=seed).ravel() for seed in (0, 1)])
    assert np.unique(values).size == values.size  # 640,000 draws: a repeat has probability 2e-5


def assert_uniform_and_independent(first, second):
    """Correlation within four standard errors, and a chi-square test of the joint histogram on 16 x 16 cells."""
    first, second = first.ravel(), second.ravel()
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(first.size)
    counts = np.histogram2d(first, second, bins=16, range=[[0, 1], [0, 1]])[0]
    assert stats.chisquare(counts.ravel()).pvalue > 1e-4


def test_the_checks_find_a_plain_counter():
    """Negative control: words that were mixed too little must fail."""
    u = np.arange(20_000) * 0.6180339887 % 1
    with pytest.raises(AssertionError):
        assert_uniform_and_independent(u[:-1], u[1:])


# --- generator and bad input -----------------------------------------------------------------------------------------
def test_generator_is_keyed_by_seed_and_purpose_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    addresses = [(0, "modules"), (1, "modules"), (0, "proposal"), (0, "modules", 1), (0, "mod", "ules"), (0,)]
    first = [torch.rand(4, generator=generator(*address)).tolist() for address in addresses]
    again = [torch.rand(4, generator=generator(*address)).tolist() for address in addresses]
    assert first == again
    assert len({tuple(values) for values in first}) == len(addresses)
    assert torch.equal(before, torch.get_rng_state())


def test_bad_input_is_named(stream):
    with pytest.raises(ValueError, match=r"step must be 0 or more, found -1"):
        stream.uniform(-1, 2)
    with pytest.raises(ValueError, match=r"step must be 0 or more, found -1"):
        stream.shared_uniform(-1)
    with pytest.raises(ValueError, match=r"num must be 0 or more, found -2"):
        stream.uniform(0, -2)
    with pytest.raises(ValueError, match=r"num_chains must be at least 1, found 0"):
        Stream(0, keys(NAMES), 0)
    with pytest.raises(ValueError, match=r"first_chain must be 0 or more, found -1"):
        Stream(0, keys(NAMES), 1, first_chain=-1)
    with pytest.raises(ValueError, match=r"keys must be long \[G\]"):
        Stream(0, torch.zeros(2, 2), 1)
    with pytest.raises(ValueError, match="'b' more than once"):
        keys(["a", "b", "b"])


# --- categorical -----------------------------------------------------------------------------------------------------
@pytest.mark.statistical
def test_categorical_frequencies():
    probability = torch.tensor([[0.1, 0.0, 0.6, 0.3], [0.25, 0.25, 0.25, 0.25], [0.0, 0.999, 0.001, 0.0]])
    num = 40_000
    uniform = Stream(3, keys(["a", "b", "c"]), 1).uniform(0, num)[0]  # [3, num]
    classes = categorical(probability[:, None], uniform)  # [3, num]
    frequency = torch.stack([(classes == r).double().mean(-1) for r in range(4)], dim=-1)
    error = (probability * (1 - probability) / num).sqrt()
    assert ((frequency - probability).abs() <= 4 * error).all()
    assert (frequency[probability == 0] == 0).all()


def test_categorical_matches_a_loop_over_classes():
    generator = torch.Generator().manual_seed(0)
    weight = torch.rand(50, 7, generator=generator, dtype=torch.float64)
    weight[torch.rand(50, 7, generator=generator) < 0.4] = 0
    weight[:, 3] += 0.01
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    drawn = categorical(weight, uniform)
    for row, u, found in zip(weight.tolist(), uniform.tolist(), drawn.tolist(), strict=True):
        total, wanted = 0.0, None
        for r, w in enumerate(row):
            total += w
            if wanted is None and total > u * sum(row):
                wanted = r
        assert found == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 3.0, 1e-30, 1e30])
def test_categorical_edges(dtype, scale):
    """Zero-probability classes at either end and in the middle are never drawn, at the smallest and largest uniform."""
    weights = [[0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0.1, 0.2, 0.7, 0], [1, 1e-12, 0, 0, 0]]
    weight = torch.tensor(weights, dtype=dtype) * scale
    possible = weight > 0
    for u in (0.0, 5e-324, 0.5, LARGEST):
        drawn = categorical(weight, torch.full((5,), u, dtype=torch.float64))
        assert possible.gather(-1, drawn[:, None]).all()
    assert categorical(weight, torch.zeros(5, dtype=torch.float64)).tolist() == [2, 1, 0, 1, 0]
    assert categorical(weight, torch.full((5,), LARGEST, dtype=torch.float64)).tolist()[:4] == [2, 3, 4, 3]


def test_categorical_never_passes_the_last_class_in_random_rows():
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(20_000, 9, generator=generator, dtype=torch.float64).pow(8)
    weight[:, -2:] = 0
    drawn = categorical(weight, torch.full((20_000,), LARGEST, dtype=torch.float64))
    assert (weight.gather(-1, drawn[:, None]) > 0).all()


def test_categorical_of_a_subnormal_total_falls_back_to_a_possible_class():
    """5e-324 (1 - 2**-53) rounds up to 5e-324: no cumulative probability exceeds the target."""
    weight = torch.tensor([[0.0, 5e-324, 0.0], [5e-324, 0.0, 0.0]], dtype=torch.float64)
    assert categorical(weight, torch.full((2,), LARGEST, dtype=torch.float64)).tolist() == [1, 0]


def test_categorical_broadcasts_rows_against_uniforms():
    weight = torch.tensor([1.0, 1.0])
    assert categorical(weight, torch.tensor([[0.1, 0.9], [0.6, 0.4]])).tolist() == [[0, 1], [1, 0]]
    assert categorical(torch.ones(3, 1, 2), torch.tensor([0.1, 0.9])).tolist() == [[0, 1]] * 3
    assert categorical(torch.ones(0, 2), torch.empty(0)).shape == (0,)


@pytest.mark.parametrize("row", [[0.0, 0.0], [1.0, -0.5], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_categorical_rejects_what_is_no_distribution(row):
    with pytest.raises(ValueError, match="finite and zero or more, with a positive sum"):
        categorical(torch.tensor([row, [1.0, 1.0]]), torch.zeros(2))
