"""What the system says of a process: how long it has been running, and compiling."""

import os
import sys
import time
from pathlib import Path

_IMPORTED = time.monotonic()
_UNCLAIMED = [True]


def seconds_since_start() -> float:
    """Returns the seconds since this process started (since this import where /proc is missing).

    Under torchrun the process is the rank's own, not the launcher's.
    """
    if fields := stat_of(os.getpid()):
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    return time.monotonic() - _IMPORTED


def claim() -> float:
    """Seconds since this process started, for the first run in it that asks; 0 for others."""
    return seconds_since_start() if _UNCLAIMED and _UNCLAIMED.pop() else 0.0


def compile_seconds() -> float:
    """Seconds that torch.compile has spent in this process, forward and backward graphs alike."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None:  # nothing was compiled, and to import the compiler takes most of a second
        return 0.0
    names = ("_compile.compile_inner", "backward._backward_impl")
    return sum(sum(dynamo.compilation_time_metrics.get(name, ())) for name in names)


def stat_of(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on, the third; none where it cannot be read.

    The state is the first of them, and the start in clock ticks after boot number 19.
    """
    try:
        # The name in parentheses may hold anything, a parenthesis and blanks included.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
