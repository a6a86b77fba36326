"""Several models from one set of scenes: for users who learn from the same few scenes that they infer.

Cross-fitting (Chernozhukov et al. 2018, "Double/debiased machine learning") deals the structures to folds and learns
models for each fold from all other folds, so that no posterior uses a scene twice. An ensemble of models from bootstrap
resamples of the scenes (bagging: Breiman 1996) brings the uncertainty of the learned modules into the posterior. Both
give an :class:`~pyro_nri.learning.checkpoint.Ensemble`, which
:func:`~pyro_nri.learning.mixtures.infer_ensemble` infers with.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_nri.fitting import fit
from pyro_nri.inference.streams import generator
from pyro_nri.learning.bouncegrad import Diverged
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble
from pyro_nri.learning.matching import LOW_AGREEMENT, match_models
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.scenes import Scenes


def cross_fit(
    scenes: Scenes, *, num_folds: int, num_models: int = 1, spec: ModelSpec, seed: int, **options: Any
) -> Ensemble:
    """Learn models for each fold of the scenes from the other folds, with second starts as in :func:`fit_ensemble`.

    Args:
        scenes: training scenes. If they carry truth, it serves only to say which type of the first model stands for
            which true one, on that model's own training scenes.
        num_folds: F; structure groups are dealt to folds at random, as many as there are structures leave one out.
        num_models: models for each fold; more than one learn from bootstrap resamples of the other folds' structures.
        spec: all choices of the models.
        seed: fixes all random numbers.
        options: ``resume``, ``save``, ``fingerprints``, ``minutes`` as for :func:`fit_ensemble`, and further arguments
            of :func:`~pyro_nri.fitting.fit`.

    Returns:
        F times ``num_models`` models, fold by fold, with matched types.

    Raises:
        ValueError: an argument is out of range, or ``resume`` is of another run.

    Example:
        >>> from pyro_nri.learning.mixtures import infer_ensemble
        >>> from pyro_nri.scenes.simulate import simulate
        >>> scenes = simulate("springs", 4, num_entities=3, seed=0)
        >>> ensemble = cross_fit(scenes, num_folds=2, spec=ModelSpec(num_edge_types=2), num_steps=2, seed=0)
        >>> infer_ensemble(ensemble, scenes, num_draws=10, seed=0).edge_probability.shape  # [G, E, K]
        (4, 6, 2)
    """
    if num_models < 1:
        raise ValueError(f"num_models must be at least 1, found {num_models}")
    fold = deal_folds(scenes.num_groups, num_folds, seed=seed)
    picked = []
    for number in range(num_folds):
        others = (fold != number).nonzero().squeeze(-1)
        for model in range(num_models):
            picked.append(others if num_models == 1 else _resampled(others, seed, number, model))
    ensemble = _fit_members(scenes, picked, spec=spec, seed=seed, plan={"num_folds": num_folds}, **options)
    return ensemble


def fit_ensemble(scenes: Scenes, *, num_models: int, spec: ModelSpec, seed: int, **options: Any) -> Ensemble:
    """Learn models from bootstrap resamples of the scenes' structures.

    For a scene that some of the models did not happen to be trained on, those alone are used. A model that agrees with
    the others on few edges is learned again from another start; the start that explains its own scenes better stays.

    Args:
        scenes: training scenes, whose truth is used as in :func:`cross_fit`.
        num_models: M, 2 or more.
        spec: all choices of the models.
        seed: fixes all random numbers.
        options: further arguments of :func:`~pyro_nri.fitting.fit`, each for one model, except that ``minutes`` is
            shared by all; ``save`` is called with an unfinished :class:`Ensemble`, and ``resume`` takes what it was
            given; ``law_bootstrap`` is 0 by default; ``fingerprints`` are those of the whole recordings, if ``scenes``
            are cut out of them.

    Returns:
        M models with matched types.

    Raises:
        ValueError: an argument is out of range, or ``resume`` is of another run.
    """
    if num_models < 2:
        raise ValueError(f"num_models must be at least 2 for an ensemble, found {num_models}")
    everything = torch.arange(scenes.num_groups)
    picked = [_resampled(everything, seed, 0, model) for model in range(num_models)]
    return _fit_members(scenes, picked, spec=spec, seed=seed, plan={}, **options)


def deal_folds(num_groups: int, num_folds: int, *, seed: int) -> Tensor:
    """Number of the fold of each structure group, long ``[G]``; folds differ by one structure at most.

    Raises:
        ValueError: there are fewer than two folds, or more than structures.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds must be at least 2, found {num_folds}")
    if num_folds > num_groups:
        raise ValueError(f"num_folds must be at most the number of structures, {num_groups}, found {num_folds}")
    fold = torch.empty(num_groups, dtype=torch.long)
    fold[torch.randperm(num_groups, generator=generator(seed, "folds"))] = torch.arange(num_groups) % num_folds
    return fold


