"""Every proposal against its exact transition matrix at N = 3: all 64 structures, or all 8 (27 with K = 3) tied ones.

Under labels N = 4 too, where charges have 8 structures.

Proposal probabilities are derived here by listing every choice that a move can make, with NumPy and plain Python; the
library is asked only for what it proposes and how it says that it came there. One *choice* (an edge, a pair, a
receiver) is one Metropolis kernel of its own: under a tied prior two receivers can make the same change, each
with its own ratio. A move of a label is the mean over the labelings of a structure; all have one ratio.
"""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from pyro_nri.inference import metropolis
from pyro_nri.inference.balanced import BalancedEdge
from pyro_nri.inference.blocks import JointBlock, ReceiverBlock
from pyro_nri.inference.encoder import Encoder, learned_q
from pyro_nri.inference.encoder import log_q as encoder_log_q
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.labels import ExactLabel, LabelBlock, PriorDraw, UniformLabel
from pyro_nri.inference.proposals import (
    ExactReceiver,
    Mixture,
    UniformEdge,
    UniformPair,
    make_proposal,
)
from pyro_nri.inference.rounds import EdgeRound
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import ReceiverTable
from pyro_nri.scenes.scenes import Scenes

TYPE_WEIGHTS = {2: [0.65, 0.35], 3: [0.5, 0.2, 0.3]}
#: Priors over labels: number of entities, types by the labels of sender and receiver.
LABELS = {
    "charges": (3, [[1, 0], [0, 1]]),
    "charges of four": (4, [[1, 0], [0, 1]]),
    "one attracts": (3, [[0, 0], [0, 1]]),
    "sender decides": (3, [[0, 0], [1, 1]]),
    "directed": (3, [[0, 1], [2, 0]]),
    "three labels": (3, [[0, 1, 1], [1, 0, 0], [1, 0, 0]]),
}


def log_priors(name, num_types, structures, pairs):
    """Log prior of each structure, by definition; structures without probability are left out."""
    if name in LABELS:
        num_entities, table = LABELS[name]
        labelings = list(itertools.product(range(len(table)), repeat=num_entities))
        made = [tuple(table[labels[i]][labels[j]] for i, j in pairs) for labels in labelings]
        return {z: np.log(made.count(z) / len(made)) for z in structures if z in made}
    if name != "independent":
        structures = [z for z in structures if all(z[e] == z[pairs.index((j, i))] for e, (i, j) in enumerate(pairs))]
    free = [e for e, (i, j) in enumerate(pairs) if name == "independent" or i < j]
    if name == "sparse":

        def probability(rho, z):
            return np.prod([rho / (num_types - 1) if z[e] else 1 - rho for e in free])

        return {z: np.log(integrate.quad(probability, 0, 1, args=(z,))[0]) for z in structures}
    return {z: sum(np.log(TYPE_WEIGHTS[num_types][z[e]]) for e in free) for z in structures}


