"""Safetensors in shards of stated size, written and read with one shard, or one tensor, in memory.

How many shards there will be is known only when the last one is full, and their names say it: they
are renamed at the end.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm_train.errors import CheckpointError
from llm_train.runtime.extras import library
from llm_train.runtime.sharded import tensor_bytes

INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"
_WHAT = "a folder in Hugging Face's format"
_TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Names the file of a folder that cannot be read: absent, cut, or not what its name says."""
    of_library = safetensors().SafetensorError
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, of_library) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be read ({reason}); get the folder again") from error


def transformers() -> Any:
    """The library, which takes seconds to import."""
    return library("transformers", "export", _WHAT)


def safetensors(part: str = "safetensors") -> Any:
    """The library, or a part of it."""
    return library(part, "export", _WHAT)


def write(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> int:
    """Writes tensors in their order and returns how many bytes they have.

    Args:
        folder: exists.
        tensors: by name; each is let go when its shard is written.
        shard_bytes: most bytes of a shard, unless a single tensor is larger.
    """
    places: dict[str, int] = {}
    shard: dict[str, Tensor] = {}
    held = total = count = 0
    for name, tensor in tensors:
        size = tensor_bytes(tensor)
        if shard and held + size > shard_bytes:
            count, held = count + 1, _save(folder, count, shard)
        shard[name], places[name] = tensor, count
        held, total = held + size, total + size
    _save(folder, count, shard)
    if count == 0:
        _part(folder, 0).rename(folder / ONE)
        return total
    names = [f"model-{n + 1:05}-of-{count + 1:05}.safetensors" for n in range(count + 1)]
    for number, name in enumerate(names):
        _part(folder, number).rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[number] for name, number in places.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return total


def _save(folder: Path, number: int, shard: dict[str, Tensor]) -> int:
    """Writes a shard and empties it; returns 0, the bytes that are held then."""
    part = _part(folder, number)
    safetensors("safetensors.torch").save_file(shard, part, metadata={"format": "pt"})
    part.chmod(folder.stat().st_mode & 0o666)  # safetensors 0.8 lets the owner alone read
    shard.clear()
    return 0


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


class Folder:
    """Reads tensors from the safetensors of a folder, one at a time.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def files(self) -> dict[str, Path]:
        """The file of each tensor.

        Raises:
            CheckpointError: there are no safetensors.
        """
        safe_open = safetensors().safe_open
        if (self.path / INDEX).is_file():
            with readable(self.path / INDEX):
                index = json.loads((self.path / INDEX).read_text())["weight_map"]
            return {name: self.path / file for name, file in index.items()}
        if not (self.path / ONE).is_file():
            raise CheckpointError(
                f"{self.path} holds no {ONE} and no {INDEX}; save the model with "
                "save_pretrained(..., safe_serialization=True)"
            )
        with readable(self.path / ONE), safe_open(self.path / ONE, framework="pt") as file:
            return dict.fromkeys(file.keys(), self.path / ONE)

    def read(self, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: there is none of this name, or its file cannot be read.
        """
        with self._opened(name) as (file, stored):
            tensor: Tensor = file.get_tensor(stored)
        return tensor

    def like(self, name: str) -> Tensor:
        """Its shape and type, from the head of its file.

        Raises:
            CheckpointError: there is none of this name, its type is not one of ours, or its file
                cannot be read.
        """
        with self._opened(name) as (file, stored):
            about = file.get_slice(stored)
            if (kind := about.get_dtype()) not in _TYPES:
                raise CheckpointError(
                    f"{self.path}: {name} is stored as {kind}; only {', '.join(_TYPES)} are known "
                    "here: save the model in bfloat16"
                )
            return torch.empty(about.get_shape(), dtype=_TYPES[kind], device="meta")

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file of a tensor; a name may lack its first part, as in GPT-2's own files."""
        stored = next((n for n in (name, name.partition(".")[2]) if n in self.files), None)
        if stored is None:
            raise CheckpointError(
                f"{self.path} holds no tensor {name}; its config.json and its weights do not match"
            )
        path = self.files[stored]
        with readable(path), safetensors().safe_open(path, framework="pt") as file:
            yield file, stored
