"""One holder at a time of a folder, on any file system, whatever kills the holder.

What is unusual: a lease is a number. ``.lease-00000007`` says who is the seventh to hold a folder,
and whoever wants it must create the next number. Exactly one process can do that (``O_EXCL``, which
network file systems honour even without locks), so that of two that start at once, or that find the
same dead holder, one goes on. A holder that was taken for dead finds a higher number and stops.

The holder touches its file every few seconds. On the same machine a holder is dead when its process
is gone, which needs no waiting. From another machine or container the process cannot be seen, and
the holder is watched until it touches its file or has been silent for ``STALE_SECONDS``.

The best library found is filelock (4.2) with its ``SoftFileLease``. Its marker does not say since
when, and its interface not on which host; a living holder elsewhere is refused no sooner than a
dead one is taken over, and one that has been dead for days is waited for as long. flufl.lock (10.0)
compares the clocks of two hosts.
"""

import json
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from llm_train.errors import LLMTrainError
from llm_train.runtime.startup import stat_of
from llm_train.runtime.terminal import say

STALE_SECONDS = 60.0
_BEAT_SECONDS = 5.0
_NAME = re.compile(r"^\.lease-([0-9]{8,})(\.ended)?$")


@dataclass(frozen=True, kw_only=True)
class LeaseHolder:
    """What a lease says of its holder.

    Attributes:
        host: its name.
        kernel: identifies the boot of the machine and the container; equal where both see the same
            processes.
        pid: of the process.
        born: when the process started, in ticks since boot; "" where the system does not say.
        since: when the lease was taken.
    """

    host: str = "an unknown host"  # of a lease whose holder is writing it just now
    kernel: str = ""
    pid: int = 0
    born: str = ""
    since: str = "a moment ago"

    @classmethod
    def here(cls) -> "LeaseHolder":
        """This process."""
        pid, now = os.getpid(), datetime.now(UTC).isoformat(timespec="seconds")
        host = socket.gethostname()
        return cls(host=host, kernel=_kernel(), pid=pid, born=_born(pid), since=now)

    @classmethod
    def sign(cls, path: Path) -> None:
        """Makes a file that names this process.

        Raises:
            FileExistsError: there is one, of whoever was faster.
        """
        about = json.dumps(asdict(cls.here()))
        with open(path, "x", encoding="utf-8") as file:
            file.write(about)

    @property
    def gone(self) -> bool:
        """Whether the process has certainly ended; its number may be another's by now."""
        if self.kernel != _kernel():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # it is another user's
            return False
        return _born(self.pid) != self.born

    @property
    def stopped(self) -> bool:
        """Whether the process is here and somebody has stopped it."""
        return self.kernel == _kernel() and stat_of(self.pid)[:1] == ["T"]

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}, since {self.since}"