class Problem:
    """A posterior over structures of three or four entities, listed."""

    def __init__(self, prior_name, num_types=2, seed=0):
        self.num_entities, self.label_table = LABELS.get(prior_name, (3, None))
        self.tied = prior_name in ("symmetric", "sparse")
        self.num_types = num_types
        entities = range(self.num_entities)
        self.pairs = [(i, j) for i in entities for j in entities if i != j]
        self.incoming = [[self.pairs.index((i, j)) for i in entities if i != j] for j in entities]
        every = itertools.product(range(num_types), repeat=len(self.pairs))
        log_prior = log_priors(prior_name, num_types, list(every), self.pairs)
        self.structures = list(log_prior)
        self.number = {z: n for n, z in enumerate(self.structures)}
        rng = np.random.default_rng(seed)
        # Terms by receiver and the types of its senders.
        terms = 1.2 * rng.standard_normal((self.num_entities, *[num_types] * (self.num_entities - 1)))
        self.log_joint = np.array(
            [sum(terms[j][tuple(z[e] for e in self.incoming[j])] for j in entities) + log_prior[z] for z in log_prior]
        )
        self.prior_probability = np.exp(list(log_prior.values()))
        prior = make_prior(
            "charges" if self.label_table else prior_name, num_types, num_labels=len(self.label_table or "ab")
        )
        prior.double()
        with torch.no_grad():
            prior.type_logits.copy_(torch.as_tensor(np.log(TYPE_WEIGHTS[num_types])) + 3)  # a constant does not matter
        if self.label_table:
            prior.set_table(torch.tensor(self.label_table))
        mask = torch.ones(1, len(self.pairs), dtype=torch.bool)
        self.prior = prior(mask)
        self.table = ReceiverTable(torch.as_tensor(terms.reshape(1, self.num_entities, -1)), num_types, mask)
        self.target = StructureTarget(self.table, self.prior)

    def opposite(self, e):
        return self.pairs.index(self.pairs[e][::-1])

    def posterior(self, temperature=1.0):
        log_likelihood = self.log_joint - np.log(self.prior_probability)
        weight = self.prior_probability * np.exp((log_likelihood - log_likelihood.max()) / temperature)
        return weight / weight.sum()

    def changed(self, z, values):
        """``z`` with the types ``values`` {edge: type}; under a tied prior opposite edges follow."""
        z = list(z)
        for e, k in values.items():
            z[e] = k
            if self.tied:
                z[self.opposite(e)] = k
        return tuple(z)

    # --- probabilities of every change, choice by choice: matrices [J, J] -------------------------------------------
    def empty(self):
        return np.zeros((len(self.structures),) * 2)

    def edge_choices(self):
        """One edge, another type. Alone on tied structures it leads off the support: it stays there."""
        choices = []
        for e in range(6):
            matrix = self.empty()
            for z in self.structures:
                for k in range(self.num_types):
                    if k != z[e]:
                        new = list(z)
                        new[e] = k
                        if tuple(new) in self.number:
                            matrix[self.number[z], self.number[tuple(new)]] += 1 / (self.num_types - 1)
            choices.append(matrix)
        return choices

    def pair_choices(self):
        choices = []
        for i, j in [(0, 1), (0, 2), (1, 2)]:
            there, back = self.pairs.index((i, j)), self.pairs.index((j, i))
            matrix = self.empty()
            for z in self.structures:
                combinations = itertools.product(range(self.num_types), repeat=2)
                others = [c for c in combinations if c != (z[there], z[back]) and not (self.tied and c[0] != c[1])]
                for first, second in others:
                    new = list(z)
                    new[there], new[back] = first, second
                    matrix[self.number[z], self.number[tuple(new)]] += 1 / len(others)
            choices.append(matrix)
        return choices

    def block_choices(self, log_q, floor):
        q = np.asarray(log_q[0])
        if self.tied:
            q = np.stack([(q[e] + q[self.opposite(e)]) / 2 for e in range(6)])
        q = np.exp(q)
        q = (1 - floor) * q / q.sum(-1, keepdims=True) + floor / self.num_types
        choices = []
        for j in range(3):
            matrix = self.empty()
            for z in self.structures:
                for types in itertools.product(range(self.num_types), repeat=2):
                    new = self.changed(z, dict(zip(self.incoming[j], types, strict=True)))
                    matrix[self.number[z], self.number[new]] += (
                        q[self.incoming[j][0], types[0]] * q[self.incoming[j][1], types[1]]
                    )
            choices.append(matrix)
        return choices

    def joint_choices(self, incoming, floor):
        """The two senders of a receiver in the order of the distribution, the second one knowing the first."""
        base, coupling, order = (np.asarray(x)[0] for x in (incoming.base, incoming.coupling, incoming.order))

        def probability(logits):
            weight = np.exp(logits - logits.max())
            return (1 - floor) * weight / weight.sum() + floor / self.num_types

        choices = []
        for j in range(3):
            first, second = order[j]
            matrix = self.empty()
            for z in self.structures:
                for types in itertools.product(range(self.num_types), repeat=2):
                    new = self.changed(z, dict(zip(self.incoming[j], types, strict=True)))
                    knowing = probability(base[j, second] + coupling[j, second, :, first, types[first]])
                    matrix[self.number[z], self.number[new]] += (
                        probability(base[j, first])[types[first]] * knowing[types[second]]
                    )
            choices.append(matrix)
        return choices

    def exact_choices(self, temperature):
        """The tempered posterior restricted to what one receiver's incoming edges can make of a structure."""
        posterior = self.posterior(temperature)
        choices = []
        for j in range(3):
            matrix = self.empty()
            for z in self.structures:
                reachable = [
                    self.number[self.changed(z, dict(zip(self.incoming[j], types, strict=True)))]
                    for types in itertools.product(range(self.num_types), repeat=2)
                ]
                matrix[self.number[z], reachable] = posterior[reachable] / posterior[reachable].sum()
            choices.append(matrix)
        return choices

    def balanced_choices(self, temperature):
        """One receiver; each other type of one of its incoming edges in proportion to t / (1 + t), t the ratio."""
        posterior = self.posterior(temperature)
        choices = []
        for j in range(3):
            matrix = self.empty()
            for z in self.structures:
                others = [(e, k) for e in self.incoming[j] for k in range(self.num_types) if k != z[e]]
                new = [self.number[self.changed(z, {e: k})] for e, k in others]
                ratio = posterior[new] / posterior[self.number[z]]
                matrix[self.number[z], new] = ratio / (1 + ratio) / (ratio / (1 + ratio)).sum()
            choices.append(matrix)
        return choices

    def round_choices(self, temperature):
        """One pair of entities meets; both edges (tied: the pair) from their conditionals given all others."""
        posterior = self.posterior(temperature)
        choices = []
        for i, j in [(0, 1), (0, 2), (1, 2)]:
            both = [self.pairs.index((i, j))] if self.tied else [self.pairs.index((i, j)), self.pairs.index((j, i))]
            matrix = self.empty()
            for z in self.structures:
                each = []
                for e in both:
                    weight = posterior[[self.number[self.changed(z, {e: k})] for k in range(self.num_types)]]
                    each.append(weight / weight.sum())
                for types in itertools.product(range(self.num_types), repeat=len(both)):
                    new = self.number[self.changed(z, dict(zip(both, types, strict=True)))]
                    matrix[self.number[z], new] += np.prod([q[k] for q, k in zip(each, types, strict=True)])
            choices.append(matrix)
        return choices

    def prior_choices(self):
        return [np.tile(self.prior_probability, (len(self.structures), 1))]

    def label_choices(self, weight=None):
        """A labeling of the structure, one entity, and a label by the weight of the structure that it makes.

        Without weights any label but the old one, all alike.
        """
        labels = range(len(self.label_table))
        labelings = {}
        for each in itertools.product(labels, repeat=self.num_entities):
            z = self.number[tuple(self.label_table[each[i]][each[j]] for i, j in self.pairs)]
            labelings.setdefault(z, []).append(each)
        made = {each: z for z, alike in labelings.items() for each in alike}
        choices = []
        for n in range(self.num_entities):
            matrix = self.empty()
            for each, z in made.items():
                to = {a: made[*each[:n], a, *each[n + 1 :]] for a in labels}
                share = {a: float(a != each[n]) if weight is None else weight[to[a]] for a in labels}
                for a in labels:
                    matrix[z, to[a]] += share[a] / sum(share.values()) / len(labelings[z])
            choices.append(matrix)
        return choices

    def label_block_choices(self, log_q, floor):
        """Weights: products of edge probabilities; where both directions always agree, of their geometric means."""
        q = np.exp(np.asarray(log_q[0]))
        if is_tied := np.array_equal(self.label_table, np.transpose(self.label_table)):
            q = np.sqrt(q * q[[self.opposite(e) for e in range(len(q))]])
        q = (1 - floor) * q / q.sum(-1, keepdims=True) + floor / self.num_types
        weight = [np.prod([q[e, k] for e, k in enumerate(z)]) ** (0.5 if is_tied else 1) for z in self.structures]
        return self.label_choices(weight)

    def exact_label_choices(self, temperature):
        """Weights: the tempered posterior, shared among the labelings of a structure."""
        num_labels = len(self.label_table)
        return self.label_choices(
            self.posterior(temperature) / (self.prior_probability * num_labels**self.num_entities)
        )

    def metropolis(self, proposed, temperature, acceptance="metropolis"):
        """Transition matrix of one choice."""
        posterior = self.posterior(temperature)
        ratio = posterior[None, :] / posterior[:, None]
        possible = proposed > 0
        if acceptance == "metropolis":
            ratio = ratio * np.divide(proposed.T, proposed, out=np.zeros_like(proposed), where=possible)
        matrix = np.where(possible, proposed * np.minimum(1, ratio), 0)
        np.fill_diagonal(matrix, 0)
        return matrix + np.diag(1 - matrix.sum(1))


