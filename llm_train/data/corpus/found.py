"""Files that a configuration names: paths, folders and patterns, on a disk or at any fsspec URL."""

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from llm_train.errors import ConfigError, DataError, line_of

# What libraries call a fact that changes when the content does.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "LastModified", "mtime")


class FoundFile(NamedTuple):
    """A file and the key it goes by: relative to what was configured, so that data can move.

    Attributes:
        key: relative path with slashes.
        path: on a disk, or a URL.
        size: in bytes; 0 where a server does not say.
        version: what changes when the content does, as far as can be known without reading.
    """

    key: str
    path: str
    size: int
    version: str

    @property
    def remote(self) -> bool:
        """Whether the path is a URL."""
        return "://" in self.path


def find(entries: Sequence[str]) -> list[FoundFile]:
    """Files named by ``entries``, in their order and sorted within each; none twice.

    A directory stands for all files below it whose path holds no name that starts with a dot; in a
    pattern, ``**`` matches any depth. Where two entries hold files of one key, it begins with the
    number of the entry.

    Raises:
        DataError: an entry that matches nothing or cannot be reached.
    """
    found: dict[str, tuple[int, FoundFile]] = {}
    for number, entry in enumerate(entries):
        matches = sorted(_remote(entry) if "://" in entry else _local(os.path.expanduser(entry)))
        if not matches:
            raise DataError(f"paths: {entry!r} matches no file; correct the path or the pattern")
        for match in matches:
            place = match.path if match.remote else os.path.realpath(match.path)
            found.setdefault(place, (number, match))
    times = Counter(match.key for _, match in found.values())
    return [
        match._replace(key=f"{number}/{match.key}") if times[match.key] > 1 else match
        for number, match in found.values()
    ]


def walk(root: Path, without: Collection[str] = ()) -> Iterator[FoundFile]:
    """Files below ``root``, without hidden ones and directories named in ``without``."""
    for directory, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in without and not name.startswith(".")]
        paths = [Path(directory, name) for name in names if not name.startswith(".")]
        yield from (_on_disk(path, root) for path in paths if path.is_file())


def _on_disk(path: Path, root: Path) -> FoundFile:
    facts = path.stat()
    key = path.relative_to(root).as_posix()
    return FoundFile(key, str(path), facts.st_size, str(facts.st_mtime_ns))


def _local(entry: str) -> Iterator[FoundFile]:
    path = Path(entry)
    if path.is_file():
        yield _on_disk(path, path.parent)
    elif path.is_dir():
        yield from walk(path)
    else:
        fixed = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
        matches = map(Path, glob.iglob(entry, recursive=True))
        yield from (_on_disk(match, fixed) for match in matches if match.is_file())


def _remote(url: str) -> Iterator[FoundFile]:
    try:
        import fsspec

        fs, path = fsspec.url_to_fs(url)
        fs.invalidate_cache()
        if set("*[") & set(path):  # a question mark belongs to an address
            root = "/".join(takewhile(lambda part: not glob.has_magic(part), path.split("/")))
            infos = fs.glob(path, detail=True)
        elif (info := fs.info(path))["type"] == "file":
            root, infos = path.rpartition("/")[0], {path: info}
        else:
            root, infos = path, fs.find(path, detail=True)
    except FileNotFoundError as error:  # which is what fsspec makes of every failure
        cause = error.__cause__
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            raise _unreachable(url, cause) from None
        return
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"paths: {url}: {error}; write a URL that fsspec knows and install its library"
        ) from None
    except Exception as error:  # each library has errors of its own
        raise _unreachable(url, error) from error
    for name, info in infos.items():
        key = name.removeprefix(root).lstrip("/")
        if info["type"] == "file" and not any(part.startswith(".") for part in key.split("/")):
            version = " ".join(str(info[each]) for each in _VERSIONS if info.get(each))
            yield FoundFile(key, fs.unstrip_protocol(name), info.get("size") or 0, version)


def _unreachable(url: str, error: BaseException) -> DataError:
    return DataError(
        f"paths: {url} cannot be reached: {line_of(error)}; "
        "check the address, the network and the credentials"
    )
