"""What a report says of a posterior, section by section: sentences, tables and pictures."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import binomtest

from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.posterior.calibration import Calibration
from pyro_nri.posterior.calibration_plots import plot_reliability
from pyro_nri.posterior.chain_plots import plot_split_frequencies, plot_trace
from pyro_nri.posterior.convergence import Check
from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.posterior.edge_plots import plot_edge_probabilities, plot_structure_probabilities
from pyro_nri.posterior.figures import type_names
from pyro_nri.posterior.frames import edges_frame
from pyro_nri.posterior.law_plots import plot_laws
from pyro_nri.posterior.laws import laws_frame
from pyro_nri.posterior.plots import plot_structures
from pyro_nri.posterior.predictions import predict, structure_value
from pyro_nri.posterior.probability import edge_probability, type_prior
from pyro_nri.posterior.scores import UNCERTAIN
from pyro_nri.posterior.track_plots import plot_predictions, plot_tracks
from pyro_nri.scenes.scenes import Scenes

MAX_ROWS = 12  # of a table
SETTLED = 0.999  # structures of this probability need no picture of others
NUM_STEPS = 20  # frames predicted in pictures
MAX_AHEAD, MAX_RECORDINGS = 10, 100  # frames and recordings on which own structures are compared with others
_DPI = 130


@dataclass(frozen=True)
class Table:
    """Rows of texts under names of columns, with a sentence above."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, with a sentence below that also stands for it where it cannot be seen."""

    source: str
    caption: str


@dataclass
class Section:
    """One part of a report; ``name`` is its anchor."""

    name: str
    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


def asked(tree: xr.DataTree, checkpoint: Checkpoint | None) -> Section:
    """What was asked for, of which data and under which model."""
    section = Section("asked", "What was asked")
    posterior, names = group(tree, "posterior"), type_names(tree)
    sizes, prior = posterior.sizes, type_prior(tree)
    section.paragraphs.append(
        f"Which of {len(names)} types of interaction ({', '.join(names)}) links each ordered pair of entities, sender "
        f"to receiver."
    )
    attributes = tree.attrs
    ways = {"exact": "enumeration of all structures, with independent draws", "mcmc": "Markov chains over structures"}
    how = ways.get(str(attributes["method"]), str(attributes["method"]))
    rows = {"how": f"{how}; {sizes['chain']} chains of {sizes['draw']:,} draws", "seed": attributes["seed"]}
    for name in ("num_warmup", "thin", "proposal", "likelihood"):
        if name in attributes and str(attributes["method"]) != "exact":
            rows[name.replace("num_", "").replace("_", " ")] = attributes[name]
    rows["prior probability of types"] = ", ".join(f"{k} {p:.3f}" for k, p in zip(names, prior, strict=True))
    for name in ("model", "model_fingerprint", "num_models"):
        if name in attributes:
            rows[name.replace("_", " ")] = attributes[name]
    section.tables.append(_facts("How the posterior was made.", rows))
    section.tables.append(_facts("The data.", _data(tree)))
    if checkpoint is not None:
        spec = {name.replace("_", " "): _plain(value) for name, value in asdict(checkpoint.spec).items()}
        if not checkpoint.spec.num_hidden:
            del spec["num hidden"]  # of training: beside a posterior with hidden entities it would say that it has none
        if checkpoint.spec.prior != "charges":
            del spec["num labels"]
        keys = ("num_steps", "seconds", "inner", "seed", "loss", "edge_accuracy")
        known = {key: checkpoint.training[key] for key in keys if key in checkpoint.training}
        training = {f"training: {key.replace('_', ' ')}": _plain(value) for key, value in known.items()}
        spec["scenes trained on"] = f"{len(checkpoint.training_scenes):,}" if checkpoint.training_scenes else "unknown"
        section.tables.append(_facts("The model, whose modules are taken as they were learned.", spec | training))
    return section


