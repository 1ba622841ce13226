"""What training and validation do alike, and what validation does: from windows to sums of losses.

A validation gives loss, perplexity and bits per byte of held-out sets, each token counted once over
all ranks; its loader has the sets one after another.
"""

import math
from bisect import bisect_right
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from llm_train.data.module import data_of
from llm_train.errors import ConfigError
from llm_train.model.construction import Score
from llm_train.model.loss.base import Loss, LossSum, Scorer
from llm_train.model.network import sdpa
from llm_train.model.network.confined import (
    NO_TARGET,
    Confinement,
    confine,
    own_targets,
)
from llm_train.model.network.sdpa import Kernel
from llm_train.model.network.shadow import ShadowWeights
from llm_train.run_state import TaskBase
from llm_train.trainer.strategy.base import Strategy, require_strategy


class Scoring(TaskBase):
    """Runs network and loss on windows, whose documents it keeps apart where that is asked for."""

    attention: Kernel
    loss: Loss
    _loss: Scorer
    _held_out_sums: Tensor  # (sets, 3) nats, targets and bytes, on the device

    def __init__(self) -> None:
        super().__init__()
        self._end_of_text = NO_TARGET
        self._shadows: ShadowWeights | None = None
        self._score: Score = self._plain_score
        self._token_bytes: Tensor | None = None
        self._held_out_turns: dict[str, int] = {}  # batches of each held-out set
        self._held_out_ends: list[int] = []

    @property
    def strategy(self) -> Strategy:
        """The Trainer's strategy, by its full type."""
        return require_strategy(self.trainer.strategy)

    def split(
        self, tokens: Tensor, positions: int = 0
    ) -> tuple[Tensor, Tensor, Confinement | None]:
        """Makes inputs (B, T) and targets of windows (B, T + 1), and what keeps documents apart.

        With ``positions`` P, windows are cut into pieces first: B becomes B T / P, and T becomes P.
        Of the targets those that this rank scores; -1 where there is none that counts.
        """
        inputs, targets, documents = tokens[:, :-1], tokens[:, 1:], None
        if positions:
            inputs, targets = inputs.reshape(-1, positions), targets.reshape(-1, positions)
        if self.documents == "confined":
            kinds = self.network_config.document_masks
            blocks = sdpa.in_blocks(self.attention, kinds, self.trainer.precision, tokens.device)
            documents = confine(inputs, self._end_of_text, blocks=blocks)
            targets = own_targets(targets, inputs, self._end_of_text)
        return inputs, self.strategy.own_targets(targets), documents

    def forward(
        self, inputs: Tensor, targets: Tensor, documents: Confinement | None = None
    ) -> LossSum:
        """Loss sums of ``targets`` (B, T) given ``inputs`` (B, T)."""
        if self._shadows is not None:
            self._shadows.refresh()  # must not be traced where the whole network is compiled
        return self._score(inputs, targets, documents)

    def _plain_score(
        self, inputs: Tensor, targets: Tensor, documents: Confinement | None
    ) -> LossSum:
        confined = {} if documents is None else {"documents": documents}
        sums: LossSum = self.network(inputs, partial(self._loss, targets=targets), **confined)
        return sums

    # --- validation -------------------------------------------------------------------------------

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
