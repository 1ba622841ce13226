"""Runs a bare PyTorch loop around our network, loss and optimizer, to find the Trainer's cost.

Its variants are eager and compiled (each block). It logs nothing and reads nothing back. Under
bfloat16 it casts weights once per step, as llm_train does, so that the two differ only in what is
around the step.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from benchmarks.peers.ours import configuration
from benchmarks.work import Job, Pacer, prepare


def main() -> None:
    from pathlib import Path

    from llm_train.model.loss import CausalLM, ChunkedCausalLM
    from llm_train.model.network import Transformer
    from llm_train.model.network.init import initialise
    from llm_train.model.network.shadow import ShadowWeights
    from llm_train.model.optimizer import AdamW

    job = Job.from_arguments()
    device, shape = prepare(job), job.shape
    arguments = configuration(job, Path())["model"]["network"]["init_args"]
    network = Transformer(**arguments).build()
    initialise(network, 1)
    network.to(device)
    if job.variant == "compiled":
        for block in network.blocks():
            block.compile()
    optimizer = AdamW(learning_rate=6e-4).build(network.named_parameters())
    recipe = ChunkedCausalLM() if shape.vocab >= 8192 else CausalLM()
    loss = recipe.compiled() if job.variant == "compiled" else recipe
    shadows = ShadowWeights(network, torch.bfloat16) if job.dtype == "bfloat16" else None
    ids = np.memmap(job.tokens, dtype=np.uint16, mode="r")
    count = (len(ids) - 1) // shape.sequence
    context = (
        torch.autocast(device.type, torch.bfloat16) if job.dtype == "bfloat16" else nullcontext()
    )
    pacer = Pacer(job, sum(p.numel() for p in network.parameters()))
    sample = 0
    while True:
        for _ in range(shape.accumulation):
            rows = [(sample + i) % count * shape.sequence for i in range(shape.batch)]
            sample += shape.batch
            batch = np.stack([ids[r : r + shape.sequence + 1] for r in rows]).astype(np.int64)
            tokens = torch.from_numpy(batch).to(device)
            with context:
                sums = network(tokens[:, :-1], partial(loss, targets=tokens[:, 1:]))
                objective = sums.objective / shape.tokens_per_step
            objective.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if shadows is not None:
            shadows.cast()
        optimizer.zero_grad(set_to_none=True)
        pacer.step()


if __name__ == "__main__":
    main()
