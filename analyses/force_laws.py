"""Which laws does the method find on other systems, do they carry over to more entities, and does it invent any?

    python analyses/force_laws.py [--jobs 2] [--num-test 200] [--num-large 100] [--seeds 3] [--minutes 1]

Pair forces with their default noise and prior are trained without labels on 49 frames of 100 scenes of charged
particles, of springs, of Kuramoto oscillators (raw phases, rates and known frequencies), and on 10 scenes of springs;
each model infers 200 held-out scenes. The models of charged particles and of springs, unchanged, infer 100 scenes of 10
entities too. Priors other than "independent" are read out of the same model without another training (equal type
weights; for "charges" the table that the training scenes choose). ``law_error`` is the median relative error of the
learned force over what the data cover, for types that exert one.

Negative controls, trained and inferred: "frames", the frames of each scene in random order (what entities do at one
time stays together: linked ones are near each other and take up each other's momentum, so 50 % is not what to expect);
"own frames", another order for each entity; "other scenes", entities of different scenes put together, where nothing
but 50 % is right, and a posterior that expects more is too sure. ``halves_contradict`` is the share of training scenes
whose two halves want structures of their own (at most 0.05 if the model is right): that, without any truth, tells.

Out, beside this file or in ``--out``: force_laws.csv, a row for each model, size and prior; force_laws_charged.csv and
.png (springs, kuramoto), the laws of the first seed beside the true ones. Finished models are kept: run it again to go
on. 30 trainings: about 45 minutes on one core, half of it with ``--jobs 2``. ``--smoke`` runs a few in seconds.
"""

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.inference.evidence import choose_table
from pyro_nri.inference.exact import enumerate_posterior
from pyro_nri.model.priors import ChargesPrior, make_prior
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.posterior.law_plots import plot_laws
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame
from pyro_nri.posterior.scores import score_edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
NAMES = {
    "charged": ("attract", "repel"),
    "springs": ("no spring", "spring"),
    "kuramoto": ("not coupled", "coupled"),
}
CONTROLS = ("frames", "own frames", "other scenes")
READ_OUT = {("charged", False): ("symmetric", "charges"), ("charged", True): ("charges",)}
SCORES = ("edge_accuracy", "expected_accuracy", "ece", "ece_uncertain", "log_score")
COLUMNS = (*SCORES, "halves_contradict", "law_error", "training_seconds", "inference_seconds")


def cells(num_seeds: int, sizes: Cell, *, smoke: bool) -> list[Cell]:
    """What to train, seed by seed."""
    kinds = [(system, 100, "none") for system in NAMES] + [("springs", 10, "none")]
    kinds += [(system, 100, control) for system in ("charged", "springs") for control in CONTROLS]
    if smoke:
        kinds = [("springs", 4, "none"), ("kuramoto", 10, "none"), ("springs", 4, "other scenes")]
    return [
        {"system": system, "num_train": num_train, "control": control, "seed": seed, **sizes}
        for seed in range(num_seeds)
        for system, num_train, control in kinds
    ]


def scenes_of(cell: Cell, num_scenes: int, seed: int, num_entities: int) -> Scenes:
    """Simulated scenes, in the disorder of a negative control if the cell is one."""
    scenes = simulate(cell["system"], num_scenes, seed=seed, num_entities=num_entities, num_frames=cell["num_frames"])
    random, path = np.random.default_rng(seed), scenes.trajectory.numpy().copy()  # [B, T, N, D]
    if cell["control"] == "other scenes":
        path = np.stack([np.roll(path[:, :, n], n, axis=0) for n in range(num_entities)], axis=2)
    elif cell["control"] != "none":
        order = random.random(path.shape[:3] if cell["control"] == "own frames" else (*path.shape[:2], 1)).argsort(1)
        path = np.take_along_axis(path, order[..., None], axis=1)
    return replace(scenes, trajectory=torch.from_numpy(path), initial_state=None)


