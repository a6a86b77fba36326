"""What does a saved posterior say, how sure is it, and may it be believed?

    python analyses/posterior_analysis.py [--posterior FILE] [--model FILE] [--scene NAME]

From one file to tables and pictures, with nothing but the file (and, for predictions, the model that it was inferred
with). Without ``--posterior`` one is made first and kept: 200 scenes of charged particles, seen for 10 frames, inferred
with data/models/charged5.pt; so few frames leave edges in doubt.

Out, beside this file or in ``--out``: posterior_analysis.csv, a row for each scene, most in doubt first (what
``uncertainty_frame`` says, and of the chains ``r_hat_max``, ``ess_min``, ``num_modes``; where the truth is known
``expected_distance``, the expected number of wrong edges in a draw, and ``num_wrong`` of the most probable types);
posterior_analysis_edges.csv, the edges in doubt; posterior_analysis.png, the scene most in doubt, chains, calibration.
About three minutes. ``--smoke`` runs a small one in seconds.
"""

import argparse
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
import xarray as xr
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.posterior.align import apply_alignment
from pyro_nri.posterior.calibration import calibration
from pyro_nri.posterior.calibration_plots import plot_reliability
from pyro_nri.posterior.chain_plots import plot_split_frequencies
from pyro_nri.posterior.convergence import check
from pyro_nri.posterior.convert import scenes_of, to_datatree
from pyro_nri.posterior.edge_plots import plot_edge_counts, plot_edge_probabilities, plot_structure_probabilities
from pyro_nri.posterior.frames import edges_frame, write_frame
from pyro_nri.posterior.graph_statistics import distances_frame
from pyro_nri.posterior.inclusion import bayes_factors_frame
from pyro_nri.posterior.plots import plot_structures
from pyro_nri.posterior.predictions import predict
from pyro_nri.posterior.storage import read_posterior, write_posterior
from pyro_nri.posterior.track_plots import plot_tracks
from pyro_nri.posterior.truth import has_truth, known_edges
from pyro_nri.posterior.uncertainty import explains_nothing, uncertainty_frame
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.simulate import simulate

matplotlib.use("Agg")
MODEL = Path(__file__).parent.parent / "data" / "models" / "charged5.pt"
NUM_FRAMES = 10


def make_posterior(path: Path, model: Path, *, smoke: bool) -> None:
    """The posterior that is looked at if none is given: chains, so that there is something to diagnose."""
    scenes = simulate("charged", 6 if smoke else 200, num_frames=NUM_FRAMES, seed=2)
    checkpoint = load_checkpoint(model)
    length = {"num_draws": 40, "num_warmup": 20} if smoke else {"num_draws": 500, "num_warmup": 2000, "thin": 16}
    draws = infer(checkpoint.model, scenes, method="mcmc", encoder=checkpoint.encoder, seed=0, **length)
    names = ["attract" if truth == 0 else "repel" for truth in checkpoint.alignment or ()]
    attributes = {"command": f"python analyses/{Path(__file__).name}"}
    tree = to_datatree(draws, scenes, type_names=names, type_alignment=checkpoint.alignment, attributes=attributes)
    write_posterior(tree, path)


def scenes_table(tree: xr.DataTree) -> pd.DataFrame:
    """A row for each scene, most in doubt first."""
    table, chains = uncertainty_frame(tree), check(tree).table
    table = table.merge(chains[["scene", "r_hat_max", "ess_min", "num_modes"]], on="scene")
    if has_truth(tree):
        distance = distances_frame(tree)
        mean = (distance["distance"] * distance["probability"]).groupby(distance["scene"], sort=False).sum()
        table["expected_distance"] = mean.reindex(table["scene"]).to_numpy()
        known = known_edges(tree)
        wrong = apply_alignment(known.probability.argmax(1), known.alignment) != known.true_edge_type
        table["num_wrong"] = np.bincount(known.scene, wrong, minlength=len(table)).astype(int)
    return table.sort_values("expected_errors", ascending=False, kind="stable").reset_index(drop=True)


def edges_table(tree: xr.DataTree) -> pd.DataFrame:
    """The edges in doubt, with the evidence for the last type."""
    edges, factors = edges_frame(tree, wide=True), bayes_factors_frame(tree)
    of_last = factors["edge_type"] == factors["edge_type"].max()
    evidence = factors.loc[of_last, ["log_bayes_factor", "bound"]].reset_index(drop=True)
    sure = edges.filter(regex=r"^probability_\d+$").max(axis=1)
    return edges.join(evidence)[sure < 0.98].reset_index(drop=True)


def draw(tree: xr.DataTree, scene: str, model: Path | None) -> Figure:
    """One scene above, all scenes below."""
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.06)
    axes = figure.subplots(2, 3)
    last = int(tree.attrs["num_edge_types"]) - 1
    plot_structures(tree, scenes=[scene], layout="circle", axes=axes[0, 0])
    plot_edge_probabilities(tree, last, scenes=[scene], axes=axes[0, 1])
    plot_edge_counts(tree, last, scenes=[scene], axes=axes[0, 2])
    axes[0, 2].set_ylabel("probability")
    plot_split_frequencies(tree, ax=axes[1, 0])
    if has_truth(tree):
        plot_reliability(calibration(tree).table, axes[1, 1])
    else:
        plot_structure_probabilities(tree, scenes=[scene], num_top=5, axes=axes[1, 1])
    if model is None:
        axes[1, 2].set_axis_off()
        return figure
    seen = scenes_of(tree)
    recording = seen[seen.structure_group.index(scene)]
    start = recording.num_frames - 1
    paths = predict(load_checkpoint(model), tree, recording, start=start, num_steps=10)
    plot_tracks(paths, recording.scene_names[0], scenes=recording, ax=axes[1, 2])
    axes[1, 2].set_title(f"scene {scene}: 10 frames ahead", fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--posterior", type=Path, help="a file of pyro-nri infer")
    parser.add_argument("--model", type=Path, help="the model that it was inferred with, for predictions")
    parser.add_argument("--scene", help="to draw; default: the one most in doubt")
    parser.add_argument("--smoke", action="store_true", help="a small posterior, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = arguments.out / ("posterior_analysis_smoke.csv" if arguments.smoke else "posterior_analysis.csv")
    source, model = arguments.posterior, arguments.model
    if source is None:
        source, model = path.with_suffix(".nc"), model or MODEL
        if not source.exists():
            make_posterior(source, model, smoke=arguments.smoke)
    tree = read_posterior(source)
    table, edges = scenes_table(tree), edges_table(tree)
    write_frame(table, path)
    write_frame(edges, path.with_name(f"{path.stem}_edges.csv"))
    with written_beside(path.with_suffix(".png")) as beside:
        draw(tree, arguments.scene or table["scene"][0], model).savefig(beside, dpi=150)
    print(check(tree))
    if has_truth(tree):
        print(calibration(tree))
    if (nothing := explains_nothing(tree)) is not None:
        print(nothing)
    print(table.head(10).round(3).to_string(index=False))
    print(f"{len(edges)} of {table['num_edges'].sum():,} edges are in doubt; wrote {path} and what stands beside it")


if __name__ == "__main__":
    main()
