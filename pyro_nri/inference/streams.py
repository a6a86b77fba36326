"""Random streams keyed by seed, structure, chain, step and slot.

A draw is a hash of its address, so it does not depend on which other structures or chains are computed beside it: any
sharding gives the same bits. The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014: "Fast splittable
pseudorandom number generators" with the constants of Stafford's variant 13), once for each part of the address.
"""

import hashlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15  # SplitMix64's increment: 2**64 divided by the golden ratio, odd
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def keys(names: Sequence[str], device: torch.device | str | None = None) -> Tensor:
    """Stable 64-bit key of each name, long ``[G]``; the same in every process and on every machine.

    Raises:
        ValueError: a name occurs twice (both structures would then get the same random numbers).

    >>> keys(["scene 0"]).tolist() == keys(["another", "scene 0"])[1:].tolist()
    True
    """
    if len(set(names)) < len(names):
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"names must be unique, found {repeated!r} more than once")
    return torch.tensor([_signed(_digest("name", name)) for name in names], dtype=torch.long, device=device)


@dataclass(frozen=True, eq=False)
class Stream:
    """Uniform random numbers for G structures and C chains, by step and slot.

    Attributes:
        seed: any integer.
        keys: key of each structure, long ``[G]``, made by :func:`keys`; draws live on its device.
        num_chains: C.
        first_chain: number of the first chain; chains ``first_chain`` to ``first_chain + C - 1`` are drawn here, so
            chains can be computed in parts too.
    """

    seed: int
    keys: Tensor
    num_chains: int
    first_chain: int = 0

    def __post_init__(self) -> None:
        if self.keys.ndim != 1 or self.keys.dtype != torch.long:
            raise ValueError(f"keys must be long [G], found {self.keys.dtype} {list(self.keys.shape)}")
        if self.num_chains < 1:
            raise ValueError(f"num_chains must be at least 1, found {self.num_chains}")
        if self.first_chain < 0:
            raise ValueError(f"first_chain must be 0 or more, found {self.first_chain}")

    def uniform(self, step: int, num: int) -> Tensor:
        """Independent draws from [0, 1): 0 can occur, 1 cannot; multiples of 2**-53.

        Slot ``i`` has the same value whatever ``num`` is.

        Args:
            step: number of the step, 0 or more.
            num: number of draws for each chain and structure.

        Returns:
            float64 ``[C, G, num]``.

        Raises:
            ValueError: ``step`` or ``num`` is negative.
        """
        if num < 0:
            raise ValueError(f"num must be 0 or more, found {num}")
        at_step = _mix_(self._base + _signed(_step_word(step)))
        slot = torch.arange(1, num + 1, device=self.keys.device) * _signed(_GAMMA)
        bits = _mix_(at_step[..., None] + slot)  # [C, G, num]
        return _shift_right(bits, 11).to(torch.float64).mul_(2.0**-53)

    def shared_uniform(self, step: int) -> float:
        """One draw from [0, 1) for all structures and chains, keyed by seed and step only.

        It picks what all chains and structures of a step have in common, such as the component of a mixture of moves.
        """
        word = _mix(_digest("shared", self.seed) + _step_word(step) & _WORD)
        return (word >> 11) * 2.0**-53

    def one(self) -> "Stream":
        """The stream of the first chain alone."""
        return replace(self, num_chains=1)

    def child(self, purpose: str) -> "Stream":
        """An independent stream for another purpose, with the same structures and chains.

        The child's seed is a hash of this seed and ``purpose``, so children can have children.
        """
        return replace(self, seed=_digest("child", self.seed, purpose))

    @cached_property
    def _base(self) -> Tensor:
        """Hash of seed, structure and chain, long ``[C, G]``."""
        per_structure = _mix_(self.keys ^ _signed(_digest("stream", self.seed)))  # [G]
        chain = torch.arange(self.first_chain + 1, self.first_chain + self.num_chains + 1, device=self.keys.device)
        return _mix_(per_structure + (chain * _signed(_GAMMA))[:, None])  # [C, G]


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator for bulk draws such as the initial weights of a network; the global generator is left alone.

    Different purposes give independent generators: ``generator(seed, "modules")``, ``generator(seed, "batch", epoch)``.
    """
    return torch.Generator().manual_seed(_digest("generator", seed, *purpose) & (_WORD >> 1))


def normals(uniform: Tensor) -> Tensor:
    """Standard normal numbers from twice as many uniform ones (Box and Muller), ``[..., 2 P]`` to ``[..., P]``."""
    first, second = uniform.chunk(2, -1)
    result: Tensor = (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * torch.pi * second)
    return result


def categorical(probability: Tensor, uniform: Tensor) -> Tensor:
    """Draw a class for each row by inverting its cumulative distribution function at a uniform number.

    A class of probability zero is never drawn, and rounding never leads past the last class.

    Args:
        probability: ``[..., R]``, zero or more; rows need not sum to one.
        uniform: ``[...]`` in [0, 1), broadcast against the rows.

    Returns:
        Class numbers ``0..R-1``, long ``[...]``.

    Raises:
        ValueError: a row holds a negative or non-finite number, or sums to zero.

    >>> categorical(torch.tensor([1.0, 0.0, 3.0]), torch.tensor([0.1, 0.25, 0.9])).tolist()
    [0, 2, 2]
    """
    weight = probability.to(torch.float64)
    cumulative = weight.cumsum(-1)
    target = uniform * cumulative[..., -1]
    if target.numel() == 0:
        return torch.empty(target.shape, dtype=torch.long, device=target.device)
    low, high = cumulative[..., -1].aminmax()
    if not (bool(weight.amin() >= 0) and bool(low > 0) and bool(high < float("inf"))):
        raise ValueError("probability must be finite and zero or more, with a positive sum in every row")
    weight = weight.expand(*target.shape, -1)
    cumulative = cumulative.expand(*target.shape, -1).contiguous()
    # The first class whose cumulative probability exceeds the target: it has a positive probability of its own.
    drawn = torch.searchsorted(cumulative, target[..., None], right=True).clamp_(max=weight.shape[-1] - 1)
    if bool(weight.gather(-1, drawn).amin() > 0):
        return drawn[..., 0]
    # Rounding. The target of a tiny total may reach the total, and a parallel cumulative sum may step back: then the
    # first possible class beyond the target, else the last possible one.
    possible = weight > 0
    beyond = possible & (cumulative > target[..., None])
    last = weight.shape[-1] - 1 - possible.flip(-1).to(torch.uint8).argmax(-1)
    return torch.where(beyond.any(-1), beyond.to(torch.uint8).argmax(-1), last)


def _digest(*parts: str | int) -> int:
    """64-bit hash of a sequence of words and integers, unsigned; independent of Python's hash randomisation."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        word = (part if isinstance(part, str) else str(operator.index(part))).encode()
        state.update(len(word).to_bytes(8, "little") + word)  # the length keeps ("ab", "c") apart from ("a", "bc")
    return int.from_bytes(state.digest(), "little")


def _signed(word: int) -> int:
    """The same 64 bits as torch's signed integer."""
    return word - (1 << 64) if word >> 63 else word


def _step_word(step: int) -> int:
    """Hash of a step number; it is added to a stream's base, so no stream is another one shifted by some steps."""
    if step < 0:
        raise ValueError(f"step must be 0 or more, found {step}")
    return _mix((step + 1) * _GAMMA & _WORD)


def _mix(word: int) -> int:
    """SplitMix64's finaliser, a bijection of 64-bit words."""
    word = (word ^ word >> 30) * _FIRST & _WORD
    word = (word ^ word >> 27) * _SECOND & _WORD
    return word ^ word >> 31


def _mix_(words: Tensor) -> Tensor:
    """:func:`_mix` of each entry, in place; long, any shape. Multiplication wraps around as unsigned words do."""
    words.bitwise_xor_(_shift_right(words, 30)).mul_(_signed(_FIRST))
    words.bitwise_xor_(_shift_right(words, 27)).mul_(_signed(_SECOND))
    return words.bitwise_xor_(_shift_right(words, 31))


def _shift_right(words: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch's own shift of signed integers repeats the sign bit."""
    return (words >> bits).bitwise_and_((1 << 64 - bits) - 1)
