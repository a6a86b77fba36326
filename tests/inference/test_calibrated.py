"""Whole posteriors against the program that makes the data: frozen modules, forward densities, controls that must fail.

Simulation-based calibration (Talts et al. 2018): a structure comes from the prior and its trajectory from the program;
then the true value of any quantity is uniformly ranked among its posterior draws. A sampler that returns the prior
passes for what depends on the structure alone, so one quantity depends on the data: the log joint (Modrák et al. 2023).
Geweke's joint test (2004): a trajectory given the structure and steps of a kernel, in turn, keep their joint
distribution. Scenes are the replications of both; each has its own name and with it its own random numbers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import stats

from pyro_nri.inference import metropolis
from pyro_nri.inference.blocks import ReceiverBlock
from pyro_nri.inference.chains import make_chains, surrogate_of
from pyro_nri.inference.encoder import log_q
from pyro_nri.inference.metropolis import Move
from pyro_nri.inference.proposals import AbstractProposal, Mixture, UniformEdge
from pyro_nri.inference.run import infer
from pyro_nri.inference.streams import Stream, keys
from pyro_nri.inference.target import StructureTarget
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes

#: Right results are less surprising than this, wrong ones more.
LEAST_P, WRONG_P = 1e-4, 1e-6
LARGEST_Z, WRONG_Z = 4.5, 6.0


def random_model(*, scale, num_edge_types=2, **options):
    """Random modules; the scale of the noise decides how certain posteriors are. Label 1 attracts."""
    options = {"state_names": ("x", "vx"), "noise": "normal"} | options
    model = build_model(ModelSpec(num_edge_types, **options), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        model.prior.type_logits.copy_(torch.tensor([0.4, -0.3, 0.1])[:num_edge_types])
        model.noise.change_scale.fill_(scale)
        if model.noise.uses_context:
            model.noise.context_weight.fill_(0.1)
    if model.prior.is_open:
        model.prior.set_table(torch.tensor([[0, 0], [0, 1]]))
    return model


# --- data from the program -------------------------------------------------------------------------------------------
def draw_path(model, scenes, structure):
    """Frames after frame 0 given structures ``[B, E]``."""
    with torch.no_grad():
        return model.trajectory(scenes, structure).sample()


def draw_scenes(model, num_scenes, num_entities, *, repeats=1, num_frames=4, seed=0):
    """Scenes of the Pyro program, truth as ``edge_type``. Frame 0 is a covariate; each occurs ``repeats`` times."""
    torch.manual_seed(seed)
    start = torch.randn(num_scenes, 1, num_entities, len(model.state_names), dtype=torch.double)
    scenes = Scenes.from_arrays(start.repeat(repeats, num_frames, 1, 1), state_names=model.state_names)
    nodes = poutine.trace(model).get_trace(scenes, condition=False).nodes
    structure, path = nodes["edge_type"]["value"], nodes["trajectory"]["value"]
    return with_path(replace(scenes, edge_type=structure), path)


def with_path(scenes, path):
    return replace(scenes, trajectory=torch.cat([scenes.trajectory[:, :1], path], 1))


# --- the two checks --------------------------------------------------------------------------------------------------
def rank_p_values(model, scenes, draws, log_joint):
    """P-values of uniform ranks of the truth among draws ``[S, G, E]`` and their log joint ``[S, G]``, by quantity.

    Ties are broken at random. Of each scene one edge counts: edges of one scene are not independent.
    """
    truth, scene, rng = scenes.edge_type.numpy(), np.arange(scenes.num_scenes), np.random.default_rng(0)
    edge = scene % scenes.num_edges
    with torch.no_grad():
        joint = model.log_joint(scenes, scenes.edge_type[None])[0].numpy()
    quantities = {
        "number of edges": ((truth == 1).sum(-1), (draws == 1).sum(-1)),
        "edge": (truth[scene, edge] == 1, draws[:, scene, edge] == 1),
        "log joint": (joint.round(6), log_joint.round(6)),  # of equal structures, whatever route computed it
    }
    found = {}
    for name, (true, drawn) in quantities.items():
        rank = (drawn < true).sum(0) + rng.integers((drawn == true).sum(0) + 1)
        found[name] = float(stats.chisquare(np.bincount(rank, minlength=len(draws) + 1)).pvalue)
    return found


def geweke_z_scores(model, kernel, num_scenes=250, num_rounds=25, num_steps=8, num_alone=10):
    """Moments of successive-conditional simulation less those of fresh draws, in standard errors over scenes.

    The chains start from a draw of the joint distribution, so that every round has it if the kernel is right.
    """
    every = draw_scenes(model, num_scenes, 3, repeats=1 + num_alone, num_frames=3)
    fresh = moments(model, every, every.edge_type, right_target(model, every))
    scenes = every[:num_scenes]
    structure, rounds = scenes.edge_type, []
    for number in range(0, num_rounds * num_steps, num_steps):
        scenes = with_path(scenes, draw_path(model, scenes, structure))
        target = right_target(model, scenes)
        structure = kernel(model, scenes, target, structure[None], number, num_steps)[0]
        rounds.append(moments(model, scenes, structure, target))
    found = {}
    for name, value in fresh.items():
        alone = value.reshape(1 + num_alone, num_scenes)[1:].mean(0)
        difference = torch.stack([each[name] for each in rounds]).mean(0) - alone
        found[name] = float(difference.mean() / difference.std() * num_scenes**0.5)
    return found


#: Both edges of entities 0 and 1 among three.
PAIR = [0, 2]


def moments(model, scenes, structure, target):
    score = target({"edge_type": structure[None]})
    other = structure.clone()
    other[:, PAIR] = model.num_edge_types - 1 - other[:, PAIR]
    log_ratio = score.log_likelihood[0] - target.likelihood.log_likelihood(other[None])[0]
    return {
        "number of edges": (structure == 1).double().sum(-1),
        "log prior": score.log_prior[0],
        "log likelihood": score.log_likelihood[0],
        "fit of a pair": log_ratio.sigmoid(),
        "distance": (scenes.trajectory[:, -1] - scenes.trajectory[:, 0]).abs().mean((-2, -1)),
    }


def right_target(model, scenes):
    with torch.no_grad():
        return StructureTarget(model.likelihood(scenes, kind="forward"), model.structure_prior(scenes))


# --- kernels, right and wrong ----------------------------------------------------------------------------------------
class WithoutRatio(AbstractProposal):
    """Another proposal that claims to be symmetric."""

    def __init__(self, proposal):
        self.proposal = proposal
        self.num_uniforms, self.move_names = proposal.num_uniforms, proposal.move_names

    def propose(self, latents, uniform, step, temperature):
        move = self.proposal.propose(latents, uniform, step, temperature)
        zero = torch.zeros_like(move.log_forward)
        return move._replace(log_forward=zero, log_reverse=zero)


class Copy(AbstractProposal):
    """One of the last 50 structures of its own chain: it adapts on its own history."""

    num_uniforms = 1
    move_names = ("copy",)

    def __init__(self):
        self.past = []

    def propose(self, latents, uniform, step, temperature):
        self.past = [*self.past, latents["edge_type"]][-50:]
        which = (uniform[..., 0] * len(self.past)).long()[None, ..., None]
        zero = torch.zeros_like(uniform[..., 0])
        return Move({"edge_type": torch.stack(self.past).take_along_dim(which, 0)[0]}, zero, zero, 0)


def block(prior):
    """A receiver's incoming edges from random probabilities, fixed and far from symmetric."""
    probability = np.random.default_rng(5).dirichlet([0.5] * prior.num_edge_types, prior.event_shape[0])
    return ReceiverBlock(prior, torch.as_tensor(np.log(probability)).expand(*prior.batch_shape, -1, -1), floor=0.2)


