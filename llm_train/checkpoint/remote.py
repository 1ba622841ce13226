"""A second home for checkpoints at any URL that fsspec knows: ``s3://``, ``gs://``, a mounted disk.

A checkpoint is there when its manifest is, which is uploaded last and deleted first. Its name ends
in its sequence number, so that nothing is ever overwritten and a list of names tells the newest.
Credentials are found as the library of the URL finds them, and nothing else is said about them.
"""

from __future__ import annotations

import logging
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llm_train.checkpoint import manifest
from llm_train.checkpoint.manifest import CheckpointManifest
from llm_train.checkpoint.store import CheckpointStore
from llm_train.errors import CheckpointError, ConfigError
from llm_train.runtime.terminal import say

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^(step-([0-9]{8,}))-([0-9]{8,})$")


class Uploaded(NamedTuple):
    """A checkpoint at the URL; sorts by when it was committed."""

    sequence: int
    step: int
    name: str
    path: str


def require_url(url: str) -> None:
    """Raises ConfigError unless ``url`` is one that can be used here."""
    import fsspec

    protocol, separator, rest = url.partition("://")
    if not separator or "@" in rest.split("/")[0]:
        raise ConfigError(
            f"checkpoint.remote={protocol if separator else url} must be a URL such as "
            "s3://bucket/path without credentials; its library finds those in the environment"
        )
    if protocol == "memory":
        raise ConfigError(
            f"checkpoint.remote={url} is lost with the process; write s3:// or file://"
        )
    try:
        fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"checkpoint.remote={url}: {error}; write a URL that fsspec knows, and install its "
            "library"
        ) from None


