"""Can an entity that nobody recorded be found: how many there are, where they move, and what they pull on?

    python analyses/hidden_particle.py [--num-scenes 200] [--num-count 100] [--systems springs charged] [--seed 0]

The models in data/models were learned from scenes in which nothing was hidden; no path of a hidden particle is ever
shown. Scenes are simulated with one or two particles more, whose data are taken away:

- ``edges given``: 4 recorded + 1 hidden, the true edges known (Alet et al. 2019, section 5.2, where the mean squared
  error of the hidden path is 1.09e-3);
- ``edges unknown``: 5 recorded + 1 hidden, all edges inferred too;
- ``count``: 5 recorded + 0, 1 or 2 hidden, each with prior probability 1/3, in equal thirds; every hidden particle
  pulls on at least one other.

Out, beside this file or in ``--out``: hidden_particle.csv, a row for each scene (``mse``: mean over frames 0-48 and the
four states, scaled units, of the posterior mean path; ``covered``: share of these numbers inside the 90 % interval of
the draws; edges: share of the edges whose most probable type is true, among recorded entities and from or to hidden
ones, under the better numbering of the hidden entities; ``accepted``: share of the moves that were proposed;
``probability``: of the number of hidden entities that is true); hidden_particle_summary.csv by degree; a picture.
Finished chunks are kept. ``--smoke`` runs a small one.
"""

import argparse
import itertools
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.draws import Draws
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.learning.checkpoint import Checkpoint, load_model
from pyro_nri.posterior.align import apply_alignment
from pyro_nri.posterior.figures import COLOURS, INK
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.scenes import edges
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate
from pyro_nri.studies import Cell, run_cells

MODELS = Path(__file__).parent.parent / "data" / "models"
CHUNK = 20
KEYS = ("system", "setting", "num_hidden", "chunk", "seed")
PUBLISHED = {"edges given": 1.09e-3, "edges unknown": 2.1e-3}


def scenes_of(system: str, num_observed: int, num_hidden: int, chunk: int, *, seed: int, linked: bool) -> Scenes:
    """A chunk of whole scenes; ``linked``: only such whose hidden particles all pull on a recorded one."""
    offset = 1_000_000 * (10 * num_observed + num_hidden)
    first = offset + 4 * CHUNK * chunk
    whole = simulate(system, 4 * CHUNK, num_entities=num_observed + num_hidden, first_scene=first, seed=seed + 500)
    enough = (degrees(whole, num_observed, system) > 0).all(-1) if linked and num_hidden else slice(None)
    return whole[enough][:CHUNK]


def degrees(whole: Scenes, num_observed: int, system: str) -> np.ndarray:
    """How many recorded particles each hidden one pulls on, ``[B, N_hidden]``; every charge pulls on all."""
    links = edges.to_matrix(whole.edge_type)[:, num_observed:, :num_observed].sum(-1).numpy()
    return links if system == "springs" else np.full_like(links, num_observed)