@dataclass(kw_only=True)
class Lease:
    """The right to write into a folder.

    Attributes:
        folder: that is held.
        beat_seconds: how often the holder touches its file.
        stale_seconds: for how long a holder that cannot be seen must have been silent.
    """

    folder: Path
    beat_seconds: float = _BEAT_SECONDS
    stale_seconds: float = STALE_SECONDS
    _number: int = 0  # 0: not held

    @contextmanager
    def held(self) -> Iterator[None]:
        """Holds the folder while the context lasts.

        Raises:
            LLMTrainError: somebody else holds it, or it cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._number:
                last = self._last()
                if (before := self._free(last)) is not None:
                    self._number = self._create(last + 1)
        except OSError as error:
            raise LLMTrainError(f"cannot write to the run folder {self.folder}: {error}") from None
        if before and before.pid:
            say(f"\ntaking over {self.folder} from a run that is gone: {before}")
        stop = threading.Event()
        heart = threading.Thread(target=self._beat, args=(self._path(self._number), stop))
        heart.daemon = True
        heart.start()
        try:
            yield
        finally:
            stop.set()
            self.release()

    def release(self) -> None:
        """Lets the folder go, for a process that ends in the middle as well."""
        path, number, self._number = self._path(self._number), self._number, 0
        with suppress(OSError):  # it was lost, and the new holder has removed it
            if number:
                path.rename(f"{path}.ended")

    def require(self) -> None:
        """Raises LLMTrainError when the folder has been taken over: whoever lost it must stop."""
        if not self._path(self._number).exists() or self._path(self._number + 1).exists():
            raise LLMTrainError(
                f"this run no longer holds {self.folder}, because it was silent for more than "
                f"{self.stale_seconds:.0f} s or its lease was deleted; it stops writing. Another "
                "run may go on there; else continue with --resume auto"
            )

    def _path(self, number: int) -> Path:
        return self.folder / f".lease-{number:08d}"

    def _last(self) -> int:
        names = (_NAME.match(name) for name in os.listdir(self.folder))
        return max((int(match[1]) for match in names if match), default=0)

    def _create(self, number: int) -> int:
        """Takes ``number`` and returns it, or 0 where another process was faster."""
        path = self._path(number)
        try:
            LeaseHolder.sign(path)
        except FileExistsError:
            return 0
        # Somebody may have taken this number, ended, and even been followed since it was chosen.
        if self._last() != number or path.with_suffix(".ended").exists():
            path.unlink(missing_ok=True)
            return 0
        for name in os.listdir(self.folder):
            if (match := _NAME.match(name)) and int(match[1]) < number:
                (self.folder / name).unlink(missing_ok=True)
        return number

    def _free(self, number: int) -> LeaseHolder | None:
        """Who held ``number`` and does no more, nobody included; None: look again."""
        path = self._path(number)
        if not number or path.with_suffix(".ended").exists():
            return LeaseHolder()
        try:
            holder = holder_of(path)
            if holder.gone or (holder.kernel != _kernel() and self._is_silent(holder, path)):
                return holder
            if holder.pid:
                raise self._refusal(holder, path)
        except FileNotFoundError:  # it has just ended
            pass
        return None

    def _is_silent(self, holder: LeaseHolder, path: Path) -> bool:
        """Watches a holder that cannot be seen until it touches its file, or has not for long."""
        seen, began, told = path.stat().st_mtime, time.monotonic(), False
        while (watched := time.monotonic() - began) < self.stale_seconds:
            if path.stat().st_mtime != seen or holder_of(path) != holder:
                return False
            # Two beats are awaited in any case: two hosts may stamp files by different clocks.
            if watched > 2 * self.beat_seconds:
                if clock_of(self.folder) - seen > self.stale_seconds:
                    return True
                if not told:
                    say(f"\nwaiting up to {self.stale_seconds:.0f} s for a sign of life: {holder}")
                    told = True
            time.sleep(self.beat_seconds / 50)
        return True

    def _refusal(self, holder: LeaseHolder, path: Path) -> LLMTrainError:
        silent = max(0.0, clock_of(self.folder) - path.stat().st_mtime)
        return LLMTrainError(
            f"{self.folder} is in use by another run: {holder}, last heartbeat {silent:.0f} s ago; "
            "wait for its end or stop it, or give this run a folder of its own: "
            "--trainer.default_root_dir=FOLDER"
        )

    def _beat(self, path: Path, stop: threading.Event) -> None:
        while not stop.wait(self.beat_seconds):
            with suppress(OSError):  # the file system may answer again, or the lease was lost
                os.utime(path)


def clock_of(folder: Path) -> float:
    """The time by the clock that stamps a folder's files."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def holder_of(path: Path) -> LeaseHolder:
    """What the file of a lease says of its holder."""
    try:
        return LeaseHolder(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        return LeaseHolder()


def _kernel() -> str:
    """Equal for two processes that see each other under the numbers that both know."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {namespace}"


def _born(pid: int) -> str:
    """When a process started; "" when it has ended and only its parent has not noticed."""
    fields = stat_of(pid)
    return "" if not fields or fields[0] in "ZX" else fields[19]
