"""How much less a compiled block keeps: asked of the partitioner that torch.compile uses.

Operator by operator, a norm keeps its input in fp32, a gate both of its halves and their product.
A compiler keeps the cheapest set of tensors from which the rest of the block can be computed again
(a minimum cut, torch's ``min_cut_rematerialization_partition``). Here one block is traced with fake
tensors and given to that partitioner; nothing is compiled and no compiler is needed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode

from llm_train.model.network import Transformer
from llm_train.model.network.shadow import HasShadow, ShadowWeights
from llm_train.plan.simulate import Case, autocast, default_dtype
from llm_train.plan.watch import saved_bytes


def saving_of_a_block(case: Case) -> float:
    """Bytes of one sample that a block keeps operator by operator and a compiled one does not.

    0 for networks whose blocks cannot be called alone.
    """
    if not isinstance(case.network, Transformer):
        return 0.0
    with default_dtype(case.precision), FakeTensorMode(), autocast(case.precision):
        network = case.network.build()
        if case.copies:
            ShadowWeights(network, torch.bfloat16)
        block = network.blocks()[0]
        dtype = torch.float32 if case.precision == "32-true" else torch.bfloat16
        x = torch.zeros(1, case.sequence, case.network.width, dtype=dtype, requires_grad=True)
        eager = saved_bytes(block, x, network.rotary)
        compiled = _kept(block, x, network.rotary)
    return max(0.0, eager - compiled)


class _Alone(nn.Module):
    """A block with what the network hands to it, so that all storages are parameters or buffers."""

    def __init__(self, block: nn.Module, rotary: nn.Module | None) -> None:
        super().__init__()
        self.block, self.rotary = block, rotary

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.block(x, self.rotary)
        return hidden


def _kept(block: nn.Module, x: Tensor, rotary: nn.Module | None) -> float:
    """Bytes that the forward half hands to the backward half, what it is given not counted."""
    alone = _Alone(block, rotary)
    state: dict[str, Tensor] = {**dict(alone.named_parameters()), **dict(alone.named_buffers())}
    shadowed: dict[HasShadow, Tensor] = {
        module: module.shadow
        for module in alone.modules()
        if isinstance(module, HasShadow) and module.shadow is not None
    }
    found: list[float] = []

    def run(x: Tensor, values: dict[str, Tensor], shadows: list[Tensor]) -> Tensor:
        # Shadow weights are plain attributes, which functional_call does not replace.
        for module, shadow in zip(shadowed, shadows, strict=True):
            module.shadow = shadow
        result: Tensor = torch.func.functional_call(alone, values, (x,))
        return result

    def partition(joint: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
        found.append(_handed_over(forward, options["num_fwd_outputs"]))
        return forward, backward

    aot_function(
        run,
        fw_compiler=lambda graph, _: graph,
        partition_fn=partition,
        decompositions=_decompositions(),
    )(x, state, list(shadowed.values()))
    return found[0]


def _handed_over(forward: fx.GraphModule, outputs: int) -> float:
    """Storages of the outputs that only backward reads."""
    (results,) = next(node for node in forward.graph.nodes if node.op == "output").args
    given = [node for node in forward.graph.nodes if node.op in ("placeholder", "get_attr")]
    known = {_storage(node) for node in given}
    sizes: dict[int, float] = {}
    for node in results[outputs:]:
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if isinstance(value, Tensor) and _storage(node) not in known:
            sizes[_storage(node)] = value.untyped_storage().nbytes()
    return sum(sizes.values())


def _storage(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else id(node)


def _decompositions() -> Any:
    from torch._inductor.decomposition import select_decomp_table

    return select_decomp_table()
