"""The state of DeepSpeed's ZeRO optimizers in the format of all other strategies.

Every rank writes and reads its own fragments of masters and moments (``zero_layout``); nothing is
gathered and no second copy is made. Low-precision parameters are not stored: they are casts of the
masters. DeepSpeed's helpers (``safe_get_full_fp32_param`` and its like) gather one parameter at a
time and cannot create state that an optimizer makes at its first step, so the flat tensors are used
directly.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llm_train.checkpoint import dcp
from llm_train.checkpoint.rank_state import RankState
from llm_train.checkpoint.tensors import model_tensors, require_fit, state_keys
from llm_train.errors import CheckpointError
from llm_train.model.network.init import canonical_name
from llm_train.trainer.strategy.zero_layout import Holder, Partitioned


def holder(zero: Any, stage: int) -> Holder:
    """DeepSpeed's optimizer of a stage, asked for its flat tensors."""
    return Partitioned(zero) if stage == 3 else Holder(zero)


def state(network: nn.Module, holder: Holder) -> RankState:
    """This rank's fragments of masters and optimizer state."""
    names = _names(network)
    tensors = _not_updated(network, holder)
    others: dict[str, dict[str, Any]] = {}
    for index, flat in enumerate(holder.flats):
        sources = {"": flat.detach(), **holder.zero.optimizer.state.get(flat, {})}
        whole = sources[""].shape
        for parameter, place in holder.members[index].items():
            name = names[parameter]
            for key, value in sources.items():
                full_key = f"optimizer.{name}.{key}" if key else f"model.{name}"
                if not isinstance(value, Tensor):
                    others.setdefault(name, {})[key] = value
                elif value.shape == whole:
                    tensors[full_key] = place.fragment(value)
                elif value.numel() == 1:
                    tensors[full_key] = value
                else:
                    raise CheckpointError(
                        f"model.optimizer keeps {key} of another shape than ZeRO's flat fragments; "
                        "use an elementwise optimizer, or trainer.strategy=fsdp"
                    )
    return RankState(tensors=tensors, scalars=others)


def load(directory: Path, network: nn.Module, holder: Holder, *, with_optimizer: bool) -> None:
    """Reads this rank's fragments into masters and optimizer state, and derives the parameters."""
    names = _names(network)
    others = _not_updated(network, holder)
    shapes = {key: tensor.shape for key, tensor in others.items()}
    for group in holder.members:
        shapes.update({f"model.{names[p]}": place.shape for p, place in group.items()})
    stored = dcp.keys(directory)
    require_fit(directory, stored, shapes)
    with torch.no_grad(), holder.changing():
        dcp.read(directory, others)
        for index in range(len(holder.flats)):
            _load_group(directory, holder, index, names, stored if with_optimizer else {})
            holder.changed(index)


def _load_group(
    directory: Path,
    holder: Holder,
    index: int,
    names: Mapping[nn.Parameter, str],
    stored: Mapping[str, Any],
) -> None:
    flat, group = holder.flats[index], holder.zero.optimizer.param_groups[holder.group_of(index)]
    on_device = group.get("fused") or group.get("capturable")
    tensors: dict[str, Tensor] = {}
    moments: dict[str, Tensor] = {}
    counters: dict[str, dict[str, Tensor]] = {}
    for parameter, place in holder.members[index].items():
        name = names[parameter]
        tensors[f"model.{name}"] = place.fragment(flat)
        for key, full_key in state_keys(name, stored).items():
            meta = stored[full_key]
            if meta.size == place.shape and key != "step":
                if key not in moments:
                    moments[key] = torch.zeros_like(flat, dtype=meta.properties.dtype)
                tensors[full_key] = place.fragment(moments[key])
            elif meta.size.numel() == 1:
                device = flat.device if on_device else torch.device("cpu")
                value = torch.zeros(meta.size, dtype=meta.properties.dtype, device=device)
                tensors[full_key] = counters.setdefault(key, {})[name] = value
            else:
                raise CheckpointError(
                    f"{full_key} has shape {tuple(meta.size)}, and ZeRO can hold only state of "
                    f"the parameter's shape {tuple(place.shape)}; resume with trainer.strategy=fsdp"
                )
    dcp.read(directory, tensors)
    common: dict[str, Any] = {key: _one(key, values) for key, values in counters.items()}
    if stored:
        others = dcp.read_scalars(directory)
        for parameter in holder.members[index]:
            common.update(others.get(names[parameter], {}))
    if moments or common:
        holder.zero.optimizer.state[flat] = {**common, **moments}


def _one(key: str, values: Mapping[str, Tensor]) -> Tensor:
    """The value that a counter has for all parameters of a group, for ZeRO can keep one only."""
    (first, one), *rest = values.items()
    for name, value in rest:
        if not torch.equal(value, one):
            raise CheckpointError(
                f"the optimizer's {key} is {float(one)} for {first} and {float(value)} for {name}, "
                "and ZeRO counts once for a group; resume with trainer.strategy=fsdp"
            )
    return one


def _not_updated(network: nn.Module, holder: Holder) -> dict[str, Tensor]:
    """Buffers, and parameters that are in no group."""
    found = model_tensors(network)
    updated = {parameter for group in holder.members for parameter in group}
    for parameter, name in _names(network).items():
        if parameter in updated:
            del found[f"model.{name}"]
        else:
            found[f"model.{name}"] = holder.frozen(parameter)
    return found


def _names(network: nn.Module) -> dict[nn.Parameter, str]:
    return {parameter: canonical_name(name) for name, parameter in network.named_parameters()}
