"""Velocities for recordings that hold positions only."""

from dataclasses import replace

import torch
from torch import Tensor

from pyro_nri.scenes.scenes import Scenes


def with_velocities(scenes: Scenes) -> Scenes:
    """The same scenes with a velocity for each state variable, by finite differences of the observed frames.

    With x the position and h the time step, the velocity at frame t is

    - (x[t+1] - x[t-1]) / 2h where both neighbours were observed: error h² x''' / 6, noise of x times 0.7 / h;
    - (-3 x[t] + 4 x[t+1] - x[t+2]) / 2h at the start of a recording or after a gap (mirrored at the end or before a
      gap), if the two next frames were observed: error h² x''' / 3, noise times 2.5 / h;
    - (x[t+1] - x[t]) / h if only one was: error h x'' / 2, noise times 1.4 / h.

    So the order is two but for stretches of two frames, where it is one. A state observed alone, between two gaps, has
    no velocity and becomes unobserved. Where an impulse is shorter than the frames, such as at a wall, no order holds.
    An angle has to be unwrapped; a variable that is constant gets a velocity of 0.

    Args:
        scenes: positions, any D state variables, in raw units.

    Returns:
        Scenes with 2 D state variables: the positions, then the velocities, named "v" + name, in raw units per unit of
        ``time_step``. ``initial_state`` is left out, as its velocities are not known.

    Raises:
        ValueError: a velocity is there already.

    >>> line = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 2, 1)
    >>> scenes = with_velocities(Scenes.from_arrays(line, time_step=0.5, state_names=["x"]))
    >>> scenes.state_names, scenes.trajectory[0, :, 0, 1].tolist()
    (('x', 'vx'), [2.0, 2.0, 2.0, 2.0])
    """
    names = scenes.state_names
    velocity_names = tuple(f"v{name}" for name in names)
    if present := [name for name in names if name in velocity_names]:
        raise ValueError(
            f"scenes must hold positions only, found the velocity {', '.join(present)} among their state "
            f"{', '.join(names)}; give other state_names if these are positions"
        )

    def beside(values: Tensor, by: int) -> Tensor:
        """``values`` ``[B, T, ...]`` of the frame ``by`` later; zeros beyond the recording."""
        shifted = torch.zeros_like(values)
        inside = scenes.num_frames - abs(by)
        if inside > 0:
            shifted[:, max(-by, 0) :][:, :inside] = values[:, max(by, 0) :][:, :inside]
        return shifted

    x, seen = scenes.trajectory, scenes.observation_mask[..., None]
    before, after = beside(seen, -1), beside(seen, 1)
    change = torch.zeros_like(x)  # the velocity times twice the time step
    for side, near in ((1, after), (-1, before)):
        far = near & beside(seen, 2 * side)
        change = torch.where(near, 2 * side * (beside(x, side) - x), change)
        change = torch.where(far, side * (4 * beside(x, side) - 3 * x - beside(x, 2 * side)), change)
    change = torch.where(before & after, beside(x, 1) - beside(x, -1), change)
    known = seen & (before | after)
    trajectory = torch.cat([x, change / (2 * scenes.time_step)], dim=-1)  # [B, T, N, 2 D]
    return replace(
        scenes,
        trajectory=torch.where(known, trajectory, torch.zeros_like(trajectory)),
        observation_mask=known[..., 0],
        state_names=(*names, *velocity_names),
        initial_state=None,
    )
