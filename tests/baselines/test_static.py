"""Standing still."""

import pytest
import torch

from pyro_nri.baselines.static import Static


def test_every_later_state_is_the_last_one_seen(springs):
    path = Static().predict(springs, start=5, num_steps=3)
    assert path.shape == (12, 3, 3, 4)
    for step in range(3):
        assert torch.equal(path[:, step], springs.trajectory[:, 5])


@pytest.mark.parametrize(
    ("start", "num_steps", "sentence"), [(24, 1, "start must be"), (-1, 1, "start"), (3, 0, "num_s")]
)
def test_refuses(springs, start, num_steps, sentence):
    with pytest.raises(ValueError, match=sentence):
        Static().predict(springs, start=start, num_steps=num_steps)


def test_says_what_it_does_not_do(springs):
    with pytest.raises(ValueError, match="Static infers no structure"):
        Static().edge_probability(springs)
