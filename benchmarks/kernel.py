"""Speed of the Metropolis step: scenes x chains x steps per second, by proposal and by how the likelihood is prepared.

    python benchmarks/kernel.py [--smoke] [--num-scenes 200] [--num-chains 4] [--num-threads 1] [--out FOLDER]

Springs, 49 frames, modules after a short training. "table": log-likelihoods of all codes are looked up.
"messages": messages are cached, changed receivers are evaluated anew. "none": the program's density, directly. The time
to prepare the likelihood stands in its own column. Accuracy: largest difference between the log-likelihoods that the
cache and the direct evaluation give for the final structures, relative to their size.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.chains import Chains
from pyro_nri.inference.encoder import log_q
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.schedules import constant
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.scenes.simulate import simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="a few scenes and steps, to see that it runs")
    parser.add_argument("--num-scenes", type=int, default=200)
    parser.add_argument("--num-chains", type=int, default=4)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured for each row")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.num_scenes, arguments.seconds = 4, 0.1
    torch.set_num_threads(arguments.num_threads)
    train = simulate("springs", max(16, arguments.num_scenes // 4), seed=1)
    found = fit(train, num_edge_types=2, num_steps=5 if arguments.smoke else 60, seed=0)
    model, encoder = found.model, found.encoder
    assert encoder is not None
    rows = []
    for num_entities in (5, 10):
        scenes = model.prepare(simulate("springs", arguments.num_scenes, num_entities=num_entities, seed=2))
        with torch.no_grad():
            prior = model.structure_prior(scenes)
        direct = model.likelihood(scenes, cache="none")
        for cache, moves in (
            ("table", ("uniform", "neural", "exact")),
            ("messages", ("uniform", "neural")),
            ("none", ("uniform",)),
        ):
            started = time.perf_counter()
            likelihood = model.likelihood(scenes, cache=cache)
            prepared = time.perf_counter() - started
            table = likelihood if isinstance(likelihood, ReceiverTable) else None
            for name in moves:
                target = StructureTarget(likelihood, prior)
                proposal = make_proposal(name, prior, likelihood=table, log_q=log_q(encoder, scenes), seed=0)
                stream = Stream(0, keys(scenes.group_names), arguments.num_chains)
                chains = Chains(target, proposal, stream, schedule=constant(), num_warmup=0)
                chains.step()
                started, num_steps = time.perf_counter(), 0
                while time.perf_counter() - started < arguments.seconds:
                    chains.step()
                    num_steps += 1
                seconds = time.perf_counter() - started
                found, wanted = likelihood.log_likelihood(chains.structure), direct.log_likelihood(chains.structure)
                rows.append(
                    {
                        "entities": num_entities,
                        "likelihood": cache,
                        "proposal": name,
                        "prepare_s": prepared,
                        "steps": num_steps,
                        "per_second": num_steps * arguments.num_scenes * arguments.num_chains / seconds,
                        "relative_difference": float(((found - wanted) / wanted).abs().max()),
                    }
                )
    frame = pd.DataFrame(rows)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("kernel_smoke.csv" if arguments.smoke else "kernel.csv")
    frame.to_csv(path, index=False)
    print(f"{arguments.num_scenes} scenes x {arguments.num_chains} chains, {torch.get_num_threads()} thread(s)")
    print(frame.to_string(index=False, float_format=lambda value: f"{value:,.3g}"))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
