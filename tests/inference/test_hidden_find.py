"""The quick answer: it finds what the posterior finds, scene by scene, and prior starts alone do not."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_nri.inference.hidden import hidden_target
from pyro_nri.inference.hidden_find import find_hidden
from pyro_nri.inference.hidden_run import infer_hidden
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def springs():
    """Laws of springs; four scenes of five, of which four are recorded, and their structures in learned types."""
    checkpoint = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "springs5.pt")
    whole = simulate("springs", 8, num_frames=30, seed=3)
    pulls = edges.to_matrix(whole.edge_type)[:, 4, :4].sum(-1) >= 2
    whole = whole[pulls.nonzero().squeeze(-1)[:4]]
    assert whole.num_scenes == 4
    recorded = Scenes.from_arrays(whole.trajectory[:, :, :4], time_step=whole.time_step, scene_names=whole.scene_names)
    return checkpoint.model, whole, recorded, torch.tensor(checkpoint.alignment).argsort()[whole.edge_type]


def error(found, whole):
    return (found.path[:, 0] - whole.trajectory[:, :, 4]).abs().amax((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("given", [True, False])
def test_the_path_and_the_edges_are_found(springs, given):
    model, whole, recorded, structure = springs
    known = structure if given else None
    found = find_hidden(model, recorded, structure=known, seed=0)
    assert found.path.shape == (4, 1, 30, 4)
    assert torch.allclose(found.path[:, :, 0], found.state)
    assert (error(found, whole) < 1e-4).all()
    assert torch.equal(found.edge_type, structure)
    draws = infer_hidden(model, recorded, 1, structure=known, num_chains=2, num_draws=20, num_warmup=20, seed=0)
    assert (found.log_joint.numpy() >= draws.log_joint.max((0, 1)) - 1e-6).all()  # nothing that was drawn is likelier


@pytest.mark.slow
def test_charges_are_found_beside_close_encounters():
    """Where forces change fast; from the prior alone they are not."""
    checkpoint = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / "charged5.pt")
    whole = simulate("charged", 2, num_entities=4, num_frames=16, seed=8)
    recorded = Scenes.from_arrays(whole.trajectory[:, :, :3], time_step=whole.time_step, scene_names=whole.scene_names)
    found = find_hidden(checkpoint.model, recorded, num_guesses=2, num_starts=0, seed=0)
    assert found.path.shape == (2, 1, 16, 4)
    assert torch.equal(found.path[:, :, 0], found.state)
    assert ((found.path[:, 0] - whole.trajectory[:, :, 3]).abs() < 1e-4).all()
    wanted = torch.tensor(checkpoint.alignment).argsort()[whole.edge_type]
    assert torch.equal(found.edge_type, wanted)
    alone = find_hidden(checkpoint.model, recorded[1:], num_guesses=2, num_starts=0, seed=0)
    torch.testing.assert_close(alone.path, found.path[1:], rtol=0, atol=1e-8)
    given = find_hidden(checkpoint.model, recorded[:1], structure=wanted[:1], num_guesses=2, num_starts=0, seed=0)
    torch.testing.assert_close(given.path, found.path[:1], rtol=0, atol=1e-6)
    prior = math.log(2) * wanted.shape[-1]  # of the structure, known or not
    torch.testing.assert_close(given.log_joint - prior, found.log_joint[:1], rtol=0, atol=0.2)
    lucky = find_hidden(checkpoint.model, recorded[:1], num_guesses=0, num_starts=1, seed=0)
    assert lucky.log_joint < found.log_joint[:1] - 100


def test_the_density_is_that_of_state_and_structure(springs):
    model, _, recorded, _ = springs
    found = find_hidden(model, recorded[:1], num_guesses=1, num_starts=0, seed=0)
    target = hidden_target(model, recorded[:1], 1, found.edge_type)
    state = (found.state - target.likelihood.offset) / target.likelihood.scale
    into = found.edge_type[:, edges.incoming_edges(5)][:, 4:]
    prior = model.prior(edges.from_matrix(~torch.eye(5, dtype=torch.bool))).log_prob(found.edge_type)
    expected = target.log_density(state, into) + prior
    torch.testing.assert_close(found.log_joint, expected.double())


def test_other_scenes_beside_do_not_matter(springs):
    model, _, recorded, _ = springs
    both = find_hidden(model, recorded[:2], num_guesses=2, num_starts=1, seed=0)
    alone = find_hidden(model, recorded[1:2], num_guesses=2, num_starts=1, seed=0)
    for every, one in zip(both, alone, strict=True):
        torch.testing.assert_close(every[1:], one)


@pytest.mark.slow
def test_prior_starts_alone_find_it_if_edges_are_known(springs):
    """Springs pull towards the truth from everywhere, but under wrong edges into the hidden one they do not."""
    model, whole, recorded, structure = springs
    by_luck = {"num_guesses": 0, "num_starts": 2, "seed": 0}
    assert (error(find_hidden(model, recorded, structure=structure, **by_luck), whole) < 1e-4).all()
    unknown = find_hidden(model, recorded, **by_luck)
    assert (error(unknown, whole) > 1e-2).any()
    assert (
        unknown.log_joint < find_hidden(model, recorded, num_guesses=2, num_starts=0, seed=0).log_joint + 1e-6
    ).all()


@pytest.mark.parametrize("answer", [find_hidden, infer_hidden])
def test_shared_structures_are_refused_wherever_they_are(springs, answer):
    """Also where the two recordings are so far apart that they are searched in different chunks."""
    model, _, recorded, _ = springs
    names = tuple(map(str, range(40)))
    many = replace(recorded[[0] * 40], scene_names=names, structure_group=("a", *names[1:-1], "a"))
    with pytest.raises(ValueError, match="must not share structures"):
        answer(model, many, 1, seed=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_hidden": 0}, "num_hidden must be 1 or 2, found 0"),
        ({"num_hidden": "auto"}, "num_hidden must be 1 or 2, found 'auto'"),
        ({"num_guesses": -1}, "num_guesses must be a whole number, 0 or more, found -1"),
        ({"num_guesses": 1.5}, "num_guesses must be a whole number, 0 or more, found 1.5"),
        ({"num_guesses": 0, "num_starts": 0}, "both 0: there is nothing to start from"),
        ({"structure": torch.full((4, 20), 5)}, "structure must hold types from 0 to 1, found 5"),
        ({"structure": torch.zeros(4, 20)}, "structure must hold types as integers, found torch.float32"),
        ({"structure": torch.zeros(4, 6, dtype=torch.long)}, r"structure must be long \[4, 20\]"),
    ],
)
def test_bad_arguments(springs, arguments, message):
    model, _, recorded, _ = springs
    with pytest.raises(ValueError, match=message):
        find_hidden(model, recorded, **arguments, seed=0)
