"""Constants between raw and scaled units: fitted once on the training scenes, kept in the model file."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_nri.scenes.scenes import Scenes

# States beyond this many half ranges are far; all within this share of a half range are too near one another.
_FAR, _NEAR, _FEW = 3.0, 0.01, 0.01


class Scaling(NamedTuple):
    """``scaled = (raw - offset) / scale``; both float64 ``[D]``."""

    offset: Tensor
    scale: Tensor


def state_groups(state_names: tuple[str, ...]) -> list[list[int]]:
    """State variables that share one scale: all positions together, all their velocities together, others alone.

    A velocity is a name ``v`` + the name of another state variable.

    >>> state_groups(("x", "y", "vx", "vy"))
    [[0, 1], [2, 3]]
    """
    velocities = [d for d, name in enumerate(state_names) if name.startswith("v") and name[1:] in state_names]
    positions = [d for d, name in enumerate(state_names) if f"v{name}" in state_names]
    others = [[d] for d in range(len(state_names)) if d not in velocities + positions]
    return [group for group in (positions, velocities) if group] + others


def fit_scaling(scenes: Scenes) -> Scaling:
    """Min-max constants that bring the observed states to [-1, 1], one pair for each group of state variables.

    NRI's scaling: one minimum and maximum of the positions (all axes together) and one of the velocities.
    """
    observed = scenes.trajectory[scenes.observation_mask].double()  # [R, D]
    low, high = observed.min(0).values, observed.max(0).values
    for group in state_groups(scenes.state_names):
        low[group], high[group] = low[group].min(), high[group].max()
    scale = (high - low) / 2
    return Scaling((high + low) / 2, torch.where(scale > 0, scale, torch.ones_like(scale)))


def beyond_training(scaling: Scaling, scenes: Scenes) -> str | None:
    """A sentence if states lie far outside those of the training scenes, as they do in other units, else None.

    Far is more than three half ranges from the middle for more than one state in a hundred, or all states within a
    hundredth of the range in every variable. Laws say nothing there, and their posterior can look as sure as any.

    Args:
        scaling: :func:`fit_scaling` of the training scenes.
        scenes: others; of those with other state variables nothing is said.
    """
    observed = scenes.trajectory[scenes.observation_mask].double().cpu()  # [R, D]
    if len(observed) == 0 or observed.shape[1] != len(scaling.scale):
        return None
    offset, scale = scaling.offset.cpu(), scaling.scale.cpu()
    scaled = (observed - offset) / scale
    share = (scaled.abs() > _FAR).double().mean(0)
    small = bool((scaled.max(0).values - scaled.min(0).values < 2 * _NEAR).all()) and scenes.num_frames > 1
    if not small and float(share.max()) <= _FEW:
        return None
    worst = int(share.argmax())
    low, high = float(observed[:, worst].min()), float(observed[:, worst].max())
    from_, to = float((offset - scale)[worst]), float((offset + scale)[worst])
    return (
        f"States are far from those that the model was trained on: {scenes.state_names[worst]} runs from {low:.3g} to "
        f"{high:.3g}, in training from {from_:.3g} to {to:.3g}. The units may differ; the learned modules say nothing "
        f"there."
    )


def fit_standardisation(scenes: Scenes) -> Scaling:
    """Mean and standard deviation of each group of state variables: scales of network inputs."""
    observed = scenes.trajectory[scenes.observation_mask].double()  # [R, D]
    mean, square = observed.mean(0), observed.square().mean(0)
    for group in state_groups(scenes.state_names):
        mean[group], square[group] = mean[group].mean(), square[group].mean()
    variance = square - mean.square()
    return Scaling(mean, torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance)))


def fit_change_scale(scenes: Scenes) -> Tensor:
    """Root mean square of the frame-to-frame change of each group of state variables, raw units, float64 ``[D]``."""
    change = (scenes.trajectory[:, 1:] - scenes.trajectory[:, :-1]).double()
    change = change[scenes.transition_mask]  # [R, D]
    if len(change) == 0:
        raise ValueError("no transition is fully observed, at least one is needed to fit scales")
    square = change.square().mean(0)
    for group in state_groups(scenes.state_names):
        square[group] = square[group].mean()
    return torch.where(square > 0, square.sqrt(), torch.ones_like(square))


class StateUnits(nn.Module):
    """Raw states to what a network reads: standardised; with the typical change from frame to frame beside.

    Args:
        state_size: D.
    """

    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.zeros(state_size))
        self.register_buffer("scale", torch.ones(state_size))
        self.register_buffer("change_scale", torch.ones(state_size))
        self.offset: Tensor
        self.scale: Tensor
        self.change_scale: Tensor

    def fit(self, scenes: Scenes) -> None:
        """Set the constants from training scenes."""
        offset, scale = fit_standardisation(scenes)
        self.offset.copy_(offset)
        self.scale.copy_(scale)
        self.change_scale.copy_(fit_change_scale(scenes))

    def forward(self, state: Tensor) -> Tensor:
        """Raw states ``[*batch, D]`` in network units."""
        return (state - self.offset) / self.scale
