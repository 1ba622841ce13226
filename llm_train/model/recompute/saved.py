"""How many bytes a forward leaves behind for its backward.

What is unusual: it does not count with ``saved_tensors_hooks``. Activation checkpointing keeps the
outputs of selected operators in a cache of its own, which those hooks never see, so a selective
policy would look as cheap as a full one. Here every storage that an operator creates during the
forward is noted, and those still alive when only the graph is left are counted: the truth, whoever
holds them.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Created(TorchDispatchMode):
    """Notes each new storage without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.storages: WeakValueDictionary[int, torch.UntypedStorage] = WeakValueDictionary()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: object,
        args: Sequence[Any] = (),  # whatever the operator takes
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.storages.update(_storages(out))
        return out


def saved_bytes(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Runs ``module(*args, **kwargs)`` once and returns the bytes kept until its backward.

    Each storage counts once. Not counted, because they existed before: parameters, buffers, other
    tensors that are attributes of modules (shadow weights) and the arguments. Counted: copies of
    parameters that autocast makes and the graph keeps. A compiled module is measured as if it were
    not. Advances the random generators like any forward.
    """
    held = [list(module.parameters()), list(module.buffers())]
    held += [list(vars(part).values()) for part in module.modules()]
    before = _storages([args, kwargs, held])
    with _Created() as created:
        output = module(*args, **kwargs)
    roots = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    del output  # what is alive now is alive because the graph, rooted in its functions, holds it
    gc.collect()
    kept: int = sum(s.nbytes() for key, s in created.storages.items() if key not in before)
    del roots
    return kept


def _storages(tree: object) -> dict[int, torch.UntypedStorage]:
    tensors = (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
    return {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
