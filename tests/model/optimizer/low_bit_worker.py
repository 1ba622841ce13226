"""One rank of test_workers.py: low-bit state of sharded weights is saved and moved.

The argument is the directory of the checkpoints. The exit status is 0 if everything is right.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from llm_train.checkpoint import dcp, tensors
from llm_train.model.optimizer import LowBitAdamW

ROWS, COLUMNS = 4, 128  # three ranks get 2, 2 and 0 rows


def network(mesh: Any = None, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(COLUMNS, 70), nn.Tanh(), nn.Linear(70, COLUMNS), nn.Tanh())
    model.append(nn.Linear(COLUMNS, ROWS)).to(dtype)
    return model if mesh is None else fully_shard(model, mesh=mesh)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[Any]:
    """Returns losses of ``steps`` on inputs that every rank has, so one process sees the same."""
    losses = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(8, COLUMNS, generator=generator)
        dtype = next(model.parameters()).dtype
        loss = (model(inputs.to(dtype)) - inputs[:, :ROWS]).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parts(model: nn.Module, optimizer: Any) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key}": whole(value)
        for name, p in model.named_parameters()
        if p in optimizer.state
        for key, value in optimizer.split(p, optimizer.state[p]).items()
    }


def same_layout(folder: Path, mesh: Any, dtype: torch.dtype) -> None:
    """A second sharded network continues bit for bit like the first one."""
    config = LowBitAdamW(learning_rate=0.01)
    model = network(mesh, dtype)
    optimizer = config.build(model.named_parameters())
    train(model, optimizer, range(3))
    dcp.write(folder, tensors.state(model, optimizer))
    other = network(mesh, dtype)
    again = config.build(other.named_parameters())
    dist.barrier()
    tensors.load(folder, other, again)
    torch.manual_seed(5 + dist.get_rank())
    expected = train(model, optimizer, range(3, 6))
    torch.manual_seed(5 + dist.get_rank())
    assert train(other, again, range(3, 6)) == expected
    mine, theirs = parts(model, optimizer), parts(other, again)
    for key, value in mine.items():
        assert torch.equal(value, theirs[key]), key


def other_layout(folder: Path, mesh: Any) -> None:
    """Codes and scales of shards equal those of one process, which reads them and continues."""
    config = LowBitAdamW(learning_rate=0.01)
    model = network(mesh)
    optimizer = config.build(model.named_parameters())
    train(model, optimizer, range(3))
    dcp.write(folder, tensors.state(model, optimizer))
    dist.barrier()
    single = network()
    alone = config.build(single.named_parameters())
    back = network(mesh)
    sharded = config.build(back.named_parameters())
    # Every rank reads everything into an unsharded network, and its part into a sharded one.
    tensors.load(folder, single, alone)
    tensors.load(folder, back, sharded)
    expected = parts(model, optimizer)
    for found in (parts(single, alone), parts(back, sharded)):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), key
    losses = train(model, optimizer, range(3, 6))
    torch.testing.assert_close(train(single, alone, range(3, 6)), losses, rtol=1e-5, atol=0)


def cut_rows(folder: Path, mesh: Any) -> None:
    """Tensor parallelism splits rows; blocks that divide the parts are those of whole rows."""
    torch.manual_seed(0)
    whole_module, cut = nn.Linear(3 * COLUMNS, 5), nn.Linear(3 * COLUMNS, 5)
    config = LowBitAdamW(learning_rate=0.01)
    gradient = torch.randn(5, 3 * COLUMNS)
    for placement in (Shard(0), Shard(1)):
        part = distribute_tensor(whole_module.weight.detach(), mesh, [placement])
        cut.weight = nn.Parameter(part)
        cut.weight.grad = distribute_tensor(gradient, mesh, [placement])
        optimizer = config.build([("weight", cut.weight)])
        optimizer.step()
        if placement == Shard(0):
            dcp.write(folder, tensors.state(cut, optimizer))
            saved = parts(cut, optimizer)
    dist.barrier()
    tensors.load(folder, cut, optimizer)
    for key, value in parts(cut, optimizer).items():
        assert torch.equal(value, saved[key]), key


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with torch.compiler.set_stance("force_eager"):
        other_layout(folder / "moved", mesh)
        cut_rows(folder / "cut", mesh)
        for dtype in (torch.float32, torch.bfloat16):
            same_layout(folder / str(dtype), mesh, dtype)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
