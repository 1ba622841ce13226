"""Logs 30 rows while the network is cut, and writes how long each part of it waited."""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import Request, urlopen

import wandb
import wandb.apis.public  # which a start imports, whoever answers

from llm_train.trainer.logger import JSONLMetrics, WandB

ROWS = 30


def main(directory: str, when: str, way: str, answer: str, environment: str) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        del os.environ[name]
    os.environ.update(json.loads(environment))
    loggers = [JSONLMetrics(directory), WandB(mode="online", directory=directory)]
    cut_at = {"middle": ROWS // 2, "end": ROWS}.get(when, 0)
    waits, began = {}, time.monotonic()
    loggers[1].log_hyperparams({"width": 128})
    waits["start"] = time.monotonic() - began
    for step in range(1, ROWS + 1):
        if step == cut_at:
            with suppress(OSError):
                urlopen(Request(f"{os.environ['WANDB_BASE_URL']}/cut/{way}", b""), timeout=0.1)
        began = time.monotonic()
        for logger in loggers:
            logger.log_metrics({"train/loss": 77000.0 + step}, step=step)
        waits["middle"] = max(waits.get("middle", 0.0), time.monotonic() - began)
    began = time.monotonic()
    wandb.finish()
    wandb.teardown()
    waits["end"] = time.monotonic() - began
    Path(answer).write_text(json.dumps(waits))


if __name__ == "__main__":
    main(*sys.argv[1:])
