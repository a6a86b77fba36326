"""Many edges at once by conditional particle filters over the senders: edges that data tell apart only together.

Where a likelihood is linear in the types, a receiver's incoming edges are the integer solution of a least squares
problem whose columns are nearly dependent: paths are smooth, so that what one sender does, a few others could do
together. No edge can move alone, and a list of all combinations would be too long. Here partial graphs, sender by
sender, are kept in a beam of W particles, guided by the relaxed weights (:mod:`pyro_nri.model.relaxed`).

It is a beam search that leaves the posterior invariant: the particles are those of a particle filter conditioned on the
current edges (Andrieu, Doucet & Holenstein 2010, "Particle Markov chain Monte Carlo methods"; for discrete states
Whiteley, Andrieu & Doucet 2010, "Efficient Bayesian inference for switching state-space models using discrete particle
Markov chain Monte Carlo methods"), which keep all likely children and some of the others (Fearnhead & Clifford 2003,
"On-line inference for hidden Markov models via particle filters"). At the end one particle is drawn by the likelihood
itself, so the guide decides how fast chains mix and nothing else.
"""

import math

import torch
from torch import Tensor

from pyro_nri.inference.metropolis import Latents, Move
from pyro_nri.inference.moves import AbstractProposal
from pyro_nri.inference.streams import Stream, categorical
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.model.structures import EdgeDistribution, PairwiseDistribution, StructureDistribution
from pyro_nri.scenes import edges

#: Children are kept at least so often (less where there are many types): unlikely graphs must be within reach of the
#: particles, else no chain could leave them.
FLOOR = 0.05
#: Edges are drawn best known first. Each step tries another order: log variances are changed by at most so much.
ORDER_SPREAD = 1.0
#: Edges whose histories are kept apart from all earlier ones, until they are full.
TOGETHER = 32
#: Up to so many edges, what is best known is asked anew after every draw.
NUM_ASKED_ANEW = 128


