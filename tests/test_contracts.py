"""What every combination of proposal, prior, dynamics and noise promises, and which ones are refused.

A combination is a name of each registry, with the likelihoods that the dynamics have: message passing one frame ahead
(cached) and two frames ahead (evaluated anew for each structure), pair forces by impulses (cached) and by the forward
density (evaluated anew). What it promises:

1. Each move leads to a structure of the prior, and has a way back with the opposite log ratio, which is that of the
   frequencies.
2. A scene's draws are those of its name and the seed: bit for bit the same in any shard, in any order, here or behind
   an executor; another seed gives others.
3. Chains do not know of one another: more of them change nothing, and no two are alike.
4. Moves are accepted and rejected, but for Gibbs blocks, which are always accepted.
5. ``StructureKernel`` under plain ``pyro.infer.MCMC`` makes the draws of ``infer``, and forgets its past at ``setup``.
6. Nothing is learned: modules, noise, prior, encoder and the global random numbers are left as they were.
7. Every draw is a structure of the prior: padding has type 0, ties hold, the log prior is finite.
8. The log joint of every draw is the one that the model, asked afresh and by another route, gives to its structure.

What one run can show is asked of every combination, with one noise for each combination of the others where likelihoods
are evaluated anew. What takes several runs (1, 2, 3, 5) is asked with one noise for each combination of the others, by
turns, so that every noise meets every other part. None of it says that draws have the right distribution: that is for
``inference/test_transition.py`` (matrices), ``test_run.py`` (enumeration) and ``test_calibrated.py`` (ranks).
"""

import functools
import itertools
import pickle
from collections import defaultdict
from concurrent.futures import Executor, Future
from typing import NamedTuple

import numpy as np
import pytest
import torch
from pyro.infer import MCMC

from pyro_nri.inference.chains import surrogate_of
from pyro_nri.inference.delayed import Delayed
from pyro_nri.inference.encoder import Encoder, log_q
from pyro_nri.inference.kernel import StructureKernel
from pyro_nri.inference.particle_gibbs import ParticleGibbs
from pyro_nri.inference.propagated import PropagatedBlocks
from pyro_nri.inference.proposals import PROPOSALS, make_proposal
from pyro_nri.inference.run import infer
from pyro_nri.model.noise import NOISES
from pyro_nri.model.priors import PRIORS
from pyro_nri.model.receivers import AbstractLikelihood
from pyro_nri.model.spec import DYNAMICS, ModelSpec, build_model
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

#: Dynamics with a likelihood: choices of the model, and whether the likelihood is cached.
LIKELIHOODS = {
    "one frame ahead": ({"dynamics": "message-passing"}, True),
    "two frames ahead": ({"dynamics": "message-passing", "horizon": 2}, False),
    "impulse": ({"dynamics": "pair-forces", "boundary": 3.0, "num_substeps": 2}, True),
    "forward": ({"dynamics": "pair-forces", "boundary": 3.0, "num_substeps": 2}, False),
}
#: Warm-up, and draws of a run alone and of runs that are compared with it.
NUM_WARMUP, NUM_DRAWS, NUM_COMPARED = 1, 6, 2
NUM_CHAINS = 3
#: With this seed short runs make most kinds of moves that their proposal has.
SEED = 274


class Case(NamedTuple):
    """Names of what is combined."""

    proposal: str
    prior: str
    likelihood: str
    noise: str

    def __str__(self):
        return ", ".join(self)


def refusal(proposal, prior, likelihood):
    """The sentence that refuses a combination, None where it is valid."""
    is_cached = LIKELIHOODS[likelihood][1]
    if proposal in ("balanced", "rounds") and prior == "charges":
        return f"moves '{proposal}' need a likelihood and a prior that is not over labels"
    if proposal == "exact" and not is_cached:
        return "exact blocks need a receiver table, and this likelihood has none"
    if proposal == "rounds" and not is_cached:
        return "moves 'rounds' need a likelihood that factorises over receivers, and this one does not"
    if proposal == "delayed" and is_cached:
        return "delayed moves need a likelihood that does not factorise, and a surrogate for it"
    return None


