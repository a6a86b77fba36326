"""Conditional particle filters against their transition matrices, derived by listing every sample that can be drawn.

At each edge the systematic sample is a function of one uniform number, constant between a few places; the derivation
goes through all of them, in plain Python. Guide and likelihood have nothing to do with one another: the posterior must
be left invariant all the same.
"""

import itertools

import numpy as np
import pytest
import torch

from pyro_nri.inference import metropolis, particle_gibbs
from pyro_nri.inference.particle_gibbs import ParticleGibbs
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import AbstractLikelihood, ReceiverTable
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.scenes import edges


def some_relaxed(num_entities, num_types, *, num_groups=1, strength=2.0, seed=2):
    """Weights whose senders are correlated."""
    rng, size = np.random.default_rng(seed), (num_entities - 1) * (num_types - 1)
    root = strength * rng.standard_normal((num_groups, num_entities, size + 2, size))
    precision = root.swapaxes(-1, -2) @ root
    shape = (num_entities - 1, num_types - 1)
    mean = rng.uniform(0.2, 0.8, (num_groups, num_entities, *shape))
    precision = precision.reshape(num_groups, num_entities, *shape, *shape)
    return Relaxed(torch.as_tensor(mean), torch.as_tensor(precision))


class Problem:
    """One scene, terms at random, all structures of the prior."""

    def __init__(self, prior_name, num_entities, num_types=2, num_particles=4, seed=0):
        self.tied = prior_name in ("symmetric", "sparse")
        rng = np.random.default_rng(seed)
        terms = rng.standard_normal((1, num_entities, num_types ** (num_entities - 1)))
        mask = torch.ones(1, edges.num_edges(num_entities), dtype=torch.bool)
        prior = make_prior(prior_name, num_types).double()
        with torch.no_grad():
            prior.type_logits.copy_(torch.linspace(0.4, -0.4, num_types))
        self.prior = prior(mask)
        self.likelihood = ReceiverTable(torch.as_tensor(terms), num_types, mask)
        self.likelihood.relaxed = some_relaxed(num_entities, num_types)
        self.proposal = ParticleGibbs(self.prior, self.likelihood, num_particles=num_particles, seed=5)
        self.target = StructureTarget(self.likelihood, self.prior)
        # Structures that differ in the first block alone: the matrix of one block.
        self.block = self.proposal.edges[0].tolist()
        self.types = list(itertools.product(range(num_types), repeat=len(self.block)))
        base = torch.zeros(len(self.types), 1, mask.shape[1], dtype=torch.long)
        base[:, 0, self.block] = torch.tensor(self.types)
        if self.tied:
            base[:, 0, self.proposal.reverse[self.block]] = torch.tensor(self.types)
        self.structures = base

    def log_joint(self, temperature):
        score = self.target({"edge_type": self.structures})
        return (score.log_likelihood / temperature + score.log_prior)[:, 0].numpy()


def guide(problem, step, temperature):
    """Order of the edges, and the log guide of any first few types in that order, by marginal normals."""
    order, _ = problem.proposal._ordered(step)
    order = order[0, 0].tolist()
    num_free = problem.prior.num_edge_types - 1
    mean = problem.proposal.mean[0, 0].numpy().reshape(-1)
    covariance = np.linalg.inv(problem.proposal.precision[0, 0].numpy().reshape(len(mean), -1))
    vertex = np.eye(num_free + 1)[:, 1:]
    weight = problem.proposal.log_weight[0, 0].numpy()

    def log_guide(types):
        place = [order[n] * num_free + f for n in range(len(types)) for f in range(num_free)]
        apart = np.concatenate([vertex[k] for k in types]) - mean[place]
        spread = covariance[np.ix_(place, place)]
        return -apart @ np.linalg.solve(spread, apart) / 2 / temperature + sum(
            weight[order[n], k] for n, k in enumerate(types)
        )

    return order, log_guide


def kept_with(log_weight, num_kept, floor):
    """Probability of keeping each child: the threshold by bisection."""
    if len(log_weight) <= num_kept:
        return np.ones(len(log_weight))
    weight = np.exp(log_weight - log_weight.max())
    slots = num_kept - 1 - int(np.ceil(floor * len(weight)))
    low, high = 1e-300, weight.sum()
    for _ in range(80):
        c = np.sqrt(low * high)
        low, high = (c, high) if np.minimum(1, weight / c).sum() > slots else (low, c)
    return np.maximum(floor, np.minimum(1, weight / high))


