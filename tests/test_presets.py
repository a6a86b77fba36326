"""The paper's method by name: what it sets, and that explicit arguments come first."""

import pytest
import torch

from pyro_nri.cli import main
from pyro_nri.fitting import fit
from pyro_nri.learning import bouncegrad
from pyro_nri.learning.checkpoint import load_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.presets import find_preset
from pyro_nri.scenes.readers import write_netcdf
from pyro_nri.scenes.simulate import simulate


@pytest.fixture(scope="module")
def springs():
    return simulate("springs", 4, num_entities=3, num_frames=12, seed=5)


@pytest.fixture
def trainers(monkeypatch):
    """All trainers that are made."""
    made, build = [], bouncegrad.BounceGrad.__init__

    def noted(self, *arguments, **options):
        build(self, *arguments, **options)
        made.append((self, options))

    monkeypatch.setattr(bouncegrad.BounceGrad, "__init__", noted)
    return made


def test_paper(springs, trainers):
    found = fit(springs, 2, preset="paper", num_steps=2, seed=0)
    trainer, options = trainers[0]
    assert (found.spec.preset, found.spec.horizon, found.spec.noise) == ("paper", 10, "normal")
    assert found.encoder.width == 256
    assert not found.spec.learn_type_weights
    assert [tuple(weight.shape[1:]) for weight in found.model.dynamics.edge_modules.weights] == [
        (8, 256),
        (256, 256),
        (256, 256),
    ]
    assert (trainer.inner, trainer.num_moves, trainer.learning_rate) == ("annealing", 1, 1e-4)
    assert options["batch_size"] == 128
    assert isinstance(trainer.encoder_optimizer, torch.optim.SGD)
    assert trainer.encoder_optimizer.param_groups[0]["momentum"] == 0.9


def test_what_is_said_comes_first(springs, trainers):
    fit(springs, 2, preset="paper", num_steps=1, seed=0, learning_rate=1e-2, encoder_sgd=None, num_moves=3)
    trainer, _ = trainers[0]
    assert (trainer.learning_rate, trainer.num_moves) == (1e-2, 3)
    assert isinstance(trainer.encoder_optimizer, torch.optim.Adam)


def test_encoder_by_sgd_takes_the_step_of_its_rate(springs):
    """The first step with momentum is rate x gradient: a tenth of the rate, a tenth of the step."""
    changes = []
    for rate in (0.1, 0.01):
        found = fit(springs, 2, num_steps=1, seed=0, encoder_sgd=rate)
        fresh = fit(springs, 2, num_steps=1, seed=0, encoder_sgd=1e-30)
        pairs = zip(found.encoder.parameters(), fresh.encoder.parameters(), strict=True)
        changes.append(torch.cat([(one - other).detach().flatten().double() for one, other in pairs]))
    assert changes[0].abs().max() > 1e-6
    assert float((changes[0] * changes[1]).sum() / changes[1].square().sum()) == pytest.approx(10, rel=0.05)


def test_command(springs, tmp_path, trainers):
    write_netcdf(springs, tmp_path / "train.nc")
    command = ["train", str(tmp_path / "train.nc"), "--num-edge-types", "2", "--preset", "paper", "--num-steps", "1"]
    command += ["--seed", "0", "--quiet", "--out", str(tmp_path / "model.pt"), "--horizon", "4"]
    assert main([*command, "--learning-rate", "0.01"]) == 0
    trainer, options = trainers[0]
    assert (trainer.inner, trainer.num_moves, trainer.learning_rate) == ("annealing", 1, 1e-2)
    assert options["batch_size"] == 128
    found = load_checkpoint(tmp_path / "model.pt")
    assert (found.spec.preset, found.spec.horizon, found.spec.noise) == ("paper", 4, "normal")
    assert found.training["choices"]["batch_size"] == 128


def test_refuses(springs):
    with pytest.raises(ValueError, match="preset must be one of small, paper"):
        find_preset("large")
    with pytest.raises(ValueError, match="the preset 'paper' is one of message passing"):
        fit(springs, spec=ModelSpec(2, dynamics="pair-forces"), preset="paper", num_steps=1, seed=0)
    with pytest.raises(ValueError, match="encoder_sgd must be positive"):
        fit(springs, 2, num_steps=1, seed=0, encoder_sgd=0.0)
