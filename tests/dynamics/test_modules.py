"""The batched module library against chains of ``torch.nn.Linear``."""

import pytest
import torch
from torch import nn

from pyro_nri.dynamics.modules import ModuleLibrary


def library(sizes=(3, 5, 4, 2), num_modules=3, activate_output=False, seed=0):
    made = ModuleLibrary(
        num_modules, sizes, activate_output=activate_output, generator=torch.Generator().manual_seed(seed)
    ).double()
    with torch.no_grad():  # biases start at zero: give them values, so that a forgotten bias shows
        for bias in made.biases:
            bias.copy_(torch.randn(bias.shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.double))
    return made


def chain_of_linear(made, k):
    """Module ``k`` as ``nn.Linear`` layers; ``nn.Linear`` keeps its weight transposed."""
    layers = []
    for number, (weight, bias) in enumerate(zip(made.weights, made.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2]).double()
        with torch.no_grad():
            linear.weight.copy_(weight[k].T)
            linear.bias.copy_(bias[k])
        layers.append(linear)
        if number + 1 < len(made.weights) or made.activate_output:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize("activate_output", [True, False])
@pytest.mark.parametrize("sizes", [(3, 2), (3, 5, 2), (3, 5, 4, 2)])
def test_forward_is_a_chain_of_linear_layers(sizes, activate_output):
    made = library(sizes, activate_output=activate_output)
    inputs = torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    outputs = made(inputs)
    assert outputs.shape == (2, 7, 3, 2)
    for k in range(3):
        torch.testing.assert_close(outputs[..., k, :], chain_of_linear(made, k)(inputs), rtol=1e-12, atol=1e-12)


def test_select_is_forward_gathered_and_negative_numbers_give_zeros():
    made = library()
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(4, 6, 3, generator=generator, dtype=torch.double)
    module = torch.randint(-1, 3, (4, 6), generator=generator)
    assert set(module.flatten().tolist()) == {-1, 0, 1, 2}
    selected, every = made.select(inputs, module), made(inputs)
    for a in range(4):
        for b in range(6):
            k = int(module[a, b])
            wanted = every[a, b, k] if k >= 0 else torch.zeros(2, dtype=torch.double)
            torch.testing.assert_close(selected[a, b], wanted, rtol=1e-12, atol=1e-12)


def test_select_without_one_module_used():
    made = library()
    inputs = torch.ones(5, 3, dtype=torch.double)
    torch.testing.assert_close(made.select(inputs, torch.ones(5, dtype=torch.long)), made(inputs)[:, 1])


def test_gradients_of_select_reach_only_the_chosen_modules():
    made = library()
    made.select(torch.ones(5, 3, dtype=torch.double), torch.tensor([0, 2, 2, 0, -1])).sum().backward()
    for parameter in made.parameters():
        assert not parameter.grad[1].any()
    assert made.biases[-1].grad[:, 0].tolist() == [2, 0, 2]


def test_initial_weights_come_from_the_generator_and_within_glorots_bound():
    before = torch.get_rng_state()
    one, same, other = library(seed=1), library(seed=1), library(seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(one.weights, same.weights, other.weights, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
        bound = (6 / (a.shape[1] + a.shape[2])) ** 0.5
        assert a.abs().max() <= bound
        assert a.abs().max() > 0.5 * bound


@pytest.mark.parametrize(
    ("num_modules", "sizes", "message"),
    [(0, [2, 2], "num_modules must be at least 1"), (1, [2], "sizes must be"), (1, [2, 0], "sizes must be")],
)
def test_bad_arguments(num_modules, sizes, message):
    with pytest.raises(ValueError, match=message):
        ModuleLibrary(num_modules, sizes, activate_output=True, generator=torch.Generator())