class ParticleGibbs(AbstractProposal):
    """The incoming edges of every receiver at once; under a tied prior, all pairs of the graph at once.

    Under an independent prior receivers are independent of one another, and each draws its edges on its own. With no
    more than ``num_particles`` combinations these are exact Gibbs draws.

    Args:
        prior: prior of the G structures, not over labels.
        likelihood: of the same structures, one that factorises over receivers and has relaxed weights.
        num_particles: W, at least 4.
        seed: with the step it fixes the order of the senders, the same for all chains and structures.

    Raises:
        ValueError: prior, likelihood or ``num_particles`` do not fit.
    """

    move_names = ("particle_gibbs",)

    def __init__(
        self, prior: StructureDistribution, likelihood: AbstractLikelihood, *, num_particles: int = 32, seed: int = 0
    ) -> None:
        if not isinstance(prior, PairwiseDistribution):
            raise ValueError("prior must leave each edge a choice given all others, found one over labels")
        if likelihood.relaxed is None:
            raise ValueError("likelihood must have relaxed weights, found none")
        num_types, num_entities, device = prior.num_edge_types, prior.num_entities, prior.edge_mask.device
        if num_particles < 4:
            raise ValueError(f"num_particles must be at least 4, found {num_particles}")
        self.prior = prior
        self.likelihood = likelihood
        self.num_particles = num_particles
        self.floor = min(FLOOR, 0.25 / num_types)
        self.reverse = edges.reverse_edges(num_entities).to(device)
        if prior.tied:
            self.edges = edges.pairs(num_entities)[None, :, 0].to(device)  # [X, M]: M edges of X blocks
            self.mean, self.precision = _tied(likelihood.relaxed, num_entities)
        else:
            self.edges = edges.incoming_edges(num_entities).to(device)
            self.mean, self.precision = (each.double() for each in likelihood.relaxed)
        self.covariance = _inverse(self.precision)
        if isinstance(prior, EdgeDistribution):
            weight = prior.edge_log_weight().detach().double()
        else:  # the guide need not know how many pairs interact
            weight = torch.zeros(*prior.edge_mask.shape, num_types, dtype=torch.float64, device=device)
            weight[..., 1:].masked_fill_(~prior.edge_mask[..., None], -torch.inf)
        self.log_weight = weight[:, self.edges]  # [G, X, M, K]
        identity = torch.eye(num_types - 1, dtype=torch.float64, device=device)
        self.vertex = torch.cat([torch.zeros_like(identity[:1]), identity])  # weights of each type, [K, F]
        self.orders = Stream(seed, torch.zeros(1, dtype=torch.long, device=device), 1).child("orders")
        self.num_uniforms = self.edges.numel() + len(self.edges)

    def propose(self, latents: Latents, uniform: Tensor, step: int, temperature: float | Tensor) -> Move:
        structure = latents["edge_type"]
        num_chains, num_groups, _ = structure.shape
        each = uniform.unflatten(-1, (len(self.edges), -1))  # [C, G, X, M + 1]
        if isinstance(temperature, Tensor):
            temperature = temperature[..., None]
        old = structure[..., self.edges]  # [C, G, X, M]
        order, factor = self._ordered(step)
        shape = (num_chains, num_groups, len(self.edges))
        types, log_lost = self._particles(order, factor, old.gather(-1, order.expand_as(old)), each, temperature)
        types = torch.empty_like(types).scatter(-1, order[..., None, :].expand_as(types), types)  # [C, G, X, W, M]
        # What is not alive need not be scored; it is never drawn.
        types = torch.where(log_lost.isfinite()[..., None], types, old[..., None, :])
        log_joint = self._log_joint(structure, types, temperature)  # [C, G, X, W]
        chosen = categorical((log_joint + log_lost).softmax(-1), each[..., -1])[..., None]  # [C, G, X, 1]
        new = types.gather(-2, chosen[..., None].expand(*shape, 1, types.shape[-1])).squeeze(-2)
        gain = (log_joint.gather(-1, chosen).squeeze(-1) - log_joint[..., 0]).sum(-1)
        return Move({"edge_type": self._moved(structure, new)}, gain, torch.zeros_like(gain), 0)

    def _particles(
        self, order: Tensor, factor: Tensor, old: Tensor, uniform: Tensor, temperature: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Particles of each block, the current edges first.

        Args:
            order: order of the senders, long ``[G, X, M]``.
            factor: see :meth:`_ordered`.
            old: current types in that order, long ``[C, G, X, M]``.
            uniform: ``[C, G, X, M + 1]``.
            temperature: a number or ``[C, G, 1]``.

        Returns:
            Types in that order, long ``[C, G, X, W, M]``; minus the log probability that each particle was kept, given
            where it came from, ``[C, G, X, W]``: -inf where there is none.
        """
        num_types, num_edges = self.prior.num_edge_types, old.shape[-1]
        mean = self.mean.gather(2, order[..., None].expand_as(self.mean))  # [G, X, M, F]
        log_weight = self.log_weight.gather(2, order[..., None].expand_as(self.log_weight))
        apart = self.vertex - mean[..., None, :]  # of each type from the mean, [G, X, M, K, F]
        apart = apart.expand(len(old), *apart.shape)
        heat = temperature[..., None, None] if isinstance(temperature, Tensor) else temperature
        log_guide = log_lost = apart.new_zeros(*old.shape[:-1], 1)  # [C, G, X, W]
        types = old[..., None, :0]  # [C, G, X, W, n]
        drawn = apart.new_zeros(*types.shape, apart.shape[-1])  # weights drawn, from their means, [C, G, X, W, n, F]
        for start in range(0, num_edges, TOGETHER):  # long histories are sorted once in a while only
            rows = factor[:, :, start : start + TOGETHER]  # [G, X, n, F, M, F]
            said = torch.einsum("gxramb,cgxwmb->cgxwra", rows[..., :start, :], drawn)  # by what was drawn before
            ancestor = torch.arange(types.shape[-2], device=old.device).expand(types.shape[:-1])
            types_here, drawn_here = types[..., :0], drawn[..., :0, :]
            for n in range(rows.shape[2]):
                here = rows[:, :, n, :, start : start + n]
                before = said[..., n, :] + torch.einsum("gxamb,cgxwmb->cgxwa", here, drawn_here)
                own = torch.einsum("gxab,cgxkb->cgxka", rows[:, :, n, :, start + n], apart[:, :, :, start + n])
                square = (before[..., None, :] + own[..., None, :, :]).square().sum(-1)  # [C, G, X, W, K]
                log_child = log_guide[..., None] - square / (2 * heat) + log_weight[:, :, start + n, None]
                log_child = log_child.flatten(-2)
                index, lost = _survivors(
                    log_child + log_lost.repeat_interleave(num_types, -1),
                    old[..., start + n],
                    self.num_particles,
                    self.floor,
                    uniform[..., start + n],
                )
                parent, new = index // num_types, index % num_types
                log_lost = log_lost.gather(-1, parent) + lost
                log_guide = log_child.gather(-1, index)
                ancestor, said = ancestor.gather(-1, parent), _of(said, parent)
                types_here = torch.cat([_of(types_here, parent), new[..., None]], -1)
                deviation = _of(apart[:, :, :, start + n], new)
                drawn_here = torch.cat([_of(drawn_here, parent), deviation[..., None, :]], -2)
            types = torch.cat([_of(types, ancestor), types_here], -1)
            drawn = torch.cat([_of(drawn, ancestor), drawn_here], -2)
        return types, log_lost

    def _log_joint(self, structure: Tensor, types: Tensor, temperature: float | Tensor) -> Tensor:
        """Log joint of each particle, up to a constant of the structure, ``[C, G, X, W]``."""
        num_particles = types.shape[-2]
        every = structure.expand(num_particles, *structure.shape)
        tried = self._moved(every, types.movedim(-2, 0)).flatten(0, 1)  # [W C, G, E]
        before = self.likelihood.receiver_terms(structure).expand(num_particles, -1, -1, -1)
        terms = self.likelihood.receiver_terms(tried, (every.flatten(0, 1), before.flatten(0, 1)))
        terms = terms.unflatten(0, (num_particles, -1)).movedim(0, -1)  # [C, G, N, W]
        heat = temperature[..., None] if isinstance(temperature, Tensor) else temperature
        if self.prior.tied:
            log_prior = self.prior.log_prob(tried).unflatten(0, (num_particles, -1)).movedim(0, -1)  # [C, G, W]
            log_joint: Tensor = terms.sum(-2, keepdim=True) / heat + log_prior.detach().double()[:, :, None]
            return log_joint
        weight = self.log_weight[:, :, None].expand(*types.shape, -1)  # [C, G, X, W, M, K]
        log_joint = terms / heat + weight.gather(-1, types[..., None]).squeeze(-1).sum(-1)
        return log_joint

    def _moved(self, structure: Tensor, types: Tensor) -> Tensor:
        """Structures ``[*batch, E]`` whose blocks have new types ``[*batch, X, M]``."""
        moved = structure.clone()
        moved[..., self.edges] = types
        if self.prior.tied:
            moved[..., self.reverse[self.edges]] = types
        return moved

    def _ordered(self, step: int) -> tuple[Tensor, Tensor]:
        """An order of the edges of each block, and what each draw says of the later ones.

        Returns:
            Order, long ``[G, X, M]``; factor ``R`` of the precision ``R^T R`` in that order, ``[G, X, M, F, M, F]``:
            lower triangular, so that the square of row n of ``R (w - mean)`` holds the first n + 1 draws only.
        """
        uniform = self.orders.uniform(step, self.edges.shape[-1] + 1).reshape(-1)
        noise = ORDER_SPREAD * uniform[-1] * torch.special.ndtri(uniform[:-1].clamp(min=1e-12))
        order = _best_known_first(self.covariance, noise.exp())
        num_free = self.mean.shape[-1]
        # The last draw comes first in Cholesky's factor, then all is turned around.
        place = (order.flip(-1)[..., None] * num_free + torch.arange(num_free, device=order.device)).flatten(2)
        flat = self.precision.flatten(4, 5).flatten(2, 3)  # [G, X, M F, M F]
        ordered = flat.gather(2, place[..., None].expand_as(flat)).gather(3, place[..., None, :].expand_as(flat))
        shape = (order.shape[-1], num_free)
        factor = _cholesky(ordered).mT.unflatten(-1, shape).unflatten(-3, shape)
        return order, factor.flip(2).flip(4)


def _of(value: Tensor, parent: Tensor) -> Tensor:
    """Rows ``[C, G, X, W, *]`` of the parents, long ``[C, G, X, W]``, among ``[C, G, X, W', *]``."""
    index = parent.reshape(parent.shape + (1,) * (value.ndim - 4)).expand(*parent.shape, *value.shape[4:])
    return value.gather(3, index)


def _survivors(
    log_weight: Tensor, reference: Tensor, num_kept: int, floor: float, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Which of some children are kept, given that the reference is.

    Each is kept with probability ``max(floor, min(1, weight / c))``, those of weight 0 never; which ones is a
    systematic sample. ``c`` is such that no more than ``num_kept`` are.

    Args:
        log_weight: ``[*batch, J]``.
        reference: number of the child that is kept anyway, long ``[*batch]``.
        num_kept: W.
        floor: smallest probability.
        uniform: ``[*batch]``.

    Returns:
        Numbers of the children kept, the reference first, long ``[*batch, min(J, W)]``; minus the log probabilities of
        keeping them, -inf in places that stay empty.
    """
    num_children = log_weight.shape[-1]
    ordered, index = log_weight.sort(-1, descending=True)
    place = (index == reference[..., None]).to(torch.uint8).argmax(-1, keepdim=True)
    possible = ordered > -torch.inf
    if num_children <= num_kept:
        probability = possible.to(log_weight.dtype)
    else:
        probability = _kept(ordered, num_kept - 1 - math.ceil(floor * num_children))
        probability = torch.where(possible, probability.clamp(floor, 1), torch.zeros_like(probability))
    after = probability.cumsum(-1)
    before = after - probability
    # A point falls on the reference, all others follow at a distance of 1.
    start = before.gather(-1, place) + uniform[..., None] * probability.gather(-1, place)
    chosen = (after - start).ceil() > (before - start).ceil()
    # Sums are not exact: what is certain is kept, the reference too.
    key = (chosen | (probability == 1)).to(torch.uint8).scatter(-1, place, 2)
    kept = key.sort(dim=-1, descending=True, stable=True).indices[..., :num_kept]
    log_lost = -probability.gather(-1, kept).log()
    alive = key.gather(-1, kept) > 0
    return index.gather(-1, kept), torch.where(alive, log_lost, torch.full_like(log_lost, -torch.inf))


def _kept(ordered: Tensor, num_kept: int) -> Tensor:
    """Probabilities ``min(1, weight / c)`` that sum to ``num_kept``, of falling log weights ``[*batch, J]``."""
    weight = (ordered - ordered[..., :1]).exp()
    number = torch.arange(weight.shape[-1], device=weight.device)
    left = weight.flip(-1).cumsum(-1).flip(-1) / (num_kept - number).clamp(min=1)  # c, if the ones before are certain
    enough = (weight <= left) | (number >= num_kept)
    first = enough.to(torch.uint8).argmax(-1, keepdim=True)
    c = left.gather(-1, first).clamp(min=torch.finfo(weight.dtype).tiny)
    return torch.where(number < first, torch.ones_like(weight), (weight / c).clamp(max=1))


def _tied(relaxed: Relaxed, num_entities: int) -> tuple[Tensor, Tensor]:
    """Mean ``[G, 1, P, F]`` and precision ``[G, 1, P, F, P, F]`` of the weights of P pairs, both directions together.

    The precision before data is counted twice; it says the same of every type.
    """
    precision, mean = relaxed.precision.double(), relaxed.mean.double()
    num_groups, _, num_senders, num_free = mean.shape
    num_pairs = num_entities * num_senders // 2
    pair = edges.pair_of_edge(num_entities).to(mean.device)
    total = mean.new_zeros(num_groups, num_pairs, num_free, num_pairs, num_free)
    linear = mean.new_zeros(num_groups, num_pairs, num_free)
    for receiver, incoming in enumerate(edges.incoming_edges(num_entities).to(mean.device)):
        own = pair[incoming]
        part = precision[:, receiver]  # [G, M, F, M, F]
        rows = total.index_select(1, own)
        total[:, own] = rows.index_add(3, own, part)
        linear[:, own] += torch.einsum("gmanb,gnb->gma", part, mean[:, receiver])
    flat = total.flatten(3, 4).flatten(1, 2)
    scale = flat.diagonal(dim1=-2, dim2=-1).rsqrt()
    right = (scale * linear.flatten(1))[..., None]
    solved = scale * torch.linalg.solve(flat * scale[..., None] * scale[..., None, :], right).squeeze(-1)
    return solved.unflatten(-1, (num_pairs, num_free))[:, None], total[:, None]


def _best_known_first(covariance: Tensor, factor: Tensor) -> Tensor:
    """Order of edges by the variance of their weights, each multiplied by its factor.

    Args:
        covariance: ``[G, X, M, F, M, F]``.
        factor: ``[M]``.

    Returns:
        long ``[G, X, M]``.
    """
    num_edges = covariance.shape[2]
    own = torch.arange(num_edges, device=covariance.device)

    def variance(covariance: Tensor) -> Tensor:
        return covariance[:, :, own, :, own].diagonal(dim1=-2, dim2=-1).sum(-1).movedim(0, -1) * factor

    if num_edges > NUM_ASKED_ANEW:
        return variance(covariance).argsort(-1)
    group = torch.arange(covariance.shape[0], device=own.device)[:, None]
    block = torch.arange(covariance.shape[1], device=own.device)
    done = torch.zeros(covariance.shape[:3], dtype=torch.bool, device=own.device)
    order = []
    for _ in range(num_edges):
        first = variance(covariance).masked_fill(done, torch.inf).argmin(-1)  # [G, X]
        column = covariance[group, block, :, :, first]  # [G, X, M, F, F]
        gain = column @ torch.linalg.pinv(column[group, block, first])[:, :, None]
        covariance = covariance - torch.einsum("gxmab,gxncb->gxmanc", gain, column)
        done[group, block, first] = True
        order.append(first)
    return torch.stack(order, -1)


def _inverse(precision: Tensor) -> Tensor:
    """Covariance of a precision, both ``[G, X, M, F, M, F]``."""
    flat = precision.flatten(4, 5).flatten(2, 3)
    scale = flat.diagonal(dim1=-2, dim2=-1).rsqrt()  # information varies over many orders of magnitude
    both = scale[..., None] * scale[..., None, :]
    shape = precision.shape[2:4]
    inverse: Tensor = (torch.linalg.inv(flat * both) * both).unflatten(-1, shape).unflatten(-3, shape)
    return inverse


def _cholesky(matrix: Tensor) -> Tensor:
    """Cholesky's factor; a matrix that rounding has made indefinite is taken a little larger."""
    scale = matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    scaled = matrix * scale[..., None] * scale[..., None, :]
    identity = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(scaled)
    for more in (1e-14, 1e-13, 1e-12, 1e-10):
        if failed.any():
            again, still = torch.linalg.cholesky_ex(scaled + more * identity)
            factor = torch.where((failed > 0)[..., None, None], again, factor)
            failed = torch.where(failed > 0, still, failed)
    factor = factor / scale[..., None]
    return factor
