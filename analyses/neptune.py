"""Where does the path of Uranus say that an unseen planet stood in 1846, and how sure are we that there is one?

    python analyses/neptune.py [--num-draws 1000] [--seeds 3]

Uranus's direction from the Sun, once a year from 1781 to 1846, with 1 arc-second of normal noise on each component;
places are those of JPL's ephemeris DE405, itself a fit to later observations (data/neptune). The program is that of
measurement noise: gravity as the edge module, every body pulls every other one, the Sun is an entity. Given: the law,
masses and states of Sun, Jupiter and Saturn, the mass of Uranus. Latent: Uranus's state in 1781; state and mass of one
unseen body, whose prior says: any longitude; 38.8 astronomical units away, as Bode's law had it, within a factor of
1.6; eccentricity and inclination as of the known outer planets (components of 0.035 and 0.02); mass of any planet (3e-5
Suns within a factor of 4), or like Uranus (4.4e-5, 2), or like Saturn (2.9e-4, 2); factors are a standard deviation.
Rows: each mass prior; noise of 0.3 and 0.1, as the mean of ten or a hundred nights a year would have; as a control,
skies simulated without an unseen body.

Out, beside this file or in ``--out``: neptune.csv, neptune_draws.csv, neptune.png. Finished rows are kept; ``--smoke``
runs a short recording with few draws. Half an hour on one core.
"""

import argparse
import math
import sys
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.dynamics.gravity import Gravity
from pyro_nri.dynamics.rollout import rollout
from pyro_nri.inference.noisy_modes import find_modes, least_squares
from pyro_nri.inference.population import infer_population
from pyro_nri.inference.streams import generator
from pyro_nri.model.measurement import DirectionMeasurement, MeasurementNoise
from pyro_nri.model.noisy import NoisyModel
from pyro_nri.model.orbits import MassPrior, OrbitPrior, OrbitStart
from pyro_nri.model.priors import IndependentPrior
from pyro_nri.posterior.figures import COLOURS, DASHES, draw_region
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.studies import Cell, run_cells

matplotlib.use("Agg")
DATA = Path(__file__).parent.parent / "data" / "neptune"
STATE, SECOND, URANUS = ("x", "y", "z", "vx", "vy", "vz", "gm"), math.radians(1 / 3600), 3
MASSES = {"any planet": (3e-5, 4.0), "like Uranus": (4.4e-5, 2.0), "like Saturn": (2.9e-4, 2.0)}
SHAPE = {"eccentricity": 0.035, "inclination": 0.02}
SEEN = OrbitPrior(19.0, 1.1, **SHAPE)
#: Uranus ran ahead until 1822 and fell behind afterwards: then it passed whatever pulls it, 41 years after the start.
UNSEEN = OrbitPrior(38.8, 1.6, **SHAPE, epoch=41.0)
SKIES = ("ephemeris", "no unseen body")


def program(known: Tensor, mass: MassPrior | None, noise: float) -> NoisyModel:
    """Sun, Jupiter, Saturn, Uranus, and an unseen body where ``mass`` is given."""
    options = {} if mass is None else {"hidden_orbit": UNSEEN, "hidden_mass": mass, "num_hidden": 1}
    gravity = Gravity(STATE, time_step=1.0, num_substeps=2)
    measured = MeasurementNoise(torch.full((3,), noise * SECOND, dtype=torch.float64))
    start = OrbitStart(known, (URANUS,), SEEN, **options)
    return NoisyModel(gravity, IndependentPrior(2), start, measured, DirectionMeasurement(STATE))


def everything(num_entities: int) -> Tensor:
    return torch.ones(1, num_entities * (num_entities - 1), dtype=torch.long)


def recording(sky: str, noise: float, seed: int, num_frames: int) -> tuple[Tensor, Scenes]:
    """Known states ``[4, 7]`` at the first frame and Uranus's measured directions."""
    bodies, table = pd.read_csv(DATA / "bodies.csv"), pd.read_csv(DATA / "sky.csv")
    known = torch.tensor(bodies[list(STATE)].to_numpy())[: URANUS + 1]
    path = rollout(Gravity(STATE, time_step=1.0, num_substeps=8), known, everything(4)[0], num_frames - 1)
    path = DirectionMeasurement(STATE)(torch.cat([known[None], path]))[None]
    if sky == "ephemeris":
        path[0, :, URANUS] = torch.tensor(table.filter(like="uranus").to_numpy())[:num_frames]
    error = torch.randn(path.shape, generator=generator(seed, "measurement"), dtype=torch.float64)
    seen = (torch.arange(4) == URANUS).expand(path.shape[:3])
    options = {"state_names": ("dx", "dy", "dz"), "scene_names": [f"{sky} {seed}"], "observation_mask": seen}
    return known, Scenes.from_arrays(path + noise * SECOND * error, **options)


