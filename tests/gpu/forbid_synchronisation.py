"""Runs the command line while torch's synchronisation detector raises between log points.

``forbid_synchronisation.py --but deepspeed fit ...`` lets a package wait by itself: the detector
then warns, and the run fails only where the caller of torch is not of that package.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from typing import Any

import lightning.pytorch as pl
import torch

from llm_train.cli import main
from llm_train.testing.attach import attached

# Torch itself, and what stands between a warning and its cause.
_BETWEEN = ("/torch/", "warnings.py", __file__)


class Forbid(pl.Callback):
    """Forbids synchronisation from the third step on, except in the steps of log points."""

    def __init__(self, but: str = "") -> None:
        self.but = but
        self.waits: list[str] = []

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        quiet = step >= 2 and (step + 1) % pl_module.derived.log_every != 0
        forbidden = "warn" if self.but else "error"
        torch.cuda.set_sync_debug_mode(forbidden if quiet else "default")

    def on_train_end(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    def on_exception(self, *_: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")  # or the teardown fails and hides the cause

    def note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        """Takes a warning in the place of ``warnings.showwarning``."""
        if "called a synchronizing" in str(message):
            frames = traceback.extract_stack()
            own = [f for f in frames if not any(name in f.filename for name in _BETWEEN)]
            if self.but not in own[-1].filename:
                self.waits.append(f"{own[-1].filename}:{own[-1].lineno}")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    but = arguments[1] if arguments[0] == "--but" else ""
    forbid = Forbid(but)
    if but:
        warnings.filterwarnings("always", ".*called a synchronizing")
        warnings.showwarning = forbid.note  # type: ignore[assignment]
    with attached(forbid):
        try:
            main(arguments[2:] if but else arguments)
        finally:
            if forbid.waits:
                sys.exit("\n".join(["these waited for the device:", *sorted(set(forbid.waits))]))
