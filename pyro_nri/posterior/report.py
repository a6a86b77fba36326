"""A posterior as one web page that needs nothing but itself: what was asked and found, and whether to trust it."""

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import torch
import xarray as xr

from pyro_nri.dynamics.scaling import beyond_training
from pyro_nri.learning.checkpoint import Checkpoint
from pyro_nri.learning.mixtures import trained_on
from pyro_nri.posterior import sections
from pyro_nri.posterior.calibration import OVER, UNDER, Calibration, calibration
from pyro_nri.posterior.convergence import Check, check
from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.posterior.figures import chosen_scenes
from pyro_nri.posterior.hidden_frames import has_hidden
from pyro_nri.posterior.hidden_section import hidden_entities
from pyro_nri.posterior.objections import objections
from pyro_nri.posterior.recorded import is_noisy
from pyro_nri.posterior.recorded_section import recorded_entities
from pyro_nri.posterior.scores import score
from pyro_nri.posterior.truth import has_truth
from pyro_nri.posterior.uncertainty import explains_nothing, uncertainty_frame
from pyro_nri.scenes.files import written_beside
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.version import installed_version

MAX_SCENES = 3  # that are drawn unless scenes are named
TRUST, CARE, NOT = "trust", "care", "not"


class Verdict(NamedTuple):
    """What a report says first.

    Attributes:
        status: "trust", "care" or "not".
        sentence: the verdict.
        reasons: a sentence for each, none where there is nothing to say against the posterior.
    """

    status: str
    sentence: str
    reasons: tuple[str, ...]


def write_report(tree: xr.DataTree, path: str | os.PathLike[str], **options: Any) -> Verdict:
    """Write the page of :func:`report_html`, beside ``path`` first and then renamed.

    Args:
        tree: a posterior.
        path: the file, usually ``report.html``.
        options: those of :func:`report_html`.

    Returns:
        The verdict.

    Raises:
        ValueError: the posterior holds no draw, or an option does not fit it.
    """
    page, verdict = report_html(tree, **options)
    with written_beside(Path(path)) as beside:
        beside.write_text(page, encoding="utf-8")
    return verdict


def report_html(
    tree: xr.DataTree,
    *,
    checkpoint: Checkpoint | None = None,
    truth: Scenes | None = None,
    scenes: Sequence[str] | None = None,
    title: str = "Which interactions link these entities?",
    commands: Sequence[str] = (),
    num_replicates: int = 1000,
) -> tuple[str, Verdict]:
    """A page about a posterior.

    Args:
        tree: a posterior.
        checkpoint: the model that it was inferred with, for laws and predictions.
        truth: scenes with true structures, or with frames after those that the posterior has seen, matched by names.
            Default: the truth that the posterior carries, if any.
        scenes: names of the scenes that are drawn; default: the three most in doubt.
        title: of the page.
        commands: what made the report, beside the command that made the posterior.
        num_replicates: of the bootstrap.

    Returns:
        The page as HTML, and its verdict.

    Raises:
        ValueError: the posterior holds no draw, a scene does not exist, or the truth does not fit the posterior.
    """
    if not group(tree, "posterior")["edge_type"].size:
        raise ValueError("the posterior holds no draw, at least one is needed for a report")
    known = truth if truth is not None and truth.edge_type is not None else None
    judged = None
    if known is not None or has_truth(tree):
        judged = calibration(tree, known, num_replicates=num_replicates)
    run, uncertainty = check(tree), uncertainty_frame(tree)
    order = uncertainty.sort_values("expected_errors", ascending=False, kind="stable")["scene"].tolist()
    chosen = chosen_scenes(tree, order[:MAX_SCENES] if scenes is None else scenes, len(order))
    parts = [sections.asked(tree, checkpoint), sections.trust(tree, run)]
    parts.append(sections.structures(tree, uncertainty, chosen))
    if has_hidden(tree):
        parts.append(hidden_entities(tree, chosen))
    if is_noisy(tree):
        parts.append(recorded_entities(tree))
    warnings = [explains_nothing(tree), seen_twice(tree, checkpoint, truth)]
    if checkpoint is not None and "beyond_training" not in tree.attrs:  # else the check says so
        warnings.append(beyond_training(checkpoint.model.scaling, scenes_of(tree)))
    if checkpoint is not None:
        warnings += [f"{against[0].upper()}{against[1:]}." for against in objections(checkpoint)]
        if (found := sections.laws(checkpoint)) is not None:
            parts.append(found)
        if not has_hidden(tree):  # predictions do not roll out with hidden entities
            foretold, warning = sections.predictions(tree, checkpoint, _only(truth, tree), chosen[0])
            parts.append(foretold)
            warnings.append(warning)
    if judged is not None:
        parts.append(sections.scores(score(tree, known, num_replicates=num_replicates), judged))
    verdict = judge(run, judged, [sentence for sentence in warnings if sentence])
    made_by = str(tree.attrs["command"]) if "command" in tree.attrs else None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(resources.files("pyro_nri.posterior").joinpath("report.html").read_text("utf-8"))
    page = template.render(
        title=title,
        subtitle=subtitle(tree, uncertainty["num_edges"].tolist()),
        status=verdict.status,
        verdict=verdict.sentence,
        reasons=verdict.reasons,
        conditioning=f"Everything here is {tree.attrs['conditioning']}.",
        sections=parts,
        commands=[line for line in (made_by, *commands) if line],
        version=installed_version(),
        written_by=tree.attrs.get("inference_library_version", "unknown"),
        seed=tree.attrs["seed"],
    )
    return page, verdict


