"""What a run asks of the device that it uses, and of no other that the machine has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llm_train.testing.configs import tiny, write
from llm_train.testing.ranks import environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
RUN = """
import torch
from llm_train.testing.command import run
outcome = run("fit", "-c", {path!r})
assert outcome.code == 0, outcome.err
assert not torch.cuda.is_initialized()
"""


def in_a_process(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("strategy", ["single", "zero2"])
def test_a_run_on_cpus_leaves_the_gpu_alone(strategy: str, tmp_path: Path) -> None:
    """It saves, logs and measures without initialising CUDA."""
    if strategy == "zero2":
        pytest.importorskip("deepspeed")
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", trainer__strategy=strategy))
    in_a_process(RUN.format(path=str(path)))


FAIL_WHILE_WARMING_UP = """
import lightning.pytorch as pl
from llm_train.testing import command
from llm_train.testing.attach import attached
from llm_train.trainer.callbacks.profile import FIRST_STEP

class Fail(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == FIRST_STEP - 2:
            raise RuntimeError("on purpose")

arguments = ("fit", "-c", {path!r}, "--profile")
try:
    with attached(Fail()):
        command.run(*arguments)
except RuntimeError as error:
    assert "on purpose" in str(error)
assert "wrote" in command.run(*arguments).out
"""


def test_an_error_while_the_profiler_warms_up_is_what_is_reported(tmp_path: Path) -> None:
    """The process lives on, and another run in it can be profiled."""
    settings = {"trainer__accelerator": "gpu", "checkpoint__every": "0 steps"}
    path = write(tmp_path / "c.yaml", tiny(tmp_path / "run", steps=15, **settings))
    in_a_process(FAIL_WHILE_WARMING_UP.format(path=str(path)))
