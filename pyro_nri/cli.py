"""The command ``pyro-nri``: arguments in, one plain sentence out when they do not fit."""

import argparse
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn, TextIO

from pyro_nri.arguments import (
    COUNT,
    MAX_EDGE_TYPES,
    POSITIVE,
    boundary,
    frame_range,
    netcdf_file,
    number,
    output_file,
    reading_arguments,
    scene_arguments,
    standard_deviations,
)
from pyro_nri.results import as_json, in_words
from pyro_nri.version import installed_version

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence instead of the whole usage."""
        self.exit(EXIT_BAD_INPUT, f"pyro-nri: {message}\n")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = _Parser(
        prog="pyro-nri",
        description="Posterior inference over interaction structures: which kind of interaction links each ordered "
        "pair of entities, and how sure the data make us.",
    )
    parser.add_argument("--version", action="version", version=f"pyro-nri {installed_version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    def command(name: str, help: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=help, description=help)
        sub.add_argument("--json", action="store_true", help="print the result as JSON on standard output")
        sub.add_argument("--quiet", action="store_true", help="no progress bars")
        sub.add_argument(
            "--num-threads", type=COUNT, default=1, help="threads of one operation; 1 is best for small scenes"
        )
        return sub

    sub = command("simulate", "simulate scenes after the protocol of NRI, with the truth")
    sub.add_argument("system", choices=["springs", "charged", "kuramoto"])
    sub.add_argument("--num-scenes", type=COUNT, required=True)
    sub.add_argument("--num-entities", type=number(int, 2), default=5)
    sub.add_argument("--num-frames", type=number(int, 2), default=49)
    sub.add_argument(
        "--frame-spacing",
        type=COUNT,
        metavar="SUBSTEPS",
        help="simulation sub-steps between two frames (default: 100 of 0.001 for particles, 10 of 0.01 for kuramoto)",
    )
    sub.add_argument("--measurement-noise", type=number(float, 0), default=0.0, metavar="SD", help="raw units")
    sub.add_argument("--link-probability", type=number(float, 0, 1), metavar="P", help="not for charged")
    sub.add_argument("--asymmetric", action="store_true", help="both edges of a pair have types of their own")
    sub.add_argument("--first-scene", type=number(int, 0), default=0, metavar="B", help="number of the first scene")
    sub.add_argument("--seed", type=number(int, 0), required=True)
    sub.add_argument(
        "--out", type=output_file, required=True, help="NetCDF file, or long table (.csv, .parquet; without the truth)"
    )

    sub = command("train", "learn modules from scenes without knowing their structures (BounceGrad)")
    scene_arguments(sub)
    sub.add_argument("--num-edge-types", type=number(int, 1, MAX_EDGE_TYPES), required=True, metavar="K")
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
        type=boundary,
        default="estimate",
        metavar="{estimate,none,DISTANCE}",
        help="pair forces: walls that entities bounce off",
    )
    sub.add_argument(
        "--num-substeps", type=COUNT, default=20, help="pair forces: sub-steps of the integrator in a frame"
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
    sub.add_argument("--horizon", type=COUNT, metavar="H", help="frames between two restarts (default: 1)")
    sub.add_argument("--edges", choices=["infer", "given", "full"], default="infer")
    sub.add_argument("--search-frames", type=frame_range, metavar="A:B", help="frames on which structures are searched")
    sub.add_argument("--frames", type=frame_range, metavar="A:B", help="frames to train on, half-open")
    sub.add_argument("--batch-size", type=COUNT, help="default: 16")
    sub.add_argument(
        "--cross-fit",
        type=number(int, 2),
        metavar="F",
        help="deal the scenes to F folds and learn a model for each from the others: infer then uses for every scene "
        "only models that did not see it",
    )
    sub.add_argument(
        "--num-models",
        type=COUNT,
        default=1,
        metavar="M",
        help="learn M models (with --cross-fit for each fold) from resampled scenes; infer mixes their posteriors",
    )
    sub.add_argument("--learning-rate", type=POSITIVE, help="default: 0.003, for pair forces 0.005")
    length = sub.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=POSITIVE, metavar="M", help="train by the clock")
    length.add_argument(
        "--num-steps", type=COUNT, default=None, help="train by gradient steps (default 600, for pair forces 200)"
    )
    sub.add_argument(
        "--distill-steps",
        type=number(int, 0),
        default=0,
        metavar="N",
        help="then distil the neural proposal on posterior draws: edges into an entity are proposed jointly",
    )
    sub.add_argument(
        "--resume", action="store_true", help="go on from what an interrupted run of the same command kept"
    )
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--seed", type=number(int, 0), required=True)
    sub.add_argument("--out", type=output_file, required=True, help="model file")

    sub = command("infer", "posterior over the structures of scenes, given a trained model")
    scene_arguments(sub)
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
        help="the composite likelihood of impulses (pair forces alone), the density of the motion as it is, or "
        "(default) the former, else the latter, as far as it is believed",
    )
    sub.add_argument("--frames", type=frame_range, metavar="A:B", help="frames to infer from, half-open")
    sub.add_argument(
        "--num-hidden",
        choices=["0", "1", "2", "auto"],
        default="0",
        help="entities without data, for pair forces; auto: 0, 1 or 2, equally probable before the data",
    )
    sub.add_argument(
        "--observation",
        choices=["exact", "noisy"],
        default="exact",
        help="noisy, for pair forces: recorded states have measurement noise, true ones are inferred with the rest",
    )
    sub.add_argument(
        "--measurement-noise",
        type=standard_deviations,
        metavar="SD",
        help="of --observation noisy, raw units: one for all state variables, or one for each with commas between; "
        "default: estimated from the scenes",
    )
    sub.add_argument("--num-chains", type=COUNT, default=4)
    sub.add_argument("--num-draws", type=COUNT, default=500)
    sub.add_argument("--num-warmup", type=number(int, 0), help="default: 500, where states are inferred 100")
    sub.add_argument("--num-replicas", type=COUNT, default=1, help="of each chain, for parallel tempering")
    sub.add_argument("--thin", type=COUNT, default=1)
    sub.add_argument("--resume", action="store_true", help="go on with the chains of an interrupted run")
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--seed", type=number(int, 0), required=True)
    sub.add_argument("--out", type=netcdf_file, required=True, help="NetCDF file")

    sub = command("predict", "roll the motion forward under drawn structures and laws")
    scene_arguments(sub)
    sub.add_argument("--model", required=True)
    sub.add_argument("--posterior", required=True)
    sub.add_argument("--start", type=number(int, 0), required=True, help="observed frame to start from")
    sub.add_argument("--num-steps", type=COUNT, default=20)
    sub.add_argument("--num-draws", type=COUNT, default=20, help="draws of structures and laws to roll out")
    sub.add_argument(
        "--interval", type=number(float, 0, 1, open_low=True), default=0.9, help="probability of the interval"
    )
    sub.add_argument("--out", type=output_file, required=True, help="NetCDF file, or table (.csv, .parquet)")

    sub = command("score", "compare a posterior with the truth")
    sub.add_argument("posterior")
    sub.add_argument("--truth", required=True, metavar="SCENES", help="scenes with known structures")
    reading_arguments(sub)
    sub.add_argument("--model", help="model file, for prediction errors")
    sub.add_argument(
        "--frames-after", type=number(int, 0), default=49, metavar="T", help="rollouts start from this frame"
    )

    sub = command("export", "write the posterior as tables")
    sub.add_argument("posterior")
    sub.add_argument("--out", required=True, metavar="DIR")
    sub.add_argument("--format", choices=["csv", "parquet"], default="csv")
    sub.add_argument("--scenes", nargs="+", metavar="NAME", help="only these scenes")
    sub.add_argument("--wide", action="store_true", help="edges.csv: a row for each edge, a column for each type")
    sub.add_argument("--num-top", type=COUNT, default=10, metavar="N", help="structures of a scene at most")
    sub.add_argument("--model", help="model file, for its laws")

    sub = command("diagnose", "say whether to trust a posterior, and what to do if not")
    sub.add_argument("posterior")
    sub.add_argument("--out", type=output_file, help="table of the scenes, .csv or .parquet")

    sub = command("report", "one web page: what was asked and found, and whether to trust it")
    sub.add_argument("posterior")
    sub.add_argument("--out", type=output_file, required=True, help="HTML file")
    sub.add_argument("--model", help="model file, for laws and predictions")
    sub.add_argument("--truth", metavar="SCENES", help="scenes with known structures, or with later frames")
    reading_arguments(sub)
    sub.add_argument("--scenes", nargs="+", metavar="NAME", help="scenes to draw (default: those most in doubt)")
    sub.add_argument("--title", help="of the page")

    sub = command("laws", "write the learned force laws as a table, and draw them")
    sub.add_argument("model", help="model file with pair forces")
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")
    sub.add_argument("--plot", type=output_file, help="picture, for example laws.png")
    sub.add_argument("--truth", choices=["springs", "charged", "kuramoto"], help="simulated system whose laws to draw")

    sub = command("compare", "differences in structure between groups of scenes, or two posteriors of the same scenes")
    sub.add_argument(
        "posteriors", nargs="+", metavar="POSTERIOR", help="two posteriors, or one to be split by a column"
    )
    sub.add_argument("--mode", choices=["groups", "same-scenes"], default="groups")
    text = (
        "known of each scene, makes the groups in place of the files; numbers of more than two values are a covariate"
    )
    sub.add_argument("--by", metavar="COLUMN", help=text)
    sub.add_argument("--table", help="where the column is: .csv or .parquet with a column scene")
    sub.add_argument("--names", nargs=2, metavar="NAME", help="of the two posteriors (default: the files' names)")
    text = "for each type of the second posterior that of the first which it stands for, if their models differ"
    sub.add_argument("--relabel", nargs="+", type=number(int, 0), metavar="TYPE", help=text)
    names = ["density", "degree", "reciprocity", "dispersion", "motifs", "triads", "edges"]
    sub.add_argument("--quantities", nargs="+", choices=names, help="default: all but triads and edges")
    sub.add_argument("--level", type=number(float, 0.5, 0.999), default=0.95, help="of the intervals")
    sub.add_argument("--num-permutations", type=COUNT, default=2000)
    sub.add_argument("--seed", type=number(int, 0), default=0)
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")

    sub = command("compare-models", "held-out scores of models that may differ in anything, one table")
    sub.add_argument("models", nargs="+", metavar="MODEL", help="model files; an ensemble counts as fits of one model")
    scene_arguments(sub, "--scenes", required=True)
    sub.add_argument("--num-search-frames", type=COUNT, metavar="T", help="first frames to infer from (default: half)")
    sub.add_argument(
        "--likelihood",
        choices=["forward", "impulse"],
        default="forward",
        help="of the later frames; impulse is refused",
    )
    sub.add_argument("--seed", type=number(int, 0), default=0)
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")

    sub = command("compare-halves", "whether the halves of each scene agree on its structure, which tests a model")
    sub.add_argument("model", metavar="MODEL")
    scene_arguments(sub, "--scenes", required=True)
    sub.add_argument("--out", type=output_file, required=True, help="table, .csv or .parquet")

    sub = command("compare-priors", "exact log marginals of priors of structures under one model, one table")
    sub.add_argument("model", metavar="MODEL")
    scene_arguments(sub, "--scenes", required=True)
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
