"""From windows of token ids to sums of losses: what training and validation do alike."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from llm_train.model.construction import Score
from llm_train.model.loss.base import LossSum, Scorer
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
    _loss: Scorer

    def __init__(self) -> None:
        super().__init__()
        self._end_of_text = NO_TARGET
        self._shadows: ShadowWeights | None = None
        self._score: Score = self._plain_score

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
