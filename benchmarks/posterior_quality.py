"""Do the chains find the posterior that enumeration gives?

    python benchmarks/posterior_quality.py [--smoke] [--systems charged] [--kernels auto neural] [--out FOLDER]

Pair forces with the models of ``data/models``, learned without measurement noise; 1,000 held-out scenes of each window
and noise are enumerated. Chains run on the first ones with an edge in doubt (exact probability in (0.02, 0.98)): 120
for ``auto``, 30 for others, a third under "charges"; ``auto`` also, in short chains, on all "certain" ones without
noise (100 under "charges"). Rows without ``num_frames`` are of all windows. ``seconds`` are of a processor.

The frequency of type 1 is compared with its probability, at one edge of each pair where the prior ties them: ``z`` =
difference / Monte Carlo standard error at edges in doubt that moved (``num_stuck`` did not), the rest over all edges,
beside what is ``expected`` of that error alone. ``num_flagged``: where draws themselves warn (R-hat above 1.05, chains
stuck apart, fewer than 400 effective draws or 5 of one type); ``*_passed`` is of other edges. ``reported_*`` is the
package's own estimator, averages of conditionals. Chains from prior draws show what a user gets. 256 from draws of the
exact posterior are still distributed like it after 40 steps if the kernel leaves it invariant, however slowly it mixes:
frequencies are binomial. ``missed``: |mean of z| within 3 of its errors, standard deviation 0.9 to 1.1; from prior
draws no stuck edge, mean difference at most 0.01, correlation at least 0.9999. Controls must fail: draws of ``auto``
beside the next scene's enumeration, and "forgetful" learned blocks without their ratio. "tempered": 6 replicas.
"""

import argparse
import sys
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.chains import make_chains
from pyro_nri.inference.draws import Draws, concatenate_draws
from pyro_nri.inference.encoder import log_q
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.tempering import Ladder
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.model.structures import ChargesDistribution
from pyro_nri.posterior.compare import UNCERTAIN
from pyro_nri.posterior.diagnostics import DISAGREEING, MOVING, edge_diagnostics
from pyro_nri.posterior.frames import read_frame
from pyro_nri.scenes import edges
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

PRIORS = {"charged": ("independent", "symmetric", "charges"), "springs": ("independent", "symmetric")}
KERNELS = ("auto", "neural", "uniform", "exact", "balanced", "rounds", "tempered", "forgetful")
WITHOUT = {"independent": ("tempered",), "symmetric": (), "charges": ("balanced", "rounds", "tempered")}
WINDOWS = [(noise, num_frames) for noise in (0.0, 0.01, 0.05) for num_frames in (5, 10, 20, 49)]
NUM_REPLICAS, MAX_STATES = 6, 150_000  # states of all chains that run together
SMALL = {"limit": 2, "num_chains": 4, "num_warmup": 5, "num_steps": 20, "thin": 5}
SHOWN = ["system", "prior", "kernel", "scenes", "starts", "control", "num_uncertain", "num_stuck", "num_flagged"]
SHOWN += ["z_mean", "z_sd", "z_max", "z_sd_passed", "mean_difference", "correlation", "missed"]
Batch = dict[str, Any]  # structures of all windows; each entry has one row for each


@lru_cache(maxsize=1)
def observe(system: str, num_scenes: int) -> Batch:
    """The held-out scenes of a system; scene b is the same path in every window."""
    checkpoint = load_checkpoint(Path(__file__).parent.parent / "data" / "models" / f"{system}5.pt")
    found = []
    for noise, num_frames in WINDOWS:
        scenes = simulate(system, num_scenes, num_frames=num_frames, measurement_noise=noise, seed=2)
        table = checkpoint.model.likelihood(scenes, cache="table").table
        relaxed = checkpoint.model.likelihood(scenes, cache="messages").relaxed
        found.append((table, *relaxed, log_q(checkpoint.encoder, checkpoint.model.prepare(scenes)).double()))
    batch = dict(zip(("table", "mean", "precision", "log_q"), map(torch.cat, zip(*found, strict=True)), strict=True))
    names = [f"{noise} {num_frames} {number}" for noise, num_frames in WINDOWS for number in range(num_scenes)]
    return batch | {"name": np.array(names), "window": np.repeat(np.arange(len(WINDOWS)), num_scenes)}


