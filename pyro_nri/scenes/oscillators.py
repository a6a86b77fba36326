"""Phase oscillators that pull on each other's phase: the Kuramoto model, after the generator of NRI and ACD.

The law is that of Kipf et al. (2018), "Neural Relational Inference for Interacting Systems", and of Löwe et al. (2022),
"Amortized Causal Discovery"::

    dphi_i / dt = omega_i + sum_j k_ij sin(phi_j - phi_i)

over the senders j of receiver i, with k_ij 0 or 1, natural frequencies omega drawn from U[1, 10) and starting phases
from U[0, 2 pi). It is solved by classical Runge-Kutta steps of 0.01, of which every tenth is a frame. Unlike that of
particles, frame 0 is the drawn start itself: so it is in ACD's files, where linked phases agree no better than others
at frame 0, and would do so visibly one frame later.

Stiffness: the coupling is a sum, not a mean, so phases that move together pull each other back at a rate of up to N,
while free ones turn at 1 to 10. At N = 5 nothing is stiff: 99 frames of 100 scenes differ by 1.6e-7 (median scene) to
2e-6 (worst) from those of steps four times as small. Steps of 0.01 would be coarse for N = 100 (errors of 0.4) and
unstable from N = 280 on, so a step is cut into equal parts where more than 20 others can pull (errors of 2e-4 at
N = 100 and 49 frames); up to N = 21 it is the generator's.

Inside, scenes stand last: phases are ``[N, B]``.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_nri.scenes.systems import Floats, Setting

STATE_NAMES = ("phi", "vphi", "omega")
"""Phase (unwrapped, radians), its rate of change at the frame, and the known constant natural frequency."""
SUBSTEP = 0.01
"""Time of one Runge-Kutta step."""
FRAME_SPACING = 10
"""Default number of steps between two frames."""
SLOWEST, FASTEST = 1.0, 10.0
"""Range of the natural frequencies, radians per unit of time."""
COUPLING_STRENGTH = 1.0
_MOST_SENDERS = 20  # for one undivided step


def coupling_force(phase_difference: ArrayLike, strength: float = COUPLING_STRENGTH) -> Floats:
    """What a coupled sender adds to the rate of its receiver's phase: ``strength * sin(phase_difference)``.

    Args:
        phase_difference: phase of the sender minus phase of the receiver, radians, any shape.
        strength: 1 for a coupled pair, 0 for any other.
    """
    return strength * np.sin(np.asarray(phase_difference, dtype=np.float64))


def kuramoto(generators: Sequence[np.random.Generator], setting: Setting) -> tuple[Floats, NDArray[np.int64]]:
    """Trajectory ``[B, T, N, 3]`` and edge types ``[B, N, N]`` (row = sender) of oscillators: 1 = coupled, 0 = not."""
    num_entities, num_scenes = setting.num_entities, len(generators)
    uniform = np.empty((num_scenes, num_entities + 2, num_entities))
    for generator, block in zip(generators, uniform, strict=True):
        generator.random(out=block)
    edge_type = (uniform[:, :num_entities] < setting.link_probability).astype(np.int64)
    if setting.symmetric:
        upper = np.triu(edge_type, 1)
        edge_type = upper + upper.transpose(0, 2, 1)
    edge_type[:, range(num_entities), range(num_entities)] = 0
    strength = np.ascontiguousarray(COUPLING_STRENGTH * edge_type.transpose(1, 2, 0))  # [sender, receiver, B]
    omega = np.ascontiguousarray(SLOWEST + (FASTEST - SLOWEST) * uniform[:, num_entities].T)
    phase = np.ascontiguousarray(2 * np.pi * uniform[:, num_entities + 1].T)
    num_parts = math.ceil((num_entities - 1) / _MOST_SENDERS)
    frames = np.empty((num_scenes, setting.num_frames, num_entities, 3))
    for frame in range(setting.num_frames):
        for _ in range(num_parts * setting.frame_spacing if frame else 0):
            phase = _runge_kutta(phase, omega, strength, SUBSTEP / num_parts)
        frames[:, frame, :, 0] = phase.T
        frames[:, frame, :, 1] = _rate(phase, omega, strength).T
        frames[:, frame, :, 2] = omega.T
    return frames, edge_type


def _runge_kutta(phase: Floats, omega: Floats, strength: Floats, step: float) -> Floats:
    first = _rate(phase, omega, strength)
    second = _rate(phase + step / 2 * first, omega, strength)
    third = _rate(phase + step / 2 * second, omega, strength)
    fourth = _rate(phase + step * third, omega, strength)
    return phase + step / 6 * (first + 2 * (second + third) + fourth)


def _rate(phase: Floats, omega: Floats, strength: Floats) -> Floats:
    """Rate of each phase ``[N, B]``.

    By sin(a - b) = sin a cos b - cos a sin b: N sines and cosines instead of N². Senders are added one after the other,
    as the sum must not depend on the number of scenes.
    """
    sine, cosine = np.sin(phase), np.cos(phase)
    total_sine, total_cosine = np.zeros_like(phase), np.zeros_like(phase)
    for sender, to_receivers in enumerate(strength):
        total_sine += to_receivers * sine[sender]
        total_cosine += to_receivers * cosine[sender]
    return omega + (total_sine * cosine - total_cosine * sine)
