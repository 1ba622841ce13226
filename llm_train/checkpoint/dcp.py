"""Files of named tensors in torch's distributed checkpointing format (DCP), read without trust.

DCP's ``.metadata`` is a pickle whatever one asks for, so it is read through an unpickler that
constructs nothing but DCP's own records. What is no tensor lies in a JSON file alongside it.
"""

import io
import json
import pickle
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import metadata, state_dict_loader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import _save_state_dict

from llm_train.checkpoint.fragments import BoxedTensor
from llm_train.checkpoint.rank_state import RankState
from llm_train.errors import CheckpointError
from llm_train.runtime.sharded import local_part, of_all_ranks

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
        path = Path(self.path) / ".metadata"
        content = io.BytesIO(path.read_bytes())
        with readable(path):
            return cast(metadata.Metadata, _RecordsOnly(content).load())


def write(directory: Path, state: RankState, group: dist.ProcessGroup | None = None) -> None:
    """Writes tensors, or this rank's parts of them; collective, and replicas are written once.

    Args:
        directory: is made, or is empty.
        state: of this rank.
        group: of all ranks; None: the default one.

    Raises:
        CheckpointError: on all ranks, before anything is written, if a number is not finite on any.
        CheckpointException: on all ranks, if one of them could not write.
    """
    _require_finite(state.tensors, group)
    # DCP would copy ahead in a stream of its own for tensors on the host, too.
    on_device = any(tensor.device.type == "cuda" for tensor in state.tensors.values())
    writer = FileSystemWriter(directory, per_thread_copy_ahead=_COPIED_AHEAD if on_device else 0)
    writer.reset()
    # ``save`` warns where there is one process; silencing a warning is not safe in a thread.
    _save_state_dict(dict(state.tensors), writer, group, no_dist=not dist.is_initialized())
    if state.own or not dist.is_initialized() or dist.get_rank() == 0:
        (directory / f"{state.own}{_SCALARS}").write_text(json.dumps(state.scalars))


class _OnDemand(DefaultSavePlanner):
    """Gets each tensor when it is written; what is planned with has no memory."""

    def __init__(self, load: Callable[[str], Tensor]) -> None:
        super().__init__()
        self._load = load

    def lookup_object(self, index: metadata.MetadataIndex) -> Tensor:
        """The tensor itself."""
        return self._load(index.fqn)


def write_each(directory: Path, like: Mapping[str, Tensor], load: Callable[[str], Tensor]) -> None:
    """Writes tensors one after another, of which there is one in memory at a time.

    Args:
        directory: is made, or is empty.
        like: their shapes and types, as tensors on the meta device.
        load: gives each.
    """
    writer = FileSystemWriter(directory, per_thread_copy_ahead=0)
    try:
        _save_state_dict(dict(like), writer, no_dist=True, planner=_OnDemand(load))
    except CheckpointException as error:  # not even an Exception in torch
        raise next(iter(error.failures.values()))[0] from error
    (directory / _SCALARS).write_text("{}")


def read(directory: Path, tensors: Mapping[str, Tensor], *, alone: bool = False) -> None:
    """Reads into ``tensors``, or into this rank's fragments of them, in place.

    Args:
        directory: what ``write`` filled.
        tensors: by key.
        alone: other ranks may read something else, or nothing; else it is collective.
    """
    reader = Reader(directory)
    reader.read_metadata()  # torch 2.11 would lose the reason for a refusal
    with warnings.catch_warnings():
        # One process is what was asked for; DCP warns about it all the same.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        try:
            state_dict_loader.load(dict(tensors), storage_reader=reader, no_dist=alone)
        except CheckpointException as error:  # every rank gets it; not even an Exception in torch
            first = next(iter(error.failures.values()))[0]
            if isinstance(first, KeyboardInterrupt):
                raise first from error
            raise CheckpointError(f"the state could not be read: {first}") from error


def read_scalars(directory: Path, own: str = "") -> dict[str, dict[str, Any]]:
    """What ``write`` stored that is no tensor."""
    path = directory / f"{own}{_SCALARS}"
    with readable(path):
        return cast(dict[str, Any], json.loads(path.read_text()))


def keys(directory: Path) -> dict[str, Any]:
    """What is stored in ``directory``: DCP's records of shapes and dtypes by key.

    Raises:
        CheckpointError: nothing of this format is there, or it claims more than there is.
    """
    try:
        found: dict[str, Any] = dict(Reader(directory).read_metadata().state_dict_metadata)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no .metadata: not a checkpoint of this kind"
        ) from error
    # What is claimed here is allocated before it is read.
    claimed = sum(int(m.size.numel()) * m.properties.dtype.itemsize for m in found.values())
    held = sum(file.stat().st_size for file in directory.glob("*.distcp"))
    if claimed > held:
        raise CheckpointError(
            f"{directory} claims {claimed:,} bytes of tensors in {held:,} bytes of files; it is "
            "damaged or hostile: take another checkpoint"
        )
    return found


def not_finite(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """How many numbers of this rank's part of each tensor are NaN or infinite; good ones left out.

    The extremes of a tensor show both, and cannot overflow as a sum of squares could. That is one
    pass over the memory (8.5 GiB/s on one core, a fifth of the time of the checksums) and one wait
    for the device per dtype.
    """
    found = {key: _numbers(tensor) for key, tensor in tensors.items()}
    extremes: dict[object, list[Tensor]] = defaultdict(list)  # by what can be stacked
    for part in (part for parts in found.values() for part in parts):
        extremes[part.device, part.dtype] += torch.aminmax(part)
    if all(bool(torch.stack(kind).isfinite().all()) for kind in extremes.values()):
        return {}
    counts = {key: sum(int((~p.isfinite()).sum()) for p in parts) for key, parts in found.items()}
    return {key: count for key, count in counts.items() if count}


def _numbers(tensor: Tensor) -> list[Tensor]:
    parts = (
        list(tensor.parts.values())
        if isinstance(tensor, BoxedTensor)
        else [local_part(tensor).detach()]
    )
    return [part for part in parts if part.is_floating_point() and part.numel()]


def _require_finite(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None) -> None:
    everyone = of_all_ranks(not_finite(tensors), group)
    wrong = [(key, n, rank) for rank, own in enumerate(everyone) for key, n in own.items()]
    if wrong:
        (key, count, rank), *others = wrong
        more = f" (and {sum(n for _, n, _ in others)} more in other tensors)" if others else ""
        raise CheckpointError(
            f"{key} holds {count} numbers that are not finite on rank {rank}{more}; resume from "
            "the last checkpoint with a lower learning rate or a longer warmup (a constant buffer "
            "that is meant to be infinite needs persistent=False)"
        )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns whatever a damaged or hostile file makes its reader raise into one line.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # pickle alone documents that it may raise any of them
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:100]
        raise CheckpointError(
            f"{path} cannot be read ({reason}); it is damaged or hostile: take another checkpoint"
        ) from error