def posterior(batch: Batch, prior: str) -> tuple[ReceiverTable, Any]:
    mask = torch.ones(batch["log_q"].shape[:2], dtype=torch.bool)
    table = ReceiverTable(batch["table"], 2, mask, is_density=False)
    table.relaxed = Relaxed(batch["mean"], batch["precision"])  # cached messages have it, for "balanced" and "rounds"
    if prior == "charges":  # the model of charged particles has the repulsion of equal charges as type 0
        return table, ChargesDistribution(torch.tensor([[0, 1], [1, 0]]), 2, mask, validate_args=False)
    return table, make_prior(prior, 2, learn_weights=False).double()(mask)


@lru_cache(maxsize=1)
def exact_probability(system: str, num_scenes: int, prior: str) -> np.ndarray:
    """Of type 1, ``[G, E]``."""
    return enumerate_posterior(*posterior(observe(system, num_scenes), prior)).edge_probability[..., 1].numpy()


def jobs_of(system: str, kernels: list[str], fixed: dict[str, Any]) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = []
    for prior, kernel in [(prior, kernel) for prior in PRIORS[system] for kernel in kernels]:
        few, most = 3 if prior == "charges" else 1, 120 if kernel == "auto" else 30
        job = {"system": system, "prior": prior, "kernel": kernel, "scenes": "in doubt", "starts": "prior"}
        job |= {"limit": most // few, "num_chains": 4, "num_warmup": 1000, "num_steps": 8000, "thin": 5}
        exact = {"starts": "exact", "limit": 30 // few, "num_chains": 256, "num_warmup": 0, "num_steps": 40, "thin": 40}
        certain = {"scenes": "certain", "limit": 1000 if few == 1 else 100, "num_warmup": 500, "num_steps": 1000}
        all_of = {"auto": [{}, exact, certain], "tempered": [{"num_steps": 4000}]}.get(kernel, [{}, exact])
        jobs += [job | some | fixed for some in all_of if kernel not in WITHOUT[prior]]
    return jobs


def run(batch: Batch, job: dict[str, Any]) -> Draws:
    names, (likelihood, prior), kernel = tuple(batch["name"].tolist()), posterior(batch, job["prior"]), job["kernel"]
    options: dict[str, Any] = {name: job[name] for name in ("num_chains", "num_warmup", "seed")}
    options |= {"proposal": {"tempered": "auto", "forgetful": "neural"}.get(kernel, kernel), "log_q": batch["log_q"]}
    options["ladder"] = Ladder.start(NUM_REPLICAS, job["num_chains"], len(names)) if kernel == "tempered" else None
    if job["starts"] == "exact":
        stream = Stream(job["seed"], keys(names), job["num_chains"]).child("exact starts")
        options["structure"] = enumerate_posterior(likelihood, prior).sample(stream)
    chains = make_chains(likelihood, prior, group_names=names, start_temperature=30.0, **options)
    if kernel == "forgetful":  # its moves hide how probable they were
        propose, zero = chains.proposal.propose, torch.zeros(job["num_chains"], len(names))
        chains.proposal.propose = lambda *state: propose(*state)._replace(log_forward=zero, log_reverse=zero)
    for _ in range(job["num_warmup"]):
        chains.step()
    return chains.record(job["num_steps"] // job["thin"], job["thin"], names)


def compare(draws: np.ndarray, reported: np.ndarray, exact: np.ndarray, starts: str) -> dict[str, Any]:
    """Draws ``[C, S, G, E]`` and reported probabilities beside exact ones, both ``[G, E]``."""
    found = edge_diagnostics(draws.reshape(*draws.shape[:2], -1), 2)
    kind, r_hat, ess, mcse = (value[:, 1].reshape(exact.shape) for value in found)
    estimate, in_doubt = draws.mean((0, 1)), (exact > UNCERTAIN[0]) & (exact < UNCERTAIN[1])
    rarer = ess * np.minimum(estimate, 1 - estimate)
    is_shaky = (kind == MOVING) & ~((r_hat <= 1.05) & (ess >= 400) & (rarer >= 5)) | (kind == DISAGREEING)
    flagged = is_shaky & (starts == "prior")
    mcse = np.nan_to_num(mcse) if starts == "prior" else np.sqrt(np.maximum(exact * (1 - exact), 0) / len(draws))
    used = in_doubt & (mcse > 0)
    row: dict[str, Any] = {"num_edges": exact.size, "num_uncertain": in_doubt.sum()}
    row |= {"num_stuck": in_doubt.sum() - used.sum(), "num_flagged": (in_doubt & flagged).sum()}
    row["disagreeing"] = (kind == DISAGREEING).mean() if starts == "prior" else np.nan
    if used.sum() > 2:
        z = np.divide(estimate - exact, mcse, out=np.zeros_like(mcse), where=used)
        mean, spread = z[used].mean(), z[used].std(ddof=1)
        sums = np.where(used, [z - mean, ((z - mean) ** 2 - spread**2) / (2 * spread)], 0).sum(-1)
        mean_error, spread_error = np.sqrt((sums**2).sum(-1)) / used.sum()  # edges of a scene are not independent
        row |= {"z_mean": mean, "z_mean_error": mean_error, "z_sd": spread, "z_sd_error": spread_error}
        row |= {"z_max": np.abs(z).max(), "ess_median": np.median(ess[used])}
        passed = z[used & ~flagged]
        row |= {"z_sd_passed": passed.std(), "z_max_passed": np.abs(passed).max(initial=0)} if len(passed) else {}
    row["expected_difference"] = np.sqrt(2 / np.pi) * mcse.mean()
    row["expected_correlation"] = 1 / np.sqrt(1 + (mcse**2).mean() / exact.var())
    for prefix, each in (("", estimate), ("reported_", reported)):
        row[f"{prefix}mean_difference"] = np.abs(each - exact).mean()
        row[f"{prefix}max_difference"] = np.abs(each - exact).max()
        row[f"{prefix}correlation"] = np.corrcoef(each.ravel(), exact.ravel())[0, 1]
    missed = {"z_mean": abs(row.get("z_mean", 0)) > 3 * row.get("z_mean_error", 1)}
    missed |= {"z_sd": not 0.9 <= row.get("z_sd", 1) <= 1.1, "stuck": row["num_stuck"] > 0}
    missed |= {"difference": row["mean_difference"] > 0.01, "correlation": not row["correlation"] >= 0.9999}
    names = [name for name, is_so in missed.items() if is_so and (starts == "prior" or name in ("z_mean", "z_sd"))]
    return row | {"missed": " ".join(names)}


def rows_of(job: Cell, num_scenes: int) -> list[Cell]:
    """A row of all windows and one of each, and the control that needs no draws of its own."""
    batch = observe(job["system"], num_scenes)
    exact = exact_probability(job["system"], num_scenes, job["prior"])
    window, in_doubt = batch["window"], ((exact > UNCERTAIN[0]) & (exact < UNCERTAIN[1])).any(1)
    wanted = in_doubt if job["scenes"] == "in doubt" else ~in_doubt & (window < 4)  # the windows without noise
    chosen = np.concatenate([np.flatnonzero(wanted & (window == w))[: job["limit"]] for w in range(len(WINDOWS))])
    started, parts = time.process_time(), np.array_split(chosen, -(-len(chosen) * job["num_chains"] // MAX_STATES))
    draws = concatenate_draws([run({name: each[part] for name, each in batch.items()}, job) for part in parts])
    seconds = (time.process_time() - started) / len(chosen)
    used = np.arange(20) if job["prior"] == "independent" else edges.pairs(5)[:, 0].numpy()
    rows = []
    for w in (None, *np.unique(window[chosen])):
        is_here = (window == w) | (w is None)
        here = np.flatnonzero(is_here[chosen])
        noise, num_frames = (np.nan, np.nan) if w is None else WINDOWS[w]
        row = job | {"measurement_noise": noise, "num_frames": num_frames, "num_scenes": len(here)}
        row |= {"num_in_doubt": (in_doubt & is_here).sum(), "seconds": seconds * len(here)}
        found = draws.edge_type[:, :, here][..., used], draws.edge_probability[here][:, used, 1]
        true, row["control"] = exact[chosen[here]][:, used], "no ratio" if job["kernel"] == "forgetful" else "none"
        rows.append(row | compare(*found, true, job["starts"]))
        if (job["kernel"], job["scenes"], job["starts"]) == ("auto", "in doubt", "prior") and len(here) > 1:
            rows.append(row | {"control": "next scene"} | compare(*found, np.roll(true, 1, axis=0), "prior"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and steps, to see that it runs")
    parser.add_argument("--systems", nargs="+", choices=list(PRIORS), default=list(PRIORS))
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.out / ("posterior_quality_smoke.csv" if arguments.smoke else "posterior_quality.csv")
    fixed = {"seed": arguments.seed} | (SMALL if arguments.smoke else {})
    wanted = [job for system in arguments.systems for job in jobs_of(system, arguments.kernels, fixed)]
    run_cells(path, wanted, partial(rows_of, num_scenes=10 if arguments.smoke else 1000), unit="run")
    frame = read_frame(path).query("num_frames.isna()")
    print(frame[SHOWN].round(4).to_string(index=False), f"wrote {path}", sep="\n")


if __name__ == "__main__":
    with torch.no_grad():
        main()
