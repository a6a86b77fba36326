"""Moves that a cheap posterior has already accepted, so that an expensive likelihood is asked less often.

Rollouts over several frames do not factorise over receivers: each evaluation runs the dynamics. The posterior of the
same structures with each receiver rolled out alone among the recorded others is looked up in tables, and it is close
(:mod:`pyro_nri.model.surrogate`). So moves are first made on the cheap posterior (delayed acceptance: Christen & Fox
2005, "Markov chain Monte Carlo using an approximation"; several moves in a row are Liu's surrogate transition), and
what remains to be decided is the ratio of the two posteriors.
"""

from torch import Tensor

from pyro_nri.inference import metropolis
from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal
from pyro_nri.inference.target import StructureTarget


class Delayed(AbstractProposal):
    """Some Metropolis steps on a surrogate posterior, proposed as one move.

    They leave the surrogate ``s`` invariant and are reversible: the kinds of move that a mixture makes are the same
    forwards and backwards. So the ratio of the way back to the way there is ``s(old) / s(new)``. A move that ends where
    it began costs nothing.

    Args:
        surrogate: cheap posterior of the same structures, under the same prior.
        proposal: moves on it, the same in the order of the steps and in its reverse; so turns are no different from
            moves drawn at random.
        num_steps: steps on the surrogate.

    Raises:
        ValueError: ``num_steps`` is below 1.
    """

    move_names = ("delayed",)

    def __init__(self, surrogate: StructureTarget, proposal: AbstractProposal, *, num_steps: int = 1) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {num_steps}")
        self.surrogate = surrogate
        self.proposal = proposal
        self.num_steps = num_steps
        self.num_uniforms = num_steps * (proposal.num_uniforms + 1)
        self.is_irreducible = proposal.is_irreducible

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        start = state = metropolis.init(latents, self.surrogate)
        for number, part in enumerate(uniform.split(self.proposal.num_uniforms + 1, dim=-1)):
            state, _ = metropolis.advance(
                state,
                part,
                step * self.num_steps + min(number, self.num_steps - 1 - number),
                proposal=self.proposal,
                target=self.surrogate,
                temperature=temperature,
            )
        gain = metropolis.log_joint_ratio(state.score, start.score, temperature)
        return Move(state.latents, gain, gain.new_zeros(gain.shape), 0)

    def adapt(self, doubt: Tensor, seen: Tensor | None = None) -> None:
        self.proposal.adapt(doubt, seen)
