"""What arguments of the command line may be: numbers with bounds, frames, files, and how scenes are read."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast


def frame_range(text: str) -> tuple[int | None, int | None]:
    """Read ``A:B``, half-open; either side may be empty.

    >>> frame_range("0:49"), frame_range("49:")
    ((0, 49), (49, None))
    """
    parts = text.split(":")
    try:
        start, stop = (int(part) if part else None for part in parts)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be A:B with whole numbers, found {text!r}") from None
    return start, stop


def output_file(text: str) -> str:
    """A file name that can be written to: better found out before the work than after it."""
    path = Path(text)
    try:
        if not path.name or path.is_dir():
            raise argparse.ArgumentTypeError(f"must be the name of a file, {text!r} is a folder")
        above = next(folder for folder in path.absolute().parents if folder.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from None
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {str(above)!r} is no folder to write to")
    return text


def netcdf_file(text: str) -> str:
    """An output that is NetCDF whatever it is called, so it must not be called a table."""
    if Path(text).suffix.lower() in (".csv", ".parquet", ".html", ".pt"):
        raise argparse.ArgumentTypeError(f"must be the name of a NetCDF file, such as posterior.nc, found {text!r}")
    return output_file(text)


def number(
    kind: Callable[[str], Any], lowest: float, highest: float = math.inf, *, open_low: bool = False
) -> Callable[[str], Any]:
    """An argument type with bounds; infinity and nan are no numbers."""
    wanted = f"{'a whole number' if kind is int else 'a number'} {'above' if open_low else 'of at least'} {lowest:g}"
    if highest < math.inf:
        wanted += f" and at most {highest:g}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {wanted}, found {text!r}") from None
        if not lowest <= value <= highest or value == math.inf or (open_low and value == lowest):
            raise argparse.ArgumentTypeError(f"must be {wanted}, found {text}")
        return value

    return read


def boundary(text: str) -> str | float:
    """``estimate``, ``none`` or a distance, raw units."""
    if text in ("estimate", "none"):
        return text
    return cast(float, number(float, 0, open_low=True)(text))


def standard_deviations(text: str) -> tuple[float, ...]:
    """Positive numbers with commas between.

    >>> standard_deviations("0.01,0.05")
    (0.01, 0.05)
    """
    return tuple(number(float, 0, open_low=True)(part) for part in text.split(","))


COUNT = number(int, 1)
POSITIVE = number(float, 0, open_low=True)
MAX_EDGE_TYPES = 127  # files hold types in one byte


def scene_arguments(parser: argparse.ArgumentParser, name: str = "scenes", **options: Any) -> None:
    """Scenes, how to read them, and which of them share a structure."""
    source = "NetCDF file, folder of NRI arrays, or long CSV/parquet table"
    parser.add_argument(name, metavar="SCENES", help=source, **options)
    reading_arguments(parser)
    parser.add_argument(
        "--share-structure",
        default=None,
        metavar="{none,all,COLUMN}",
        help="which scenes share one structure: none (default), all, or those alike in a column of the table",
    )


def reading_arguments(parser: argparse.ArgumentParser) -> None:
    """How scenes are read from what was given."""
    parser.add_argument("--split", choices=["train", "valid", "test"], help="part of a folder of NRI arrays")
    parser.add_argument("--system", help="name in the file names of NRI arrays, for example springs5")
    parser.add_argument(
        "--rows", choices=["receiver", "sender"], default="receiver", help="what a row of NRI's edges means"
    )
    parser.add_argument(
        "--scene", default="scene", metavar="COLUMN", help="column of a table; none: all rows are one scene"
    )
    parser.add_argument("--entity", default="entity", metavar="COLUMN")
    parser.add_argument("--time", default="time", metavar="COLUMN")
    parser.add_argument("--kind", metavar="COLUMN", help="column with the known kind of the entity, numbered from 0")
    parser.add_argument(
        "--state", default="x,y,vx,vy", metavar="COLUMNS", help="state columns of a table, with commas between"
    )
    parser.add_argument(
        "--missing", choices=["error", "mask"], default="error", help="what an empty state in a table means"
    )
    parser.add_argument(
        "--velocities",
        choices=["observed", "finite-differences"],
        default="observed",
        help="finite-differences: make velocities of positions that come without",
    )
    parser.add_argument("--time-step", type=POSITIVE, metavar="DT", help="time between two frames of a table or array")