def run_cell(cell: Cell, prefix: str) -> list[Cell]:
    """Train, infer, score: one row for each number of entities and prior."""
    torch.set_num_threads(1)
    train = scenes_of(cell, cell["num_train"], cell["seed"] + 1, cell["num_entities"])
    spec = ModelSpec(2, dynamics="pair-forces", state_names=train.state_names)
    started = time.monotonic()
    length = {name: cell[name] for name in ("minutes", "num_steps") if name in cell}
    checkpoint = fit(train, spec=spec, **length, seed=cell["seed"])
    halves = checkpoint.training.get("halves", {"contradict": np.nan, "scenes": 1})
    training = {"training_seconds": time.monotonic() - started, "law_error": np.nan}
    training["halves_contradict"] = halves["contradict"] / halves["scenes"]
    if cell["control"] == "none":
        laws = laws_frame(checkpoint)
        training["law_error"] = law_error(laws, cell["system"])
        if cell["seed"] == 0 and (cell["system"], cell["num_train"]) != ("springs", 10):
            write_frame(laws, f"{prefix}_{cell['system']}.csv")
    rows, model = [], checkpoint.model
    for num_entities, num_scenes in ((cell["num_entities"], cell["num_test"]), (cell["large"], cell["num_large"])):
        is_large = num_entities == cell["large"]
        if is_large and (cell["control"] != "none" or cell["num_train"] == 10 or cell["system"] == "kuramoto"):
            continue
        test = scenes_of(cell, num_scenes, 0, num_entities)
        truth, started = test.edge_type.numpy(), time.monotonic()
        scene = np.repeat(np.arange(len(truth)), truth.shape[1])
        score = partial(score_edges, true_edge_type=truth.ravel(), scene=scene, alignment=checkpoint.alignment)
        others = READ_OUT.get((cell["system"], is_large), ()) if cell["control"] == "none" else ()
        with torch.no_grad():
            likelihood = model.likelihood(test)
            for name in (spec.prior, *others):
                prior = model.prior if name == spec.prior else make_prior(name, 2)
                if isinstance(prior, ChargesPrior):
                    prior.set_table(choose_table(prior, model.likelihood(train), train.edge_mask)[0])
                found = score(enumerate_posterior(likelihood, prior(test.edge_mask)).edge_probability.reshape(-1, 2))
                scores = {each: found[each]["value"] for each in SCORES}
                scores |= {end: found["edge_accuracy"][end] for end in ("low", "high")}
                inference = {"inference_seconds": time.monotonic() - started, "entities": num_entities, "prior": name}
                rows.append({**cell, **inference, **scores, **training})
    return rows


def law_error(laws: pd.DataFrame, system: str) -> float:
    """Median relative error of the covered forces of types that exert one."""
    truth = np.zeros(len(laws))
    for true_type, law in enumerate(TRUE_LAWS[system]):
        truth = np.where(laws["aligned_type"] == true_type, law(laws["distance"].to_numpy()), truth)
    kept = laws["covered"] & (np.abs(truth) > 1e-3 * np.abs(truth).max())
    return float((laws["force"] / np.where(kept, truth, np.nan) - 1).abs().median())


def markdown(frame: pd.DataFrame, by: list[str]) -> str:
    """Means over seeds as a Markdown table."""
    lines = ["| " + " | ".join([*by, *COLUMNS]) + " |", "|" + "---|" * (len(by) + len(COLUMNS))]
    for kind, part in frame.groupby(by, sort=False):
        lines.append("| " + " | ".join([*map(str, kind), *(f"{part[name].mean():.4g}" for name in COLUMNS)]) + " |")
    return "\n".join(lines).replace("nan", "-")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-test", type=int, default=200, help="held-out scenes of 5 entities")
    parser.add_argument("--num-large", type=int, default=100, help="held-out scenes of 10 entities")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each training")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time, each on one thread")
    parser.add_argument("--smoke", action="store_true", help="a few small models, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    sizes: Cell = {name: getattr(arguments, name) for name in ("num_test", "num_large", "minutes")}
    sizes, name = {**sizes, "num_entities": 5, "large": 10, "num_frames": 49}, "force_laws"
    if arguments.smoke:
        sizes = {"num_test": 4, "num_large": 2, "num_steps": 200, "num_entities": 3, "large": 4, "num_frames": 12}
        name += "_smoke"
    prefix = arguments.out / name
    wanted = cells(1 if arguments.smoke else arguments.seeds, sizes, smoke=arguments.smoke)
    work = partial(run_cell, prefix=str(prefix))
    frame = run_cells(f"{prefix}.csv", wanted, work, jobs=arguments.jobs, unit="model")
    for system in (system for system in NAMES if Path(f"{prefix}_{system}.csv").exists()):
        laws = read_frame(f"{prefix}_{system}.csv")
        names = [NAMES[system][kind] for kind in laws.groupby("edge_type")["aligned_type"].first()]
        figure = plot_laws(laws, truth=TRUE_LAWS[system], names=names)[0].figure
        with written_beside(f"{prefix}_{system}.png") as beside:
            figure.savefig(beside, dpi=150)
        plt.close(figure)
    print(markdown(frame, ["system", "num_train", "control", "entities", "prior"]))


if __name__ == "__main__":
    main()
