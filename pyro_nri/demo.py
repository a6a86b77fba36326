"""The main job on the springs scenes that come with the project: train, infer, compare, write tables and a picture."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pyro_nri.fitting import fit
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Checkpoint, save_checkpoint
from pyro_nri.posterior.compare import agreement
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.diagnostics import diagnostics_frame, summarize
from pyro_nri.posterior.frames import edges_frame, structures_frame, write_frame
from pyro_nri.posterior.plots import plot_structures
from pyro_nri.posterior.report import write_report
from pyro_nri.posterior.scores import score
from pyro_nri.posterior.storage import write_posterior
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.nri_arrays import read_nri
from pyro_nri.scenes.scenes import Scenes

DATA = Path(__file__).parent.parent / "data" / "springs5"
SEED = 0
NUM_STEPS = 400
NUM_CHAINS, NUM_WARMUP, NUM_DRAWS, THIN = 4, 500, 500, 5
WINDOWS = (49, 5)  # frames: all of the published protocol's, and few enough that the data leave doubt


def run_demo(out: str | Path, *, show_progress: bool = True, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Train two edge modules without labels, infer the test scenes by MCMC and by enumeration, write what was found.

    Args:
        out: folder for the files.
        show_progress: progress bars on standard error.
        say: prints a line.

    Returns:
        For each window its figures, the seconds spent, and the files written.

    Raises:
        ValueError: the scenes are not there, or the folder cannot be written.
    """
    folder = Path(out)
    train, test = (read_nri(DATA, system="springs5", split=split) for split in ("train", "test"))
    say(
        f"{train.num_scenes} scenes to learn from and {test.num_scenes} others to infer: 5 particles, some pairs linked"
    )
    say("by springs. Nobody tells the program which.")
    say("\nLearning two kinds of interaction ...")
    started = time.monotonic()
    checkpoint = fit(
        train,
        num_edge_types=2,
        num_steps=NUM_STEPS,
        seed=SEED,
        save=lambda unfinished: save_checkpoint(unfinished, folder / "model.pt.unfinished"),
        show_progress=show_progress,
    )
    save_checkpoint(checkpoint, folder / "model.pt")
    (folder / "model.pt.unfinished").unlink()
    result: dict[str, Any] = {"seconds_of_training": round(time.monotonic() - started, 1)}
    started = time.monotonic()
    trees = []
    for num_frames in WINDOWS:
        say(f"\nInferring each of the {test.num_scenes} test scenes from its first {num_frames} frames ...")
        tree, figures = _infer(checkpoint, test.frames(0, num_frames), show_progress)
        trees.append(tree)
        result[f"{num_frames}_frames"] = figures
        say(_lines(figures))
    result["seconds_of_inference"] = round(time.monotonic() - started, 1)
    result["wrote"] = [str(folder / "model.pt"), *_write(trees, checkpoint, test, folder)]
    say("")
    return result


def _infer(checkpoint: Checkpoint, scenes: Scenes, show_progress: bool) -> tuple[xr.DataTree, dict[str, Any]]:
    """The posterior by MCMC, and its figures, among them how near it comes to enumeration."""
    trees = {}
    for method in ("mcmc", "exact"):
        draws = infer(
            checkpoint.model,
            scenes,
            method=method,
            encoder=checkpoint.encoder,
            num_chains=NUM_CHAINS,
            num_warmup=NUM_WARMUP,
            num_draws=NUM_DRAWS,
            thin=THIN,
            seed=SEED,
            show_progress=show_progress,
        )
        # Which learned type is called "linked" was settled on training scenes; inference never reads it.
        names = ["linked" if truth == 1 else "not linked" for truth in checkpoint.alignment or ()]
        trees[method] = to_datatree(draws, scenes, type_names=names, type_alignment=checkpoint.alignment)
    scores, run = score(trees["mcmc"], scenes), summarize(trees["mcmc"])
    kept = ("edge_accuracy", "expected_accuracy", "ece")
    of_run = ("num_edges", "num_moving", "num_constant", "num_disagreeing", "r_hat_max", "ess_min")
    figures = {
        **{name: scores[name] for name in kept},
        **{name: run[name] for name in of_run},
        "agreement": agreement(trees["mcmc"], trees["exact"]),
    }
    return trees["mcmc"], figures


def _lines(figures: dict[str, Any]) -> str:
    accuracy, expected = figures["edge_accuracy"], figures["expected_accuracy"]
    near = figures["agreement"]
    if figures["num_moving"]:
        mixing = f"worst R-hat {figures['r_hat_max']:.3f}, smallest effective sample size {figures['ess_min']:.0f}"
    else:
        mixing = "R-hat and effective sample size have nothing to measure"
    return "\n".join(
        [
            f"  edges right                {accuracy['value']:.2%}  (95 % interval over scenes {accuracy['low']:.2%} "
            f"to {accuracy['high']:.2%})",
            f"  the posterior expected     {expected['value']:.2%}",
            f"  edges that moved           {figures['num_moving']} of {figures['num_edges']:,}: {mixing}",
            f"  edges that never moved     {figures['num_constant']:,}; chains disagree on "
            f"{figures['num_disagreeing']}",
            f"  MCMC against enumeration   mean difference {near['mean_difference']:.4f}, "
            f"largest {near['max_difference']:.4f} (all 2^20 graphs of each scene)",
        ]
    )


def _write(trees: list[xr.DataTree], checkpoint: Checkpoint, test: Scenes, folder: Path) -> list[str]:
    write_posterior(trees[0], folder / "posterior.nc")
    frames: dict[str, Callable[[xr.DataTree], pd.DataFrame]] = {
        "edges": edges_frame,
        "structures": structures_frame,
        "diagnostics": diagnostics_frame,
    }
    for name, frame in frames.items():
        write_frame(frame(trees[0]), folder / f"{name}.csv")
    with written_beside(folder / "graphs.png") as beside:
        _draw(trees, checkpoint).savefig(beside, dpi=150)
    write_report(trees[0], folder / "report.html", checkpoint=checkpoint, truth=test, title="The demo: springs")
    names = ("posterior.nc", *(f"{name}.csv" for name in frames), "graphs.png", "report.html")
    return [str(folder / name) for name in names]


def _draw(trees: list[xr.DataTree], checkpoint: Checkpoint) -> Figure:
    """The scenes that few frames leave most in doubt: above from all frames, below from few."""
    doubt = edges_frame(trees[-1]).query("map").groupby("scene", sort=False)["probability"].mean()
    scenes = doubt.nsmallest(4).index.tolist()
    figure = Figure(figsize=(2.4 * len(scenes), 6.2), layout="constrained")
    rows = np.atleast_1d(np.asarray(figure.subfigures(len(trees), 1)))
    not_linked = (checkpoint.alignment or [0, 1]).index(0)
    for row, tree, num_frames in zip(rows, trees, WINDOWS, strict=True):
        axes = row.subplots(1, len(scenes))
        plot_structures(tree, scenes=scenes, hidden_type=not_linked, layout="circle", axes=axes)
        if row is not rows[-1]:  # one legend is enough, that of the row which may have wrong edges
            axes[0].get_legend().remove()
        row.suptitle(f"from {num_frames} frames", fontsize=10)
    return figure
