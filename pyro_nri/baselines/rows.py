"""The rows of the paper's tables by name."""

from typing import Any

from pyro_nri.baselines.baseline import AbstractBaseline
from pyro_nri.baselines.correlation import fit_correlation
from pyro_nri.baselines.graphs import fit_full_graph, fit_true_graph
from pyro_nri.baselines.lstm import fit_lstm
from pyro_nri.baselines.refinement import Refined
from pyro_nri.baselines.static import Static
from pyro_nri.baselines.supervised import fit_supervised
from pyro_nri.baselines.variational import fit_variational
from pyro_nri.dynamics.message_passing import PRESETS
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.scenes import Scenes

#: Names of all baselines, as :func:`fit_baseline` takes them.
BASELINES = (
    "static",
    "lstm_single",
    "lstm_joint",
    "correlation_path",
    "correlation_lstm",
    "full_graph",
    "true_graph",
    "variational",
    "variational_refined",
    "supervised",
)


def fit_baseline(
    name: str, scenes: Scenes, *, num_edge_types: int = 2, preset: str = "small", seed: int, **options: Any
) -> AbstractBaseline:
    """Fit a baseline to training scenes.

    Args:
        name: one of ``BASELINES``.
        scenes: training scenes. The threshold of a correlation, the true graph and the supervised encoder need to know
            their structures; the others do not look at them.
        num_edge_types: K.
        preset: size of all networks, "small" or "paper", as those of the main method.
        seed: fixes all random numbers.
        options: of the training: ``num_steps`` or ``minutes``, ``batch_size``, ``learning_rate``, ``device``,
            ``show_progress``. What is not trained by gradients has no use for them.

    Raises:
        ValueError: the name is unknown, or an argument does not fit the baseline.

    Example:
        >>> from pyro_nri.scenes.simulate import simulate
        >>> train, test = simulate("springs", 8, seed=1), simulate("springs", 2, num_frames=70, seed=2)
        >>> baseline = fit_baseline("lstm_single", train, num_steps=2, seed=0)
        >>> baseline.predict(test, start=49, num_steps=20).shape
        torch.Size([2, 20, 5, 4])
    """
    if name not in BASELINES:
        raise ValueError(f"baseline must be one of {', '.join(BASELINES)}, found {name!r}")
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, found {preset!r}")
    width = PRESETS[preset]["width"]
    kinds = 1 if scenes.entity_kind is None else int(scenes.entity_kind.max()) + 1
    spec = ModelSpec(num_edge_types, scenes.state_names, preset=preset, num_entity_kinds=kinds)
    if name == "static":
        return Static()
    if name == "correlation_path":
        return fit_correlation(scenes, num_edge_types=num_edge_types)
    if name == "correlation_lstm":
        lstm = fit_lstm(scenes, width=width, seed=seed, **options)
        return fit_correlation(scenes, lstm=lstm, num_edge_types=num_edge_types)
    if name in ("lstm_single", "lstm_joint"):
        return fit_lstm(scenes, form=name.removeprefix("lstm_"), width=width, seed=seed, **options)
    if name == "supervised":
        return fit_supervised(scenes, num_edge_types=num_edge_types, width=width, seed=seed, **options)
    if name == "full_graph":
        return fit_full_graph(scenes, spec=spec, seed=seed, **options)
    if name == "true_graph":
        return fit_true_graph(scenes, spec=spec, seed=seed, **options)
    equal = ModelSpec.from_dict(spec.to_dict() | {"learn_type_weights": False})
    variational = fit_variational(scenes, spec=equal, seed=seed, **options)
    return variational if name == "variational" else Refined(variational, seed=seed)
