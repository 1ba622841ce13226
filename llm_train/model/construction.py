"""From a network's configuration to weights where they belong, in an order that has reasons.

FP8 swaps modules, recomputation changes what a block's forward is, compilation must see both, and
sharding hooks must stay outside compiled code. Weights come last so that only shards of them ever
exist.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from llm_train.model.loss.base import Loss, Scorer
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.float8 import to_float8
from llm_train.model.network.init import initialise, materialise
from llm_train.model.recompute.base import Recompute
from llm_train.trainer.strategy.base import Strategy

CompileUnit = Literal["none", "blocks", "network", "graphs"]
Float8 = Literal["none", "tensorwise", "rowwise"]


@dataclass(frozen=True, kw_only=True)
class Construction:
    """What is done to a network between its configuration and its first forward.

    Attributes:
        recompute: what blocks keep between forward and backward.
        compile: what torch.compile makes one graph of.
        float8: how FP8 products are scaled; none: there are none.
    """

    recompute: Recompute
    compile: CompileUnit
    float8: Float8

    def network(self, config: Network, strategy: Strategy, seed: int) -> LanguageModel:
        """The network on the devices of ``strategy``, each parameter from (seed, name)."""
        with strategy.construction():
            network = config.build()
        if self.float8 != "none":
            to_float8(network, self.float8, strategy.root_device)
        self.recompute.apply(network.blocks())
        if self.compile == "blocks":
            for block in network.blocks():
                block.compile(dynamic=False)
        strategy.shard(network)
        if any(parameter.is_meta for parameter in network.parameters()):
            materialise(network, strategy.parameter_device, buffers=strategy.root_device)
        initialise(network, seed, strategy.gathered)
        return network

    def scorer(self, loss: Loss) -> Scorer:
        """The loss as the blocks are: compiled, or as it is."""
        return loss.compiled() if self.compile == "blocks" else loss

    def whole(self, score: Callable[..., Any]) -> Callable[..., Any]:
        """Network and loss together: one graph where that is wanted."""
        if self.compile not in ("network", "graphs"):
            return score
        # Launching a kernel costs the host microseconds; a replayed graph is one launch.
        mode = "reduce-overhead" if self.compile == "graphs" else "default"
        compiled: Callable[..., Any] = torch.compile(score, dynamic=False, mode=mode)
        return compiled
