"""Logs a few steps to W&B and writes what it was told; test_wandb_logger.py runs it."""

import json
import logging
import os
import sys
from pathlib import Path

import wandb

from llm_train.trainer.logger import WandB


def train(directory: str, mode: str, seconds: str) -> dict[str, str]:
    logger = WandB(
        project="p",
        tags=("a",),
        notes="why",
        group="g",
        job_type="pretraining",
        mode=mode,
        init_timeout_seconds=float(seconds),
        artifacts=True,
    )
    logger.attach(Path(directory))
    logger.log_hyperparams({"width": 128, "nested": {"a": 1}})
    for step in (0, 10, 10, 20, 10, 30):
        logger.log_metrics({"train/loss": 1.0 + step, "progress/tokens": step * 1000.0}, step=step)
    logger.log_event("spike", 20, reason="loss")
    logger.log_event("samples", 30, samples=[{"prompt": "once", "text": " upon"}])
    told = {"mode": logger.mode, "id": logger.version}
    logger.finalize("success")
    logger.log_metrics({"val/loss": 1.0}, step=30)
    wandb.finish()
    return told


def main(*arguments: str, answer: str, environment: str) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    os.environ.update(json.loads(environment))
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("llm_train").addHandler(handler)
    told = train(*arguments)
    Path(answer).write_text(json.dumps({**told, "warnings": warnings}))
    wandb.teardown()


if __name__ == "__main__":
    main(*sys.argv[1:4], answer=sys.argv[4], environment=sys.argv[5])
