"""Trains nanoGPT's model with a LightningModule as Lightning's documentation writes one.

Its variants are eager and compiled. The option ``path`` names a checkout of nanoGPT.
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import lightning as L
import torch

from benchmarks.peers.loader import loader
from benchmarks.peers.models import nanogpt
from benchmarks.work import Job, Pacer, prepare


class LitGPT2(L.LightningModule):
    """A module that logs its loss for the progress bar at every step and has one AdamW."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        _, loss = self.model(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)


class Pace(L.Callback):
    """Reports every finished optimizer step to the pacer."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._pacer: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._pacer = Pacer(self._job, sum(p.numel() for p in pl_module.parameters()))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._pacer.step()


def main() -> None:
    warnings.simplefilter("ignore")
    job = Job.from_arguments()
    prepare(job)
    shape = job.shape
    model = nanogpt(job)
    if job.variant == "compiled":
        model = torch.compile(model)
    with tempfile.TemporaryDirectory() as directory:
        trainer = L.Trainer(
            accelerator="gpu" if job.device == "cuda" else "cpu",
            devices=1,
            precision="bf16-mixed" if job.dtype == "bfloat16" else "32-true",
            gradient_clip_val=1.0,
            accumulate_grad_batches=shape.accumulation,
            max_steps=10**9,
            log_every_n_steps=10,
            callbacks=[Pace(job)],
            default_root_dir=directory,
            enable_checkpointing=False,
        )
        trainer.fit(LitGPT2(model), loader(job.tokens, shape, pin_memory=job.device == "cuda"))


if __name__ == "__main__":
    main()
