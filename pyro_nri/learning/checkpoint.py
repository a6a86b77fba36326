"""Model files: everything needed to use a trained model, and to resume its training bit for bit."""

import pickle
import warnings
import zipfile
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_nri.dynamics.force_laws import NUM_POINTS, NUM_SPLINES
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.inference.encoder import Encoder
from pyro_nri.inference.streams import generator
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.files import written_beside

FORMAT = "pyro_nri model"
VERSION = 2


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
        law_draws: spline coefficients of laws that the training scenes admit, ``[R, K, NUM_SPLINES]``; None where laws
            are no splines or were not drawn.
        law_support: effective number of scenes that speak about each law at its tabulated points,
            ``[K, NUM_POINTS]``; None as ``law_draws``.
    """

    spec: ModelSpec
    model: SceneModel
    encoder: Encoder | None = None
    alignment: list[int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] | None = None
    training_scenes: tuple[str, ...] = ()
    law_draws: Tensor | None = None
    law_support: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        """A short hash of the model's weights, by which the model of a posterior is known again."""
        digest = blake2b(digest_size=8)
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> None:
        """Move model and encoder to a device."""
        self.model.to(device)
        if self.encoder is not None:
            self.encoder.to(device)


@dataclass
class Ensemble:
    """Models of one kind, whose posteriors are mixed in equal parts.

    Attributes:
        members: M models, each with its own training scenes.
        labels: for each model, which of the ensemble's types each of its own K types is; by default the same.
        alignment: as that of a :class:`Checkpoint`, for the ensemble's types; from the first model's training scenes.
        training: plain values that describe the training of all models.
        training_scenes: fingerprints of the scenes that models were trained on.

    Raises:
        ValueError: there is no model, models are of different kinds, or labels are no permutations of the types.
    """

    members: list[Checkpoint]
    labels: list[list[int]] = field(default_factory=list)
    alignment: list[int] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    training_scenes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must hold at least one model, found none")
        if any(member.spec != self.spec for member in self.members):
            raise ValueError("members must be made of the same choices, found models of different kinds")
        types = list(range(self.spec.num_edge_types))
        self.labels = self.labels or [types for _ in self.members]
        if len(self.labels) != len(self.members) or any(sorted(labels) != types for labels in self.labels):
            raise ValueError(
                f"labels must be {len(self.members)} permutations of {len(types)} types, found {self.labels}"
            )

    @property
    def spec(self) -> ModelSpec:
        """What each model is made of."""
        return self.members[0].spec

    @property
    def fingerprint(self) -> str:
        """A short hash of all models, by which they are known again."""
        parts = [*(member.fingerprint for member in self.members), str(self.labels)]
        return blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()

    def to(self, device: torch.device | str) -> None:
        """Move all models to a device."""
        for member in self.members:
            member.to(device)


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


def save_checkpoint(checkpoint: Checkpoint | Ensemble, path: str | Path) -> None:
    """Write a model file; it appears whole or not at all.

    Args:
        checkpoint: a trained model, or an ensemble of some.
        path: where to; missing folders are made.

    Raises:
        ValueError: the file cannot be written.
    """
    if isinstance(checkpoint, Ensemble):
        content = {
            "members": [_content(member) for member in checkpoint.members],
            "labels": checkpoint.labels,
            "alignment": checkpoint.alignment,
            "training": checkpoint.training,
            "training_scenes": list(checkpoint.training_scenes),
        }
    else:
        content = _content(checkpoint)
    with written_beside(path) as beside:
        torch.save({"format": FORMAT, "version": VERSION, **content}, beside)