def trust(tree: xr.DataTree, check: Check) -> Section:
    """Whether the computation did its work, and why; whether the answer is right is another question."""
    section = Section("trust", "Did the computation converge?", [check.verdict, *check.problems])
    section.paragraphs += [f"What to do: {sentence}" for sentence in check.advice]
    if str(tree.attrs["method"]) == "exact":
        section.paragraphs.append(
            "Draws of an enumerated posterior are independent: R-hat and effective sample sizes have nothing to find."
        )
        return section
    table = check.table
    section.paragraphs.append(
        f"{int(table['num_moving'].sum()):,} of {int(table['num_edges'].sum()):,} edges moved, "
        f"{int(table['num_disagreeing'].sum()):,} are constant in each chain but not the same in all. R-hat and "
        f"effective sample sizes are of edges that moved; nothing here sees a mode that no chain has found."
    )
    order = ["num_modes", "r_hat_max", "mean_deviation"]
    worst = table.sort_values(order, ascending=False, na_position="last", kind="stable").head(MAX_ROWS)
    worst = worst[worst["num_moving"] + worst["num_disagreeing"] > 0] if table["num_moving"].any() else worst.head(1)
    columns = {
        "scene": "scene",
        "num_edges": "edges",
        "num_moving": "moving",
        "num_disagreeing": "disagreeing",
        "r_hat_max": "largest R-hat",
        "ess_min": "smallest ESS",
        "graph_ess_median": "ESS of structures",
        "max_deviation": "largest deviation",
        "chains": "chains by mode",
    }
    number = "The scene" if len(worst) == 1 else f"The {len(worst)} scenes"
    caption = f"{number} that chains agree about least, of {len(table):,}."
    section.tables.append(table_of(caption, worst, columns))
    if group(tree, "posterior").sizes["draw"] < 2:
        section.paragraphs.append("There is one draw of each chain: nothing can be drawn of how they move.")
        return section
    section.pictures.append(
        picture_of(
            plot_split_frequencies(tree),
            "How often two chains have a type at an edge, one against the other, for all edges and pairs of chains: "
            "points off the line are edges that chains do not agree about.",
        )
    )
    worst_scene = str(worst["scene"].iloc[0])
    section.pictures.append(
        picture_of(
            plot_trace(tree, worst_scene),
            f"Draw by draw, edges of scene {worst_scene} that chains disagree about most. Chains that mix look alike.",
        )
    )
    return section


def structures(tree: xr.DataTree, uncertainty: pd.DataFrame, chosen: Sequence[str]) -> Section:
    """Which structures were found, and how sure they are."""
    section = Section("structures", "Structures")
    probability, estimator = edge_probability(tree)
    names = type_names(tree)
    best = np.bincount(probability.argmax(1), minlength=len(names))
    total = uncertainty[["num_edges", "num_uncertain", "expected_errors"]].sum()
    section.paragraphs.append(
        f"Of {int(total['num_edges']):,} edges in {len(uncertainty):,} scenes "
        + ", ".join(f"{count:,} are most probably {name}" for name, count in zip(names, best, strict=True))
        + f". {int(total['num_uncertain']):,} are in doubt (no type has probability {UNCERTAIN}), and the posterior "
        f"expects {total['expected_errors']:.1f} of the most probable types to be wrong. Probabilities are "
        + {"exact": "exact", "rao-blackwell": "Rao-Blackwellised"}.get(estimator, "counted from draws")
        + "."
    )
    most = uncertainty.sort_values("expected_errors", ascending=False, kind="stable").head(MAX_ROWS)
    most = most[(most["expected_errors"] > 1e-3) | (most.index == most.index[0])]
    columns = {
        "scene": "scene",
        "num_edges": "edges",
        "num_uncertain": "in doubt",
        "expected_errors": "expected wrong",
        "information": "information",
        "structure_entropy": "entropy (nats)",
        "map_probability": "probability of the best",
    }
    caption = f"The {len(most)} scenes most in doubt. Information: share of the prior's doubt that the data took away."
    section.tables.append(table_of(caption, most, columns))
    size = max(len(group(tree, "constant_data")["entity"]), 1)
    several = ", ".join(chosen)
    if size <= 12:
        section.pictures.append(
            picture_of(
                plot_structures(tree, scenes=chosen, max_scenes=len(chosen), layout="circle")[0],
                f"Scenes {several}: the most probable type of each edge, wide where sure; a cross marks what is known "
                f"to be wrong.",
            )
        )
    kind = len(names) - 1
    section.pictures.append(
        picture_of(
            plot_edge_probabilities(tree, kind, scenes=chosen, max_scenes=len(chosen))[0],
            f"Scenes {several}: probability that the edge from a sender to a receiver is {names[kind]}.",
        )
    )
    if (uncertainty.set_index("scene").loc[list(chosen), "map_probability"] < SETTLED).any():
        section.pictures.append(
            picture_of(
                plot_structure_probabilities(tree, scenes=chosen, max_scenes=len(chosen))[0],
                f"Scenes {several}: whole structures, most probable first, named by what differs from the first.",
            )
        )
    wide = edges_frame(tree, chosen, wide=True)
    in_doubt = wide.assign(sure=wide.filter(regex=r"^probability_\d+$").max(axis=1)).sort_values("sure", kind="stable")
    columns = {"scene": "scene", "sender": "sender", "receiver": "receiver"}
    columns |= {f"probability_{k}": name for k, name in enumerate(names)} | {"mcse": "Monte Carlo error"}
    in_doubt = in_doubt[in_doubt["sure"] < UNCERTAIN].head(MAX_ROWS)
    caption = f"The {len(in_doubt)} edges most in doubt in scenes {several}, with the probability of each type."
    if len(in_doubt):
        section.tables.append(table_of(caption, in_doubt, columns))
    return section


