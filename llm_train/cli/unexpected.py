"""One line for an error that nobody of ours raised, and its traceback in a file.

Lightning, torch and every package that a part calls raise errors of their own, whose last sentence
says what is wrong and whose frames say which part was at work.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from llm_train.runtime.launch import find_launch

VARIABLE = "LLM_TRAIN_TRACEBACK"
FILE_NAME = "traceback.txt"
_PARTS = ("Part", "Callback", "Logger")  # bases of what a user has named
_MOST_SHOWN = 400  # characters of a message; a library may print a page


def unexpected(error: Exception, run_dirs: Sequence[Path]) -> str:
    """The line, after the traceback was written into the run directory, if there is one.

    Args:
        error: what was raised.
        run_dirs: the run directory, once it is known.
    """
    text = "".join(traceback.format_exception(error))
    rank = find_launch().rank
    where = f"set {VARIABLE}=1 to see the traceback"
    for path in (run_dir / (f"rank-{rank}-" * (rank > 0) + FILE_NAME) for run_dir in run_dirs):
        try:  # of a verb that writes nothing there may be no directory
            path.write_text(text, encoding="utf-8")
            where = f"the traceback is in {path}"
        except OSError:
            continue
    if os.environ.get(VARIABLE):
        sys.stderr.write(text)
    message = " ".join(str(error).split())
    if len(message) > _MOST_SHOWN:
        last = str(error).strip().splitlines()[-1].strip()
        message = last if len(last) <= _MOST_SHOWN else f"...{message[-_MOST_SHOWN:]}"
    prefix = f"rank {rank}: " if rank else ""
    return f"{prefix}{_blamed(error)}{type(error).__name__}: {message}; {where}"


def _blamed(error: Exception) -> str:
    """The innermost part that was at work, by the class of a frame's ``self``."""
    blamed = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        kind = type(frame.f_locals.get("self"))
        bases = {base.__name__ for base in kind.__mro__ if base is not kind}
        if bases.intersection(_PARTS) and "Module" not in bases:
            blamed = f"{kind.__name__}: "
    return blamed
