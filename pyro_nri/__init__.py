"""Posterior inference over interaction structures from trajectories.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_nri.fitting import fit
    from pyro_nri.inference.hidden_find import find_hidden
    from pyro_nri.inference.hidden_run import infer_hidden
    from pyro_nri.inference.kernel import StructureKernel
    from pyro_nri.inference.noisy_run import infer_noisy
    from pyro_nri.inference.run import infer
    from pyro_nri.learning.bouncegrad import BounceGrad
    from pyro_nri.learning.checkpoint import load_checkpoint, save_checkpoint
    from pyro_nri.learning.distill import distill
    from pyro_nri.model.program import SceneModel
    from pyro_nri.model.spec import ModelSpec
    from pyro_nri.posterior.calibration import calibration
    from pyro_nri.posterior.calibration_plots import plot_reliability
    from pyro_nri.posterior.chain_plots import plot_ranks, plot_split_frequencies, plot_trace
    from pyro_nri.posterior.compare import edge_differences
    from pyro_nri.posterior.comparison import compare_posteriors, comparison_frame
    from pyro_nri.posterior.convergence import chain_modes, check, graph_distance_ess, split_frequencies
    from pyro_nri.posterior.convert import to_datatree
    from pyro_nri.posterior.covariates import compare_covariate
    from pyro_nri.posterior.diagnostics import diagnostics_frame, summarize
    from pyro_nri.posterior.distances import scene_distances
    from pyro_nri.posterior.edge_plots import plot_edge_counts, plot_edge_probabilities, plot_structure_probabilities
    from pyro_nri.posterior.forecasts import leave_future_out, psis_loo
    from pyro_nri.posterior.frames import edges_frame, read_frame, structures_frame, write_frame
    from pyro_nri.posterior.graph_statistics import distances_frame, edge_counts_frame
    from pyro_nri.posterior.groups import compare_groups
    from pyro_nri.posterior.halves import compare_halves
    from pyro_nri.posterior.hidden_frames import hidden_frame, num_hidden_frame
    from pyro_nri.posterior.hidden_plots import animate_hidden, plot_hidden
    from pyro_nri.posterior.inclusion import bayes_factors_frame
    from pyro_nri.posterior.law_plots import plot_laws
    from pyro_nri.posterior.laws import laws_frame
    from pyro_nri.posterior.marginals import compare_priors
    from pyro_nri.posterior.parts import select_scenes
    from pyro_nri.posterior.plots import plot_structures
    from pyro_nri.posterior.predictions import predict, predictions_frame
    from pyro_nri.posterior.probability import indicators
    from pyro_nri.posterior.recorded import initial_states_frame
    from pyro_nri.posterior.report import write_report
    from pyro_nri.posterior.scores import score
    from pyro_nri.posterior.selection import compare_models
    from pyro_nri.posterior.storage import open_posterior, read_posterior, write_posterior
    from pyro_nri.posterior.subsets import add_columns
    from pyro_nri.posterior.track_plots import plot_predictions, plot_tracks
    from pyro_nri.posterior.uncertainty import uncertainty_frame
    from pyro_nri.rivals import fit_method, score_method
    from pyro_nri.scenes.hidden_entities import with_hidden
    from pyro_nri.scenes.readers import from_dataframe, read_scenes
    from pyro_nri.scenes.scenes import Scenes
    from pyro_nri.scenes.simulate import simulate
    from pyro_nri.scenes.velocities import with_velocities

    __version__: str

_HOME = {
    "BounceGrad": "learning.bouncegrad",
    "ModelSpec": "model.spec",
    "SceneModel": "model.program",
    "Scenes": "scenes.scenes",
    "StructureKernel": "inference.kernel",
    "add_columns": "posterior.subsets",
    "animate_hidden": "posterior.hidden_plots",
    "bayes_factors_frame": "posterior.inclusion",
    "calibration": "posterior.calibration",
    "chain_modes": "posterior.convergence",
    "check": "posterior.convergence",
    "compare_covariate": "posterior.covariates",
    "compare_groups": "posterior.groups",
    "compare_models": "posterior.selection",
    "compare_posteriors": "posterior.comparison",
    "compare_halves": "posterior.halves",
    "compare_priors": "posterior.marginals",
    "comparison_frame": "posterior.comparison",
    "diagnostics_frame": "posterior.diagnostics",
    "distances_frame": "posterior.graph_statistics",
    "distill": "learning.distill",
    "edge_counts_frame": "posterior.graph_statistics",
    "edge_differences": "posterior.compare",
    "edges_frame": "posterior.frames",
    "find_hidden": "inference.hidden_find",
    "fit": "fitting",
    "fit_method": "rivals",
    "from_dataframe": "scenes.readers",
    "graph_distance_ess": "posterior.convergence",
    "hidden_frame": "posterior.hidden_frames",
    "indicators": "posterior.probability",
    "infer": "inference.run",
    "infer_hidden": "inference.hidden_run",
    "infer_noisy": "inference.noisy_run",
    "initial_states_frame": "posterior.recorded",
    "laws_frame": "posterior.laws",
    "leave_future_out": "posterior.forecasts",
    "load_checkpoint": "learning.checkpoint",
    "num_hidden_frame": "posterior.hidden_frames",
    "open_posterior": "posterior.storage",
    "plot_edge_counts": "posterior.edge_plots",
    "plot_edge_probabilities": "posterior.edge_plots",
    "plot_hidden": "posterior.hidden_plots",
    "plot_laws": "posterior.law_plots",
    "plot_predictions": "posterior.track_plots",
    "plot_ranks": "posterior.chain_plots",
    "plot_reliability": "posterior.calibration_plots",
    "plot_split_frequencies": "posterior.chain_plots",
    "plot_structure_probabilities": "posterior.edge_plots",
    "plot_structures": "posterior.plots",
    "plot_trace": "posterior.chain_plots",
    "plot_tracks": "posterior.track_plots",
    "predict": "posterior.predictions",
    "predictions_frame": "posterior.predictions",
    "psis_loo": "posterior.forecasts",
    "read_frame": "posterior.frames",
    "read_posterior": "posterior.storage",
    "read_scenes": "scenes.readers",
    "save_checkpoint": "learning.checkpoint",
    "scene_distances": "posterior.distances",
    "score": "posterior.scores",
    "score_method": "rivals",
    "select_scenes": "posterior.parts",
    "simulate": "scenes.simulate",
    "split_frequencies": "posterior.convergence",
    "structures_frame": "posterior.frames",
    "summarize": "posterior.diagnostics",
    "to_datatree": "posterior.convert",
    "uncertainty_frame": "posterior.uncertainty",
    "with_hidden": "scenes.hidden_entities",
    "with_velocities": "scenes.velocities",
    "write_frame": "posterior.frames",
    "write_posterior": "posterior.storage",
    "write_report": "posterior.report",
}

__all__ = [
    "BounceGrad",
    "ModelSpec",
    "SceneModel",
    "Scenes",
    "StructureKernel",
    "add_columns",
    "animate_hidden",
    "bayes_factors_frame",
    "calibration",
    "chain_modes",
    "check",
    "compare_covariate",
    "compare_groups",
    "compare_halves",
    "compare_models",
    "compare_posteriors",
    "compare_priors",
    "comparison_frame",
    "diagnostics_frame",
    "distances_frame",
    "distill",
    "edge_counts_frame",
    "edge_differences",
    "edges_frame",
    "find_hidden",
    "fit",
    "fit_method",
    "from_dataframe",
    "graph_distance_ess",
    "hidden_frame",
    "indicators",
    "infer",
    "infer_hidden",
    "infer_noisy",
    "initial_states_frame",
    "laws_frame",
    "leave_future_out",
    "load_checkpoint",
    "num_hidden_frame",
    "open_posterior",
    "plot_edge_counts",
    "plot_edge_probabilities",
    "plot_hidden",
    "plot_laws",
    "plot_predictions",
    "plot_ranks",
    "plot_reliability",
    "plot_split_frequencies",
    "plot_structure_probabilities",
    "plot_structures",
    "plot_trace",
    "plot_tracks",
    "predict",
    "predictions_frame",
    "psis_loo",
    "read_frame",
    "read_posterior",
    "read_scenes",
    "save_checkpoint",
    "scene_distances",
    "score",
    "score_method",
    "select_scenes",
    "simulate",
    "split_frequencies",
    "structures_frame",
    "summarize",
    "to_datatree",
    "uncertainty_frame",
    "with_hidden",
    "with_velocities",
    "write_frame",
    "write_posterior",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from pyro_nri.version import installed_version

        return installed_version()
    if name not in _HOME:
        raise AttributeError(f"module 'pyro_nri' has no attribute {name!r}")
    value = getattr(import_module(f"pyro_nri.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
