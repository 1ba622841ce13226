"""Loss, perplexity and bits per byte of held-out sets, each token counted once over all ranks."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import accumulate

import torch
from torch import Tensor

from llm_train.data.module import data_of
from llm_train.errors import ConfigError
from llm_train.model.loss.base import Loss
from llm_train.model.scoring import Scoring


class HeldOut(Scoring):
    """Validates: its loader has the held-out sets one after another."""

    loss: Loss
    _held_out_sums: Tensor  # (sets, 3) nats, targets and bytes, on the device

    def __init__(self) -> None:
        super().__init__()
        self._token_bytes: Tensor | None = None
        self._held_out_turns: dict[str, int] = {}  # batches of each held-out set
        self._held_out_ends: list[int] = []

    def on_validation_epoch_start(self) -> None:
        """Starts the sums of each held-out set from zero."""
        self._held_out_turns = data_of(self.trainer).held_out_turns
        self._held_out_ends = list(accumulate(self._held_out_turns.values()))
        self._held_out_sums = self._held_out_sums.new_zeros(len(self._held_out_ends), 3)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Adds what ``score`` says of one batch to the sums of its held-out set."""
        row = self._held_out_sums[bisect_right(self._held_out_ends, batch_idx)]
        row += self.score(batch)

    def score(self, batch: Tensor) -> Tensor:
        """(3,) nats, targets and bytes of one batch (B, T + 1), where -1 marks no token."""
        inputs, targets, documents = self.split(batch.long())
        absent = targets < 0
        counted = targets.masked_fill(absent, self.loss.ignore_index)
        sums = self.forward(inputs.clamp(min=0), counted, documents)
        text = torch.zeros((), device=targets.device)
        if self._token_bytes is not None:
            text = self._token_bytes[targets.clamp(min=0)].masked_fill(absent, 0).sum()
        return torch.stack([sums.nats, sums.tokens, text])

    def on_validation_epoch_end(self) -> None:
        """Publishes the loss on each held-out set over all ranks for callbacks and loggers."""
        if self.trainer.sanity_checking:  # it was broken off, on all ranks alike
            return
        sums = self.strategy.reduce(self._held_out_sums, reduce_op="sum").tolist()
        names = [f"val/{name}" for name in self._held_out_turns]
        scored = {name: found for name, found in zip(names, sums, strict=True) if found[1]}
        if not scored:
            raise ConfigError("data.source holds no held-out tokens to validate on")
        results = _scores("val", *next(iter(scored.values())))
        for name, found in scored.items() if len(scored) > 1 else ():
            results |= _scores(name, *found)
        self.run_state.held_out = results
        self.run_state.measured(self.trainer.global_step, results)
        self.log_dict(results, logger=False)


def _scores(prefix: str, nats: float, tokens: float, text: float) -> dict[str, float]:
    """Metrics of a held-out set: its loss and perplexity, and bits where bytes are known."""
    loss = nats / tokens
    scores = {
        f"{prefix}/loss": loss,
        f"{prefix}/perplexity": math.exp(loss) if loss < 700 else math.inf,  # of a float64
    }
    if text > 0:
        scores[f"{prefix}/bits_per_byte"] = nats / math.log(2.0) / text
    return scores
