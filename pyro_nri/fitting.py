"""From scenes to a trained model in one call."""

import copy
from collections.abc import Callable
from typing import Any

import torch

from pyro_nri.learning.agreement import fit_power
from pyro_nri.learning.bouncegrad import BounceGrad
from pyro_nri.learning.calibration import calibrate
from pyro_nri.learning.chance import fit_chance, shrink_type_weights
from pyro_nri.learning.checkpoint import Checkpoint, new_checkpoint
from pyro_nri.learning.distill import distill
from pyro_nri.learning.law_bootstrap import bootstrap_laws
from pyro_nri.learning.laws import fit_laws
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.align import fit_alignment
from pyro_nri.posterior.halves import compare_halves
from pyro_nri.presets import find_preset
from pyro_nri.scenes.scenes import Scenes

#: Gradient steps and learning rate by default.
DEFAULT_STEPS = {"message-passing": 600, "pair-forces": 200}
LEARNING_RATE = {"message-passing": 3e-3, "pair-forces": 5e-3}
#: Share of the time that laws of pair forces are learned by gradient; the rest is for their closed form.
NEURAL_SHARE = 0.25
#: Training scenes whose halves are compared at the end.
MAX_HALVED = 50


def fit(
    scenes: Scenes,
    num_edge_types: int | None = None,
    *,
    spec: ModelSpec | None = None,
    preset: str = "small",
    num_steps: int | None = None,
    minutes: float | None = None,
    seed: int,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    save_every: float = 30.0,
    device: torch.device | str = "cpu",
    law_bootstrap: int = 200,
    distill_steps: int = 0,
    show_progress: bool = False,
    **options: Any,
) -> Checkpoint:
    """Learn modules and a proposal from scenes without knowing their structures.

    Args:
        scenes: training scenes. If they carry truth, it serves at the end to say which learned type stands for which
            true one (``alignment``); learning and inference never look at it.
        num_edge_types: K; the other choices of the model are then the defaults of :class:`ModelSpec`.
        spec: all choices of the model, in place of ``num_edge_types``.
        preset: "paper" for the method of the paper by name: its networks, horizon, search and rates, see
            :mod:`pyro_nri.presets`. What ``spec`` and ``options`` say comes first.
        num_steps: length of the training in gradient steps; by default 600, for pair forces 200.
        minutes: length by the clock instead.
        seed: fixes all random numbers.
        resume: what ``save`` was given in an interrupted run of the same call.
        save: called with the checkpoint before the first step, every ``save_every`` seconds and at the end.
        save_every: seconds.
        device: where to train; the model comes back on the CPU.
        law_bootstrap: number of bootstrap replicates of fitted laws, for their intervals; 0 for none.
        distill_steps: steps after the training in which the proposal is distilled on posterior draws, see
            :func:`~pyro_nri.learning.distill.distill`; 0 for none.
        show_progress: progress bar on standard error.
        options: further arguments of :class:`BounceGrad`, such as ``inner``, ``batch_size``, ``structure``.

    Returns:
        The trained model with its encoder.

    Raises:
        ValueError: an argument is out of range, or ``resume`` is of another run.

    Example:
        >>> from pyro_nri.scenes.simulate import simulate
        >>> checkpoint = fit(simulate("springs", 8, num_entities=3, seed=0), num_edge_types=2, num_steps=5, seed=0)
        >>> checkpoint.model.num_edge_types
        2
    """
    if (spec is None) == (num_edge_types is None):
        raise ValueError("give either num_edge_types or spec")
    scenes = scenes.to(device="cpu")
    if distill_steps < 0:
        raise ValueError(f"distill_steps must be 0 or more, found {distill_steps}")
    method = find_preset(preset, "message-passing" if spec is None else spec.dynamics)
    if spec is None:
        assert num_edge_types is not None
        kinds = 1 if scenes.entity_kind is None else int(scenes.entity_kind.max()) + 1
        spec = ModelSpec(num_edge_types, scenes.state_names, num_entity_kinds=kinds, **method.spec)
    if num_steps is None:
        num_steps = DEFAULT_STEPS.get(spec.dynamics, 600) if minutes is None else 10**9
    if resume is not None:
        checkpoint = copy.deepcopy(_checked(resume, spec, seed))
    else:
        checkpoint = _new(scenes, spec, method.encoder_width, seed)
    model, encoder = checkpoint.model.to(device), checkpoint.encoder
    if encoder is not None:
        encoder.to(device)
    fits_laws = spec.dynamics == "pair-forces" and spec.horizon == 1
    trainer = BounceGrad(
        model,
        scenes,
        encoder=encoder,
        num_steps=num_steps,
        minutes=None if minutes is None else minutes * (NEURAL_SHARE if fits_laws else 1),
        seed=seed,
        **{"batch_size": 16, "learning_rate": LEARNING_RATE[spec.dynamics], **method.training, **options},
    )
    if checkpoint.trainer is not None:
        trainer.load_state_dict(checkpoint.trainer)
    checkpoint.training_scenes = scenes.fingerprints

    def keep(trainer: BounceGrad) -> None:
        checkpoint.trainer = trainer.state_dict()
        checkpoint.training = {
            **checkpoint.training,
            "seed": seed,
            "num_scenes": scenes.num_scenes,
            "num_frames": scenes.num_frames,
            "num_steps": trainer.num_done,
            "seconds": trainer.seconds,
            "inner": trainer.inner,
        }
        if save is not None:
            save(copy.deepcopy(checkpoint))

    keep(trainer)  # an output that cannot be written is found out before the work, not after
    history = trainer.run(show_progress=show_progress, save=keep, save_every=save_every)
    checkpoint.trainer = None
    model.to("cpu")
    if encoder is not None:
        encoder.to("cpu")
    if fits_laws:
        given = trainer.structure.cpu() if trainer.inner == "given" else None
        law_fit = fit_laws(model, scenes, structure=given, seed=seed, show_progress=show_progress)
        if law_bootstrap:
            known = None if given is None else law_fit.structure
            drawn = bootstrap_laws(model, law_fit.scenes, structure=known, num_replicates=law_bootstrap, seed=seed)
            checkpoint.law_draws, checkpoint.law_support = drawn
        calibrate(model, law_fit.scenes, law_fit.structure, laws=checkpoint.law_draws, seed=seed)
        checkpoint.training["chance"] = fit_chance(model, law_fit.scenes, seed=seed)
        if given is None:
            shrink_type_weights(model.prior, max(checkpoint.training["chance"].values(), default=0.0))
        checkpoint.training["median_residual"] = law_fit.median_residual
        checkpoint.training["clock_lag"] = float(model.impulse_parts[0].clock_lag)
        checkpoint.training["force_limit"] = float(model.impulse_parts[0].force_limit)
        checkpoint.training["leapfrog_steps"] = int(model.impulse_parts[0].leapfrog_steps)
        checkpoint.training["laws_seconds"] = law_fit.seconds
    else:
        fit_power(model, scenes)
    if history:
        checkpoint.training["loss"] = sum(losses.module_loss for losses in history[-20:]) / len(history[-20:])
    if scenes.edge_type is not None:
        first = torch.tensor(scenes.group_first_scene)[trainer.settled]
        mask = scenes.edge_mask[first]
        inferred = trainer.structure.cpu()[trainer.settled][
            mask
        ].numpy()  # draws, none older than a quarter of training
        truth = scenes.edge_type[first][mask].numpy()
        alignment = fit_alignment(inferred, truth, num_edge_types=spec.num_edge_types)
        checkpoint.alignment = alignment.tolist()
        checkpoint.training["edge_accuracy"] = float((alignment[inferred] == truth).mean())
    if (halves := _halves(checkpoint, scenes)) is not None:
        checkpoint.training["halves"] = halves
    if distill_steps:
        checkpoint.to(device)
        checkpoint = distill(checkpoint, scenes, num_steps=distill_steps, seed=seed, show_progress=show_progress)
        checkpoint.to("cpu")
    return checkpoint


