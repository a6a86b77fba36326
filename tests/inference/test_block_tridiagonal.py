"""Block tridiagonal normal distributions against dense linear algebra."""

import pytest
import torch

from pyro_nri.inference.block_tridiagonal import colour, factorise, log_volume, solve, whiten


def chains(num_frames=5, size=3, rows=4):
    generator = torch.Generator().manual_seed(0)
    root = torch.zeros(rows, num_frames * size, num_frames * size, dtype=torch.float64)
    for t in range(num_frames):
        at = slice(t * size, (t + 1) * size)
        block = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
        root[:, at, at] = block.triu(1) + torch.diag_embed(block.diagonal(dim1=-2, dim2=-1).abs() + 0.5)
        if t + 1 < num_frames:
            root[:, at, at.stop : at.stop + size] = torch.randn(rows, size, size, generator=generator).double()
    precision = root.mT @ root
    blocks = precision.unflatten(1, (num_frames, size)).unflatten(3, (num_frames, size)).transpose(2, 3)
    number = torch.arange(num_frames)
    return precision, blocks[:, number, number], blocks[:, number[:-1], number[1:]]


def test_means_deviations_and_exponents_are_those_of_dense_matrices():
    precision, diagonal, above = chains()
    factor = factorise(diagonal, above)
    assert not factor.failed.any()
    right = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = torch.linalg.solve(precision, right.flatten(1)[..., None]).view(4, 5, 3)
    torch.testing.assert_close(solve(factor, right), mean)
    every = torch.eye(15, dtype=torch.float64).view(15, 1, 5, 3).expand(15, 4, 5, 3)
    coloured = colour(factor, every).flatten(-2)  # rows: images of unit vectors
    torch.testing.assert_close(torch.einsum("kri,krj->rij", coloured, coloured), torch.linalg.inv(precision))
    torch.testing.assert_close(whiten(factor, colour(factor, right)), right)
    exponent = torch.einsum("ri,rij,rj->r", right.flatten(1), precision, right.flatten(1))
    torch.testing.assert_close(whiten(factor, right).square().sum((-1, -2)), exponent)
    torch.testing.assert_close(2 * log_volume(factor).sum(-1), torch.logdet(precision))


@pytest.mark.parametrize("place", [0, 3])
def test_a_block_that_is_not_positive_is_told(place):
    _, diagonal, above = chains()
    diagonal[2, place, 1, 1] = -1.0
    factor = factorise(diagonal, above)
    assert factor.failed.tolist() == [False, False, True, False]
    assert all(root.isfinite().all() for root in factor.root)
