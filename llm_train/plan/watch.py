"""What a step allocates, computes and sends, seen operator by operator.

What is unusual: it knows nothing of the network. Every operator of the real step passes through
here, on fake tensors as on real ones. A storage counts from the operator that creates it until its
last reference dies, and sharding, which gives storages back by resizing them, is watched as well.

A step is cut into *phases* (``forward first``, ``head``, ``backward last``, ``update`` ...), each
with its own peak. The peak of a phase is affine in the number of equal blocks and in the
micro-batch, where the peak of a whole step is only the largest of such functions.

torch's own ``MemTracker`` gives the same bytes for one device. It is not used, because under
``fully_shard`` it also counts the whole fake tensors by which DTensor learns the shape of a result:
in the update of 64 ranks 5.6 MB in place of 0.3 MB (torch 2.13). Operations are counted by the
formulas of torch's flop counter.
"""

from __future__ import annotations

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from llm_train.model.network.flops import attention_flops

_VIEWS_OF_ONE = ("detach", "alias", "lift_fresh", "view", "_unsafe_view", "device", "new_empty")
_COLLECTIVES = {
    "allreduce_": "all-reduce",
    "all_reduce": "all-reduce",
    "_allgather_base_": "all-gather",
    "all_gather_into_tensor": "all-gather",
    "all_gather_into_tensor_out": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "reduce_scatter_tensor": "reduce-scatter",
}


class Watch(TorchDispatchMode):
    """Counts while it is entered; what existed before counts when ``adopt`` names it.

    Attributes:
        peaks: most bytes alive in each phase.
        products: floating point operations of matrix products.
        attention: of attention at its causal cost, half of the score matrix.
        moved: bytes that all other operators before the update read and write, each on its own as
            without a compiler.
        moved_forward: the part of it in the forward of the blocks.
        operators: how many there were before the update, views not counted.
        sent: by (collective, ranks) the bytes of the whole tensors that are gathered or reduced.
        calls: by the same key how often.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peaks: dict[str, int] = {}
        self.products = self.attention = self.operators = 0
        self.moved = self.moved_forward = 0
        self.sent: dict[tuple[str, int], int] = defaultdict(int)
        self.calls: dict[tuple[str, int], int] = defaultdict(int)
        self.live = 0
        self._sizes: dict[int, int] = {}
        self._phase = "start"
        self._resize: Any = None
        self._lock: Any = None
        self.blind = False

    # --- phases ----------------------------------------------------------------------------------

    def enter(self, phase: str) -> None:
        """Begins a phase; coming back to one continues its peak."""
        self._phase = phase
        self._peak()

    def follow(self, blocks: Sequence[nn.Module]) -> None:
        """Makes the blocks announce themselves, in forward and in backward."""
        last = len(blocks) - 1
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(self._on_entry(f"forward {_place(index, last)}"))
            after = "head" if index == last else "between"
            block.register_forward_hook(self._on_exit(after, f"backward {_place(index, last)}"))

    def _on_entry(self, phase: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            self.enter(phase)

        return hook

    def _on_exit(self, after: str, backward: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.enter(after)
            for leaf in tree_leaves(output):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaf.register_hook(lambda _: self.enter(backward))  # type: ignore[no-untyped-call]

        return hook

    # --- bytes ------------------------------------------------------------------------------------

    def adopt(self, tensors: Sequence[Tensor]) -> int:
        """Counts what existed before; returns the bytes that were new."""
        before = self.live
        for tensor in tensors:
            self._note(local(tensor))
        return self.live - before

    def __enter__(self) -> Self:
        self._resize = torch.UntypedStorage.resize_
        original, watch = self._resize, self

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = original(storage, size)
            watch._resized(storage)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        self._lock = ShardingPropagator._fake_mode_lock
        ShardingPropagator._fake_mode_lock = _Blind(self)  # type: ignore[assignment]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        ShardingPropagator._fake_mode_lock = self._lock

    def _note(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):  # a shell without memory; its local tensor is noted itself
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            self.live += storage.nbytes() - self._sizes[key]
            self._sizes[key] = storage.nbytes()
            self._peak()

    def _peak(self) -> None:
        self.peaks[self._phase] = max(self.peaks.get(self._phase, 0), self.live)

    # --- operators --------------------------------------------------------------------------------

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs the operator and counts it; of a DTensor the local operators that it becomes."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        out = func(*args, **(kwargs or {}))
        if self.blind:
            return out
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for leaf in results:
            self._note(leaf)
        self._peak()
        self._count(func, args, results)
        return out

    def _count(self, func: Any, args: tuple[Any, ...], results: list[Tensor]) -> None:
        name = func._schema.name.rpartition("::")[2]
        if not func.is_view and self._phase != "update":
            self.operators += 1
        if name in _COLLECTIVES:
            self._communicate(_COLLECTIVES[name], args)
        elif "dot_product" in name and "attention" in name:
            self.attention += _attention_flops(name, args)
        elif func._overloadpacket in flop_registry:
            self.products += flop_registry[func._overloadpacket](*args, out_val=results[0])
        elif name not in _VIEWS_OF_ONE and not func.is_view and self._phase != "update":
            seen = {id(t): t for t in (*tree_leaves(args), *results) if isinstance(t, Tensor)}
            size = sum(t.numel() * t.element_size() for t in seen.values())
            self.moved += size
            self.moved_forward += size if self._phase.startswith("forward") else 0

    def _communicate(self, kind: str, args: tuple[Any, ...]) -> None:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        ranks = next((_ranks(leaf) for leaf in tree_leaves(args) if _ranks(leaf)), 1)
        whole = max(t.numel() * t.element_size() for t in tensors)
        if kind == "all-gather" and len(tensors) == 1:  # the functional form names its input alone
            whole *= ranks
        self.sent[kind, ranks] += whole
        self.calls[kind, ranks] += 1


class _Blind:
    """Looks away while DTensor runs an operator on whole fake tensors, to learn its shape only."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._watch.blind = True

    def __exit__(self, *error: Any) -> None:
        self._watch.blind = False


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _place(index: int, last: int) -> str:
    return {0: "first", last: "last"}.get(index, "inner")


