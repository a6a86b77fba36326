"""The distribution of a trajectory against loops over frames and entities, densities from SciPy."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.dynamics.rollout import rollout
from pyro_nri.model.trajectory import Trajectory


def distribution(model, scenes, structure, hidden_state=None, **options):
    """Built from its parts; ``hidden_state`` in raw units."""
    options = {
        "num_frames": scenes.num_frames,
        "observation_mask": scenes.observation_mask,
        "entity_mask": scenes.entity_mask,
        "entity_kind": scenes.entity_kind,
        "edge_mask": None if hidden_state is not None else scenes.edge_mask,
    } | options
    initial = scenes.trajectory[:, 0]
    return Trajectory(initial, model.dynamics, structure, model.noise, hidden_state=hidden_state, **options)


def integers(high, *shape, seed=0):
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def log_density_by_loops(model, scenes, b, structure, horizon, hidden=None):
    """Log density of each entity's frames in scene ``b`` given one structure ``[E]``."""
    num_entities = scenes.num_entities
    present = [n for n in range(num_entities) if scenes.entity_mask[b, n]]
    mask = None if hidden is not None else scenes.edge_mask[b]
    kind = None if scenes.entity_kind is None else scenes.entity_kind[b]
    scale = model.noise.scale.detach()
    total = [0.0] * num_entities
    for t in range(scenes.num_frames - 1):
        if t % horizon == 0:
            state = scenes.trajectory[b, t]
            complete = all(bool(scenes.observation_mask[b, t, n]) for n in present)
        whole = state if hidden is None else torch.cat([state, hidden])
        whole = model.dynamics.step(whole, structure, edge_mask=mask, entity_kind=kind).detach()
        state, hidden = whole[:num_entities], None if hidden is None else whole[num_entities:]
        for n in range(num_entities):
            if complete and scenes.observation_mask[b, t + 1, n]:
                for d in range(scenes.state_size):
                    value, mean = float(scenes.trajectory[b, t + 1, n, d]), float(state[n, d])
                    if type(model.noise).__name__ == "StudentTNoise":
                        total[n] += stats.t.logpdf(value, 4, mean, float(scale[d]))
                    else:
                        total[n] += stats.norm.logpdf(value, mean, float(scale[d]))
    return total


@pytest.mark.parametrize("horizon", [1, 2, 3, 10])
@pytest.mark.parametrize("noise", ["normal", "student_t"])
def test_log_prob_with_missing_states_and_padding(make_model, make_scenes, noise, horizon):
    model = make_model(3, noise=noise, num_entity_kinds=2)
    scenes = make_scenes(num_frames=7, missing=0.1, padded=[2], kinds=2)
    assert not scenes.observation_mask[:2].all()
    structure = integers(3, 2, 4, 6)  # two chains
    made = distribution(model, scenes, structure, horizon=horizon)
    assert (made.batch_shape, made.event_shape) == ((2, 4), (6, 3, 2))
    each = made.log_prob_entities(scenes.trajectory[:, 1:])
    assert each.shape == (2, 4, 3)
    for c in range(2):
        for b in range(4):
            wanted = log_density_by_loops(model, scenes, b, structure[c, b], horizon)
            assert each[c, b].tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(made.log_prob(scenes.trajectory[:, 1:]), each.sum(-1))
    assert not each[:, 2, 2].any()  # the padded entity


def test_scored_agrees_with_the_scenes_transition_mask(make_model, make_scenes):
    scenes = make_scenes(num_frames=9, missing=0.15, padded=[0, 3])
    made = distribution(make_model(), scenes, integers(2, 4, 6))
    assert torch.equal(made.scored, scenes.transition_mask)