def place(position: Any) -> Cell:
    """Heliocentric longitude and latitude in degrees, and distance."""
    x, y, z = np.moveaxis(np.asarray(position), -1, 0)
    turn, flat = np.rad2deg(np.arctan2(y, x)) % 360, np.hypot(x, y)
    return {"longitude": turn, "latitude": np.rad2deg(np.arctan2(z, flat)), "distance": np.hypot(flat, z)}


def run_cell(cell: Cell, places: Path) -> list[Cell]:
    """One row of results; draws of the unseen body, where they are shown, go into the table ``places``."""
    num_frames, num_draws = cell["num_frames"], cell["num_draws"]
    known, scenes = recording(cell["sky"], cell["noise"], cell["seed"], num_frames)
    none, one = (program(known, mass, cell["noise"]) for mass in (None, MassPrior(*MASSES[cell["mass_prior"]])))
    x, y, _ = scenes.trajectory[0, 0, URANUS]
    start = SEEN.standard(torch.atan2(y, x), torch.tensor(SEEN.distance).double())
    alone = find_modes(none, scenes, everything(4), start[None, None], num_steps=12)
    turns = torch.arange(24, dtype=torch.float64) * (2 * math.pi / 24)
    orbits = [UNSEEN.standard(turns, torch.full_like(turns, distance)) for distance in (30.0, 42.0)]
    starts = torch.cat([torch.cat([alone.value[0].expand(24, -1), at, 0 * at[:, :1]], -1) for at in orbits])[:, None]
    modes = find_modes(one, scenes, everything(5), starts, num_steps=15)
    posteriors, row = [], dict(cell)
    for name, model, found, number in (("none", none, alone, 300), ("one", one, modes, num_draws)):
        problem = least_squares(model, scenes, everything(4 + model.num_hidden))
        posteriors.append(infer_population(problem, found, scenes.scene_names, seed=0, num_draws=number))
        left = problem.residuals(found.value[:, found.log_density[0].argmax()]).detach() / SECOND
        row[f"rms_{name}"] = math.sqrt(float(left.square().sum()) / (3 * num_frames))
        row[f"effective_{name}"] = float(posteriors[-1].integral.effective)
    without, drawn = (each.integral for each in posteriors)
    row["log_bayes"] = float(drawn.log_value - without.log_value)
    row["log_bayes_error"] = math.hypot(float(drawn.log_error), float(without.log_error))
    value = posteriors[1].resample(torch.tensor([0.5]).double(), num_draws)
    with torch.no_grad():
        end = torch.cat([one.path(scenes, everything(5), one.unpack(part, 4))[:, 0, -1] for part in value.split(500)])
    draws = pd.DataFrame({**place(end[:, 4, :3] - end[:, 0, :3]), "mass": (end[:, 4, 6] / end[:, 0, 6]).numpy()})
    truth = place(pd.read_csv(DATA / "sky.csv").filter(like="neptune").to_numpy()[num_frames - 1])
    draws["longitude"] = (draws["longitude"] - truth["longitude"] + 180) % 360 - 180 + truth["longitude"]
    for column, values in draws.items():
        row |= dict(zip((f"{column}_low", column, f"{column}_high"), values.quantile([0.05, 0.5, 0.95]), strict=True))
    row |= {f"true_{column}": float(value) for column, value in truth.items()}
    if cell["sky"] == SKIES[0] and cell["noise"] == 1:
        draws = pd.DataFrame([cell] * num_draws).join(draws.round({"mass": 8} | dict.fromkeys(truth, 3)))
        write_frame(pd.concat([read_frame(places), draws], ignore_index=True) if places.exists() else draws, places)
    return [row]


