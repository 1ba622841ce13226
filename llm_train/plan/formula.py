"""Bytes of parameters, gradients and optimizer state by arithmetic, on rank 0, which has the most.

Per parameter, w bytes of its dtype (4, or 2 under bf16-true), s the optimizer's state::

    one device, DDP   w + 2 copy (bf16-mixed) + w gradient + s
    FSDP              (w + w + s) / shards, each parameter cut by rows and rounded up
    ZeRO 1            2 + 2 + (4 + s) / ranks             DeepSpeed keeps bf16 weights, fp32 masters
    ZeRO 2            2 + (2 + 4 + s) / ranks
    ZeRO 3            (2 + 2 + 4 + s) / ranks
    s                 as the optimizer's ``state_bytes`` has it: AdamW 2 w

Tensor parallelism cuts matrices before all of this. What FSDP holds for a while comes on top:
gathered parameters in the dtype of products, and, while gradients accumulate over micro-batches
without being reduced, whole gradients in fp32: 4 bytes a parameter that no number of ranks makes
smaller.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from llm_train.errors import ConfigError
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.linear import HasShadow
from llm_train.model.optimizer.base import Optimizer
from llm_train.plan.placing import Placing

_CUT_ROWS, _CUT_COLUMNS = ("column", "embedding", "head"), ("row",)


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One parameter as a plan sees it.

    Attributes:
        name: in the network.
        shape: whole.
        block: whether it belongs to a repeated layer.
        copied: whether it gets a bf16 copy on one device.
        cut: dimension that tensor parallelism cuts; -1 is none.
    """

    name: str
    shape: tuple[int, ...]
    block: bool
    copied: bool
    cut: int

    def local(self, placing: Placing) -> tuple[int, ...]:
        """Its shape on rank 0 where the strategy shards parameters."""
        rows, *rest = self.on_tensor_rank(placing)
        return (math.ceil(rows / placing.layout.shards), *rest)

    def on_tensor_rank(self, placing: Placing) -> list[int]:
        """Its shape on one rank of a tensor group."""
        shape = list(self.shape)
        if self.cut >= 0 and placing.layout.tensor > 1:
            shape[self.cut] = math.ceil(shape[self.cut] / placing.layout.tensor)
        return shape


def weights_of(config: Network) -> list[Weight]:
    """All parameters, tied ones once."""
    with torch.device("meta"):
        network = config.build()
    inside = {id(p) for block in network.blocks() for p in block.parameters()}
    copied = {id(module.weight) for module in network.modules() if isinstance(module, HasShadow)}
    cuts = _cuts(network)
    return [
        Weight(
            name=name,
            shape=tuple(parameter.shape),
            block=id(parameter) in inside,
            copied=id(parameter) in copied,
            cut=cuts.get(name, -1),
        )
        for name, parameter in network.named_parameters()
    ]


def _cuts(network: LanguageModel) -> dict[str, int]:
    """Parameter name to the dimension that tensor parallelism cuts."""
    try:
        roles = network.tensor_roles()
    except ConfigError:  # a network that cannot be cut is not cut
        return {}
    found: dict[str, int] = {}
    for path, role in roles.items():
        module: nn.Module = network.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            if role in _CUT_ROWS:
                found[f"{path}.{name}"] = 0
            elif role in _CUT_COLUMNS and parameter.ndim == 2:
                found[f"{path}.{name}"] = 1
    return found


@dataclass(frozen=True, kw_only=True)
class State:
    """Bytes on one rank that live from step to step, and those that come with the strategy.

    Attributes:
        parameters: as the optimizer updates them.
        copies: in bf16 beside them, or DeepSpeed's bf16 weights.
        gradients: before the update.
        optimizer: moments, and DeepSpeed's fp32 masters.
        gathered: largest set of gathered parameters alive at once.
        unreduced: whole gradients that wait for their reduction while micro-batches accumulate.
        reducing: buffers of a reduction on its way.
    """

    parameters: float
    copies: float
    gradients: float
    optimizer: float
    gathered: float = 0.0
    unreduced: float = 0.0
    reducing: float = 0.0

    @property
    def persistent(self) -> float:
        """What is there during a forward of the first micro-batch."""
        return self.parameters + self.copies + self.optimizer

    @property
    def total(self) -> float:
        """What is there in a backward beside activations."""
        gradients = max(self.gradients, self.unreduced) if self.unreduced else self.gradients
        return self.persistent + gradients + self.gathered + self.reducing


