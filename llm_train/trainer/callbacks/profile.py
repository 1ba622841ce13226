"""Records three optimizer steps and says where their time went.

The profiler is started one step before the three, because the first traced step pays for starting
the device's tracing. The device is awaited at both ends of the three, so that the work of three
steps, no more and no less, lies between them. Everything else of the run is untouched: hooks and
profiler exist from the step before to the last of the three.

A traced step is slower than others, by some microseconds of host time for each operator and kernel;
where kernels are short, the share of idle GPU is therefore an upper bound.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import PassThroughProfiler, Profiler, PyTorchProfiler
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.model.network.head import Head
from llm_train.runtime.terminal import say, section
from llm_train.trainer.callbacks.breakdown import (
    HEAD_RANGE,
    LOADER_RANGE,
    UPDATE_MARK,
    Breakdown,
    Row,
    break_down,
    read_events,
)
from llm_train.trainer.callbacks.kinds import OTHER

# After ten steps everything that happens once has happened: compilation, tuning and recording of
# kernels, growth of the allocator. The step after a log point of the usual ten, so that it is not
# one of the three.
FIRST_STEP = 11
STEPS = 3


class Profile(pl.Callback):
    """Writes ``profile/trace.json.gz``, which Perfetto opens, and prints a table of it.

    Rank 0 alone records, writes and prints.

    Args:
        run_dir: where the run writes.
        derived: the numbers of the run.
        save_every: steps between checkpoints; 0 saves at the end only.

    Raises:
        ConfigError: the run has no three steps in a row that could be recorded.
    """

    def __init__(self, run_dir: Path, derived: Derived, *, save_every: int) -> None:
        self.file = run_dir / "profile" / "trace.json.gz"
        self._total_steps = derived.total_steps
        self._interruptions = {
            "validate_every": derived.validate_every,
            "checkpoint.every": save_every,
        }
        self._first = self._first_step(0)
        self._profiler: profile | None = None
        self._hooks: list[Any] = []
        self._replaced: Profiler | None = None
        self._in_head: list[Any] = []

    def _first_step(self, done: int) -> int:
        return first_step(done, self._total_steps, self._interruptions)

    # --- when -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Chooses the steps, counted from where the run continues."""
        if isinstance(_profiler_of(trainer), PyTorchProfiler):
            raise ConfigError(
                "trainer.profiler=pytorch and --profile cannot record at once; leave one out"
            )
        self._first = self._first_step(trainer.global_step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Starts, advances and ends at the boundaries of optimizer steps."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        step = trainer.global_step
        if step == self._first - 2:
            self._start(trainer, pl_module.network)
        elif self._profiler is not None:
            last = step == self._first + STEPS - 1
            if last or step == self._first - 1:
                _wait_for(trainer.strategy.root_device)
            self._profiler.step()
            if last:
                profiler = self._stop(trainer)
                with pl_module.run.stopwatch.paused():
                    self._publish(profiler)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Marks where the update begins: inside the optimizer's step, which runs the backward."""
        if self._profiler is not None:
            with record_function(UPDATE_MARK):
                pass

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Drops a recording that was cut short."""
        if self._profiler is not None:
            self._stop(trainer)
            say(f"\nno profile: the run ended before step {self._first + STEPS - 1}")

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Drops the recording; the exception is what matters."""
        if self._profiler is not None:
            with contextlib.suppress(RuntimeError):
                self._stop(trainer)

    # --- how --------------------------------------------------------------------------------------

    def _start(self, trainer: pl.Trainer, network: torch.nn.Module) -> None:
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        for module in network.modules():
            if isinstance(module, Head):
                self._hooks += [
                    module.register_forward_pre_hook(self._enter_head),
                    module.register_forward_hook(self._leave_head),
                ]
        self._replaced = _profiler_of(trainer)
        _set_profiler(trainer, _LoaderRanges(self._replaced))
        self._profiler = profile(
            activities=activities, schedule=schedule(wait=0, warmup=1, active=STEPS, repeat=1)
        )
        self._profiler.start()

    def _stop(self, trainer: pl.Trainer) -> profile:
        """Puts everything back, and returns what was recorded."""
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        assert self._replaced is not None
        _set_profiler(trainer, self._replaced)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._in_head = [], []
        profiler.stop()
        return profiler

    def _enter_head(self, *_: Any) -> None:
        self._in_head.append(record_function(HEAD_RANGE))
        self._in_head[-1].__enter__()

    def _leave_head(self, *_: Any) -> None:
        self._in_head.pop().__exit__(None, None, None)

    def _publish(self, profiler: profile) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.file))
        found = break_down(read_events(self.file))
        for title, values in tables(found, self._first).items():
            say(section(title, values))
        if found.idle is None and ProfilerActivity.CUDA in profiler.activities:
            say("\nno kernel was recorded: the driver lets only administrators trace this GPU")
        say(f"\nwrote {self.file}; open it at https://ui.perfetto.dev")


