"""Moves on padded scenes, turns, mixtures, names, and what they refuse. Probabilities: test_transition.py."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.inference.balanced import BalancedEdge
from pyro_nri.inference.blocks import ReceiverBlock
from pyro_nri.inference.labels import ExactLabel, LabelBlock, PriorDraw, UniformLabel
from pyro_nri.inference.moves import Choice
from pyro_nri.inference.proposals import (
    ExactReceiver,
    Mixture,
    UniformEdge,
    UniformPair,
    make_proposal,
)
from pyro_nri.inference.rounds import EdgeRound
from pyro_nri.model.priors import make_prior
from pyro_nri.model.receivers import MessageCache, ReceiverTable
from pyro_nri.model.relaxed import Relaxed
from pyro_nri.scenes.scenes import Scenes

PAIRS = [(i, j) for i in range(4) for j in range(4) if i != j]
#: Three groups of four entities: all, without entity 1, only 0 and 3.
PRESENT = [[True] * 4, [True, False, True, True], [True, False, False, True]]
MASK = torch.tensor([[p[i] and p[j] for i, j in PAIRS] for p in PRESENT])
TABLES = {1: torch.zeros(2, 2).long(), 2: torch.tensor([[1, 0], [0, 1]]), 3: torch.tensor([[1, 0], [2, 1]])}


def prior(name="independent", num_types=2):
    made = make_prior(name, num_types).double()
    if name == "charges":
        made.set_table(TABLES[num_types])
    return made(MASK)


def make(kind, name="independent", num_types=2, scan="random"):
    generator = torch.Generator().manual_seed(0)
    log_q = torch.randn(3, 12, num_types, generator=generator, dtype=torch.double)
    table = ReceiverTable(torch.randn(3, 4, num_types**3, generator=generator, dtype=torch.double), num_types, MASK)
    made = prior(name, num_types)
    return {
        "edge": lambda: UniformEdge(made),
        "pair": lambda: UniformPair(made),
        "block": lambda: ReceiverBlock(made, log_q, scan=scan),
        "exact": lambda: ExactReceiver(made, table, scan=scan),
        "balanced": lambda: BalancedEdge(made, table),
        "rounds": lambda: EdgeRound(made, table, scan=scan),
        "label": lambda: UniformLabel(made),
        "draw": lambda: PriorDraw(made),
        "label_block": lambda: LabelBlock(made, log_q, scan=scan),
        "exact_label": lambda: ExactLabel(made, table, scan=scan),
    }[kind]()


def propose(proposal, structure, step=0, seed=0):
    shape = (*structure.shape[:2], proposal.num_uniforms)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return proposal.propose({"edge_type": structure}, uniform, step, 1.0)


def start(name, num_types=2, num_chains=3000):
    uniform = torch.rand(num_chains, 3, 12, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    return prior(name, num_types).expand((num_chains, 3)).from_uniform(uniform)


CASES = [*itertools.product(["edge", "pair", "block", "exact"], ["independent"]), ("pair", "symmetric")]
CASES += [("block", "symmetric"), ("exact", "symmetric")]
CASES += [("pair", "sparse"), ("block", "sparse"), ("exact", "sparse")]
CASES += [("label", "charges"), ("draw", "charges"), ("label_block", "charges"), ("exact_label", "charges")]


@pytest.mark.statistical
@pytest.mark.parametrize("num_types", [2, 3])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_padded_edges_never_change_and_all_others_do(kind, name, num_types):
    before = start(name, num_types)
    move = propose(make(kind, name, num_types), before)
    changed = before != move.latents["edge_type"]
    assert not changed[:, ~MASK].any()
    assert changed[:, MASK].any(0).all()
    assert prior(name, num_types).log_prob(move.latents["edge_type"]).isfinite().all()
    assert move.log_forward.shape == move.log_reverse.shape == (3000, 3)
    assert move.log_forward.isfinite().all()
    assert move.log_reverse.isfinite().all()


@pytest.mark.statistical
def test_uniform_moves_are_uniform_over_what_exists():
    for kind, name in (("edge", "independent"), ("pair", "independent"), ("pair", "symmetric"), ("pair", "sparse")):
        before = start(name, 3)
        after = propose(make(kind, name, 3), before).latents["edge_type"]
        for g in range(3):
            changed = (before[:, g] != after[:, g]).numpy()
            where = MASK[g].numpy()
            if kind == "pair":  # a pair is one choice
                where = where & np.array([i < j for i, j in PAIRS])
                back = [PAIRS.index((j, i)) for i, j in PAIRS]
                changed = changed | changed[:, back]
            counts = changed[:, where].sum(0)
            assert counts.sum() == len(before)  # exactly one choice each, and it always changes something
            if len(counts) > 1:
                assert stats.chisquare(counts).pvalue > 1e-3


TURNS = list(itertools.product(["block", "exact"], ["independent", "symmetric", "sparse"]))
TURNS += [("label_block", "charges"), ("exact_label", "charges")]


@pytest.mark.parametrize(("kind", "name"), TURNS)
def test_turns_visit_the_entities_that_exist(kind, name):
    """Step s moves the incoming edges of the (s mod number)-th present entity (and, tied, their opposites)."""
    proposal, before = make(kind, name, scan="turn"), start(name)
    for step in range(9):
        changed = before != propose(proposal, before, step, seed=step).latents["edge_type"]
        for g, present in enumerate(PRESENT):
            there = [n for n in range(4) if present[n]]
            receiver = there[step % len(there)]
            touched = {PAIRS[e] for e in changed[:, g].any(0).nonzero().flatten().tolist()}
            wanted = {(i, receiver) for i in there if i != receiver}
            if name != "independent":
                wanted |= {(j, i) for i, j in wanted}
            assert touched == wanted


def test_one_type_leaves_nothing_to_move():
    for kind, name in CASES:
        if name == "sparse":
            continue  # has two types at least
        before = torch.zeros(5, 3, 12, dtype=torch.long)
        assert not propose(make(kind, name, 1), before).latents["edge_type"].any()


def test_given_structures_are_left_alone():
    for kind, name in CASES:
        before = start(name, num_chains=20)
        kept = before.clone()
        propose(make(kind, name), before)
        assert torch.equal(before, kept)


def test_floor_one_ignores_the_probabilities():
    skewed = torch.tensor([0.0, -50.0]).double().expand(3, 12, 2)
    proposal = ReceiverBlock(prior(), skewed, floor=1.0)
    np.testing.assert_allclose(proposal.probability[MASK], 0.5)
    move = propose(proposal, start("independent"))
    torch.testing.assert_close(move.log_forward, move.log_reverse)


def test_what_reaches_every_structure():
    log_q = torch.zeros(3, 12, 2).double()
    assert UniformEdge(prior()).is_irreducible
    assert not UniformEdge(prior("symmetric")).is_irreducible
    assert UniformPair(prior("symmetric")).is_irreducible
    assert ReceiverBlock(prior(), log_q).is_irreducible
    assert not ReceiverBlock(prior(), log_q, floor=0.0).is_irreducible
    with pytest.raises(ValueError, match="no proposal reaches every structure; add a uniform one"):
        Mixture([UniformEdge(prior("symmetric")), ReceiverBlock(prior("symmetric"), log_q, floor=0.0)])
    Mixture([ReceiverBlock(prior(), log_q, floor=0.0), UniformEdge(prior())])


def test_edges_alone_reach_nothing_under_labels():
    """Another type of one edge or pair, or of a receiver's edges at will, fits no labels."""
    made, log_q = prior("charges"), torch.zeros(3, 12, 2).double()
    lost = [UniformEdge(made), UniformPair(made), ReceiverBlock(made, log_q), LabelBlock(made, log_q, floor=0.0)]
    assert not any(proposal.is_irreducible for proposal in lost)
    with pytest.raises(ValueError, match="no proposal reaches every structure"):
        Mixture(lost)
    for proposal in (UniformLabel(made), PriorDraw(made), LabelBlock(made, log_q)):
        assert proposal.is_irreducible