def state(
    weights: list[Weight],
    placing: Placing,
    optimizer: Optimizer,
    precision: str,
    *,
    accumulation: int,
) -> State:
    """The bytes of a strategy.

    Args:
        weights: of the network.
        placing: the strategy.
        optimizer: its class says how much state there is.
        precision: of the Trainer.
        accumulation: micro-batches of a step.
    """
    width = 2 if precision == "bf16-true" else 4
    if placing.kind.startswith("zero"):
        return _zero(weights, placing, optimizer)
    sharded = placing.kind == "fsdp"
    shapes = {w.name: w.local(placing) if sharded else w.shape for w in weights}
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    elements = sum(count.values())
    dtype = torch.bfloat16 if width == 2 else torch.float32
    moments = sum(_moments(optimizer, w, shapes[w.name], dtype) for w in weights)
    mixed = precision == "bf16-mixed"
    copies = 0 if sharded or not mixed else 2 * sum(count[w.name] for w in weights if w.copied)
    held = (
        _held(weights, placing, precision, accumulation)
        if sharded
        else {"gathered": 0.0, "unreduced": 0.0, "reducing": 0.0}
    )
    on_device = 0 if placing.offload else 1
    return State(
        parameters=width * elements * on_device,
        copies=copies,
        gradients=width * elements * on_device,
        optimizer=moments * on_device,
        **held,
    )


def _moments(
    optimizer: Optimizer, weight: Weight, shape: tuple[int, ...], dtype: torch.dtype
) -> int:
    """State of one parameter, as its optimizer says."""
    return optimizer.state_bytes(weight.name, torch.empty(shape, dtype=dtype, device="meta"))


def _held(
    weights: list[Weight], placing: Placing, precision: str, accumulation: int
) -> dict[str, float]:
    """What ``fully_shard`` holds for a while."""
    width = 2 if precision.startswith("bf16") else 4
    sizes = {w.name: math.prod(w.on_tensor_rank(placing)) for w in weights}
    root = sum(sizes[w.name] for w in weights if not w.block)
    blocks = sum(sizes[w.name] for w in weights if w.block)
    block = blocks / max(1, _count_blocks(weights))
    # Two blocks: the one that runs and the one that is gathered ahead.
    gathered = width * (root + (min(2 * block, blocks) if placing.reshard else blocks))
    return {
        "gathered": gathered,
        "unreduced": 4.0 * (root + blocks) if accumulation > 1 else 0.0,
        # A block's gradients, and the flat fp32 buffer that is reduced.
        "reducing": (width + 4) * block,
    }


def _count_blocks(weights: list[Weight]) -> int:
    """Repeated layers, told apart by the first number in a name."""
    numbers = {
        next(part for part in w.name.split(".") if part.isdigit()) for w in weights if w.block
    }
    return len(numbers)


def _zero(weights: list[Weight], placing: Placing, optimizer: Optimizer) -> State:
    """DeepSpeed as its paper has it (arXiv:1910.02054, section 5), bf16 with fp32 masters."""
    elements = sum(math.prod(w.shape) for w in weights)
    moments = sum(_moments(optimizer, w, w.shape, torch.float32) for w in weights)
    ranks, stage = placing.ranks, int(placing.kind[-1])
    root = sum(math.prod(w.shape) for w in weights if not w.block)
    block = (elements - root) / max(1, _count_blocks(weights))
    return State(
        parameters=2 * elements / (ranks if stage == 3 else 1),
        copies=0,
        gradients=2 * elements / (ranks if stage >= 2 else 1),
        optimizer=(4 * elements + moments) / ranks,
        gathered=2 * (root + 2 * block) if stage == 3 else 0.0,
        reducing=2 * min(elements, 5e8) if stage == 2 else 0.0,
    )
