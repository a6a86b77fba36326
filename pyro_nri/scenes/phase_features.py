"""Oscillators as the feature arrays of ACD's generator, ``feat_*`` and ``edges_*`` in one folder, and back.

``feat_{split}_{system}.npy`` is ``[sims, n, T, 4]``; its four features are, for each oscillator of a scene::

    0  dphi/dt, min-max scaled to [-1, 1]; 0 for an oscillator without incoming links, whose dphi/dt is constant
    1  sin phi
    2  phi (unwrapped), min-max scaled to [-1, 1]
    3  omega, with its range [1, 10) scaled to [-1, 1)

What its files tell beyond that: frame 0 is the drawn start; dphi/dt is the forward difference over one step of the
generator, a tenth of a frame; extremes are those of each oscillator over the 100 frames that are simulated, of which
the first 49 or 99 are kept, so a file need not reach +1. ``edges_{split}_{system}.npy`` is ``[sims, n, n]`` with
row = receiver: k_ij multiplies sin(phi_j - phi_i) in the equation of i. Those at hand are symmetric and cannot tell.

Scaling loses nothing: each feature is an increasing straight line of its variable, and sin phi says which one.
"""

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.nri_arrays import TIME_STEP, edge_matrix, load_array, read_edges
from pyro_nri.scenes.oscillators import FASTEST, SLOWEST, STATE_NAMES
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.systems import Floats

DIFFERENCE = 0.1
"""Length of the forward difference that stands for dphi/dt in the files, in frames."""
_WINDOW = 5  # frames of one local polynomial
_LEAST_FRAMES = 5
_LARGEST_MISFIT = 1e-3  # of sin phi; the files are of single precision
_REWEIGHTINGS = 10
_TINY = 1e-7  # radians per frame; what single precision leaves in the best of cases
_LEAST_SLOPES = 128
_CANDIDATES = 4
_ROWS = 2048  # oscillators at a time


def phase_features(scenes: Scenes) -> NDArray[np.float32]:
    """The four features of ACD's files, float32 ``[B, N, T, 4]``.

    Extremes are those of the frames at hand. To get ACD's own view, simulate 100 frames and cut afterwards::

        phase_features(simulate("kuramoto", 200, num_frames=100, seed=0))[:, :, :49]

    The forward difference is that of a local polynomial through the phi and dphi/dt of five frames. An oscillator
    without incoming links is found by the true ``edge_type`` if that is known, else by its constant dphi/dt.

    Args:
        scenes: state phi, vphi, omega, without padding and nothing missing.

    Raises:
        ValueError: the state is another one, or something is padded or missing.

    >>> from pyro_nri.scenes.simulate import simulate
    >>> phase_features(simulate("kuramoto", 2, num_frames=6, seed=0)).shape
    (2, 5, 6, 4)
    """
    if scenes.state_names != STATE_NAMES:
        raise ValueError(f"phase features are of the state phi, vphi, omega, found {', '.join(scenes.state_names)}")
    if not scenes.observation_mask.all():
        raise ValueError("phase features cannot hold padded entities or missing frames, these scenes have some")
    phase, rate, omega = scenes.trajectory.double().cpu().numpy().transpose(3, 0, 2, 1)  # each [B, N, T]
    of_phase, of_rate = _local_weights(scenes.num_frames, 0, DIFFERENCE, _WINDOW)
    difference = phase @ of_phase.T / scenes.time_step + rate @ of_rate.T
    if scenes.edge_type is None:
        still = np.ptp(rate, axis=-1) < 1e-9 * np.abs(rate).max(-1)
    else:
        still = ~(edges.to_matrix(scenes.edge_type.cpu()) > 0).any(1).numpy()
    scaled = np.where(still[..., None], 0, _scaled(difference))
    features = [scaled, np.sin(phase), _scaled(phase), 2 * (omega - SLOWEST) / (FASTEST - SLOWEST) - 1]
    return np.stack(features, axis=-1).astype(np.float32)


