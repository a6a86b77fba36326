"""Who moves alike: edges by the correlation of paths, or of what an LSTM holds of them (paper, Table 2)."""

import torch
from torch import Tensor

from pyro_nri.baselines.baseline import AbstractBaseline, check_num_types, true_types
from pyro_nri.baselines.lstm import Lstm
from pyro_nri.dynamics.scaling import StateUnits
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes


class Correlation(AbstractBaseline):
    """Edges on either side of a threshold of their ends' correlation.

    As NRI did, the threshold is the one that gets most training edges right, so this row uses labels. The
    probabilities on each side are the shares of the types among its training edges, ``(count + 1/2) / (total + K/2)``.

    Args:
        lstm: a single LSTM whose last states are correlated; None for the paths themselves.
        units: units of the state in which paths are correlated.
        threshold: of the correlation.
        log_share: log probability of each type at or below the threshold, and above it, ``[2, K]``.
    """

    infers_structure = True
    uses_labels = True

    def __init__(self, lstm: Lstm | None, units: StateUnits, threshold: float, log_share: Tensor) -> None:
        self.lstm = lstm
        self.units = units
        self.threshold = threshold
        self.log_share = log_share

    def to(self, device: torch.device | str) -> "Correlation":
        if self.lstm is not None:
            self.lstm.to(device)
        return self

    def edge_probability(self, scenes: Scenes) -> Tensor:
        above = (correlations(scenes, self.units, self.lstm) > self.threshold).long()
        return self.log_share.exp()[above]


def fit_correlation(scenes: Scenes, *, lstm: Lstm | None = None, num_edge_types: int | None = None) -> Correlation:
    """Choose the threshold on scenes whose structures are known.

    Args:
        scenes: training scenes.
        lstm: correlate the last states of this single LSTM instead of paths.
        num_edge_types: K; by default as many as occur.

    Raises:
        ValueError: the structures of the scenes are not known, or have more than K types.

    Example:
        >>> from pyro_nri.scenes.simulate import simulate
        >>> found = fit_correlation(simulate("springs", 20, seed=0))
        >>> found.edge_probability(simulate("springs", 2, seed=1)).shape
        torch.Size([2, 20, 2])
    """
    truth = true_types(scenes, "the threshold of a correlation")
    num_types = check_num_types(truth, num_edge_types)
    units = StateUnits(scenes.state_size).double()
    units.fit(scenes)
    mask = scenes.edge_mask[scenes.group_first_scene]
    threshold, share = fit_threshold(correlations(scenes, units, lstm)[mask], truth[mask], num_types)
    return Correlation(lstm, units, threshold, share.log())


def fit_threshold(value: Tensor, truth: Tensor, num_types: int) -> tuple[float, Tensor]:
    """The threshold of a number of each edge that gets most edges right.

    Args:
        value: of each edge, ``[M]``.
        truth: true types, long ``[M]``.
        num_types: K.

    Returns:
        The threshold, and the share of each type among edges at or below it and above it, ``[2, K]``.
    """
    value, order = value.sort(stable=True)
    is_type = torch.nn.functional.one_hot(truth[order], num_types).double()
    below = torch.cat([is_type.new_zeros(1, num_types), is_type.cumsum(0)])  # [M + 1, K], the first m edges
    counts = torch.stack([below, below[-1] - below], 1)  # [M + 1, 2, K]
    right = counts.amax(-1).sum(-1)
    between = torch.ones(len(right), dtype=torch.bool)
    between[1:-1] = value[1:] > value[:-1]  # a threshold cannot part equal correlations
    best = int(torch.where(between, right, -torch.inf).argmax())
    ends = torch.cat([value[:1] - 1, value, value[-1:] + 1])
    threshold = float(ends[best] + ends[best + 1]) / 2
    return threshold, (counts[best] + 0.5) / (counts[best].sum(-1, keepdim=True) + num_types / 2)


def correlations(scenes: Scenes, units: StateUnits, lstm: Lstm | None = None) -> Tensor:
    """Correlation of the two ends of each edge, ``[G, E]``: the mean over a group's scenes; 0 where nothing varies.

    Paths are correlated over all state variables and all frames at which both ends were seen.
    """
    if lstm is None:
        values = units(scenes.trajectory.double())  # [B, T, N, D]
        rows = values.permute(0, 2, 1, 3).flatten(2)  # [B, N, T D]
        seen = scenes.observation_mask.permute(0, 2, 1)[..., None].expand(-1, -1, -1, scenes.state_size).flatten(2)
    else:
        rows = lstm.last_states(scenes).double()  # [B, N, W]
        seen = torch.ones_like(rows, dtype=torch.bool)
    sender, receiver = edges.senders(scenes.num_entities), edges.receivers(scenes.num_entities)
    parts = []
    for some in torch.arange(scenes.num_scenes).split(200):
        first, second = rows[some][:, sender], rows[some][:, receiver]  # [B, E, F]
        both = (seen[some][:, sender] & seen[some][:, receiver]).double()
        count = both.sum(-1, keepdim=True).clamp(min=1)
        first = (first - (first * both).sum(-1, keepdim=True) / count) * both
        second = (second - (second * both).sum(-1, keepdim=True) / count) * both
        size = (first.square().sum(-1) * second.square().sum(-1)).sqrt()
        parts.append((first * second).sum(-1) / size.clamp(min=1e-300))
    each = torch.cat(parts)
    total = each.new_zeros(scenes.num_groups, scenes.num_edges).index_add(0, scenes.group_index, each)
    return total / scenes.group_index.bincount(minlength=scenes.num_groups)[:, None]