def copying():
    copy = Copy()
    return lambda prior: Mixture([UniformEdge(prior), copy], [1.0, 3.0])


@dataclass
class Blocks:
    """Steps with blocks, and what may be wrong with them."""

    moves: Callable = block
    acceptance: str = "metropolis"
    temperature: float = 1.0
    num_skipped: int = 0

    def __call__(self, model, scenes, target, structure, first, num_steps):
        """Structures ``[C, G, E]`` after ``num_steps`` steps, the first of which has the number ``first``."""
        if self.num_skipped:
            target = right_target(model, scenes.frames(0, scenes.num_frames - self.num_skipped))
        stream, proposal = Stream(1, keys(scenes.group_names), len(structure)), self.moves(target.prior)
        state = metropolis.init({"edge_type": structure}, target)
        how = {"acceptance": self.acceptance, "temperature": self.temperature}
        for number in range(first, first + num_steps):
            state, _ = metropolis.step(state, stream, number, proposal=proposal, target=target, **how)
        return state.latents["edge_type"]


def all_moves(encoder):
    """Steps with every kind of move that ``infer`` would make, with an encoder that sees the data."""

    def steps(model, scenes, target, structure, first, num_steps):
        chains = make_chains(
            target.likelihood,
            target.prior,
            group_names=scenes.group_names,
            proposal="auto",
            log_q=None if encoder is None else log_q(encoder, scenes),
            surrogate=surrogate_of(model, target.likelihood, scenes, "auto"),
            num_chains=len(structure),
            num_warmup=0,
            start_temperature=1.0,
            seed=1,
            structure=structure,
            number=first,
        )
        for _ in range(num_steps):
            chains.step()
        return chains.structure

    return steps