def by_turns(proposal, prior, likelihood):
    """One noise for each combination of the others."""
    place = PROPOSALS.index(proposal) + PRIORS.index(prior) + list(LIKELIHOODS).index(likelihood)
    return Case(proposal, prior, likelihood, list(NOISES)[place % len(NOISES)])


def is_made(proposal, prior, likelihood):
    """Message passing over two frames is there for delayed moves; other moves see no difference to "forward"."""
    return not refusal(proposal, prior, likelihood) and (
        likelihood != "two frames ahead" or proposal in ("auto", "delayed")
    )


COMBINATIONS = list(itertools.product(PROPOSALS, PRIORS, LIKELIHOODS))
REFUSED = [by_turns(*each) for each in COMBINATIONS if refusal(*each)]
#: Valid combinations with one noise, and with all of them where likelihoods are cheap.
TURNS = [by_turns(*each) for each in COMBINATIONS if is_made(*each)]
CASES = [
    Case(*each[:3], noise) for each in TURNS for noise in NOISES if LIKELIHOODS[each.likelihood][1] or noise == each[3]
]
#: A step of these moves costs dozens of rollouts: runs are short, and several are made under one prior only.
SLOW = [each for each in TURNS if each.proposal == "balanced" and not LIKELIHOODS[each.likelihood][1]]
SEVERAL = [each for each in TURNS if each not in SLOW or each.prior == "independent"]


# --- models, scenes, runs --------------------------------------------------------------------------------------------
@functools.cache
def make_scenes():
    """Charged particles: two recordings of one structure, and a structure with an entity less."""
    made = simulate("charged", 4, num_entities=4, num_frames=5, box=3.0, seed=0)
    entity_mask = torch.ones(4, 4, dtype=torch.bool)
    entity_mask[1, -1] = False
    return Scenes.from_arrays(
        made.trajectory,
        time_step=made.time_step,
        entity_mask=entity_mask,
        scene_names=["Monday", "small", "Tuesday", "other"],
        structure_group=["shoal", "small", "shoal", "other"],
    )


@functools.cache
def make_model(prior, likelihood, noise):
    """Random modules in float64: whole runs in any order agree to the last bit of a draw."""
    options, _ = LIKELIHOODS[likelihood]
    spec = ModelSpec(3 if prior == "sparse" else 2, prior=prior, noise=noise, **options)
    model = build_model(spec, torch.Generator().manual_seed(0)).double()
    model.fit_scaling(make_scenes())
    with torch.no_grad():
        if prior in ("independent", "symmetric"):
            model.prior.type_logits.copy_(torch.tensor([0.4, -0.3]))
        for each in (model.noise, model.impulse_noise):
            if each is not None:
                each.log_relative_scale.fill_(0.3)
            if each is not None and each.uses_context:
                each.context_weight.fill_(0.1)
    if model.prior.is_open:
        model.prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    return model


@functools.cache
def make_encoder(num_edge_types):
    """Random weights, its output far from uniform."""
    encoder = Encoder(num_edge_types, 4, width=16, generator=torch.Generator().manual_seed(0)).double()
    encoder.fit_scaling(make_scenes())
    with torch.no_grad():
        encoder.output.weights[-1].mul_(4)
    return encoder


def weights(*parts):
    return {(n, name): value.clone() for n, part in enumerate(parts) for name, value in part.state_dict().items()}


def cache_of(proposal, likelihood):
    """Tables where moves need them; elsewhere messages, of which more kinds of moves can be had."""
    if not LIKELIHOODS[likelihood][1]:
        return "none"
    is_table = proposal in ("exact", "neural") or (proposal, likelihood) == ("auto", "one frame ahead")
    return "table" if is_table else "messages"


