"""Full recomputation: each block keeps its input alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from llm_train.model.recompute.base import Recompute, checkpoint_block


@dataclass(frozen=True, kw_only=True)
class EveryBlock(Recompute):
    """Runs each block's forward a second time in backward (Chen et al., arXiv:1604.06174).

    Keeps one (B, T, D) tensor a block, plus the activations of the one block that backward is in;
    costs one more forward of the blocks, about a third more time in them.
    """

    whole_blocks = True

    def apply(self, blocks: Sequence[nn.Module]) -> None:
        """Makes every block recompute."""
        for block in blocks:
            checkpoint_block(block)
