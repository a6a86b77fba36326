"""The command ``pyro-nri``: arguments in, one plain sentence out when they do not fit."""

import argparse
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO, cast

from pyro_nri.results import as_json, in_words

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage."""
        self.exit(EXIT_BAD_INPUT, f"pyro-nri: {message}\n")


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


def _number(
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


def _boundary(text: str) -> str | float:
    if text in ("estimate", "none"):
        return text
    return cast(float, _number(float, 0, open_low=True)(text))


_COUNT = _number(int, 1)
_POSITIVE = _number(float, 0, open_low=True)
_MAX_EDGE_TYPES = 127  # files hold types in one byte


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(
        prog="pyro-nri",
        description="Posterior inference over interaction structures: which kind of interaction links each ordered "
        "pair of entities, and how sure the data make us.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        sub.add_argument(
            "--num-threads", type=_COUNT, default=1, help="threads of one operation; 1 is best for small scenes"
        )
        return sub

    sub = command("simulate", "simulate scenes after the protocol of NRI, with the truth")
    sub.add_argument("system", choices=["springs", "charged", "kuramoto"])
    sub.add_argument("--num-scenes", type=_COUNT, required=True)
    sub.add_argument("--num-entities", type=_number(int, 2), default=5)
    sub.add_argument("--num-frames", type=_number(int, 2), default=49)
    sub.add_argument(
        "--frame-spacing",
        type=_COUNT,
        metavar="SUBSTEPS",
        help="simulation sub-steps between two frames (default: 100 of 0.001 for particles, 10 of 0.01 for kuramoto)",
    )
    sub.add_argument("--measurement-noise", type=_number(float, 0), default=0.0, metavar="SD", help="raw units")
    sub.add_argument("--seed", type=_number(int, 0), required=True)
    sub.add_argument("--out", type=output_file, required=True, help="NetCDF file")

    sub = command("train", "learn modules from scenes without knowing their structures (BounceGrad)")
    _scene_arguments(sub)
    sub.add_argument("--num-edge-types", type=_number(int, 1, _MAX_EDGE_TYPES), required=True, metavar="K")
    sub.add_argument(
        "--dynamics",
        choices=["message-passing", "pair-forces"],
        default="message-passing",
        help="networks that assume no physics, or learned forces along the separation",
    )
    sub.add_argument("--prior", choices=["independent", "symmetric", "charges", "sparse"], default="independent")
    sub.add_argument(
        "--noise",
        choices=["normal", "student-t", "geometric"],
        help="default: geometric for pair forces between particles, else student-t",
    )
    sub.add_argument(
        "--boundary",
        type=_boundary,
        default="estimate",
        metavar="{estimate,none,DISTANCE}",
        help="pair forces: walls that entities bounce off",
    )
    sub.add_argument(
        "--num-substeps", type=_COUNT, default=20, help="pair forces: sub-steps of the integrator in a frame"
    )
    sub.add_argument("--no-interaction", action="store_true", help="type 0 means no interaction and sends no message")
    sub.add_argument(
        "--preset",
        choices=["small", "paper"],
        default="small",
        help="paper: the method of Alet et al. 2019 with its networks, horizon 10, annealing, batches of 128, rates; "
        "what is given beside it comes first (for springs the paper has --learning-rate 0.01)",
    )
    sub.add_argument(
        "--inner", choices=["auto", "exact", "annealing"], help="how structures are searched (default: auto)"
    )
    sub.add_argument("--horizon", type=_COUNT, metavar="H", help="frames between two restarts (default: 1)")
    sub.add_argument("--edges", choices=["infer", "given", "full"], default="infer")
    sub.add_argument("--search-frames", type=frame_range, metavar="A:B", help="frames on which structures are searched")
    sub.add_argument("--frames", type=frame_range, metavar="A:B", help="frames to train on, half-open")
    sub.add_argument("--batch-size", type=_COUNT, help="default: 16")
    sub.add_argument(
        "--cross-fit",
        type=_number(int, 2),
        metavar="F",
        help="deal the scenes to F folds and learn a model for each from the others: infer then uses for every scene "
        "only models that did not see it",
    )
    sub.add_argument(
        "--num-models",
        type=_COUNT,
        default=1,
        metavar="M",
        help="learn M models (with --cross-fit for each fold) from resampled scenes; infer mixes their posteriors",
    )
    sub.add_argument("--learning-rate", type=_POSITIVE, help="default: 0.003, for pair forces 0.005")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=_POSITIVE, metavar="M", help="train by the clock")
    length.add_argument(
        "--num-steps", type=_COUNT, default=None, help="train by gradient steps (default 600, for pair forces 200)"
    )
    sub.add_argument(
        "--distill-steps",
        type=_number(int, 0),
        default=0,
        metavar="N",
        help="then distil the neural proposal on posterior draws: edges into an entity are proposed jointly",
    )
    sub.add_argument(
        "--resume", action="store_true", help="go on from what an interrupted run of the same command kept"
    )
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--seed", type=_number(int, 0), required=True)
    sub.add_argument("--out", type=output_file, required=True, help="model file")

    sub = command("infer", "posterior over the structures of scenes, given a trained model")
    _scene_arguments(sub)
    sub.add_argument("--model", required=True)
    sub.add_argument("--method", choices=["auto", "exact", "mcmc"], default="auto")
    sub.add_argument(
        "--proposal",
        choices=["auto", "uniform", "neural", "exact", "balanced", "rounds", "delayed"],
        default="auto",
        help="moves of the chains",
    )
    sub.add_argument(
        "--likelihood",
        choices=["auto", "impulse", "forward"],
        default="auto",
        help="pair forces: the composite likelihood of impulses (default), or the density of the integrated motion",
    )
    sub.add_argument("--frames", type=frame_range, metavar="A:B", help="frames to infer from, half-open")
    sub.add_argument("--num-chains", type=_COUNT, default=4)
    sub.add_argument("--num-draws", type=_COUNT, default=500)
    sub.add_argument("--num-warmup", type=_number(int, 0), default=500)
    sub.add_argument("--num-replicas", type=_COUNT, default=1, help="of each chain, for parallel tempering")
    sub.add_argument("--thin", type=_COUNT, default=1)
    sub.add_argument("--resume", action="store_true", help="go on with the chains of an interrupted run")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--seed", type=_number(int, 0), required=True)
    sub.add_argument("--out", type=output_file, required=True, help="NetCDF file")

    sub = command("predict", "roll the motion forward under drawn structures")
    _scene_arguments(sub)
    sub.add_argument("--model", required=True)
    sub.add_argument("--posterior", required=True)
    sub.add_argument("--start", type=_number(int, 0), required=True, help="observed frame to start from")
    sub.add_argument("--num-steps", type=_COUNT, default=20)
    sub.add_argument("--out", type=output_file, required=True, help="NetCDF file")

    sub = command("score", "compare a posterior with the truth")
    sub.add_argument("posterior")
    sub.add_argument("--truth", required=True, metavar="SCENES", help="scenes with known structures")
    _reading_arguments(sub)
    sub.add_argument("--model", help="model file, for prediction errors")
    sub.add_argument(
        "--frames-after", type=_number(int, 0), default=49, metavar="T", help="rollouts start from this frame"
    )

    sub = command("export", "write the posterior as tables")
    sub.add_argument("posterior")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--format", choices=["csv", "parquet"], default="csv")

    sub = command("diagnose", "say whether to trust a posterior, and what to do if not")
    sub.add_argument("posterior")
    sub.add_argument("--out", type=output_file, help="table of the scenes, .csv or .parquet")

    sub = command("laws", "write the learned force laws as a table, and draw them")
    sub.add_argument("model", help="model file with pair forces")
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")
    sub.add_argument("--plot", type=output_file, help="picture, for example laws.png")
    sub.add_argument("--truth", choices=["springs", "charged", "kuramoto"], help="simulated system whose laws to draw")

    sub = command("compare-models", "held-out scores of models that may differ in anything, one table")
    sub.add_argument("models", nargs="+", metavar="MODEL", help="model files; an ensemble counts as fits of one model")
    _scene_arguments(sub, "--scenes", required=True)
    sub.add_argument("--num-search-frames", type=_COUNT, metavar="T", help="first frames to infer from (default: half)")
    sub.add_argument(
        "--likelihood",
        choices=["forward", "impulse"],
        default="forward",
        help="of the later frames; impulse is refused",
    )
    sub.add_argument("--seed", type=_number(int, 0), default=0)
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")

    sub = command("compare-priors", "exact log marginals of priors of structures under one model, one table")
    sub.add_argument("model", metavar="MODEL")
    _scene_arguments(sub, "--scenes", required=True)
    names = ["independent", "symmetric", "charges", "sparse"]
    sub.add_argument("--priors", nargs="+", choices=names, default=names)
    sub.add_argument(
        "--table-scenes", metavar="SCENES", help="scenes to choose the table of charges on, such as those of training"
    )
    sub.add_argument("--type-weights", choices=["equal", "fitted"], default="equal")
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")

    sub = command("demo", "the main job on the springs scenes that come with the project")
    sub.add_argument("--out", default="demo_output", metavar="DIR")
    return parser


def _scene_arguments(parser: argparse.ArgumentParser, name: str = "scenes", **options: Any) -> None:
    source = "NetCDF file, folder of NRI arrays, or long CSV/parquet table"
    parser.add_argument(name, metavar="SCENES", help=source, **options)
    _reading_arguments(parser)
    parser.add_argument(
        "--share-structure",
        default=None,
        metavar="{none,all,COLUMN}",
        help="which scenes share one structure: none (default), all, or those alike in a column of the table",
    )


def _reading_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument("--time-step", type=_POSITIVE, metavar="DT", help="time between two frames of a table or array")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 2 after bad input, with one sentence on standard error; 130 after an interruption from the keyboard.
    """
    parsed = build_parser().parse_args(arguments)
    parsed.command_line = shlex.join(["pyro-nri", *(sys.argv[1:] if arguments is None else arguments)])
    import torch  # here, as seconds of imports need not be waited for after --help or a wrong word

    import pyro_nri.commands as commands

    torch.set_num_threads(parsed.num_threads)
    hook, sys.unraisablehook = sys.unraisablehook, lambda unraisable: None  # h5netcdf's, on closing a damaged file
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _say
            result = commands.COMMANDS[parsed.command](parsed)
    except commands.Interrupted as stop:
        print(f"pyro-nri: {stop}", file=sys.stderr)
        return EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("pyro-nri: interrupted, nothing was written", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (ValueError, OSError) as error:
        print(f"pyro-nri: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT
    finally:
        sys.unraisablehook = hook
    try:
        print(as_json(result) if parsed.json else in_words(result), flush=True)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as one sentence, without the place in the code."""
    print(f"pyro-nri: {' '.join(str(message).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
