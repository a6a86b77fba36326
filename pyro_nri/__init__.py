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
    from pyro_nri.posterior.convergence import chain_modes, check, graph_distance_ess, split_frequencies
    from pyro_nri.posterior.convert import to_datatree
    from pyro_nri.posterior.diagnostics import diagnostics_frame, summarize
    from pyro_nri.posterior.frames import edges_frame, structures_frame
    from pyro_nri.posterior.law_plots import plot_laws
    from pyro_nri.posterior.laws import laws_frame
    from pyro_nri.posterior.marginals import compare_priors
    from pyro_nri.posterior.plots import plot_structures
    from pyro_nri.posterior.predictions import predict
    from pyro_nri.posterior.probability import indicators
    from pyro_nri.posterior.scores import score
    from pyro_nri.posterior.selection import compare_models
    from pyro_nri.posterior.storage import read_posterior, write_posterior
    from pyro_nri.rivals import fit_method, score_method
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
    "chain_modes": "posterior.convergence",
    "check": "posterior.convergence",
    "compare_models": "posterior.selection",
    "compare_priors": "posterior.marginals",
    "diagnostics_frame": "posterior.diagnostics",
    "distill": "learning.distill",
    "edges_frame": "posterior.frames",
    "fit": "fitting",
    "fit_method": "rivals",
    "from_dataframe": "scenes.readers",
    "graph_distance_ess": "posterior.convergence",
    "indicators": "posterior.probability",
    "infer": "inference.run",
    "laws_frame": "posterior.laws",
    "load_checkpoint": "learning.checkpoint",
    "plot_laws": "posterior.law_plots",
    "plot_structures": "posterior.plots",
    "predict": "posterior.predictions",
    "read_posterior": "posterior.storage",
    "read_scenes": "scenes.readers",
    "save_checkpoint": "learning.checkpoint",
    "score": "posterior.scores",
    "score_method": "rivals",
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
    "chain_modes",
    "check",
    "compare_models",
    "compare_priors",
    "diagnostics_frame",
    "distill",
    "edges_frame",
    "fit",
    "fit_method",
    "from_dataframe",
    "graph_distance_ess",
    "indicators",
    "infer",
    "laws_frame",
    "load_checkpoint",
    "plot_laws",
    "plot_structures",
    "predict",
    "read_posterior",
    "read_scenes",
    "save_checkpoint",
    "score",
    "score_method",
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
