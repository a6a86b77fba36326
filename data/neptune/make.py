"""Make data/neptune/*.csv from JPL's ephemeris DE405: pip install '.[ephemeris]'; python data/neptune/make.py.

DE405 (Standish 1998, JPL IOM 312.F-98-048) is itself a fit of the laws of motion to observations of the years 1911 to
1997, most of them of the planets as they are now known, Neptune included. Everything is turned to the mean ecliptic and
equinox of J2000 and given in astronomical units and Julian years, barycentric.
"""

import argparse
from datetime import date
from pathlib import Path

import de405
import numpy as np
import pandas as pd
from jplephem import Ephemeris

OBLIQUITY = np.deg2rad(84381.448 / 3600)
YEAR = 365.25
#: Frames lie a Julian year apart; the last one is the night on which Neptune was found.
LAST, NUM_FRAMES = date(1846, 9, 23), 66
BODIES = ("sun", "jupiter", "saturn", "uranus", "neptune")
INNER = ("mercury", "venus", "earthmoon", "mars")


def main() -> None:
    """Write states and masses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    out = parser.parse_args().out
    ephemeris = Ephemeris(de405)
    unit = ephemeris.AU
    turn = np.array(
        [
            [1, 0, 0],
            [0, np.cos(OBLIQUITY), np.sin(OBLIQUITY)],
            [0, -np.sin(OBLIQUITY), np.cos(OBLIQUITY)],
        ]
    )

    def state(body: str, julian_day: float) -> np.ndarray:
        """Barycentric position and velocity ``[6]``, in astronomical units and years."""
        position, velocity = ephemeris.position_and_velocity(body, julian_day)
        return np.concatenate([turn @ position.ravel(), YEAR * turn @ velocity.ravel()]) / unit

    strength = dict(zip(BODIES, [ephemeris.GMS, *(getattr(ephemeris, f"GM{n}") for n in (5, 6, 7, 8))], strict=True))
    strength |= {"mercury": ephemeris.GM1, "venus": ephemeris.GM2, "earthmoon": ephemeris.GMB, "mars": ephemeris.GM4}
    strength = {name: float(value) * YEAR**2 for name, value in strength.items()}
    # What moves the outer planets is the Sun with the inner planets: one body at their common centre.
    middle = ("sun", *INNER)
    total = sum(strength[name] for name in middle)

    last = LAST.toordinal() + 1721424.5
    columns = ["x", "y", "z", "vx", "vy", "vz"]
    rows = []
    for frame in range(NUM_FRAMES):
        day = last - YEAR * (NUM_FRAMES - 1 - frame)
        for body in BODIES:
            place = state(body, day)
            if body == "sun":
                place = sum(strength[name] * state(name, day) for name in middle) / total
            rows.append([frame, round(1846 + (frame - NUM_FRAMES + 1) + 0.727, 3), body, *place])
    table = pd.DataFrame(rows, columns=["frame", "year", "body", *columns])
    table.to_csv(out / "states.csv", index=False, float_format="%.12f", lineterminator="\n")
    strength["sun"] = total
    masses = pd.DataFrame({"body": BODIES, "gm": [strength[body] for body in BODIES]})
    masses.to_csv(out / "masses.csv", index=False, float_format="%.12e", lineterminator="\n")
    print(f"wrote {len(table)} states and {len(masses)} masses to {out}")


if __name__ == "__main__":
    main()
