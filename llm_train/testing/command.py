"""The command line in this process: a second start costs milliseconds instead of seconds."""

import contextlib
import io
import re
import signal
from typing import NamedTuple

from llm_train.cli import main

_PREFIX = "llm-train: error: "
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # by a run that has ended


class Outcome(NamedTuple):
    """What a command left behind.

    Attributes:
        code: exit status.
        out: standard output.
        err: standard error.
    """

    code: object
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The lines of a refusal, which must be all there is on standard error."""
        lines = self.err.splitlines()
        assert all(line.startswith(_PREFIX) for line in lines), self.err
        return [line.removeprefix(_PREFIX) for line in lines]


def run(*arguments: str) -> Outcome:
    """Runs ``llm-train`` with ``arguments``."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    handlers = {number: signal.getsignal(number) for number in _HANDLED}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as exit_:
            code = exit_.code
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return Outcome(code, out.getvalue(), err.getvalue())


def refused(*arguments: str) -> list[str]:
    """The lines on standard error of a command that must exit with 2 and print nothing else."""
    outcome = run(*arguments)
    assert (outcome.code, outcome.out) == (2, ""), outcome
    return outcome.errors


def essence(lines: list[str]) -> list[tuple[str, str, str]]:
    """What a message must get right: the key, the value it shows, and the way out."""
    found = [re.match(r"([\w.'\[\]-]*)(=[^ ;,]*)?", line) for line in lines]
    ways_out = [line.rpartition("; ")[2] for line in lines]
    return [(m[1], m[2] or "", out) for m, out in zip(found, ways_out, strict=True) if m]
