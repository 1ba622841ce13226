"""Builds a network with its weights where they belong; the order of the steps matters.

FP8 swaps modules, recomputation changes what a block's forward is, compilation must see both, and
sharding hooks must stay outside compiled code. Weights come last so that only shards of them ever
exist.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from llm_train.context import Context, Part
from llm_train.model.loss.base import Loss, LossSum, Scorer
from llm_train.model.network import float8
from llm_train.model.network.base import LanguageModel, Network
from llm_train.model.network.init import Start, as_drawn, initialise, materialise
from llm_train.model.network.meta import without_parameters
from llm_train.model.recompute.base import Recompute
from llm_train.trainer.strategy.base import Strategy

CompileUnit = Literal["none", "blocks", "network", "graphs"]
Score = Callable[..., LossSum]
Float8 = Literal["none", "tensorwise", "rowwise"]


@dataclass(frozen=True, kw_only=True)
class Construction(Part):
    """What is done to a network between its configuration and its first forward.

    Attributes:
        recompute: what blocks keep between forward and backward.
        compile: what is compiled as one graph.
        float8: how FP8 products are scaled; none: no FP8.
        start: writes over initial weights, for a run that begins with weights from elsewhere.
    """

    recompute: Recompute
    compile: CompileUnit
    float8: Float8
    start: Start = as_drawn

    def problems(self, context: Context) -> Iterator[str]:
        """What cannot be one graph, and what FP8 products need."""
        strategy = context.strategy
        if self.compile == "network" and strategy.communicates_between_blocks:
            yield (
                f"model.compile=network cannot be one graph under {strategy.name}, which "
                "communicates between the blocks; write model.compile=blocks"
            )
        # torch 2.13: AOTAutograd asserts that all that is saved for such a block is a tensor, and
        # under tensor parallelism a device mesh is among it.
        if self.compile == "blocks" and strategy.tensor > 1 and self.recompute.whole_blocks:
            yield (
                f"model.compile=blocks cannot recompute whole blocks ({self.recompute}) under "
                "tensor parallelism; write model.recompute=Selective or model.compile=none"
            )
        if self.compile == "graphs":
            yield from self._graph_problems(context)
        yield from float8.problems(context)

    @staticmethod
    def _graph_problems(context: Context) -> Iterator[str]:
        """A replayed graph writes gradients to the same memory each time."""
        kind = context.accelerator.type
        if kind != "cuda":
            yield (
                f"model.compile=graphs has no effect on {kind}, which has no CUDA graphs; write "
                "model.compile=network"
            )
        if context.strategy.communicates:
            yield (
                f"model.compile=graphs works on one device, not under {context.strategy.name}; "
                "write model.compile=blocks"
            )
        micro_batches = context.derived.accumulation
        if micro_batches > 1:
            yield (
                f"model.compile=graphs with {micro_batches} micro-batches a step would overwrite "
                "the gradients of the one before; raise batch.per_device until a step is one "
                "micro-batch, or write model.compile=network"
            )

    def network(self, config: Network, strategy: Strategy, seed: int) -> LanguageModel:
        """The network on the devices of ``strategy``; each parameter is drawn from (seed, name)."""
        with without_parameters():
            network = config.build()
        if self.float8 != "none":
            float8.to_float8(network, self.float8, strategy.root_device)
        self.recompute.apply(network.blocks())
        if self.compile == "blocks":
            for block in network.blocks():
                block.compile(dynamic=False)
        strategy.shard(network)
        materialise(network, strategy.parameter_device, buffers=strategy.root_device)
        initialise(network, seed, strategy.gathered, self.start)
        return network

    def scorer(self, loss: Loss) -> Scorer:
        """The loss, compiled where the blocks are compiled one by one."""
        return loss.compiled() if self.compile == "blocks" else loss

    def whole(self, score: Score) -> Score:
        """Network and loss together, compiled as one graph for ``network`` and ``graphs``."""
        if self.compile not in ("network", "graphs"):
            return score
        # A CUDA graph is replayed by one launch, where each kernel costs the host microseconds.
        mode = "reduce-overhead" if self.compile == "graphs" else "default"
        return torch.compile(score, dynamic=False, mode=mode)
