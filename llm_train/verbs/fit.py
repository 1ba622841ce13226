"""Trains, validates and saves."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from llm_train.verbs.base import Load, Verb

if TYPE_CHECKING:
    from llm_train.run.training import Result, Run

# Of the derived numbers, by section, what fits on a screen of 80 by 24.
_BRIEF = {
    "network": ("class", "parameters"),
    "batch": ("tokens_per_step", "total_steps", "total_tokens"),
    "learning rate": ("optimizer", "group_0"),
    "schedule": ("class", "warmup"),
    "run": ("directory", "strategy", "precision", "validate_every", "checkpoint_every"),
    "data": ("train_tokens", "epochs"),
}


class Fit(Verb):
    """Trains from the start or from a checkpoint."""

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Adds --resume and the flags that attach observers to the run."""
        parser.add_argument(
            "--prepare", action="store_true", help="make the tokens first, where they are not there"
        )
        parser.add_argument("--resume", default="", metavar="auto|PATH", help="continue a run")
        parser.add_argument(
            "--plan",
            default="",
            metavar="FILE",
            help="what plan --json wrote: after 10 steps, compare it with what is measured",
        )
        parser.add_argument(
            "--profile", action="store_true", help="record three steps and say where time went"
        )
        parser.add_argument(
            "--count-collectives",
            action="store_true",
            help="count what ranks exchange in the last two steps, for metrics.jsonl",
        )

    def run(self, flags: argparse.Namespace, load: Load) -> int:
        """Returns 0 when done or stopped by a callback, 128 + n after signal n."""
        # Before training starts it would end the process with the status that means "stopped and
        # saved", and the scheduler would requeue the job without end.
        _ignore(signal.SIGUSR1)
        settings = load(flags.settings)

        from llm_train.check import notes
        from llm_train.run.memory import FILE_NAME, OutOfMemory
        from llm_train.run.training import build
        from llm_train.runtime import startup
        from llm_train.runtime.terminal import say, say_sections, section
        from llm_train.verbs.prepare import prepare_data

        imported = startup.claim()
        began = time.monotonic()
        if flags.prepare:
            prepare_data(settings.data)
        prepared = time.monotonic() - began if flags.prepare else 0.0
        run = build(settings, resume=flags.resume)
        run.settings.task.run_state.ledger.imported(imported, prepared)
        if (now := run.settings.batch.per_device) != (before := settings.batch.per_device):
            say(f"\nbatch.per_device={now} instead of {before}: {settings.run_dir / FILE_NAME}")
        _watch(run, flags)
        if sys.stdout.isatty():
            say(section("the run; check prints every derived number", _brief(run.table)))
        else:
            say_sections(run.table)
        for note in notes(run.settings):
            say(f"\nnote: {note}")
        try:
            return _conclude(run, run.fit())
        except OutOfMemory as error:
            alone = run.trainer.world_size == 1 and flags.resume in ("", "auto")
            if not (error.again and alone):
                raise
            say(f"\n{error}")
            _start_again(settings.run_dir)


def _brief(table: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One list of what most people look at; a file gets the whole table."""
    return {
        title if key == "class" else key.replace("group_0", "first group"): table[title][key]
        for title, keys in _BRIEF.items()
        for key in keys
        if key in table[title]
    } | table["time"]


def _ignore(*numbers: signal.Signals) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _start_again(run_dir: Path) -> NoReturn:
    """Replaces this process by a new one of the same command, which has all of its memory."""
    saved = any((run_dir / "checkpoints").glob("step-*"))
    sys.stdout.flush()
    os.execv(sys.executable, [*sys.orig_argv, *(["--resume", "auto"] if saved else [])])


def _watch(run: Run, flags: argparse.Namespace) -> None:
    settings, derived = run.settings, run.derived
    if flags.profile:
        from llm_train.trainer.callbacks.profile import Profile

        save_every = settings.checkpoint.every.steps(derived.tokens_per_step)
        run.watch(Profile(settings.run_dir, derived, save_every=save_every))
    if flags.plan:
        from llm_train.trainer.callbacks.forecast import Forecast, planned

        mesh = settings.mesh_shape
        wanted = {
            "strategy": settings.strategy.described(mesh),
            "mesh": vars(mesh),
            "micro_batch": settings.batch.per_device,
        }
        run.watch(Forecast(planned(Path(flags.plan), wanted)))
    if flags.count_collectives:
        from llm_train.trainer.callbacks.collectives import Collectives

        run.watch(Collectives(), first=True)  # before any other callback communicates


def _conclude(run: Run, result: Result) -> int:
    from llm_train.runtime.terminal import say, section
    from llm_train.verbs.validate import held_out

    # All is saved; another signal could only make the exit status untrue.
    _ignore(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    settings, step = run.settings, result.step
    if not result.complete:
        name = signal.Signals(result.signal).name if result.signal else "a callback"
        say(
            f"\nstopped by {name} after step {step}; saved in {settings.run_dir}/checkpoints; "
            "continue with --resume auto"
        )
        return 128 + result.signal if result.signal else 0
    if not settings.task.run_state.start_up:
        say(
            f"\nnothing was trained: the checkpoint is of step {step}, and the run ends at step "
            f"{run.derived.total_steps}; raise --budget to train on"
        )
    say(f"\ndone: {step} steps, {run.derived.tokens(step):,} tokens")
    if "val/loss" in result.metrics:
        say(section("held out", held_out(settings, result)))
    say(f"\nwrote {settings.run_dir}/metrics.jsonl, config.yaml, derived.json and checkpoints/")
    return 0
