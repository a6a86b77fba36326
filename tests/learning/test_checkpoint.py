"""Model files: there and back, and everything that must not be loaded."""

import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pyro_nri.dynamics.force_laws import NUM_POINTS, NUM_SPLINES
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import FORMAT, VERSION, Checkpoint, load_checkpoint, new_checkpoint, save_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.scenes.scenes import Scenes

SPEC = ModelSpec(3, state_names=("x", "vx"), prior="symmetric", noise="normal", num_entity_kinds=1)


@pytest.fixture
def scenes():
    generator = torch.Generator().manual_seed(0)
    return Scenes.from_arrays(torch.randn(3, 6, 3, 2, generator=generator).cumsum(1))


@pytest.fixture
def checkpoint(scenes):
    made = new_checkpoint(SPEC, encoder_width=16, seed=3)
    made.model.fit_scaling(scenes)
    made.encoder.fit_scaling(scenes)
    made.alignment = [1, 0, -1]
    made.training = {"seed": 3, "num_steps": 7, "loss": 0.25, "note": "späte Nacht"}
    made.trainer = {"structure": torch.ones(3, 6, dtype=torch.long), "num_done": 7, "annealing": [1.0, 1.1]}
    made.training_scenes = ("0", "1", "2")
    return made


def test_round_trip(checkpoint, scenes, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint, path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]  # nothing is left beside it
    loaded = load_checkpoint(path)
    assert isinstance(loaded, Checkpoint)
    for name in ("spec", "alignment", "training", "training_scenes"):
        assert getattr(loaded, name) == getattr(checkpoint, name)
    for part in ("model", "encoder"):
        before, after = getattr(checkpoint, part).state_dict(), getattr(loaded, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(loaded.trainer["structure"], checkpoint.trainer["structure"])
    assert loaded.trainer["num_done"] == 7
    options = {"num_draws": 5, "seed": 0}
    one, other = (infer(each.model, scenes, encoder=each.encoder, **options) for each in (checkpoint, loaded))
    assert (one.log_joint == other.log_joint).all()


def test_drawn_laws(checkpoint, altered, tmp_path):
    """They are kept; older files have none; wrong shapes are refused."""
    assert load_checkpoint(saved(checkpoint, tmp_path)).law_draws is None
    draws, support = torch.randn(7, 3, NUM_SPLINES).double(), torch.rand(3, NUM_POINTS)
    loaded = load_checkpoint(saved(replace(checkpoint, law_draws=draws, law_support=support), tmp_path))
    assert torch.equal(loaded.law_draws, draws)
    assert torch.equal(loaded.law_support, support)

    def older(content):
        del content["law_draws"], content["law_support"]

    assert altered(older).law_support is None
    for name, value in (("law_draws", draws[:, :2]), ("law_draws", 5), ("law_support", support[:, 1:])):
        with pytest.raises(ValueError, match=f"incomplete: {name} is no tensor of last axes"):
            altered(lambda content, name=name, value=value: content.update({name: value}))


def test_couplings_of_the_encoder(checkpoint, altered, scenes, tmp_path):
    """They are kept, in single and double precision; older files have none."""
    assert load_checkpoint(saved(checkpoint, tmp_path)).encoder.rank is None
    assert altered(lambda content: content["encoder"].pop("rank")).encoder.rank is None
    for encoder in (checkpoint.encoder, checkpoint.encoder.double()):
        if encoder.coupling is None:
            encoder.add_coupling(rank=5, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            encoder.coupling.amount.add_(torch.rand(16, dtype=encoder.units.scale.dtype))
        loaded = load_checkpoint(saved(checkpoint, tmp_path)).encoder
        assert loaded.rank == 5
        assert loaded.coupling.amount.dtype == encoder.units.scale.dtype
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in encoder.state_dict().items())
    with pytest.raises(ValueError, match="incomplete"):
        altered(lambda content: content["encoder"].update(rank=4))


@pytest.mark.parametrize("name", ["charged5", "springs5"])
def test_models_that_come_with_the_project_load_as_they_were(name):
    found = load_checkpoint(Path(__file__).parents[2] / "data" / "models" / f"{name}.pt")
    assert found.encoder.rank is None
    assert not any("coupling" in key for key in found.encoder.state_dict())


def saved(checkpoint, folder):
    save_checkpoint(checkpoint, folder / "model.pt")
    return folder / "model.pt"


def test_saving_again_replaces_the_file(checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    path.write_bytes(b"old")
    save_checkpoint(checkpoint, str(path))
    save_checkpoint(replace(checkpoint, encoder=None, alignment=None, trainer=None), path)
    loaded = load_checkpoint(str(path))
    assert (loaded.encoder, loaded.alignment, loaded.trainer) == (None, None, None)


def test_a_failed_save_leaves_the_old_file(checkpoint, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint, path)
    old = path.read_bytes()
    checkpoint.training["bad"] = lambda: None  # cannot be written
    with pytest.raises((ValueError, pickle.PicklingError, AttributeError)):
        save_checkpoint(checkpoint, path)
    assert path.read_bytes() == old
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt"]


def test_a_place_that_cannot_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot be written"):
        save_checkpoint(checkpoint, tmp_path / "file" / "model.pt")


def test_double_precision_survives(checkpoint, tmp_path):
    checkpoint.model.double()
    checkpoint.encoder.double()
    with torch.no_grad():
        for parameter in [*checkpoint.model.parameters(), *checkpoint.encoder.parameters()]:
            parameter.add_(1e-12)  # lost in single precision
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    for part in ("model", "encoder"):
        before, after = getattr(checkpoint, part).state_dict(), getattr(loaded, part).state_dict()
        assert all(before[name].dtype == after[name].dtype for name in before)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_seeds_fix_the_weights_and_nothing_global():
    before = torch.get_rng_state()
    one, same, other = (new_checkpoint(SPEC, seed=seed) for seed in (0, 0, 1))
    for part in ("model", "encoder"):
        weights = [getattr(each, part).state_dict() for each in (one, same, other)]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
        assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert new_checkpoint(SPEC, encoder_width=None, seed=0).encoder is None


# --- refused ---------------------------------------------------------------------------------------------------------
def test_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(checkpoint, tmp_path, share):
    path = tmp_path / "model.pt"
    save_checkpoint(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [b"hello", b"\x00" * 100, b"scene,entity,time\n1,2,3\n", b"PK\x03\x04 no zip"])
def test_a_file_of_something_else(tmp_path, content):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="model file"):
        load_checkpoint(path)


def test_a_zip_of_something_else(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "nothing here")
    with pytest.raises(ValueError, match="model file"):
        load_checkpoint(path)


class Attack:
    """Unpickling this runs a command."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["pickle 2", "pickle 5", "torch", "inside a model file"])
def test_a_file_that_would_run_code(checkpoint, tmp_path, how):
    path, marker = tmp_path / "model.pt", tmp_path / "it_ran"
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(Attack(marker), protocol=int(how[-1])))
    elif how == "torch":
        torch.save(Attack(marker), path)
    else:
        save_checkpoint(checkpoint, path)
        content = torch.load(path, weights_only=True)
        content["training"] = {"seed": Attack(marker)}
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"was not loaded|damaged|not a model file"):
        load_checkpoint(path)
    assert not marker.exists()
    if how == "torch":  # the file is a real threat: loading without care does run it
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize("content", [[1, 2], {"a": torch.ones(2)}, {"format": "another program", "version": 1}])
def test_a_foreign_file(tmp_path, content):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match="is not a model file of pyro_nri"):
        load_checkpoint(path)


@pytest.fixture
def altered(checkpoint, tmp_path):
    """Load a model file after a change of its content."""

    def load(change):
        path = tmp_path / "model.pt"
        save_checkpoint(checkpoint, path)
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        return load_checkpoint(path)

    return load


def test_a_newer_version(altered):
    with pytest.raises(ValueError, match=f"has format version {VERSION + 1}, this program reads {VERSION}"):
        altered(lambda content: content.update(version=VERSION + 1))


@pytest.mark.parametrize(
    "name", ["version", "spec", "model", "encoder", "alignment", "training", "trainer", "training_scenes"]
)
def test_a_missing_entry(altered, name):
    with pytest.raises(ValueError, match="model file"):
        altered(lambda content: content.pop(name))


def test_weights_of_another_number_of_types(altered):
    with pytest.raises(ValueError, match="incomplete"):
        altered(lambda content: content["spec"].update(num_edge_types=2))


def test_weights_missing(altered):
    with pytest.raises(ValueError, match="incomplete"):
        altered(lambda content: content["model"].pop("noise.log_relative_scale"))


def test_an_unknown_choice(altered):
    with pytest.raises(ValueError, match="prior must be one of"):
        altered(lambda content: content["spec"].update(prior="from the future"))
    with pytest.raises(ValueError, match="newer version"):
        altered(lambda content: content["spec"].update(future="yes"))


@pytest.mark.parametrize("name", ["spec", "model", "encoder", "training_scenes"])
def test_entries_of_another_kind(altered, name):
    with pytest.raises(ValueError, match=r"model file|description"):
        altered(lambda content: content.update({name: 5}))


def test_format_and_version_are_what_files_say(checkpoint, tmp_path):
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    assert (content["format"], content["version"]) == (FORMAT, VERSION) == ("pyro_nri model", 2)