def compare(draws: Draws, whole: Scenes, num_observed: int, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Scores of each scene, of draws with the true number of hidden entities."""
    num_hidden = whole.num_entities - num_observed
    scale = checkpoint.model.score_scale.numpy()
    types = apply_alignment(draws.edge_type, checkpoint.alignment)
    common = np.stack([(types == k).mean((0, 1)) for k in range(2)], -1).argmax(-1)  # [B, E]
    found = edges.to_matrix(torch.as_tensor(common)).numpy()
    truth = edges.to_matrix(whole.edge_type).numpy()
    path = draws.hidden.path  # [R, B, N_hidden, T, D]
    true_path = whole.trajectory[:, :, num_observed:].transpose(1, 2).numpy()
    best: dict[str, np.ndarray] = {}
    for order in itertools.permutations(range(num_hidden)):
        same = np.array([*range(num_observed), *(num_observed + i for i in order)])
        error = ((path.mean(0)[:, list(order)] - true_path) / scale) ** 2
        low, high = np.quantile(path[:, :, list(order)], [0.05, 0.95], axis=0)
        right = found[:, same][:, :, same] == truth
        inside = np.arange(len(same)) < num_observed
        among = inside[:, None] & inside & ~np.eye(len(same), dtype=bool)
        other = ~(inside[:, None] & inside) & ~np.eye(len(same), dtype=bool)
        this = {
            "mse": error.mean((1, 2, 3)),
            "covered": ((low <= true_path) & (true_path <= high)).mean((1, 2, 3)),
            "observed_edges": right[:, among].mean(1),
            "hidden_edges": right[:, other].mean(1),
        }
        better = np.ones(len(error), bool) if not best else this["mse"] < best["mse"]
        best = {name: np.where(better, value, best.get(name, value)) for name, value in this.items()}
    return best


def run_cell(cell: Cell, size: int, num_draws: int) -> list[Cell]:
    """Infer one chunk of scenes."""
    system, setting, number, chunk, seed = (cell[name] for name in KEYS)
    checkpoint = load_model(MODELS / f"{system}5.pt")
    num_observed = 4 if setting == "edges given" else 5
    whole = scenes_of(system, num_observed, number, chunk, seed=seed, linked=setting == "count")[:size]
    recorded = Scenes.from_arrays(
        whole.trajectory[:, :, :num_observed], time_step=whole.time_step, scene_names=whole.scene_names
    )
    given = torch.as_tensor(np.argsort(checkpoint.alignment))[whole.edge_type] if setting == "edges given" else None
    started = time.monotonic()
    wanted = "auto" if setting == "count" else number
    draws = infer_hidden(
        checkpoint.model, recorded, wanted, structure=given, num_draws=num_draws, num_warmup=num_draws // 2, seed=seed
    )
    table = {
        **{"system": system, "setting": setting, "seed": seed, "chunk": chunk},
        "scene": whole.scene_names,
        "num_hidden": number,
        "degree": ["+".join(str(d) for d in sorted(row)) or "none" for row in degrees(whole, num_observed, system)],
        "found": draws.hidden.num_hidden,
        "probability": draws.hidden.probability[draws.hidden.numbers.index(number)],
        "seconds": (time.monotonic() - started) / len(whole),
        "evaluations": draws.num_evaluations,
    }
    if setting != "count":
        table |= compare(draws, whole, num_observed, checkpoint)
        table["accepted"] = draws.accepted.sum((0, 1)) / draws.proposed.sum((0, 1))
    return pd.DataFrame(table).to_dict("records")


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over scenes, by system, setting and whether the hidden particles pull on anything."""
    pulls = ~frame["degree"].str.split("+").map(lambda each: "0" in each)
    right = frame["found"] == frame["num_hidden"]
    frame = frame.assign(pulls=np.where(frame["num_hidden"] == 0, True, pulls), right=right.astype(float))
    parts = []
    for keys in (["system", "setting", "num_hidden", "pulls"], ["system", "setting", "num_hidden", "pulls", "degree"]):
        grouped = frame.groupby(keys, as_index=False)
        names = ["covered", "observed_edges", "hidden_edges", "right", "probability", "seconds"]
        means = {name: (name, "mean") for name in names}
        table = grouped.agg(
            num_scenes=("scene", "size"), mse_mean=("mse", "mean"), mse_median=("mse", "median"), **means
        )
        parts.append(table if "degree" in keys else table.assign(degree="all"))
    return pd.concat(parts, ignore_index=True)


def draw(frame: pd.DataFrame, path: Path) -> None:
    """Errors of hidden paths by degree."""
    systems = list(frame["system"].unique())
    figure = Figure(figsize=(4.2 * len(systems) + 1, 3.4), layout="constrained")
    for place, system in enumerate(systems):
        axes = figure.add_subplot(1, len(systems), place + 1)
        shown = frame[(frame["system"] == system) & frame["setting"].isin(PUBLISHED)]
        for number, setting in enumerate(PUBLISHED):
            part = shown[shown["setting"] == setting]
            x = part["degree"].astype(int) + np.random.default_rng(0).uniform(-0.27, -0.03, len(part)) + 0.3 * number
            label = "4 + 1, edges given" if setting == "edges given" else "5 + 1, edges unknown"
            axes.plot(x, part["mse"], "os"[number], ms=3, color=COLOURS[number], label=label)
        degrees = sorted(shown["degree"].astype(int).unique())
        if system == "springs":  # the only one that a figure was published for
            axes.axhline(PUBLISHED["edges given"], color=INK, lw=0.8, ls="--", label="published, edges given")
        axes.set(yscale="log", title=system, xlabel="entities that the hidden one pulls on", xticks=degrees)
        axes.set_xlim(degrees[0] - 0.6, degrees[-1] + 0.6)
        axes.set_ylabel("" if place else "squared error of the hidden path\n(scaled units, frames 0-48)")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False, fontsize=8)
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=150, format="png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-scenes", type=int, default=200, help="for each setting")
    parser.add_argument("--num-count", type=int, default=100, help="for each number of hidden particles")
    parser.add_argument("--systems", nargs="+", choices=["springs", "charged"], default=["springs", "charged"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    name, size, num_draws = ("hidden_particle_smoke", 1, 20) if chosen.smoke else ("hidden_particle", CHUNK, 200)
    systems = chosen.systems[:1] if chosen.smoke else chosen.systems
    numbers = {"edges given": (1,), "edges unknown": (1,)} | ({} if chosen.smoke else {"count": (0, 1, 2)})
    most = {setting: chosen.num_count if setting == "count" else chosen.num_scenes for setting in numbers}
    chunks = {setting: 1 if chosen.smoke else -(-most[setting] // CHUNK) for setting in numbers}
    table = chosen.out / f"{name}.csv"
    cells = [(y, s, n, c, chosen.seed) for y in systems for s in numbers for n in numbers[s] for c in range(chunks[s])]
    wanted = [dict(zip(KEYS, cell, strict=True)) for cell in cells]
    run_cells(table, wanted, partial(run_cell, size=size, num_draws=num_draws), unit="chunk")
    done = read_frame(table)  # with what other runs have made
    done["degree"] = done["degree"].astype(str)  # a column of whole numbers alone is read as such
    result = summary(done)
    write_frame(result, chosen.out / f"{name}_summary.csv")
    draw(done[done["setting"] != "count"], chosen.out / f"{name}.png")
    print(result.to_string(index=False))
    print(f"wrote {table}, {name}_summary.csv and {name}.png")


if __name__ == "__main__":
    main()