def transitions(problem, step, temperature, num_particles):
    """Probability of going from any types of the first block to any others, ``[J, J]``."""
    order, log_guide = guide(problem, step, temperature)
    log_joint, floor = problem.log_joint(temperature), problem.proposal.floor
    number = {types: n for n, types in enumerate(problem.types)}
    num_types, num_edges = problem.prior.num_edge_types, len(order)
    matrix = np.zeros((len(number),) * 2)

    def natural(drawn):
        types = [0] * num_edges
        for place, k in zip(order, drawn, strict=True):
            types[place] = k
        return number[tuple(types)]

    def grow(particles, reference, share, row):
        """Particles are pairs of types so far and the probability that they were kept."""
        length = len(particles[0][0])
        if length == num_edges:
            weight = np.array([log_joint[natural(types)] - np.log(kept) for types, kept in particles])
            weight = np.exp(weight - weight.max())
            for (types, _), w in zip(particles, weight / weight.sum(), strict=True):
                matrix[row, natural(types)] += share * w
            return
        children = [((*types, k), kept) for types, kept in particles for k in range(num_types)]
        children.sort(key=lambda child: -(log_guide(child[0]) - np.log(child[1])))
        log_weight = np.array([log_guide(types) - np.log(kept) for types, kept in children])
        probability = kept_with(log_weight, num_particles, floor)
        edge = np.concatenate([[0], probability.cumsum()])
        own = [types for types, _ in children].index(reference[: length + 1])
        breaks = (edge - edge[own]) % 1 / probability[own]
        breaks = np.unique(np.concatenate([[0, 1], breaks[(breaks > 1e-12) & (breaks < 1 - 1e-12)]]))
        for left, right in itertools.pairwise(breaks):
            point = edge[own] + (left + right) / 2 * probability[own]
            points = point + np.arange(-len(children) - 1, len(children) + 1)
            chosen = [((points >= low) & (points < high)).any() for low, high in itertools.pairwise(edge)]
            survivors = [(t, q * p) for (t, q), p, yes in zip(children, probability, chosen, strict=True) if yes]
            grow(survivors, reference, share * (right - left), row)

    for types, row in number.items():
        grow([((), 1.0)], tuple(types[place] for place in order), 1.0, row)
    return matrix


CASES = [  # prior, entities, types, particles
    ("independent", 4, 2, 4),
    ("independent", 5, 2, 5),
    ("independent", 3, 3, 4),
    ("independent", 3, 2, 8),
    ("symmetric", 3, 2, 4),
    ("symmetric", 3, 3, 5),
    ("sparse", 3, 2, 4),
]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_the_derived_matrix_is_reversible(case, temperature):
    problem = Problem(*case)
    matrix = transitions(problem, 3, temperature, case[-1])
    weight = np.exp(problem.log_joint(temperature))
    posterior = weight / weight.sum()
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    flow = posterior[:, None] * matrix
    np.testing.assert_allclose(flow, flow.T, atol=1e-10)
    assert np.abs(posterior @ matrix - posterior).max() < 1e-10
    if len(problem.types) <= case[-1]:  # nothing is left out: exact draws
        np.testing.assert_allclose(matrix, np.tile(posterior, (len(posterior), 1)), atol=1e-10)


@pytest.mark.statistical
@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(map(str, case)))
def test_moves_are_as_frequent_as_derived(case):
    """2,000 moves from every structure: five standard errors and one count; they report the posterior ratio."""
    problem, num, temperature = Problem(*case), 2000, 2.5
    matrix = transitions(problem, 3, temperature, case[-1])
    log_joint = problem.log_joint(temperature)
    count = len(problem.types)
    uniform = torch.rand(
        num * count, 1, problem.proposal.num_uniforms, generator=torch.Generator().manual_seed(0), dtype=torch.double
    )
    before = problem.structures.repeat_interleave(num, 0)
    move = problem.proposal.propose({"edge_type": before}, uniform, 3, temperature)
    after = move.latents["edge_type"]
    place = case[2] ** torch.arange(len(problem.block) - 1, -1, -1)
    to = (after[:, 0, problem.block] * place).sum(-1).numpy()
    start = np.arange(count).repeat(num)
    found = np.zeros_like(matrix)
    np.add.at(found, (start, to), 1)
    error = np.sqrt(num * matrix * (1 - matrix))
    assert (np.abs(found - num * matrix) < 5 * error + 1).all()
    score = problem.target({"edge_type": after})
    joint = (score.log_likelihood / temperature + score.log_prior)[:, 0].numpy()
    np.testing.assert_allclose((move.log_forward - move.log_reverse)[:, 0].numpy(), joint - log_joint[start], atol=1e-9)
    if problem.tied:
        assert (after[..., problem.proposal.reverse] == after).all()


@pytest.mark.parametrize("name", ["independent", "symmetric"])
def test_a_filter_that_forgets_who_was_lost_is_found_out(name, monkeypatch):
    """A negative control: without the probabilities of having been kept the matrix is not reversible."""
    case = (name, 4 if name == "independent" else 3, 2, 4)
    problem = Problem(*case)
    monkeypatch.setattr(np, "log", lambda value, log=np.log: log(value) if np.ndim(value) else 0.0)
    matrix = transitions(problem, 3, 1.0, case[-1])
    weight = np.exp(problem.log_joint(1.0))
    posterior = weight / weight.sum()
    assert np.abs(posterior @ matrix - posterior).max() > 1e-3


