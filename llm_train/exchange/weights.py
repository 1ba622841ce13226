"""Where weights come from: a checkpoint of ours, or a folder in Hugging Face's format.

Both are read one whole parameter at a time, under our names and without rows that pad the
vocabulary, so that whoever reads never holds more than one.
"""

import dataclasses
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_train.checkpoint import dcp, manifest
from llm_train.checkpoint.compatibility import require_weights
from llm_train.checkpoint.store import CheckpointStore
from llm_train.checkpoint.tensors import averaged
from llm_train.errors import CheckpointError, ConfigError
from llm_train.exchange.families import Family, families
from llm_train.exchange.safetensor_files import Folder, readable, transformers
from llm_train.model.network.meta import without_memory
from llm_train.model.network.rotary_scaling.base import RotaryScaling
from llm_train.model.network.transformer import Transformer
from llm_train.runtime import yaml12


class Weights(ABC):
    """Named parameters somewhere.

    Args:
        path: where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of every parameter."""

    @property
    @abstractmethod
    def arguments(self) -> Mapping[str, Any]:
        """Of the network that has them, as YAML has it."""

    @abstractmethod
    def read(self, name: str) -> Tensor:
        """One parameter, in the type in which it is stored."""


class CheckpointWeights(Weights):
    """The weights of a checkpoint, whatever strategy wrote it; averages where there are some."""

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return stored(self.path)

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """As the checkpoint's own configuration has them."""
        settings = yaml12.load((self.path / "config.yaml").read_text())
        return dict(settings["model"]["network"].get("init_args", {}))

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As stored, without rows that pad."""
        found = {}
        for key, meta in self._stored.items():
            if key.startswith("model."):
                name, size = key.removeprefix("model."), tuple(meta.size)
                found[name] = (self._cut(name) or size[0], *size[1:]) if size else size
        return found

    def read(self, name: str) -> Tensor:
        """Reads it alone, on this rank."""
        key = averaged(f"model.{name}", self._stored)
        whole = read_alone(self.path / "state", key, self._stored)
        return whole[: self._cut(name)] if self._cut(name) else whole

    def _cut(self, name: str) -> int:
        """Rows for token ids; 0 where the network does not say, and pads nothing."""
        table = name in ("embedding.weight", "head.weight")
        return int(self.arguments.get("vocab_size", 0)) if table else 0


class FolderWeights(Weights):
    """The weights of a folder in Hugging Face's format.

    Args:
        path: of the folder.
        network: what computes the same as its ``config.json``.
        family: its architecture.
    """

    def __init__(self, path: Path, network: Transformer, family: Family) -> None:
        super().__init__(path)
        self.network, self.family = network, family
        self._folder = Folder(path)

    @cached_property
    def like(self) -> Mapping[str, Tensor]:
        """Parameters on the meta device: shapes that config.json says, and types of the files.

        Raises:
            CheckpointError: the files hold something else, or cannot be read.
        """
        with without_memory():
            built = self.network.build()
        found = {}
        for name, parameter in built.named_parameters():
            try:
                found[name] = self.family.ours(self.network, name, self._folder.like)
                fits = found[name].shape == parameter.shape
            except RuntimeError as error:  # parts that make no whole
                if isinstance(error, CheckpointError):
                    raise
                fits = False
            if not fits:
                raise CheckpointError(
                    f"{self.path}: {name} is {tuple(parameter.shape)} by its config.json, and its "
                    "weights have another shape; they do not match"
                )
        return found

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """Of every field."""
        found = {}
        for field in dataclasses.fields(self.network):
            value = getattr(self.network, field.name)
            if isinstance(value, RotaryScaling):
                value = {"class_path": type(value).__name__, "init_args": dict(vars(value))}
            found[field.name] = value
        return found

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of the network that the folder's configuration describes."""
        return {name: tuple(tensor.shape) for name, tensor in self.like.items()}

    def read(self, name: str) -> Tensor:
        """Put together from its parts."""
        return self.family.ours(self.network, name, self._folder.read)


def stored(checkpoint: Path) -> dict[str, Any]:
    """Sizes and types of the weights of a checkpoint."""
    require_weights(checkpoint, manifest.read(checkpoint).metadata)
    return dcp.keys(checkpoint / "state")


def read_alone(folder: Path, key: str, stored: Mapping[str, Any]) -> Tensor:
    """One tensor of those that are stored in a folder, on this rank alone."""
    whole = torch.empty(stored[key].size, dtype=stored[key].properties.dtype)
    dcp.read(folder, {key: whole}, alone=True)
    return whole


def open_folder(path: Path) -> FolderWeights:
    """A folder in Hugging Face's format.

    Raises:
        ConfigError: an architecture, or a feature of one, that is not known here.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} does not exist, or holds no config.json; name one in Hugging Face's format"
        )
    with readable(path / "config.json"):
        kind = dict(json.loads((path / "config.json").read_text())).get("model_type")
    known = {family.model_type: family for family in families()}
    if kind not in known:
        raise ConfigError(f"{path}: model_type={kind} is none of {', '.join(sorted(known))}")
    config = transformers().AutoConfig.from_pretrained(path, local_files_only=True)
    try:
        return FolderWeights(path, known[kind].network(config.to_dict()), known[kind])
    except ConfigError as error:
        raise ConfigError(f"{path}: no network here computes the same: {error}") from error


def open_weights(where: str) -> Weights:
    """Weights of a folder in Hugging Face's format, of a checkpoint, or of a run's newest one.

    Raises:
        CheckpointError: there are none.
        ConfigError: a folder of an architecture that is not known here.
    """
    path = Path(where)
    if (path / "config.json").is_file():
        return open_folder(path)
    found = CheckpointStore(path).resolve(path).path
    assert found is not None, "resolve raises where there is none"
    return CheckpointWeights(found)
