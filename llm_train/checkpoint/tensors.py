"""Parameters and optimizer state as one flat dictionary of named tensors.

Optimizer state is stored under the name of its parameter, not its position in a group. What groups
hold is not stored here: on resume it comes from the configuration, but for ``group_state``.
A file written by one strategy on some ranks therefore loads into any other on any number of ranks.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from llm_train.checkpoint import dcp
from llm_train.checkpoint.rank_state import RankState
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


def state(
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    own: str = "",
    shared: Mapping[str, Tensor] | None = None,
) -> RankState:
    """What this rank has to write; nothing is copied.

    Args:
        network: its parameters and persistent buffers.
        optimizer: of the network; None leaves its state out.
        own: put before every key, where the state of this rank is no other rank's.
        shared: further tensors, the same on all ranks, under these keys.
    """
    found, scalars = _collect(network, optimizer)
    tensors = {own + key: tensor for key, tensor in found.items()} | dict(shared or {})
    return RankState(tensors=tensors, scalars=scalars, own=own)


def load(
    directory: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    own: str = "",
    shared: Mapping[str, Tensor] | None = None,
) -> None:
    """Reads into the parameters in place, and rebuilds the optimizer's state.

    Args:
        directory: what ``dcp.write`` filled with ``state``.
        network: gets every parameter and persistent buffer.
        optimizer: gets its state; None leaves that where it is, and takes an average that it kept
            of the weights in their place.
        own: as it was saved with; keys without it are somebody else's.
        shared: further tensors to read into, as far as they are stored.

    Raises:
        CheckpointError: names, shapes or the format of the optimizer's state do not fit.
    """
    everything = dcp.keys(directory)
    stored = {k.removeprefix(own): v for k, v in everything.items() if k.startswith(own)}
    if optimizer is not None:
        _allocate(network, optimizer, stored)
    found, _ = _collect(network, optimizer)
    require_fit(directory, stored, {key: tensor.shape for key, tensor in found.items()})
    if optimizer is None:  # somebody who will not train takes the average, where there is one
        found = {averaged(key, stored): tensor for key, tensor in found.items()}
    tensors = {own + key: tensor for key, tensor in found.items()}
    tensors.update({key: t for key, t in (shared or {}).items() if key in everything})
    dcp.read(directory, tensors)
    if optimizer is not None:
        scalars = dcp.read_scalars(directory, own)
        for name, parameter in _parameters(network).items():
            if name in scalars:
                optimizer.state[parameter].update(scalars[name])


def averaged(key: str, stored: Mapping[str, Any]) -> str:
    """The key of an optimizer's average of a weight, or of the weight itself."""
    average = f"optimizer.{key.removeprefix('model.')}.average"
    return average if average in stored else key


def require_fit(
    directory: Path, stored: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuses a file of another network or optimizer.

    Args:
        directory: named in the message.
        stored: DCP's records by key.
        shapes: by key, of all that is held of a kind: ``model.`` and perhaps ``optimizer.``.

    Raises:
        CheckpointError: other names or shapes.
    """
    kinds = {key.split(".")[0] for key in shapes}
    found = {key: tuple(m.size) for key, m in stored.items() if key.split(".")[0] in kinds}
    wanted = {key: tuple(shape) for key, shape in shapes.items()}
    wrong = [key for key in wanted | found if wanted.get(key) != found.get(key)]
    if wrong:
        there, here = (shapes.get(wrong[0], "absent") for shapes in (found, wanted))
        raise CheckpointError(
            f"{directory} does not fit, with {len(wrong)} differences: {wrong[0]} is {there} there "
            f"and {here} here; use the configuration saved alongside the checkpoint"
        )


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
    """Everything to write or to read into by key, and what is no tensor by parameter."""
    tensors = model_tensors(network)
    scalars: dict[str, dict[str, Any]] = {}
    if optimizer is not None:
        for name, parameter in _parameters(network).items():
            state = optimizer.state.get(parameter, {})
            if isinstance(optimizer, SplitsState):
                state = optimizer.split(parameter, state)
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{name}.{key}"] = value
                else:
                    scalars.setdefault(name, {})[key] = value
    return tensors, scalars


def state_keys(name: str, stored: Mapping[str, Any]) -> dict[str, str]:
    """The optimizer's state of one parameter: what its optimizer calls it -> the key of a file."""
    prefix = f"optimizer.{name}."
    found = {key.removeprefix(prefix): key for key in stored if key.startswith(prefix)}
    return {short: key for short, key in found.items() if "." not in short}


def _allocate(
    network: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]
) -> None:
    """Gives the optimizer an empty tensor for every stored state of the parameters it updates."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    optimizer.state.clear()  # or state that the file lacks would stay as it was
    for name, parameter in _parameters(network).items():
        keys = state_keys(name, stored)
        if keys and parameter not in groups:
            raise CheckpointError(f"checkpoint has optimizer state for {name}, which is frozen now")
        if keys and isinstance(optimizer, SplitsState):
            optimizer.state[parameter] = optimizer.new_state(parameter)
        elif keys:
            group = groups[parameter]
            on_device = group.get("fused") or group.get("capturable")  # where a kernel counts
            counter = parameter.device if on_device else torch.device("cpu")
            optimizer.state[parameter] = {
                short: _empty(stored[key], parameter, counter if short == "step" else None)
                for short, key in keys.items()
            }


def _empty(
    meta: TensorStorageMetadata, parameter: nn.Parameter, device: torch.device | None
) -> Tensor:
    dtype = meta.properties.dtype
    if meta.size == parameter.shape:
        return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
    # A step counter, or a factored state, replicated on every rank.
    return torch.empty(meta.size, dtype=dtype, device=device or parameter.device)
