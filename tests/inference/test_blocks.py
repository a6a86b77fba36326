"""Joint blocks: what they are without couplings, what they refuse, how they behave beside other structures."""

import itertools

import pytest
import torch

from pyro_nri.inference.blocks import JointBlock, ReceiverBlock
from pyro_nri.inference.encoder import learned_q, log_q
from pyro_nri.inference.incoming import IncomingDistribution
from pyro_nri.inference.kernel import StructureKernel
from pyro_nri.inference.proposals import make_proposal
from pyro_nri.inference.run import infer
from pyro_nri.model.priors import make_prior
from pyro_nri.scenes import edges


@pytest.fixture
def coupled(make_encoder):
    """An encoder with couplings, all weights random."""

    def make(num_types=2):
        encoder = make_encoder(num_types)
        encoder.add_coupling(generator=torch.Generator().manual_seed(1))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in encoder.coupling.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
        return encoder

    return make


@pytest.mark.parametrize("prior_name", ["independent", "symmetric"])
@pytest.mark.parametrize("num_types", [2, 3])
def test_zero_couplings_are_the_independent_block(make_encoder, make_scenes, prior_name, num_types):
    """A fresh coupling says nothing: every block has the probability that it had edge by edge."""
    encoder, scenes = make_encoder(num_types), make_scenes(padded=(1,), groups=["a", "b", "a"], num_entities=4)
    scenes = scenes[[0, 2]] if prior_name == "symmetric" else scenes[[1]]
    before = log_q(encoder, scenes)
    encoder.add_coupling(generator=torch.Generator().manual_seed(0))
    prior = make_prior(prior_name, num_types)(scenes.edge_mask[scenes.group_first_scene])
    after, incoming = learned_q(encoder, scenes, tied=prior.tied)
    torch.testing.assert_close(after, before)
    old, new = ReceiverBlock(prior, before, floor=0.1), JointBlock(prior, incoming, floor=0.1)
    into = edges.incoming_edges(4)
    for z in itertools.product(range(num_types), repeat=3):
        types = torch.tensor(z).expand(1, 4, 3)
        expected = old.log_q[:, into].gather(-1, types[..., None]).sum((-2, -1))
        torch.testing.assert_close(new.incoming.log_prob(types), expected)


def test_moves_of_independent_blocks_are_those_of_receiver_blocks(make_encoder, make_scenes):
    """With senders in ascending order the same uniforms make the same moves."""
    scenes = make_scenes(num_scenes=2)
    log_prob = log_q(make_encoder(), scenes)
    prior = make_prior("independent", 2)(scenes.edge_mask)
    base = log_prob[:, edges.incoming_edges(3)]
    incoming = IncomingDistribution(base, torch.zeros(*base.shape, *base.shape[-2:], dtype=torch.double))
    uniform = torch.rand(50, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    structure = torch.zeros(50, 2, 6, dtype=torch.long)
    moves = [
        block.propose({"edge_type": structure}, uniform, 0, 1.0)
        for block in (ReceiverBlock(prior, log_prob), JointBlock(prior, incoming))
    ]
    assert torch.equal(moves[0].latents["edge_type"], moves[1].latents["edge_type"])
    torch.testing.assert_close(moves[0].log_forward, moves[1].log_forward)
    torch.testing.assert_close(moves[0].log_reverse, moves[1].log_reverse)


def test_the_default_floor_leaves_half_of_large_blocks_alone(make_scenes):
    scenes = make_scenes(num_scenes=1, num_entities=40)
    prior = make_prior("independent", 2)(scenes.edge_mask)
    incoming = IncomingDistribution(torch.zeros(1, 40, 39, 2), torch.zeros(1, 40, 39, 2, 39, 2))
    assert JointBlock(prior, incoming).incoming.floor == pytest.approx(0.5 / 40)


def test_who_gets_joint_blocks(coupled, make_scenes):
    scenes = make_scenes()
    log_prob, incoming = learned_q(coupled(), scenes)
    independent = make_prior("independent", 2)(scenes.edge_mask)
    charges = make_prior("charges", 2)
    charges.set_table(torch.tensor([[1, 0], [0, 1]]))

    def names(prior, incoming):
        return make_proposal("neural", prior, log_q=log_prob, incoming=incoming).move_names

    assert "joint_block" in names(independent, incoming)
    assert "receiver_block" not in names(independent, incoming)
    assert "receiver_block" in names(independent, None)
    assert "label_block" in names(charges(scenes.edge_mask), incoming)


def test_shards_and_the_kernel_make_the_same_draws(coupled, make_model, make_scenes):
    model, encoder, scenes = make_model(), coupled(), make_scenes(num_scenes=4, padded=(2,), groups=list("abca"))
    options = {"method": "mcmc", "proposal": "neural", "num_chains": 2, "num_draws": 20, "num_warmup": 10, "seed": 3}
    whole = infer(model, scenes, encoder=encoder, **options)
    parts = infer(model, scenes, encoder=encoder, num_shards=3, **options)
    assert "joint_block" in whole.move_names
    assert (whole.edge_type == parts.edge_type).all()
    kernel = StructureKernel(model, num_chains=2, proposal="neural", encoder=encoder, seed=3)
    kernel.setup(10, scenes)
    for step in range(30):
        drawn = kernel.sample({})["edge_type"]
        if step >= 10:
            assert (drawn.numpy() == whole.edge_type[:, step - 10]).all()


def test_an_encoder_for_another_number_of_types_is_refused(coupled, make_scenes):
    scenes = make_scenes()
    incoming = learned_q(coupled(3), scenes)[1]
    with pytest.raises(ValueError, match=r"incoming must have shape \[3, 3, 2\] and 2 types of edge, found .* and 3"):
        JointBlock(make_prior("independent", 2)(scenes.edge_mask), incoming)
    with pytest.raises(ValueError, match=r"incoming must have shape \[2, 3, 2\]"):
        JointBlock(make_prior("independent", 3)(scenes.edge_mask[:2]), incoming)
