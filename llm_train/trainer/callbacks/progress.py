"""What the terminal shows: a bar where there is one, one line per log point where there is not.

Lightning's bars read a metric from the device on every batch. This one moves at log points, when
the values are on the host anyway.
"""

import sys
from typing import NoReturn

import lightning.pytorch as pl
from tqdm import tqdm

from llm_train.run_state import task_of
from llm_train.trainer.callbacks.base import EachStep

_SHOWN = {
    "train/loss": "loss {:.4f}",
    "throughput/tokens_per_s": "{:,.0f} tokens/s",
    "throughput/mfu": "MFU {:.1%}",
    "optimizer/lr": "lr {:.3g}",
}
# Without tqdm's own rate, which counts validations and would disagree with the tokens per second.
_BAR = "{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress(EachStep):
    """Loss, throughput, MFU where a peak is known, and the time left."""

    def __init__(self) -> None:
        self._bar: tqdm[NoReturn] | None = None
        self._shown = -1
        self._start_up_due = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar at the step from which the run continues, on rank 0 alone."""
        if not trainer.is_global_zero:
            return
        self._shown = trainer.global_step
        self._bar = tqdm(
            total=task_of(pl_module).derived.total_steps,
            initial=trainer.global_step,
            bar_format=_BAR,
            dynamic_ncols=True,
            disable=None,  # where there is no terminal, which gets lines instead
            smoothing=0.1,
        )

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Moves the bar when the metrics callback has published a new interval."""
        task = task_of(pl_module)
        run, total = task.run_state, task.derived.total_steps
        step = run.latest_step
        if self._bar is None or step <= self._shown:
            return
        if self._start_up_due:
            self._start_up_due = False
            tqdm.write(describe_start_up(run.start_up), file=sys.stderr)
        text = describe(run.latest)
        if self._bar.disable:
            if rate := run.latest.get("throughput/tokens_per_s"):
                seconds = (task.derived.tokens(total) - task.derived.tokens(step)) / rate
                text += f"  ETA {tqdm.format_interval(seconds)}"
            tqdm.write(f"step {step}/{total}  {text}", file=sys.stderr)
        else:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._shown)
        self._shown = step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the interval before a validation first, then that one is under way."""
        self.on_step_end(trainer, pl_module)
        if self._bar is not None:
            self._bar.set_description("validating")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prints the held-out result on a line of its own, so that it stays readable."""
        if self._bar is None:
            return
        self._bar.set_description(None, refresh=False)
        if trainer.sanity_checking:  # it was broken off
            return
        held_out = task_of(pl_module).run_state.held_out
        text = f"step {trainer.global_step}  held-out loss {held_out['val/loss']:.4f}"
        if "val/bits_per_byte" in held_out:
            text += f"  bits/byte {held_out['val/bits_per_byte']:.4f}"
        for name, value in held_out.items():
            if name.count("/") > 1 and name.endswith("/loss"):
                text += f"  {name.removeprefix('val/').removesuffix('/loss')} {value:.4f}"
        tqdm.write(text, file=sys.stderr)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


def describe_start_up(seconds: dict[str, float]) -> str:
    """How long the first step took to come.

    >>> describe_start_up({"seconds": 40.31, "compile_seconds": 25.0})
    'first step 40.3 s after the start, 25.0 s of them compiling'
    """
    text = f"first step {seconds['seconds']:.1f} s after the start"
    if "compile_seconds" in seconds:
        text += f", {seconds['compile_seconds']:.1f} s of them compiling"
    return text


def describe(metrics: dict[str, float]) -> str:
    """One line of the metrics people watch.

    >>> describe({"train/loss": 2.5, "throughput/tokens_per_s": 12345.0, "throughput/mfu": 0.41})
    'loss 2.5000  12,345 tokens/s  MFU 41.0%'
    """
    return "  ".join(text.format(metrics[name]) for name, text in _SHOWN.items() if name in metrics)
