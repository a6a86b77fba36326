"""How often the intervals of learned laws hold the true law, point by point, where data lie.

    python benchmarks/law_coverage.py [--smoke] [--system springs charged kuramoto] [--measurement-noise 0 0.01]
                                      [--num-scenes 30] [--num-fits 8] [--out FOLDER]

For each system and measurement noise laws are learned once by gradient; for each of ``--num-fits`` fresh sets of scenes
the closed-form fit and its bootstrap start from there anew, and never see a true structure. Counted
are the covered points of ``laws_frame``, evenly spaced in log distance: overall, by true type and by decade. Rows of
other settings in the results file are kept, so that the table can be made in parts.
"""

import argparse
import copy
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.fitting import fit
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.learning.law_bootstrap import bootstrap_laws
from pyro_nri.learning.laws import fit_laws
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.laws import TRUE_LAWS, laws_frame
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

KEYS = ["system", "measurement_noise", "num_scenes"]


def refitted(start: Checkpoint, scenes: Scenes, seed: int) -> Checkpoint:
    """The laws of a model fitted anew to other scenes."""
    found = copy.deepcopy(start)
    law_fit = fit_laws(found.model, scenes, seed=seed)
    found.law_draws, found.law_support = bootstrap_laws(found.model, law_fit.scenes, seed=seed)
    return found


def judged(checkpoint: Checkpoint, system: str) -> pd.DataFrame:
    """The laws' table with the true law beside it."""
    frame = laws_frame(checkpoint)
    frame["truth"] = np.nan
    for true_type, part in frame[frame["aligned_type"] >= 0].groupby("aligned_type"):
        frame.loc[part.index, "truth"] = TRUE_LAWS[system][int(true_type)](part["distance"].to_numpy())
    frame["holds"] = (frame["low"] <= frame["truth"]) & (frame["truth"] <= frame["high"])
    return frame


def summary(points: pd.DataFrame) -> dict[str, float]:
    """Coverage with its standard error over fits, and how far and wide."""
    inside = points[points["covered"]]
    if inside.empty:
        return {"covered_share": 0.0}
    by_fit = inside.groupby("fit")["holds"].mean()
    error = (inside["force"] - inside["truth"]).abs()
    return {
        "covered_share": points["covered"].mean(),
        "coverage": inside["holds"].mean(),
        "standard_error": by_fit.std() / np.sqrt(len(by_fit)),
        "median_error": error.median(),
        "median_half_width": ((inside["high"] - inside["low"]) / 2).median(),
        "median_relative_error": (error / inside["truth"].abs())[inside["truth"] != 0].median(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="few scenes and steps, to see that it runs")
    parser.add_argument("--system", nargs="+", choices=sorted(TRUE_LAWS), default=["springs", "charged"])
    parser.add_argument("--measurement-noise", nargs="+", type=float, default=[0.0, 0.01])
    parser.add_argument("--num-scenes", type=int, default=30)
    parser.add_argument("--num-fits", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.system, arguments.measurement_noise = ["springs"], [0.0]
        arguments.num_scenes, arguments.num_fits = 6, 2
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("law_coverage_smoke.csv" if arguments.smoke else "law_coverage.csv")
    for system in arguments.system:
        for noise in arguments.measurement_noise:
            rows = study(
                system, noise, arguments.num_scenes, arguments.num_fits, num_steps=20 if arguments.smoke else 300
            )
            if path.exists() and not arguments.smoke:
                old = pd.read_csv(path)
                same = (old[KEYS].astype(str) == rows[KEYS].iloc[0].astype(str)).all(axis=1)
                rows = pd.concat([old[~same], rows], ignore_index=True)
                rows = rows.sort_values(KEYS, kind="stable", ignore_index=True)
            rows.to_csv(path, index=False, float_format="%.4g")
    print(pd.read_csv(path).to_string(index=False))
    print(f"wrote {path}")


def study(system: str, noise: float, num_scenes: int, num_fits: int, *, num_steps: int) -> pd.DataFrame:
    """Rows of the results for one system and noise."""
    options = {"measurement_noise": noise}
    first = simulate(system, min(num_scenes, 30), seed=1, **options)
    spec = ModelSpec(2, state_names=first.state_names, dynamics="pair-forces")
    start = fit(first, spec=spec, num_steps=num_steps, seed=0, law_bootstrap=0)
    fits = []
    for number in range(num_fits):
        started = time.perf_counter()
        scenes = simulate(system, num_scenes, seed=100 + number, **options)
        fits.append(judged(refitted(start, scenes, seed=number), system).assign(fit=number))
        holds = fits[-1].loc[fits[-1]["covered"], "holds"].mean()
        print(
            f"{system} noise {noise:g} fit {number}: {holds:.3f} in {time.perf_counter() - started:.0f} s", flush=True
        )
    points = pd.concat(fits, ignore_index=True)
    setting = {"system": system, "measurement_noise": noise, "num_scenes": num_scenes, "num_fits": num_fits}
    rows = [{**setting, "true_type": "all", "distance": "all", **summary(points)}]
    decade = 10.0 ** np.floor(np.log10(points["distance"].abs().clip(lower=1e-9)))
    for true_type, part in points.groupby("aligned_type"):
        rows.append({**setting, "true_type": true_type, "distance": "all", **summary(part)})
        if system == "kuramoto":
            continue
        for low, inside in part.groupby(decade[part.index]):
            if inside["covered"].any():
                where = f"{low:g} to {10 * low:g}"
                rows.append({**setting, "true_type": true_type, "distance": where, **summary(inside)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()