def _ranks(value: Any) -> int:
    """The number of ranks where ``value`` is a process group or the name of one, else 0."""
    if isinstance(value, torch.ScriptObject):
        try:
            return int(torch.distributed.ProcessGroup.unbox(value).size())
        except (RuntimeError, TypeError):
            return 0
    if isinstance(value, str):
        try:
            return int(distributed_c10d._resolve_process_group(value).size())  # type: ignore[attr-defined, arg-type]
        except (LookupError, RuntimeError, ValueError):
            return 0
    return int(value.size()) if isinstance(value, torch.distributed.ProcessGroup) else 0


def _attention_flops(name: str, args: tuple[Any, ...]) -> int:
    """Causal cost, half of all pairs; backward twice the forward (it recomputes the scores)."""
    backward = "backward" in name
    query, key, value = (tensor.shape for tensor in (args[1:4] if backward else args[:3]))
    return attention_flops(query, key, value) // 2 * (2 if backward else 1)


def saved_bytes(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Runs ``module(*args, **kwargs)`` once and returns the bytes kept until its backward.

    What is alive when only the graph is left counts, whoever holds it. Hooks on saved tensors would
    not do: activation checkpointing keeps the outputs of selected operators in a cache of its own,
    so that a selective policy would look as cheap as a full one. Not counted are parameters,
    buffers, other tensors that are attributes of modules (shadow weights) and the arguments.
    Counted are copies of parameters that autocast makes and the graph keeps. A compiled module is
    measured as if it were not.
    """
    held = [list(module.parameters()), list(module.buffers())]
    held += [list(vars(part).values()) for part in module.modules()]
    with Watch() as watch:
        watch.adopt([t for t in tree_leaves([args, kwargs, held]) if isinstance(t, Tensor)])
        before = watch.live
        output = module(*args, **kwargs)
    roots = [leaf.grad_fn for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    del output  # from here on the graph, rooted in its functions, holds whatever is alive
    gc.collect()
    kept = watch.live - before
    del roots
    return kept
