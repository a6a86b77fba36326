"""Model files: everything needed to use a trained model, and to resume its training bit for bit."""

import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.streams import generator
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.files import written_beside

FORMAT = "pyro_nri model"
VERSION = 1


@dataclass
class Checkpoint:
    """A model with what belongs to it.

    Attributes:
        spec: what the model is made of.
        model: modules, noise and prior.
        encoder: the learned proposal, or None.
        alignment: for each inferred type the true type it stands for on the training scenes (-1: none), or None where
            truth is unknown. Never read by inference.
        training: plain values that describe the training: seed, scenes, steps, time.
        trainer: state of the training loop, or None when it ended and was not kept.
        training_scenes: fingerprints of the scenes that the model was trained on.
    """

    spec: ModelSpec
    model: SceneModel
    encoder: Encoder | None = None
    alignment: list[int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] | None = None
    training_scenes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A short hash of the model's weights, by which the model of a posterior is known again."""
        digest = blake2b(digest_size=8)
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def new_checkpoint(spec: ModelSpec, *, encoder_width: int | None = 64, seed: int) -> Checkpoint:
    """A model and an encoder with fresh weights.

    Args:
        spec: shape of the model.
        encoder_width: width of the encoder, or None for no encoder.
        seed: fixes the weights.
    """
    model = build_model(spec, generator(seed, "model"))
    encoder = None
    if encoder_width is not None:
        encoder = Encoder(
            spec.num_edge_types, len(spec.state_names), width=encoder_width, generator=generator(seed, "encoder")
        )
    return Checkpoint(spec, model, encoder)


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a model file; it appears whole or not at all.

    Raises:
        ValueError: the file cannot be written.
    """
    encoder = checkpoint.encoder
    content = {
        "format": FORMAT,
        "version": VERSION,
        "spec": checkpoint.spec.to_dict(),
        "model": checkpoint.model.state_dict(),
        "encoder": None if encoder is None else {"width": encoder.width, "state": encoder.state_dict()},
        "alignment": checkpoint.alignment,
        "training": checkpoint.training,
        "trainer": checkpoint.trainer,
        "training_scenes": list(checkpoint.training_scenes),
    }
    with written_beside(path) as beside:
        torch.save(content, beside)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a model file. Only tensors and plain values are loaded: a file that would run code is refused.

    Raises:
        ValueError: the file is missing, damaged, would run code, or was made by another program or a newer version.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"model file {str(path)!r} does not exist")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch has to say of files that are not ours
            content = torch.load(path, map_location="cpu", weights_only=True)
        with zipfile.ZipFile(path) as archive:  # torch does not look whether weights are what was written
            if (part := archive.testzip()) is not None:
                raise ValueError(f"the checksum of {part} is wrong")
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"model file {str(path)!r} is damaged or holds more than tensors and plain values; it was not loaded"
        ) from error
    except Exception as error:  # torch.load fails in many ways on bytes that are no checkpoint
        raise ValueError(f"model file {str(path)!r} is damaged or is not a model file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{str(path)!r} is not a model file of pyro_nri")
    version = content.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(f"model file {str(path)!r} has format version {version}, this program reads up to {VERSION}")
    try:
        spec = ModelSpec.from_dict(content["spec"])
        width = None if content["encoder"] is None else content["encoder"]["width"]
        checkpoint = new_checkpoint(spec, encoder_width=width, seed=0)
        # Weights keep the precision that they were saved in.
        checkpoint.model.to(content["model"]["score_scale"].dtype).load_state_dict(content["model"])
        if checkpoint.encoder is not None:
            checkpoint.encoder.to(content["encoder"]["state"]["units.scale"].dtype)
            checkpoint.encoder.load_state_dict(content["encoder"]["state"])
        checkpoint.alignment = content["alignment"]
        checkpoint.training = content["training"]
        checkpoint.trainer = content["trainer"]
        checkpoint.training_scenes = tuple(content["training_scenes"])
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"model file {str(path)!r} is incomplete: {error}") from error
    return checkpoint
