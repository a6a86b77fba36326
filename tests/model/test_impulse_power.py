import math
from itertools import product

import numpy as np
import pytest
import torch

from pyro_nri.model.impulse_power import BOUND, believed_table, log_mean_of_codes


def random_table(num_scenes: int, num_types: int, *, seed: int) -> torch.Tensor:
    """Log-likelihoods of all codes of three receivers with two senders each."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(num_scenes, 3, num_types**2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_types", [2, 3])
def test_mean_over_the_types_of_some_edges_by_loops(num_types):
    table = random_table(4, num_types, seed=0)
    over = torch.tensor([[False, False], [True, False], [False, True], [True, True]])[:, None].expand(4, 3, 2)
    found = log_mean_of_codes(table, over)
    codes = list(product(range(num_types), repeat=2))  # first sender first
    for b, j in np.ndindex(4, 3):
        for row, code in enumerate(codes):
            alike = [
                math.exp(float(table[b, j, other]))
                for other, each in enumerate(codes)
                if all(over[b, j, s] or each[s] == code[s] for s in range(2))
            ]
            assert float(found[b, j, row]) == pytest.approx(math.log(sum(alike) / len(alike)), abs=1e-12)


def test_a_single_sender():
    table = torch.tensor([[[0.0, 2.0]]], dtype=torch.float64)
    mean = math.log((1 + math.exp(2)) / 2)
    assert log_mean_of_codes(table, torch.tensor([[[True]]])).tolist() == [[[pytest.approx(mean)] * 2]]
    assert log_mean_of_codes(table, torch.tensor([[[False]]])).tolist() == [[[0.0, 2.0]]]


def test_lost_paths_by_loops():
    """Where a sender is fast in nearly all frames, only its edge is known with probability lost * share ** 16."""
    table = random_table(5, 2, seed=0)
    share = torch.tensor([[0.0, 0.0], [0.4, 0.1], [0.2, 0.9], [1.0, 0.6], [0.95, 0.0]], dtype=torch.float64)
    fast = share[:, None].expand(5, 3, 2)
    covariates = torch.ones(5, 3, 5, dtype=torch.float64)
    weight = torch.tensor([-0.4, 0.2, 0.0, 0.0, 0.0], dtype=torch.float64)
    found = believed_table(table, covariates, weight, torch.tensor(0.3, dtype=torch.float64), fast=fast)
    codes = list(product(range(2), repeat=2))
    for b, j in np.ndindex(5, 3):
        lost = 0.3 * float(share[b].max()) ** 16
        likelihood = [math.exp(float(each) * math.exp(-0.2)) for each in table[b, j]]
        for row, code in enumerate(codes):
            known = [s for s in range(2) if share[b, s] > BOUND]
            alike = [likelihood[r] for r, each in enumerate(codes) if all(each[s] == code[s] for s in known)]
            expected = math.log((1 - lost) * likelihood[row] + lost * sum(alike) / len(alike))
            assert float(found[b, j, row]) == pytest.approx(expected, abs=1e-10)
    plain = believed_table(table, covariates, weight, torch.tensor(0.3, dtype=torch.float64))
    torch.testing.assert_close(found[0], plain[0], rtol=0, atol=1e-14)
    torch.testing.assert_close(found[3:4], plain[3:4], rtol=0, atol=1e-12)
    free = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    believed_table(1000 * table, covariates, weight, free.sigmoid(), fast=fast).log_softmax(-1).sum().backward()
    assert free.grad.isfinite()
