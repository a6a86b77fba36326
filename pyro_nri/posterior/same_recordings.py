"""Are recordings those that a posterior was inferred from, or only others of the same names?"""

import xarray as xr

from pyro_nri.posterior.convert import group, scenes_of
from pyro_nri.scenes.scenes import Scenes


def check_recordings(tree: xr.DataTree, scenes: Scenes, first_frame: int = 0) -> None:
    """Refuse recordings that only share their names with those of the posterior, as two simulated data sets do.

    Frames that both have may differ by measurement noise, not by half their spread or more in every state variable.

    Args:
        tree: a posterior.
        scenes: recordings.
        first_frame: number of their first frame.

    Raises:
        ValueError: a scene moves otherwise than the one of its name in the posterior.
    """
    known = scenes_of(tree)
    first = int(group(tree, "observed_data")["frame"][0])
    start = max(first, first_frame)
    length = min(first + known.num_frames, first_frame + scenes.num_frames) - start
    if known.state_names != scenes.state_names or length < 1:
        return
    place = {name: b for b, name in enumerate(known.scene_names)}
    for b, name in enumerate(scenes.scene_names):
        if name not in place or scenes.entity_names[b] != known.entity_names[place[name]]:
            continue
        row = place[name]
        mine, other = (slice(start - begin, start - begin + length) for begin in (first, first_frame))
        seen = known.observation_mask[row, mine] & scenes.observation_mask[b, other]
        kept, given = known.trajectory[row, mine][seen], scenes.trajectory[b, other][seen]  # [M, D]
        if len(kept) == 0:
            continue
        spread = kept.std(0, correction=0)
        difference = (given - kept).square().mean(0).sqrt()
        if (spread > 0).any() and (difference > spread / 2)[spread > 0].all():
            raise ValueError(f"scene {name!r} moves otherwise than in the posterior: these are two scenes of one name")
