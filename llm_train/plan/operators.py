"""What a step allocates and computes, seen operator by operator.

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

import gc
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from llm_train.model.network.flops import attention_flops
from llm_train.runtime.sharded import is_dtensor, local_part

Measured = dict[str, float]
"""What ``OperatorCounter`` found, and bytes by ``parameters``, ``copies``, ``gradients``,
``optimizer`` and ``saved``."""

_COUNTED = (
    *("products", "moved_by_products", "attention", "attention over width", "attention over area"),
    *("moved", "moved_forward", "operators"),
)
_VIEWS_OF_ONE = ("detach", "alias", "lift_fresh", "view", "_unsafe_view", "device", "new_empty")


class OperatorCounter(TorchDispatchMode):
    """Counts while it is entered (by ``watching``); what existed before counts once ``adopt``-ed.

    Attributes:
        found: most bytes alive in each phase (``peak PHASE``), and before the update: operations of
            matrix ``products``, and bytes that these read and write; operations of ``attention`` at
            its causal cost, the same divided by the width of a head, and by width x sequence; bytes
            that all other operators read and write, each on its own as without a compiler
            (``moved``, and of it ``moved_forward`` in the blocks' forward); how many ``operators``
            there were, views not counted.
        live: bytes alive now.
        blind: whether operators are not to be counted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Measured = defaultdict(float, dict.fromkeys(_COUNTED, 0.0))
        self.live = 0
        self.blind = False
        self._sizes: dict[int, int] = {}
        self._phase = "start"

    # --- phases ----------------------------------------------------------------------------------

    def enter(self, phase: str, *_: object) -> None:
        """Begins a phase; coming back to one continues its peak."""
        self._phase = phase
        self._peak()

    def follow(self, blocks: Sequence[nn.Module]) -> None:
        """Makes the blocks announce themselves, in forward and in backward."""
        last = len(blocks) - 1
        for index, block in enumerate(blocks):
            place = {0: "first", last: "last"}.get(index, "inner")
            after = "head" if index == last else "between"
            block.register_forward_pre_hook(partial(self.enter, f"forward {place}"))
            block.register_forward_hook(partial(self._leave, after, f"backward {place}"))

    def _leave(
        self, after: str, backward: str, _: nn.Module, inputs: object, output: object
    ) -> None:
        self.enter(after)
        for leaf in _tensors(output):
            if leaf.requires_grad:
                leaf.register_hook(partial(self.enter, backward))  # type: ignore[no-untyped-call]

    # --- bytes ------------------------------------------------------------------------------------

    def adopt(self, tensors: Iterable[Tensor | None]) -> int:
        """Counts what existed before; returns the bytes that were new."""
        before = self.live
        for tensor in tensors:
            if tensor is not None:
                self._note(local_part(tensor))
        return self.live - before

    def _note(self, tensor: Tensor) -> None:
        if is_dtensor(tensor):  # a shell without memory; its local tensor is noted itself
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            weakref.finalize(storage, self._died, key)

    def _died(self, key: int) -> None:
        self.live -= self._sizes.pop(key, 0)

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Takes note of a storage that was given back or filled again."""
        key = storage._cdata
        if key in self._sizes:
            self.live += storage.nbytes() - self._sizes[key]
            self._sizes[key] = storage.nbytes()
            self._peak()

    def _peak(self) -> None:
        key = f"peak {self._phase}"
        self.found[key] = max(self.found[key], self.live)

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
        results = _tensors(out)
        for leaf in results:
            self._note(leaf)
        self._peak()
        self._count(func, args, results)
        return out

    def _count(self, func: Any, args: tuple[Any, ...], results: list[Tensor]) -> None:
        name = func._schema.name.rpartition("::")[2]
        alone = not func.is_view and self._phase != "update"
        self.found["operators"] += alone
        if "c10d" in func.namespace:  # what ranks send is in the strategies' own formulas
            return
        if "dot_product" in name and "attention" in name:
            self._attend(name, args)
        elif func._overloadpacket in flop_registry:
            formula = flop_registry[func._overloadpacket]
            self.found["products"] += formula(*args, out_val=results[0])
            self.found["moved_by_products"] += _size(args, results)
        elif name == "add_" and self._phase == "head" and len(_tensors(args)) == 2:
            # A chunk of the loss adds its share of the weight's gradient, as a product can itself.
            self.found["moved_by_products"] += _size(args)
        elif alone and name not in _VIEWS_OF_ONE:
            size = _size(args, results)
            self.found["moved"] += size
            self.found["moved_forward"] += size if self._phase.startswith("forward") else 0

    def _attend(self, name: str, args: tuple[Any, ...]) -> None:
        """Causal cost, half of all pairs; backward twice the forward (it recomputes the scores)."""
        backward = "backward" in name
        query, key, value = (tensor.shape for tensor in (args[1:4] if backward else args[:3]))
        flops = attention_flops(query, key, value) // 2 * (2 if backward else 1)
        self.found["attention"] += flops
        self.found["attention over width"] += flops / query[-1]
        self.found["attention over area"] += flops / (query[-1] * key[-2])


@contextmanager
def watching() -> Iterator[OperatorCounter]:
    """An ``OperatorCounter`` that is entered, and told of what no operator shows."""
    watch, resize = OperatorCounter(), torch.UntypedStorage.resize_
    learn_shape = ShardingPropagator._propagate_tensor_meta_non_cached

    def resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        watch.resized(storage)
        return result

    def learn_shape_unseen(propagator: ShardingPropagator, operator: Any) -> Any:
        watch.blind = True  # DTensor runs an operator on whole fake tensors here
        try:
            return learn_shape(propagator, operator)
        finally:
            watch.blind = False

    with (
        patch.object(torch.UntypedStorage, "resize_", resize_and_tell),
        patch.object(ShardingPropagator, learn_shape.__name__, learn_shape_unseen),
        watch,
    ):
        yield watch


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(*trees: object) -> int:
    """Bytes of all tensors in them, each once."""
    return sum(t.nbytes for t in {id(t): t for t in _tensors(trees)}.values())


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
    with watching() as watch:
        watch.adopt(_tensors([args, kwargs, held]))
        before = watch.live
        gc.freeze()  # a collection looks at what is new, which is a thousandth of all there is
        output = module(*args, **kwargs)
    roots = [leaf.grad_fn for leaf in _tensors(output)]
    del output  # from here on the graph, rooted in its functions, holds whatever is alive
    gc.collect()
    gc.unfreeze()
    kept = watch.live - before
    del roots
    return kept
