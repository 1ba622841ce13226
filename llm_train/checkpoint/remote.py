"""A second home for checkpoints at any URL that fsspec knows: ``s3://``, ``gs://``, a mounted disk.

A checkpoint is there when its manifest is, which is uploaded last and deleted first. Its name ends
in its sequence number, so that nothing is ever overwritten and a list of names tells the newest.
Credentials are found as the library of the URL finds them, and nothing else is said about them.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from llm_train.checkpoint import manifest
from llm_train.checkpoint.manifest import FileRecord
from llm_train.checkpoint.store import CheckpointStore, Entry
from llm_train.errors import CheckpointError, ConfigError, line_of
from llm_train.runtime.terminal import say

if TYPE_CHECKING:
    from fsspec.implementations.dirfs import DirFileSystem

_log = logging.getLogger(__name__)
_NAME = re.compile(r"^step-([0-9]{8,})-([0-9]{8,})$")


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


def folder_at(url: str) -> DirFileSystem:
    """What is at ``url``, under names relative to it, as it is now."""
    import fsspec
    from fsspec.implementations.dirfs import DirFileSystem

    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return DirFileSystem(root.rstrip("/"), fs)


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
    _sending: Path | None = None  # or what the last upload has failed with
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
        if (thread := self._thread) is not None:
            thread.join(1)
            if thread.is_alive():
                say(f"\nwaiting up to {seconds:.0f} s for the upload to {self.url}")
            thread.join(seconds)
        if left := self._wanted or self._sending:
            say(f"\n{left} is not uploaded to {self.url}: {self._trouble or 'there was no time'}")

    def _send_all(self) -> None:
        while True:
            with self._lock:
                if self._wanted is None:
                    self._thread = None
                    return
                self._sending, self._wanted = self._wanted, None
            try:
                self._send(self._sending)
                self._sending, self._trouble = None, ""
            except Exception as error:  # each library has errors of its own
                before, self._trouble = self._trouble, line_of(error)
                if not before:
                    what = f"cannot upload {self._sending} to {self.url}: {self._trouble}"
                    _log.warning("%s; training goes on, and the next save tries again", what)

    def _send(self, path: Path) -> None:
        fs, about = folder_at(self.url), manifest.read(path)
        name = f"{path.name.removesuffix('.new')}-{about.sequence:08d}"
        if not _exists(fs, f"{name}/{manifest.NAME}"):
            try:
                _put(fs, path, name, about.files)
            except Exception:
                with suppress(Exception):  # what is half done takes space
                    _remove(fs, name)
                raise
        complete, half_done = _list(fs)
        for each in (*self.store.outdated(complete), *half_done):
            if each.sequence < about.sequence:
                _remove(fs, each.path.name)

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
                _log.warning("skipped %s/%s: %s", self.url, each.path, line_of(error))
        if found and here is None:
            raise CheckpointError(
                f"none of the checkpoints at {self.url} could be downloaded; repair what is there, "
                "or start over without --resume and with another checkpoint.remote"
            )

    def complete(self) -> list[Entry]:
        """Checkpoints at the URL, oldest first.

        Raises:
            CheckpointError: they cannot be listed.
        """
        try:
            return _list(folder_at(self.url))[0]
        except Exception as error:
            raise CheckpointError(
                f"checkpoint.remote={self.url} cannot be listed: {line_of(error)}; make it "
                "reachable, or leave it out"
            ) from error

    def _fetch(self, each: Entry) -> None:
        fs, stage = folder_at(self.url), self.store.stage(each.step)
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


def _put(fs: DirFileSystem, path: Path, name: str, files: Mapping[str, FileRecord]) -> None:
    for folder in {f"{name}/{file}".rpartition("/")[0] for file in files}:
        fs.makedirs(folder, exist_ok=True)
    fs.put([str(path / file) for file in files], [f"{name}/{file}" for file in files])
    fs.invalidate_cache()
    for file, record in files.items():
        if (size := fs.info(f"{name}/{file}")["size"]) != record.bytes:
            raise OSError(f"{file} has {size} bytes there, not {record.bytes}")
    fs.put_file(str(path / manifest.NAME), f"{name}/{manifest.NAME}")


def _remove(fs: DirFileSystem, name: str) -> None:
    with suppress(FileNotFoundError):
        fs.rm_file(f"{name}/{manifest.NAME}")
    fs.rm(name, recursive=True)


def _list(fs: DirFileSystem) -> tuple[list[Entry], list[Entry]]:
    """What is complete, and what is not; each oldest first."""
    names: list[str] = []
    with suppress(FileNotFoundError):  # nothing was uploaded yet
        names = fs.ls("", detail=False)
    matches = filter(None, (_NAME.match(name.rstrip("/")) for name in names))
    found = sorted(Entry(int(m[2]), int(m[1]), Path(m[0])) for m in matches)
    complete = [each for each in found if _exists(fs, f"{each.path}/{manifest.NAME}")]
    return complete, [each for each in found if each not in complete]


def _exists(fs: DirFileSystem, name: str) -> bool:
    """As ``fs.exists``, for which a server that does not answer may be one that has nothing."""
    try:
        fs.info(name)
    except FileNotFoundError:
        return False
    return True