def laws(checkpoint: Checkpoint) -> Section | None:
    """The learned force laws, where the model has any."""
    if not isinstance(checkpoint.model.dynamics, PairForces):
        return None
    frame = laws_frame(checkpoint)
    section = Section("laws", "Learned laws")
    known = frame["low"].notna().any()
    section.paragraphs.append(
        "Force along the separation for each type, positive away from the sender."
        + (" The interval is pointwise, 90 %." if known else " No laws were drawn, so there are no intervals.")
    )
    caption = "Full lines where data lie, dotted and on grey where a law is only continued."
    section.pictures.append(picture_of(plot_laws(frame)[0], caption))
    return section


def predictions(
    tree: xr.DataTree, checkpoint: Checkpoint, truth: Scenes | None, scene: str
) -> tuple[Section, str | None]:
    """Whether the structures foretell the motion; with a sentence if they do not."""
    section, scenes = Section("predictions", "Predictions"), scenes_of(tree)
    first = int(group(tree, "observed_data")["frame"][0])
    last = first + scenes.num_frames - 1
    if truth is not None and truth.num_frames - 1 > last:
        start, data, seen = last, truth, False
        num_steps = min(NUM_STEPS, truth.num_frames - 1 - last)
    else:
        start, data, seen = (scenes.num_frames - 1) // 2, scenes, True
        num_steps = min(NUM_STEPS, scenes.num_frames - 1 - start)
    some, ahead = data[: min(data.num_scenes, MAX_RECORDINGS)], min(num_steps, MAX_AHEAD)
    value = structure_value(checkpoint, tree, some, start=start, num_steps=ahead, num_draws=4)
    told = value[(value["error"] != value["error_of_others"]) & value[["error", "error_of_others"]].notna().all(axis=1)]
    better = int((told["error"] < told["error_of_others"]).sum())
    where = (
        f"frame {start + (first if seen else 0)}, over {ahead} frames that the structures were inferred from too"
        if seen
        else f"frame {start}, the last one seen, over {ahead} frames that were not"
    )
    section.paragraphs.append(
        f"Motion was rolled forward from {where}. The median scaled squared error after {ahead} frames is "
        f"{_plain(float(value['error'].median()))}; with the structures of other scenes it is "
        f"{_plain(float(value['error_of_others'].median()))}. Of {len(told):,} recordings where the two differ, "
        f"{better:,} are predicted better by their own structures."
    )
    warning = None
    if len(told) and binomtest(better, len(told), 0.5, alternative="greater").pvalue > 0.05:
        warning = (
            f"The structure does not help to predict: of {len(told)} recordings only {better} are predicted better by "
            f"their own structures than by those of other scenes, which chance alone may do."
        )
        section.paragraphs.append(warning)
    recordings = group(tree, "constant_data")
    own = recordings["recording"].values[recordings["structure_group"].values == scene]
    name = next((str(each) for each in own.tolist() if str(each) in data.scene_names), data.scene_names[0])
    one = data[data.scene_names.index(name)]
    paths = predict(checkpoint, tree, one, start=start, num_steps=num_steps)
    caption = f"Recording {name}: lines are means over draws, fans their 90 % intervals, dots what was observed."
    section.pictures.append(picture_of(plot_predictions(paths, name, scenes=one)[0], caption))
    if {"x", "y"} <= set(data.state_names):
        section.pictures.append(picture_of(plot_tracks(paths, name, scenes=one), "The same in the plane."))
    return section, warning


