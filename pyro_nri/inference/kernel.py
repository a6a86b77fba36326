"""The structure kernel for plain ``pyro.infer.MCMC``."""

from collections import OrderedDict
from typing import Any

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyro_nri.inference.chains import Chains, make_chains, surrogate_of
from pyro_nri.inference.encoder import Encoder, learned_q
from pyro_nri.model.program import SceneModel
from pyro_nri.scenes.scenes import Scenes


class StructureKernel(MCMCKernel):
    """Metropolis moves on ``edge_type`` for ``pyro.infer.MCMC``, with many chains inside one.

    A thin adapter of :class:`~pyro_nri.inference.chains.Chains`: it makes the same draws as
    :func:`~pyro_nri.inference.run.infer` with the same arguments. Chains are vectorised inside the kernel, so ``MCMC``
    itself must run with its ``num_chains=1`` (more would repeat the same chains: the seed is the kernel's).
    ``get_samples()["edge_type"]`` has the shape ``[S, C, G, E]``; ``Predictive`` takes its ``.flatten(0, 1)``.
    Pyro's ``summary`` and ``diagnostics`` do not apply to integers; use :mod:`pyro_nri.posterior`.

    Args:
        model: trained model; frozen here.
        num_chains: C.
        proposal: as for :func:`~pyro_nri.inference.run.infer`.
        encoder: the learned proposal.
        likelihood: as for :func:`~pyro_nri.inference.run.infer`; "forward" for the posterior of the program as it is.
        cache: how the likelihood is prepared, see :meth:`SceneModel.likelihood`.
        start_temperature: temperature of the first warm-up step, as for :func:`~pyro_nri.inference.run.infer`.
        seed: fixes all random numbers.

    Example:
        >>> from pyro.infer import MCMC
        >>> from pyro_nri.model.spec import ModelSpec, build_model
        >>> model = build_model(ModelSpec(num_edge_types=2), torch.Generator().manual_seed(0))
        >>> kernel = StructureKernel(model, num_chains=3, seed=0)
        >>> mcmc = MCMC(kernel, num_samples=10, warmup_steps=5, disable_progbar=True)
        >>> mcmc.run(Scenes.from_arrays(torch.zeros(2, 5, 3, 4)))
        >>> mcmc.get_samples()["edge_type"].shape
        torch.Size([10, 3, 2, 6])
    """

    def __init__(
        self,
        model: SceneModel,
        *,
        num_chains: int = 4,
        proposal: str = "auto",
        encoder: Encoder | None = None,
        likelihood: str = "auto",
        cache: str = "auto",
        start_temperature: float = 1000.0,
        seed: int,
    ) -> None:
        self.model = model
        self.num_chains = num_chains
        self.proposal = proposal
        self.encoder = encoder
        self.likelihood = likelihood
        self.cache = cache
        self.start_temperature = start_temperature
        self.seed = seed
        self.transforms: dict[str, Any] = {}  # read by MCMC; discrete sites have none
        self._initial_params: dict[str, Tensor] | None = None
        self._start_is_given = False
        self._chains: Chains | None = None
        self._num_proposed = 0
        self._num_accepted = 0
        self._log_joint: list[Tensor] = []
        super().__init__()

    def setup(self, warmup_steps: int, scenes: Scenes, *args: Any, **kwargs: Any) -> None:
        """Prepare the likelihood of the scenes and reset every counter; called by ``MCMC`` before each chain."""
        self.model.prior.check_closed()
        with torch.no_grad():
            likelihood = self.model.likelihood(scenes, kind=self.likelihood, cache=self.cache)
            scenes = self.model.prepare(scenes)
            prior = self.model.structure_prior(scenes)
        encoder = self.encoder
        edge_q, incoming = (None, None) if encoder is None else learned_q(encoder, scenes, tied=prior.tied)
        start = self._initial_params if self._start_is_given else None
        self._chains = make_chains(
            likelihood,
            prior,
            group_names=scenes.group_names,
            proposal=self.proposal,
            log_q=edge_q,
            incoming=incoming,
            surrogate=surrogate_of(self.model, likelihood, scenes, self.proposal),
            num_chains=self.num_chains,
            num_warmup=warmup_steps,
            start_temperature=self.start_temperature,
            seed=self.seed,
            structure=None if start is None else start["edge_type"],
        )
        self._initial_params = {"edge_type": self._chains.structure}
        self._num_proposed = self._num_accepted = 0
        self._log_joint = []

    @property
    def initial_params(self) -> dict[str, Tensor] | None:
        """Where the chains start, ``{"edge_type": [C, G, E]}``; set it before ``setup`` to choose."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, Tensor]) -> None:
        self._initial_params = params
        self._start_is_given = True

    def sample(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step from where the chains are."""
        if self._chains is None:
            raise ValueError("setup must be called with scenes before sample")
        warming = self._chains.number < self._chains.num_warmup
        info = self._chains.step()
        if not warming:
            self._num_proposed += int(info.proposed.sum())
            self._num_accepted += int(info.accepted.sum())
            self._log_joint.append(self._chains.log_joint)
        return {"edge_type": self._chains.structure}

    def logging(self) -> "OrderedDict[str, str]":
        """What the progress bar shows."""
        rate = self._num_accepted / max(1, self._num_proposed)
        return OrderedDict([("acc. rate", f"{rate:.3f}")])

    def diagnostics(self) -> dict[str, Any]:
        """Acceptance rate of moves that would change something, and the log joint of every draw, ``[S, C, G]``."""
        joint = torch.stack(self._log_joint) if self._log_joint else torch.empty(0)
        return {"acceptance_rate": self._num_accepted / max(1, self._num_proposed), "log_joint": joint}

    def cleanup(self) -> None:
        """Nothing is held open; may run twice."""
