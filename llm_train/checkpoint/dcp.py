"""Files of named tensors in torch's distributed checkpointing format (DCP), read without trust.

DCP's ``.metadata`` is a pickle whatever one asks for, so it is read through an unpickler that
constructs nothing but DCP's own records. What is no tensor lies in a JSON file alongside it.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import metadata, state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter

from llm_train.checkpoint.fragments import FlatFragment, LoadPlanner, SavePlanner
from llm_train.errors import CheckpointError

_SCALARS = "optimizer_scalars.json"
_COPIED_AHEAD = 10_000_000  # bytes on their way from the device to a file; DCP's default
_PATHS = {"Path", "PosixPath", "PurePosixPath"}
_TRUSTED = {
    "pathlib": _PATHS,
    "pathlib._local": _PATHS,  # where Python 3.13 has them
    "torch": {"Size"} | {name for name, value in vars(torch).items() if type(value) is torch.dtype},
    "torch.serialization": {"_get_layout"},
    # All records but the one of bytes: DCP unpickles those with whatever they ask for.
    metadata.__name__: {*metadata.__all__, "_MEM_FORMAT_ENCODING"} - {"BytesStorageMetadata"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


class _RecordsOnly(pickle.Unpickler):
    """Refuses every global that DCP's metadata does not need."""

    def find_class(self, module: str, name: str) -> object:
        if name not in _TRUSTED.get(module, ()):
            raise CheckpointError(
                f"checkpoint metadata asks for {module}.{name}, which no checkpoint of ours "
                "contains; the file is damaged or hostile, do not load it"
            )
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """A DCP reader that never executes what it reads."""

    def read_metadata(self, *args: object, **kwargs: object) -> metadata.Metadata:
        """Parses ``.metadata`` with the restricted unpickler."""
        content = (Path(self.path) / ".metadata").read_bytes()
        return cast(metadata.Metadata, _RecordsOnly(io.BytesIO(content)).load())


def write(
    directory: Path,
    tensors: Mapping[str, Tensor | FlatFragment],
    scalars: Mapping[str, dict[str, Any]],
    *,
    own: str = "",
) -> None:
    """Writes tensors, or this rank's fragments of them; collective, replicas are shared out.

    Args:
        directory: exists, and is empty.
        tensors: by key.
        scalars: by parameter, what is no tensor.
        own: set where the scalars of this rank are no other rank's.
    """
    # DCP copies ahead in a stream of its own wherever there is a GPU, also for tensors on the host.
    ahead = _COPIED_AHEAD if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]
    with _quiet():
        state_dict_saver.save(
            dict(tensors),
            storage_writer=FileSystemWriter(directory, per_thread_copy_ahead=ahead),
            planner=SavePlanner(),
        )
    if own or not dist.is_initialized() or dist.get_rank() == 0:
        (directory / f"{own}{_SCALARS}").write_text(json.dumps(scalars))


def read(directory: Path, tensors: Mapping[str, Tensor | FlatFragment]) -> None:
    """Reads into ``tensors``, or into this rank's fragments of them, in place; collective."""
    with _quiet():
        state_dict_loader.load(
            dict(tensors),
            storage_reader=Reader(directory),
            planner=LoadPlanner(),
        )


def read_scalars(directory: Path, own: str = "") -> dict[str, dict[str, Any]]:
    """What ``write`` stored that is no tensor."""
    return cast(dict[str, Any], json.loads((directory / f"{own}{_SCALARS}").read_text()))


def keys(directory: Path) -> dict[str, Any]:
    """What is stored in ``directory``: DCP's records of shapes and dtypes by key.

    Raises:
        CheckpointError: nothing of this format is there.
    """
    try:
        return dict(Reader(directory).read_metadata().state_dict_metadata)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no .metadata: not a checkpoint of this kind"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """One process is what was asked for; DCP warns about it all the same."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            yield
        except CheckpointException as error:  # every rank gets it; not even an Exception in torch
            first = next(iter(error.failures.values()))[0]
            raise CheckpointError(f"the state could not be written or read: {first}") from error
