"""The global norm of gradients, sharded or not, and clipping by it."""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llm_train.model.optimizer.groups import Group
from llm_train.runtime.sharded import whole


def norm_of_norms(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients from the norm of each, on every rank; as torch's total norm."""
    return whole(torch.linalg.vector_norm(torch.stack(list(norms)), 2.0))


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all gradients together, on every rank."""
    return whole(nn.utils.get_total_norm(gradients, foreach=True))


def clip_by_norm(
    groups: Sequence[Group],
    limit: float | None,
    *,
    scale: Tensor | None = None,
    norm_of: Callable[[Sequence[Tensor]], Tensor] = global_norm,
) -> Tensor:
    """Clips the gradients of all groups of an optimizer together.

    Args:
        groups: their ``params`` have the gradients. Those that share a ``clip_pattern`` are first
            clipped together to their ``clip_norm``.
        limit: above this norm they are scaled down to it; None or 0 clips nothing.
        scale: what every gradient is multiplied by first.
        norm_of: gradients to their global norm.

    Returns:
        The global norm before clipping, on every rank.
    """
    parameters = [p for group in groups for p in group["params"]]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if scale is not None:
        torch._foreach_mul_(gradients, scale)
    norm = norm_of(gradients)
    together: dict[tuple[str, float], list[Tensor]] = defaultdict(list)
    for group in groups:
        if "clip_pattern" in group:
            together[group["clip_pattern"], group["clip_norm"]] += group["params"]
    for (_, own_limit), members in together.items():
        own = norm_of([p.grad for p in members if p.grad is not None])
        nn.utils.clip_grads_with_norm_(members, own_limit, own, foreach=True)
    if limit:
        left = norm_of(gradients) if together else norm
        nn.utils.clip_grads_with_norm_(parameters, limit, left, foreach=True)
    return norm
