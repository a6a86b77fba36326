"""Effective draws of each kernel, for each likelihood evaluation and for each second.

    python benchmarks/efficiency.py [--smoke] [--only charged5] [--out FOLDER]

Pair forces with the models of ``data/models``, scenes without labels in short windows, so that edges stay in doubt. An
evaluation scores the incoming edges of one receiver over all frames; a balanced move asks for every change of a
receiver's edges, there and back, and pays for all of them; an exact block looks up a table that was paid for before
(``table_evaluations``). Effective sample sizes are those of indicators of edges whose probability, by the last kernel,
lies between 0.05 and 0.95; the figure is their median (empty where no edge is in doubt). ``disagreeing`` is the share
of edges on which chains are constant but differ: there the effective sample size means nothing.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.chains import make_chains
from pyro_nri.inference.encoder import log_q
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.posterior.diagnostics import DISAGREEING, MOVING, edge_diagnostics
from pyro_nri.scenes.simulate import simulate

#: System, entities, frames, prior, steps of each chain. Springs without noise leave no edge in doubt.
PROBLEMS = {
    "charged5": ("charged", 5, 5, "independent", 3000),
    "charged10": ("charged", 10, 10, "independent", 4000),
}
KERNELS = ("uniform", "neural", "balanced", "rounds", "exact", "auto")


class Counted(AbstractLikelihood):
    """A likelihood that counts evaluations of receivers."""

    def __init__(self, inner: AbstractLikelihood) -> None:
        self.inner, self.count = inner, 0
        self.num_edge_types, self.edge_mask, self.is_density = inner.num_edge_types, inner.edge_mask, inner.is_density
        self.relaxed = inner.relaxed

    def receiver_terms(self, structure: torch.Tensor, known: Any = None) -> torch.Tensor:
        terms = self.inner.receiver_terms(structure, known)
        self.count += terms.numel() if known is None else int((terms != known[1]).sum())
        return terms

    def edge_alternatives(self, structure: torch.Tensor, edge: torch.Tensor) -> torch.Tensor:
        self.count += edge.numel() * (self.num_edge_types - 1)
        return self.inner.edge_alternatives(structure, edge)


def run(name: str, *, num_scenes: int, num_chains: int, num_steps: int, seed: int) -> list[dict[str, Any]]:
    """Rows of one problem, a row for each kernel."""
    system, num_entities, num_frames, prior_name, _ = PROBLEMS[name]
    checkpoint = load_checkpoint(Path(__file__).parent.parent / "data" / "models" / f"{system}5.pt")
    model = checkpoint.model
    scenes = simulate(system, num_scenes, num_entities=num_entities, num_frames=num_frames, seed=seed)
    rows, draws = [], []
    with torch.no_grad():
        prepared = model.prepare(scenes)
        prior = make_prior(prior_name, 2, learn_weights=False).double()(prepared.edge_mask)
        messages = model.likelihood(scenes, cache="messages")
        started = time.perf_counter()
        table = model.likelihood(scenes, cache="table")
        table_seconds = time.perf_counter() - started
        assert checkpoint.encoder is not None
        learned = log_q(checkpoint.encoder, prepared)
        for kernel in KERNELS:
            likelihood = Counted(messages)
            chains = make_chains(
                table if kernel in ("exact", "auto") else likelihood,
                prior,
                group_names=prepared.group_names,
                proposal=kernel,
                log_q=learned,
                num_chains=num_chains,
                num_warmup=num_steps // 2,
                start_temperature=30.0,
                seed=seed,
            )
            chains.record(num_steps // 2, 1, prepared.group_names)
            likelihood.count, started = 0, time.perf_counter()
            found = chains.record(num_steps, 1, prepared.group_names)
            seconds = time.perf_counter() - started
            draws.append(found.edge_type.reshape(num_chains, num_steps, -1))
            row = {"problem": name, "prior": prior_name, "entities": num_entities, "frames": num_frames}
            row |= {"scenes": num_scenes, "chains": num_chains, "steps": num_steps, "seed": seed, "kernel": kernel}
            row |= {"evaluations_per_step": likelihood.count / (num_steps * num_chains * num_scenes)}
            row |= {"table_evaluations": num_entities * 2 ** (num_entities - 1) if likelihood.count == 0 else 0}
            row |= {"acceptance": found.accepted.sum() / max(1, found.proposed.sum()), "seconds": seconds}
            rows.append(row | {"preparation_seconds": table_seconds if likelihood.count == 0 else 0.0})
    pooled = draws[-1].mean((0, 1))
    doubtful = np.flatnonzero((pooled > 0.05) & (pooled < 0.95))
    for row, each in zip(rows, draws, strict=True):
        found = edge_diagnostics(each[:, :, doubtful], 2)
        row["doubtful_edges"] = len(doubtful)
        if not len(doubtful):
            continue
        ess = np.median(np.where(found.kind[:, 1] == MOVING, found.ess[:, 1], 0.0))
        row["disagreeing"] = (found.kind[:, 1] == DISAGREEING).mean()
        row["ess_per_1000_steps"] = 1000 * ess / (row["chains"] * row["steps"])
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
    rows = []
    for name in tqdm(arguments.only, unit="problem"):
        num_steps = 40 if arguments.smoke else PROBLEMS[name][-1]
        num_scenes = 2 if arguments.smoke else arguments.num_scenes
        rows += run(name, num_scenes=num_scenes, num_chains=4, num_steps=num_steps, seed=arguments.seed)
    frame = pd.DataFrame(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("efficiency_smoke.csv" if arguments.smoke else "efficiency.csv")
    frame.to_csv(path, index=False)
    shown = ["problem", "kernel", "doubtful_edges", "disagreeing", "acceptance", "evaluations_per_step"]
    shown += ["ess_per_1000_steps", "ess_per_1000_evaluations", "ess_per_second"]
    print(frame[shown].round(3).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
