"""The joint distribution of a receiver's edges: against a plain loop over all types, and against its own draws."""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference.incoming import IncomingDistribution


def make(num_types=2, num_senders=3, batch=(2, 3), *, seed=0, floor=0.0, exists=None, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    shape = (*batch, num_senders)
    base = torch.randn(*shape, num_types, generator=generator, dtype=torch.double)
    coupling = scale * torch.randn(*shape, num_types, *shape[-1:], num_types, generator=generator, dtype=torch.double)
    order = torch.rand(shape, generator=generator).argsort(-1)
    return IncomingDistribution(base, coupling, exists=exists, order=order, floor=floor), coupling


def all_types(num_types, num_senders, batch=(2, 3)):
    every = torch.tensor(list(itertools.product(range(num_types), repeat=num_senders)))
    return every.reshape(-1, *[1] * len(batch), num_senders).expand(-1, *batch, -1)


def by_definition(distribution, coupling, types):
    """Probability of the types of one receiver, sender after sender in plain Python."""
    result, drawn = 1.0, {}
    for sender in distribution.order.tolist():
        if not distribution.exists[sender]:
            result *= float(types[sender] == 0)
            continue
        logits = distribution.base[sender].numpy().copy()
        for earlier, type_ in drawn.items():
            logits += coupling[sender, :, earlier, type_].numpy()
        weight = np.exp(logits)
        probability = (1 - distribution.floor) * weight / weight.sum() + distribution.floor / len(weight)
        drawn[sender] = types[sender]
        result *= probability[types[sender]]
    return result


@pytest.mark.parametrize(("num_types", "num_senders"), [(2, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_log_prob_is_the_definition_and_normalised(num_types, num_senders, floor):
    exists = torch.ones(2, 3, num_senders, dtype=torch.bool)
    exists[1, 0, -1] = False
    distribution, coupling = make(num_types, num_senders, floor=floor, exists=exists)
    every = all_types(num_types, num_senders)
    probability = distribution.log_prob(every).exp()
    torch.testing.assert_close(probability.sum(0), torch.ones(2, 3, dtype=torch.double))
    for g, n in itertools.product(range(2), range(3)):
        expected = [by_definition(distribution[g, n], coupling[g, n], z.tolist()) for z in every[:, g, n]]
        np.testing.assert_allclose(probability[:, g, n], expected, rtol=1e-10)


@pytest.mark.statistical
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_draws_are_as_frequent_as_log_prob_says(floor):
    exists = torch.ones(2, 3, 3, dtype=torch.bool)
    exists[0, 2, 1] = False
    distribution, _ = make(3, floor=floor, exists=exists, seed=1)
    num = 20_000
    generator = torch.Generator().manual_seed(0)
    drawn = distribution.from_uniform(torch.rand(num, 2, 3, 3, generator=generator, dtype=torch.double))
    every = all_types(3, 3)
    share = torch.stack([(drawn == z).all(-1).double().mean(0) for z in every])
    p = distribution.log_prob(every).exp()
    assert ((share - p).abs() <= 5 * (p * (1 - p) / num).sqrt() + 1 / num).all()
    assert (drawn[:, 0, 2, 1] == 0).all()


def test_sample_has_the_shape_of_a_distribution_and_lies_in_the_support():
    distribution, _ = make(3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = distribution.sample((4, 5))
    assert drawn.shape == (4, 5, 2, 3, 3)
    assert distribution.support.check(drawn).all()
    assert distribution.log_prob(drawn).shape == (4, 5, 2, 3)
    assert (distribution.batch_shape, distribution.event_shape) == ((2, 3), (3,))


def test_couplings_to_later_senders_are_not_read():
    distribution, coupling = make()
    place = distribution.order.argsort(-1)
    later = place[..., None, :] >= place[..., :, None]
    changed = torch.where(later[..., :, None, :, None], coupling + 5, coupling)
    other = IncomingDistribution(distribution.base, changed, order=distribution.order)
    every = all_types(2, 3)
    assert torch.equal(other.log_prob(every), distribution.log_prob(every))


def test_parts_and_larger_batches():
    distribution, _ = make()
    every = all_types(2, 3)
    group, receiver = torch.tensor([1, 0, 1]), torch.tensor([0, 2, 2])
    chosen = distribution[group, receiver].log_prob(every[:, group, receiver])
    torch.testing.assert_close(chosen, distribution.log_prob(every)[:, group, receiver])
    larger = distribution.expand((4, 2, 3))
    assert larger.batch_shape == (4, 2, 3)
    torch.testing.assert_close(larger.log_prob(every[:4]), distribution.log_prob(every[:4]))


def test_the_floor_bounds_every_sender():
    distribution, _ = make(scale=100.0)
    lowest = distribution.with_floor(0.3).log_prob(all_types(2, 3)).exp().min()
    assert 0.15**3 - 1e-12 <= float(lowest) < 0.01
    assert float(distribution.log_prob(all_types(2, 3)).exp().min()) < 1e-9
    assert float(distribution.with_floor(1.0).log_prob(all_types(2, 3)).exp().std()) == pytest.approx(0, abs=1e-12)


def test_gradients_are_finite_in_double_precision():
    base = torch.zeros(3, 2, dtype=torch.double, requires_grad=True)
    coupling = torch.full((3, 2, 3, 2), 40.0, dtype=torch.double, requires_grad=True)
    exists = torch.tensor([True, True, False])
    IncomingDistribution(base, coupling, exists=exists).log_prob(torch.tensor([1, 0, 0])).backward()
    for value in (base, coupling):
        assert value.grad.isfinite().all()
        assert value.grad[:2].any()
    assert not base.grad[2].any()


def test_bad_arguments():
    base, coupling = torch.zeros(3, 2), torch.zeros(3, 2, 3, 2)
    with pytest.raises(ValueError, match=r"coupling must have shape \[3, 2, 3, 2\], found \[3, 2, 2\]"):
        IncomingDistribution(base, coupling[..., 0, :])
    with pytest.raises(ValueError, match="floor must be between 0 and 1, found 2"):
        IncomingDistribution(base, coupling, floor=2)
    with pytest.raises(ValueError, match=r"order must have shape \[3\], found \[2\]"):
        IncomingDistribution(base, coupling, order=torch.arange(2))
    with pytest.raises(ValueError, match=r"exists must have shape \[3\], found \[4\]"):
        IncomingDistribution(base, coupling, exists=torch.ones(4, dtype=torch.bool))


def test_senders_that_say_nothing_hold_no_couplings():
    """The same as couplings of zero, in a hundredth of the memory where there are many senders."""
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(2, 3, 5, 3, generator=generator, dtype=torch.float64).softmax(-1)
    exists = torch.rand(2, 3, 5, generator=generator) < 0.8
    silent = IncomingDistribution.edge_by_edge(probability, exists).with_floor(0.1)
    zero = torch.zeros(2, 3, 5, 3, 5, 3, dtype=torch.float64)
    told = IncomingDistribution(probability.log(), zero, exists=exists, floor=0.1)
    assert silent.coupling is None
    uniform = torch.rand(4, 2, 3, 5, generator=generator, dtype=torch.float64)
    types = told.from_uniform(uniform)
    assert torch.equal(silent.from_uniform(uniform), types)
    torch.testing.assert_close(silent.log_prob(types), told.log_prob(types))
    index = torch.tensor([1, 0])
    torch.testing.assert_close(silent[index].double().log_prob(types[:, index]), told[index].log_prob(types[:, index]))
    torch.testing.assert_close(silent.expand((4, 2, 3)).log_prob(types), told.log_prob(types))