@pytest.mark.parametrize("horizon", [1, 3])
def test_values_of_missing_states_do_not_matter(make_model, make_scenes, horizon):
    model, scenes = make_model(), make_scenes(num_frames=8, missing=0.1)
    made = distribution(model, scenes, integers(2, 4, 6), horizon=horizon)
    value = scenes.trajectory[:, 1:]
    unseen = ~scenes.observation_mask[:, 1:]
    assert unseen.any()
    other = torch.where(unseen[..., None], torch.full_like(value, 55.0), value)
    torch.testing.assert_close(made.log_prob(other), made.log_prob(value), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("horizon", [1, 3])
def test_hidden_entity(make_model, make_scenes, horizon):
    model, scenes = make_model(), make_scenes(num_frames=6)
    structure = integers(2, 2, 4, 12)
    hidden = torch.randn(2, 4, 1, 2, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    made = distribution(model, scenes, structure, hidden, horizon=horizon)
    assert made.batch_shape == (2, 4)
    each = made.log_prob_entities(scenes.trajectory[:, 1:])
    for c in range(2):
        for b in range(4):
            wanted = log_density_by_loops(model, scenes, b, structure[c, b], horizon, hidden[c, b])
            assert each[c, b].tolist() == pytest.approx(wanted, rel=1e-9)


def test_hidden_entity_and_a_missing_state(make_model, make_scenes):
    """What is stored where nothing was seen must not reach the frames after it through the hidden entity's path."""
    model, scenes = make_model(), make_scenes(num_scenes=1, num_frames=6)
    seen = scenes.observation_mask.clone()
    seen[0, 2, 1] = False
    hidden = torch.ones(1, 1, 2, dtype=torch.double)
    made = distribution(model, scenes, integers(2, 1, 12), hidden, observation_mask=seen)
    value = scenes.trajectory[:, 1:].clone()
    before = made.log_prob(value)
    value[0, 1, 1] = 55.0  # frame 2 of the unseen entity
    torch.testing.assert_close(made.log_prob(value), before)


def test_default_masks(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    structure = integers(2, 4, 6)
    bare = Trajectory(scenes.trajectory[:, 0], model.dynamics, structure, model.noise, num_frames=5)
    value = scenes.trajectory[:, 1:]
    torch.testing.assert_close(bare.log_prob(value), distribution(model, scenes, structure).log_prob(value))


@pytest.mark.parametrize("with_hidden", [False, True])
def test_sample_without_noise_is_a_rollout(make_model, make_scenes, with_hidden):
    model, scenes = make_model(), make_scenes(padded=() if with_hidden else [1])
    model.noise.change_scale.fill_(1e-12)
    structure = integers(2, 4, 12 if with_hidden else 6)
    hidden = torch.ones(4, 1, 2, dtype=torch.double) if with_hidden else None
    torch.manual_seed(0)
    drawn = distribution(model, scenes, structure, hidden).sample()
    start = scenes.trajectory[:, 0] if hidden is None else torch.cat([scenes.trajectory[:, 0], hidden], 1)
    mask = scenes.edge_mask if hidden is None else None
    path = rollout(model.dynamics, start, structure, 4, edge_mask=mask).detach()[:, :, :3]
    torch.testing.assert_close(drawn, path, rtol=0, atol=1e-9)


@pytest.mark.statistical
def test_sample_feeds_its_noise_back(make_model, make_scenes):
    """Residuals x_t+1 - step(x_t) of drawn paths are standard normal after scaling, uncorrelated over frames."""
    model, scenes = make_model(), make_scenes(num_scenes=1, num_frames=4)
    structure = integers(2, 1, 6)
    made = distribution(model, scenes, structure)
    torch.manual_seed(0)
    drawn = made.sample((4000,))  # [S, 1, 3, N, D]
    before = torch.cat([scenes.trajectory[:, :1].expand(4000, 1, 1, 3, 2), drawn[:, :, :-1]], 2)
    predicted = model.dynamics.step(before, structure[:, None]).detach()
    residual = ((drawn - predicted) / model.noise.scale.detach()).reshape(4000, 3, 6)
    for t in range(3):
        assert stats.kstest(residual[:, t].flatten().numpy(), "norm").pvalue > 1e-3
    correlation = torch.corrcoef(residual.reshape(4000, 18).T)
    off_diagonal = correlation[~torch.eye(18, dtype=torch.bool)]
    assert off_diagonal.abs().max() < 5 / 4000**0.5  # five standard errors, 153 pairs


def test_sample_shapes_and_expand(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    made = distribution(model, scenes, integers(2, 4, 6))
    torch.manual_seed(0)
    assert made.sample().shape == (4, 4, 3, 2)
    assert made.sample((2, 7)).shape == (2, 7, 4, 4, 3, 2)
    wide = made.expand((5, 4))
    assert wide.batch_shape == (5, 4)
    assert wide.sample().shape == (5, 4, 4, 3, 2)
    value = scenes.trajectory[:, 1:]
    torch.testing.assert_close(wide.log_prob(value), made.log_prob(value).expand(5, 4))
    chains = distribution(model, scenes, integers(2, 3, 4, 6))
    assert chains.sample().shape == (3, 4, 4, 3, 2)
    assert not made.sample().requires_grad


# --- noise that looks at the geometry --------------------------------------------------------------------------------
def geometric(make_model, scenes, **options):
    """Model whose noise feels the geometry of these scenes."""
    model = make_model(noise="geometric", **options)
    model.geometry.fit_scaling(scenes)
    return model


def test_scale_follows_the_observed_frame_before(make_model, make_scenes):
    """By loops: the multivariate t density of SciPy, its scale from the geometry of one frame of one scene."""
    scenes = make_scenes(num_frames=6, missing=0.1, padded=[2])
    model = geometric(make_model, scenes)
    structure = integers(2, 2, 4, 6)
    made = distribution(model, scenes, structure, geometry=model.geometry)
    each = made.log_prob_entities(scenes.trajectory[:, 1:]).detach()
    weight = model.noise.context_weight.detach()
    base = model.noise.log_relative_scale.detach()
    for c, b in np.ndindex(2, 4):
        total = [0.0] * 3
        for t in range(5):
            state = scenes.trajectory[b, t]
            mean = model.dynamics.step(state, structure[c, b], edge_mask=scenes.edge_mask[b]).detach()
            context = model.geometry(state, scenes.edge_mask[b]).clamp(-8, 8)
            for n in range(3):
                if scenes.transition_mask[b, t, n]:
                    scale = (base + context[n] @ weight).exp() + 1e-6
                    value = scenes.trajectory[b, t + 1, n]
                    total[n] += stats.multivariate_t.logpdf(value, mean[n], torch.diag(scale**2), df=4)
        assert each[c, b].tolist() == pytest.approx(total, rel=1e-9, abs=1e-9)
    # without weights nothing of it is left
    plain = make_model(noise="student_t")
    with torch.no_grad():
        model.noise.context_weight.zero_()
        plain.noise.log_relative_scale.copy_(model.noise.log_relative_scale)
    assert torch.equal(model.noise.scale, plain.noise.scale)


@pytest.mark.parametrize("with_hidden", [False, True])
def test_geometric_noise_draws_in_any_shape(make_model, make_scenes, with_hidden):
    """Masks have the axis of scenes only; draws and chains come before it, whatever their number."""
    scenes = make_scenes(padded=() if with_hidden else [1])
    model = geometric(make_model, scenes)
    num_edges = 12 if with_hidden else 6
    hidden = torch.ones(4, 1, 2, dtype=torch.double) if with_hidden else None
    torch.manual_seed(0)
    for batch in ((4,), (3, 4), (4, 4)):
        made = distribution(model, scenes, integers(2, *batch, num_edges), hidden, geometry=model.geometry)
        for sample in ((), (4,), (2, 3)):
            drawn = made.sample(sample)
            assert drawn.shape == (*sample, *batch, 4, 3, 2)
            assert drawn.isfinite().all()
        assert made.log_prob(scenes.trajectory[:, 1:]).shape == batch


@pytest.mark.statistical
def test_draws_of_each_scene_have_its_own_scale(make_model, make_scenes):
    """One frame: residuals over the scale of their scene and entity are Student-t, also where one entity is padded."""
    scenes = make_scenes(num_scenes=4, num_frames=2, padded=[1])
    model = geometric(make_model, scenes)
    structure = integers(2, 4, 6)
    made = distribution(model, scenes, structure, geometry=model.geometry)
    torch.manual_seed(0)
    drawn = made.sample((4000,))[:, :, 0]  # [S, B, N, D]
    mean = model.dynamics.step(scenes.trajectory[:, 0], structure, edge_mask=scenes.edge_mask).detach()
    for b in range(4):
        scale = model.noise(mean[b], model.geometry(scenes.trajectory[b, 0], scenes.edge_mask[b])).scale.detach()
        for n in range(3):
            if scenes.entity_mask[b, n]:
                residual = (drawn[:, b, n] - mean[b, n]) / scale[n]
                assert stats.kstest(residual[:, 0].numpy(), stats.t(4).cdf).pvalue > 1e-3


@pytest.mark.parametrize("horizon", [1, 3])
def test_missing_states_do_not_scale_the_noise(make_model, make_scenes, horizon):
    scenes = make_scenes(num_frames=8, missing=0.1)
    model = geometric(make_model, scenes, horizon=horizon)
    made = distribution(model, scenes, integers(2, 4, 6), horizon=horizon, geometry=model.geometry)
    value = scenes.trajectory[:, 1:]
    unseen = ~scenes.observation_mask[:, 1:]
    other = torch.where(unseen[..., None], torch.full_like(value, 55.0), value)
    torch.testing.assert_close(made.log_prob(other), made.log_prob(value), rtol=1e-12, atol=1e-12)