@dataclass
class Component:
    """A kind of move: its choices, equally likely at random or one after the other in turn."""

    choices: list[np.ndarray]
    turn: bool = False

    def at(self, step):
        return [self.choices[step % len(self.choices)]] if self.turn else self.choices


@dataclass
class Case:
    problem: Problem
    proposal: object
    components: list[Component]
    temperature: float
    weights: tuple[float, ...] = (1.0,)
    exact_weights: bool = True

    def matrices(self, step=0, acceptance="metropolis"):
        """Transition matrix of each component at a step."""
        return [
            np.mean([self.problem.metropolis(q, self.temperature, acceptance) for q in component.at(step)], axis=0)
            for component in self.components
        ]

    def mixture(self, step=0):
        weights = np.array(self.weights) / sum(self.weights)
        return np.tensordot(weights, np.stack(self.matrices(step)), axes=1)


def asymmetric_log_q(num_types, num_entities):
    """Far from the posterior and from its own mirror image."""
    shape = (1, num_entities * (num_entities - 1))
    return torch.as_tensor(np.log(np.random.default_rng(5).dirichlet([0.7] * num_types, shape)))


def neural(num_types, num_entities):
    """An encoder with random weights, its output sharpened, and a random walk."""
    generator = torch.Generator().manual_seed(0)
    encoder = Encoder(num_types, 2, width=16, generator=generator).double()
    with torch.no_grad():
        encoder.output.weights[-1].mul_(4)
    steps = torch.randn(1, 6, num_entities, 2, generator=generator, dtype=torch.double)
    return encoder, Scenes.from_arrays(steps.cumsum(1))


