"""One rank of test_workers.py: under FSDP one block's gradients live at a time."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llm_train.model.optimizer import AdamW
from llm_train.model.optimizer.in_backward import InBackward

BLOCKS = 4


def main() -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(9, 9), nn.Tanh()) for _ in range(BLOCKS)))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    InBackward(AdamW(learning_rate=0.1).build(model.named_parameters()))
    before = [p.to_local().clone() for p in model.parameters()]
    alive: list[int] = []
    for parameter in model.parameters():  # these hooks run after the one that updates
        parameter.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    model(torch.randn(3, 9)).square().mean().backward()
    assert len(alive) == 2 * BLOCKS, alive
    assert set(alive) == {0}, alive  # only the buffer of the reduction is left of a block
    assert not any(
        torch.equal(p.to_local(), old) for p, old in zip(model.parameters(), before, strict=True)
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