def subtitle(tree: xr.DataTree, num_edges: Sequence[int]) -> str:
    """What was asked, of which data, in one line."""
    frame, number = group(tree, "observed_data")["frame"].values, len(num_edges)
    return (
        f"Which of {tree.attrs['num_edge_types']} types of interaction links each ordered pair: {number:,} "
        f"scene{'' if number == 1 else 's'}, {sum(num_edges):,} edges, from frames {frame[0]} to {frame[-1]}."
    )


def judge(run: Check, judged: Calibration | None, warnings: Sequence[str]) -> Verdict:
    """One verdict of convergence, calibration and whatever else was noticed."""
    reasons = list(run.problems)
    if judged is not None and judged.direction in (OVER, UNDER):
        reasons.append(judged.verdict)
    reasons += warnings
    if not run.passed:
        return Verdict(NOT, "Do not trust this posterior yet.", tuple(reasons))
    if not reasons:
        return Verdict(TRUST, "Nothing was found that speaks against this posterior.", ())
    if judged is not None and judged.direction == OVER:
        return Verdict(CARE, "Take these probabilities with care: they are over-confident.", tuple(reasons))
    if judged is not None and judged.direction == UNDER:
        return Verdict(CARE, "Take these probabilities with care: they are under-confident.", tuple(reasons))
    return Verdict(CARE, "Take this posterior with care.", tuple(reasons))


def seen_twice(tree: xr.DataTree, checkpoint: Checkpoint | None, truth: Scenes | None) -> str | None:
    """A sentence if the model was trained on these scenes; windows of recordings are not known again."""
    if checkpoint is None:
        return None
    known = [scenes for scenes in (scenes_of(tree), _only(truth, tree)) if scenes is not None]
    num_seen = max(int(trained_on(checkpoint, scenes).sum()) for scenes in known)
    if not num_seen:
        return None
    return (
        f"The model was trained on {num_seen:,} of these scenes: their posterior uses them twice and is too sure. "
        f"Infer on other scenes, or learn with train --cross-fit."
    )


def _only(truth: Scenes | None, tree: xr.DataTree) -> Scenes | None:
    """Those of the scenes whose recordings the posterior has; None if there are none."""
    if truth is None:
        return None
    names = set(scenes_of(tree).scene_names)
    mask = torch.tensor([name in names for name in truth.scene_names])
    return truth[mask] if bool(mask.any()) else None
