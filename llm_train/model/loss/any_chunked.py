"""Any loss of single targets without ever holding all logits.

As in ``chunked``, gradients are computed in the forward pass, chunk by chunk; but no closed form is
needed: each chunk's objective is differentiated by torch at the chunk's raw logits.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import grad_and_value
from torch.nn import functional as F

from llm_train.context import Part
from llm_train.errors import check_at_least
from llm_train.model.loss.base import Loss, LossSum, Projection, Scorer
from llm_train.model.loss.chunked import Chunk, ChunkSettings, score_chunks
from llm_train.model.loss.per_token import PerTokenLoss
from llm_train.model.projection import finish


@dataclass(frozen=True, kw_only=True)
class Chunked(Loss):
    """The sums and gradients of another loss, with at most ``chunk_tokens x V`` logits at once.

    Attributes:
        loss: what is computed; for cross-entropy alone ``ChunkedCausalLM`` is faster.
        chunk_tokens: positions whose logits are held at once.
    """

    loss: PerTokenLoss
    chunk_tokens: int = 1024

    def __post_init__(self) -> None:
        hint = "; write 1024, or use the loss alone to hold all logits at once"
        check_at_least(self, 1, "chunk_tokens", prefix="loss.", hint=hint)

    @property
    def ignore_index(self) -> int:
        """That of the loss inside."""
        return self.loss.ignore_index

    def parts(self) -> Iterator[Part]:
        """The loss inside."""
        yield self.loss

    def plain(self) -> Loss:
        """The loss inside."""
        return self.loss

    def __call__(self, hidden: Tensor, projection: Projection, targets: Tensor) -> LossSum:
        """Scores ``targets`` (B, T) under the logits of ``hidden`` (B, T, D)."""
        return self._score(hidden, projection, targets, chunk=self._chunk)

    def compiled(self) -> Scorer:
        """Compiles the work on a chunk, its derivative included."""
        return partial(self._score, chunk=torch.compile(self._chunk, dynamic=False))

    def _score(
        self, hidden: Tensor, projection: Projection, targets: Tensor, *, chunk: Chunk
    ) -> LossSum:
        settings = ChunkSettings.of(projection, self.ignore_index, self.chunk_tokens)
        return score_chunks(hidden, projection, targets, settings, chunk)

    def _chunk(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, settings: ChunkSettings
    ) -> tuple[Tensor, Tensor]:
        """One chunk's objective and nats (2,), and the gradient at its raw logits (n, V)."""

        def score(products: Tensor) -> tuple[Tensor, Tensor]:
            logits = finish(products, settings.vocab_size, settings.soft_cap)
            objective, nats = self.loss.score(logits[:, : settings.vocab_size], targets)
            return objective, torch.stack((objective.detach(), nats))

        products = F.linear(hidden, weight)  # (n, V)
        if not settings.gradients:
            return score(products)[1], products
        gradient, (_, sums) = grad_and_value(score, has_aux=True)(products)
        return sums, gradient