def test_mixture_bookkeeping():
    inner = Mixture([make("edge"), make("pair")], seed=1)
    mixture = Mixture([make("block"), inner, make("exact")], [1.0, 2.0, 3.0], seed=2)
    assert mixture.move_names == ("receiver_block", "uniform_edge", "uniform_pair", "exact_receiver")
    assert mixture.num_uniforms == max(part.num_uniforms for part in mixture.proposals)
    before = start("independent", num_chains=2)
    for step in range(30):
        kind = propose(mixture, before, step).kind
        outer = mixture.component(step)
        wanted = {0: 0, 1: 1 + inner.component(step), 2: 3}[outer]
        assert kind == wanted
    numbers = [[Mixture([make("edge"), make("pair")], seed=s).component(step) for step in range(60)] for s in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_bad_arguments():
    log_q, table = torch.zeros(3, 12, 2).double(), ReceiverTable(torch.zeros(3, 4, 8).double(), 2, MASK)
    with pytest.raises(ValueError, match=r"log_q must have shape \[3, 12, 2\], found \[3, 12, 3\]"):
        ReceiverBlock(prior(), torch.zeros(3, 12, 3))
    with pytest.raises(ValueError, match=r"floor must be between 0 and 1, found 1\.5"):
        ReceiverBlock(prior(), log_q, floor=1.5)
    with pytest.raises(ValueError, match="scan must be 'random' or 'turn', found 'zigzag'"):
        ReceiverBlock(prior(), log_q, scan="zigzag")
    with pytest.raises(ValueError, match="scan must be 'random' or 'turn', found 'zigzag'"):
        ExactReceiver(prior(), table, scan="zigzag")
    with pytest.raises(ValueError, match=r"prior must leave a receiver's edges a choice.*found one over labels"):
        ExactReceiver(prior("charges"), table)
    with pytest.raises(ValueError, match="proposals is empty"):
        Mixture([])
    for weights in ([1.0], [1.0, 0.0]):
        with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
            Mixture([make("edge"), make("pair")], weights)


@pytest.mark.parametrize("kind", ["auto", "rounds"])
def test_one_type_leaves_joint_moves_nothing_to_draw(kind):
    table = ReceiverTable(torch.zeros(3, 4, 1).double(), 1, MASK)
    table.relaxed = Relaxed(torch.zeros(3, 4, 3, 0).double(), torch.zeros(3, 4, 3, 0, 3, 0).double())
    made = make_prior("symmetric", 1).double()(MASK)
    assert "particle_gibbs" not in make_proposal(kind, made, likelihood=table).move_names


@pytest.mark.parametrize("name", ["independent", "symmetric", "sparse", "charges"])
def test_names(name):
    log_q, table = torch.zeros(3, 12, 2).double(), ReceiverTable(torch.zeros(3, 4, 8).double(), 2, MASK)
    single = {
        "independent": {"uniform_edge", "uniform_pair"},
        "symmetric": {"uniform_pair"},
        "sparse": {"uniform_pair"},
        "charges": {"uniform_label", "prior_draw"},
    }[name]
    block, exact = ("label_block", "exact_label") if name == "charges" else ("receiver_block", "exact_receiver")
    made = prior(name)

    def moves(kind, **options):
        names = make_proposal(kind, made, **options).move_names
        assert len(set(names)) == len(names)
        return set(names)

    both = {"likelihood": table, "log_q": log_q}
    assert moves("uniform") == moves("uniform", **both) == single
    learned = set() if name == "charges" else {"learned_block"}
    assert moves("neural", log_q=log_q) == moves("neural", **both) == {block} | learned | single
    assert moves("exact", likelihood=table) == moves("exact", **both) == {exact} | single
    assert moves("auto") == single
    assert moves("auto", log_q=log_q) == {block} | learned | single
    assert moves("auto", **both) == {exact, block} | single
    table.relaxed = Relaxed(
        torch.zeros(3, 4, 3, 1).double(), torch.eye(3).double()[:, None, :, None].expand(3, 4, 3, 1, 3, 1)
    )
    together = {"particle_gibbs"} if name in ("symmetric", "sparse") else set()  # where receivers are not independent
    assert moves("auto", **both) == {exact, block} | single | together
    table.relaxed = None
    cached = MessageCache(
        torch.zeros(3, 1, 4, 3, 2, 1).double(),
        lambda *_: None,
        Scenes.from_arrays(torch.zeros(3, 2, 4, 2)),
        is_density=True,
    )
    if name == "charges":
        assert moves("auto", likelihood=cached) == single
        with pytest.raises(ValueError, match="moves 'balanced' need a likelihood and a prior that is not over labels"):
            make_proposal("balanced", made, likelihood=table)
    else:
        assert moves("balanced", **both) == {"balanced_edge"} | single
        assert moves("rounds", **both) == {"edge_round"} | single
        assert moves("auto", likelihood=cached) == {"balanced_edge", "edge_round"} | single
    with pytest.raises(ValueError, match="moves 'balanced' need a likelihood"):
        make_proposal("balanced", made)
    with pytest.raises(ValueError, match="needs an encoder"):
        make_proposal("neural", made)
    with pytest.raises(ValueError, match="need a receiver table"):
        make_proposal("exact", made)
    with pytest.raises(
        ValueError,
        match="proposal must be one of auto, uniform, neural, exact, balanced, rounds, delayed, found 'magic'",
    ):
        make_proposal("magic", made)


# --- choices that prefer what is in doubt -----------------------------------------------------------------------------
@pytest.mark.statistical
def test_choices_follow_the_doubt():
    """Half of them uniform over what exists, half in proportion; each chain and group has its own."""
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    doubt = torch.tensor([[[1.0, 0, 3, 0], [0, 9, 0, 9]], [[0, 0, 0, 1], [2, 0, 6, 0]]], dtype=torch.double)
    wanted = np.array([[[0.25, 0.125, 0.5, 0.125], [0.5, 0, 0.5, 0]], [[0.125] * 3 + [0.625], [0.375, 0, 0.625, 0]]])
    choice = Choice(mask, "turn")
    choice.prefer(doubt)
    uniform = torch.rand(20_000, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    drawn = torch.stack([choice(each, 0) for each in uniform])
    found = torch.nn.functional.one_hot(drawn, 4).double().mean(0).numpy()
    assert (np.abs(found - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 20_000)).all()
    last = choice(torch.full((2, 2), 1 - 2**-53, dtype=torch.double), 0)
    assert mask.expand(2, 2, 4).gather(-1, last[..., None]).all()  # rounding leads to no member that does not exist


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["edge", "pair", "block", "exact", "balanced", "rounds"])
def test_moves_prefer_the_edges_in_doubt(kind):
    """One edge of each structure was uncertain: it is proposed several times as often as before."""
    structure = start("independent", num_chains=1500)
    doubt = torch.zeros(structure.shape, dtype=torch.double)
    edge = PAIRS.index((0, 1))
    doubt[..., edge] = 1
    shares = []
    for adapted in (False, True):
        proposal = make(kind)
        if adapted:
            proposal.adapt(doubt)
        moves = [propose(proposal, structure, step, seed=step) for step in range(4)]
        changed = torch.stack([move.latents["edge_type"] != structure for move in moves])[:, :, 0]
        shares.append(float(changed[..., edge].double().sum() / changed.double().sum()))
    assert shares[1] > 1.3 * shares[0]
