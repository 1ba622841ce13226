"""How many bytes a forward leaves behind for its backward.

What is unusual: it does not count with ``saved_tensors_hooks``. Activation checkpointing keeps the
outputs of selected operators in a cache of its own, which those hooks never see, so a selective
policy would look as cheap as a full one. Here every storage that an operator creates during the
forward is noted, and those still alive when only the graph is left are counted: the truth, whoever
holds them.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Created(TorchDispatchMode):
    """Notes each new storage, and its size, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                # The weak reference pins the address, so that no later storage can have the same.
                self.storages.setdefault(reference.cdata, (reference, storage.nbytes()))
        return out


def saved_bytes(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Runs ``module(*args, **kwargs)`` once and returns the bytes kept until its backward.

    Each storage counts once. Not counted, because they existed before: parameters, buffers, other
    tensors that are attributes of modules (copies of weights) and the arguments. Counted: copies of
    parameters that autocast makes and the graph keeps. A compiled module is measured as if it were
    not. Advances the random generators like any forward.
    """
    held = [list(module.parameters()), list(module.buffers())]
    held += [list(vars(part).values()) for part in module.modules()]
    before = {
        StorageWeakRef(tensor.untyped_storage()).cdata  # type: ignore[no-untyped-call]
        for tensor in tree_leaves([args, kwargs, held])
        if isinstance(tensor, torch.Tensor)
    }
    with _Created() as created:
        output = module(*args, **kwargs)
    roots = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    del output  # what is alive now is alive because the graph, rooted in its functions, holds it
    gc.collect()
    kept = 0
    for address, (reference, size) in created.storages.items():
        if address not in before and not reference.expired():
            kept += size
    del roots
    return kept
