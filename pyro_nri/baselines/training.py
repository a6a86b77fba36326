"""The gradient loop that baselines with networks share."""

import math
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_nri.inference.streams import generator
from pyro_nri.learning.bouncegrad import PROGRESS_BAR, Diverged
from pyro_nri.learning.pace import cosine_rate, share_done

#: Steps by default.
DEFAULT_STEPS = 1000


class Training(NamedTuple):
    """What a training did.

    Attributes:
        num_steps: gradient steps that were made.
        seconds: how long they took.
        losses: the loss of each step.
    """

    num_steps: int
    seconds: float
    losses: list[float]


def minimise(
    loss: Callable[[list[int], float], Tensor],
    parameters: Iterable[nn.Parameter],
    num_scenes: int,
    *,
    few: Iterable[nn.Parameter] = (),
    batch_size: int,
    learning_rate: float,
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    show_progress: bool = False,
) -> Training:
    """Adam over batches of scenes; its rate falls to one hundredth along a cosine, as that of BounceGrad.

    Args:
        loss: of the numbers of the scenes in a batch, given how far training has gone, 0 to 1.
        parameters: what is trained.
        num_scenes: each is visited once before any is visited again.
        few: numbers, such as scales of a noise, that must keep pace with the networks: ten times their rate.
        batch_size: number of scenes in a batch.
        learning_rate: at the start.
        num_steps: length of the training; by default 1,000.
        minutes: length by the clock instead.
        seed: fixes the batches.
        show_progress: progress bar on standard error.

    Raises:
        ValueError: a number is out of range.
        Diverged: the loss is no longer a number.
    """
    if num_steps is None and minutes is None:
        num_steps = DEFAULT_STEPS
    for name, value in (("batch_size", batch_size), ("num_steps", num_steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    for name, number in (("learning_rate", learning_rate), ("minutes", minutes)):
        if number is not None and not number > 0:
            raise ValueError(f"{name} must be positive, found {number}")
    groups = [{"params": list(parameters), "rate": 1.0}, {"params": list(few), "rate": 10.0}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]], lr=learning_rate)
    trained = [each for group in optimizer.param_groups for each in group["params"]]
    size, losses, started = min(batch_size, num_scenes), list[float](), time.monotonic()
    num_batches = -(-num_scenes // size)
    with tqdm(total=1000, disable=not show_progress, desc="train", bar_format=PROGRESS_BAR) as bar:
        while True:
            progress = share_done(len(losses), num_steps, time.monotonic() - started, minutes)
            if progress >= 1:
                break
            epoch, place = divmod(len(losses), num_batches)
            order = torch.randperm(num_scenes, generator=generator(seed, "batch", epoch))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["rate"] * cosine_rate(progress)
            optimizer.zero_grad()
            found = loss(order[place * size : (place + 1) * size].tolist(), progress)
            found.backward()
            torch.nn.utils.clip_grad_norm_(trained, 10.0)
            optimizer.step()
            losses.append(float(found.detach()))
            if not math.isfinite(losses[-1]):
                raise Diverged(f"training broke down: the loss is {losses[-1]}; a smaller learning rate may help")
            bar.n = round(1000 * progress)
            if len(losses) % 10 == 0:
                bar.set_postfix_str(f"step {len(losses)}, loss {losses[-1]:.3f}")
    return Training(len(losses), time.monotonic() - started, losses)
