"""Structures of the noisy program, where few are possible: which links does the unseen entity have?

Edges of a hidden entity change its path, so nothing factorises. Each candidate structure gets its own modes, mixture
and log marginal; a Metropolis chain then moves structure and latents at once, so that what the mixtures miss is made
good by its ratio.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pyro_nri.inference.laplace import Integral
from pyro_nri.inference.noisy_chains import importance_sample
from pyro_nri.inference.noisy_modes import default_starts, density_of, find_modes, mixture_around
from pyro_nri.inference.streams import Stream, categorical, keys
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.scenes.scenes import Scenes

#: Share of proposed structures that do not look at the log marginals, so that none is left out for a bad estimate.
UNIFORM_SHARE = 0.1


class StructureDraws(NamedTuple):
    """What chains have drawn.

    Attributes:
        candidate: number of the structure, long ``[C, S, B]``.
        value: latents in rows, ``[C, S, B, P]``.
        log_marginal: log marginal density of each recording under each candidate, by importance sampling, ``[J, B]``
            each.
        probability: posterior probability of each candidate after those and the prior of structures, ``[J, B]``.
        rate: share of accepted proposals, ``[B]``.
    """

    candidate: Tensor
    value: Tensor
    log_marginal: Integral
    probability: Tensor
    rate: Tensor


def infer_structures(
    model: NoisyModel,
    scenes: Scenes,
    candidates: Tensor,
    *,
    seed: int,
    num_chains: int = 4,
    num_draws: int = 250,
    num_warmup: int = 20,
    num_starts: int = 4,
    num_importance: int = 200,
) -> StructureDraws:
    """Sample structure, initial states and parameters of each scene.

    Args:
        model: the program.
        scenes: B scenes, each its own structure group.
        candidates: the structures that are possible, long ``[J, E]``, hidden entities' edges included.
        seed: with the names of the scenes it fixes all random numbers.
        num_chains: C.
        num_draws: S, one after each step.
        num_warmup: steps before.
        num_starts: where to begin each search for modes.
        num_importance: draws for each log marginal.

    Raises:
        ValueError: shapes do not fit, a candidate is impossible under the prior, or scenes share structures.
    """
    scenes = model.prepare(scenes)
    num_scenes, num_edges = scenes.num_scenes, model.edge_mask(scenes).shape[-1]
    if candidates.ndim != 2 or candidates.shape[-1] != num_edges:
        raise ValueError(f"candidates must have shape [J, {num_edges}], found {list(candidates.shape)}")
    if candidates.min() < 0 or candidates.max() >= model.prior.num_edge_types:
        raise ValueError(
            f"candidates must hold types 0 to {model.prior.num_edge_types - 1}, found {int(candidates.min())} to "
            f"{int(candidates.max())}"
        )
    if scenes.num_groups != num_scenes:
        raise ValueError(
            "scenes must not share structures; infer each candidate with infer_latents and add log marginals"
        )
    number, names = len(candidates), keys(scenes.scene_names, scenes.trajectory.device)
    structures = (candidates[:, None] * model.edge_mask(scenes)).long()  # [J, B, E]
    log_prior = model.prior(model.edge_mask(scenes)).log_prob(structures).detach().double()
    if not bool(log_prior.isfinite().all()):
        raise ValueError(f"candidate {int((~log_prior.isfinite()).any(-1).nonzero()[0])} is impossible under the prior")
    mixtures, integrals = [], []
    for place, structure in enumerate(structures):
        starts = default_starts(model, scenes, structure, num_starts, seed)
        mixtures.append(mixture_around(find_modes(model, scenes, structure, starts)))
        stream = Stream(seed, names, num_importance).child(f"importance {place}")
        integrals.append(importance_sample(density_of(model, scenes, structure), mixtures[-1], stream))
    log_marginal = Integral(*(torch.stack(parts) for parts in zip(*integrals, strict=True)))
    probability = (log_prior + log_marginal.log_value).softmax(0)  # [J, B]
    proposed = (1 - UNIFORM_SHARE) * probability + UNIFORM_SHARE / number
    stream = Stream(seed, names, num_chains).child("structures")

    def propose(uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Candidates ``[C, B]`` and latents from their mixtures."""
        candidate = categorical(proposed.T.expand(num_chains, -1, -1), uniform[..., 0])
        drawn = torch.stack([mixture.sample(uniform[..., 1:])[0] for mixture in mixtures])  # [J, C, B, P]
        index = candidate[None, ..., None].expand(1, *candidate.shape, drawn.shape[-1])
        return candidate, drawn.gather(0, index)[0]

    def log_ratio(candidate: Tensor, value: Tensor) -> Tensor:
        """Log joint density minus log proposal density, ``[C, B]``."""
        scene = torch.arange(num_scenes, device=candidate.device)
        with torch.no_grad():
            density = density_of(model, scenes, structures[candidate, scene])(value)
        log_proposal = torch.stack([mixture.log_prob(value) for mixture in mixtures]).gather(0, candidate[None])[0]
        prior, share = log_prior[candidate, scene], proposed.log()[candidate, scene]
        ratio: Tensor = density + prior - log_proposal - share
        return ratio

    candidate, value = propose(stream.child("begin").uniform(0, 1 + mixtures[0].num_slots))
    height = log_ratio(candidate, value)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in range(num_warmup + num_draws):
        uniform = stream.uniform(step, 2 + mixtures[0].num_slots)
        new_candidate, new_value = propose(uniform[..., 1:])
        new_height = log_ratio(new_candidate, new_value)
        accepted = uniform[..., 0].log() < torch.nan_to_num(new_height - height, -torch.inf)
        candidate = torch.where(accepted, new_candidate, candidate)
        value = torch.where(accepted[..., None], new_value, value)
        height = torch.where(accepted, new_height, height)
        if step >= num_warmup:
            kept.append((candidate, value, accepted.double().mean(0)))
    candidates_drawn, values, rates = (torch.stack(parts) for parts in zip(*kept, strict=True))
    return StructureDraws(
        candidates_drawn.transpose(0, 1), values.transpose(0, 1), log_marginal, probability, rates.mean(0)
    )
