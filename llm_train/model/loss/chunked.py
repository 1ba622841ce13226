"""Computes the cross-entropy of the next token without ever holding all logits.

What is unusual is that the gradient is computed in the *forward* pass. The gradient of a softmax is
known in closed form as soon as the logits of a chunk are, so each chunk's logits exist once, serve
the loss and both gradients, and are freed; the backward pass only multiplies by the incoming
scalar. Recomputing the chunk in the backward pass (activation checkpointing) would cost a fourth
matrix product of the head. The price is that the weight's gradient (V x D) exists from this forward
pass on.

Per valid target, with z the capped logits, p their softmax and w the weight of the z-loss::

    objective = log Z - z[target] + w log(Z)^2
    d objective / d z = p (1 + 2 w log Z) - onehot(target)
    d z / d raw = 1 - (z / cap)^2                 (1 without a cap)

The softmax is exp(z - log Z), so that rounding log Z to float32 changes it by a relative 6e-8 |log
Z|: nothing at logits of 100, 5e-4 at logits of 10,000. ``Chunked`` around ``CausalLM`` takes the
largest logit off first and is exact there too, but needs more passes.

Shapes: N = B*T positions, n positions of a chunk, D width, V padded vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from llm_train.context import Context
from llm_train.errors import check_at_least
from llm_train.model.loss.base import Loss, LossSum, Projection, Scorer
from llm_train.model.loss.causal_lm import CausalLM
from llm_train.runtime.autocast import at_least_float32, autocast_dtype


@dataclass(frozen=True, kw_only=True)
class ChunkedCausalLM(Loss):
    """Computes ``CausalLM``'s sums and gradients with at most ``chunk_tokens x V`` logits at once.

    Attributes:
        z_loss: weight of ``log(Z)**2`` per valid target, where Z is the softmax's normaliser (PaLM,
            arXiv:2204.02311, section 5: 1e-4). It is part of the objective, never of the nats. 0
            turns it off.
        ignore_index: a target with this value does not count.
        chunk_tokens: positions whose logits are held at once. A chunk needs about
            ``12 V chunk_tokens`` bytes, a third of it where compiled and without a soft cap; below
            some hundred positions the products become too small to be fast. On an H200, 4096 took
            3 % off the step of GPT-2's 124M.
    """

    z_loss: float = 0.0
    ignore_index: int = -100
    chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        self.plain()  # which checks its own
        hint = "; write 1024, or use CausalLM to hold all logits at once"
        check_at_least(self, 1, "chunk_tokens", prefix="loss.", hint=hint)

    def problems(self, context: Context) -> Iterator[str]:
        """Gradients that underflow: those of forward know no loss scaler's factor."""
        if context.precision == "16-mixed":
            yield "model.loss=ChunkedCausalLM underflows under 16-mixed; use CausalLM"

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        return self._score(hidden, projection, targets, chunk=_chunk)

    def plain(self) -> CausalLM:
        """The reference."""
        return CausalLM(z_loss=self.z_loss, ignore_index=self.ignore_index)

    def compiled(self) -> Scorer:
        """Compiles the work on a chunk: one kernel over its logits instead of 10, without a cap."""
        return partial(self._score, chunk=torch.compile(_chunk, dynamic=False))

    def _score(
        self, hidden: Tensor, projection: Projection, targets: Tensor, *, chunk: Chunk
    ) -> LossSum:
        settings = ChunkSettings.of(projection, self.ignore_index, self.chunk_tokens, self.z_loss)
        return score_chunks(hidden, projection, targets, settings, chunk)


class ChunkSettings(NamedTuple):
    """Everything in a call that is not a tensor."""

    vocab_size: int
    soft_cap: float
    z_loss: float
    ignore_index: int
    chunk_tokens: int
    dtype: torch.dtype
    gradients: bool

    @classmethod
    def of(
        cls, projection: Projection, ignore_index: int, chunk_tokens: int, z_loss: float = 0.0
    ) -> ChunkSettings:
        """Those of a call that is about to be made."""
        return cls(
            vocab_size=projection.vocab_size,
            soft_cap=projection.soft_cap,
            z_loss=z_loss,
            ignore_index=ignore_index,
            chunk_tokens=chunk_tokens,
            # As in the plain loss, products run in autocast's dtype, the rest in float32.
            dtype=autocast_dtype(projection.weight),
            # Inside a Function's forward, gradients are off and needs_input_grad ignores no_grad,
            # so this is the place to ask whether anybody wants a gradient.
            gradients=torch.is_grad_enabled(),
        )


Chunk = Callable[[Tensor, Tensor, Tensor, ChunkSettings], tuple[Tensor, Tensor]]
"""(hidden, weight, targets, settings) -> objective and nats (2,), gradient at raw logits (n, V)."""


def score_chunks(
    hidden: Tensor, projection: Projection, targets: Tensor, settings: ChunkSettings, chunk: Chunk
) -> LossSum:
    """Sums over chunks of ``hidden`` (B, T, D) and ``targets`` (B, T)."""
    tensors = (hidden.flatten(0, -2), projection.weight, targets.flatten(), projection.shadow)
    objective, nats = _ChunkedSum.apply(*tensors, settings, chunk)  # type: ignore[no-untyped-call]
    valid = targets != settings.ignore_index
    return LossSum(objective=objective, nats=nats, tokens=valid.sum())


