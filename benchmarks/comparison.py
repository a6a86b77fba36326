"""Do comparisons of groups keep their word: is a null rejected as often as it says, do intervals cover, what is found?

    python benchmarks/comparison.py [--num-studies 500] [--seed 1] [--jobs 1]

Studies of two groups of scenes of five entities, whose structures are drawn and whose posteriors are exact and
calibrated by construction: of every edge a number is seen, its type plus normal noise, and the posterior of each
receiver's incoming types under equally likely types follows by enumeration. ``information`` is the inverse variance of
that noise: at 25 nearly every edge is certain, at 4 a third are in doubt, at 1 posterior means stay close to the prior.

Out: benchmarks/results/comparison.csv, a row for each kind of study and quantity: the true effect; the mean estimate;
the mean difference of posterior averages, which the common prior shrinks (densities only); coverage of 95 % intervals;
and for several a the share of studies with p <= a: the size of the test where the effect is zero, its power elsewhere.
Finished rows are kept. About 60 minutes on one core. (The intervals were worked out on studies of seed 0.)
"""

import argparse
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.draws import Draws, PriorRecord
from pyro_nri.model.receivers import code_types, structure_of
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.covariates import compare_covariate
from pyro_nri.posterior.groups import compare_groups
from pyro_nri.posterior.probability import edge_probability
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.studies import Cell, run_cells

OUT = Path(__file__).parent / "results" / "comparison.csv"
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.5)
TYPE = 1
# Kind: (density, reciprocity, spread of the scenes' log odds of density) of both groups.
KINDS = {
    "same": ((0.4, 0.0, 0.0), (0.4, 0.0, 0.0)),
    "same, scenes differ": ((0.4, 0.2, 0.8), (0.4, 0.2, 0.8)),
    "denser": ((0.3, 0.0, 0.0), (0.5, 0.0, 0.0)),
    "more reciprocal": ((0.4, 0.0, 0.0), (0.4, 0.5, 0.0)),
    "denser, as reciprocal": ((0.3, 0.3, 0.0), (0.5, 0.3, 0.0)),
}
INFORMATION = (25.0, 4.0, 1.0)
NUM_SCENES = ((20, 20), (40, 15))
SLOPES = (0.0, 0.15)


def draw_structures(
    rng: np.random.Generator, num_scenes: int, num_entities: int, density: Any, reciprocity: float
) -> np.ndarray:
    """Structures ``[G, E]`` of types 0 and 1 with independent pairs; ``density`` may differ by scene, ``[G, 1]``."""
    both = edges.pairs(num_entities).numpy()
    rate = np.broadcast_to(density, (num_scenes, 1))
    first = rng.random((num_scenes, len(both))) < rate
    second = rng.random((num_scenes, len(both))) < np.where(
        first, rate + reciprocity * (1 - rate), rate * (1 - reciprocity)
    )
    result = np.zeros((num_scenes, edges.num_edges(num_entities)), np.int64)
    result[:, both[:, 0]], result[:, both[:, 1]] = first, second
    return result


