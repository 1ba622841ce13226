"""Gradients summed in one order, whatever the number of ranks: 1, 2 and 4 ranks equal bit for bit.

What is unusual: sums of floating-point numbers depend on their order, and every collective chooses
its own. Micro-batch ``m`` of rank ``r`` of ``W`` is number ``k = m W + r`` of its step
(``data/sampler.py``), and one process accumulates ``((g_0 + g_1) + g_2) + ...``. Here ranks do just
that: after every micro-batch each rank receives every rank's gradient (under FSDP its shard of
them) and adds them, in rank order, to what the micro-batches before have left. Nothing is averaged:
the loss is divided by ``W`` before the backward, which together with Lightning's division by the
accumulation equals one process's division wherever one of the two numbers is a power of two
(``problems`` asks for that).

The price is an exchange of all gradients after every micro-batch, without overlap with the
backward, and for the norm a gather of every gradient. It is for verification and debugging.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import reduce
from itertools import chain
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_train.context import Context
from llm_train.errors import LLMTrainError
from llm_train.model.optimizer.clipping import norm_of_norms
from llm_train.runtime.sharded import whole

Reduction = Literal["fast", "deterministic"]
KEY = "reduction: deterministic"


def problems(context: Context, *, shards: bool = False) -> Iterator[str]:
    """What would make ranks differ bit by bit, or was never shown not to.

    A run that asks for equal bits and cannot have them would be worse than one that never asked.

    Args:
        context: the run.
        shards: parameters are cut over the ranks.
    """
    if context.precision == "bf16-true":
        # Gradients would be summed in bf16, where one process and several round differently.
        yield f"trainer.precision=bf16-true does not work with {KEY}; write bf16-mixed or 32-true"
    if context.float8 != "none":
        # Nobody has shown that FP8 scales are the same on any number of ranks.
        yield f"model.float8={context.float8} does not work with {KEY}; set model.float8=none"
    if context.update == "backward":
        # The norm is that of whole gradients after backward.
        yield f"model.update=backward does not work with {KEY}; write model.update=step"
    if any(isinstance(m, nn.Dropout) and m.p > 0 for m in context.network.modules()):
        # Every rank draws masks of its own.
        yield f"{KEY} does not work with dropout; set model.network.init_args.dropout=0"
    groups = context.torch_optimizer.param_groups
    if shards and any(group.get("fused") for group in groups):
        # The kernel rounds the last elements of a tensor differently, and every shard has some.
        yield (
            f"{KEY} under FSDP does not work with a fused optimizer; set "
            "model.optimizer.init_args.fused=off, here and in the runs to compare with"
        )
    # 1 / W / A, rounded twice, is 1 / (W A) where W or A is a power of two.
    ranks, accumulation = context.derived.data_ranks, context.derived.accumulation
    if ranks & (ranks - 1) and accumulation & (accumulation - 1):
        yield (
            f"{KEY} with {ranks} ranks x {accumulation} micro-batches: one must be a power of two; "
            "change the number of ranks, batch.tokens or batch.per_device"
        )


def _in_order(before: Tensor | None, parts: Iterable[Tensor]) -> Tensor:
    """((``before`` + c_0) + c_1) + ..., with ``before`` the sum so far, if there is one."""
    return reduce(torch.add, parts if before is None else chain([before], parts))


class Replicas:
    """Gradients of replicated parameters, one parameter at a time.

    Every rank receives every rank's gradient and adds them itself: more traffic than a reduction
    that is shared out, and nothing that could go wrong between buckets, padding and alignment.

    Args:
        parameters: whose gradients are summed; those that need none are left out.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._sums: dict[nn.Parameter, Tensor | None]
        self._sums = {parameter: None for parameter in parameters if parameter.requires_grad}

    @torch.no_grad()
    def add(self, *, last: bool) -> None:
        """Takes the gradients of one micro-batch away; the last gives the sums of all back."""
        for parameter, before in self._sums.items():
            if parameter.grad is None:
                raise LLMTrainError(
                    f"{KEY} needs a gradient of every parameter, and one got none; freeze it with "
                    "requires_grad_(False), or set reduction: fast"
                )
            own = parameter.grad.contiguous()
            parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, own)
            total = _in_order(before, parts)
            self._sums[parameter] = None if last else total
            parameter.grad = total if last else None


class _Ordered:
    """What ``fully_shard`` calls in place of its reduce-scatter, one for each of its groups."""

    def __init__(self) -> None:
        self.keep = False
        self._sum: Tensor | None = None

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Plain memory."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: dist.ProcessGroup, **_: Any
    ) -> None:
        """Folds; the output is the sum over all micro-batches so far, and the shard of ``.grad``.

        ``Shards`` has asked for a plain sum.
        """
        received = torch.empty_like(input_tensor)  # (W n,), of which every rank sent n
        dist.all_to_all_single(received, input_tensor, group=group)
        output_tensor.copy_(_in_order(self._sum, received.view(group.size(), -1)))
        self._sum = output_tensor if self.keep else None


class Shards:
    """Gradients of a network under ``fully_shard``, reduced in order after every micro-batch.

    With one rank torch calls no collective and adds micro-batches up itself, in order.
    """

    def __init__(self, network: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule

        self._network = network
        self._reductions: list[_Ordered] = []
        for module in network.modules():
            if isinstance(module, FSDPModule):
                ordered: Any = _Ordered()
                module.set_custom_reduce_scatter(ordered)
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
                self._reductions.append(ordered)

    def begin(self, *, last: bool) -> None:
        """Called before every micro-batch; after the last one of a step only ``.grad`` is left."""
        if dist.get_world_size() == 1:
            return
        for parameter in self._network.parameters():
            parameter.grad = None  # or torch would add the new sum to the old one
        for ordered in self._reductions:
            ordered.keep = not last


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """``torch.nn.utils.get_total_norm`` of whole gradients, of which one at a time is gathered."""
    return norm_of_norms([torch._foreach_norm([whole(gradient)])[0] for gradient in gradients])