def pick_groups(scenes: Scenes, picked: Sequence[int]) -> Scenes:
    """The scenes of some structure groups, by their numbers; a group that is picked again becomes another group."""
    index = scenes.group_index
    rows, scene_names, groups = [], [], []
    again = len(set(picked)) < len(picked)
    for place, group in enumerate(picked):
        mark = f"{place}: " if again else ""
        for scene in (index == group).nonzero().squeeze(-1).tolist():
            rows.append(scene)
            scene_names.append(mark + scenes.scene_names[scene])
            groups.append(mark + scenes.structure_group[scene])
    return replace(scenes[rows], scene_names=tuple(scene_names), structure_group=tuple(groups))


def _resampled(groups: Tensor, seed: int, fold: int, model: int) -> Tensor:
    drawn = torch.randint(len(groups), (len(groups),), generator=generator(seed, "resample", fold, model))
    return groups[drawn].sort().values


def _fit_members(
    scenes: Scenes,
    picked: list[Tensor],
    *,
    spec: ModelSpec,
    seed: int,
    plan: dict[str, int],
    resume: Ensemble | None = None,
    save: Callable[[Ensemble], None] | None = None,
    fingerprints: Sequence[str] | None = None,
    minutes: float | None = None,
    structure: Tensor | None = None,
    show_progress: bool = False,
    **options: Any,
) -> Ensemble:
    """A model for each pick of structure groups; those that ``resume`` holds finished are kept as they are."""
    fingerprints = scenes.fingerprints if fingerprints is None else tuple(fingerprints)
    plan = {"seed": seed, "num_scenes": scenes.num_scenes, "num_frames": scenes.num_frames, **plan}
    plan["num_models"] = len(picked)
    members: list[Checkpoint] = []
    started: Checkpoint | None = None
    if resume is not None:
        _check_resume(resume, spec, plan, fingerprints)
        members = [member for member in resume.members if member.trainer is None]
        started = next((member for member in resume.members if member.trainer is not None), None)

    def whole(parts: list[Checkpoint]) -> Ensemble:
        training = {
            **(resume.training if resume is not None else {}),
            **plan,
            "num_steps": sum(part.training["num_steps"] for part in parts),
            "seconds": sum(part.training["seconds"] for part in parts),
            "inner": parts[0].training["inner"],
        }
        return Ensemble(parts, training=training, training_scenes=fingerprints)

    index = scenes.group_index

    def learn(number: int, *purpose: str, resume: Checkpoint | None = None, save_parts: bool = False) -> Checkpoint:
        known = torch.isin(index, picked[number]).tolist()
        own = tuple(name for name, is_own in zip(fingerprints, known, strict=True) if is_own)

        def keep(unfinished: Checkpoint) -> None:
            unfinished.training_scenes = own
            assert save is not None
            save(whole([*members, unfinished]))

        member = fit(
            pick_groups(scenes, picked[number].tolist()),
            spec=spec,
            seed=int(torch.randint(2**31, (1,), generator=generator(seed, "member", number, *purpose))),
            resume=resume,
            save=keep if save is not None and save_parts else None,
            minutes=None if minutes is None else minutes / len(picked),
            structure=None if structure is None else structure[picked[number]],
            show_progress=show_progress,
            **{"law_bootstrap": 0, **options},
        )
        member.training_scenes = own
        return member

    with tqdm(total=len(picked), initial=len(members), disable=not show_progress, desc="models", unit="model") as bar:
        for number in range(len(members), len(picked)):
            members.append(learn(number, resume=started, save_parts=True))
            started = None
            bar.update()
            if save is not None:
                save(whole(members))
    found = match_models(members, scenes, seed=seed)
    odd = [number for number, share in enumerate(found.agreement) if share < LOW_AGREEMENT]
    if 0 < len(odd) < len(members):  # stuck while the others were not, perhaps: another start tells
        for number in odd:
            with suppress(Diverged):
                again = learn(number, "again")
                if _misfit(again) < _misfit(members[number]):
                    members[number] = again
        found = match_models(members, scenes, seed=seed)
    ensemble = whole(members)
    ensemble.labels = [list(labels) for labels in found.labels]
    ensemble.alignment = members[0].alignment
    ensemble.training["agreement"] = list(found.agreement)
    if losses := [member.training["loss"] for member in members if "loss" in member.training]:
        ensemble.training["loss"] = sum(losses) / len(losses)
    return ensemble


def _misfit(member: Checkpoint) -> float:
    """How badly a model explains its own training scenes, to compare two starts on the same scenes."""
    return float(member.training.get("median_residual", member.training.get("loss", math.inf)))


def _check_resume(ensemble: Ensemble, spec: ModelSpec, plan: dict[str, int], fingerprints: tuple[str, ...]) -> None:
    if "agreement" in ensemble.training:
        raise ValueError("resume holds a finished training, there is nothing to resume")
    if ensemble.spec != spec:
        raise ValueError("resume was made with other choices of model; give the same arguments to resume")
    if ensemble.training_scenes != fingerprints:
        raise ValueError("resume was made with other scenes; give the same to resume")
    for name, value in plan.items():
        if (kept := ensemble.training.get(name)) != value:
            raise ValueError(f"resume was made with {name} {kept}, found {value}")