@dataclass(kw_only=True, eq=False)
class Remote:
    """Uploads the checkpoints of a store in a thread, and brings one back where it is needed.

    Attributes:
        url: where they go.
        store: whose checkpoints they are; the rules for keeping them are the same.
    """

    url: str
    store: CheckpointStore
    _wanted: Path | None = None
    _sending: Path | None = None
    _trouble: str = ""  # of the last upload
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    # --- uploading --------------------------------------------------------------------------------

    def offer(self, path: Path) -> None:
        """Uploads a checkpoint as soon as the upload under way is over; only the newest counts."""
        with self._lock:
            self._wanted = path
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()

    def uses(self, path: Path) -> bool:
        """Whether a local checkpoint must not be deleted yet."""
        return path in (self._wanted, self._sending)

    def finish(self, seconds: float) -> None:
        """Waits for the last upload, for so long at most, and says what is not uploaded."""
        thread = self._thread
        if thread is not None and seconds:
            thread.join(1)
            if thread.is_alive():
                say(f"\nwaiting up to {seconds:.0f} s for the upload to {self.url}")
            thread.join(seconds)
        left = self._wanted or self._sending
        if left is not None:
            say(f"\n{left} is not uploaded to {self.url}: {self._trouble or 'there was no time'}")

    def _send_all(self) -> None:
        while True:
            with self._lock:
                self._sending, self._wanted = self._wanted, None
                if self._sending is None:
                    self._thread = None
                    return
            try:
                self._send(self._sending)
                self._trouble = ""
            except Exception as error:  # each library has errors of its own
                if not self._trouble:
                    _log.warning(
                        "cannot upload %s to %s: %s; training goes on, and the next save tries "
                        "again",
                        self._sending,
                        self.url,
                        _line(error),
                    )
                self._trouble = _line(error)
                with self._lock:
                    if self._wanted is None:
                        self._thread = None
                        return

    def _send(self, path: Path) -> None:
        fs, root = self._file_system()
        about = manifest.read(path)
        target = f"{root}/{path.name.removesuffix('.new')}-{about.sequence:08d}"
        if not fs.exists(f"{target}/{manifest.NAME}"):
            try:
                self._put(fs, path, target, about)
            except Exception:
                with suppress(Exception):  # what is half done takes space
                    self._remove(fs, target)
                raise
        self._prune(fs, root, about.sequence)

    def _put(
        self, fs: AbstractFileSystem, path: Path, target: str, about: CheckpointManifest
    ) -> None:
        for folder in {f"{target}/{name}".rpartition("/")[0] for name in about.files}:
            fs.makedirs(folder, exist_ok=True)
        names = list(about.files)
        fs.put([str(path / name) for name in names], [f"{target}/{name}" for name in names])
        fs.invalidate_cache()
        for name, record in about.files.items():
            if (size := fs.info(f"{target}/{name}")["size"]) != record.bytes:
                raise OSError(f"{name} has {size} bytes there, not {record.bytes}")
        fs.put_file(str(path / manifest.NAME), f"{target}/{manifest.NAME}")

    def _prune(self, fs: AbstractFileSystem, root: str, sequence: int) -> None:
        """Deletes what the rules do not keep, and what earlier uploads have left half done."""
        complete, half_done = self._list(fs, root)
        old = [
            each
            for each in complete[: -self.store.keep_last]
            if not (self.store.keep_every and each.step % self.store.keep_every == 0)
        ]
        for each in (*old, *half_done):
            if each.sequence < sequence:
                self._remove(fs, each.path)

    def _remove(self, fs: AbstractFileSystem, target: str) -> None:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{target}/{manifest.NAME}")
        fs.rm(target, recursive=True)

    # --- coming back ------------------------------------------------------------------------------

    def require_free(self) -> None:
        """Refuses to begin a run where another one has uploaded checkpoints.

        Raises:
            CheckpointError: there are some, or nobody can tell.
        """
        if found := self.complete():
            raise CheckpointError(
                f"checkpoint.remote={self.url} holds checkpoints up to step {found[-1].step} "
                "already; continue that run with --resume auto, or give this one a URL of its own"
            )

    def bring_newest(self) -> None:
        """Downloads the newest checkpoint if it is newer than the newest complete local one.

        Raises:
            CheckpointError: it cannot be told what is there, and nothing is here.
        """
        here = self.store.newest().path
        newest = manifest.read(here).sequence if here else -1
        try:
            found = self.complete()
        except CheckpointError as error:
            if here is None:
                raise
            _log.warning("%s; continuing from what is here", error)
            return
        for each in reversed(found):
            if each.sequence <= newest:
                return
            try:
                self._fetch(each)
                return
            except Exception as error:
                _log.warning("skipped %s/%s: %s", self.url, each.name, _line(error))
        if found and here is None:
            raise CheckpointError(
                f"none of the checkpoints at {self.url} could be downloaded; repair what is there, "
                "or start over without --resume and with another checkpoint.remote"
            )

    def complete(self) -> list[Uploaded]:
        """Checkpoints at the URL, oldest first.

        Raises:
            CheckpointError: they cannot be listed.
        """
        try:
            fs, root = self._file_system()
            return self._list(fs, root)[0]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint.remote={self.url} cannot be listed: {_line(error)}; make it "
                "reachable, or leave it out"
            ) from error

    def _fetch(self, each: Uploaded) -> None:
        fs, _ = self._file_system()
        stage = self.store.stage(each.step)
        try:
            fs.get_file(f"{each.path}/{manifest.NAME}", str(stage / manifest.NAME))
            names = list(manifest.read(stage).files)
            for name in names:
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
            fs.get([f"{each.path}/{name}" for name in names], [str(stage / name) for name in names])
            if problems := manifest.problems(stage):
                raise CheckpointError(manifest.summary(problems))
            self.store.adopt(each.step)
        finally:
            self.store.drop_stage(each.step)

    def _file_system(self) -> tuple[AbstractFileSystem, str]:
        import fsspec

        fs, root = fsspec.url_to_fs(self.url)
        fs.invalidate_cache()
        return fs, root.rstrip("/")

    def _list(self, fs: AbstractFileSystem, root: str) -> tuple[list[Uploaded], list[Uploaded]]:
        """What is complete, and what is not; each oldest first."""
        complete: list[Uploaded] = []
        half_done: list[Uploaded] = []
        paths: list[str] = []
        with suppress(FileNotFoundError):  # nothing was uploaded yet
            paths = fs.ls(root, detail=False)
        for path in paths:
            name = path.rstrip("/").rpartition("/")[2]
            if match := _NAME.match(name):
                each = Uploaded(int(match[3]), int(match[2]), match[1], path.rstrip("/"))
                done = fs.exists(f"{each.path}/{manifest.NAME}")
                (complete if done else half_done).append(each)
        return sorted(complete), sorted(half_done)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
