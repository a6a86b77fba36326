"""Does the evidence choose the prior, and the held-out score the number of types, the boundary and the noise?

    python benchmarks/model_choice.py [--question NAME ...] [--seed N ...] [--keep FOLDER] [--smoke] [--out FOLDER]

Pair forces, N = 5, 49 frames, no labels. For each seed models are trained on 40 scenes (charged: 100) and scored on 100
others, whose structures are inferred from frames 0 to 24 and whose frames 25 to 48 are foretold. "springs3" has springs
of two stiffnesses and none; "~" marks measurement noise of 0.001 on every number. Rows of seed "all" pool the fits of
all seeds, so that their standard errors know how much trainings differ.

Everything takes about an hour on one core. With --keep, trained models are kept in a folder and used again, so that it
can be done in parts; tables are made of the questions and seeds that were asked for.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.heldout import held_out_score
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pyro_nri.learning.laws import fit_forward_noise
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.marginals import compare_priors
from pyro_nri.posterior.selection import score_table
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

SYSTEMS: dict[str, dict[str, Any]] = {
    "springs": {"system": "springs"},
    "springs~": {"system": "springs", "measurement_noise": 1e-3},
    "springs3": {"system": "springs", "spring_types": (0.0, 0.05, 0.2)},
    "charged": {"system": "charged"},
}
# Question: systems, and the choices that compete in it by name.
QUESTIONS: dict[str, tuple[tuple[str, ...], dict[str, dict[str, Any]]]] = {
    "priors": (("springs", "charged"), {"2 types": {}}),
    "types": (
        ("springs", "springs~", "springs3", "charged"),
        {f"{k} types": {"num_edge_types": k} for k in (1, 2, 3, 4)},
    ),
    "boundary": (
        ("charged",),
        {"estimate": {}, "5": {"boundary": 5.0}, "4.5": {"boundary": 4.5}, "none": {"boundary": "none"}},
    ),
    "noise": (
        ("charged",),
        {"geometric": {}, "student_t": {"noise": "student_t"}, "normal": {"noise": "normal"}},
    ),
}
HELD_OUT_SEED = 500
# Close encounters of charges are rare: it takes more scenes to learn the force there.
NUM_TRAIN = {"charged": 100}


def made(system: str, num_scenes: int, seed: int, *, smoke: bool) -> Scenes:
    small = {"num_entities": 3, "num_frames": 16} if smoke else {}
    return simulate(num_scenes=num_scenes, seed=seed, **SYSTEMS[system], **small)


def num_train(system: str, arguments: argparse.Namespace) -> int:
    return 12 if arguments.smoke else NUM_TRAIN.get(system, 40)


def trained(system: str, seed: int, choice: dict[str, Any], arguments: argparse.Namespace) -> Checkpoint:
    """A model with these choices, from the folder if it is there."""
    choice = {"num_edge_types": 2, **choice}
    name = "-".join([system.replace("~", "_noisy"), str(seed), *(f"{k}_{v}" for k, v in choice.items())])
    path = arguments.keep / f"{name}.pt"
    if path.exists():
        return load_checkpoint(path)
    started = time.monotonic()
    scenes = made(system, num_train(system, arguments), seed, smoke=arguments.smoke)
    spec = ModelSpec(dynamics="pair-forces", **choice)
    checkpoint = fit(scenes, spec=spec, num_steps=arguments.num_steps, batch_size=8, law_bootstrap=0, seed=seed)
    restart_noise(checkpoint, scenes)
    save_checkpoint(checkpoint, path)
    print(f"trained {name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return checkpoint


def restart_noise(checkpoint: Checkpoint, scenes: Scenes) -> None:
    """Fit the forward noise from the scale of the residuals on: from that of the changes it may end far off."""
    model = checkpoint.model
    structure = torch.as_tensor(infer(model, scenes, num_chains=1, num_draws=1, seed=0).edge_type[0, 0]).long()
    prepared = model.prepare(scenes)
    with torch.no_grad():
        mean = model.trajectory(prepared, structure[prepared.group_index])
        residual = model.dynamics.step(
            prepared.trajectory[:, :-1], mean.structure[:, None], edge_mask=prepared.edge_mask[:, None]
        )
        residual = (prepared.trajectory[:, 1:] - residual)[mean.scored].abs()
        model.noise.log_relative_scale.copy_((residual.median(0).values / model.noise.change_scale).log())
        if model.noise.uses_context:
            model.noise.context_weight.zero_()
    fit_forward_noise(model, scenes, structure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--question", nargs="+", choices=list(QUESTIONS), default=list(QUESTIONS))
    parser.add_argument("--system", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--keep", type=Path, help="folder of trained models, to go on in parts")
    parser.add_argument("--smoke", action="store_true", help="a few scenes and steps, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.num_test, arguments.num_steps = (6, 20) if arguments.smoke else (100, 120)
    if arguments.smoke:
        arguments.seed, arguments.system = arguments.seed[:1], ["charged"]
    with tempfile.TemporaryDirectory() as folder:
        arguments.keep = Path(folder) if arguments.keep is None else arguments.keep
        for path in (arguments.keep, arguments.out):
            path.mkdir(parents=True, exist_ok=True)
        for question in arguments.question:
            answer(question, arguments)


def answer(question: str, arguments: argparse.Namespace) -> None:
    """Tables of one question, into one file."""
    systems, choices = QUESTIONS[question]
    if arguments.smoke:
        choices = dict(list(choices.items())[:2])
    tables = []
    for system in systems:
        if system not in arguments.system:
            continue
        held_out = made(system, arguments.num_test, HELD_OUT_SEED, smoke=arguments.smoke)
        if question == "priors":
            for seed in arguments.seed:
                model = trained(system, seed, {}, arguments)
                train = made(system, num_train(system, arguments), seed, smoke=arguments.smoke)
                table = compare_priors(model, held_out, table_scenes=train)
                tables.append(table.assign(system=system, seed=seed))
        else:
            tables += [table.assign(system=system) for table in score_tables(system, choices, held_out, arguments)]
    frame = pd.concat(tables, ignore_index=True)
    frame = frame[["system", "seed", *frame.columns.drop(["system", "seed"])]]
    path = arguments.out / f"model_choice_{question}{'_smoke' if arguments.smoke else ''}.csv"
    frame.round(3).to_csv(path, index=False)
    print(f"{question}\n{frame.round(2).to_string(index=False)}\nwrote {path}", flush=True)


def score_tables(
    system: str, choices: dict[str, dict[str, Any]], held_out: Scenes, arguments: argparse.Namespace
) -> list[pd.DataFrame]:
    """One table for each seed, and one of all fits together."""
    num_types = {name: choice.get("num_edge_types", 2) for name, choice in choices.items()}
    scores: dict[str, list[np.ndarray]] = {name: [] for name in choices}
    accuracy: dict[str, list[float]] = {name: [] for name in choices}
    for seed in arguments.seed:
        for name, choice in choices.items():
            checkpoint = trained(system, seed, choice, arguments)
            scores[name].append(held_out_score(checkpoint.model, held_out, seed=seed))
            accuracy[name].append(checkpoint.training["edge_accuracy"])
    tables = []
    for number, seed in enumerate(arguments.seed):
        table = score_table({name: each[number] for name, each in scores.items()}, num_types)
        right = [accuracy[name][number] for name in table.name]
        tables.append(table.assign(seed=str(seed), training_edge_accuracy=right))
    if len(tables) > 1:
        table = score_table({name: np.stack(each) for name, each in scores.items()}, num_types)
        right = [float(np.mean(accuracy[name])) for name in table.name]
        tables.append(table.assign(seed="all", training_edge_accuracy=right))
    return tables


if __name__ == "__main__":
    main()
