"""Rollout and teacher forcing against loops over single steps."""

import pytest
import torch

from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.dynamics.rollout import rollout, teacher_forcing

NUM_SCENES, NUM_FRAMES, NUM_ENTITIES = 2, 6, 3
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def dynamics():
    made = MessagePassing(3, 2, num_entity_kinds=2, generator=torch.Generator().manual_seed(0)).double()
    made.units.change_scale.fill_(0.2)
    return made


@pytest.fixture
def known():
    """Mask and kinds of N = 3; the last entity of the second scene is padding."""
    present = torch.tensor([[True, True, True], [True, True, False]])
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    mask = torch.tensor([[bool(p[i] and p[j]) for i, j in pairs] for p in present])
    return {"edge_mask": mask, "entity_kind": torch.tensor([[0, 1, 0], [1, 0, 0]])}


def test_rollout_repeats_the_step(dynamics, known):
    state, structure = rand(NUM_SCENES, 3, 2), integers(3, NUM_SCENES, 6)
    frames = rollout(dynamics, state, structure, 4, **known)
    assert frames.shape == (NUM_SCENES, 4, 3, 2)
    for t in range(4):
        state = dynamics.step(state, structure, **known)
        torch.testing.assert_close(frames[:, t], state, **TIGHT)


def test_rollout_over_chains(dynamics, known):
    state, structure = rand(NUM_SCENES, 3, 2), integers(3, 4, NUM_SCENES, 6)
    frames = rollout(dynamics, state, structure, 3, **known)
    assert frames.shape == (4, NUM_SCENES, 3, 3, 2)
    for c in range(4):
        torch.testing.assert_close(frames[c], rollout(dynamics, state, structure[c], 3, **known), **TIGHT)


@pytest.mark.parametrize("num_chains", [None, 1, 3])
@pytest.mark.parametrize("horizon", [1, 2, 3, 5, 50])
def test_teacher_forcing_is_a_loop_with_restarts(dynamics, known, horizon, num_chains):
    trajectory = rand(NUM_SCENES, NUM_FRAMES, 3, 2)
    structure = integers(3, *([] if num_chains is None else [num_chains]), NUM_SCENES, 6)
    predictions = teacher_forcing(dynamics, trajectory, structure, horizon=horizon, **known)
    assert predictions.shape == (*structure.shape[:-1], NUM_FRAMES - 1, 3, 2)
    for c in range(num_chains or 1):
        one = structure if num_chains is None else structure[c]
        found = predictions if num_chains is None else predictions[c]
        for b in range(NUM_SCENES):
            options = {name: value[b] for name, value in known.items()}
            for t in range(NUM_FRAMES - 1):
                if t % horizon == 0:
                    state = trajectory[b, t]
                state = dynamics.step(state, one[b], **options)
                torch.testing.assert_close(found[b, t], state, **TIGHT)


@pytest.mark.parametrize("horizon", [1, 3, 50])
def test_hidden_entities_go_on_while_observed_ones_restart(dynamics, horizon):
    """T = 6, three observed entities and a hidden one, numbered last."""
    trajectory, hidden = rand(NUM_SCENES, NUM_FRAMES, 3, 2), rand(2, NUM_SCENES, 1, 2, seed=1)
    structure = integers(3, 2, NUM_SCENES, 12)
    kind = integers(2, NUM_SCENES, 4)
    predictions = teacher_forcing(
        dynamics, trajectory, structure, horizon=horizon, entity_kind=kind, hidden_state=hidden
    )
    assert predictions.shape == (2, NUM_SCENES, NUM_FRAMES - 1, 3, 2)
    for c in range(2):
        for b in range(NUM_SCENES):
            unseen = hidden[c, b, 0]
            for t in range(NUM_FRAMES - 1):
                if t % horizon == 0:
                    seen = trajectory[b, t]
                whole = torch.stack([seen[0], seen[1], seen[2], unseen])
                whole = dynamics.step(whole, structure[c, b], entity_kind=kind[b])
                seen, unseen = whole[:3], whole[3]
                torch.testing.assert_close(predictions[c, b, t], seen, **TIGHT)


def test_a_hidden_entity_that_sends_nothing_is_not_noticed():
    silent = MessagePassing(2, 2, no_interaction=True, generator=torch.Generator().manual_seed(0)).double()
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    among = integers(2, 6)
    seen_pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    types = dict(zip(seen_pairs, among.tolist(), strict=True))
    structure = torch.tensor([types.get(pair, 0) for pair in pairs])
    trajectory = rand(NUM_FRAMES, 3, 2)
    with_hidden = teacher_forcing(silent, trajectory, structure, horizon=2, hidden_state=rand(1, 2, seed=1))
    torch.testing.assert_close(with_hidden, teacher_forcing(silent, trajectory, among, horizon=2), **TIGHT)


def test_gradients_through_the_horizon():
    small = MessagePassing(2, 2, generator=torch.Generator().manual_seed(0)).double()
    structure = torch.tensor([1, 0])
    trajectory, hidden = rand(4, 2, 2).requires_grad_(), rand(1, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: teacher_forcing(small, x, structure, horizon=3), (trajectory,))
    structure = torch.tensor([1, 0, 1, 1, 0, 0])
    assert torch.autograd.gradcheck(
        lambda x, h: teacher_forcing(small, x, structure, horizon=2, hidden_state=h), (trajectory, hidden)
    )


def test_bad_arguments(dynamics):
    trajectory, structure = rand(NUM_FRAMES, 3, 2), integers(3, 6)
    with pytest.raises(ValueError, match="num_steps must be at least 1, found 0"):
        rollout(dynamics, trajectory[0], structure, 0)
    with pytest.raises(ValueError, match="horizon must be at least 1, found 0"):
        teacher_forcing(dynamics, trajectory, structure, horizon=0)
