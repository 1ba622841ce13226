"""One rank of the test of sums in order: adds up known gradients."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm_train.trainer.strategy.deterministic import Replicas

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
    summed = Replicas([*parameters, frozen])
    for step in range(2):  # nothing of the first step may be left in the second
        for micro in range(ACCUMULATION):
            own = gradients(micro * ranks + rank)
            for parameter, gradient in zip(parameters, own, strict=True):
                assert parameter.grad is None or not micro  # it has been taken away
                parameter.grad = gradient
            summed.add(last=micro == ACCUMULATION - 1)
        for parameter, sum_ in zip(parameters, expected, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, sum_), step
            assert parameter.grad.untyped_storage().nbytes() == 4 * parameter.numel()
    backwards = gradients(0)
    for number in reversed(range(1, ACCUMULATION * ranks)):
        backwards = [a + b for a, b in zip(backwards, gradients(number), strict=True)]
    assert any(not torch.equal(a, b) for a, b in zip(backwards, expected, strict=True))
    dist.destroy_process_group()
    (folder / f"rank-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
