"""Posteriors made by hand, so that what every tool should say of them is known."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference.draws import Draws
from pyro_nri.learning.checkpoint import Checkpoint, new_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.laws import TRUE_LAWS
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import SYSTEMS


def _make_scenes(num_scenes: int = 3, num_entities: int = 3, *, num_edge_types: int = 2, **changes: Any) -> Scenes:
    rng = np.random.default_rng(1)
    arguments: dict[str, Any] = {
        "trajectory": rng.standard_normal((num_scenes, 6, num_entities, 4)),
        "time_step": 0.1,
        "edge_type": rng.integers(0, num_edge_types, (num_scenes, num_entities * (num_entities - 1))),
        **changes,
    }
    return Scenes.from_arrays(arguments.pop("trajectory"), **arguments)


def _make_draws(scenes: Scenes, edge_type: Any = None, *, num_edge_types: int = 2, **changes: Any) -> Draws:
    rng = np.random.default_rng(2)
    num_chains, num_draws = (2, 50) if edge_type is None else edge_type.shape[:2]
    shape = (num_chains, num_draws, scenes.num_groups)
    if edge_type is None:
        edge_type = rng.integers(0, num_edge_types, (*shape, scenes.num_edges))
    mask = scenes.edge_mask[scenes.group_first_scene].numpy()
    proposed = rng.random(shape) < 0.8
    arguments: dict[str, Any] = {
        "edge_type": np.where(mask, edge_type, 0).astype(np.int8),
        "log_joint": rng.standard_normal(shape),
        "accepted": proposed & (rng.random(shape) < 0.5),
        "proposed": proposed,
        "move_kind": rng.integers(0, 2, num_draws).astype(np.int8),
        "temperature": np.ones(num_draws),
        "move_names": ("single edge", "receiver"),
        "num_edge_types": num_edge_types,
        "group_names": scenes.group_names,
        "method": "mcmc",
        "seed": 7,
        "num_evaluations": 1234,
        **changes,
    }
    return Draws(**arguments)


@pytest.fixture(scope="session")
def studies() -> ModuleType:
    """The benchmark of comparisons: simulated structures, and their exact posteriors from noisy views."""
    path = Path(__file__).parents[2] / "benchmarks" / "comparison.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_comparisons", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.fixture
def make_scenes() -> Callable[..., Scenes]:
    return _make_scenes


@pytest.fixture
def make_draws() -> Callable[..., Draws]:
    return _make_draws


@pytest.fixture
def make_tree() -> Callable[..., Any]:
    """Tree of given draws ``[C, S, G, E]`` for scenes with the same numbers of scenes and entities."""

    def make(edge_type: Any = None, scenes: Scenes | None = None, *, num_edge_types: int = 2, **changes: Any) -> Any:
        if scenes is None:
            size = {} if edge_type is None else {"num_scenes": edge_type.shape[2]}
            num_edges = 6 if edge_type is None else edge_type.shape[3]
            num_entities = round((1 + (1 + 4 * num_edges) ** 0.5) / 2)
            scenes = _make_scenes(num_entities=num_entities, num_edge_types=num_edge_types, **size)
        arguments = {
            name: changes.pop(name) for name in ("type_alignment", "type_names", "first_frame") if name in changes
        }
        return to_datatree(
            _make_draws(scenes, edge_type, num_edge_types=num_edge_types, **changes), scenes, **arguments
        )

    return make


@pytest.fixture
def unequal(make_scenes: Callable[..., Scenes]) -> Scenes:
    """Three recordings of two structures; the second structure has one entity less; a state is missing."""
    entity_mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], bool)
    observation_mask = np.ones((3, 6, 4), bool)
    observation_mask[0, 2, 1] = False
    edge_type = np.random.default_rng(3).integers(0, 2, (3, 12))
    edge_type[2] = edge_type[0]
    return make_scenes(
        3,
        4,
        edge_type=edge_type,
        entity_mask=entity_mask,
        observation_mask=observation_mask,
        scene_names=["Monday", "other", "Tuesday"],
        entity_names=[["a", "b", "c", "d"], ["e", "f", "g", ""], ["a", "b", "c", "d"]],
        structure_group=["shoal", "other", "shoal"],
        entity_kind=[[0, 1, 0, 1], [1, 1, 0, 0], [0, 1, 0, 1]],
        initial_state=np.random.default_rng(4).standard_normal((3, 4, 4)),
    )


@pytest.fixture
def planted() -> Callable[..., Checkpoint]:
    """A model file whose laws are those of a simulated system, with normal draws around r f(r), or f(angle)."""

    def make(system: str, *, num_scenes: float = 20.0, spread: float = 0.01) -> Checkpoint:
        checkpoint = new_checkpoint(
            ModelSpec(2, state_names=SYSTEMS[system].state_names, dynamics="pair-forces"), encoder_width=None, seed=0
        )
        dynamics = checkpoint.model.dynamics
        dynamics.time_step.fill_(0.1)
        laws = dynamics.laws
        if not laws.circular:
            laws.low.fill_(np.log(0.05))
            laws.high.fill_(np.log(20))
        points = laws.points()
        index, weight = laws.basis(points)
        basis = torch.zeros(len(points), laws.splines.shape[1]).double().scatter_add(1, index, weight.double())
        forces = np.stack([law(points.numpy()) for law in TRUE_LAWS[system]])
        values = torch.from_numpy(forces if laws.circular else forces * points.numpy()).double()
        laws.set_splines(torch.linalg.lstsq(basis, values.T).solution.T)
        quantiles = torch.from_numpy(stats.norm.ppf((np.arange(400) + 0.5) / 400))
        checkpoint.law_draws = laws.splines.double() + spread * quantiles[:, None, None]
        checkpoint.law_support = torch.full((2, len(points)), num_scenes)
        return checkpoint

    return make