def _halves(checkpoint: Checkpoint, scenes: Scenes) -> dict[str, int] | None:
    """In how many training scenes the halves contradict each other on the structure; None where that is not known."""
    some = scenes[torch.isin(scenes.group_index, torch.arange(MAX_HALVED))]
    try:
        compared = compare_halves(checkpoint, some)
    except ValueError:  # scenes too short, or structures too many to enumerate
        return None
    return {"contradict": int(compared["contradict"].sum()), "scenes": len(compared)}


def _new(scenes: Scenes, spec: ModelSpec, encoder_width: int, seed: int) -> Checkpoint:
    checkpoint = new_checkpoint(spec, encoder_width=encoder_width, seed=seed)
    checkpoint.model.fit_scaling(scenes)
    if checkpoint.encoder is not None:
        checkpoint.encoder.fit_scaling(scenes)
    return checkpoint


def _checked(checkpoint: Checkpoint, spec: ModelSpec, seed: int) -> Checkpoint:
    if checkpoint.trainer is None:
        raise ValueError("resume holds a finished training, there is nothing to resume")
    if checkpoint.spec != spec:
        raise ValueError("resume was made with other choices of model; give the same arguments to resume")
    if checkpoint.training.get("seed") != seed:
        raise ValueError(f"resume was made with seed {checkpoint.training.get('seed')}, found seed {seed}")
    return checkpoint