def draw(table: pd.DataFrame, draws: pd.DataFrame) -> Figure:
    """The unseen body on the sky, each row's interval, the control."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    sky, bars, control = figure.subplots(1, 3)
    real, simulated = (table[table["sky"] == name].reset_index() for name in SKIES)
    for colour, dash, (name, some) in zip(COLOURS, DASHES, draws.groupby("mass_prior", sort=False), strict=False):
        draw_region(sky, some[["longitude", "latitude"]].to_numpy(), colour, dash, f"{name}, 90 % of draws")
    truth = real.iloc[0]
    sky.plot(truth.true_longitude, truth.true_latitude, "+", color="black", ms=12, mew=2, label="DE405")
    sky.set(xlabel="longitude, degrees", ylabel="latitude, degrees", title="At the last frame")
    sky.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.4, -0.13), ncols=2)
    error = (real["longitude"] - real["longitude_low"], real["longitude_high"] - real["longitude"])
    bars.errorbar(real["longitude"], range(len(real)), xerr=error, fmt="o", color="0.3", capsize=3)
    bars.axvline(truth.true_longitude, color="black", lw=1)
    bars.set_yticks(range(len(real)), [f'{row.mass_prior}, noise {row.noise:g}"' for row in real.itertuples()])
    bars.set(xlabel="longitude, degrees", title="Medians, 90 % intervals; line: DE405")
    control.axhline(0, color="0.6", lw=1)
    names = list(simulated["mass_prior"].unique())
    place = simulated["mass_prior"].map(names.index) + 0.1 * simulated["seed"]
    control.errorbar(place, simulated["log_bayes"], 2 * simulated["log_bayes_error"], fmt="o", color="0.3", capsize=3)
    control.set_xticks(range(len(names)), names)
    control.set(ylabel="log Bayes factor, one against none", title="Control: nothing unseen simulated")
    return figure


def cells(num_seeds: int, smoke: bool) -> list[Cell]:
    """What to infer: mass priors, precise measurements, controls."""
    real = [(SKIES[0], mass, 1.0, 0) for mass in MASSES]
    precise = [(SKIES[0], "any planet", noise, 0) for noise in (0.3, 0.1)]
    controls = [(SKIES[1], mass, 1.0, seed) for mass, seed in product(MASSES, range(num_seeds))]
    chosen = real[:1] + controls[:1] if smoke else real + precise + controls
    return [dict(zip(("sky", "mass_prior", "noise", "seed"), each, strict=True)) for each in chosen]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-draws", type=int, default=1000, help="draws of each posterior")
    parser.add_argument("--seeds", type=int, default=3, help="number of control skies")
    parser.add_argument("--smoke", action="store_true", help="few frames and draws, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    smoke, path = arguments.smoke, arguments.out / ("neptune_smoke.csv" if arguments.smoke else "neptune.csv")
    sizes = {"num_frames": 8 if smoke else 66, "num_draws": 30 if smoke else arguments.num_draws}
    wanted = [cell | sizes for cell in cells(arguments.seeds, smoke)]
    places = path.with_name(f"{path.stem}_draws.csv")
    table = run_cells(path, wanted, partial(run_cell, places=places), unit="row")
    with written_beside(path.with_suffix(".png")) as beside:
        draw(table, read_frame(places)).savefig(beside, dpi=150)
    first, control = table.iloc[0], table[table["sky"] == SKIES[1]]["log_bayes"]
    ends = [first[[name, f"{name}_low", f"{name}_high"]] for name in ("longitude", "distance", "mass")]
    longitude, distance, mass = ("{:.3g} [{:.3g}, {:.3g}]".format(*each) for each in ends)
    print(
        f"Uranus alone leaves {first.rms_none:.2f} arc-seconds, one unseen body {first.rms_one:.2f}: log Bayes factor "
        f"{first.log_bayes:.1f} ± {first.log_bayes_error:.1f}. At the last frame its longitude is {longitude} degrees "
        f"(DE405: {first.true_longitude:.1f}), its distance {distance} astronomical units ({first.true_distance:.1f}), "
        f"its mass {mass} Suns: medians, 90 % intervals.\n\nSimulated without an unseen body: log Bayes factors of "
        f"{control.min():.2f} to {control.max():.2f}. All this knows the law of gravity, the masses and paths of Sun, "
        "Jupiter and Saturn, the mass of Uranus, and that at most one body is unseen, near the plane of the others; "
        "DE405 is itself a fit to later observations."
    )


if __name__ == "__main__":
    main()