def from_phase_features(features: ArrayLike, *, time_step: float = TIME_STEP) -> Floats:
    """Phases, their rates and natural frequencies in raw units from the features of :func:`phase_features`.

    For each oscillator: phi = a + b f with the a and b > 0 for which sin phi is right, found by a search over all b for
    which no phase turns by half a turn or more between two frames, then by least squares; phi starts in [0, 2 pi).
    The forward difference of phi is c + d g, with the c and d that agree best with local polynomials through the phases
    and the differences of neighbouring frames (least squares, frames weighted down where they disagree); of such
    polynomials dphi/dt at the frame is taken too. Where g is constant, dphi/dt is the mean slope of phi. omega follows
    from its fixed range.

    From noise-free features of single precision, of 5 oscillators over 49 frames, phi comes out to 2e-6. The error of
    dphi/dt is 4e-5 (root of mean square); of one oscillator in a hundred it exceeds 0.002 at some frame, mostly at the
    ends. Turns that are sudden for frames of 0.1 are harder: with 20 oscillators the error of dphi/dt is 1e-3.

    Args:
        features: ``[B, N, T, 4]``, at least five frames, the extremes being those of any longer stretch.
        time_step: time between two frames.

    Returns:
        Trajectory ``[B, T, N, 3]`` with state phi (radians, unwrapped), vphi, omega (radians per unit of time).

    Raises:
        ValueError: the shape is another one, a number is not finite, or no phase has this sine.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 4 or array.shape[3] != 4 or array.shape[2] < _LEAST_FRAMES:
        raise ValueError(
            f"features must have shape [B, N, T, 4] with at least {_LEAST_FRAMES} frames, found {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError("features must be finite, some are not")
    num_scenes, num_entities, num_frames, _ = array.shape
    rows = array.reshape(-1, num_frames, 4)
    parts = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    phase = np.concatenate([_phase(part[:, :, 1], part[:, :, 2]) for part in parts])
    misfit = np.abs(np.sin(phase) - rows[:, :, 1]).max(-1)
    if (worst := misfit.max()) > _LARGEST_MISFIT:
        b, n = divmod(int(misfit.argmax()), num_entities)
        raise ValueError(
            f"features 1 and 2 of scene {b}, oscillator {n} must be the sine of a phase and that phase scaled, found "
            f"no phase with a sine nearer than {worst:.2g}"
        )
    rate = _rate(phase, rows[:, :, 0]) / time_step
    omega = SLOWEST + (FASTEST - SLOWEST) * (rows[:, :, 3] + 1) / 2
    state = np.stack([phase, rate, omega], axis=-1).reshape(num_scenes, num_entities, num_frames, 3)
    return np.ascontiguousarray(state.transpose(0, 2, 1, 3))


def read_phase_features(
    folder: str | os.PathLike[str],
    *,
    system: str = "kuramoto5",
    split: str = "train",
    rows: str = "receiver",
    time_step: float = TIME_STEP,
) -> Scenes:
    """Read the feature and edge arrays of one split as scenes in raw units.

    Args:
        folder: where the files are.
        system: the last part of the file names.
        split: the middle part of the file names: train, valid or test.
        rows: what a row of ``edges`` is, "receiver" (the generator) or "sender".
        time_step: time between two frames, which the files do not hold.

    Returns:
        Scenes with state phi, vphi, omega (see :func:`from_phase_features`) and true ``edge_type``, named "test-17".

    Raises:
        ValueError: a file is missing or damaged, shapes do not fit together, or the numbers are no such features.
    """
    file = f"feat_{split}_{system}.npy"
    features = load_array(Path(folder) / file, _WANTED)
    if features.ndim != 4 or features.shape[3] != 4:
        raise ValueError(f"{file} must have shape [sims, n, T, 4], found {list(features.shape)}")
    num_scenes, num_entities = features.shape[:2]
    edge_type = read_edges(Path(folder), split, system, rows, (num_scenes, num_entities), "feat")
    try:
        return Scenes.from_arrays(
            from_phase_features(features, time_step=time_step),
            time_step=time_step,
            scene_names=[f"{split}-{scene}" for scene in range(num_scenes)],
            state_names=STATE_NAMES,
            edge_type=edge_type,
        )
    except ValueError as error:
        raise ValueError(f"{file} in {str(folder)!r}: {error}") from error


_WANTED = (
    "phase features are a folder with feat_SPLIT_SYSTEM.npy, [sims, n, T, 4], and edges_SPLIT_SYSTEM.npy, [sims, n, n]"
)


def write_phase_features(
    scenes: Scenes, folder: str | os.PathLike[str], *, system: str, split: str, rows: str = "receiver"
) -> None:
    """Write the feature and edge arrays of one split; the counterpart of :func:`read_phase_features`.

    Args:
        scenes: scenes with state phi, vphi, omega, true ``edge_type``, no padding and nothing missing.
        folder: where to write; made if it does not exist.
        system: the last part of the file names.
        split: the middle part of the file names.
        rows: what a row of ``edges`` is to be, "receiver" (the generator) or "sender".

    Raises:
        ValueError: the format cannot hold these scenes, or the files cannot be written.
    """
    arrays = {"feat": phase_features(scenes), "edges": edge_matrix(scenes, rows).astype(np.int64)}
    for part, array in arrays.items():
        with written_beside(Path(folder) / f"{part}_{split}_{system}.npy") as beside, open(beside, "wb") as file:
            np.save(file, np.ascontiguousarray(array))


def _scaled(values: Floats) -> Floats:
    """``values`` ``[..., T]`` with their range scaled to [-1, 1]; 0 where they are constant."""
    low, size = values.min(-1, keepdims=True), np.ptp(values, axis=-1, keepdims=True)
    return np.where(size > 0, 2 * (values - low) / np.where(size > 0, size, 1) - 1, 0)


def _phase(sine: Floats, scaled: Floats) -> Floats:
    """Phases ``[R, T]`` that are increasing lines of ``scaled`` and have the sines ``sine``."""
    num_rows, num_frames = sine.shape
    largest_step = np.abs(np.diff(scaled, axis=-1)).max(-1)
    # The residual is a narrow valley around the right slope: three points for each half turn of the whole stretch.
    num_slopes = max(3 * num_frames, _LEAST_SLOPES)
    spacing = np.pi / np.where(largest_step > 0, largest_step, 1) / num_slopes
    turn = np.exp(1j * spacing[:, None] * scaled).astype(np.complex64)
    wave = np.ones_like(turn)
    weight = sine.astype(np.float32)
    residual = np.empty((num_slopes, num_rows))
    offset = np.empty((num_slopes, num_rows))
    for k in range(num_slopes):
        wave *= turn  # exp(i slope scaled)
        product = (weight * wave).sum(-1, dtype=np.complex128)
        square = (wave * wave).sum(-1, dtype=np.complex128)
        # Least squares of sine on the wave's cosine and sine, whose coefficients are sin a and cos a up to a factor ...
        on_cosine = (num_frames - square.real) * product.real - square.imag * product.imag
        on_sine = (num_frames + square.real) * product.imag - square.imag * product.real
        offset[k] = np.arctan2(on_cosine, on_sine)
        # ... and the sum of squares that is left with this a and factor 1, but for a constant.
        residual[k] = -2 * (np.exp(1j * offset[k]) * product).imag - (np.exp(2j * offset[k]) * square).real / 2
    padded = np.pad(residual, ((1, 1), (0, 0)), constant_values=np.inf)
    valley = (residual <= padded[:-2]) & (residual <= padded[2:])
    order = np.argsort(np.where(valley, residual, np.inf), axis=0)
    best = np.full(num_rows, np.inf)
    phase = np.zeros_like(sine)
    for k in order[:_CANDIDATES]:
        a, b = offset[k, np.arange(num_rows)], spacing * (k + 1)
        a, b = _least_squares(sine, scaled, a, b)
        found = a[:, None] + b[:, None] * scaled
        left = ((np.sin(found) - sine) ** 2).sum(-1)
        # The mirrored phase, pi - phi, has the same sine, and so have phases that skip turns between frames.
        better = (left < best) & (b > 0) & (b * largest_step < np.pi)
        phase[better], best[better] = found[better], left[better]
    return phase - 2 * np.pi * np.floor(phase[:, :1] / (2 * np.pi))


def _least_squares(sine: Floats, scaled: Floats, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Coefficients of the phase ``a + b scaled`` after Gauss-Newton steps on ``sin(phase) - sine``."""
    for _ in range(8):
        phase = a[:, None] + b[:, None] * scaled
        slope, error = np.cos(phase), sine - np.sin(phase)
        aa, ab, bb = (slope**2).sum(-1), (slope**2 * scaled).sum(-1), (slope**2 * scaled**2).sum(-1)
        on_a, on_b = (slope * error).sum(-1), (slope * error * scaled).sum(-1)
        determinant = aa * bb - ab**2
        determinant = np.where(determinant > 0, determinant, np.inf)
        a, b = a + (bb * on_a - ab * on_b) / determinant, b + (aa * on_b - ab * on_a) / determinant
    return a, b


