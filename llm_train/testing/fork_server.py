"""Ranks forked from a process that has imported everything, to be killed by tests.

Importing torch, Lightning and DeepSpeed takes ten seconds for each process; a fork takes none. The
process is the fork server of Python's own ``multiprocessing``, told to import beforehand what ranks
need. It never computes anything, so it has no threads that a fork would lose.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NoReturn
from unittest import mock

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from llm_train.cli import main
from llm_train.testing.command import Outcome
from llm_train.testing.ranks import environment, launched_as
from llm_train.trainer.logger.records import read_lines

_GRACE_SECONDS = 5.0
_PATIENCE_SECONDS = 120.0
_SPOKEN_SECONDS = 0.5  # once rank 0 has refused something, the others only wait to be ended
# What a run would otherwise import late, in every rank; what is not installed is passed over.
_IMPORTED = (
    "llm_train.run.training",
    "llm_train.checkpoint.callback",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor.parallel",
    "torch._inductor.compile_fx",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "wandb",
    "pytest",  # which is the main module where the tests run
    "llm_train.testing.warm",
)


@dataclass(frozen=True)
class Job:
    """Ranks that run.

    Attributes:
        children: their processes, in order of rank.
    """

    children: Sequence[ForkServerProcess]

    @property
    def running(self) -> bool:
        """Whether no rank has ended yet."""
        return all(child.exitcode is None for child in self.children)

    def send(self, number: int = signal.SIGKILL, victims: Sequence[int] = ()) -> None:
        """Sends a signal to the ranks ``victims``; to all if none is given."""
        for rank in victims or range(len(self.children)):
            with suppress(ProcessLookupError):  # it has ended by itself
                os.kill(self.children[rank].pid or 0, number)

    def until(self, true: Callable[[], bool]) -> None:
        """Returns when something is true, or when a rank has ended by itself."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self.running and not true():
            assert time.monotonic() < deadline, "nothing has happened"
            time.sleep(0.002)

    def wait(self) -> list[int]:
        """Exit statuses in order of rank; like torchrun, ends the others soon after a failure."""
        give_up = float("inf")
        while any(child.exitcode is None for child in self.children):
            if any(child.exitcode for child in self.children):
                grace = _SPOKEN_SECONDS if self.children[0].exitcode == 2 else _GRACE_SECONDS
                give_up = min(give_up, time.monotonic() + grace)
            if time.monotonic() > give_up:
                self.send()
            time.sleep(0.005)
        return [child.exitcode or 0 for child in self.children]


class ForkServer:
    """Runs the command line, or a script, in forked processes."""

    def __init__(self) -> None:
        self.seconds = 0.0
        multiprocessing.get_context("forkserver").set_forkserver_preload(list(_IMPORTED))
        with mock.patch.dict(os.environ, {**environment(), "DS_ACCELERATOR": "cpu"}):
            forkserver.ensure_running()

    def run(self, *arguments: str, ranks: int, log: Path, **options: Any) -> list[int]:
        """Runs the command line in forked ranks and returns exit statuses; a signal is negative.

        Args:
            *arguments: of the command line.
            ranks: how many; 0 is one process without a launcher.
            log: file for standard output and error.
            **options: ``metrics`` and ``step`` send a signal ``delay_seconds`` (0) after the file
                ``metrics`` shows ``step``, or ``file`` once that exists: ``signal`` (SIGKILL) to
                the ranks ``victims`` (all), ``repeat`` (1) times; ``seconds`` says how long the
                ranks needed after it. ``launcher`` (torchrun) is who started the ranks, as far as
                they can tell: ``ranks.launched_as``. ``script`` is a file to run instead of the
                command line, ``cwd`` the directory to run in, ``environment`` are further
                variables, and ``errors`` is a file for standard error alone.
        """
        job = self.start(*arguments, ranks=ranks, log=log, **options)
        if "step" in options or "file" in options:
            job.until(partial(_is_due, options))
            time.sleep(options.get("delay_seconds", 0.0))
            for _ in range(options.get("repeat", 1)):
                job.send(options.get("signal", signal.SIGKILL), options.get("victims", ()))
                time.sleep(0.02)
        signalled = time.monotonic()
        statuses = job.wait()
        self.seconds = time.monotonic() - signalled
        return statuses

    def start(self, *arguments: str, ranks: int, log: Path, **options: Any) -> Job:
        """Starts what ``run`` runs, and returns at once."""
        request = {**options, "arguments": arguments, "ranks": ranks, "log": log}
        port = find_free_network_port()
        children = [
            ForkServerProcess(target=_become, args=(request, rank, port))
            for rank in range(max(1, ranks))
        ]
        for child in children:
            child.start()
        return Job(children)

    def command(self, *arguments: str, folder: Path, **options: Any) -> Outcome:
        """What a process of its own, without a launcher, leaves behind; ``folder`` keeps it."""
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        for path in (out, err):
            path.write_text("")
        (code,) = self.run(*arguments, ranks=0, log=out, errors=err, **options)
        return Outcome(code, out.read_text(), err.read_text())


def _become(request: dict[str, Any], rank: int, port: int) -> NoReturn:
    """Does what ``ForkServer.run`` was asked for, as one of its ranks."""
    # What the rank starts itself, loaders' workers for instance, starts as it would elsewhere.
    multiprocessing.set_start_method("fork", force=True)
    log, script = request["log"], str(request.get("script", ""))
    for number, path in enumerate((os.devnull, log, request.get("errors", log))):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.chdir(request.get("cwd", "."))
    more = {name: str(value) for name, value in request.get("environment", {}).items()}
    os.environ.update(more)
    sys.path[:0] = filter(None, more.get("PYTHONPATH", "").split(":"))
    if request["ranks"]:
        launcher = request.get("launcher", "torchrun")
        os.environ.update(launched_as(launcher, rank, request["ranks"], port))
    code = 70  # os.EX_SOFTWARE, for whatever ends in a traceback
    try:
        if script:
            sys.argv = [script, *request["arguments"]]
            runpy.run_path(script, run_name="__main__")
            code = 0
        else:
            main(request["arguments"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_due(options: dict[str, Any]) -> bool:
    """Whether it is time for the signal."""
    if "file" in options:
        return Path(options["file"]).exists()
    metrics = Path(options["metrics"])
    last = read_lines(metrics)[-1:] if metrics.exists() else []
    # An event may be the start or resume that makes the records before it those of another run.
    return any("event" not in record and record["step"] >= options["step"] for record in last)
