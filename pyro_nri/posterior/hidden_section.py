"""The part of a report that tells of hidden entities."""

from collections.abc import Sequence

import xarray as xr

from pyro_nri.posterior.hidden_frames import hidden_frame, hidden_group, num_hidden_frame
from pyro_nri.posterior.hidden_plots import plot_hidden
from pyro_nri.posterior.sections import MAX_ROWS, Section, picture_of, table_of


def hidden_entities(tree: xr.DataTree, chosen: Sequence[str]) -> Section:
    """How many hidden entities there are, and where those of some scenes were.

    Args:
        tree: a posterior with hidden entities.
        chosen: names of the scenes to draw.
    """
    section = Section("hidden", "Is something unseen acting?")
    numbers = num_hidden_frame(tree)
    tried = sorted(set(numbers["num_hidden"]))
    found = numbers[numbers["chosen"]]["num_hidden"].value_counts().sort_index()
    told = ", ".join(f"{number} in {count:,}" for number, count in found.items())
    if len(tried) > 1:
        section.paragraphs.append(
            f"Numbers of hidden entities that were weighed against one another, equally probable before the data: "
            f"{', '.join(map(str, tried))}. Most probable number, in scenes: {told}."
        )
        columns = {name: name.replace("_", " ") for name in ("scene", "num_hidden", "log_marginal", "probability")}
        section.tables.append(table_of("How many there are.", numbers.head(MAX_ROWS), columns))
    else:
        section.paragraphs.append(f"Hidden entities that were asked for, in scenes: {told}.")
    section.paragraphs.append(
        "A hidden entity follows the learned laws. One that pulls on nothing cannot be found: its posterior is the "
        "prior."
    )
    where = hidden_frame(tree)
    if len(where):
        first = where[where["frame"] == where["frame"].min()]
        columns = {name: name for name in ("scene", "entity", "state", "mean", "low", "high")}
        section.tables.append(
            table_of("Where they were at the first frame: mean and 90 % interval.", first.head(MAX_ROWS), columns)
        )
    numbered = hidden_group(tree)
    some = numbered["scene"].values[numbered["num_hidden"].values > 0].tolist()
    drawable = {"x", "y"} <= set(numbered["state"].values.tolist())
    for scene in [name for name in chosen if name in some][:1] if drawable else []:
        caption = (
            f"Scene {scene}: recorded tracks in grey, paths of hidden entities in colour (a fan of draws), and a line "
            f"from each to every other entity, in the colour of the most probable type and as wide as that is probable."
        )
        section.pictures.append(picture_of(plot_hidden(tree, scene), caption))
    return section