def neural_log_q(num_types, num_entities):
    return encoder_log_q(*neural(num_types, num_entities))


def neural_incoming(num_types, tied):
    """As above, with couplings whose weights are random too."""
    encoder, scenes = neural(num_types, 3)
    encoder.add_coupling(generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in encoder.coupling.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
    return learned_q(encoder, scenes, tied=tied)[1]


def random_incoming(num_types):
    """Couplings, and an order of the senders that is another one for each receiver."""
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(1, 3, 2, num_types, generator=generator, dtype=torch.double)
    coupling = torch.randn(1, 3, 2, num_types, 2, num_types, generator=generator, dtype=torch.double)
    return IncomingDistribution(base, coupling, order=torch.tensor([[[0, 1], [1, 0], [1, 0]]]))


@functools.cache
def build(name, prior_name, num_types, temperature):
    problem = Problem(prior_name, num_types)
    prior, table = problem.prior, problem.table
    log_q = (neural_log_q if "encoder" in name else asymmetric_log_q)(num_types, problem.num_entities)
    scan = "turn" if "turn" in name else "random"
    floor = 0.0 if "floor 0" in name else 0.2
    if problem.label_table and name.startswith("make"):
        by_name = {
            "uniform_label": Component(problem.label_choices()),
            "prior_draw": Component(problem.prior_choices()),
            "label_block": Component(problem.label_block_choices(log_q, 0.05), turn=True),
            "exact_label": Component(problem.exact_label_choices(temperature), turn=True),
        }
        return made_case(name, problem, log_q, by_name, temperature)
    if problem.label_table:
        proposal, choices = {
            "label": lambda: (UniformLabel(prior), problem.label_choices()),
            "draw": lambda: (PriorDraw(prior), problem.prior_choices()),
            "label_block": lambda: (
                LabelBlock(prior, log_q, floor=floor, scan=scan),
                problem.label_block_choices(log_q, floor),
            ),
            "exact_label": lambda: (ExactLabel(prior, table, scan=scan), problem.exact_label_choices(temperature)),
        }[name.split()[0]]()
        return Case(problem, proposal, [Component(choices, scan == "turn")], temperature)
    edge, pair = problem.edge_choices, problem.pair_choices
    single = [(UniformPair(prior), Component(pair()))]
    if not problem.tied:
        single.insert(0, (UniformEdge(prior), Component(edge())))
    exact = (ExactReceiver(prior, table, scan=scan), Component(problem.exact_choices(temperature), scan == "turn"))
    block = (
        ReceiverBlock(prior, log_q, floor=floor, scan=scan),
        Component(problem.block_choices(log_q, floor), scan == "turn"),
    )
    incoming = neural_incoming(num_types, problem.tied) if "encoder" in name else random_incoming(num_types)
    joint = (
        JointBlock(prior, incoming, floor=floor, scan=scan),
        Component(problem.joint_choices(incoming, floor), scan == "turn"),
    )
    balanced = (BalancedEdge(prior, table), Component(problem.balanced_choices(temperature)))
    rounds = (EdgeRound(prior, table, scan=scan), Component(problem.round_choices(temperature)))
    if name.startswith("mixture"):
        parts = [(UniformEdge(prior), Component(edge())), single[-1], block, exact]
        weights = (1.0, 2.0, 1.5, 0.5)
        return Case(
            problem, Mixture([p for p, _ in parts], weights, seed=3), [c for _, c in parts], temperature, weights
        )
    if name.startswith("make"):
        by_name = {
            "uniform_edge": Component(edge()),
            "uniform_pair": Component(pair()),
            "receiver_block": Component(problem.block_choices(log_q, 0.05), turn=True),
            "joint_block": Component(problem.joint_choices(incoming, 0.05), turn=True),
            "learned_block": Component(  # before warm-up has taught them anything
                problem.joint_choices(incoming, 0.05) if "joint" in name else problem.block_choices(log_q, 0.05),
                turn=True,
            ),
            "exact_receiver": Component(problem.exact_choices(temperature), turn=True),
            "balanced_edge": balanced[1],
            "edge_round": Component(problem.round_choices(temperature)),
        }
        return made_case(name, problem, log_q, by_name, temperature, incoming if "joint" in name else None)
    chosen = {"joint": joint} | {
        "edge": single[0],
        "pair": single[-1],
        "exact": exact,
        "block": block,
        "balanced": balanced,
        "rounds": rounds,
    }
    chosen = chosen[name.split()[0]]
    return Case(problem, chosen[0], [chosen[1]], temperature)


def made_case(name, problem, log_q, by_name, temperature, incoming=None):
    """Which moves, in which order and how often is up to the library; that the mixture is right is not."""
    kind = name.split()[1]
    proposal = make_proposal(kind, problem.prior, likelihood=problem.table, log_q=log_q, incoming=incoming, seed=4)
    components = [by_name[move] for move in proposal.move_names]
    counts = np.bincount([proposal.component(step) for step in range(1000)], minlength=len(components))
    return Case(problem, proposal, components, temperature, tuple(counts / 1000), exact_weights=False)


NAMES = [
    "edge",
    "pair",
    "block encoder",
    "block encoder turn",
    "block floor 0",
    "block floor 0 turn",
    "block asymmetric",
    "joint encoder",
    "joint encoder turn",
    "joint floor 0",
    "joint floor 0 turn",
    "exact",
    "exact turn",
    "balanced",
    "rounds",
    "mixture",
    "mixture turn",
    "make uniform",
    "make neural",
    "make exact",
    "make balanced",
    "make auto",
    "make neural joint encoder",
    "make auto joint",
]
CASES = [(name, prior, 2) for name in NAMES for prior in ("independent", "symmetric")]
CASES += [("pair", "symmetric", 3), ("mixture", "symmetric", 3), ("make exact", "symmetric", 3)]
CASES += [
    (name, "sparse", 2) for name in ("make uniform", "make neural", "make exact", "make auto", "exact", "balanced")
]
CASES += [("make exact", "sparse", 3), ("block asymmetric", "sparse", 3), ("make balanced", "sparse", 3)]
CASES += [("balanced", "symmetric", 3)]
CASES += [("joint", "symmetric", 3), ("joint", "sparse", 3), ("make neural joint", "sparse", 2)]
LABEL_NAMES = ["label", "draw", "label_block encoder", "label_block floor 0 turn", "exact_label", "exact_label turn"]
CASES += [(name, "charges of four", 2) for name in LABEL_NAMES]
CASES += [(name, "one attracts", 2) for name in ("label", "label_block asymmetric", "exact_label")]
CASES += [(f"make {kind}", "charges", 2) for kind in ("uniform", "neural", "exact", "auto")]
CASES += [("make auto", "charges of four", 2), ("make auto", "directed", 3), ("make auto", "sender decides", 2)]
CASES += [("make auto", "three labels", 2)]
CASES.remove(("edge", "symmetric", 2))  # nothing but rejections; in the mixture it is tested


@pytest.fixture(params=CASES, ids=lambda case: " ".join(map(str, case)))
def any_case(request):
    return lambda temperature=1.0: build(*request.param, temperature)


def is_invariant(posterior, matrix):
    """Whether target @ P == target, to rounding."""
    return np.abs(posterior @ matrix - posterior).max() < 1e-10


# --- the matrices ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_detailed_balance_and_invariance(any_case, temperature):
    case = any_case(temperature)
    posterior = case.problem.posterior(temperature)
    assert posterior.max() < 0.6
    for step in range(case.problem.num_entities):
        for matrix in [*case.matrices(step), case.mixture(step)]:
            assert matrix.min() >= 0
            np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
            flow = posterior[:, None] * matrix
            np.testing.assert_allclose(flow, flow.T, atol=1e-10)
            assert is_invariant(posterior, matrix)


def test_turns_compose_to_a_sweep():
    """One receiver after the other: each leaves the posterior alone, so the sweep does, though it is not reversible."""
    names = ("exact turn", "block floor 0 turn", "joint floor 0 turn")
    for name, prior in itertools.product(names, ("independent", "symmetric")):
        case = build(name, prior, 2, 1.0)
        sweep = np.linalg.multi_dot([case.matrices(step)[0] for step in range(3)])
        posterior = case.problem.posterior()
        assert is_invariant(posterior, sweep)
        flow = posterior[:, None] * sweep
        if name == "exact turn" and prior == "independent":
            # receivers are independent here: one sweep of exact blocks forgets where it started
            np.testing.assert_allclose(sweep, np.tile(posterior, (len(sweep), 1)), atol=1e-10)
        if prior == "symmetric":  # the order of receivers matters
            assert np.abs(flow - flow.T).max() > 1e-6


def test_exact_blocks_are_always_accepted():
    for name, prior in itertools.product(("exact", "exact turn"), ("independent", "symmetric")):
        case = build(name, prior, 2, 2.5)
        for proposed in case.components[0].choices:
            np.testing.assert_allclose(case.problem.metropolis(proposed, 2.5), proposed, atol=1e-12)


# --- what the library proposes, and what it says about it ------------------------------------------------------------
def propose(case, start, step, num, seed=0):
    """``num`` moves from each structure number in ``start``: numbers from and to, log_forward, log_reverse, kinds."""
    structures = torch.tensor(case.problem.structures)
    before = structures[start].repeat_interleave(num, 0)[:, None]  # [C, 1, E]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(before), 1, case.proposal.num_uniforms, generator=generator, dtype=torch.double)
    move = case.proposal.propose({"edge_type": before}, uniform, step, case.temperature)
    assert move.latents["edge_type"].dtype == torch.long
    after = [case.problem.number.get(tuple(z), -1) for z in move.latents["edge_type"][:, 0].tolist()]
    start = torch.tensor(start).repeat_interleave(num).numpy()
    return start, np.array(after), move.log_forward[:, 0].numpy(), move.log_reverse[:, 0].numpy(), move.kind


def component_at(case, step):
    return case.proposal.component(step) if isinstance(case.proposal, Mixture) else 0


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_reported_probabilities(any_case, temperature):
    """log_forward and log_reverse are those of one choice that can make the change; of uniform moves the ratio is 1."""
    case = any_case(temperature)
    every = list(range(len(case.problem.structures)))
    for step in range(8):
        number = component_at(case, step)
        before, after, forward, reverse, kind = propose(case, every, step, 20, seed=step)
        assert kind == number
        assert case.proposal.move_names[kind] in (
            *("uniform_edge", "uniform_pair", "receiver_block", "exact_receiver", "balanced_edge"),
            *("joint_block", "learned_block", "edge_round"),
            *("uniform_label", "prior_draw", "label_block", "exact_label"),
        )
        if case.proposal.move_names[kind] == "uniform_edge" and case.problem.tied:
            assert (after == -1).all()  # off the support
            continue
        assert (after >= 0).all()
        fits = np.zeros(len(before), dtype=bool)
        for proposed in case.components[number].at(step):
            with np.errstate(divide="ignore"):
                there, back = np.log(proposed[before, after]), np.log(proposed[after, before])
            with np.errstate(invalid="ignore"):
                if case.proposal.move_names[kind].startswith(("uniform", "label", "exact_label")):
                    fits |= np.abs((there - back) - (forward - reverse)) < 1e-9
                else:
                    fits |= (np.abs(there - forward) < 1e-9) & (np.abs(back - reverse) < 1e-9)
        assert fits.all()


def test_ratios_are_antisymmetric(any_case):
    """The way back reports the opposite log ratio. Turns fix the choice, so that it is one and the same."""
    case = any_case(2.5)
    every = list(range(len(case.problem.structures)))
    num_both = 0
    for step in range(8):
        number = component_at(case, step)
        if len(case.components[number].at(step)) > 1 and case.problem.tied:
            continue  # several receivers make the same change, each with its own ratio
        before, after, forward, reverse, _ = propose(case, every, step, 40, seed=step)
        ratio = {(a, b): r for a, b, r in zip(before, after, reverse - forward, strict=True)}
        both = [(a, b) for a, b in ratio if a != b and (b, a) in ratio]
        num_both += len(both)
        for a, b in both:
            assert ratio[a, b] == pytest.approx(-ratio[b, a], abs=1e-9)
    assert num_both > 50 or case.problem.tied or case.problem.label_table


@pytest.mark.statistical
def test_proposals_are_as_frequent_as_derived(any_case):
    """Counts of 8,000 moves from each of three structures, within five standard errors and one count."""
    case = any_case(2.5)
    num, num_all = 8_000, len(case.problem.structures)
    for step in range(4):
        number = component_at(case, step)
        if case.proposal.move_names[number] == "uniform_edge" and case.problem.tied:
            continue
        expected = np.mean(case.components[number].at(step), axis=0)
        for start in (0, num_all // 3, num_all - 1):
            _, after, *_ = propose(case, [start], step, num, seed=10 * step + start)
            p = expected[start]
            assert p.sum() == pytest.approx(1)
            counts = np.bincount(after, minlength=num_all)
            assert (np.abs(counts - num * p) <= 5 * np.sqrt(num * p * (1 - p)) + 1).all()


@pytest.mark.statistical
def test_components_of_a_mixture_are_as_frequent_as_their_weights(any_case):
    case = any_case()
    if len(case.weights) > 1 and case.exact_weights:
        counts = np.bincount([case.proposal.component(step) for step in range(4000)], minlength=len(case.components))
        assert stats.chisquare(counts, 4000 * np.array(case.weights) / sum(case.weights)).pvalue > 1e-3


# --- the real kernel -------------------------------------------------------------------------------------------------
def run(case, start, num_steps, num_chains, seed=0, acceptance="metropolis"):
    """Structure numbers of independent chains after ``num_steps`` steps, and the infos."""
    problem = case.problem
    structures = torch.tensor(problem.structures)[torch.as_tensor(start).expand(num_chains)][:, None]
    stream = Stream(seed, keys(["a scene"]), num_chains)
    state = metropolis.init({"edge_type": structures}, problem.target)
    infos = []
    for number in range(num_steps):
        state, info = metropolis.step(
            state,
            stream,
            number,
            proposal=case.proposal,
            target=problem.target,
            temperature=case.temperature,
            acceptance=acceptance,
        )
        infos.append(info)
    final = state.latents["edge_type"][:, 0]
    torch.testing.assert_close(state.score.log_joint, problem.target(state.latents).log_joint)
    return np.array([problem.number[tuple(z)] for z in final.tolist()]), infos


def frequencies_agree(counts, probability):
    num = counts.sum()
    return bool((np.abs(counts - num * probability) <= 5 * np.sqrt(num * probability * (1 - probability)) + 1).all())


@pytest.mark.statistical
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_few_steps_of_the_kernel_are_the_matrices(any_case, temperature):
    """Distribution of many chains after four steps from one corner, against the product of the matrices."""
    case = any_case(temperature)
    num_all = len(case.problem.structures)
    expected = np.eye(num_all)[num_all - 1]
    for step in range(4):
        expected = expected @ case.matrices(step)[component_at(case, step)]
    final, _ = run(case, num_all - 1, 4, 10_000 if num_all > 8 else 3_000)
    assert frequencies_agree(np.bincount(final, minlength=num_all), expected)


def marginals_agree(case, num_chains=1500, num_steps=250, acceptance="metropolis"):
    """Edge marginals of chains, long after they left a corner, within four standard errors of enumeration."""
    problem = case.problem
    posterior = problem.posterior(case.temperature)
    final, infos = run(case, len(problem.structures) - 1, num_steps, num_chains, acceptance=acceptance)
    assert any(info.accepted.any() for info in infos)
    drawn = np.array(problem.structures)[final]
    every = np.array(problem.structures)
    for e, k in itertools.product(range(len(problem.pairs)), range(problem.num_types)):
        p = posterior[every[:, e] == k].sum()
        if abs((drawn[:, e] == k).mean() - p) > 4 * np.sqrt(p * (1 - p) / num_chains):
            return False
    return True


@pytest.mark.statistical
def test_long_run_marginals(any_case):
    case = any_case()
    # Many steps: by the matrix (turns: sweeps) nothing is left of the start.
    num_entities = case.problem.num_entities
    sweep = np.linalg.multi_dot([case.mixture(step) for step in range(num_entities)])

    def left(num_steps):
        return np.abs(np.linalg.matrix_power(sweep, num_steps // num_entities)[-1] - case.problem.posterior()).max()

    num_steps = next(number for number in (60, 120, 250) if left(number) < 2e-3 / 4)
    assert marginals_agree(case, num_steps=num_steps)


@pytest.mark.statistical
def test_counts_of_proposed_and_accepted(any_case):
    """Both outcomes occur, and a move that changes nothing is neither proposed nor accepted."""
    case = any_case()
    _, infos = run(case, 0, 60 if "prior_draw" not in case.proposal.move_names else 120, 200)
    proposed = torch.stack([info.proposed for info in infos])
    accepted = torch.stack([info.accepted for info in infos])
    worse = torch.stack([info.worse for info in infos])
    assert not (accepted & ~proposed).any()
    assert not (worse & ~proposed).any()
    assert accepted.any()
    only_exact = set(case.proposal.move_names) in ({"exact_receiver"}, {"exact_label"}, {"edge_round"})
    assert bool((proposed & ~accepted).any()) is not only_exact
    assert (accepted & worse).any()
    kinds = {case.proposal.move_names[info.kind] for info in infos}
    assert kinds == set(case.proposal.move_names)
    some_stay = kinds - {"uniform_edge", "uniform_pair", "uniform_label", "balanced_edge"}
    if not case.problem.label_table or some_stay:  # another label may make the same structure
        assert bool((~proposed).any()) is bool(some_stay)


# --- negative control ------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize("prior", ["independent", "symmetric"])
def test_without_the_proposals_ratio_both_tests_fail(prior):
    """The paper's search rule at temperature 1 is no sampler, and these tests can tell."""
    case = build("block asymmetric", prior, 2, 1.0)
    posterior = case.problem.posterior()
    wrong = case.matrices(acceptance="annealing")[0]
    np.testing.assert_allclose(wrong.sum(1), 1, atol=1e-12)
    assert not is_invariant(posterior, wrong)
    assert np.abs(posterior @ wrong - posterior).max() > 1e-3
    assert not marginals_agree(case, acceptance="annealing")


@pytest.mark.statistical
def test_without_the_ratio_a_symmetric_proposal_is_right():
    case = build("pair", "independent", 2, 1.0)
    assert is_invariant(case.problem.posterior(), case.matrices(acceptance="annealing")[0])
    assert marginals_agree(case, acceptance="annealing")
