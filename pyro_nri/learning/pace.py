"""How far a training of given length has gone, and how fast it learns then."""

import math


def share_done(num_done: int, num_steps: int | None, seconds: float, minutes: float | None) -> float:
    """How far training has gone, 0 to 1: in steps or by the clock, whichever is further.

    >>> share_done(10, 40, 30.0, 1.0)
    0.5
    """
    by_steps = 0.0 if num_steps is None else num_done / num_steps
    by_clock = 0.0 if minutes is None else seconds / (60 * minutes)
    return min(1.0, max(by_steps, by_clock))


def cosine_rate(share: float) -> float:
    """Learning rate relative to that at the start: falls to one hundredth along a cosine.

    >>> [round(cosine_rate(share), 3) for share in (0.0, 0.5, 1.0)]
    [1.0, 0.505, 0.01]
    """
    return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2
