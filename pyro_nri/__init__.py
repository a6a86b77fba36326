"""Posterior inference over interaction structures from trajectories.

The names below are loaded when they are first used, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_nri.fitting import fit
    from pyro_nri.inference.kernel import StructureKernel
    from pyro_nri.inference.run import infer
    from pyro_nri.learning.bouncegrad import BounceGrad
    from pyro_nri.learning.checkpoint import load_checkpoint, save_checkpoint
    from pyro_nri.learning.distill import distill
    from pyro_nri.model.program import SceneModel
    from pyro_nri.model.spec import ModelSpec
    from pyro_nri.posterior.compare import edge_differences
    from pyro_nri.posterior.comparison import compare_posteriors, comparison_frame
    from pyro_nri.posterior.convergence import chain_modes, check, graph_distance_ess, split_frequencies
    from pyro_nri.posterior.convert import to_datatree
    from pyro_nri.posterior.covariates import compare_covariate
    from pyro_nri.posterior.diagnostics import diagnostics_frame, summarize
    from pyro_nri.posterior.distances import scene_distances
    from pyro_nri.posterior.forecasts import leave_future_out, psis_loo
    from pyro_nri.posterior.frames import edges_frame, structures_frame
    from pyro_nri.posterior.groups import compare_groups
    from pyro_nri.posterior.law_plots import plot_laws
    from pyro_nri.posterior.laws import laws_frame
    from pyro_nri.posterior.marginals import compare_priors
    from pyro_nri.posterior.plots import plot_structures
    from pyro_nri.posterior.predictions import predict
    from pyro_nri.posterior.probability import indicators
    from pyro_nri.posterior.scores import score
    from pyro_nri.posterior.selection import compare_models
    from pyro_nri.posterior.storage import read_posterior, write_posterior
    from pyro_nri.posterior.subsets import add_columns
    from pyro_nri.scenes.readers import from_dataframe, read_scenes
    from pyro_nri.scenes.scenes import Scenes
    from pyro_nri.scenes.simulate import simulate
    from pyro_nri.scenes.velocities import with_velocities

_HOME = {
    "BounceGrad": "learning.bouncegrad",
    "ModelSpec": "model.spec",
    "SceneModel": "model.program",
    "Scenes": "scenes.scenes",
    "StructureKernel": "inference.kernel",
    "add_columns": "posterior.subsets",
    "chain_modes": "posterior.convergence",
    "check": "posterior.convergence",
    "compare_covariate": "posterior.covariates",
    "compare_groups": "posterior.groups",
    "compare_models": "posterior.selection",
    "compare_posteriors": "posterior.comparison",
    "compare_priors": "posterior.marginals",
    "comparison_frame": "posterior.comparison",
    "diagnostics_frame": "posterior.diagnostics",
    "distill": "learning.distill",
    "edge_differences": "posterior.compare",
    "edges_frame": "posterior.frames",
    "fit": "fitting",
    "from_dataframe": "scenes.readers",
    "graph_distance_ess": "posterior.convergence",
    "indicators": "posterior.probability",
    "infer": "inference.run",
    "laws_frame": "posterior.laws",
    "leave_future_out": "posterior.forecasts",
    "load_checkpoint": "learning.checkpoint",
    "plot_laws": "posterior.law_plots",
    "plot_structures": "posterior.plots",
    "predict": "posterior.predictions",
    "psis_loo": "posterior.forecasts",
    "read_posterior": "posterior.storage",
    "read_scenes": "scenes.readers",
    "save_checkpoint": "learning.checkpoint",
    "scene_distances": "posterior.distances",
    "score": "posterior.scores",
    "simulate": "scenes.simulate",
    "split_frequencies": "posterior.convergence",
    "structures_frame": "posterior.frames",
    "summarize": "posterior.diagnostics",
    "to_datatree": "posterior.convert",
    "with_velocities": "scenes.velocities",
    "write_posterior": "posterior.storage",
}

__all__ = [
    "BounceGrad",
    "ModelSpec",
    "SceneModel",
    "Scenes",
    "StructureKernel",
    "add_columns",
    "chain_modes",
    "check",
    "compare_covariate",
    "compare_groups",
    "compare_models",
    "compare_posteriors",
    "compare_priors",
    "comparison_frame",
    "diagnostics_frame",
    "distill",
    "edge_differences",
    "edges_frame",
    "fit",
    "from_dataframe",
    "graph_distance_ess",
    "indicators",
    "infer",
    "laws_frame",
    "leave_future_out",
    "load_checkpoint",
    "plot_laws",
    "plot_structures",
    "predict",
    "psis_loo",
    "read_posterior",
    "read_scenes",
    "save_checkpoint",
    "scene_distances",
    "score",
    "simulate",
    "split_frequencies",
    "structures_frame",
    "summarize",
    "to_datatree",
    "with_velocities",
    "write_posterior",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pyro_nri' has no attribute {name!r}")
    value = getattr(import_module(f"pyro_nri.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
