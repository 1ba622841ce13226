"""One rank of the test of buckets: sums known gradients in order, in buckets of any size."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_train.trainer.strategy.deterministic import Buckets

SHAPES = ((3, 5), (7,), (1,), (4, 4), (2, 3))
ACCUMULATION = 3


def gradients(number: int) -> list[Tensor]:
    """Returns those of micro-batch ``number``, so different in size that the order matters."""
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(s, generator=generator) * 10.0 ** (number % 3) for s in SHAPES]


def in_order(count: int) -> list[Tensor]:
    total = gradients(0)
    for number in range(1, count):
        total = [a + b for a, b in zip(total, gradients(number), strict=True)]
    return total


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    frozen = nn.Parameter(torch.zeros(3), requires_grad=False)
    expected = in_order(ACCUMULATION * ranks)
    for size in (1, 70, 10**6):  # bytes: one bucket each, a few buckets, or one for all
        buckets = Buckets([*parameters, frozen], size)
        for step in range(2):  # nothing of the first step may be left in the second
            for micro in range(ACCUMULATION):
                for parameter, gradient in zip(
                    parameters, gradients(micro * ranks + rank), strict=True
                ):
                    assert parameter.grad is None or not micro  # the bucket has taken it
                    parameter.grad = gradient
                buckets.add(last=micro == ACCUMULATION - 1)
            for parameter, sum_ in zip(parameters, expected, strict=True):
                assert parameter.grad is not None
                assert torch.equal(parameter.grad, sum_), (size, step)
                assert parameter.grad.untyped_storage().nbytes() == 4 * parameter.numel()
    backwards = gradients(0)
    for number in reversed(range(1, ACCUMULATION * ranks)):
        backwards = [a + b for a, b in zip(backwards, gradients(number), strict=True)]
    assert any(not torch.equal(a, b) for a, b in zip(backwards, expected, strict=True))
    dist.destroy_process_group()
    (folder / f"rank-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
