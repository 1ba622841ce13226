"""A process that has imported everything and forks ranks on request, to be killed by tests.

Importing torch, Lightning and DeepSpeed takes ten seconds for each process; a fork takes none. The
server also parses one configuration before it serves, since jsonargparse reads signatures and stubs
for half a second the first time. It never computes anything, so it has no threads that a fork would
lose.

The protocol is one JSON request per line on standard input and one JSON answer per line on standard
output. A request holds ``arguments``, ``ranks`` (0 starts no process group) and ``log``. These keys
are optional:

- ``metrics`` and ``step`` send a signal ``delay_seconds`` (0) after ``metrics`` shows ``step``;
  ``signal`` (SIGKILL) says which, ``victims`` (all ranks) to whom, ``repeat`` (1) how often.
- ``launcher`` (torchrun) is who started the ranks, as far as they can tell: ``ranks.launched_as``.
- ``script`` is a file to run instead of the command line.
- ``cwd`` is the directory to run in, ``environment`` are further environment variables, and
  ``errors`` is a file for standard error, which otherwise goes to ``log`` as well.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.plugins.environments.lightning import find_free_network_port

from llm_train.cli import load_settings, main
from llm_train.testing.command import Outcome
from llm_train.testing.configs import tiny, write
from llm_train.testing.ranks import environment, launched_as
from llm_train.trainer.logger.records import read_lines

_GRACE_SECONDS = 5.0
# What a run would otherwise import late, in every rank.
_IMPORTED = (
    "llm_train.run.training",
    "llm_train.checkpoint.callback",
    "torch.distributed.checkpoint",
    "torch.distributed.tensor.parallel",
    "torch._inductor.compile_fx",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "wandb",
)

Request = dict[str, Any]  # as JSON gives it


class ForkServer(subprocess.Popen[str]):
    """The test's end of the pipe, which closes when its ``with`` block ends."""

    def __init__(self) -> None:
        super().__init__(
            [sys.executable, "-m", "llm_train.testing.fork_server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**environment(), "DS_ACCELERATOR": "cpu"},
        )

    def run(self, *arguments: str, ranks: int, log: Path, **options: object) -> list[int]:
        """Runs the command line in forked ranks and returns exit statuses; a signal is negative."""
        assert self.stdin is not None
        assert self.stdout is not None
        request = {"arguments": arguments, "ranks": ranks, "log": str(log), **options}
        print(json.dumps(request, default=str), file=self.stdin, flush=True)
        answer = self.stdout.readline()
        if not answer:
            raise AssertionError(f"the fork server died; see {log}")
        statuses: list[int] = json.loads(answer)
        return statuses

    def command(self, *arguments: str, folder: Path, **options: Any) -> Outcome:
        """What a process of its own, without a launcher, leaves behind; ``folder`` keeps it."""
        out, err = folder / "stdout.txt", folder / "stderr.txt"
        for path in (out, err):
            path.write_text("")
        (code,) = self.run(*arguments, ranks=0, log=out, errors=err, **options)
        return Outcome(code, out.read_text(), err.read_text())


def _serve() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        port = find_free_network_port()
        children = [_fork(request, rank, port) for rank in range(max(1, request["ranks"]))]
        if "step" in request:
            _wait_for_step(Path(request["metrics"]), request["step"], children)
            time.sleep(request.get("delay_seconds", 0.0))
            for _ in range(request.get("repeat", 1)):
                for rank in request.get("victims", range(len(children))):
                    os.kill(children[rank], request.get("signal", signal.SIGKILL))
                time.sleep(0.02)
        statuses = _reap(children)
        print(json.dumps(statuses), flush=True)  # noqa: T201 - this is the protocol


def _reap(children: list[int]) -> list[int]:
    """Exit statuses in order of rank; like torchrun, ends the others soon after one has failed."""
    statuses: dict[int, int] = {}
    give_up = float("inf")
    while len(statuses) < len(children):
        for child in set(children) - set(statuses):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                statuses[child] = os.waitstatus_to_exitcode(status)
                if statuses[child]:
                    give_up = min(give_up, time.monotonic() + _GRACE_SECONDS)
            elif time.monotonic() > give_up:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return [statuses[child] for child in children]


def _fork(request: Request, rank: int, port: int) -> int:
    child = os.fork()
    if child == 0:
        _become(request, rank, port)
    return child


def _become(request: Request, rank: int, port: int) -> NoReturn:
    log = request["log"]
    for number, path in enumerate((os.devnull, log, request.get("errors", log))):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.chdir(request.get("cwd", "."))
    os.environ.update(request.get("environment", {}))
    sys.path[:0] = filter(None, request.get("environment", {}).get("PYTHONPATH", "").split(":"))
    if request["ranks"]:
        launcher = request.get("launcher", "torchrun")
        os.environ.update(launched_as(launcher, rank, request["ranks"], port))
    code = 70
    try:
        if "script" in request:
            sys.argv = [request["script"], *request["arguments"]]
            runpy.run_path(request["script"], run_name="__main__")
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


def _wait_for_step(metrics: Path, step: int, children: list[int]) -> None:
    """Returns when ``step`` is logged, or when the first child has ended by itself."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        last = read_lines(metrics)[-1:] if metrics.exists() else []
        # An event may be the start or resume that makes the records before it those of another run.
        if any("event" not in record and record["step"] >= step for record in last):
            return
        if os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.002)


def _warm_up() -> None:
    """Imports what ranks will need, and parses once what they will parse."""
    import torch

    torch.set_num_threads(1)
    for name in _IMPORTED:
        if importlib.util.find_spec(name.split(".")[0]) is not None:
            importlib.import_module(name)

    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "tiny.yaml", tiny(Path(folder)))
        load_settings(["-c", str(file)])
    # Collections of a child then leave what the server has made alone: they would walk it, and
    # copy every page of it.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    _warm_up()
    _serve()
