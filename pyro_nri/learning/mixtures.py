"""The posterior of an ensemble: the posteriors of its models in equal parts, without those that saw the scene."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_nri.inference.draws import Draws, PriorRecord
from pyro_nri.inference.run import infer
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.scenes.scenes import Scenes

#: What the posterior of an ensemble is conditioned on, for the file that holds it.
CONDITIONING = "an equal mixture over models that were each learned from other scenes than the one inferred"


def infer_ensemble(
    ensemble: Ensemble, scenes: Scenes, *, fingerprints: Sequence[str] | None = None, seed: int, **options: Any
) -> Draws:
    """Posterior over the structures of scenes: the equal mixture of the posteriors of several models.

    A model takes part in the posterior of a structure only if none of its scenes was among the model's training
    scenes. Structures that every model was trained on (see :func:`trained_on`) get the mixture of all.

    Edge probabilities are means over models. Each draw comes from one model, in equal numbers and random order; a chain
    is made of draws of the models' chains of the same number, so chains stay comparable with one another. ``log_joint``
    is that under the model which made the draw.

    Args:
        ensemble: trained models.
        scenes: B scenes in G structure groups.
        fingerprints: B fingerprints of the whole recordings, if ``scenes`` are cut out of them.
        seed: fixes all random numbers; results do not depend on which other scenes are inferred beside.
        options: further arguments of :func:`~pyro_nri.inference.run.infer`, such as ``method``, ``num_draws``; not
            ``resume`` and ``on_segment``.

    Raises:
        ValueError: an argument is out of range.
    """
    for name in ("resume", "on_segment", "encoder"):
        if options.pop(name, None) is not None:
            raise ValueError(f"{name} goes with a single model, found an ensemble of {len(ensemble.members)}")
    usable = unseen(ensemble, scenes, fingerprints)  # [M, G]
    usable |= ~usable.any(0)
    parts: list[tuple[Draws, NDArray[np.int64]]] = []
    for member, labels, mine in zip(ensemble.members, ensemble.labels, usable, strict=True):
        if not mine.any():
            continue
        part = scenes[mine[scenes.group_index]]
        draws = infer(member.model, part, encoder=member.encoder, seed=seed, **options)
        if not draws.complete:
            raise KeyboardInterrupt  # parts of unequal length cannot be mixed
        exists = part.edge_mask[part.group_first_scene].numpy()
        parts.append((relabel(draws, labels, exists), mine.nonzero().squeeze(-1).numpy()))
    return mix(parts, scenes.group_names, seed=seed)


def unseen(ensemble: Ensemble, scenes: Scenes, fingerprints: Sequence[str] | None = None) -> Tensor:
    """Which structures each model was not trained on, bool ``[M, G]``.

    Args:
        ensemble: trained models.
        scenes: B scenes in G structure groups.
        fingerprints: B fingerprints of the whole recordings, if ``scenes`` are cut out of them.

    Raises:
        ValueError: there are more or fewer fingerprints than scenes.
    """
    fingerprints = scenes.fingerprints if fingerprints is None else fingerprints
    if len(fingerprints) != scenes.num_scenes:
        raise ValueError(
            f"fingerprints must have one entry for each of {scenes.num_scenes} scenes, found {len(fingerprints)}"
        )
    result = torch.ones(len(ensemble.members), scenes.num_groups, dtype=torch.bool)
    groups = scenes.group_index.tolist()
    for own, member in zip(result, ensemble.members, strict=True):
        known = set(member.training_scenes)
        own[[group for group, name in zip(groups, fingerprints, strict=True) if name in known]] = False
    return result


def trained_on(model: Checkpoint | Ensemble, scenes: Scenes) -> Tensor:
    """Scenes whose posterior uses them twice, for learning and for inference, bool ``[B]``.

    For an ensemble these are the scenes of structures that none of its models is new to.
    """
    if isinstance(model, Ensemble):
        return ~unseen(model, scenes).any(0)[scenes.group_index]
    known = set(model.training_scenes)
    return torch.tensor([name in known for name in scenes.fingerprints])


def relabel(draws: Draws, labels: Sequence[int], edge_mask: NDArray[np.bool_]) -> Draws:
    """The same draws with other numbers of types.

    Args:
        draws: draws with K types of G structures.
        labels: the new number of each type, a permutation of 0 to K - 1.
        edge_mask: which edges exist, ``[G, E]``; padded ones keep type 0.
    """
    table = np.asarray(labels, np.int8)
    probability = draws.edge_probability
    if probability is not None:
        changed = np.empty_like(probability)
        changed[..., table] = probability
        probability = np.where(edge_mask[..., None], changed, probability)
    return replace(
        draws,
        edge_type=np.where(edge_mask, table[draws.edge_type], draws.edge_type),
        edge_probability=probability,
        receiver_probability=None,
        prior=None if draws.prior is None else _relabelled(draws.prior, table),
        warmup=None if draws.warmup is None else relabel(draws.warmup, labels, edge_mask),
    )


def _relabelled(prior: PriorRecord, table: NDArray[np.int8]) -> PriorRecord:
    return replace(prior, type_probability=tuple(prior.type_probability[k] for k in np.argsort(table)))


def _mean_prior(priors: Sequence[PriorRecord | None]) -> PriorRecord | None:
    """One prior for the mixture: models learn their weights from much the same scenes, so they are near one another."""
    known = [prior for prior in priors if prior is not None]
    if len(known) < len(priors) or len({prior.name for prior in known}) > 1:
        return None
    mean = np.mean([prior.type_probability for prior in known], axis=0)
    return replace(known[0], type_probability=tuple(mean.tolist()))


def mix(parts: Sequence[tuple[Draws, NDArray[np.int64]]], group_names: tuple[str, ...], *, seed: int) -> Draws:
    """Draws of several models as draws of their equal mixture.

    Args:
        parts: draws of one model, made with the same arguments as the others, and the numbers of their structures
            among all G; each structure is in one part at least.
        group_names: G names of the structures.
        seed: fixes which draw comes from which model.
    """
    places = [groups for _, groups in parts]
    stream = Stream(seed, keys(group_names), 1).child("mixture")
    mixed = _mix([part for part, _ in parts], places, group_names, stream)
    warmups = [part.warmup for part, _ in parts if part.warmup is not None]
    if len(warmups) == len(parts):
        mixed = replace(mixed, warmup=_mix(warmups, places, group_names, stream.child("warmup")))
    return mixed


def _mix(parts: list[Draws], places: list[NDArray[np.int64]], group_names: tuple[str, ...], stream: Stream) -> Draws:
    first, num_groups = parts[0], len(group_names)
    num_draws = first.edge_type.shape[1]
    number = np.zeros(num_groups, np.int64)  # models of each structure
    for groups in places:
        number[groups] += 1
    # Draws are dealt to the models of a structure in random order: each model has as many as any other, give or take 1.
    order = stream.uniform(0, num_draws)[0].argsort(-1).argsort(-1).numpy()  # [G, S]
    dealer = order % number[:, None]
    arrays: dict[str, NDArray[Any]] = {}
    for name in ("edge_type", "log_joint", "accepted", "proposed"):
        value = getattr(first, name)
        arrays[name] = np.zeros((*value.shape[:2], num_groups, *value.shape[3:]), value.dtype)
    known = all(part.edge_probability is not None for part in parts)
    probability = np.zeros((num_groups, first.edge_type.shape[-1], first.num_edge_types))
    turn = np.zeros(num_groups, np.int64)  # number of the part among the models of each structure
    for part, groups in zip(parts, places, strict=True):
        mine = (dealer[groups] == turn[groups][:, None]).T  # [S, own G]
        draw, own = np.nonzero(mine)
        for name, array in arrays.items():
            array[:, draw, groups[own]] = getattr(part, name)[:, draw, own]
        if part.edge_probability is not None:
            probability[groups] += part.edge_probability / number[groups][:, None, None]
        turn[groups] += 1
    return replace(
        first,
        edge_type=arrays["edge_type"],
        log_joint=arrays["log_joint"],
        accepted=arrays["accepted"],
        proposed=arrays["proposed"],
        group_names=group_names,
        num_evaluations=sum(part.num_evaluations for part in parts),
        edge_probability=probability if known else None,
        receiver_probability=None,  # receivers are independent in each model, not in their mixture
        prior=_mean_prior([part.prior for part in parts]),
        log_marginal=None,  # models are weighted alike, not by how well they explain the scene
        warmup=None,
        attributes={},
    )
