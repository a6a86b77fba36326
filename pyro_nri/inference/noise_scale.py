"""How large the noise of a measurement is: as it is given, or as recordings and laws say."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_nri.inference.noisy_search import noisy_model, search_chains
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes

#: Standard deviations of the measurement that can be squared, and their inverses.
LEAST_NOISE, MOST_NOISE = 1e-100, 1e100
#: Windows that tell of the noise, and their frames: as few as say more than their own initial states, so that close
#: encounters, after which a path that starts a little wrong ends far off, are rare.
NUM_WINDOWS, NUM_FRAMES = 48, 6
#: Chains of each window.
NUM_CHAINS = 4
#: Rounds at most, and the relative change after which no other is made.
NUM_ROUNDS, SMALL_CHANGE = 4, 0.05
#: Noise that is told from none, in scaled units.
LEAST_ESTIMATE = 1e-8


def noise_scale(measurement_noise: float | Sequence[float], num_states: int) -> Tensor:
    """Standard deviations of the measurement of each state variable, float64 ``[D]``.

    Args:
        measurement_noise: one for all state variables or one for each, raw units.
        num_states: D.

    Raises:
        ValueError: they are out of range, or neither one nor D of them.
    """
    given = [measurement_noise] if isinstance(measurement_noise, int | float) else list(measurement_noise)
    for value in given:
        if not 0 < value < math.inf:
            raise ValueError(f"measurement_noise must be a positive standard deviation, found {value:g}")
        if not LEAST_NOISE <= value <= MOST_NOISE:
            raise ValueError(
                f"measurement_noise must be from {LEAST_NOISE:g} to {MOST_NOISE:g}, found {value:g}: beyond, its "
                f"square is no number"
            )
    if len(given) not in (1, num_states):
        raise ValueError(
            f"measurement_noise must be one number or one for each of {num_states} state variables, found {len(given)}"
        )
    return torch.tensor(given, dtype=torch.float64).expand(num_states).clone()


def estimate_noise(
    model: SceneModel, scenes: Scenes, num_hidden: int = 0, *, seed: int, show_progress: bool = False
) -> Tensor:
    """Standard deviation of the measurement of each state variable, the same in all scenes.

    By expectation-maximisation: in each round structures and paths of short windows are drawn from their posterior
    under the present noise; the next is what recordings differ by from these paths, in the middle one of the windows.
    The first guess is the third differences between frames. Where forces change fast (charges), windows of close
    encounters make it too large.

    Args:
        model: trained pair forces.
        scenes: recordings.
        num_hidden: entities without data.
        seed: fixes the draws.
        show_progress: progress bar on standard error.

    Returns:
        Raw units, float64 ``[D]``.

    Raises:
        ValueError: there is no window in which every entity was seen.

    Example:
        >>> from pathlib import Path
        >>> from pyro_nri.learning.checkpoint import load_checkpoint
        >>> from pyro_nri.scenes.simulate import simulate
        >>> laws = load_checkpoint("data/models/springs5.pt")
        >>> noisy = simulate("springs", 2, num_entities=3, num_frames=19, measurement_noise=0.02, seed=1)
        >>> estimate_noise(laws.model, noisy, seed=0).shape
        torch.Size([4])
    """
    windows = _windows(scenes)
    third = windows.trajectory.double().diff(n=3, dim=1).abs()  # [B, 3, N, D]
    present = windows.entity_mask[:, None].expand(third.shape[:-1])
    least = LEAST_ESTIMATE * model.score_scale.double()
    scale = (third[present].median(0).values / (0.6745 * 20**0.5)).maximum(least)  # of normal numbers
    for number in tqdm(range(NUM_ROUNDS), desc="noise", unit="round", disable=not show_progress):
        before, scale = scale, _misfit(model, windows, scale, num_hidden, seed, number).maximum(least)
        if ((scale / before).log().abs() < SMALL_CHANGE).all():
            break
    return scale


def _windows(scenes: Scenes) -> Scenes:
    """Windows in which every entity was seen, spread over the scenes, each with a structure of its own."""
    length = min(NUM_FRAMES, scenes.num_frames)
    parts = scenes.windows(length - 1).share_structure("none")
    seen = (parts.observation_mask | ~parts.entity_mask[:, None]).all((1, 2)).nonzero()[:, 0]
    if not len(seen):
        raise ValueError(
            f"measurement_noise cannot be estimated: no {length} frames in a row have every entity; give it"
        )
    return parts[seen[torch.linspace(0, len(seen) - 1, min(NUM_WINDOWS, len(seen))).round().long()]]


def _misfit(model: SceneModel, windows: Scenes, scale: Tensor, num_hidden: int, seed: int, number: int) -> Tensor:
    """Standard deviation of recordings around drawn paths, ``[D]``."""
    noisy = noisy_model(model, scale, num_hidden)
    prepared = noisy.prepare(windows)
    stream = Stream(seed, keys(windows.group_names), NUM_CHAINS).child(f"noise {number}")
    with torch.no_grad():
        prior = noisy.prior(noisy.edge_mask(prepared))
        structure, value, _ = search_chains(model, noisy, prepared, prior, stream, seed)
        path = noisy.predict(prepared, structure, noisy.unpack(value, windows.num_entities))  # [C, B, T, N, D]
    square = (prepared.trajectory - path).square().mean(0) * windows.entity_mask[:, None, :, None]
    count = windows.num_frames * windows.entity_mask.sum(1)[:, None]  # [B, 1]
    # The median of a sum of squares lies below its mean.
    variance = square.sum((1, 2)) / count / (1 - 2 / (9 * count)) ** 3
    return variance.median(0).values.sqrt()