class Runs:
    """The runs of a combination, each made once."""

    def __init__(self, case):
        self.case = case
        self.model, self.scenes = make_model(*case[1:]), make_scenes()
        self.encoder = make_encoder(self.model.num_edge_types)
        self.weights, self.random = weights(self.model, self.encoder), torch.get_rng_state()
        cache = cache_of(case.proposal, case.likelihood)
        self.options = {"proposal": case.proposal, "cache": cache, "encoder": self.encoder}

    @functools.cached_property
    def whole(self):
        return self.infer(num_draws=NUM_DRAWS // 2 if self.case in SLOW else NUM_DRAWS)

    @functools.cached_property
    def few(self):
        """The same with fewer draws of fewer chains."""
        return self.infer(num_chains=2)

    def infer(self, scenes=None, **options):
        options = {"num_draws": NUM_COMPARED, "num_chains": NUM_CHAINS, "seed": SEED} | options
        options = {"method": "mcmc", "num_warmup": NUM_WARMUP, "start_temperature": 4.0} | options
        return infer(self.model, self.scenes if scenes is None else scenes, **self.options, **options)

    @functools.cached_property
    def structures(self):
        """Every structure of the run, warm-up included, long ``[C S, G, E]``."""
        every = np.concatenate([self.whole.warmup.edge_type, self.whole.edge_type], axis=1)
        return torch.as_tensor(every).flatten(0, 1).long()

    @property
    def prior(self):
        with torch.no_grad():
            return self.model.structure_prior(self.scenes)


@functools.cache
def runs_of(case):
    return Runs(case)


@pytest.fixture(scope="module", params=CASES, ids=str)
def runs(request):
    """A valid combination."""
    return runs_of(request.param)


@pytest.fixture(scope="module", params=SEVERAL, ids=str)
def more(request):
    """A valid combination of which several runs are made."""
    return runs_of(request.param)


def assert_same(draws, whole, num_chains=NUM_CHAINS):
    """Draws bit for bit those of some scenes in the first chains of a longer run; densities to rounding."""
    group = [whole.group_names.index(name) for name in draws.group_names]
    assert len(draws.edge_type) == num_chains
    assert draws.move_names == whole.move_names
    for one, two in ((draws, whole), (draws.warmup, whole.warmup)):
        num_draws = one.edge_type.shape[1]
        for name in ("edge_type", "accepted", "proposed"):
            wanted = getattr(two, name)[:num_chains, :num_draws, group]
            np.testing.assert_array_equal(getattr(one, name), wanted, err_msg=name)
        np.testing.assert_array_equal(one.move_kind, two.move_kind[:num_draws])
        np.testing.assert_allclose(one.log_joint, two.log_joint[:num_chains, :num_draws, group], rtol=1e-10, atol=1e-9)


# --- combinations ----------------------------------------------------------------------------------------------------
def test_every_name_meets_every_noise():
    """A part that is registered is combined with the others."""
    assert {options["dynamics"] for options, _ in LIKELIHOODS.values()} == set(DYNAMICS)
    for axis, names in enumerate((PROPOSALS, PRIORS, LIKELIHOODS)):
        assert {(each[axis], each.noise) for each in SEVERAL} == set(itertools.product(names, NOISES))
    assert not set(REFUSED) & set(CASES)


# --- refused ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_does_not_go_together_is_refused_in_a_sentence(case):
    sentence = refusal(*case[:3])
    assert case.proposal in sentence
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        Runs(case).infer()


@pytest.mark.parametrize(("prior", "likelihood"), list(itertools.product(PRIORS, LIKELIHOODS)))
def test_a_learned_proposal_without_an_encoder_is_refused(prior, likelihood):
    runs = Runs(by_turns("neural", prior, likelihood))
    runs.options["encoder"] = None
    with pytest.raises(ValueError, match=r"^the neural proposal needs an encoder, and the model has none$"):
        runs.infer()


def test_unknown_names_are_refused_with_those_that_are_known():
    for name, known in (("dynamics", DYNAMICS), ("prior", PRIORS), ("noise", NOISES)):
        with pytest.raises(ValueError, match=f"^{name} must be one of {', '.join(known)}, found 'best'$"):
            build_model(ModelSpec(2, **{name: "best"}), torch.Generator())
    with pytest.raises(ValueError, match=f"^proposal must be one of {', '.join(PROPOSALS)}, found 'best'$"):
        Runs(Case("best", "independent", "one frame ahead", "normal")).infer()


# --- of one run ------------------------------------------------------------------------------------------------------
def is_gibbs(name, prior):
    """Draws from an exact conditional are always accepted, and what a sweep accepted needs no other decision.

    Rounds draw pairs independently of one another, which a sparse prior couples: there they may be rejected.
    """
    return name in ("exact_receiver", "exact_label", "particle_gibbs") or (name == "edge_round" and prior != "sparse")


def test_moves_are_accepted_and_rejected(runs):
    """No proposal is a Gibbs block alone: all have a share of uniform moves."""
    draws = runs.whole
    rejected = draws.proposed & ~draws.accepted
    assert not (draws.accepted & ~draws.proposed).any()
    assert draws.accepted.any()
    for kind in np.unique(draws.move_kind):
        if is_gibbs(draws.move_names[kind], runs.case.prior):
            assert not rejected[:, draws.move_kind == kind].any()
    assert rejected.any()
    before = np.concatenate([draws.warmup.edge_type[:, -1:], draws.edge_type[:, :-1]], axis=1)
    np.testing.assert_array_equal(draws.accepted, (draws.edge_type != before).any(-1))


def test_every_draw_is_a_structure_of_the_prior(runs):
    structures, prior = runs.structures, runs.prior
    assert structures.min() == 0
    assert structures.max() == runs.model.num_edge_types - 1
    assert not prior.edge_mask.all()
    assert (structures[:, ~prior.edge_mask] == 0).all()
    assert prior.tied is (runs.case.prior != "independent")
    if prior.tied:
        assert torch.equal(structures, structures[..., edges.reverse_edges(prior.num_entities)])
    assert prior.log_prob(structures).isfinite().all()


def test_the_log_joint_of_every_draw_is_the_one_computed_afresh(runs):
    """By the twin of the program; impulses, which are no part of it, by the other of their caches."""
    draws, model, scenes = runs.whole, runs.model, runs.scenes
    with torch.no_grad():
        if runs.case.likelihood == "impulse":
            other = {"table": "messages", "messages": "table"}[runs.options["cache"]]
            fresh = model.likelihood(scenes, kind="impulse", cache=other).log_likelihood(runs.structures)
            fresh = fresh + runs.prior.log_prob(runs.structures)
        else:
            fresh = model.log_joint(scenes, runs.structures)
    reported = np.concatenate([draws.warmup.log_joint, draws.log_joint], axis=1)
    np.testing.assert_allclose(reported, fresh.unflatten(0, reported.shape[:2]), rtol=1e-10, atol=1e-8)
    assert len(np.unique(reported[..., 0].round(6))) > 1


# --- of several runs -------------------------------------------------------------------------------------------------
class Elsewhere(Executor):
    """Runs tasks as another process would: what goes there and back is pickled."""

    def submit(self, function, /, *args, **kwargs):
        future = Future()
        function, args, kwargs = pickle.loads(pickle.dumps((function, args, kwargs)))
        future.set_result(pickle.loads(pickle.dumps(function(*args, **kwargs))))
        return future


def test_a_scene_alone_has_the_same_draws(more):
    """As many shards as scenes; scenes of one structure stay together."""
    draws = more.infer(num_shards=more.scenes.num_scenes, num_chains=2)
    assert draws.group_names == more.whole.group_names
    assert_same(draws, more.whole, num_chains=2)


def test_scenes_in_another_order_behind_an_executor_have_the_same_draws(more):
    turned = more.scenes[list(range(more.scenes.num_scenes))[::-1]]
    draws = more.infer(turned, num_shards=2, executor=Elsewhere())
    assert draws.group_names == turned.group_names != more.whole.group_names
    assert_same(draws, more.whole)


def test_another_seed_gives_other_draws(more):
    draws = more.infer(num_chains=2, num_draws=1, seed=SEED + 1)
    assert not np.array_equal(draws.edge_type, more.few.edge_type[:, :1])
    assert not np.array_equal(draws.warmup.edge_type, more.few.warmup.edge_type)


def test_the_first_chains_are_the_same_whatever_follows(more):
    assert_same(more.few, more.whole, num_chains=2)


def test_no_two_chains_are_alike(more):
    assert len({chain.tobytes() for chain in more.whole.edge_type}) == NUM_CHAINS


def test_plain_mcmc_makes_the_draws_of_infer_and_setup_twice_is_once(more):
    kernel = StructureKernel(more.model, num_chains=2, seed=SEED, start_temperature=4.0, **more.options)
    mcmc = MCMC(kernel, num_samples=NUM_COMPARED, warmup_steps=NUM_WARMUP, disable_progbar=True)
    mcmc.run(more.scenes)
    samples, log_joint = mcmc.get_samples()["edge_type"], kernel.diagnostics()["log_joint"]  # [S, C, G, *]
    assert np.array_equal(samples.swapaxes(0, 1), more.few.edge_type)
    assert np.array_equal(log_joint.swapaxes(0, 1), more.few.log_joint)
    kernel.setup(NUM_WARMUP, more.scenes)
    again = [kernel.sample(kernel.initial_params)["edge_type"] for _ in range(NUM_WARMUP + NUM_COMPARED)]
    assert torch.equal(torch.stack(again[NUM_WARMUP:]), samples)
    assert torch.equal(kernel.diagnostics()["log_joint"], log_joint)


# --- the way back ----------------------------------------------------------------------------------------------------
class Listed(AbstractLikelihood):
    """Another likelihood, evaluated once for every structure of one small scene."""

    is_cached = False

    def __init__(self, likelihood):
        self.num_edge_types, self.edge_mask = likelihood.num_edge_types, likelihood.edge_mask
        exists = self.edge_mask[0]
        self.place = exists * self.num_edge_types ** (exists.long().cumsum(0) - 1).clamp(min=0)
        number = torch.arange(self.num_edge_types ** int(exists.sum()))
        every = number[:, None] // self.place.clamp(min=1) % self.num_edge_types * exists
        self.value = likelihood.log_likelihood(every[:, None])[:, 0]

    def receiver_terms(self, structure, known=None):
        return self.value[(structure * self.place).sum(-1)][..., None]


def moves_of(runs):
    """A combination's proposal for one scene, its structures, and a temperature at which none is certain.

    With independent edges the scene is the one with an entity less: sweeps lead to all 64 of its structures.
    """
    part, name = runs.scenes[1:2] if runs.case.prior == "independent" else runs.scenes[3:], runs.case.proposal
    with torch.no_grad():
        likelihood = runs.model.likelihood(part, cache=runs.options["cache"])
        prior = runs.model.structure_prior(part)
    surrogate = surrogate_of(runs.model, likelihood, part, name)
    every = prior.list_structures()
    every = every[prior.log_prob(every[:, None])[:, 0].isfinite()]
    spread = [each.log_likelihood(every[:, None]).std() for each in (likelihood, surrogate) if each is not None]
    if name == "balanced" and not likelihood.is_cached:
        likelihood = Listed(likelihood)
    encoded = log_q(runs.encoder, part)
    proposal = make_proposal(name, prior, likelihood=likelihood, log_q=encoded, surrogate=surrogate, seed=0)
    return proposal, every, max(1.0, float(max(spread)) / 2)


def tally(proposal, starts, steps, num, temperature, seed):
    """Of ``num`` moves from each start: how many go where with which log ratio, ``{(from, to): {ratio: count}}``."""
    before = starts.repeat_interleave(num // len(steps), 0)[:, None]  # [C, 1, E]
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in steps:
        uniform = torch.rand(len(before), 1, proposal.num_uniforms, generator=generator, dtype=torch.double)
        move = proposal.propose({"edge_type": before}, uniform, step, torch.full((len(before), 1), temperature))
        after = move.latents["edge_type"]
        moved = (after != before).any(-1)[:, 0]
        assert (move.log_forward[moved].isfinite() & move.log_reverse[moved].isfinite()).all()
        ratio = (move.log_reverse - move.log_forward).double()
        rows.append(torch.cat([before[moved, 0], after[moved, 0], ratio[moved].round(decimals=5)], -1))
    counts = defaultdict(dict)
    for row, count in zip(*(each.tolist() for each in torch.cat(rows).unique(dim=0, return_counts=True)), strict=True):
        where, to = (tuple(map(int, each)) for each in np.split(np.array(row[:-1]), 2))
        counts[where, to][row[-1]] = count
    return counts


def test_each_move_has_a_way_back_with_the_opposite_ratio(more):
    """Where a move leads is a structure of the prior, and moves of its kind lead back as often as its ratio says.

    Several choices may make one change, such as two receivers that change the pair of both. Each is a kernel of its
    own, so the ratios of the way back are those of the way there with the other sign, one by one. Turns are fixed by
    the step, which is the same on both ways. A delayed move is made of several steps on a surrogate: its ratio is that
    of the surrogate's posterior.
    """
    proposal, every, temperature = moves_of(more)
    kinds = [proposal.component(step) for step in range(400)]
    known = set(map(tuple, every.tolist()))
    assert set(kinds) == set(range(len(proposal.proposals)))
    for kind, part in enumerate(proposal.proposals):
        is_delayed = isinstance(part, Delayed)
        steps = [step for step, each in enumerate(kinds) if each == kind][: 4 if is_delayed else 1]
        there = tally(proposal, every[:: max(1, len(every) // 2)][:2], steps, 500, temperature, seed=1)
        assert {to for _, to in there} <= known
        # Ways by which some should come back; of these the ones whose ratio says most.
        ways = [way for way, each in there.items() if min(n * min(1, np.exp(r)) for r, n in each.items()) > 6]
        ways = sorted(ways, key=lambda way: -max(map(abs, there[way])))[:3]
        # These lead almost anywhere, and to no place often; their matrices are derived in test_particle_gibbs.py and
        # test_propagated.py.
        assert ways or isinstance(part, ParticleGibbs | PropagatedBlocks)
        if not ways:
            continue
        back = tally(proposal, torch.tensor(sorted({to for _, to in ways})), steps, 500, temperature, seed=2)
        for where, to in ways:
            ratios, returns = there[where, to], {-ratio: count for ratio, count in back[to, where].items()}
            assert returns
            if is_delayed:
                score = part.surrogate({"edge_type": torch.tensor([[where], [to]])})
                old, new = (score.log_likelihood / temperature + score.log_prior).flatten().tolist()
                assert [*ratios] == [*returns] == pytest.approx([old - new], abs=1e-4)
                continue
            for ratio in {*ratios, *returns}:
                num_back, share = returns.get(ratio, 0), 1 / (1 + np.exp(-ratio))
                num = num_back + ratios.get(ratio, 0)
                assert abs(num_back - num * share) < 5 * (num * share * (1 - share)) ** 0.5 + 1


# --- at last ---------------------------------------------------------------------------------------------------------
def test_nothing_was_learned(runs):
    assert runs.whole.complete
    now = weights(runs.model, runs.encoder)
    assert now.keys() == runs.weights.keys()
    assert all(torch.equal(now[name], value) for name, value in runs.weights.items())
    assert all(parameter.grad is None for part in (runs.model, runs.encoder) for parameter in part.parameters())
    assert torch.equal(torch.get_rng_state(), runs.random)
