"""What Linux says of a process."""

from __future__ import annotations

from pathlib import Path


def stat_of(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on, the third; none where it cannot be read.

    The state is the first of them, and the start in clock ticks after boot number 19.
    """
    try:
        # The name in parentheses may hold anything, a parenthesis and blanks included.
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
