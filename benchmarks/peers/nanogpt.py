"""Trains nanoGPT's model.py as its train.py does (default settings, no evaluation).

Its variants are eager and compiled. The option ``path`` names a checkout.
"""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import torch

from benchmarks.peers.models import nanogpt
from benchmarks.work import Job, Pacer, prepare


def main() -> None:
    job = Job.from_arguments()
    device, shape = prepare(job), job.shape
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    model = nanogpt(job).to(device)
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), device.type)
    parameters = sum(p.numel() for p in model.parameters())
    step_model = torch.compile(model) if job.variant == "compiled" else model
    context = (
        torch.autocast(device.type, torch.bfloat16) if job.dtype == "bfloat16" else nullcontext()
    )

    def get_batch():
        # nanoGPT opens a new memmap for every batch.
        data = np.memmap(job.tokens, dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - shape.sequence, (shape.batch,))
        x = torch.stack(
            [torch.from_numpy(data[i : i + shape.sequence].astype(np.int64)) for i in starts]
        )
        y = torch.stack(
            [
                torch.from_numpy(data[i + 1 : i + 1 + shape.sequence].astype(np.int64))
                for i in starts
            ]
        )
        if device.type == "cuda":
            return (
                x.pin_memory().to(device, non_blocking=True),
                y.pin_memory().to(device, non_blocking=True),
            )
        return x.to(device), y.to(device)

    scaler = torch.amp.GradScaler(device.type, enabled=False)
    pacer = Pacer(job, parameters)
    x, y = get_batch()
    step = 0
    while True:
        for group in optimizer.param_groups:
            group["lr"] = 6e-4
        for _ in range(shape.accumulation):
            with context:
                _, loss = step_model(x, y)
                loss = loss / shape.accumulation
            x, y = get_batch()
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(step_model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 0:
            loss.item()
        step += 1
        pacer.step()


if __name__ == "__main__":
    main()
