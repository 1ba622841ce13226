"""Parameters and optimizer state as one flat dictionary of named tensors.

Optimizer state is stored under the name of its parameter, not its position in a group, and the
hyper-parameters of the groups are not stored at all: on resume they come from the configuration.
A file written by one layout (replicated, sharded, another number of ranks) therefore loads into any
other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm_train.checkpoint import dcp
from llm_train.errors import CheckpointError
from llm_train.model.network.init import canonical_name


@runtime_checkable
class SplitsState(Protocol):
    """An optimizer whose state consists of tensors that a file cannot hold as they are."""

    def new_state(self, parameter: Tensor) -> dict[str, Any]:
        """State as before the first step."""
        ...

    def split(self, parameter: Tensor, state: dict[str, Any]) -> dict[str, Any]:
        """``state`` in plain tensors and DTensors that share its memory."""
        ...


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
    dcp.write(directory, tensors, scalars, own=own)


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

    Raises:
        CheckpointError: names, shapes or the format of the optimizer's state do not fit.
    """
    everything = dcp.keys(directory)
    stored = {k.removeprefix(own): v for k, v in everything.items() if k.startswith(own)}
    model = model_tensors(network)
    require_fit(directory, stored, {key: tensor.shape for key, tensor in model.items()})
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
    dcp.read(directory, tensors)
    if optimizer is not None:
        scalars = dcp.read_scalars(directory, own)
        for name, parameter in _parameters(network).items():
            states.setdefault(parameter, {}).update(scalars.get(name, {}))
        optimizer.state.clear()
        optimizer.state.update({p: s for p, s in states.items() if s})


def require_fit(
    directory: Path, stored: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuses a file of another network.

    Args:
        directory: named in the message.
        stored: DCP's records by key.
        shapes: of the network's parameters and buffers, by key.

    Raises:
        CheckpointError: other names or shapes.
    """
    _require_same_names(directory, set(shapes), {key for key in stored if key.startswith("model.")})
    for key, shape in shapes.items():
        _require_same_shape(key, shape, stored[key])


def _parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    return {canonical_name(name): parameter for name, parameter in network.named_parameters()}


def model_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by key."""
    tensors = {f"model.{name}": p.detach() for name, p in _parameters(network).items()}
    persistent = network.state_dict(keep_vars=True)
    for name, buffer in network.named_buffers():
        if name in persistent:
            tensors[f"model.{canonical_name(name)}"] = buffer
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


def state_keys(name: str, stored: Mapping[str, Any]) -> dict[str, str]:
    """The optimizer's state of one parameter: what its optimizer calls it -> the key of a file."""
    prefix = f"optimizer.{name}."
    found = {key.removeprefix(prefix): key for key in stored if key.startswith(prefix)}
    return {short: key for short, key in found.items() if "." not in short}


def _allocate_optimizer_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, stored: dict[str, Any]
) -> dict[nn.Parameter, dict[str, Any]]:
    """Empty tensors for every stored state of the parameters this optimizer updates."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    states: dict[nn.Parameter, dict[str, Any]] = {}
    for name, parameter in _parameters(network).items():
        keys = state_keys(name, stored)
        if keys and parameter not in groups:
            raise CheckpointError(f"checkpoint has optimizer state for {name}, which is frozen now")
        if keys and isinstance(optimizer, SplitsState):
            states[parameter] = optimizer.new_state(parameter)
        elif keys:
            group = groups[parameter]
            counts_on_device = bool(group.get("fused") or group.get("capturable"))
            states[parameter] = {
                short: _empty(
                    stored[key], parameter, on_cpu=short == "step" and not counts_on_device
                )
                for short, key in keys.items()
            }
    return states


def _empty(meta: TensorStorageMetadata, parameter: nn.Parameter, *, on_cpu: bool) -> Tensor:
    dtype = meta.properties.dtype
    if meta.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    # A step counter, or a factored state, replicated on every rank.
    return torch.empty(meta.size, dtype=dtype, device="cpu" if on_cpu else parameter.device)


def _require_same_parts(
    directory: Path, name: str, parts: dict[str, Any], stored: dict[str, Any]
) -> None:
    """Refuses state in another format, or cut in a way that this layout cannot hold."""
    found = {short: tuple(stored[key].size) for short, key in state_keys(name, stored).items()}
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


def _require_same_shape(key: str, shape: Sequence[int], meta: TensorStorageMetadata) -> None:
    if tuple(meta.size) != tuple(shape):
        raise CheckpointError(
            f"{key} has shape {tuple(shape)} in the network but {tuple(meta.size)} in the "
            "checkpoint; use the configuration saved beside the checkpoint"
        )
