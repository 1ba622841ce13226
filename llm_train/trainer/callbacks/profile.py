"""Records three optimizer steps and says where their time went.

The profiler is started one step before the three, because the first traced step pays for starting
the device's tracing. The device is awaited at both ends of the three, so that the work of three
steps, no more and no less, lies between them. Everything else of the run is untouched: the profiler
exists from the step before to the last of the three.

A traced step is slower than others, by some microseconds of host time for each operator and kernel;
where kernels are short, the share of idle GPU is therefore an upper bound.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.profilers import PyTorchProfiler
from torch.autograd.profiler_util import FunctionEvent, FunctionEventAvg
from torch.profiler import ProfilerAction, ProfilerActivity, profile, schedule

from llm_train.derived import Derived
from llm_train.errors import ConfigError
from llm_train.run_state import task_of
from llm_train.runtime.terminal import say, section
from llm_train.trainer.callbacks.base import EachStep
from llm_train.trainer.callbacks.phases import Phases

# After ten steps everything that happens once has happened: compilation, tuning and recording of
# kernels, growth of the allocator. The step after a log point of the usual ten, so that it is not
# one of the three.
FIRST_STEP = 11
STEPS = 3
LARGEST = 12
_NAMESPACES = re.compile(r"^void |\bat::(native::)?|\(anonymous namespace\)::")  # of C++ kernels

Event = TypeVar("Event", FunctionEvent, FunctionEventAvg)


class Profile(EachStep):
    """Writes ``profile/trace.json.gz``, which Perfetto opens, and prints tables of it.

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
        every = {"validate_every": derived.validate_every, "checkpoint.every": save_every}
        self._interruptions = every
        self._first = first_step(0, self._total_steps, every)
        self._recording: tuple[profile, Phases] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Chooses the steps, counted from where the run continues."""
        # mypy does not see where Lightning gives its Trainer this attribute.
        if isinstance(trainer.profiler, PyTorchProfiler):  # type: ignore[attr-defined]
            raise ConfigError(
                "trainer.profiler=pytorch and --profile cannot record at once; leave one out"
            )
        self._first = first_step(trainer.global_step, self._total_steps, self._interruptions)

    def on_step_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts, advances and ends at the boundaries of optimizer steps."""
        if not trainer.is_global_zero:
            return
        step, last = trainer.global_step, self._first + STEPS - 1
        if step == self._first - 2:
            self._start(trainer)
        elif self._recording is not None:
            profiler, phases = self._recording
            device = trainer.strategy.root_device
            if device.type != "cpu" and step in (self._first - 1, last):
                torch.accelerator.synchronize(device)
            seconds = phases.seconds() if step == last else {}
            profiler.step()
            if step == self._first - 1:
                phases.restart()
            elif step == last:
                self._stop(trainer)
                with task_of(pl_module).run_state.stopwatch.paused("profile"):
                    self._publish(profiler, seconds)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops a recording that was cut short."""
        if self._recording is not None:
            self._stop(trainer)
            say(f"\nno profile: the run ended before step {self._first + STEPS - 1}")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Drops the recording; the exception is what matters."""
        if self._recording is not None:
            with suppress(RuntimeError):
                self._stop(trainer)

    def _start(self, trainer: pl.Trainer) -> None:
        device = trainer.strategy.root_device
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        once = schedule(wait=0, warmup=1, active=STEPS, repeat=1)
        # There is one cycle; torch 2.11 warns unless it is told to keep the events of all.
        profiler = profile(activities=activities, schedule=once, acc_events=True)
        profiler.start()  # before anything remembers it: what has not started must not be stopped
        phases = Phases(trainer.profiler, device)  # type: ignore[attr-defined]
        trainer.profiler = phases  # type: ignore[attr-defined]
        self._recording = profiler, phases

    def _stop(self, trainer: pl.Trainer) -> None:
        """Puts the run's own profiler back."""
        assert self._recording is not None
        profiler, phases = self._recording
        self._recording = None
        trainer.profiler = phases.inner  # type: ignore[attr-defined]
        # A profiler that only warms up is half-started. On CUDA, stopping it ends the process
        # with a segmentation fault, and leaving it so breaks the next one: it is started first.
        if profiler.current_action is ProfilerAction.WARMUP:
            profiler.step()
        profiler.stop()

    def _publish(self, profiler: profile, seconds: Mapping[str, float]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.file))
        for title, values in tables(profiler, seconds, self._first).items():
            say(section(title, values))
        say(f"\nwrote {self.file}; open it at https://ui.perfetto.dev")


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


def tables(
    profiler: profile, seconds: Mapping[str, float], first: int
) -> dict[str, dict[str, str]]:
    """Titles and lines of what is printed.

    Args:
        profiler: has recorded three steps.
        seconds: time by phase of all of them.
        first: the first of them.
    """
    total = sum(seconds.values())

    def shown(part: float, calls: int = 0) -> str:
        text = f"{1000 * part / STEPS:11.3f} ms{part / total:7.1%}"
        return text + (f"{calls / STEPS:9,.0f}" if calls else "")

    on_gpu = ProfilerActivity.CUDA in profiler.activities
    phases = {name: shown(part) for name, part in seconds.items()}
    phases["one step"] = shown(total)
    idle = "GPU without a kernel" if on_gpu else "CPU without an operator"
    phases[idle] = f"{'':14}{_idle(profiler, on_gpu):7.1%}"
    times: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for row in _rows(profiler.key_averages(), on_gpu):
        name = _NAMESPACES.sub("", row.key)[:64]
        times[name] += row.self_device_time_total if on_gpu else row.self_cpu_time_total
        calls[name] += row.count
    return {
        f"profile of steps {first} to {first + STEPS - 1} (time of one step, share)": phases,
        f"largest {'kernels' if on_gpu else 'operators'} (time of one step, share, calls)": {
            name: shown(own / 1e6, calls[name]) for name, own in times.most_common(LARGEST)
        },
    }


def _rows(events: Iterable[Event], on_gpu: bool) -> list[Event]:
    """Kernels or operators, without the ranges that only give names to parts of a step."""
    device = "CUDA" if on_gpu else "CPU"
    return [e for e in events if e.device_type.name == device and not e.is_user_annotation]


def _idle(profiler: profile, on_gpu: bool) -> float:
    events: list[FunctionEvent] = profiler.events()  # type: ignore[no-untyped-call]
    steps = [e.time_range for e in events if e.name.startswith("ProfilerStep")]
    work = [e.time_range for e in _rows(events, on_gpu) if not e.name.startswith("Mem")]
    spans = [(span.start, span.end) for span in work]
    return idle_share(spans, min(s.start for s in steps), max(s.end for s in steps))


def idle_share(spans: Iterable[tuple[float, float]], start: float, end: float) -> float:
    """The share of the time from ``start`` to ``end`` in which none of the spans is active.

    >>> idle_share([(0, 2), (5, 6), (1, 3)], 0, 10)
    0.6
    """
    busy, reached = 0.0, start
    for begins, ends in sorted(spans):
        busy += max(0.0, min(ends, end) - max(begins, reached))
        reached = max(reached, ends)
    return 1 - busy / (end - start)
