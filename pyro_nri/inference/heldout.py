"""How well a model foretells frames that it was not shown: the score by which models are compared."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.evidence import require_density
from pyro_nri.inference.run import infer
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes


def held_out_score(
    model: SceneModel,
    scenes: Scenes,
    *,
    num_search_frames: int | None = None,
    num_draws: int = 16,
    kind: str = "forward",
    encoder: Encoder | None = None,
    seed: int,
) -> NDArray[np.float64]:
    r"""Log density of the later frames of each structure, forecast from the earlier ones (a prequential score).

    Structures z_1, ..., z_S are drawn from their posterior given the first frames, with whatever likelihood the model
    infers with; the score is :math:`\log \frac{1}{S} \sum_s p(x_{late} \mid x_{early}, z_s)` with the forward density.
    That mixture is made from the early frames alone and integrates to one over the late ones, so its logarithm is a
    proper score *whatever* the draws came from: a posterior that is only approximate, composite or of few draws is a
    worse forecast and costs score, it cannot gain any. Models of different noises, boundaries, dynamics and numbers of
    types are therefore scored alike. Raw units; the learned modules are frozen, so score scenes that were not trained
    on.

    Args:
        model: trained model.
        scenes: B scenes in G structure groups.
        num_search_frames: how many first frames the structures are inferred from; half of them by default.
        num_draws: S.
        kind: likelihood of the later frames, see :meth:`SceneModel.likelihood`; only a density is accepted.
        encoder: the learned proposal, for structures that cannot be enumerated.
        seed: fixes the draws.

    Returns:
        ``[G]``, nats; -inf where no draw allows what happened.

    Raises:
        ValueError: the frames cannot be split so, the likelihood is no density, or a density is not a number.
    """
    num_frames = scenes.num_frames
    if num_search_frames is None:
        num_search_frames = (num_frames + 1) // 2
    if not 2 <= num_search_frames < num_frames:
        raise ValueError(
            f"num_search_frames must leave two frames to infer from and one to score, so lie from 2 to "
            f"{num_frames - 1}, found {num_search_frames}"
        )
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, found {num_draws}")
    late = scenes.frames(num_search_frames - 1, None)
    cache = "none" if kind == "forward" else "auto"
    require_density(model.likelihood(late[:1], kind=kind, cache=cache), "a held-out score")
    # One draw of each of S chains: independent of each other, by enumeration or not.
    draws = infer(
        model,
        scenes.frames(0, num_search_frames),
        encoder=encoder,
        num_chains=num_draws,
        num_draws=1,
        seed=seed,
    )
    structure, count = distinct(draws.edge_type[:, 0])
    log_density = torch.full(count.shape, -torch.inf, dtype=torch.float64)
    for rank in range(len(count)):  # most groups have one or two distinct draws
        some = (count[rank] > 0).nonzero().squeeze(-1)
        part = late[torch.isin(late.group_index, some.to(late.group_index.device))]
        likelihood = model.likelihood(part, kind=kind, cache=cache)
        # Groups keep their order, so those of the part are the chosen ones.
        chosen = structure[rank, some].to(likelihood.edge_mask.device)
        log_density[rank, some] = likelihood.log_likelihood(chosen[None])[0].cpu()
    if (bad := log_density.isnan().any(0)).any():
        name = scenes.group_names[int(bad.nonzero()[0])]
        raise ValueError(f"the forward density of scene {name!r} is not a number: the model's rollout breaks down there")
    weight = (count.double() / num_draws).log()
    return np.asarray((weight + log_density).logsumexp(0).numpy(), np.float64)


def distinct(structure: NDArray[np.int8]) -> tuple[Tensor, Tensor]:
    """The distinct ones among drawn structures, most frequent first.

    Args:
        structure: ``[C, G, E]``.

    Returns:
        Structures, long ``[U, G, E]``, and how often each was drawn, long ``[U, G]``; 0 where a group has fewer than U.
    """
    num_draws, num_groups, num_edges = structure.shape
    found = torch.zeros(num_draws, num_groups, num_edges, dtype=torch.long)
    count = torch.zeros(num_draws, num_groups, dtype=torch.long)
    for g in range(num_groups):
        rows, times = np.unique(structure[:, g], axis=0, return_counts=True)
        order = np.argsort(-times, kind="stable")
        found[: len(rows), g] = torch.as_tensor(rows[order]).long()
        count[: len(rows), g] = torch.as_tensor(times[order])
    size = int((count > 0).sum(0).max())
    return found[:size], count[:size]
