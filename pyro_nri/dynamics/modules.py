"""Small neural networks, held as a batched library: one stack of weights for all modules of a kind."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ModuleLibrary(nn.Module):
    """``num_modules`` multi-layer perceptrons of one shape, evaluated together.

    Args:
        num_modules: how many modules the library holds, K.
        sizes: layer widths ``[in, hidden, ..., out]``.
        activate_output: whether the last layer is followed by ReLU too (the paper's edge modules) or is linear.
        generator: source of the initial weights.

    Raises:
        ValueError: no module, fewer than two sizes, or a size below 1.
    """

    def __init__(
        self,
        num_modules: int,
        sizes: Sequence[int],
        *,
        activate_output: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        if num_modules < 1:
            raise ValueError(f"num_modules must be at least 1, found {num_modules}")
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(f"sizes must be at least two positive widths, found {list(sizes)}")
        self.num_modules = num_modules
        self.activate_output = activate_output
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for size_in, size_out in pairwise(sizes):
            bound = math.sqrt(6 / (size_in + size_out))  # Glorot, as in NRI's released code
            weight = torch.rand(num_modules, size_in, size_out, generator=generator) * 2 * bound - bound
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(num_modules, size_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Every module on the same inputs: ``[*batch, in]`` to ``[*batch, K, out]``."""
        rows = inputs.reshape(1, -1, inputs.shape[-1])  # [1, R, in]
        hidden = rows.expand(self.num_modules, -1, -1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias[:, None, :], hidden, weight)  # [K, R, out]
            if layer + 1 < len(self.weights) or self.activate_output:
                hidden = torch.relu(hidden)
        return hidden.movedim(0, 1).reshape(*inputs.shape[:-1], self.num_modules, hidden.shape[-1])

    def select(self, inputs: Tensor, module: Tensor) -> Tensor:
        """One module on each input: ``[*batch, in]`` and module numbers ``[*batch]`` to ``[*batch, out]``.

        A negative module number gives zeros.
        """
        rows = inputs.reshape(-1, inputs.shape[-1])
        number = module.reshape(-1)
        result = rows.new_zeros(len(rows), self.weights[-1].shape[-1])
        for k in range(self.num_modules):
            (chosen,) = torch.nonzero(number == k, as_tuple=True)
            if len(chosen) == 0:
                continue
            hidden = rows[chosen]
            for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                hidden = torch.addmm(bias[k], hidden, weight[k])
                if layer + 1 < len(self.weights) or self.activate_output:
                    hidden = torch.relu(hidden)
            result = result.index_copy(0, chosen, hidden)
        return result.reshape(*inputs.shape[:-1], -1)
