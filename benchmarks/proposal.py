"""Likelihood evaluations from prior-drawn starts to the most probable structure, along the training of the proposal.

    python benchmarks/proposal.py [--smoke] [--out FOLDER]

Springs, N = 5, 49 frames: modules and encoder are trained on 200 scenes, 200 others are searched. The target is the
posterior under the final modules, its most probable structure known by enumeration. A move that changes nothing is not
counted. Uniform single-edge moves run at several temperatures and the best for them is reported; chains that did not
arrive count as the limit.
"""

import argparse
import copy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference import metropolis
from pyro_nri.inference.blocks import ReceiverBlock
from pyro_nri.inference.encoder import Encoder, log_q
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.proposals import AbstractProposal, Mixture, UniformEdge
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.learning.bouncegrad import BounceGrad
from pyro_nri.learning.checkpoint import new_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

matplotlib.use("Agg")
TEMPERATURES = (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


def evaluations_to_map(
    target: StructureTarget,
    proposal: AbstractProposal,
    goal: torch.Tensor,
    scenes: Scenes,
    *,
    temperature: float,
    limit: int,
    seed: int,
) -> np.ndarray:
    """Evaluations until each chain first stands on its goal, ``[G]``; ``limit`` where it never does."""
    stream = Stream(seed, keys(scenes.group_names), 1)
    start = target.prior.from_uniform(stream.child("start").uniform(0, scenes.num_edges))
    state = metropolis.init({"edge_type": start}, target)
    counted = np.zeros(scenes.num_groups, dtype=int)
    arrived = (start[0] == goal).all(-1).numpy()
    for step in range(20 * limit):
        state, info = metropolis.step(state, stream, step, proposal=proposal, target=target, temperature=temperature)
        counted += ~arrived & info.proposed[0].numpy()
        arrived |= (state.latents["edge_type"][0] == goal).all(-1).numpy()
        if (arrived | (counted >= limit)).all():
            break
    return np.where(arrived, np.minimum(counted, limit), limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few scenes and steps, to see that it runs")
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    num_scenes, num_steps, limit = (8, 8, 50) if arguments.smoke else (200, arguments.num_steps, 2000)
    torch.set_num_threads(1)
    train = simulate("springs", num_scenes, seed=arguments.seed + 1)
    test = simulate("springs", num_scenes, seed=arguments.seed + 2)
    checkpoint = new_checkpoint(ModelSpec(num_edge_types=2), seed=arguments.seed)
    assert checkpoint.encoder is not None
    checkpoint.model.fit_scaling(train)
    checkpoint.encoder.fit_scaling(train)
    trainer = BounceGrad(
        checkpoint.model, train, encoder=checkpoint.encoder, batch_size=16, num_steps=num_steps, seed=arguments.seed
    )
    marks = sorted({0, *(num_steps * np.array([1, 2, 4, 8, 16]) // 16).tolist()})
    snapshots: dict[int, Encoder] = {}
    while True:
        if trainer.num_done in marks:
            snapshots[trainer.num_done] = copy.deepcopy(checkpoint.encoder)
        if trainer.progress >= 1:
            break
        trainer.step()
    scenes = checkpoint.model.prepare(test)
    prior = checkpoint.model.structure_prior(scenes)
    likelihood = checkpoint.model.likelihood(scenes)
    goal = enumerate_posterior(likelihood, prior).map_structure
    truth = scenes.edge_type
    assert truth is not None
    target = StructureTarget(likelihood, prior)

    def row(
        name: str, steps: int, proposal: AbstractProposal, temperature: float, accuracy: float
    ) -> dict[str, object]:
        found = evaluations_to_map(
            target, proposal, goal, scenes, temperature=temperature, limit=limit, seed=arguments.seed
        )
        low, median, high = np.quantile(found, [0.25, 0.5, 0.75])
        return {
            "proposal": name,
            "training_steps": steps,
            "temperature": temperature,
            "accuracy_alone": accuracy,
            "evaluations_median": median,
            "evaluations_q25": low,
            "evaluations_q75": high,
            "arrived": float((found < limit).mean()),
        }

    rows = [row("uniform edge", num_steps, UniformEdge(prior), t, np.nan) for t in TEMPERATURES]
    for steps, encoder in snapshots.items():
        logits = log_q(encoder, scenes)
        guess = (logits.argmax(-1) == goal).double().mean().item()
        block = ReceiverBlock(prior, logits, scan="turn")
        mixed = Mixture([block, UniformEdge(prior)], [4.0, 1.0], seed=arguments.seed)
        rows.append(row("learned receiver block", steps, block, 1.0, guess))
        rows.append(row("learned block + uniform edge", steps, mixed, 1.0, guess))
    frame = pd.DataFrame(rows)
    best = frame[frame.proposal == "uniform edge"].evaluations_median.min()
    frame["times_fewer_than_uniform"] = best / frame.evaluations_median
    arguments.out.mkdir(parents=True, exist_ok=True)
    name = "proposal_smoke" if arguments.smoke else "proposal"
    frame.to_csv(arguments.out / f"{name}.csv", index=False)
    print(frame.round(3).to_string(index=False))
    exact = (goal == truth).double().mean().item()
    print(f"edges of the enumerated most probable structures that are right: {max(exact, 1 - exact):.4f}")
    draw(frame, best).savefig(arguments.out / f"{name}.png", dpi=150)
    print(f"wrote {arguments.out / name}.csv and .png")


def draw(frame: pd.DataFrame, best: float) -> Figure:
    """The curve over training."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    ax = figure.subplots()
    for name, style in (("learned receiver block", "o-"), ("learned block + uniform edge", "s--")):
        part = frame[frame.proposal == name]
        ax.plot(part.training_steps, part.evaluations_median, style, label=name, markersize=4)
    ax.axhline(best, color="0.4", linestyle=":", label="uniform single edge, best temperature")
    ax.axhline(best / 5, color="0.7", linestyle=":", label="five times fewer")
    ax.set(xlabel="training steps of the proposal", ylabel="evaluations to the most probable structure", yscale="log")
    ax.set_title("median over scenes, from prior-drawn starts", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
