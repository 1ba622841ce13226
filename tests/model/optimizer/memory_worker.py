"""One rank of test_workers.py: counts bytes of weights, gradients and state."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from llm_train.model.optimizer import AdamW, LowBitAdamW, MuonAdamW
from llm_train.runtime.sharded import tensor_bytes

CONFIGS = (
    AdamW(learning_rate=0.01),
    MuonAdamW(learning_rate=0.01),
    LowBitAdamW(learning_rate=0.01, state="bf16"),
    LowBitAdamW(learning_rate=0.01, state="8bit"),
)
WIDTH, ROWS = 128, 3  # two ranks get 2 rows and 1 row


def main() -> None:
    dist.init_process_group("gloo")
    ranks, rank = dist.get_world_size(), dist.get_rank()
    mesh = init_device_mesh("cpu", (ranks,))
    for dtype in (torch.float32, torch.bfloat16):
        for config in CONFIGS:
            layers = [nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype) for _ in range(2)]
            model = nn.Sequential(*layers, nn.Linear(WIDTH, ROWS, dtype=dtype))
            fully_shard(model, mesh=mesh)
            named = list(model.named_parameters())
            predicted = sum(config.state_bytes(name, p) for name, p in named)
            optimizer = config.build(named)
            model(torch.randn(2, WIDTH, dtype=dtype)).float().square().sum().backward()
            optimizer.step()
            found = sum(tensor_bytes(v) for s in optimizer.state.values() for v in s.values())
            assert found == predicted, (config, dtype, found, predicted)
            mine = 2 * WIDTH * WIDTH // ranks + (WIDTH + 1) * (2 - rank)
            for tensors in ([p for _, p in named], [p.grad for _, p in named]):
                assert sum(map(tensor_bytes, tensors)) == mine * dtype.itemsize
    dist.destroy_process_group()


if __name__ == "__main__":
    with torch.compiler.set_stance("force_eager"):
        main()
