"""A folder of token shards behind a URL, and where what was read of it is kept nearby."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from llm_train.data.shards import describe_file
from llm_train.data.token_manifest import FILE_NAME, Manifest
from llm_train.errors import DataError, check_at_least, line_of
from llm_train.runtime import disk

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

_PAUSES = (1, 2, 4, 8, 16)  # seconds between attempts; libraries of object stores have their own
_CONNECTIONS = 32
SPACE = "set data.source.cache to a local disk with space"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Where blocks of remote shards are kept.

    Attributes:
        folder: on a disk of this host; "" is a folder for the URL in ``~/.cache/llm_train``.
        gib: about how much it may hold. If all tokens fit, each block is fetched once a host; if
            not, blocks are fetched again when they are needed again.
    """

    folder: str = ""
    gib: float = 64.0

    def __post_init__(self) -> None:
        check_at_least(self, 0, "gib", prefix="data.source.cache.")


class RemoteFolder:
    """What lies at a URL, read with many requests at a time."""

    def __init__(self, url: str, cache: ShardCache) -> None:
        self.url, self.limit = url.rstrip("/"), int(cache.gib * (1 << 30))
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.folder = Path(cache.folder or Path.home() / ".cache" / "llm_train" / name)
        self.trouble, self._process, self._lost = "", 0, False

    def __getstate__(self) -> dict[str, object]:
        kept = ("url", "limit", "folder", "trouble")
        return {**{name: self.__dict__[name] for name in kept}, "_process": 0, "_lost": False}

    def mirror(self) -> Manifest:
        """Brings everything but the shards, whose sizes are compared with the manifest.

        Raises:
            DataError: it cannot be brought, or is not what the manifest says.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{error}; {SPACE}") from None
        self._bring(FILE_NAME)
        manifest = Manifest.load(self.folder)
        listed = self.read("", lambda fs, path: fs.ls(path, detail=True, refresh=True))
        sizes = {each["name"].rpartition("/")[2]: each["size"] for each in listed}
        for file in manifest.files:
            size = sizes.get(file.name, "no")
            if size is None:  # a web server's list has names alone
                size = self.read(file.name, lambda fs, path: fs.size(path))
            if size != file.bytes:
                raise DataError(
                    f"{self.url}/{file.name} has {size} bytes, its manifest "
                    f"says {file.bytes}; upload it again"
                )
        for file in manifest.others:
            near = self.folder / file.name
            if not near.exists() or describe_file(near) != file:
                self._bring(file.name)
        return manifest

    def _bring(self, name: str) -> None:
        content = self.read(name, lambda fs, path: fs.cat_file(path))
        with disk.written(self.folder / name) as aside:  # other ranks bring it, too
            aside.write_bytes(content)

    def read(self, name: str, action: Callable[[AbstractFileSystem, str], T]) -> T:
        """Does something with the file system and a path in it; tries again for half a minute.

        Raises:
            DataError: there is no such file, or it stays out of reach.
        """
        self.connect()
        url = f"{self.url}/{name}".rstrip("/")
        for pause in (*_PAUSES, 0):
            try:
                return action(self._fs, f"{self._root}/{name}".rstrip("/"))
            except FileNotFoundError:
                raise DataError(f"{url} does not exist; correct data.source.path") from None
            except Exception as error:  # each library has errors of its own
                self.trouble = line_of(error)
            if not pause or self._lost:
                break
            time.sleep(pause)
        self._lost = True  # a process that ends must not wait for all the other requests
        raise DataError(
            f"{url} is out of reach: {self.trouble}; continue with --resume auto when it is back"
        )

    def connect(self) -> None:
        """Makes connections and threads, which do not survive a fork."""
        if self._process == os.getpid():
            return
        import fsspec

        try:
            self._fs, root = fsspec.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise DataError(
                f"{self.url}: {error}; correct data.source.path, or install the library for such "
                "URLs (pip install 'llm-train[remote]')"
            ) from None
        self._root, self._lost = root.rstrip("/"), False
        self.pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="fetch")
        self._process = os.getpid()
