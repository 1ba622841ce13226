"""Trains with Hugging Face transformers and accelerate, as their examples do.

Its variants are eager and compiled.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, TorchDynamoPlugin

from benchmarks.peers.loader import endless, loader
from benchmarks.peers.models import hugging_face
from benchmarks.work import Job, Pacer, prepare


def main() -> None:
    job = Job.from_arguments()
    prepare(job)
    shape = job.shape
    accelerator = Accelerator(
        cpu=job.device == "cpu",
        mixed_precision="bf16" if job.dtype == "bfloat16" else "no",
        gradient_accumulation_steps=shape.accumulation,
        dynamo_plugin=TorchDynamoPlugin(backend=DynamoBackend.INDUCTOR)
        if job.variant == "compiled"
        else None,
    )
    model = hugging_face(shape, tied=job.options.get("tied", False))
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    batches = loader(job.tokens, shape, pin_memory=job.device == "cuda")
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
    model.train()
    pacer = Pacer(job, parameters)
    step = 0
    for batch in endless(batches):
        with accelerator.accumulate(model):
            tokens = batch[:, :-1].contiguous()
            loss = model(input_ids=tokens, labels=tokens).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            if step % 10 == 0:
                loss.item()
            step += 1
            pacer.step()


if __name__ == "__main__":
    main()
