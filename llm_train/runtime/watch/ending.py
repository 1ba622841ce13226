"""How a process ends when the job does: stacks first, then one line, the guilty rank before others.

Called by the watcher's thread, since the main thread may be blocked for good.
"""

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from llm_train.runtime.watch.clock import main_frames
from llm_train.runtime.watch.peers import Peers, Verdict

STACKS = "stacks"
RECORDER = "TORCH_FR_BUFFER_SIZE"  # of torch's flight recorder
_SPEAK_SECONDS = {"failed": 6.0}  # what the guilty rank has, if it still can
_FEW_SECONDS = 1.5
_SERVE_SECONDS = 3.0
_FLUSH_SECONDS = 1.0


def write_stacks(folder: Path, rank: int) -> None:
    """Writes the Python stacks of all threads, and what NCCL did last, into the run directory."""
    with suppress(OSError):
        folder = folder / STACKS
        folder.mkdir(exist_ok=True)
        with open(folder / f"rank-{rank}.txt", "w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file)
    if os.environ.get(RECORDER):
        from torch._C import _distributed_c10d

        with suppress(OSError, KeyError, RuntimeError):  # without CUDA there is none
            dump: Callable[[], bytes] = vars(_distributed_c10d)["_dump_nccl_trace"]
            trace = dump()
            (folder / STACKS / f"nccl_trace_rank_{rank}").write_bytes(trace)


def write_error(path: str, line: str, stack: str, *, late: bool = False) -> None:
    """Tells torchrun why the process ends; of several, the earliest is its "root cause".

    Args:
        path: what torchrun named; "" without torchrun.
        line: what is wrong.
        stack: a traceback, or "".
        late: after the guilty rank.
    """
    stamp = str(int(time.time()) + 2 * late)
    more = {"py_callstack": f"{line}\n{stack}", "timestamp": stamp}
    if path and not os.path.exists(path):
        with suppress(OSError), open(path, "w", encoding="utf-8") as file:
            json.dump({"message": {"message": line, "extraInfo": more}}, file)


def end(verdict: Verdict, peers: Peers, folder: Path) -> NoReturn:
    """Ends this process, whatever its main thread does.

    Args:
        verdict: why.
        peers: all ranks.
        folder: the run directory.
    """
    rank, line = peers.rank, verdict.text
    if verdict.kind != "failed":
        write_stacks(folder, rank)
        line += f"; stacks of all ranks that could write them are in {folder / STACKS}"
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE", "")
    if verdict.rank == rank:
        stack = "".join(main_frames().format())
        write_error(error_file, line, stack)
        _say(line, stack)
    else:
        if verdict.rank >= 0 and peers.known:
            _dismiss(peers, verdict, line)
        write_error(error_file, f"rank {rank} ends because {line}", "", late=True)
        if rank == (verdict.rank <= 0):
            _say(f"rank {rank} ends because {line}")
    if peers.serves:
        _serve(peers)
    flush = threading.Thread(target=sys.stdout.flush, daemon=True)  # it may be blocked as well
    flush.start()
    flush.join(_FLUSH_SECONDS)
    os._exit(1)


def _dismiss(peers: Peers, verdict: Verdict, line: str) -> None:
    """Lets the guilty rank speak first, and kills it where it runs on this host."""
    member, here = peers.known[verdict.rank], peers.known[peers.rank]
    deadline = time.monotonic() + _SPEAK_SECONDS.get(verdict.kind, _FEW_SECONDS)
    while not member.holder.gone and time.monotonic() < deadline:
        time.sleep(0.05)
    if member.holder.kernel == here.holder.kernel:
        write_error(member.error_file, line, "")
        if not member.holder.gone:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(member.holder.pid, signal.SIGKILL)


def _serve(peers: Peers) -> None:
    """Leaves the others the time to read who is to blame: they read it in this process."""
    others = [member for number, member in enumerate(peers.known) if number != peers.rank]
    deadline = time.monotonic() + _SERVE_SECONDS
    while time.monotonic() < deadline and not (others and all(m.holder.gone for m in others)):
        time.sleep(0.05)


def _say(line: str, stack: str = "") -> None:
    # Not through sys.stderr, which the main thread may hold.
    os.write(2, f"{stack}llm-train: error: {line}\n".encode())
