"""Joint distributions of a receiver's incoming edges that draws teach: trees of dependence."""

import torch
from torch import Tensor

from pyro_nri.inference.incoming import IncomingDistribution

#: Draws that all combinations of two types are given together before the first real one.
PSEUDO_DRAWS = 1.0


def fit_tree(types: Tensor, exists: Tensor, num_edge_types: int) -> IncomingDistribution:
    """The tree-shaped distribution that makes draws most probable (Chow & Liu 1968).

    Senders are joined into a tree of largest mutual information; each sender's type then depends on that of the one
    which it was joined to.

    Args:
        types: of the edges into receivers in S draws, long ``[S, *batch, N - 1]``.
        exists: which senders exist, bool ``[*batch, N - 1]``.
        num_edge_types: K.

    Example:
        >>> both = torch.tensor([[0, 0], [1, 1]]).repeat(50, 1)
        >>> tree = fit_tree(both, torch.ones(2, dtype=torch.bool), 2)
        >>> tree.log_prob(torch.tensor([[0, 0], [0, 1], [1, 1]])).exp().round(decimals=1).tolist()
        [0.5, 0.0, 0.5]
    """
    size = (exists.shape[-1], num_edge_types)  # M, K
    count = torch.zeros(*exists.shape[:-1], *2 * [size[0] * size[1]], dtype=torch.float64, device=exists.device)
    for each in types.unbind(0):
        one_hot = torch.nn.functional.one_hot(each.long(), num_edge_types).to(count).flatten(-2)
        count += one_hot[..., :, None] * one_hot[..., None, :]
    pair = count.unflatten(-1, size).unflatten(-3, size).transpose(-2, -3)  # [*batch, M (d), M (e), K (of d), K (of e)]
    pair = (pair + PSEUDO_DRAWS / num_edge_types**2) / (len(types) + PSEUDO_DRAWS)
    first, second = pair.sum(-1, keepdim=True), pair.sum(-2, keepdim=True)
    information = (pair * (pair / (first * second)).log()).sum((-1, -2))
    joined = exists[..., :, None] & exists[..., None, :]
    order, parent = _largest_tree(torch.where(joined, information, -torch.ones_like(information)), exists)
    number = torch.arange(size[0], device=types.device)
    is_parent = (number == parent[..., None]) & joined & (number != number[:, None])  # [*batch, M (e), M (d)]
    share = first.squeeze(-1).diagonal(dim1=-3, dim2=-2).mT  # [*batch, M, K]
    base = torch.where(is_parent.any(-1)[..., None], torch.zeros_like(share), share.log())
    given = (pair / first).log().movedim((-4, -3, -2, -1), (-2, -4, -1, -3))  # [*batch, M (e), K, M (d), K]
    coupling = torch.where(is_parent[..., :, None, :, None], given, torch.zeros_like(given))
    return IncomingDistribution(base, coupling, exists=exists, order=order, validate_args=False)


def _largest_tree(weight: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """The spanning trees of largest weight by Prim's algorithm, from the first member that exists.

    Args:
        weight: of each pair, ``[*batch, M, M]``.
        exists: bool ``[*batch, M]``.

    Returns:
        Members in the order in which they were joined and what each was joined to (the first one: itself), both long
        ``[*batch, M]``.
    """
    batch, size = weight.shape[:-2], weight.shape[-1]
    weight, root = weight.reshape(-1, size, size), exists.reshape(-1, size).to(torch.uint8).argmax(-1)
    row = torch.arange(len(weight), device=weight.device)
    inside = torch.zeros(len(weight), size, dtype=torch.bool, device=weight.device)
    inside[row, root] = True
    parent, order = root[:, None].repeat(1, size), [root]
    for _ in range(size - 1):
        possible = inside[:, :, None] & ~inside[:, None, :]
        best = torch.where(possible, weight, -torch.inf).flatten(1).argmax(-1)
        new = best % size
        parent[row, new] = best // size
        inside[row, new] = True
        order.append(new)
    return torch.stack(order, -1).view(*batch, size), parent.view(*batch, size)