class _LoaderRanges(PassThroughProfiler):
    """Lightning's profiler, which is told when the loop waits for the loader, and a range then."""

    def __init__(self, inner: Profiler) -> None:
        super().__init__()
        self._inner = inner
        self._range: Any = None

    def start(self, action_name: str) -> None:
        self._inner.start(action_name)
        if action_name.endswith(".train_dataloader_next"):
            self._range = record_function(LOADER_RANGE)
            self._range.__enter__()

    def stop(self, action_name: str) -> None:
        if action_name.endswith(".train_dataloader_next"):
            self._range.__exit__(None, None, None)
        self._inner.stop(action_name)

    def profile(self, action_name: str) -> Any:
        """As it was: only the loop's loader is told by start and stop."""
        return self._inner.profile(action_name)


def first_step(done: int, total: int, interruptions: Mapping[str, int]) -> int:
    """The first of three steps in a row between which nothing else happens.

    Args:
        done: steps before this process started.
        total: steps of the whole run.
        interruptions: setting -> steps between what it makes happen after a step; 0 is never.

    Raises:
        ConfigError: there are none.

    >>> first_step(0, 100, {"validate_every": 0}), first_step(0, 100, {"validate_every": 12})
    (11, 14)
    """
    for key, every in interruptions.items():
        if 0 < every <= STEPS:
            raise ConfigError(
                f"{key}={every} steps interrupts any {STEPS} steps in a row, which --profile "
                f"needs; set it to at least {STEPS + 1} steps or to 0 steps, or leave --profile out"
            )
    for first in range(done + FIRST_STEP, total - STEPS + 2):
        # The recording starts after the step before the first.
        boundaries = range(first - 1, first + STEPS - 1)
        if not any(b % every == 0 for every in interruptions.values() if every for b in boundaries):
            return first
    need = first_step(done, done + 10 * (FIRST_STEP + sum(interruptions.values())), interruptions)
    raise ConfigError(
        f"budget={total} steps is too short for --profile, which records the {STEPS} steps from "
        f"step {need} on; set it to at least {need + STEPS - 1} steps, or leave --profile out"
    )


def tables(found: Breakdown, first: int) -> dict[str, dict[str, str]]:
    """Titles and lines of what is printed."""
    unit = "kernels" if found.idle is not None else "operators"
    rows = {row.name: _shown(row) for row in found.kinds if row.milliseconds > 0}
    whole = Row(name="", milliseconds=found.step_milliseconds, share=1.0, calls=0.0)
    rows["one step"] = _shown(whole)
    if found.idle is not None:
        rows["GPU without a kernel"] = f"{'':14}{found.idle:7.1%}"
    last = first + found.steps - 1
    return {
        f"profile of steps {first} to {last} (time of one step, share, {unit})": rows,
        f"largest {unit}": {row.name: _shown(row) for row in found.largest},
    }


def _shown(row: Row) -> str:
    text = f"{row.milliseconds:11.3f} ms{row.share:7.1%}"
    return text + (f"{row.calls:9,.0f}" if row.calls and row.name != OTHER else "")


def _profiler_of(trainer: Any) -> Profiler:
    profiler: Profiler = trainer.profiler
    return profiler


def _set_profiler(trainer: Any, profiler: Profiler) -> None:
    trainer.profiler = profiler


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
