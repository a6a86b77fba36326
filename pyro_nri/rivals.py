"""All methods of the paper's tables, ours beside its rivals, scored under one protocol."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_nri.baselines.baseline import AbstractBaseline
from pyro_nri.baselines.correlation import Correlation, fit_correlation
from pyro_nri.baselines.graphs import GraphNetwork
from pyro_nri.baselines.lstm import Lstm
from pyro_nri.baselines.refinement import Refined
from pyro_nri.baselines.rows import BASELINES, fit_baseline
from pyro_nri.baselines.training import Training
from pyro_nri.baselines.variational import Variational
from pyro_nri.dynamics.scaling import fit_scaling
from pyro_nri.fitting import fit
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.align import fit_alignment
from pyro_nri.posterior.rollout_errors import rollout_errors, rollout_scores
from pyro_nri.posterior.scores import score_edges
from pyro_nri.scenes.scenes import Scenes

#: This library's own methods: the paper's as a preset, BounceGrad on exact one-step posteriors, learned force laws.
OWN = ("paper", "message_passing", "pair_forces")
#: Names of all methods.
METHODS = (*BASELINES, *OWN)
#: What one training serves for, where that is more than one method.
SHARED = {"lstm_single": "correlation_lstm", "variational": "variational_refined"}
#: Training scenes that an alignment is fitted on.
MAX_ALIGNMENT_SCENES = 200
#: Chains of the paper's method are annealed and short: it looks for the best structure.
SEARCH: dict[str, Any] = {"num_chains": 1, "num_warmup": 20, "num_draws": 10}


def fit_method(
    name: str, scenes: Scenes, *, num_edge_types: int = 2, preset: str = "small", seed: int, **options: Any
) -> AbstractBaseline:
    """Train any method of the tables.

    Args:
        name: one of ``METHODS``.
        scenes: training scenes.
        num_edge_types: K.
        preset: size of the networks, "small" or "paper"; the method "paper" is always of the paper's size.
        seed: fixes all random numbers.
        options: of the training, such as ``minutes`` or ``num_steps``, ``device``, ``show_progress``.

    Raises:
        ValueError: the name is unknown, or an argument does not fit the method.
    """
    if name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found {name!r}")
    if name in BASELINES:
        return fit_baseline(name, scenes, num_edge_types=num_edge_types, preset=preset, seed=seed, **options)
    if name == "paper":
        return GraphNetwork(fit(scenes, num_edge_types, preset="paper", seed=seed, **options), **SEARCH)
    kinds = 1 if scenes.entity_kind is None else int(scenes.entity_kind.max()) + 1
    dynamics = name.replace("_", "-")
    spec = ModelSpec(num_edge_types, scenes.state_names, dynamics=dynamics, preset=preset, num_entity_kinds=kinds)
    return GraphNetwork(fit(scenes, spec=spec, seed=seed, **options), num_draws=1)


def fit_methods(name: str, scenes: Scenes, *, seed: int, **options: Any) -> dict[str, AbstractBaseline]:
    """The method of that name, and the one that its training serves for too, if there is one (``SHARED``)."""
    found = {name: fit_method(name, scenes, seed=seed, **options)}
    trained = found[name]
    if isinstance(trained, Lstm) and trained.num_entities is None:
        found[SHARED[name]] = fit_correlation(scenes, lstm=trained)
    elif isinstance(trained, Variational):
        found[SHARED[name]] = Refined(trained, seed=seed)
    return found


def num_steps(baseline: AbstractBaseline) -> int:
    """Gradient steps that a method was trained by; 0 where nothing is trained."""
    if isinstance(baseline, GraphNetwork):
        return int(baseline.checkpoint.training["num_steps"])
    trained = baseline.variational if isinstance(baseline, Refined) else baseline
    trained = trained.lstm if isinstance(trained, Correlation) and trained.lstm is not None else trained
    done: Training | None = getattr(trained, "training_done", None)
    return 0 if done is None else done.num_steps


def alignment_of(baseline: AbstractBaseline, train: Scenes) -> list[int]:
    """True type of each learned type, ``[K]``: one for the whole data set, fitted on training scenes.

    Methods that were shown labels have the true types.

    Raises:
        ValueError: the structures of the training scenes are not known.
    """
    if train.edge_type is None:
        raise ValueError("an alignment needs training scenes whose structures are known, and these have none")
    if isinstance(baseline, GraphNetwork) and baseline.checkpoint.alignment is not None:
        return list(baseline.checkpoint.alignment)
    some = train[: min(MAX_ALIGNMENT_SCENES, len(train))]
    # Refining improves edges and keeps their labels.
    reader = baseline.variational if isinstance(baseline, Refined) else baseline
    probability = reader.edge_probability(some)
    if baseline.uses_labels:
        return list(range(probability.shape[-1]))
    assert some.edge_type is not None
    truth = some.edge_type[some.group_first_scene]
    inferred = probability.argmax(-1).numpy()
    return [int(k) for k in fit_alignment(inferred.ravel(), truth.ravel(), num_edge_types=probability.shape[-1])]


def score_method(
    baseline: AbstractBaseline, train: Scenes, test: Scenes, *, start: int = 49, steps: Sequence[int] = (1, 10, 20)
) -> dict[str, Any]:
    """Edges from the frames before ``start``, motion after the observed frame ``start``, as published.

    Motion is predicted under the most probable structure, and errors are scaled by half the range of all positions
    (and of all velocities) of the training scenes.

    Args:
        baseline: a fitted method.
        train: its training scenes: for the scale of errors and for the alignment of types.
        test: other scenes with known structures, of ``start + max(steps) + 1`` frames at least.
        start: frame from which motion is predicted; structures are inferred from those before it.
        steps: steps ahead.

    Returns:
        ``uses_labels``, ``num_steps`` of the training, ``inference_seconds`` and, where the method says anything of
        them, ``edge_accuracy``, ``expected_accuracy`` and for each step ``mse_1`` (mean over scenes) and
        ``mse_1_median``, each with ``_low`` and ``_high``, its bootstrap interval over scenes.

    Raises:
        ValueError: there are too few frames, or structures are not known.
    """
    if test.edge_type is None:
        raise ValueError("test must have known structures to score against, and has none")
    started, scores, structure = time.monotonic(), dict[str, Any](), None
    if baseline.infers_structure:
        probability = baseline.edge_probability(test.frames(0, start))
        structure = probability.argmax(-1)
        mask = test.edge_mask[test.group_first_scene]
        scene = np.nonzero(mask.numpy())[0]
        truth = test.edge_type[test.group_first_scene][mask]
        found = score_edges(probability[mask], truth, scene, alignment=alignment_of(baseline, train))
        scores |= {name: found[name] for name in ("edge_accuracy", "expected_accuracy")}
    if baseline.predicts_motion:
        path = baseline.predict(test, start=start, num_steps=max(steps), structure=structure)
        errors = rollout_errors(
            path.numpy(),
            test.trajectory.numpy(),
            start=start,
            scale=fit_scaling(train).scale.numpy(),
            steps=steps,
            observation_mask=test.observation_mask.numpy(),
        )
        scores |= rollout_scores(errors)
    row = {
        "uses_labels": baseline.uses_labels,
        "num_steps": num_steps(baseline),
        "inference_seconds": time.monotonic() - started,
    }
    for name, value in scores.items():
        row |= {name: value["value"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
    return row