WRONG = {
    "block without its ratio": lambda: Blocks(lambda prior: WithoutRatio(block(prior))),
    "annealing": lambda: Blocks(acceptance="annealing"),
    "temperature 2 left on": lambda: Blocks(temperature=2.0),
    "copies of its own past": lambda: Blocks(copying()),
    "a frame skipped": lambda: Blocks(num_skipped=1),
}


def ranks_of_steps(kernel, num_scenes=800, num_chains=5, thin=40):
    """:func:`rank_p_values` of 15 draws of a kernel; ``infer`` does not offer the wrong ones."""
    model = random_model(scale=0.2)
    scenes = draw_scenes(model, num_scenes, 3)
    target = right_target(model, scenes)
    structure = target.prior.sample((num_chains,))
    draws, joint = [], []
    for first in range(0, 4 * thin, thin):
        structure = kernel(model, scenes, target, structure, first, thin)
        draws.append(structure)
        joint.append(target({"edge_type": structure}).log_joint)
    return rank_p_values(model, scenes, torch.cat(draws[1:]).numpy(), torch.cat(joint[1:]).numpy())


# --- simulation-based calibration ------------------------------------------------------------------------------------
PAIR_FORCES = {"dynamics": "pair-forces", "state_names": ("x", "y", "vx", "vy"), "boundary": 3.0, "num_substeps": 3}
#: Model, number of entities, and how ``infer`` goes about it: 15 draws, so 16 ranks. One kind of move at a time, with a
#: share of uniform ones.
CASES = {
    "independent, exact blocks": ({"scale": 0.2}, 3, {"proposal": "exact"}),
    "independent, learned blocks": ({"scale": 0.2, "noise": "student_t"}, 3, {"proposal": "neural"}),
    "independent, balanced edges": ({"scale": 0.2}, 3, {"proposal": "balanced", "cache": "messages"}),
    "symmetric, learned blocks": ({"scale": 0.25, "prior": "symmetric"}, 4, {"proposal": "neural"}),
    "symmetric, exact blocks": ({"scale": 0.25, "prior": "symmetric", "noise": "student_t"}, 4, {"proposal": "exact"}),
    "sparse, balanced edges": ({"scale": 0.35, "prior": "sparse"}, 4, {"proposal": "balanced"}),
    "sparse, three types": ({"scale": 0.4, "prior": "sparse", "num_edge_types": 3}, 4, {"proposal": "exact"}),
    "charges, learned labels": ({"scale": 0.4, "prior": "charges"}, 4, {"proposal": "neural"}),
    "charges, exact labels": ({"scale": 0.4, "prior": "charges"}, 4, {"proposal": "exact"}),
    "charges, tempering": (
        {"scale": 0.4, "prior": "charges", "noise": "student_t"},
        4,
        {"proposal": "uniform", "num_replicas": 3},
    ),
    "two frames ahead, delayed moves": ({"scale": 0.2, "horizon": 2}, 3, {"proposal": "delayed"}),
    "pair forces, delayed moves": (
        {"scale": 0.2, "prior": "symmetric", "noise": "geometric"} | PAIR_FORCES,
        3,
        {"proposal": "delayed", "likelihood": "forward"},
    ),
}


def infer_ranks(model, scenes, **options):
    options = {"method": "mcmc", "num_chains": 5, "num_draws": 3, "num_warmup": 20, "thin": 5, "seed": 1} | options
    draws = infer(model, scenes, **options)
    structure = draws.edge_type.reshape(-1, scenes.num_scenes, scenes.num_edges)
    probability = np.stack([(structure == k).mean(0) for k in range(model.num_edge_types)], -1)
    entropy = stats.entropy(probability, axis=-1).mean() / np.log(model.num_edge_types)  # share of the largest
    assert 0.1 < entropy < 0.9
    return rank_p_values(model, scenes, structure, draws.log_joint.reshape(-1, scenes.num_scenes))