def exact_posterior(
    structure: np.ndarray,
    information: float,
    rng: np.random.Generator,
    *,
    num_types: int = 2,
    num_draws: int = 100,
    weight: tuple[float, ...] | None = None,
    receivers: bool = True,
    **names: Any,
) -> xr.DataTree:
    """The exact posterior of structures ``[G, E]`` of which a noisy view is seen, under independent edges.

    Args:
        structure: types.
        information: inverse variance of the noise on the indicator of each type.
        rng: draws noise and structures.
        num_types: K.
        num_draws: of one chain.
        weight: prior weights of the types; equal by default.
        receivers: whether the posterior keeps the probabilities of receivers' codes.
        names: further arguments of the scenes, such as ``scene_names``.
    """
    weight = (1 / num_types,) * num_types if weight is None else weight
    num_scenes, number = structure.shape
    num_entities = edges.num_entities_of(number)
    incoming = edges.incoming_edges(num_entities).numpy()
    types = code_types(num_types, num_entities).numpy()  # [R, N - 1]
    seen = np.eye(num_types)[structure] + rng.normal(size=(num_scenes, number, num_types)) / np.sqrt(information)
    # -information |seen - e_k|² / 2 = information seen_k + a constant; summed over the incoming edges of each code.
    log_weight = information * seen[:, incoming] + np.log(weight)  # [G, N, N - 1, K]
    log_code = sum(log_weight[:, :, place, types[:, place]] for place in range(num_entities - 1))
    code = np.exp(log_code - log_code.max(-1, keepdims=True))
    code /= code.sum(-1, keepdims=True)
    probability = np.empty((num_scenes, number, num_types))
    for k in range(num_types):
        probability[:, incoming.ravel(), k] = (code @ (types == k)).reshape(num_scenes, -1)
    drawn = (rng.random((num_draws, num_scenes, num_entities, 1)) > code.cumsum(-1)[..., :-1]).sum(-1)
    shape = (1, num_draws, num_scenes)
    scenes = Scenes.from_arrays(np.zeros((num_scenes, 2, num_entities, 4)), time_step=0.1, **names)
    draws = Draws(
        edge_type=structure_of(torch.from_numpy(drawn), num_types).numpy().astype(np.int8)[None],
        log_joint=np.zeros(shape),
        accepted=np.ones(shape, bool),
        proposed=np.ones(shape, bool),
        move_kind=np.zeros(num_draws, np.int8),
        temperature=np.ones(num_draws),
        move_names=("exact",),
        num_edge_types=num_types,
        group_names=scenes.group_names,
        method="exact",
        seed=0,
        num_evaluations=0,
        edge_probability=probability,
        receiver_probability=code if receivers else None,
        prior=PriorRecord("independent", weight),
    )
    return to_datatree(draws, scenes)


def densities(rng: np.random.Generator, num_scenes: int, density: float, spread: float) -> np.ndarray:
    """Density of each scene, ``[G, 1]``."""
    log_odds = np.log(density / (1 - density)) + spread * rng.standard_normal((num_scenes, 1))
    return 1 / (1 + np.exp(-log_odds))


def true_values(density: float, reciprocity: float, spread: float) -> dict[str, float]:
    """Each quantity of type 1 in a group, over all scenes that there could be."""
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    rate = 1 / (1 + np.exp(-(np.log(density / (1 - density)) + spread * node)))
    mean, square, cube = ((rate**power) @ weight / weight.sum() for power in (1, 2, 3))
    mutual = square + reciprocity * (mean - square)
    variance = 4 * mean + 12 * square - 16 * mean**2  # of a degree: 4 possible edges, 12 ordered pairs of them
    return {
        "density": mean,
        "degree": 4 * mean,
        "reciprocity": (mutual - mean**2) / (mean - mean**2),
        "in-degree dispersion": variance / (4 * mean * (1 - mean)),
        "out-degree dispersion": variance / (4 * mean * (1 - mean)),
        "transitive triads": cube,
        "cyclic triads": cube,
    }


def run_study(cell: dict[str, Any], study: int, seed: int) -> pd.DataFrame:
    """One simulated study: the table of type 1 and the difference of posterior averages."""
    rng = np.random.default_rng([seed, study, *(ord(letter) for letter in str(sorted(cell.items())))])
    trees = []
    for number, (density, reciprocity, spread) in zip(cell["num_scenes"], KINDS[cell["kind"]], strict=True):
        rate = densities(rng, number, density, spread)
        trees.append(exact_posterior(draw_structures(rng, number, 5, rate, reciprocity), cell["information"], rng))
    frame = compare_groups(*trees, types=(TYPE,), num_permutations=999, seed=study)
    naive = [edge_probability(tree)[0][:, TYPE].mean() for tree in trees]
    return frame[frame["type"] == TYPE].assign(naive=naive[0] - naive[1])