@pytest.mark.statistical
@pytest.mark.parametrize("name", ["independent", "symmetric"])
def test_draws_of_the_posterior_stay_draws_of_it(name):
    """Absent entities, temperatures that differ by chain and group, many steps with other orders."""
    num_entities, num_chains = 4, 4000
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1] = (edges.senders(4) < 3) & (edges.receivers(4) < 3)
    prior = make_prior(name, 2).double()(mask)
    terms = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    likelihood = ReceiverTable(terms, 2, mask)
    likelihood.relaxed = some_relaxed(num_entities, 2, num_groups=2)
    proposal, target = ParticleGibbs(prior, likelihood, num_particles=4), StructureTarget(likelihood, prior)
    stream = Stream(1, keys(["a", "b"]), num_chains)
    every = prior.list_structures()
    temperature = torch.tensor([1.0, 3.0], dtype=torch.double).repeat_interleave(num_chains // 2)[:, None].expand(-1, 2)
    score = target({"edge_type": every[:, None].expand(-1, 2, -1)})
    uniform = stream.child("start").uniform(0, 1)[..., 0]
    exact, start = [], []
    for heat, rows in ((1.0, slice(0, num_chains // 2)), (3.0, slice(num_chains // 2, None))):
        probability = (score.log_likelihood / heat + score.log_prior).softmax(0)  # [J, G]
        exact.append(torch.einsum("jg,je->ge", probability, every.double()))
        number = torch.searchsorted(probability.cumsum(0).T.contiguous(), uniform[rows].T.contiguous()).T
        start.append(every[number.clamp(max=len(every) - 1)])
    state = metropolis.init({"edge_type": torch.cat(start)}, target)
    accepted = 0
    for number in range(6):
        state, info = metropolis.step(state, stream, number, proposal=proposal, target=target, temperature=temperature)
        accepted += int(info.accepted.sum())
        assert (info.accepted == info.proposed).all()  # what was drawn is never turned down
    assert accepted > num_chains / 2
    for expected, part in zip(exact, state.latents["edge_type"].double().chunk(2), strict=True):
        error = (expected * (1 - expected) / len(part)).sqrt()
        assert ((part.mean(0) - expected).abs() <= 5 * error).all()
    assert (state.latents["edge_type"][:, 1][:, ~mask[1]] == 0).all()


def test_long_histories_are_put_together_rightly(monkeypatch):
    problem = Problem("independent", 5, num_particles=6)
    uniform = torch.rand(50, 1, problem.proposal.num_uniforms, generator=torch.Generator().manual_seed(0)).double()
    structure = torch.randint(2, (50, 1, 20), generator=torch.Generator().manual_seed(1))
    whole = problem.proposal.propose({"edge_type": structure}, uniform, 0, 1.0).latents["edge_type"]
    for together in (1, 3):
        monkeypatch.setattr(particle_gibbs, "TOGETHER", together)
        assert (problem.proposal.propose({"edge_type": structure}, uniform, 0, 1.0).latents["edge_type"] == whole).all()


def test_orders():
    """Best known first: alone by variance, else by what is left of it once others are known."""
    covariance = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.05, 0.0], [0.0, 0.0, 0.9]], dtype=torch.double)
    covariance = covariance[None, None, :, None, :, None]
    one = torch.ones(3, dtype=torch.double)
    assert particle_gibbs._best_known_first(covariance, one).tolist() == [[[2, 0, 1]]]
    linked = torch.tensor([[0.5, 0.69, 0.0], [0.69, 1.0, 0.0], [0.0, 0.0, 0.7]], dtype=torch.double)
    linked = linked[None, None, :, None, :, None]
    assert particle_gibbs._best_known_first(linked, one).tolist() == [[[0, 1, 2]]]
    assert particle_gibbs._best_known_first(linked, one * torch.tensor([9.0, 1, 1])).tolist() == [[[2, 1, 0]]]


def test_bad_arguments():
    problem = Problem("independent", 3)
    with pytest.raises(ValueError, match="num_particles must be at least 4, found 3"):
        ParticleGibbs(problem.prior, problem.likelihood, num_particles=3)
    problem.likelihood.relaxed = None
    with pytest.raises(ValueError, match="likelihood must have relaxed weights"):
        ParticleGibbs(problem.prior, problem.likelihood)
    labels = make_prior("charges", 2).double()
    labels.set_table(torch.tensor([[1, 0], [0, 1]]))
    with pytest.raises(ValueError, match="one over labels"):
        ParticleGibbs(labels(problem.prior.edge_mask), problem.likelihood)
    assert isinstance(problem.likelihood, AbstractLikelihood)
