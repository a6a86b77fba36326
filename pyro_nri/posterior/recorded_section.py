"""The part of a report that tells of recordings with measurement noise."""

import xarray as xr

from pyro_nri.posterior.recorded import GROUP, initial_states_frame, recorded_of
from pyro_nri.posterior.sections import MAX_ROWS, Section, table_of


def recorded_entities(tree: xr.DataTree) -> Section:
    """How noisy recordings were taken to be, and where recorded entities were at the first frame.

    Args:
        tree: a posterior of recordings with measurement noise.
    """
    section = Section("recorded", "Where were they really?")
    dataset = tree.children[GROUP].to_dataset()
    noise = zip(dataset["state"].values, dataset["measurement_noise"].values, strict=True)
    told = ", ".join(f"{name} {value:g}" for name, value in noise)
    known = "estimated from these recordings" if recorded_of(dataset).noise_estimated else "given"
    section.paragraphs.append(
        f"Recorded states were taken for noisy, with standard deviations {told} in raw units, {known}. True states "
        f"follow the learned laws exactly from the first frame on; intervals are as good as laws and noise are."
    )
    columns = {name: name for name in ("scene", "entity", "state", "recorded", "mean", "low", "high")}
    frame = initial_states_frame(tree).head(MAX_ROWS)
    section.tables.append(table_of("At the first frame: as recorded, mean and 90 % interval.", frame, columns))
    return section
