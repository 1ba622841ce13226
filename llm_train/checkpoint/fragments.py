"""A flat fragment of a tensor, as torch's distributed checkpointing (DCP) can store it.

DCP knows tensors as boxes: an offset and a length in every dimension. A strategy that flattens
parameters cuts them anywhere, so a fragment of a matrix may begin and end in the middle of a row.
Here such a fragment is described as the few boxes it consists of (at most three for a matrix: the
rest of the first row, whole rows, the beginning of the last one). Each rank then writes, and reads,
exactly its own numbers: nothing is gathered.
A copy of what a rank holds of a DTensor consists of such boxes, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import NoReturn

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes


def boxes(shape: Sequence[int], start: int, count: int) -> Iterator[Box]:
    """The boxes that make up elements ``start`` to ``start + count`` in row-major order.

    >>> list(boxes((4, 3), 2, 6))
    [((0, 2), (1, 1)), ((1, 0), (1, 3)), ((2, 0), (1, 2))]
    >>> list(boxes((4, 3), 3, 6))
    [((1, 0), (2, 3))]
    """
    if not count:
        return
    if not shape:
        yield (), ()
        return
    row = prod(shape[1:])
    first, skipped = divmod(start, row)
    if skipped or count < row:  # within one row, or the rest of it
        part = min(count, row - skipped)
        for offsets, sizes in boxes(shape[1:], skipped, part):
            yield (first, *offsets), (1, *sizes)
        yield from boxes(shape, start + part, count - part)
        return
    whole = count // row
    yield (first, *(0 for _ in shape[1:])), (whole, *shape[1:])
    yield from boxes(shape, start + whole * row, count - whole * row)


class BoxedTensor(Tensor):
    """What a rank holds of a tensor of ``shape``, as boxes of it.

    It follows the protocol by which DCP lets a tensor say which parts of itself lie here. It is a
    tensor, without storage, because DCP asks nothing else; it cannot be computed with.

    Args:
        shape: of the whole tensor.
        parts: the numbers of each box by its offsets; loading writes into them. May be empty.
        like: has the dtype, and lies where the parts lie.
    """

    parts: Mapping[torch.Size, Tensor]

    @staticmethod
    def __new__(
        cls, shape: Sequence[int], parts: Mapping[torch.Size, Tensor], like: Tensor
    ) -> BoxedTensor:
        """A tensor without memory of its own."""
        self: BoxedTensor = Tensor._make_wrapper_subclass(
            cls, torch.Size(shape), dtype=like.dtype, device=like.device
        )
        self.parts = parts
        return self

    @classmethod
    def __torch_dispatch__(cls, operator: object, *rest: object) -> NoReturn:
        raise NotImplementedError(f"{operator} of a fragment of a tensor")

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(name, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.shape),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [
            ChunkStorageMetadata(offsets=offsets, sizes=part.shape)
            for offsets, part in self.parts.items()
        ]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.parts[index.offset]


def flat_fragment(shape: Sequence[int], offset: int, values: Tensor) -> BoxedTensor:
    """Consecutive elements of a tensor, described by the boxes that they fill.

    Args:
        shape: of the whole tensor.
        offset: of the shard: position of its first element in row-major order.
        values: the elements, in one dimension; they are not copied.
    """
    found = list(boxes(shape, offset, values.numel()))
    ends = accumulate((prod(sizes) for _, sizes in found), initial=0)
    parts = {
        torch.Size(offsets): values.detach()[begin:end].view(sizes)
        for (offsets, sizes), (begin, end) in zip(found, pairwise(ends), strict=True)
    }
    return BoxedTensor(shape, parts, values)
