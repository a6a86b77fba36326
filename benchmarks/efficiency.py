"""Effective draws of each kernel, for each likelihood evaluation and for each second; and how soon it finds the best.

    python benchmarks/efficiency.py [--smoke] [--only charged5 springs20] [--out FOLDER]

Pair forces, scenes without labels, in windows and with measurement noise that leave edges in doubt: charged particles
with the model of ``data/models``; springs with a model trained anew on 100 scenes with the same measurement noise, for
as many steps as ``fit`` takes by itself, seed 0. Independent prior. An evaluation scores the incoming edges of one
receiver over all frames; a balanced move asks for every change of a receiver's edges, there and back, and pays for all
of them, a particle filter for every particle; an exact block looks up a table that was paid for before
(``table_evaluations``). "rollouts" has message passing with a horizon of 10 frames, where an evaluation is a rollout of
the whole scene; a table of receivers rolled out alone, each entry as costly as a rollout of the scene, has accepted a
delayed move before.

Effective sample sizes are those of indicators of edges whose probability, by the last kernel, lies between 0.05 and
0.95; the figure is their median (empty where no edge is in doubt). ``disagreeing`` is the share of edges on which
chains are constant but differ: there the effective sample size means nothing. ``evaluations_to_best``: from
prior-drawn starts, at temperature 1 throughout, until a chain first comes within 0.1 nat of the best log joint that any
kernel found; median over chains and scenes, infinite where half of them never do.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.chains import make_chains, surrogate_of
from pyro_nri.inference.encoder import log_q
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.diagnostics import DISAGREEING, MOVING, edge_diagnostics
from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.simulate import simulate


class Problem(NamedTuple):
    """What is inferred, and by which kernels; the last one is the best."""

    system: str
    num_entities: int
    num_frames: int
    measurement_noise: float
    num_steps: int
    kernels: tuple[str, ...]
    dynamics: str = "pair-forces"
    horizon: int = 1


TABLES = ("uniform", "neural", "balanced", "rounds", "exact", "auto")
PROBLEMS = {
    "charged5": Problem("charged", 5, 5, 0.0, 3000, TABLES),
    "charged10": Problem("charged", 10, 5, 0.0, 3000, TABLES),
    "springs10": Problem("springs", 10, 10, 0.02, 3000, TABLES),
    "springs20": Problem("springs", 20, 10, 0.02, 3000, ("uniform", "neural", "balanced", "rounds", "auto")),
    "rollouts": Problem(
        *("springs", 5, 11, 0.02, 1000),
        ("uniform", "neural", "auto without surrogate", "delayed", "auto"),
        dynamics="message-passing",
        horizon=10,
    ),
}


class Counted(AbstractLikelihood):
    """A likelihood that counts evaluations: of receivers, or of scenes where it does not factorise."""

    def __init__(self, inner: AbstractLikelihood) -> None:
        self.inner, self.count = inner, 0
        self.num_edge_types, self.edge_mask, self.is_density = inner.num_edge_types, inner.edge_mask, inner.is_density
        self.is_cached, self.relaxed = inner.is_cached, inner.relaxed

    def receiver_terms(self, structure: torch.Tensor, known: Any = None) -> torch.Tensor:
        changed = torch.ones_like(structure, dtype=torch.bool) if known is None else structure != known[0]
        if self.is_cached:
            changed = changed[..., edges.incoming_edges(edges.num_entities_of(structure.shape[-1]))]
        self.count += int(changed.any(-1).sum())
        return self.inner.receiver_terms(structure, known)

    def likely_types(self) -> torch.Tensor | None:
        return self.inner.likely_types()

    def edge_alternatives(self, structure: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        self.count += edge.numel() * (self.num_edge_types - 1)
        return self.inner.edge_alternatives(structure, edge)


def learned(problem: Problem, num_steps: int | None) -> Checkpoint:
    """The model of a problem."""
    if not problem.measurement_noise and problem.dynamics == "pair-forces":
        return load_checkpoint(Path(__file__).parent.parent / "data" / "models" / f"{problem.system}5.pt")
    scenes = simulate(problem.system, 100, measurement_noise=problem.measurement_noise, seed=1)
    return fit(scenes, spec=ModelSpec(2, dynamics=problem.dynamics), num_steps=num_steps, seed=0)


def run(
    name: str, checkpoint: Checkpoint, *, num_scenes: int, num_chains: int, num_steps: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of one problem, a row for each kernel."""
    problem = PROBLEMS[name]
    model, encoder = checkpoint.model, checkpoint.encoder
    assert encoder is not None
    model.horizon = problem.horizon
    scenes = simulate(
        problem.system,
        num_scenes,
        num_entities=problem.num_entities,
        num_frames=problem.num_frames,
        measurement_noise=problem.measurement_noise,
        seed=seed,
    )
    rows, draws, starts = [], [], []
    with torch.no_grad():
        prepared = model.prepare(scenes)
        prior = make_prior("independent", 2, learn_weights=False).double()(prepared.edge_mask)
        inner = model.likelihood(scenes, cache="none" if problem.horizon > 1 else "messages")
        started = time.perf_counter()
        table = model.likelihood(scenes, cache="table") if "exact" in problem.kernels else None
        table_seconds = time.perf_counter() - started
        size = {"num_chains": num_chains, "group_names": prepared.group_names, "log_q": log_q(encoder, prepared)}
        for kernel in problem.kernels:
            looked_up = table is not None and kernel in ("exact", "auto")
            likelihood: Any = table if looked_up else Counted(inner)
            proposal = kernel.split()[0]
            size["surrogate"] = surrogate_of(model, inner, scenes, kernel)
            make = partial(make_chains, likelihood, prior, proposal=proposal, seed=seed, **size)
            # From prior draws at temperature 1: when is the best found?
            chains, joints, costs = make(num_warmup=0, start_temperature=1.0), [], []
            for _ in range(num_steps // 3):
                chains.step()
                joints.append(chains.log_joint)
                costs.append(getattr(likelihood, "count", 0) / (num_chains * num_scenes))
            starts.append((torch.stack(joints), np.array(costs)))
            chains = make(num_warmup=num_steps // 2, start_temperature=30.0)
            chains.record(num_steps // 2, 1, prepared.group_names)
            before, started = getattr(likelihood, "count", 0), time.perf_counter()
            found = chains.record(num_steps, 1, prepared.group_names)
            seconds = time.perf_counter() - started
            count = getattr(likelihood, "count", 0) - before
            draws.append(found.edge_type.reshape(num_chains, num_steps, -1))
            row = {"problem": name, **problem._asdict(), "num_steps": num_steps, "scenes": num_scenes}
            row |= {"chains": num_chains, "seed": seed, "kernel": kernel}
            row |= {"evaluations_per_step": count / (num_steps * num_chains * num_scenes)}
            has_table = looked_up or size["surrogate"] is not None
            row |= {"table_evaluations": problem.num_entities * 2 ** (problem.num_entities - 1) if has_table else 0}
            row |= {"acceptance": found.accepted.sum() / max(1, found.proposed.sum()), "seconds": seconds}
            rows.append(row | {"preparation_seconds": table_seconds if looked_up else 0.0})
    pooled = draws[-1].mean((0, 1))
    doubtful = np.flatnonzero((pooled > 0.05) & (pooled < 0.95))
    best = torch.stack([joints.amax((0, 1)) for joints, _ in starts]).amax(0)  # [G]
    for row, each, (joints, costs) in zip(rows, draws, starts, strict=True):
        there = joints > best - 0.1
        first = np.where(there.any(0), there.to(torch.uint8).argmax(0), -1)
        row["evaluations_to_best"] = np.median(np.where(first < 0, np.inf, costs[first]))
        row["steps_to_best"] = np.median(np.where(first < 0, np.inf, first + 1))
        found = edge_diagnostics(each[:, :, doubtful], 2)
        row["doubtful_edges"] = len(doubtful)
        if not len(doubtful):
            continue
        ess = np.median(np.where(found.kind[:, 1] == MOVING, found.ess[:, 1], 0.0))
        row["disagreeing"] = (found.kind[:, 1] == DISAGREEING).mean()
        row["ess_per_1000_steps"] = 1000 * ess / (row["chains"] * row["num_steps"])
        if row["evaluations_per_step"]:
            row["ess_per_1000_evaluations"] = row["ess_per_1000_steps"] / row["evaluations_per_step"]
        row["ess_per_second"] = ess * row["scenes"] / row["seconds"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and steps, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--num-scenes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("efficiency_smoke.csv" if arguments.smoke else "efficiency.csv")
    before = pd.read_csv(path) if path.exists() and not arguments.smoke else pd.DataFrame({"problem": []})
    models: dict[tuple[str, float, str], Checkpoint] = {}
    for name in tqdm(arguments.only, unit="problem"):
        problem = PROBLEMS[name]
        if arguments.smoke and problem.dynamics == "pair-forces":
            problem = problem._replace(measurement_noise=0.0)
        what = (problem.system, problem.measurement_noise, problem.dynamics)
        if what not in models:
            models[what] = learned(problem, 2 if arguments.smoke else None)
        num_steps, num_scenes = (40, 2) if arguments.smoke else (problem.num_steps, arguments.num_scenes)
        rows = run(name, models[what], num_scenes=num_scenes, num_chains=4, num_steps=num_steps, seed=arguments.seed)
        before = pd.concat([before[before["problem"] != name], pd.DataFrame(rows)], ignore_index=True)
        with written_beside(path) as beside:
            before.to_csv(beside, index=False)
    shown = ["problem", "kernel", "doubtful_edges", "disagreeing", "acceptance", "evaluations_per_step"]
    shown += ["ess_per_1000_steps", "ess_per_1000_evaluations", "ess_per_second", "evaluations_to_best"]
    print(before[shown].round(3).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
