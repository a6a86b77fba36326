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
    r"""Log density of the later frames of each structure, forecast from the earlier ones.

    Structures z_1, ..., z_S are drawn from their posterior given the first frames, with whatever likelihood the model
    infers with. The score is :math:`\log \frac{1}{S} \sum_s p(x_{late} \mid x_{early}, z_s)` with the forward density.
    That mixture is made from the early frames alone and integrates to one over the late ones, so its logarithm is a
    proper score *whatever the draws came from*: the truth forecast by itself scores best on average, and a posterior
    that is only approximate, composite or of few draws makes a worse forecast, which costs score and cannot gain any.
    So models of different noises, boundaries, dynamics and numbers of types are scored alike, given their learned
    modules. The scenes should be ones that no module was trained on.

    Args:
        model: trained model.
        scenes: B scenes in G structure groups.
        num_search_frames: how many first frames the structures are inferred from; half of them by default.
        num_draws: S.
        kind: likelihood of the later frames, see :meth:`SceneModel.likelihood`; one that is no density is refused.
        encoder: the learned proposal, for structures that cannot be enumerated.
        seed: fixes the draws.

    Returns:
        ``[G]``, nats for raw units; -inf where no draw allows what happened.

    Raises:
        ValueError: the frames cannot be split so, the likelihood is no density, or a density is not a number.
    """
    early, late = split_frames(scenes, num_search_frames)
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, found {num_draws}")
    cache = "none" if kind == "forward" else "auto"
    require_density(model.likelihood(late[:1], kind=kind, cache=cache), "a held-out score")
    # One draw of each of S chains: they are independent, whether the posterior is enumerated or not.
    draws = infer(model, early, encoder=encoder, num_chains=num_draws, num_draws=1, seed=seed)
    structure, count = distinct(draws.edge_type[:, 0])
    log_density = torch.full(count.shape, -torch.inf, dtype=torch.float64)
    for rank in range(len(count)):  # most groups have one or two distinct draws
        some = (count[rank] > 0).nonzero().squeeze(-1)  # groups keep their order in the part
        part = late[torch.isin(late.group_index.cpu(), some)]
        likelihood = model.likelihood(part, kind=kind, cache=cache)
        chosen = structure[None, rank, some].to(likelihood.edge_mask.device)
        log_density[rank, some] = likelihood.log_likelihood(chosen)[0].cpu()
    if (broken := log_density.isnan().any(0)).any():
        name = scenes.group_names[int(broken.nonzero()[0])]
        raise ValueError(f"the forward density of scene {name!r} is not a number: the model's prediction breaks down")
    score: NDArray[np.float64] = ((count.double() / num_draws).log() + log_density).logsumexp(0).numpy()
    return score


def split_frames(scenes: Scenes, num_search_frames: int | None = None) -> tuple[Scenes, Scenes]:
    """First frames, from which structures are inferred, and later ones, whose first frame is the last of the others.

    Args:
        scenes: T frames.
        num_search_frames: number of first frames; half of them by default.

    Raises:
        ValueError: either part has no transition.
    """
    number = (scenes.num_frames + 1) // 2 if num_search_frames is None else num_search_frames
    if not 2 <= number < scenes.num_frames:
        raise ValueError(
            f"num_search_frames must leave two frames to infer from and one to score, at least 2 and at most "
            f"{scenes.num_frames - 1}, found {number}"
        )
    return scenes.frames(0, number), scenes.frames(number - 1, None)


def distinct(structure: NDArray[np.int8]) -> tuple[Tensor, Tensor]:
    """The distinct ones among drawn structures, most frequent first.

    Args:
        structure: ``[C, G, E]``.

    Returns:
        Structures, long ``[U, G, E]``, and how often each was drawn, long ``[U, G]``: 0 where a group has fewer than U.
    """
    found = torch.zeros(structure.shape, dtype=torch.long)
    count = torch.zeros(structure.shape[:2], dtype=torch.long)
    for g in range(structure.shape[1]):
        rows, times = np.unique(structure[:, g], axis=0, return_counts=True)
        order = np.argsort(-times, kind="stable")
        found[: len(rows), g] = torch.as_tensor(rows[order]).long()
        count[: len(rows), g] = torch.as_tensor(times[order])
    size = int((count > 0).sum(0).max())
    return found[:size], count[:size]