class _ChunkedSum(torch.autograd.Function):
    """Maps hidden (N, D), weight (V, D), targets (N,) and shadow weight to objective and nats."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shadow: Tensor | None,
        settings: ChunkSettings,
        chunk: Chunk,
    ) -> tuple[Tensor, Tensor]:
        """Sums over chunks and saves the gradients of the objective for the backward pass."""
        with torch.autocast(hidden.device.type, enabled=False):
            wants_hidden = settings.gradients and ctx.needs_input_grad[0]
            wants_weight = settings.gradients and ctx.needs_input_grad[1]
            # Cast once a call, not once a chunk; detached, so that it is not in autocast's cache.
            source = weight.detach() if shadow is None else shadow
            matrix = source.to(settings.dtype)  # (V, D)
            grad_hidden = torch.zeros_like(hidden) if wants_hidden else None  # (N, D)
            wide = torch.promote_types(settings.dtype, torch.float32)
            # Summed over chunks, in the shape of the weight (V, D).
            grad_weight = torch.zeros_like(weight, dtype=wide) if wants_weight else None
            sums = hidden.new_zeros(2, dtype=wide)  # objective, nats
            for start in range(0, hidden.shape[0], settings.chunk_tokens):
                rows = slice(start, start + settings.chunk_tokens)
                part = hidden[rows].detach().to(settings.dtype)  # (n, D)
                chunk_sums, grad = chunk(part, matrix, targets[rows], settings)
                sums += chunk_sums
                if grad_hidden is not None:
                    grad_hidden[rows] = grad @ matrix  # (n, V) @ (V, D)
                if grad_weight is not None:
                    add_product(grad_weight, grad, part)
        # The gradient is summed over chunks in float32 and rounded once. Where a device cannot add
        # a bfloat16 product in float32, each chunk's share is rounded before it is added: the
        # result is as accurate as the plain loss's, but not bitwise the same.
        saved_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
        # These are gradients of the *sum*, a few units in size at most. That suits bfloat16 and
        # float32; float16 would underflow, as a loss scaler's factor arrives only in backward.
        ctx.save_for_backward(grad_hidden, saved_weight)
        objective, nats = sums.unbind()
        objective, nats = objective.clone(), nats.clone()  # outputs may not be views of one tensor
        ctx.mark_non_differentiable(nats)
        return objective, nats

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_objective: Tensor, _grad_nats: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """Scales the gradients of forward, out of place: with ``retain_graph`` it runs again."""
        grad_hidden, grad_weight = (
            None if saved is None else saved * grad_objective.to(saved.dtype)
            for saved in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, None, None, None


def _chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, settings: ChunkSettings
) -> tuple[Tensor, Tensor]:
    """Returns one chunk's objective and nats (2,), and the gradient at its raw logits (n, V)."""
    vocab, cap = settings.vocab_size, settings.soft_cap
    logits = at_least_float32(F.linear(hidden, weight))  # (n, V)
    if cap > 0.0:
        logits = logits.div_(cap).tanh_().mul_(cap)
    logits[:, vocab:] = float("-inf")
    valid = targets != settings.ignore_index  # (n,)
    # An ignored target may be any number, so we read column 0 in its place and drop the result.
    columns = torch.where(valid, targets, 0).unsqueeze(-1)  # (n, 1)
    log_z = logits.logsumexp(-1, keepdim=True)  # (n, 1)
    nats = torch.where(valid, (log_z - logits.gather(-1, columns)).squeeze(-1), 0.0)  # (n,)
    penalty = torch.where(valid, log_z.squeeze(-1).square(), 0.0)  # (n,)
    sums = torch.stack([nats.sum() + settings.z_loss * penalty.sum(), nats.sum()])
    if not settings.gradients:
        return sums, logits

    grad = (logits - log_z).exp_()  # (n, V): the softmax, 0 in the padding
    grad *= 1.0 + 2.0 * settings.z_loss * log_z
    if torch.compiler.is_compiling():
        # Inductor ends a kernel at a scatter: float32 gradients would be written and read again.
        grad -= (torch.arange(grad.shape[-1], device=grad.device) == columns).to(grad.dtype)
    else:
        grad.scatter_add_(-1, columns, torch.full_like(log_z, -1.0))
    grad *= valid.unsqueeze(-1)
    if cap > 0.0:
        real = logits[:, :vocab]  # -inf in the padding would make 0 * inf
        grad[:, :vocab] *= real.div_(cap).square_().neg_().add_(1.0)
    return sums, grad.to(settings.dtype)


def add_product(total: Tensor, grad: Tensor, hidden: Tensor) -> None:
    """Adds ``grad`` (n, V) transposed @ ``hidden`` (n, D) to ``total`` (V, D, float32)."""
    if grad.dtype == total.dtype:
        total.addmm_(grad.t(), hidden)  # no second matrix of the weight's size
    elif total.is_cuda and torch.version.hip is None and not torch.compiler.is_compiling():
        # The product adds in float32 itself: a third faster, and nothing is rounded on the way.
        # Torch 2.11 cannot trace it with out=.
        torch.addmm(total, grad.t(), hidden, out_dtype=total.dtype, out=total)
    else:
        total += grad.t() @ hidden
