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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, StorageMeta
from torch.distributed.tensor import DTensor

from llm_train.errors import CheckpointError

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
        "uint8",
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


@runtime_checkable
class SplitsState(Protocol):
    """An optimizer whose state consists of tensors that a file cannot hold as they are."""

    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        """State as before the first step."""
        ...

    def split(self, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """``state`` in plain tensors and DTensors that share its memory."""
        ...


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


def save(
    directory: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    own: str = "",
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the state of this rank; replicated tensors are shared out among the ranks.

    Args:
        directory: exists, and is empty.
        network: its parameters and persistent buffers.
        optimizer: of the network; None writes no state of it.
        own: put before every key, where the state of this rank is no other rank's.
        beside: further tensors, the same on all ranks, under these keys.
    """
    state, scalars = _collect(network, optimizer)
    tensors = {own + key: tensor for key, tensor in state.items()} | dict(beside or {})
    alone = not dist.is_initialized()
    with _quiet():
        state_dict_saver.save(tensors, storage_writer=FileSystemWriter(directory), no_dist=alone)
    if own or alone or dist.get_rank() == 0:
        (directory / f"{own}{_SCALARS}").write_text(json.dumps(scalars))


def keys(directory: Path) -> dict[str, Any]:
    """What is stored in ``directory``: shapes and dtypes by key.

    Raises:
        CheckpointError: nothing of this format is there.
    """
    try:
        return dict(Reader(directory).read_metadata().state_dict_metadata)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{directory} holds no .metadata: not a checkpoint of this kind"
        ) from error


def load(
    directory: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    own: str = "",
    beside: Mapping[str, Tensor] | None = None,
) -> None:
    """Reads into the parameters in place, and rebuilds the optimizer's state beside them.

    Args:
        directory: what ``save`` filled.
        network: gets every parameter and persistent buffer.
        optimizer: gets its state; None leaves that where it is.
        own: as it was saved with; keys without it are somebody else's.
        beside: further tensors to read into, as far as they are stored.
    """
    everything = keys(directory)
    stored = {k.removeprefix(own): v for k, v in everything.items() if k.startswith(own)}
    model = model_tensors(network)
    _require_same_names(directory, set(model), {key for key in stored if key.startswith("model.")})
    for key, tensor in model.items():
        _require_same_shape(key, tensor, stored[key])
    tensors = dict(model)
    states: dict[nn.Parameter, dict[str, Any]] = {}
    if optimizer is not None:
        states = _allocate_optimizer_state(network, optimizer, stored)
        names = {parameter: name for name, parameter in _parameters(network).items()}
        for parameter, state in states.items():
            parts = _storable(optimizer, parameter, state)
            for key, value in parts.items():
                tensors[f"optimizer.{names[parameter]}.{key}"] = value
            if isinstance(optimizer, SplitsState):
                _require_same_parts(directory, names[parameter], parts, stored)
    tensors = {own + key: tensor for key, tensor in tensors.items()}
    tensors.update({key: t for key, t in (beside or {}).items() if key in everything})
    alone = not dist.is_initialized()
    with _quiet():
        state_dict_loader.load(tensors, storage_reader=Reader(directory), no_dist=alone)
    if optimizer is not None:
        scalars = json.loads((directory / f"{own}{_SCALARS}").read_text())
        for name, parameter in _parameters(network).items():
            states.setdefault(parameter, {}).update(scalars.get(name, {}))
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
    """Parameters and persistent buffers, by the keys they are stored under."""
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
            state = optimizer.state.get(parameter, {})
            for key, value in _storable(optimizer, parameter, state).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def _storable(
    optimizer: torch.optim.Optimizer, parameter: nn.Parameter, state: dict[str, Any]
) -> dict[str, Any]:
    return optimizer.split(parameter, state) if isinstance(optimizer, SplitsState) else state


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
            if isinstance(optimizer, SplitsState):
                states.setdefault(parameter, optimizer.new_state(parameter))
                continue
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


def _require_same_parts(
    directory: Path, name: str, parts: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Refuses state in another format, or cut in a way that this layout cannot hold."""
    prefix = f"optimizer.{name}."
    sizes = {key.removeprefix(prefix): m.size for key, m in stored.items() if prefix in key}
    found = {key: tuple(size) for key, size in sizes.items() if "." not in key}
    wanted = {key: tuple(value.shape) for key, value in parts.items()}
    if found != wanted:
        raise CheckpointError(
            f"{directory} holds {_listed(found)} of {name}, and model.optimizer here needs "
            f"{_listed(wanted)}; put the old model.optimizer back, or resume on the layout that "
            "saved it"
        )


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{key} {shape}" for key, shape in sorted(shapes.items()) if shape)


def _require_same_names(directory: Path, wanted: set[str], found: set[str]) -> None:
    missing, extra = sorted(wanted - found), sorted(found - wanted)
    if missing or extra:
        example = f"first missing: {missing[0]}" if missing else f"first unknown: {extra[0]}"
        raise CheckpointError(
            f"{directory} does not fit the network: {len(missing)} parameters missing, "
            f"{len(extra)} unknown ({example}); use the configuration saved beside the checkpoint"
        )


def _require_same_shape(key: str, tensor: Tensor, meta: Any) -> None:
    shape = tuple(tensor.shape) if not isinstance(tensor, DTensor) else tuple(tensor.size())
    if isinstance(meta, BytesStorageMetadata) or tuple(meta.size) != shape:
        stored = "bytes" if isinstance(meta, BytesStorageMetadata) else tuple(meta.size)
        raise CheckpointError(
            f"{key} has shape {shape} in the network but {stored} in the checkpoint; "
            "use the configuration saved beside the checkpoint"
        )
