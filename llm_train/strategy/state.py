"""Parameters and optimizer state as one flat dictionary of named tensors, in torch's DCP format.

Optimizer state is stored under the name of its parameter, not its position in a group, and the
hyper-parameters of the groups are not stored at all: on resume they come from the configuration.
A file written by one layout (replicated, sharded, another number of ranks) therefore loads into any
other. DCP's ``.metadata`` is a pickle whatever one asks for, so it is read through an unpickler
that constructs nothing but DCP's own records.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta

from llm_train.errors import CheckpointError
from llm_train.strategy.pieces import LoadPlanner, Piece, SavePlanner

_SCALARS = "optimizer_scalars.json"
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.")
_TRUSTED = {
    "collections": {"OrderedDict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # where Python 3.13 has them
    "torch": {
        "Size",
        "device",
        "dtype",
        "bfloat16",
        "float16",
        "float32",
        "float64",
        "int32",
        "int64",
        "strided",
        "contiguous_format",
        "preserve_format",
        "per_tensor_affine",
    },
    "torch.serialization": {"_get_layout"},
    "torch._utils": {"_rebuild_device"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "MetadataIndex",
        "Metadata",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.planner": {"WriteItemType"},
}


class _RecordsOnly(pickle.Unpickler):
    """Refuses every global that DCP's metadata does not need."""

    def find_class(self, module: str, name: str) -> Any:
        if name not in _TRUSTED.get(module, ()):
            raise CheckpointError(
                f"checkpoint metadata asks for {module}.{name}, which no checkpoint of ours "
                "contains; the file is damaged or hostile, do not load it"
            )
        return super().find_class(module, name)


class Reader(FileSystemReader):
    """A DCP reader that never executes what it reads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Parses ``.metadata`` with the restricted unpickler."""
        content = (Path(self.path) / ".metadata").read_bytes()
        metadata = cast(Metadata, _RecordsOnly(io.BytesIO(content)).load())
        about = getattr(metadata, "storage_meta", None) or StorageMeta()
        about.load_id = self.load_id
        metadata.storage_meta = about
        return metadata


def clean(name: str) -> str:
    """A parameter's name without what compilation and recomputation wrappers may add."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def save(directory: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Writes the state of this rank; replicated tensors are shared out among the ranks."""
    write(directory, *_collect(network, optimizer))


def write(
    directory: Path, tensors: Mapping[str, Tensor | Piece], scalars: Mapping[str, dict[str, Any]]
) -> None:
    """Writes tensors, or this rank's pieces of them, and by parameter what is no tensor."""
    alone = not dist.is_initialized()
    with _quiet():
        state_dict_saver.save(
            dict(tensors),
            storage_writer=FileSystemWriter(directory),
            planner=SavePlanner(),
            no_dist=alone,
        )
    if alone or dist.get_rank() == 0:
        (directory / _SCALARS).write_text(json.dumps(scalars))


def contents(directory: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """DCP's record of every tensor stored in ``directory``, which must fit the network.

    Args:
        directory: what ``write`` wrote.
        shapes: of the network's parameters and buffers, by key.

    Raises:
        CheckpointError: other names or shapes, or no checkpoint at all.
    """
    try:
        stored: dict[str, Any] = Reader(directory).read_metadata().state_dict_metadata
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no .metadata: not a checkpoint of this kind"
        ) from error
    _require_same_names(directory, set(shapes), {key for key in stored if key.startswith("model.")})
    for key, shape in shapes.items():
        _require_same_shape(key, shape, stored[key])
    return stored


def read(directory: Path, tensors: Mapping[str, Tensor | Piece]) -> None:
    """Reads into ``tensors``, or into this rank's pieces of them, in place."""
    with _quiet():
        state_dict_loader.load(
            dict(tensors),
            storage_reader=Reader(directory),
            planner=LoadPlanner(),
            no_dist=not dist.is_initialized(),
        )


def stored_scalars(directory: Path) -> dict[str, dict[str, Any]]:
    """What ``write`` stored by parameter that is no tensor."""
    stored: dict[str, dict[str, Any]] = json.loads((directory / _SCALARS).read_text())
    return stored


def load(directory: Path, network: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Reads into the parameters in place, and rebuilds the optimizer's state beside them."""
    model = model_tensors(network)
    stored = contents(directory, {key: tensor.shape for key, tensor in model.items()})
    tensors = dict(model)
    states: dict[nn.Parameter, dict[str, Any]] = {}
    if optimizer is not None:
        states = _allocate_optimizer_state(network, optimizer, stored)
        names = {parameter: name for name, parameter in _parameters(network).items()}
        for parameter, state in states.items():
            for key, value in state.items():
                tensors[f"optimizer.{names[parameter]}.{key}"] = value
    read(directory, tensors)
    if optimizer is not None:
        others = stored_scalars(directory)
        for name, parameter in _parameters(network).items():
            states.setdefault(parameter, {}).update(others.get(name, {}))
        optimizer.state.clear()
        optimizer.state.update({p: s for p, s in states.items() if s})


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


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    return {clean(name): parameter for name, parameter in network.named_parameters()}


def model_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by key."""
    tensors = {f"model.{name}": p.detach() for name, p in _parameters(network).items()}
    persistent = network.state_dict(keep_vars=True)
    for name, buffer in network.named_buffers():
        if name in persistent:
            tensors[f"model.{clean(name)}"] = buffer
    return tensors


def _collect(
    network: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    tensors = model_tensors(network)
    scalars: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        for name, parameter in _parameters(network).items():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def _allocate_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Any]
) -> dict[nn.Parameter, dict[str, Any]]:
    """Empty tensors for every stored state of the parameters this optimizer updates."""
    updated = {p for group in optimizer.param_groups for p in group["params"]}
    counted_on_device = {
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if group.get("fused") or group.get("capturable")
    }
    states: dict[nn.Parameter, dict[str, Any]] = {}
    for name, parameter in _parameters(network).items():
        prefix = f"optimizer.{name}."
        for key, meta in stored.items():
            rest = key.removeprefix(prefix)
            if rest == key or "." in rest:
                continue
            if parameter not in updated:
                raise CheckpointError(
                    f"checkpoint has optimizer state for {name}, which is frozen now"
                )
            if meta.size == parameter.shape:
                value = torch.empty_like(
                    parameter, dtype=meta.properties.dtype, requires_grad=False
                )
            else:  # a step counter, or a factored state, replicated on every rank
                beside = parameter in counted_on_device or rest != "step"
                device = parameter.device if beside else torch.device("cpu")
                value = torch.empty(meta.size, dtype=meta.properties.dtype, device=device)
            states.setdefault(parameter, {})[rest] = value.detach()
    return states


def _require_same_names(directory: Path, wanted: set[str], found: set[str]) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        example = f"first missing: {missing[0]}" if missing else f"first unknown: {extra[0]}"
        raise CheckpointError(
            f"{directory} does not fit the network: {len(missing)} parameters missing, "
            f"{len(extra)} unknown ({example}); use the configuration saved beside the checkpoint"
        )


def _require_same_shape(key: str, shape: Sequence[int], meta: Any) -> None:
    if isinstance(meta, BytesStorageMetadata) or tuple(meta.size) != tuple(shape):
        stored = "bytes" if isinstance(meta, BytesStorageMetadata) else tuple(meta.size)
        raise CheckpointError(
            f"{key} has shape {tuple(shape)} in the network but {stored} in the checkpoint; "
            "use the configuration saved beside the checkpoint"
        )
