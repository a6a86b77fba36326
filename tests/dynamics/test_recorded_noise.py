"""Noise of recordings in impulses: found, and whitened as its covariance says."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_nri.dynamics.recorded_noise import MAX_STRETCH, recorded_noise
from pyro_nri.scenes.simulate import simulate


def nothing(r):
    return 0 * r


def spring(r):
    return -0.1 * r


def noise_of(scenes):
    state = scenes.trajectory
    return recorded_noise(state[..., :2], state[..., 2:], scenes.transition_mask, scenes.time_step)


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.05])
def test_noise_is_found(noise):
    """Medians of 100 x 46 x 5 x 2 numbers that overlap: 3 %."""
    assert noise_of(simulate("springs", 100, seed=0, measurement_noise=noise)) == pytest.approx(
        (noise, noise), rel=0.03
    )


@pytest.mark.parametrize("system", ["springs", "charged"])
def test_quiet_recordings_have_none(system):
    assert noise_of(simulate(system, 50, seed=0)) == (0.0, 0.0)
    assert noise_of(simulate(system, 50, seed=0, measurement_noise=1e-5)) == (0.0, 0.0)


def test_too_few_frames_say_nothing():
    assert noise_of(simulate("springs", 5, seed=0, num_frames=3, measurement_noise=0.05)) == (0.0, 0.0)
    scenes = simulate("springs", 5, seed=0, measurement_noise=0.05)
    state = scenes.trajectory
    assert recorded_noise(state[..., :2], state[..., 2:], torch.zeros(5, 48, 5).bool(), 0.1) == (0.0, 0.0)


@pytest.fixture
def noisy(make_pair_forces):
    """Springs far from walls, noise of 0.02, and dynamics that know of it and of the law."""
    scenes = simulate("springs", 200, seed=1, num_frames=30, num_entities=3, measurement_noise=0.02, box=float("inf"))
    dynamics = make_pair_forces(nothing, spring, low=0.01)
    dynamics.recorded_noise.copy_(torch.tensor([0.02, 0.02]))
    return dynamics, scenes


def residuals(dynamics, scenes, features):
    impulses = features.impulses(dynamics.laws)  # [B, T - 1, N, N - 1, K, S]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    result = features.target.clone()
    for b in range(len(result)):
        for j in range(3):
            senders = [i for i in range(3) if i != j]
            for place, i in enumerate(senders):
                kind = int(scenes.edge_type[b, pairs.index((i, j))])
                result[b, :, j] -= impulses[b, :, j, place, kind]
    return result


def test_errors_come_out_independent_and_of_one_size(noisy):
    dynamics, scenes = noisy
    raw = residuals(dynamics, scenes, dynamics.features(scenes, whiten=False))
    white = residuals(dynamics, scenes, dynamics.features(scenes))
    size = 2**0.5 * 0.02 / 0.1

    def neighbours(each):
        flat = each.movedim(1, -1).reshape(-1, each.shape[1]).numpy()
        return np.corrcoef(flat[:, :-1].ravel(), flat[:, 1:].ravel())[0, 1]

    assert neighbours(raw) == pytest.approx(-0.5, abs=0.03)
    assert neighbours(white) == pytest.approx(0, abs=0.03)
    assert float(white.std()) == pytest.approx(size, rel=0.05)
    for frame in (0, 10, 28):  # from the first to the last, no drift
        assert float(white[:, frame].std()) == pytest.approx(size, rel=0.1)
    assert stats.kstest(white.flatten()[::7].numpy() / size, "norm").statistic < 0.03


def test_whitening_is_the_inverse_root_of_the_covariance(noisy):
    """By NumPy, for one receiver: the covariance of differences of noisy velocities, and nothing else here."""
    dynamics, scenes = noisy
    features = dynamics.features(scenes[:1])
    size = 2**0.5 * 0.02 / 0.1
    count = scenes.num_frames - 1
    mixing = features.mixing[0, 1, 0].numpy()
    assert np.allclose(np.triu(mixing, 1), 0)
    covariance = np.linalg.inv(mixing) @ np.linalg.inv(mixing).T * size**2
    expected = size**2 * (np.eye(count) - np.eye(count, k=1) / 2 - np.eye(count, k=-1) / 2)
    off = covariance - np.diag(np.diag(covariance))
    assert np.allclose(off, expected - np.diag(np.diag(expected)), atol=1e-9)
    extra = np.diag(covariance) / size**2 - 1
    assert (extra > 0).all()
    assert (extra < 0.01).all()  # what laws leave unexplained, and what errors of positions do to a spring
    raw = dynamics.features(scenes[:1], whiten=False)
    torch.testing.assert_close(features.target[0, :, 1], torch.from_numpy(mixing @ raw.target[0, :, 1].numpy()))
    volume = np.log(np.diag(mixing)) * 2
    torch.testing.assert_close(features.log_volume[0, :, 1], torch.from_numpy(volume))
    assert float(raw.log_volume.abs().max()) == 0


def test_all_that_features_give_is_mixed_alike(noisy):
    dynamics, scenes = noisy
    raw, white = dynamics.features(scenes[:4], whiten=False), dynamics.features(scenes[:4])
    incoming = torch.zeros(4, 3, 2, dtype=torch.long)
    for name in ("impulses", "lag_impulses", "held_impulses"):
        before, after = (getattr(each, name)(dynamics.laws) for each in (raw, white))
        torch.testing.assert_close(after, torch.einsum("bntu,bun...->btn...", white.mixing[:, :, 0], before))
    before, after = (each.design(dynamics.laws, incoming) for each in (raw, white))
    torch.testing.assert_close(after, torch.einsum("bntu,bun...->btn...", white.mixing[:, :, 0], before))
    torch.testing.assert_close(white[1:3].impulses(dynamics.laws), white.impulses(dynamics.laws)[1:3])
    assert white.to(torch.float32).mixing.dtype == torch.float32


def test_a_gap_or_a_bounce_parts_the_series(noisy):
    dynamics, scenes = noisy
    seen = scenes.observation_mask.clone()
    seen[0, 12, 1] = False
    holed = scenes.__class__.from_arrays(
        scenes.trajectory, time_step=0.1, state_names=scenes.state_names, observation_mask=seen
    )
    mixing = dynamics.features(holed).mixing[0, :, 0]
    assert float(mixing[:, 12:, :11].abs().max()) == 0  # changes 11 and 12 touch the frame that is missing
    assert float(mixing[:, 5, 4].abs().min()) > 0
    walled = simulate("springs", 40, seed=1, num_frames=49, measurement_noise=0.02, box=1.5)
    dynamics.low.fill_(-1.5)
    dynamics.high.fill_(1.5)
    features = dynamics.features(walled)
    assert features.mixing.isfinite().all()
    alone = (features.mixing.tril(-1).abs().amax(-1) == 0).sum(-1)  # changes that begin a series
    assert (alone > 1).any()


def test_long_recordings_are_whitened_stretch_by_stretch(noisy):
    dynamics, _ = noisy
    scenes = simulate("springs", 3, seed=1, num_frames=150, num_entities=3, measurement_noise=0.02, box=float("inf"))
    features = dynamics.features(scenes)
    assert features.mixing.shape == (3, 3, 3, MAX_STRETCH, MAX_STRETCH)
    first = dynamics.features(scenes.frames(0, MAX_STRETCH + 1))
    torch.testing.assert_close(features.target[:, :MAX_STRETCH], first.target)
    later = dynamics.features(scenes.frames(2 * MAX_STRETCH, 150))
    torch.testing.assert_close(features.target[:, 2 * MAX_STRETCH :], later.target)
    torch.testing.assert_close(features.log_volume[:, 2 * MAX_STRETCH :], later.log_volume)


def test_quiet_features_are_as_they_were(noisy):
    dynamics, scenes = noisy
    dynamics.recorded_noise.zero_()
    features = dynamics.features(scenes)
    assert features.mixing is None
    assert torch.equal(features.target, dynamics.features(scenes, whiten=False).target)
