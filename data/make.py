"""Make data/springs5: python data/make.py [--out FOLDER]."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.scenes.nri_arrays import write_nri
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

SPLITS = {"train": (200, 49, 2018), "valid": (50, 49, 2019), "test": (100, 99, 2020)}
"""Number of scenes, number of frames and seed of each split; other seeds give other scenes."""


def make(split: str, num_scenes: int | None = None) -> Scenes:
    """Scenes of a split, or the first ``num_scenes`` of them."""
    all_scenes, num_frames, seed = SPLITS[split]
    return simulate("springs", num_scenes or all_scenes, num_frames=num_frames, seed=seed)


def main() -> None:
    """Write all splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "springs5", help="folder to write to")
    arguments = parser.parse_args()
    for split in SPLITS:
        write_nri(make(split), arguments.out, system="springs5", split=split)
        print(f"{arguments.out}: {split}")


if __name__ == "__main__":
    main()