def _rate(phase: Floats, scaled: Floats) -> Floats:
    """dphi/dt ``[R, T]`` at the frames, per frame, from the phases and the scaled forward differences ``scaled``."""
    num_frames = phase.shape[-1]
    # What the phases and the other differences of a window make of the difference c + d g in its middle. One equation
    # for each window: there must be more of them than unknowns.
    size = min(_WINDOW, max(num_frames - 3, 3))
    middle = slice((size - 1) // 2, num_frames - size // 2)
    of_phase, of_rate = (
        weights[middle] for weights in _local_weights(num_frames, DIFFERENCE, DIFFERENCE, size, itself=False)
    )
    target = phase @ of_phase.T
    on_c = 1 - of_rate.sum(-1)  # [windows]
    on_d = scaled[:, middle] - scaled @ of_rate.T  # [R, windows]
    still = np.ptp(scaled, axis=-1) == 0
    c, d = (phase[:, -1] - phase[:, 0]) / (num_frames - 1), np.zeros(len(phase))
    weight = np.ones_like(target)
    for _ in range(_REWEIGHTINGS):
        cc, cd, dd = (weight * on_c**2).sum(-1), (weight * on_c * on_d).sum(-1), (weight * on_d**2).sum(-1)
        by_c, by_d = (weight * on_c * target).sum(-1), (weight * on_d * target).sum(-1)
        determinant = np.where(still, 1, cc * dd - cd**2)
        c = np.where(still, c, (dd * by_c - cd * by_d) / determinant)
        d = np.where(still, d, (cc * by_d - cd * by_c) / determinant)
        # Frames between which the path is too lively for a polynomial should not decide.
        square = (target - c[:, None] * on_c - d[:, None] * on_d) ** 2
        weight = 1 / (square + np.median(square, axis=-1, keepdims=True) + _TINY**2)
    difference = c[:, None] + d[:, None] * scaled
    of_phase, of_rate = _local_weights(num_frames, DIFFERENCE, 0, _WINDOW)
    result: Floats = phase @ of_phase.T + difference @ of_rate.T
    result[still] = c[still, None]
    return result


def _local_weights(
    num_frames: int, given: float, wanted: float, size: int, *, itself: bool = True
) -> tuple[Floats, Floats]:
    """Weights ``[T, T]`` of phases and of rates at all frames, which together give a rate at each frame.

    The rates, per frame, are means from t to t + ``given``, the result is the mean from t to t + ``wanted``; 0 stands
    for the rate at t. The phase is taken for the polynomial through the phases and rates of the ``size`` frames around
    t; not through the rate at t where ``itself`` is False.
    """
    size = min(size, num_frames)
    of_phase, of_rate = np.zeros((num_frames, num_frames)), np.zeros((num_frames, num_frames))
    for t in range(num_frames):
        first = min(max(t - (size - 1) // 2, 0), num_frames - size)
        window = np.arange(first, first + size)
        others = window if itself else window[window != t]
        power = np.arange(len(window) + len(others))
        # Each row: what one known number is for each power of time (from t on, in halves of the window).
        unit = size / 2
        at, late = (window - t)[:, None] / unit, (others - t)[:, None] / unit
        known = np.concatenate([at**power, _mean_slope(late, given / unit, power) / unit])
        weights = np.linalg.solve(known.T, _mean_slope(np.zeros((1, 1)), wanted / unit, power)[0] / unit)
        of_phase[t, window], of_rate[t, others] = weights[: len(window)], weights[len(window) :]
    return of_phase, of_rate


def _mean_slope(start: Floats, length: float, power: NDArray[np.int64]) -> Floats:
    """Mean slope of each power of time over a stretch ``length`` from ``start`` ``[M, 1]`` on, ``[M, power]``."""
    if length == 0:
        return np.asarray(power * start ** np.maximum(power - 1, 0))
    return np.asarray(((start + length) ** power - start**power) / length)
