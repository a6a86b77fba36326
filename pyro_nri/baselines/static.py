"""Nothing moves: the floor under every prediction (paper, Table 1)."""

from torch import Tensor

from pyro_nri.baselines.baseline import AbstractBaseline, check_rollout
from pyro_nri.scenes.scenes import Scenes


class Static(AbstractBaseline):
    """Every later state is the last one that was seen.

    >>> import torch
    >>> scenes = Scenes.from_arrays(torch.arange(3.0).reshape(1, 3, 1, 1).expand(1, 3, 2, 1))
    >>> Static().predict(scenes, start=1, num_steps=2).flatten().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    predicts_motion = True

    def predict(self, scenes: Scenes, *, start: int, num_steps: int, structure: Tensor | None = None) -> Tensor:
        check_rollout(scenes, start, num_steps)
        return scenes.trajectory[:, start, None].expand(-1, num_steps, -1, -1).clone()