def scores(found: Mapping[str, Any], calibration: Calibration) -> Section:
    """How good the posterior is where the truth is known."""
    section = Section("scores", "Against the truth", [calibration.verdict])
    section.paragraphs.append(
        f"{found['num_edges']:,} edges of {found['num_scenes']:,} scenes, {found['num_uncertain_edges']:,} of them in "
        f"doubt. Type labels were aligned: {found['alignment']}. Brackets hold 95 % intervals over scenes."
    )
    rows = []
    for name, value in (dict(found) | calibration.scores).items():
        if isinstance(value, dict) and "value" in value and value["value"] is not None:
            interval = "" if value["low"] is None else f"{_plain(value['low'])} to {_plain(value['high'])}"
            rows.append([name.replace("_", " ").replace("ece", "calibration error"), _plain(value["value"]), interval])
    section.tables.append(Table("Scores.", ["score", "value", "95 % interval"], rows))
    columns = {
        "bin_low": "from",
        "bin_high": "to",
        "num_edges": "edges",
        "mean_probability": "mean probability",
        "share_right": "share right",
        "low": "low",
        "high": "high",
    }
    caption = "Calibration: edges by the probability of their most probable type, and how many of them are right."
    section.tables.append(table_of(caption, calibration.table, columns))
    picture = "Below the line: over-confident. Above each point the number of edges that it is of."
    section.pictures.append(picture_of(plot_reliability(calibration.table), picture))
    return section


# --- parts -----------------------------------------------------------------------------------------------------------
def _data(tree: xr.DataTree) -> dict[str, Any]:
    scenes = scenes_of(tree)
    first = int(group(tree, "observed_data")["frame"][0])
    counts = scenes.entity_mask.sum(1)
    low, high = int(counts.min()), int(counts.max())
    there = scenes.entity_mask[:, None].expand_as(scenes.observation_mask)
    missing = 1 - float(scenes.observation_mask[there].double().mean())
    return {
        "scenes": f"{scenes.num_groups:,}",
        "recordings": f"{scenes.num_scenes:,}",
        "entities in a scene": f"{low}" if low == high else f"{low} to {high}",
        "frames": f"{scenes.num_frames:,} ({first} to {first + scenes.num_frames - 1})",
        "time step": f"{scenes.time_step:g}",
        "state": ", ".join(scenes.state_names),
        "states not seen": f"{100 * missing:.2g} %",
        "truth": "known" if scenes.edge_type is not None else "not known",
    }


def _facts(caption: str, rows: Mapping[str, Any]) -> Table:
    return Table(caption, [], [[name, str(value)] for name, value in rows.items()])


def table_of(caption: str, frame: pd.DataFrame, columns: Mapping[str, str]) -> Table:
    """Some columns of a frame under readable names."""
    rows = [[_plain(value) for value in row] for row in frame[list(columns)].itertuples(index=False, name=None)]
    return Table(caption, list(columns.values()), rows)


def _plain(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value))
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not isinstance(value, (float, np.floating)):
        return str(value)
    value = float(value)
    if np.isnan(value):
        return "\N{EN DASH}"
    if np.isinf(value):
        return "infinite"
    if 0 < value < 1e-12:
        return "<1e-12"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"


def picture_of(drawn: Axes | NDArray[Any], caption: str) -> Picture:
    """What was drawn, as a picture within the page."""
    import matplotlib.pyplot as plt

    ax: Axes = drawn.ravel()[0] if isinstance(drawn, np.ndarray) else drawn
    figure = ax.figure
    while not isinstance(figure, Figure):
        figure = figure.figure
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    plt.close(figure)
    return Picture(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}", caption)
