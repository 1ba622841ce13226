"""Some tokens count more than others, or less.

The sum is divided by the number of targets, not by the sum of weights as ``torch.nn`` does: that
would depend on which tokens a micro-batch happens to hold, and so on how a batch is cut.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_train.context import Context
from llm_train.errors import ConfigError
from llm_train.model.loss.causal_lm import CausalLM
from llm_train.model.loss.per_token import PerTokenLoss


@dataclass(frozen=True, kw_only=True)
class ClassWeights(PerTokenLoss):
    """Multiplies the objective of another loss by a weight of the target's token.

    Attributes:
        weights: by token id; all others have weight 1. Each costs a comparison a target.
        loss: what is weighted.
    """

    weights: dict[int, float]
    loss: PerTokenLoss = CausalLM()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError(
                "loss.weights is empty and has no effect; write token ids with their weights, as "
                "in {3: 2.0}, or use the loss alone"
            )
        for token, weight in self.weights.items():
            if token < 0 or not 0.0 <= weight < float("inf"):
                raise ConfigError(
                    f"loss.weights: {token}: {weight} must be a token id of at least 0 with a "
                    "finite weight of at least 0"
                )

    def problems(self, context: Context) -> Iterator[str]:
        """Tokens that no target can be."""
        yield from super().problems(context)
        for token in self.weights:
            if token >= context.token_ids:
                yield (
                    f"model.loss.init_args.weights: {token} is beyond the network's "
                    f"{context.token_ids} token ids; remove it"
                )

    @property
    def ignore_index(self) -> int:
        """That of the loss inside."""
        return self.loss.ignore_index

    def of_targets(self, logits: Tensor, columns: Tensor) -> Tensor:
        """(N, V), (N, 1) -> (N,)."""
        objective = self.loss.of_targets(logits, columns)
        factor = torch.ones_like(objective)
        for token, weight in self.weights.items():  # no table: nothing is copied to the device
            factor = torch.where(columns.squeeze(-1) == token, weight, factor)
        return factor * objective