@pytest.mark.statistical
@pytest.mark.parametrize("name", CASES)
def test_truths_are_uniformly_ranked(make_encoder, name):
    options, num_entities, how = CASES[name]
    model = random_model(**options)
    if how["proposal"] == "neural":
        how = how | {"encoder": make_encoder(), "num_warmup": 60, "thin": 15}
    found = infer_ranks(model, draw_scenes(model, 400, num_entities), **how)
    assert min(found.values()) > LEAST_P, found


@pytest.mark.statistical
def test_ranks_of_plain_steps_are_uniform():
    """The check that wrong kernels fail below."""
    found = ranks_of_steps(Blocks())
    assert min(found.values()) > LEAST_P, found


@pytest.mark.statistical
@pytest.mark.parametrize("name", WRONG)
def test_ranks_of_wrong_kernels_are_not_uniform(name):
    found = ranks_of_steps(WRONG[name]())
    assert found["log joint"] < WRONG_P, found
    if name == "a frame skipped":  # the right posterior, given less
        assert found["number of edges"] > LEAST_P


@pytest.mark.statistical
def test_only_the_log_joint_finds_a_sampler_that_returns_the_prior():
    model = random_model(scale=0.2)
    scenes = draw_scenes(model, 400, 3)
    target = right_target(model, scenes)
    structure = target.prior.sample((15,))
    found = rank_p_values(model, scenes, structure.numpy(), target({"edge_type": structure}).log_joint.numpy())
    assert min(found["number of edges"], found["edge"]) > LEAST_P
    assert found["log joint"] < WRONG_P


@pytest.mark.statistical
def test_a_wrong_horizon_is_found():
    """Frames drawn one by one, each noise fed back, are not what a horizon of two scores."""
    scenes = draw_scenes(random_model(scale=0.2), 300, 3)
    found = infer_ranks(random_model(scale=0.2, horizon=2), scenes, method="exact")
    assert found["log joint"] < WRONG_P


# --- Geweke's joint test ---------------------------------------------------------------------------------------------
JOINT_CASES = {
    "independent": {"scale": 0.2},
    "symmetric": {"scale": 0.25, "prior": "symmetric", "noise": "student_t"},
    "sparse": {"scale": 0.25, "prior": "sparse"},
    "charges": {"scale": 0.4, "prior": "charges", "noise": "student_t"},
    "two frames ahead": {"scale": 0.2, "horizon": 2},
    "pair forces": {"scale": 0.2, "prior": "symmetric", "noise": "geometric"} | PAIR_FORCES,
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", JOINT_CASES)
def test_the_joint_distribution_is_kept(make_encoder, name):
    model = random_model(**JOINT_CASES[name])
    encoder = None if name == "pair forces" else make_encoder()
    found = geweke_z_scores(model, all_moves(encoder), num_steps=2)
    assert max(map(abs, found.values())) < LARGEST_Z, found


@pytest.mark.statistical
def test_plain_steps_keep_the_joint_distribution():
    found = geweke_z_scores(random_model(scale=0.2), Blocks())
    assert max(map(abs, found.values())) < LARGEST_Z, found


@pytest.mark.statistical
@pytest.mark.parametrize("name", WRONG)
def test_wrong_kernels_change_the_joint_distribution(name):
    found = geweke_z_scores(random_model(scale=0.2), WRONG[name]())
    assert max(map(abs, found.values())) > WRONG_Z, found


# --- frozen ----------------------------------------------------------------------------------------------------------
def test_weights_do_not_change_during_draws(make_encoder):
    model, encoder = random_model(scale=0.2), make_encoder()
    scenes = draw_scenes(model, 20, 3)

    def weights():
        return {name: value.clone() for part in (model, encoder) for name, value in part.state_dict().items()}

    def are_same(one, two):
        return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    before, during = weights(), []
    draws = infer(
        model,
        scenes,
        method="mcmc",
        encoder=encoder,
        num_draws=60,
        num_warmup=20,
        segment_draws=20,
        on_segment=lambda _: during.append(weights()),
        seed=0,
    )
    learned = draws.move_kind == draws.move_names.index("receiver_block")
    assert draws.accepted[:, learned].any()
    assert len(during) == 4
    assert all(are_same(each, before) for each in [*during, weights()])
    with torch.no_grad():
        encoder.output.weights[-1][0, 0, 0] += 1e-12
    assert not are_same(weights(), before)