def _content(checkpoint: Checkpoint) -> dict[str, Any]:
    encoder = checkpoint.encoder
    return {
        "spec": checkpoint.spec.to_dict(),
        "model": checkpoint.model.state_dict(),
        "encoder": None
        if encoder is None
        else {"width": encoder.width, "rank": encoder.rank, "state": encoder.state_dict()},
        "alignment": checkpoint.alignment,
        "training": checkpoint.training,
        "trainer": checkpoint.trainer,
        "training_scenes": list(checkpoint.training_scenes),
        "law_draws": checkpoint.law_draws,
        "law_support": checkpoint.law_support,
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read the file of one model. Only tensors and plain values are loaded: a file that would run code is refused.

    Args:
        path: a file of :func:`save_checkpoint`, or of ``pyro-nri train``.

    Returns:
        The model with all that goes with it, on the CPU.

    Raises:
        ValueError: the file is missing, damaged, would run code, was made by another program or a newer version, or
            holds an ensemble.
    """
    model = load_model(path)
    if isinstance(model, Ensemble):
        raise ValueError(
            f"model file {str(path)!r} holds an ensemble of {len(model.members)} models, which serves to infer; here "
            f"one model is needed"
        )
    return model


def load_model(path: str | Path) -> Checkpoint | Ensemble:
    """Read a model file, of one model or of an ensemble, as :func:`load_checkpoint` does.

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
        raise ValueError(f"model file {str(path)!r} has format version {version}, this program reads {VERSION}")
    if version < VERSION:
        raise ValueError(
            f"model file {str(path)!r} has format version {version} of an older program, this one reads {VERSION}; "
            "train it again"
        )
    try:
        if "members" not in content:
            return _checkpoint(content)
        return Ensemble(
            [_checkpoint(member) for member in content["members"]],
            labels=content["labels"],
            alignment=content["alignment"],
            training=content["training"],
            training_scenes=tuple(content["training_scenes"]),
        )
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"model file {str(path)!r} is incomplete: {error}") from error


def _checkpoint(content: dict[str, Any]) -> Checkpoint:
    spec = ModelSpec.from_dict(content["spec"])
    width = None if content["encoder"] is None else content["encoder"]["width"]
    checkpoint = new_checkpoint(spec, encoder_width=width, seed=0)
    weights = dict(content["model"])
    if checkpoint.model.impulse_power is not None:
        weights.setdefault("impulse_power.lost", torch.zeros(()))  # older files have neither
        weights.setdefault("impulse_power.chance", torch.zeros(3))
    if checkpoint.model.density_power is not None:
        weights.setdefault("density_power.weight", torch.zeros(2))
    if isinstance(checkpoint.model.dynamics, PairForces):
        weights.setdefault("dynamics.leapfrog_steps", torch.tensor(0))
        weights.setdefault("dynamics.recorded_noise", torch.zeros(2))
    # Weights keep the precision that they were saved in.
    checkpoint.model.to(weights["score_scale"].dtype).load_state_dict(weights)
    if checkpoint.encoder is not None:
        if (rank := content["encoder"].get("rank")) is not None:  # older files have no such entry
            checkpoint.encoder.add_coupling(rank, generator=generator(0))
        checkpoint.encoder.to(content["encoder"]["state"]["units.scale"].dtype)
        checkpoint.encoder.load_state_dict(content["encoder"]["state"])
    checkpoint.alignment = content["alignment"]
    checkpoint.training = content["training"]
    checkpoint.trainer = content["trainer"]
    checkpoint.training_scenes = tuple(content["training_scenes"])
    checkpoint.law_draws = _law_tensor(content, "law_draws", (spec.num_edge_types, NUM_SPLINES))
    checkpoint.law_support = _law_tensor(content, "law_support", (NUM_POINTS,))
    return checkpoint


def _law_tensor(content: dict[str, Any], name: str, shape: tuple[int, ...]) -> Tensor | None:
    """A tensor whose last axes are ``shape``; None where the file, perhaps an older one, holds none."""
    value = content.get(name)
    if value is not None and (not isinstance(value, Tensor) or tuple(value.shape[1:]) != shape):
        raise TypeError(f"{name} is no tensor of last axes {list(shape)}")
    return value