def run_slope(cell: dict[str, Any], study: int, seed: int) -> pd.DataFrame:
    """One simulated study of a covariate between -1 and 1."""
    rng = np.random.default_rng([seed, study, *(ord(letter) for letter in str(sorted(cell.items())))])
    x = rng.uniform(-1, 1, cell["num_scenes"][0])
    structure = draw_structures(rng, len(x), 5, 0.4 + cell["slope"] * x[:, None], 0.0)
    tree = exact_posterior(structure, cell["information"], rng)
    frame = compare_covariate(tree, x, quantities=("density",), types=(TYPE,), num_permutations=999, seed=study)
    own = edge_probability(tree)[0][:, TYPE].reshape(len(x), -1).mean(1)
    naive = np.polyfit(x, own, 1)[0]
    return frame[(frame["type"] == TYPE) & frame["quantity"].str.endswith("slope")].assign(naive=naive)


def kinds() -> list[dict[str, Any]]:
    """The kinds of studies."""
    groups = [
        {"kind": kind, "information": information, "num_scenes": num_scenes}
        for kind, information, num_scenes in (
            *product(("denser", "same"), INFORMATION, NUM_SCENES[:1]),
            *product(("denser, as reciprocal", "more reciprocal", "same, scenes differ"), (4.0,), NUM_SCENES[:1]),
            ("denser, as reciprocal", 4.0, NUM_SCENES[1]),
        )
    ]
    slopes = [
        {"kind": "covariate", "slope": slope, "information": information, "num_scenes": (60, 0)}
        for slope, information in product(SLOPES, INFORMATION)
    ]
    return slopes + groups


def run_cell(cell: Cell, num_studies: int) -> list[Cell]:
    """Many studies of one kind in one table, a row for each quantity."""
    torch.set_num_threads(1)
    (kind,) = (each for each in kinds() if columns(each).items() <= cell.items())
    started = time.monotonic()
    run = run_slope if kind["kind"] == "covariate" else run_study
    every = pd.concat([run(kind, study, cell["seed"]) for study in range(num_studies)])
    if kind["kind"] == "covariate":
        truth = {"density slope": kind["slope"]}
    else:
        values = [true_values(*group) for group in KINDS[kind["kind"]]]
        truth = {name: values[0][name] - values[1][name] for name in values[0]}
    rows = []
    for name, part in every.groupby("quantity", sort=False):
        effect = truth[name]
        row = {
            **cell,
            "quantity": name,
            "num_studies": num_studies,
            "true_effect": effect,
            "mean_effect": part["effect"].mean(),
            "sd_effect": part["effect"].std(),
            "naive_effect": part["naive"].mean() if name in ("density", "density slope") else np.nan,
            "coverage": ((part["low"] <= effect) & (effect <= part["high"])).mean(),
            **{f"p_below_{level:g}": (part["p_value"] <= level).mean() for level in LEVELS},
            "undefined": part["p_value"].isna().mean(),
        }
        rows.append(row)
    seconds = (time.monotonic() - started) / num_studies
    return [row | {"seconds_per_study": round(seconds, 3)} for row in rows]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args(argv)
    work = partial(run_cell, num_studies=arguments.num_studies)
    wanted = [columns(kind) | {"seed": arguments.seed} for kind in kinds()]
    found = run_cells(arguments.out, wanted, work, jobs=arguments.jobs, unit="kind")
    print(found.round(3).to_string(index=False))


def columns(kind: dict[str, Any]) -> Cell:
    """What a kind of studies is called in its rows."""
    return {
        "kind": f"covariate, slope {kind['slope']:g}" if "slope" in kind else kind["kind"],
        "information": kind["information"],
        "num_scenes_a": kind["num_scenes"][0],
        "num_scenes_b": kind["num_scenes"][1],
    }


if __name__ == "__main__":
    main()
