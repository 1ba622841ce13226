"""How much less a compiled block keeps: asked of the partitioner that torch.compile uses.

Operator by operator, a norm keeps its input in fp32, a gate both of its halves and their product.
A compiler keeps the cheapest set of tensors from which the rest of the block can be computed again
(a minimum cut, torch's ``min_cut_rematerialization_partition``). Here one block is traced with fake
tensors and given to that partitioner; nothing is compiled and no compiler is needed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from llm_train.model.network.shadow import ShadowWeights, shadowed
from llm_train.plan.operators import saved_bytes
from llm_train.plan.simulate import Case, autocast, default_dtype, objective


def saving_of_a_block(case: Case) -> float:
    """Bytes of one sample that a block keeps operator by operator and a compiled one does not."""
    with default_dtype(case.precision), FakeTensorMode():
        network = case.network.build()
        if case.copies:
            ShadowWeights(network, torch.bfloat16)
        block, seen = network.blocks()[0], []
        hook = block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
        )
        objective(network, case)
        hook.remove()
        (x, *args), kwargs = seen[0]
        x = x.detach().requires_grad_()
        with autocast(case.precision):
            eager = saved_bytes(block, x, *args, **kwargs)
            return max(0.0, eager - _kept(_Alone(block, args, kwargs), x))


class _Alone(nn.Module):
    """A block with what the network hands to it, so that all storages are parameters or buffers."""

    def __init__(
        self, block: nn.Module, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        super().__init__()
        self.block = block
        leaves, self.spec = tree_flatten((args, kwargs))
        self.names = [f"given_{index}" for index in range(len(leaves))]
        for name, leaf in zip(self.names, leaves, strict=True):
            setattr(self, name, nn.Buffer(leaf.detach()) if isinstance(leaf, Tensor) else leaf)

    def forward(self, x: Tensor) -> Tensor:
        args, kwargs = tree_unflatten([getattr(self, name) for name in self.names], self.spec)
        hidden: Tensor = self.block(x, *args, **kwargs)
        return hidden


def _kept(block: nn.Module, x: Tensor) -> float:
    """Bytes that the forward half hands to the backward half, what it is given not counted."""
    from torch._inductor.decomposition import select_decomp_table

    state: dict[str, Tensor] = {**dict(block.named_parameters()), **dict(block.named_buffers())}
    filled = {module: module.shadow for module in shadowed(block) if module.shadow is not None}
    found: list[float] = []

    def run(x: Tensor, values: dict[str, Tensor], shadows: list[Tensor]) -> Tensor:
        # Shadow weights are plain attributes, which functional_call does not replace.
        for module, shadow in zip(filled, shadows, strict=True):
            module.shadow = shadow
        result: Tensor = torch.func.functional_call(block, values, (x,))
        return result

    def partition(joint: fx.GraphModule, inputs: Any, **options: Any) -> Any:
        forward, backward = min_cut_rematerialization_partition(joint, inputs, **options)
        found.append(_handed_over(forward, options["num_fwd_outputs"]))
        return forward, backward

    aot_function(
        run,
        fw_compiler=lambda graph, _: graph,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )(x, state, list(filled.values()))
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
