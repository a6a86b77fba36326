"""Joint proposals of a distilled encoder: how close they come to the posterior, and what chains gain.

    python benchmarks/distilled.py [--smoke] [--only charged5] [--num-steps N] [--out FOLDER]

Short windows, which leave edges in doubt. ``charged``: the model ``data/models/charged5.pt``. ``springs``: measurement
noise of 0.01, a model fitted to 100 such scenes. Each encoder is distilled on 1,000 unlabelled scenes of five entities
and 49 frames; for ten entities it is used unchanged, and (``distilled_on`` 5, 10) after a third of the steps more on
300 scenes of ten. Rows: the encoder as trained, edge by edge (``before``); the
distilled encoder's joint distributions reduced to their exact marginals, edge by edge (``marginals``); and as they are
(``joint``). ``exact`` are exact receiver blocks, which show what could be had.

``divergence`` is that of a proposal (with its floor) from the exact posterior of a receiver's edges, in nats, over all
receivers of 200 test scenes and over those whose posterior entropy is above 0.1 (``doubtful``). Chains run on the first
scenes in which some edge has a probability between 0.05 and 0.95; effective draws are those of such edges, as in
``efficiency.py``: an evaluation scores the incoming edges of one receiver. ``edges_right`` is the share of true edges
that the proposal's own most probable types have, without any search.
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

from efficiency import Counted

from pyro_nri.fitting import fit
from pyro_nri.inference.blocks import JointBlock
from pyro_nri.inference.chains import Chains
from pyro_nri.inference.encoder import learned_q
from pyro_nri.inference.exact import FactorisedPosterior, enumerate_posterior
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.proposals import ExactReceiver, Mixture, UniformEdge, UniformPair
from pyro_nri.inference.schedules import geometric
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint
from pyro_nri.learning.distill import distill
from pyro_nri.model.receivers import code_types
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.diagnostics import MOVING, edge_diagnostics
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

#: System, measurement noise, entities, frames of the window.
PROBLEMS = {
    "charged5": ("charged", 0.0, 5, 5),
    "charged5, 10 frames": ("charged", 0.0, 5, 10),
    "charged5, 49 frames": ("charged", 0.0, 5, 49),
    "charged10": ("charged", 0.0, 10, 10),
    "springs5": ("springs", 0.01, 5, 5),
    "springs5, 10 frames": ("springs", 0.01, 5, 10),
    "springs5, 49 frames": ("springs", 0.01, 5, 49),
    "springs10": ("springs", 0.01, 10, 10),
}
FLOOR = 0.05
KINDS = ("before", "marginals", "joint", "exact")


def trained(system: str, noise: float, *, seed: int) -> Checkpoint:
    """The model and the encoder as they are before distillation."""
    if not noise:
        return load_checkpoint(Path(__file__).parent.parent / "data" / "models" / f"{system}5.pt")
    scenes = simulate(system, 100, measurement_noise=noise, seed=seed + 1)
    return fit(scenes, spec=ModelSpec(2, dynamics="pair-forces"), law_bootstrap=0, seed=seed)


def code_log_prob(joint: IncomingDistribution, num_types: int) -> torch.Tensor:
    """Log probability of every code of each receiver, ``[G, N, R]``."""
    types = code_types(num_types, joint.batch_shape[1])
    parts = [joint.log_prob(part[:, None, None].expand(-1, *joint.batch_shape, -1)) for part in types.split(64)]
    return torch.cat(parts).movedim(0, -1)


def proposals(found: Checkpoint, distilled: Checkpoint, scenes: Scenes) -> dict[str, dict[str, Any]]:
    """What blocks are drawn from under each name: log probabilities of edges, joint distributions."""
    num_types, num_entities = found.spec.num_edge_types, scenes.num_entities
    assert found.encoder is not None
    assert distilled.encoder is not None
    before, _ = learned_q(found.encoder, scenes)
    edge_q, joint = learned_q(distilled.encoder, scenes)
    assert joint is not None
    types = torch.nn.functional.one_hot(code_types(num_types, num_entities), num_types).double()
    marginal = torch.einsum("gnr,rsk->gnsk", code_log_prob(joint, num_types).exp(), types)
    log_marginal = torch.empty_like(before)
    log_marginal[:, edges.incoming_edges(num_entities).reshape(-1)] = marginal.clamp(min=1e-30).log().flatten(1, 2)
    return {
        "before": {"log_q": before, "incoming": None},
        "marginals": {"log_q": log_marginal, "incoming": None},
        "joint": {"log_q": edge_q, "incoming": joint},
    }


def as_joint(log_q: torch.Tensor, incoming: IncomingDistribution | None) -> IncomingDistribution:
    """What is proposed for each receiver, floor included."""
    if incoming is None:
        base = log_q[:, edges.incoming_edges(edges.num_entities_of(log_q.shape[1]))]
        incoming = IncomingDistribution(base, base.new_zeros(*base.shape, *base.shape[-2:]))
    return incoming.with_floor(FLOOR)


def run(
    name: str,
    found: Checkpoint,
    distilled: Checkpoint,
    *,
    kinds: tuple[str, ...] = KINDS,
    num_test: int,
    num_scenes: int,
    num_steps: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows of one problem, a row for each proposal."""
    system, noise, num_entities, num_frames = PROBLEMS[name]
    model, num_types = found.model, found.spec.num_edge_types
    whole = simulate(system, num_test, num_entities=num_entities, measurement_noise=noise, seed=seed + 3)
    scenes = whole.frames(0, num_frames)
    truth, alignment = scenes.edge_type, torch.tensor(found.alignment)
    assert truth is not None
    rows = []
    with torch.no_grad():
        table = model.likelihood(scenes, cache="table")
        prepared = model.prepare(scenes)
        posterior = enumerate_posterior(table, model.structure_prior(prepared))
        assert isinstance(posterior, FactorisedPosterior)
        log_p, probability = posterior.log_code, posterior.edge_probability[..., 1]
        entropy = -(log_p.exp() * log_p).nan_to_num().sum(-1)  # [G, N]
        in_doubt = ((probability > 0.05) & (probability < 0.95)).any(-1)
        chosen = scenes[in_doubt.nonzero().squeeze(-1)[:num_scenes].tolist()] if in_doubt.any() else scenes[:1]
        for kind, given in proposals(found, distilled, prepared).items():
            if kind not in kinds:
                continue
            joint = as_joint(**given)
            log_q = code_log_prob(joint, num_types)
            divergence = (log_p.exp() * (log_p - log_q)).nan_to_num().sum(-1)
            guess = given["log_q"].argmax(-1)
            if given["incoming"] is not None:
                best = code_types(num_types, num_entities)[log_q.argmax(-1)]  # [G, N, N - 1]
                guess = torch.empty_like(guess)
                guess[:, edges.incoming_edges(num_entities).reshape(-1)] = best.flatten(1)
            row: dict[str, Any] = {"problem": name, "entities": num_entities, "frames": num_frames, "noise": noise}
            row |= {"test_scenes": num_test, "proposal": kind, "divergence": divergence.mean().item()}
            row |= {"doubtful_receivers": (entropy > 0.1).double().mean().item()}
            row |= {"divergence_doubtful": divergence[entropy > 0.1].mean().item()}
            row |= {"edges_right": (alignment[guess] == truth).double().mean().item()}
            row |= {
                "edges_right_posterior": (alignment[posterior.edge_probability.argmax(-1)] == truth)
                .double()
                .mean()
                .item()
            }
            rows.append(row)
        if num_frames == 49:
            return rows
        prepared = model.prepare(chosen)
        prior, table = model.structure_prior(prepared), model.likelihood(chosen, cache="table")
        exact = enumerate_posterior(table, prior).edge_probability[..., 1].flatten().numpy()
        doubtful = np.flatnonzero((exact > 0.05) & (exact < 0.95))
        if not len(doubtful):
            return rows
        given = proposals(found, distilled, prepared) | {"exact": {"log_q": None, "incoming": None}}
        rows.append(
            {**{name: rows[0][name] for name in ("problem", "entities", "frames", "noise")}, "proposal": "exact"}
        )
        for row in rows:
            kind = row["proposal"]
            likelihood = Counted(table)
            block = (
                ExactReceiver(prior, table, scan="turn")
                if kind == "exact"
                else JointBlock(prior, as_joint(**given[kind]), floor=FLOOR, scan="turn")
            )
            chains = Chains(
                StructureTarget(table if kind == "exact" else likelihood, prior),
                Mixture([UniformPair(prior), UniformEdge(prior), block], [1.0, 1.0, 3.0], seed=seed),
                Stream(seed, keys(prepared.group_names), 4),
                schedule=geometric(30.0, 1.0, num_steps // 8),
                num_warmup=num_steps // 4,
            )
            chains.record(num_steps // 4, 1, prepared.group_names)
            likelihood.count, started = 0, time.perf_counter()
            drawn = chains.record(num_steps, 1, prepared.group_names)
            row |= {"chain_scenes": len(chosen), "chains": 4, "steps": num_steps, "doubtful_edges": len(doubtful)}
            row["acceptance"] = drawn.accepted.sum() / max(1, drawn.proposed.sum())
            moves = [number for number, move in enumerate(drawn.move_names) if move.endswith(("block", "receiver"))]
            is_block = np.isin(drawn.move_kind, moves)
            row["acceptance_of_blocks"] = drawn.accepted[:, is_block].sum() / max(1, drawn.proposed[:, is_block].sum())
            row["seconds"] = time.perf_counter() - started
            flat = drawn.edge_type.reshape(4, num_steps, -1)
            diagnosed = edge_diagnostics(flat[:, :, doubtful], num_types)
            ess = np.where(diagnosed.kind[:, 1] == MOVING, diagnosed.ess[:, 1], 0.0)
            row["ess_per_1000_steps"] = 1000 * np.median(ess) / (4 * num_steps)
            error = flat[:, :, doubtful].mean((0, 1)) - exact[doubtful]
            row["error_of_probabilities"] = np.abs(error).mean()
            if likelihood.count:
                per_step = likelihood.count / (num_steps * 4 * len(chosen))
                row["evaluations_per_step"] = per_step
                row["ess_per_1000_evaluations"] = row["ess_per_1000_steps"] / per_step
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and steps, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=["charged", "springs"], default=["charged", "springs"])
    parser.add_argument("--num-steps", type=int, default=1500, help="of distillation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    distill_steps, num_train, num_test = (5, 20, 8) if arguments.smoke else (arguments.num_steps, 1000, 200)
    chain_steps, num_scenes = (40, 2) if arguments.smoke else (4000, 20)
    rows = []
    for system in arguments.only:
        problems = [name for name, problem in PROBLEMS.items() if problem[0] == system]
        noise = PROBLEMS[problems[0]][1]
        found = trained(system, noise, seed=arguments.seed)
        scenes = simulate(system, num_train, measurement_noise=noise, seed=arguments.seed + 2)
        distilled = distill(found, scenes, num_steps=distill_steps, seed=arguments.seed, show_progress=True)
        larger = simulate(
            system, min(num_train, 300), num_entities=10, measurement_noise=noise, seed=arguments.seed + 4
        )
        further = distill(
            distilled, larger, num_steps=1 + distill_steps // 3, batch_size=16, seed=arguments.seed, show_progress=True
        )
        jobs = [(name, distilled, "5", KINDS) for name in problems]
        jobs += [(name, further, "5, 10", ("marginals", "joint")) for name in problems if PROBLEMS[name][2] == 10]
        sizes = {"num_test": num_test, "num_scenes": num_scenes, "num_steps": chain_steps}
        for name, checkpoint, sources, kinds in tqdm(jobs, unit="problem"):
            about = {"seed": arguments.seed, "distilled_on": sources}
            about |= {f"distill_{key}": checkpoint.training["distillation"][key] for key in ("num_scenes", "num_steps")}
            about |= {"distill_seconds": checkpoint.training["distillation"]["seconds"]}
            rows += [row | about for row in run(name, found, checkpoint, kinds=kinds, seed=arguments.seed, **sizes)]
    frame = pd.DataFrame(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("distilled_smoke.csv" if arguments.smoke else "distilled.csv")
    frame.to_csv(path, index=False)
    shown = [
        "problem",
        "distilled_on",
        "proposal",
        "divergence",
        "divergence_doubtful",
        "edges_right",
        "edges_right_posterior",
    ]
    shown += ["acceptance", "acceptance_of_blocks", "ess_per_1000_steps", "ess_per_1000_evaluations"]
    shown += ["error_of_probabilities"]
    print(frame.reindex(columns=shown).round(3).to_string(index=False))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
