"""Where something unseen may be: guesses from the motion that observed entities do not explain among themselves."""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import ForceLaws
from pyro_nri.inference.gauss_newton import LeastSquares, Mode, gauss_newton
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.model.receivers import code_types, sums_of_codes

#: Guesses that are followed up in each scene.
NUM_GUESSES = 8
#: Guesses at the first of several hidden entities that are kept: the others still disturb its score.
BEAM = 12
#: Scale of what a guess may leave unexplained, as a share of the typical impulse: a guess is rough.
ROUGHNESS = 1e-4
#: Rows of guesses that are made longer at once.
CHUNK_ROWS = 16
#: Guesses are looked at on every so many frames first.
SPARSE = 4
#: Guesses of one scene are the same if their paths are closer than this share of the typical distance.
SAME_PATH = 0.03


class Guesses(NamedTuple):
    """Guesses at n hidden entities, R rows.

    Attributes:
        scene: number of the scene of each row, long ``[R]``.
        place: positions in the middle of each frame, ``[R, n, T - 1, S]``, raw units.
        force: what they would do to observed entities, ``[R, T - 1, N, n, K, S]``.
        score: how well observed motion agrees, ``[R]``.
    """

    scene: Tensor
    place: Tensor
    force: Tensor
    score: Tensor


def distance_of_force(laws: ForceLaws, size: Tensor) -> tuple[Tensor, Tensor]:
    """At which distance a force of each type has a size; the largest such distance where there are several.

    Args:
        laws: over distances.
        size: ``[*batch]``, raw units.

    Returns:
        Distances ``[*batch, K]``, nan where the type has no such force, and the signs of the forces there.
    """
    points = laws.points()
    force = laws.table().detach() / points  # [K, M]
    distances, signs = [], []
    for curve, exerts in zip(force, laws.exerting(), strict=True):
        magnitude = curve.abs()
        if not exerts:
            nothing = torch.full_like(size, torch.nan)
            distances.append(nothing)
            signs.append(nothing)
            continue
        rising = magnitude[-1] > magnitude[len(magnitude) // 2]
        # From far to near: monotone, so that the first crossing is the farthest.
        far_first = magnitude.flip(0)
        envelope = -far_first.cummin(0).values if rising else far_first.cummax(0).values
        wanted = (-size if rising else size).contiguous()
        place = torch.searchsorted(envelope.contiguous(), wanted).clamp(1, len(envelope) - 1)
        low, high = envelope[place - 1], envelope[place]
        share = ((wanted - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
        log_far = points.flip(0).log()
        distance = (log_far[place - 1] + share * (log_far[place] - log_far[place - 1])).exp()
        slack = 1.5
        inside = (size <= slack * magnitude.amax()) & (size >= magnitude.amin() / slack)
        distances.append(torch.where(inside, distance, torch.nan))
        index = (len(points) - 1 - place).clamp(min=0)
        signs.append(curve[index].sign())
    return torch.stack(distances, -1), torch.stack(signs, -1)


def guess(likelihood: HiddenLikelihood, num_guesses: int = NUM_GUESSES) -> tuple[Tensor, Tensor]:
    """Guess at the hidden entities from what single receivers leave unexplained.

    If one receiver feels one more entity, and its other edges are as some code has it, then its unexplained
    acceleration says where the entity is, frame by frame. All receivers, codes and types are tried, one hidden entity
    after the other; guesses under which the other receivers are explained best, and which move as the laws say, are
    kept.

    Args:
        likelihood: of B scenes.
        num_guesses: M.

    Returns:
        States at frame 0, ``[M, B, N_hidden, D]``, scaled units, and types of the edges into the hidden entities, long
        ``[M, B, N_hidden, L]``; best first.
    """
    num_scenes, num_frames, num_observed, size = likelihood.target.shape
    none = likelihood.target.new_zeros(num_scenes, 0, num_frames, size)
    force = likelihood.target.new_zeros(num_scenes, num_frames, num_observed, 0, likelihood.num_edge_types, size)
    beam = Guesses(torch.arange(num_scenes), none, force, likelihood.target.new_zeros(num_scenes))
    for number in range(likelihood.num_hidden):
        width = num_guesses if number == likelihood.num_hidden - 1 else BEAM
        longer = [
            _one_more(likelihood, Guesses(*(x[row] for x in beam)), width)
            for row in torch.arange(len(beam.scene)).split(CHUNK_ROWS)
        ]
        beam = Guesses(*(torch.cat(parts) for parts in zip(*longer, strict=True)))
        beam = _best_of_scenes(beam, num_scenes, width, likelihood)
    states, types = _states(likelihood, beam)
    width = len(beam.scene) // num_scenes
    states, types = states.unflatten(0, (num_scenes, width)), types.unflatten(0, (num_scenes, width))
    return ((states - likelihood.offset) / likelihood.scale).transpose(0, 1), types.transpose(0, 1)


def _one_more(likelihood: HiddenLikelihood, known: Guesses, width: int) -> Guesses:
    """The best guesses at one more hidden entity beside known ones, up to ``4 width`` for each row."""
    laws, part = likelihood.dynamics.laws, likelihood[known.scene]
    target = part.target
    num_rows, _, num_observed, _ = target.shape
    num_types = likelihood.num_edge_types
    middle = _middle(part)  # [R, T - 1, N, S]
    summed = sums_of_codes(torch.cat([part.impulses, known.force], -3))  # [R, T - 1, N, codes, S]
    num_codes = summed.shape[3]
    left = target[..., None, :] - summed
    length = left.norm(dim=-1)
    distance, sign = distance_of_force(laws, length)  # [R, T - 1, N, codes, K]
    away = (left / length.clamp(min=1e-300)[..., None])[..., None, :] * (sign * distance)[..., None]
    place = (middle[:, :, :, None, None] - away).permute(0, 2, 3, 4, 1, 5).flatten(1, 3)  # [R, Q, T - 1, S]
    felt_by = torch.arange(num_observed).repeat_interleave(num_codes * num_types)  # [Q]
    valid = place.isfinite().all(-1)
    usable = valid.double().mean(-1) > 0.8  # [R, Q]
    some = usable.any(0)  # types without a force make no guess in any row
    place, felt_by, usable = _filled(place[:, some], valid[:, some]), felt_by[some], usable[:, some]
    senders = torch.cat([middle, known.place.transpose(1, 2)], 2)  # [R, T - 1, N + n, S]
    row = torch.arange(num_rows)[:, None]
    # A look at some frames first, at all of them for what that leaves.
    some_frames = torch.arange(1, target.shape[1] - 1, SPARSE) if target.shape[1] > 3 * SPARSE else None
    if some_frames is not None:
        score = torch.where(usable, _agreement(part, place, felt_by, left, senders, some_frames), -torch.inf)
        order = score.argsort(-1, descending=True)[:, : 6 * width]
        place, felt_by, usable = place[row, order], felt_by[order], usable[row, order]
    every_frame = torch.arange(target.shape[1])
    score = torch.where(usable, _agreement(part, place, felt_by, left, senders, every_frame), -torch.inf)
    order = score.argsort(-1, descending=True)[:, : 4 * width]  # [R, M]
    force = _forces_on(laws, middle[:, None], place[row, order][..., None, :])  # [R, M, T - 1, N, K, S]
    every = torch.cat([known.place[:, None].expand(-1, order.shape[1], -1, -1, -1), place[row, order][:, :, None]], 2)
    forces = torch.cat(
        [known.force[:, None].expand(-1, order.shape[1], *known.force.shape[1:]), force.unsqueeze(-3)], -3
    )
    return Guesses(
        known.scene[:, None].expand_as(order).flatten(),
        every.flatten(0, 1),
        forces.flatten(0, 1),
        score[row, order].flatten(),
    )


def _agreement(
    part: HiddenLikelihood, place: Tensor, felt_by: Tensor, left: Tensor, senders: Tensor, frames: Tensor
) -> Tensor:
    """How well observed motion agrees with guesses, ``[R, Q]``.

    Args:
        part: of R rows.
        place: guessed paths ``[R, Q, T - 1, S]``.
        felt_by: the receivers they were made from, long ``[Q]`` or ``[R, Q]``.
        left: what each code leaves unexplained, ``[R, T - 1, N, codes, S]``.
        senders: paths of all others, ``[R, T - 1, L, S]``.
        frames: on which to look, long.
    """
    laws, num_types = part.dynamics.laws, part.num_edge_types
    some, mask, middle = place[:, :, frames], part.mask[:, frames], _middle(part)[:, frames]
    scale = 3 * part.unit_scale()[:, frames] + ROUGHNESS * part.typical_impulse()[:, None, None, None]
    weight = (0.5 / scale)[:, None]  # [R, 1, T', N, S]
    strength = _strengths(laws, middle[:, None], some[..., None, :])  # [R, Q, T', N, K]
    apart = middle[:, None] - some[..., None, :]
    best = torch.full((*place.shape[:2], middle.shape[2]), -torch.inf, dtype=place.dtype)
    for k in range(num_types):
        pull = strength[..., k, None] * apart * weight
        for code in range(left.shape[3]):
            x = left[:, None, frames, :, code] * weight - pull
            spread = torch.ones_like(x[..., 0])
            for axis in x.unbind(-1):  # one logarithm for all axes
                spread = spread * (1 + axis * axis)
            log_prob = torch.where(mask[:, None], spread.log(), 0.0)
            best = torch.maximum(best, -2.5 * log_prob.sum(-2))
    index = felt_by.expand(place.shape[:2])[..., None]
    others = torch.ones_like(best).scatter(-1, index, 0.0)
    own, _ = _own_motion(part, place, senders[:, None], frames[(frames > 0) & (frames < place.shape[2] - 1)])
    return (best * others).sum(-1) + own.amax(-1)


def _best_of_scenes(beam: Guesses, num_scenes: int, width: int, likelihood: HiddenLikelihood) -> Guesses:
    """The ``width`` best rows of each scene, best first, paths that say the same left out."""
    kept = []
    middle = _middle(likelihood)
    for scene in range(num_scenes):
        rows = (beam.scene == scene).nonzero()[:, 0]
        rows = rows[beam.score[rows].argsort(descending=True)][: 8 * width]
        near = SAME_PATH * float((middle[scene, :, :, None] - middle[scene, :, None]).norm(dim=-1).mean())
        place = beam.place[rows]  # [R', n, T - 1, S]
        apart = torch.cdist(place.flatten(2).transpose(0, 1), place.flatten(2).transpose(0, 1)) / place.shape[2] ** 0.5
        same = (apart < near).all(0)
        if place.shape[1] == 2:  # the same two in the other order
            crossed = torch.cdist(place[:, 0].flatten(1), place[:, 1].flatten(1)) / place.shape[2] ** 0.5
            same |= (crossed < near) & (near > crossed.T)
        chosen: list[int] = []
        repeated: list[int] = []
        for row in range(len(rows)):
            (repeated if same[row, chosen].any() else chosen).append(row)
            if len(chosen) == width:
                break
        chosen = (chosen + repeated + [0] * width)[:width]
        kept.append(rows[chosen])
    index = torch.cat(kept)
    return Guesses(*(part[index] for part in beam))


def _states(likelihood: HiddenLikelihood, beam: Guesses) -> tuple[Tensor, Tensor]:
    """States at frame 0 ``[R, n, D]``, raw units, and the most likely edges into each, long ``[R, n, L]``."""
    part = likelihood[beam.scene]
    middle, num_hidden = _middle(part), beam.place.shape[1]
    states, types = [], []
    for hidden in range(num_hidden):
        others = [other for other in range(num_hidden) if other != hidden]
        senders = torch.cat([middle, beam.place[:, others].transpose(1, 2)], 2)[:, None]
        own, start = _own_motion(part, beam.place[:, hidden, None], senders)
        codes = code_types(likelihood.num_edge_types, senders.shape[3] + 1)
        types.append(codes[own[:, 0].argmax(-1)])
        states.append(start[:, 0])
    return torch.stack(states, 1), torch.stack(types, 1)


def _own_motion(
    part: HiddenLikelihood, place: Tensor, senders: Tensor, frames: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Whether guessed entities move as the laws say.

    Args:
        part: of R rows.
        place: guessed paths ``[R, Q, T - 1, S]``.
        senders: paths of all others, ``[R, Q or 1, T - 1, L, S]``.
        frames: on which to look, long; default: all but the first and the last.

    Returns:
        Log-likelihood of each code of its incoming edges, ``[R, Q, K ** L]``, and states at frame 0, ``[R, Q, D]``.
    """
    dynamics, time_step = part.dynamics, part.scenes.time_step
    typical = part.typical_impulse()
    position, velocity, acceleration = _smooth(place, time_step)
    if frames is None:
        frames = torch.arange(1, place.shape[2] - 1)
    inner = place[:, :, frames, None]  # [R, Q, T', 1, S]
    strength = _strengths(dynamics.laws, inner, senders[:, :, frames])  # [R, Q, T', L, K]
    apart = inner - senders[:, :, frames]
    rough = 0.02 * acceleration.abs().flatten(1).median(1).values.clamp(min=0.05 * typical)
    blur = 2.5 * (3 * part.unit_scale()[:, 1:-1].amin((1, 2, 3)) + ROUGHNESS * typical) / time_step**2
    scale = (rough + blur * float(_typical_compliance(dynamics.laws)))[:, None, None, None]
    spread: Tensor | float = 1.0
    for axis in range(place.shape[-1]):
        pull = sums_of_codes((strength * apart[..., axis, None])[..., None]).squeeze(-1)  # [R, Q, T', codes]
        residual = (acceleration[:, :, frames, axis, None] - pull) / (2 * scale)
        spread = spread * (1 + residual * residual)
    log_prob = -2.5 * torch.as_tensor(spread).log().sum(-2)
    half = time_step / 2
    state = place.new_zeros(*place.shape[:2], dynamics.state_size)
    state[..., dynamics.positions] = position[:, :, 0] - half * velocity[:, :, 0] + half**2 / 2 * acceleration[:, :, 0]
    state[..., dynamics.velocities] = velocity[:, :, 0] - half * acceleration[:, :, 0]
    return log_prob, state


def _middle(likelihood: HiddenLikelihood) -> Tensor:
    """Mean positions of observed entities in each frame, ``[B, T - 1, N, S]``."""
    return likelihood.paths.path.mean(1).movedim(1, 0)


def _forces_on(laws: ForceLaws, receiver: Tensor, sender: Tensor) -> Tensor:
    """Forces of all types on receivers, positions broadcast ``[*batch, S]``: ``[*batch, K, S]``."""
    forces: Tensor = _strengths(laws, receiver, sender)[..., None] * (receiver - sender)[..., None, :]
    return forces


def _strengths(laws: ForceLaws, receiver: Tensor, sender: Tensor) -> Tensor:
    """The same over distance, ``[*batch, K]``: times the separation it is the force."""
    square = sum(axis * axis for axis in (receiver - sender).unbind(-1))
    distance = torch.as_tensor(square).sqrt().clamp(min=1e-150)
    strengths: Tensor = laws(distance) / distance[..., None]
    return strengths


def _typical_compliance(laws: ForceLaws) -> Tensor:
    """How far a place moves for a unit of force: distance over force where forces are typical."""
    points = laws.points()
    force = (laws.table().detach() / points).abs().amax(0)
    return (points / force.clamp(min=1e-300)).median()


def _filled(place: Tensor, valid: Tensor) -> Tensor:
    """Paths ``[*batch, T, S]`` whose unknown frames repeat the last known one."""
    number = torch.arange(valid.shape[-1], device=valid.device).expand(valid.shape)
    last = torch.where(valid, number, -1).cummax(-1).values
    first = torch.where(valid, number, valid.shape[-1]).amin(-1, keepdim=True).clamp(max=valid.shape[-1] - 1)
    index = torch.where(last < 0, first, last)
    filled = place.gather(-2, index[..., None].expand(place.shape))
    return torch.where(filled.isfinite(), filled, torch.zeros_like(filled))


def _smooth(place: Tensor, time_step: float, reach: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Position, velocity, acceleration of paths ``[*batch, T, S]`` by cubics through the frames around each."""
    num_frames = place.shape[-2]
    width = min(2 * reach + 1, num_frames)
    degree = min(3, width - 1)
    start = (torch.arange(num_frames) - width // 2).clamp(0, num_frames - width)
    index = start[:, None] + torch.arange(width)  # [T, width]
    time = (index - torch.arange(num_frames)[:, None]).to(place) * time_step
    power = torch.stack([time**p for p in range(degree + 1)], -1)  # [T, width, degree + 1]
    fit = torch.linalg.pinv(power)  # [T, degree + 1, width]
    parts = torch.einsum("tpw,...tws->...tps", fit, place[..., index, :])
    acceleration = 2 * parts[..., 2, :] if degree >= 2 else torch.zeros_like(place)
    return parts[..., 0, :], parts[..., 1, :], acceleration


def refine(
    likelihood: HiddenLikelihood, state: Tensor, into_hidden: Tensor, incoming: Tensor, *, num_steps: int = 6
) -> Mode:
    """Modes of the hidden state under given structures.

    Args:
        likelihood: of B scenes.
        state: starts ``[M, B, N_hidden, D]``, scaled units.
        into_hidden: long ``[M, B, N_hidden, N + N_hidden - 1]``.
        incoming: of the observed, long ``[M, B, N, N - 1 + N_hidden]``.
        num_steps: of the least squares.

    Returns:
        Values ``[M, B, P]``, ``P = N_hidden D``.
    """
    shape = state.shape
    num_rows, size = shape[0] * shape[1], shape[2] * shape[3]

    def residuals(value: Tensor) -> Tensor:
        rows = value.view(*value.shape[:-2], *shape)
        path = likelihood.path(rows, into_hidden.expand(*rows.shape[:-2], *into_hidden.shape[-2:]))
        each = likelihood.residual(path, incoming.expand(*rows.shape[:-2], *incoming.shape[-2:]))
        return each.flatten(-3).reshape(*value.shape[:-1], -1)

    def shaped(residual: Tensor) -> Tensor:
        return residual.view(*residual.shape[:-2], *shape[:2], *likelihood.target.shape[1:])

    problem = LeastSquares(
        residuals=residuals,
        log_likelihood=lambda r: likelihood.log_prob(shaped(r)).sum(-1).reshape(r.shape[:-1]),
        precision=lambda r: likelihood.precision(shaped(r)).reshape(r.shape),
        prior_mean=state.new_zeros(size),
        prior_scale=state.new_ones(size),
        difference=1e-6,
    )
    found = gauss_newton(problem, state.reshape(num_rows, size), num_steps=num_steps)
    return Mode(
        found.value.view(*shape[:2], size),
        found.log_density.view(shape[:2]),
        found.precision.view(*shape[:2], size, size),
    )
