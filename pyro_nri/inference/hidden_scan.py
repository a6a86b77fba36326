"""Where something unseen may be, if every entity feels every other one: a scan of prior draws over the first frames.

What one receiver leaves unexplained then is the pull of all hidden entities together, and says where none of them is.
But over a few frames entities hardly move, so that the accelerations of all receivers depend on little more than where
the hidden ones are. Many prior draws are looked at, against noise so blunt that a draw nearby shows; the best are led
to the data as the noise is sharpened and frames are added. So few frames fit almost any structure: on the way, and
nowhere else, structures are those of charges, in which the type of an edge follows from labels of its two ends.
"""

import torch
from torch import Tensor

from pyro_nri.inference.hidden_edges import incoming_of
from pyro_nri.inference.hidden_search import NUM_GUESSES, refine
from pyro_nri.inference.streams import Stream, normals
from pyro_nri.model.hidden import HiddenLikelihood
from pyro_nri.model.receivers import codes_of
from pyro_nri.model.structures import ChargesDistribution
from pyro_nri.scenes import edges

#: Prior draws for each hidden entity, and how many are looked at together.
NUM_DRAWS, DRAWS_AT_ONCE = 2048, 512
#: Transitions of the scan, and how many draws are kept of it.
FIRST_FRAMES, NUM_KEPT = 3, 64
#: Noise on the way from the scan to the data, as shares of the typical impulse.
BLUNT = (0.3, 0.03, 0.003)
#: Transitions that are added after the scan, and how many draws are kept before each, or as many as are asked for.
LONGER = ((6, 24), (12, 12))


def feels_everything(likelihood: HiddenLikelihood) -> bool:
    """Whether there are two types, and entities that are linked by either exert a force."""
    return likelihood.num_edge_types == 2 and bool(likelihood.dynamics.laws.exerting().all())


def scan(likelihood: HiddenLikelihood, stream: Stream, num_guesses: int = NUM_GUESSES) -> tuple[Tensor, Tensor]:
    """Guess at the hidden entities from prior draws.

    Args:
        likelihood: of B scenes, with types by which :func:`feels_everything`.
        stream: of one chain.
        num_guesses: M.

    Returns:
        States at frame 0, ``[M, B, N_hidden, D]``, scaled units, and types of the edges into the hidden entities, long
        ``[M, B, N_hidden, L]``; best first.
    """
    structures = structures_of_labels(likelihood.num_observed + likelihood.num_hidden)
    first = likelihood.first_frames(min(FIRST_FRAMES, likelihood.target.shape[1]))
    state, into, score = _best(_drawn(first.blunted(BLUNT[0]), structures, stream), NUM_KEPT)
    for share in BLUNT:
        state, into, score = _climb(first.blunted(share), state, into, structures)
    state, into, score = _climb(first, state, into, structures)
    for number, kept in LONGER:
        state, into, score = _best((state, into, score), max(kept, num_guesses))
        window = likelihood.first_frames(min(number, likelihood.target.shape[1]))
        state, into, score = _climb(window.blunted(BLUNT[1]), state, into, structures, num_rounds=1)
        state, into, score = _climb(window, state, into, structures)
    state, into, _ = _best((state, into, score), num_guesses)
    return state, into


def structures_of_labels(num_entities: int) -> Tensor:
    """Structures in which types follow from two labels, alike or unlike, ``[J, E]``: each type for either."""
    mask = torch.ones(1, edges.num_edges(num_entities), dtype=torch.bool)
    alike = torch.eye(2, dtype=torch.long)
    tables = (alike, 1 - alike)
    return torch.cat([ChargesDistribution(table, 2, mask, validate_args=False).list_structures() for table in tables])


def _drawn(likelihood: HiddenLikelihood, structures: Tensor, stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """Prior draws of states, with the best structure and the score of each."""
    parts = []
    size = likelihood.num_hidden * likelihood.dynamics.state_size
    for start in range(0, NUM_DRAWS * likelihood.num_hidden, DRAWS_AT_ONCE):
        slots = DRAWS_AT_ONCE * 2 * size
        uniform = stream.child("scan").uniform(start, slots)[0]  # [B, ...]
        normal = normals(uniform).view(len(uniform), DRAWS_AT_ONCE, likelihood.num_hidden, -1)
        state = normal.transpose(0, 1)
        score, _, into = _most_likely(likelihood, state, _any_into(likelihood, state, structures), structures)
        parts.append((state, into, score))
    state, into, score = (torch.cat(each) for each in zip(*parts, strict=True))
    return state, into, score


def _any_into(likelihood: HiddenLikelihood, state: Tensor, structures: Tensor) -> Tensor:
    """Some edges into the hidden entities of each state: over a few frames they matter little."""
    into = incoming_of(structures)[0, likelihood.num_observed :]
    return into.expand(*state.shape[:2], *into.shape)


def _most_likely(
    likelihood: HiddenLikelihood, state: Tensor, into: Tensor, structures: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-likelihood ``[M, B]`` of the best structure for each state, and its edges into observed and hidden ones."""
    table = likelihood.table(likelihood.path(state, into))  # [M, B, N, codes]
    incoming, codes = incoming_of(structures), codes_of(structures, likelihood.num_edge_types)  # [J, N + N_hidden, ...]
    seen, hidden = incoming[:, : likelihood.num_observed], incoming[:, likelihood.num_observed :]
    total = sum(table[..., n, :][..., codes[:, n]] for n in range(likelihood.num_observed))
    score, best = torch.as_tensor(total).max(-1)
    return score, seen[best], hidden[best]


def _climb(
    likelihood: HiddenLikelihood, state: Tensor, into: Tensor, structures: Tensor, *, num_rounds: int = 2
) -> tuple[Tensor, Tensor, Tensor]:
    """States led to nearby modes, structures chosen anew before each round: as :func:`_best`."""
    for _ in range(num_rounds):
        _, incoming, into = _most_likely(likelihood, state, into, structures)
        state = refine(likelihood, state, into, incoming, num_steps=4).value.view_as(state)
    score, _, into = _most_likely(likelihood, state, into, structures)
    return state, into, score - state.square().sum((-1, -2)) / 2


def _best(found: tuple[Tensor, Tensor, Tensor], number: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``number`` states, edges into hidden entities and scores of each scene that are best, best first."""
    state, into, score = found
    order = score.argsort(dim=0, descending=True, stable=True)[:number]
    scene = torch.arange(score.shape[1])
    return state[order, scene], into[order, scene], score[order, scene]
