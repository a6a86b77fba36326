"""Make data/neptune/*.csv from JPL's ephemeris DE405: pip install '.[ephemeris]'; python data/neptune/make.py.

DE405 (Standish 1998, JPL IOM 312.F-98-048) is itself a fit of the laws of motion to observations of the 20th century,
Neptune's among them: it says where planets must have been, and is no record of what was seen. Geometric places in
astronomical units and Julian years, turned to the mean ecliptic and equinox of J2000.

bodies.csv: barycentric states at the first frame and G times the mass of what moves the outer planets; "sun" is the Sun
with the inner planets, at their common centre. sky.csv: a Julian year apart, the last frame the night on which Neptune
was found, where Uranus and Neptune stand as seen from the Sun.
"""

import argparse
from datetime import date
from pathlib import Path

import de405
import numpy as np
import pandas as pd
from jplephem import Ephemeris

OBLIQUITY = np.deg2rad(84381.448 / 3600)
TURN = np.array([[1, 0, 0], [0, np.cos(OBLIQUITY), np.sin(OBLIQUITY)], [0, -np.sin(OBLIQUITY), np.cos(OBLIQUITY)]])
YEAR = 365.25
LAST, NUM_FRAMES = date(1846, 9, 23), 66
#: Names of G times the mass in the ephemeris.
STRENGTH = {"sun": "GMS", "jupiter": "GM5", "saturn": "GM6", "uranus": "GM7", "neptune": "GM8"}
INNER = {"mercury": "GM1", "venus": "GM2", "earthmoon": "GMB", "mars": "GM4"}


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    out = parser.parse_args().out
    ephemeris = Ephemeris(de405)

    def state(body: str, julian_day: float) -> np.ndarray:
        """Barycentric position and velocity ``[6]``."""
        position, velocity = ephemeris.position_and_velocity(body, julian_day)
        return np.concatenate([TURN @ position.ravel(), YEAR * TURN @ velocity.ravel()]) / ephemeris.AU

    def strength(names: dict[str, str]) -> dict[str, float]:
        return {body: float(getattr(ephemeris, name)) * YEAR**2 for body, name in names.items()}

    last = LAST.toordinal() + 1721424.5  # from the proleptic calendar's day 1 to the Julian day at midnight
    days = [last - YEAR * (NUM_FRAMES - 1 - frame) for frame in range(NUM_FRAMES)]
    middle, outer = strength({"sun": "GMS", **INNER}), strength(STRENGTH)
    total = sum(middle.values())
    starts = {body: state(body, days[0]) for body in outer}
    starts["sun"] = sum(each * state(body, days[0]) for body, each in middle.items()) / total
    rows = [[body, total if body == "sun" else outer[body], *starts[body]] for body in outer]
    bodies = pd.DataFrame(rows, columns=["body", "gm", "x", "y", "z", "vx", "vy", "vz"])
    bodies.to_csv(out / "bodies.csv", index=False, float_format="%.13g", lineterminator="\n")

    rows = []
    for frame, day in enumerate(days):
        year = 2000 + (day - 2451545) / YEAR
        apart = [(state(body, day) - state("sun", day))[:3] for body in ("uranus", "neptune")]
        rows.append([frame, year, *(apart[0] / np.linalg.norm(apart[0])), *apart[1]])
    names = ["frame", "year", "uranus_dx", "uranus_dy", "uranus_dz", "neptune_x", "neptune_y", "neptune_z"]
    sky = pd.DataFrame(rows, columns=names)
    sky.to_csv(out / "sky.csv", index=False, float_format="%.11g", lineterminator="\n")
    print(f"wrote {len(bodies)} bodies and {len(sky)} frames to {out}")


if __name__ == "__main__":
    main()
