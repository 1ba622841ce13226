"""Selective recomputation: expensive operators are kept, cheap ones run again.

What is unusual: the choice is made by the operator's name as the dispatcher sees it, not by module,
so it holds for any network. The idea, to recompute what is large and cheap, is Korthikanti et al.'s
(arXiv:2205.05198, section 5), who choose by module.

Which attention operator runs depends on device, dtype and shapes, so the default names them all; a
name that never occurs costs nothing::

    CPU                  _scaled_dot_product_flash_attention_for_cpu (its dropout 0)
    CUDA, fp16 and bf16  _scaled_dot_product_flash_attention or ..._cudnn_attention
    CUDA, fp32 or masks  _scaled_dot_product_efficient_attention
    XPU and others       _scaled_dot_product_fused_attention_overrideable
    where none fits      plain bmm and softmax

``bmm`` is not in the default: in a dense Transformer it occurs only where attention falls back to
plain operators, and there its output is the T x T score matrix, the very thing not to keep.

An operator that draws random numbers must not be kept: skipped in the recomputation, it would leave
the generator where it was, and every later dropout of the block would draw another mask than in
forward: wrong gradients without a word. Such names are refused; attention is kept only where its
own dropout is 0 and is recomputed otherwise.
"""

import difflib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    create_selective_checkpoint_contexts,
)

from llm_train.errors import ConfigError
from llm_train.model.recompute.base import Recompute, checkpoint_block

MATMUL_AND_ATTENTION = (
    "aten.mm",
    "aten.addmm",
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_cudnn_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_fused_attention_overrideable",
)


@dataclass(frozen=True, kw_only=True)
class Selective(Recompute):
    """Keeps the outputs of named operators in every block and recomputes everything else.

    Attributes:
        save: operators whose outputs are kept, as ``namespace.operator`` (all overloads) or
            ``namespace.operator.overload``. The default keeps matrix products and attention.
    """

    save: tuple[str, ...] = MATMUL_AND_ATTENTION

    def __post_init__(self) -> None:
        if not self.save:
            raise ConfigError(
                "recompute.save=[] keeps no operator; name at least one, or use EveryBlock"
            )
        for name in self.save:
            _resolve(name)

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Makes every block keep the named operators' outputs and recompute the rest."""
        kept = frozenset(overload for name in self.save for overload in _resolve(name))
        policy = _policy(kept)
        for block in blocks:
            checkpoint_block(block, functools.partial(create_selective_checkpoint_contexts, policy))


def _policy(kept: frozenset[OpOverload]) -> Callable[..., CheckpointPolicy]:
    """What to do with one call of an operator."""
    dropout = {overload: _dropout_argument(overload) for overload in kept}

    def policy(
        ctx: SelectiveCheckpointContext, overload: Any, *args: Any, **kwargs: Any
    ) -> CheckpointPolicy:
        if overload not in dropout:
            return CheckpointPolicy.PREFER_RECOMPUTE
        position = dropout[overload]
        if position >= 0:
            given = args[position] if position < len(args) else kwargs.get("dropout_p", 0.0)
            if given > 0.0:
                return CheckpointPolicy.PREFER_RECOMPUTE
        return CheckpointPolicy.MUST_SAVE

    return policy


def _dropout_argument(overload: OpOverload) -> int:
    """Position of an operator's ``dropout_p``; -1 if it has none."""
    names = [argument.name for argument in overload._schema.arguments]
    return names.index("dropout_p") if "dropout_p" in names else -1


def _resolve(name: str) -> list[OpOverload]:
    """The overloads that a name means.

    Raises:
        ConfigError: there is no such operator, or it draws random numbers.
    """
    registered = {
        f"{full.replace('::', '.')}{'' if '.' in full else '.default'}"
        for full in torch._C._dispatch_get_all_op_names()
    }
    wanted = sorted(full for full in registered if name in (full, full.rpartition(".")[0]))
    if not wanted:
        short = registered | {full.rpartition(".")[0] for full in registered}
        near = difflib.get_close_matches(name, short, n=3)
        near = near or difflib.get_close_matches(f"aten.{name}", short, n=3)
        hint = f"nearest: {', '.join(near)}" if near else "names look like aten.mm"
        raise ConfigError(f"recompute.save: {name!r} is not an operator of torch; {hint}")
    found: list[OpOverload] = [attrgetter(full)(torch.ops) for full in wanted]
    for each in found:
        if torch.Tag.nondeterministic_seeded in each.tags and _dropout_argument(each) < 0:
            raise ConfigError(
                f"recompute.save: {name!r} draws random numbers, so skipping it in the "
                "recomputation would change every later dropout of the block; leave it out"
            )
    return found
