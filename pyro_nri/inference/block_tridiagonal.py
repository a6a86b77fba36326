"""Normal distributions of states in a row, each tied to its neighbours alone: block tridiagonal precisions.

Everything costs O(T) and is done for many rows of states at once. The Cholesky factor of such a precision is block
bidiagonal; solving with it is the smoother of Rauch, Tung and Striebel in information form, drawing with it is forward
filtering, backward sampling.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Factor(NamedTuple):
    """Upper Cholesky factor ``U`` of precisions ``U' U``.

    Attributes:
        root: transposed blocks on the diagonal, lower triangular, T of ``[*batch, P, P]``.
        link: blocks right of them, T - 1 of ``[*batch, P, P]``.
        failed: whether a block was not positive, bool ``[*batch]``; its diagonal stands for it.
    """

    root: tuple[Tensor, ...]
    link: tuple[Tensor, ...]
    failed: Tensor


def factorise(diagonal: Tensor, above: Tensor) -> Factor:
    """Factorise precisions.

    Args:
        diagonal: blocks ``[*batch, T, P, P]``.
        above: blocks right of the diagonal, ``[*batch, T - 1, P, P]``.
    """
    roots: list[Tensor] = []
    links: list[Tensor] = []
    left = diagonal[..., 0, :, :]
    failed = torch.zeros(left.shape[:-2], dtype=torch.bool)
    for place in range(diagonal.shape[-3]):
        root, info = torch.linalg.cholesky_ex(left)
        bad = (info != 0) | ~root.isfinite().all(-1).all(-1)
        if bool(bad.any()):
            own = diagonal[..., place, :, :].diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
            root = torch.where(bad[..., None, None], torch.diag_embed(own), root)
            failed = failed | bad
        roots.append(root)
        if place + 1 < diagonal.shape[-3]:
            links.append(torch.linalg.solve_triangular(root, above[..., place, :, :], upper=False))
            left = diagonal[..., place + 1, :, :] - links[-1].mT @ links[-1]
    return Factor(tuple(roots), tuple(links), failed)


def solve(factor: Factor, right: Tensor) -> Tensor:
    """The mean of the normal distribution with linear term ``right`` ``[*batch, T, P]``."""
    parts: list[Tensor] = []
    for place, root in enumerate(factor.root):
        rest = right[..., place, :, None]
        if place > 0:
            rest = rest - factor.link[place - 1].mT @ parts[-1]
        parts.append(torch.linalg.solve_triangular(root, rest, upper=False))
    return colour(factor, torch.stack(parts, -3).squeeze(-1))


def colour(factor: Factor, white: Tensor) -> Tensor:
    """Deviations from the mean made of standard normal numbers ``[*batch, T, P]``: ``U⁻¹ white``."""
    parts: list[Tensor] = []
    for place in reversed(range(len(factor.root))):
        rest = white[..., place, :, None]
        if parts:
            rest = rest - factor.link[place] @ parts[-1]
        parts.append(torch.linalg.solve_triangular(factor.root[place].mT, rest, upper=True))
    return torch.stack(parts[::-1], -3).squeeze(-1)


def whiten(factor: Factor, deviation: Tensor) -> Tensor:
    """The inverse of :func:`colour`, ``U deviation``; half its squares are the exponent of the density."""
    root, vector = torch.stack(factor.root, -3), deviation[..., None]
    result = root.mT @ vector
    if factor.link:
        step = torch.stack(factor.link, -3) @ vector[..., 1:, :, :]
        result = result + torch.nn.functional.pad(step, (0, 0, 0, 0, 0, 1))
    return result.squeeze(-1)


def log_volume(factor: Factor) -> Tensor:
    """Shares of T states in half the log determinant of precisions, ``[*batch, T]``."""
    return torch.stack([root.diagonal(dim1=-2, dim2=-1).log().sum(-1) for root in factor.root], -1)
