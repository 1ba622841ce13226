"""DocumentView that share a window and see nothing of one another.

A document ends with its end-of-text token; what follows is the next one. One number a position says
all there is to know: ``first``, where in the window its document begins. A query at q sees the keys
k with ``first[q] <= k <= q``, and its own position is ``q - first[q]``. The numbers are computed
from the ids on the device, so that no second array travels and the host waits for nothing.

``first`` never falls along a window. The blocks of an attention matrix that hold any pair, and
those that hold all, follow therefore from it at the edges of the blocks alone, without T^2 work.

Shapes: B batch, T positions, N = T / 128 blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:  # it imports torch's compiler
    from torch.nn.attention.flex_attention import BlockMask

DocumentView = Literal["joined", "confined"]
Masks = Literal["none", "dense", "blocks"]
_BLOCK = 128  # of FlexAttention's kernels
NO_TARGET = -1


class Confinement(NamedTuple):
    """What a network needs to keep the documents of a micro-batch apart.

    Attributes:
        positions: (B, T) place of each token in its document.
        mask: (B, 1, T, T), true where a query may look, or the same as blocks for FlexAttention.
    """

    positions: Tensor
    mask: Tensor | BlockMask


def first_positions(tokens: Tensor, end_of_text: int) -> Tensor:
    """(B, T) -> (B, T), where each token's document begins; a place without a token is its own.

    >>> first_positions(torch.tensor([[5, 0, 7, 8, 0, -1, -1]]), end_of_text=0).tolist()
    [[0, 0, 2, 2, 2, 5, 6]]
    """
    begins = tokens < 0
    begins[:, 1:] |= tokens[:, :-1] == end_of_text
    places = torch.arange(tokens.shape[1], device=tokens.device)
    return torch.where(begins, places, 0).cummax(1).values


def confine(tokens: Tensor, end_of_text: int, *, blocks: bool) -> Confinement:
    """Keeps the documents of ``tokens`` (B, T) apart; ``blocks`` makes FlexAttention's mask."""
    first = first_positions(tokens, end_of_text)
    places = torch.arange(tokens.shape[1], device=tokens.device)
    mask = block_mask(first) if blocks else dense_mask(first)
    return Confinement(places - first, mask)


def own_targets(targets: Tensor, inputs: Tensor, end_of_text: int) -> Tensor:
    """``targets`` (B, T) without the first token of each document, which nothing announces."""
    return targets.masked_fill(inputs == end_of_text, NO_TARGET)


def last_document(tokens: list[int], end_of_text: int | None) -> list[int]:
    """What the token that follows ``tokens`` may be told from.

    >>> last_document([5, 0, 7, 8], 0), last_document([5, 0, 7, 0], 0)
    ([7, 8], [7, 0])
    """
    ends = [place for place, token in enumerate(tokens[:-1]) if token == end_of_text]
    return tokens[ends[-1] + 1 :] if ends else tokens


def dense_mask(first: Tensor) -> Tensor:
    """(B, 1, T, T) of ``first`` (B, T)."""
    keys = torch.arange(first.shape[1], device=first.device)
    return ((keys <= keys[:, None]) & (keys >= first[:, :, None])).unsqueeze(1)


def block_mask(first: Tensor) -> BlockMask:
    """The same, as the blocks of 128 x 128 pairs that hold some, or all, of the pairs."""
    from torch.nn.attention.flex_attention import BlockMask

    length = first.shape[1]
    starts = torch.arange(0, length, _BLOCK, device=first.device)  # (N,)
    ends = (starts + _BLOCK).clamp(max=length) - 1
    before = starts < starts[:, None]  # (N, N) of query and key
    widest, narrowest = first[:, starts, None], first[:, ends, None]  # (B, N, 1) of the queries
    whole = (starts + _BLOCK <= length)[:, None]  # as torch has it, the last one may not be full
    full = before & whole & (narrowest <= starts)  # (B, N, N)
    some = ((before & (widest <= ends)) | (starts == starts[:, None])) & ~full

    def visible(batch: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= first[batch, query])

    return BlockMask.from_kv_blocks(
        *_listed(some), *_listed(full), _BLOCK, visible, seq_lengths=(length, length)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, N) -> how many key blocks each query block has (B, 1, N), and which (B, 1, N, N)."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32).unsqueeze(1), order.int().unsqueeze(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, grouped: bool) -> Tensor:
    """FlexAttention, which is a kernel only once it is compiled; a compiled block has it inside."""
    from torch.nn.attention.flex_attention import flex_attention

    if torch.compiler.is_compiling():
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=grouped)
    kernel = torch.compile(flex_attention, dynamic=False)
    return kernel(q, k, v, block_mask=mask, enable_gqa=grouped)
