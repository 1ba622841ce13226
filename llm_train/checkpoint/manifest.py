"""What makes a directory a checkpoint: ``manifest.json``, and how it is written, read and checked.

The manifest names every file with its size and CRC-32 and carries a CRC-32 of itself, so that a
flipped bit anywhere in the checkpoint is seen, in the list of checksums too. CRC-32 and not a
cryptographic hash: the enemy is a full disk, a killed process or a bad cable, and it runs at about
twice the speed of SHA-256. Files that the manifest does not name are ignored: a note left alongside
a checkpoint must not make it unusable.
"""

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_train.errors import CheckpointError, check_at_least
from llm_train.runtime import disk
from llm_train.runtime.structure import structure

FORMAT = 1
NAME = "manifest.json"
_THREADS = 8  # zlib.crc32 releases the interpreter lock, so that threads overlap disk and checksum


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and CRC-32 of one file.

    Attributes:
        bytes: size.
        crc32: checksum of the content, an unsigned integer.
    """

    bytes: int
    crc32: int

    def __post_init__(self) -> None:
        check_at_least(self, 0, "bytes", "crc32")


@dataclass(frozen=True, kw_only=True)
class CheckpointManifest:
    """The content of ``manifest.json``.

    Attributes:
        sequence: how many checkpoints this store had committed before; orders checkpoints by when
            they were written, also after a run went back to an earlier step.
        metadata: whatever the writer wants to know before it loads anything.
        files: relative POSIX path -> record.
    """

    sequence: int
    metadata: Mapping[str, Any]
    files: Mapping[str, FileRecord]

    def __post_init__(self) -> None:
        check_at_least(self, 0, "sequence")
        for name in self.files:
            if name.startswith("/") or ".." in name.split("/"):
                raise ValueError(f"{name} does not lie in the checkpoint")


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Checksums every file under ``directory`` and flushes files and directories to the disk."""
    inside = sorted(directory.rglob("*"))
    files = [path for path in inside if path.is_file()]
    with ThreadPoolExecutor(_THREADS) as pool:
        records = list(pool.map(lambda path: _record(path, flush=True), files))
    # Deepest first: a directory's own name is on the disk when its parent is.
    for inner in reversed([path for path in inside if path.is_dir()]):
        disk.sync(inner)
    names = (path.relative_to(directory).as_posix() for path in files)
    return dict(zip(names, records, strict=True))


def write(directory: Path, manifest: CheckpointManifest) -> None:
    """Writes ``manifest.json``, which makes ``directory`` a checkpoint."""
    # Through JSON and back: the checksum is of what a reader will see, where keys are strings.
    body = json.loads(json.dumps({"format": FORMAT, **asdict(manifest)}))
    disk.write_manifest(directory / NAME, {"crc32": _crc32_of(body), **body})


def read(path: Path) -> CheckpointManifest:
    """Reads the manifest of the checkpoint directory ``path``.

    Raises:
        CheckpointError: there is none, or it is damaged, or of a format this version cannot read.
    """
    try:
        body = json.loads((path / NAME).read_bytes())
        crc32 = body.pop("crc32")
    except FileNotFoundError:
        raise CheckpointError(f"no {NAME}") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{NAME} is unreadable ({type(error).__name__}: {error})") from None
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{NAME} has format {body.get('format')!r}; this version reads format {FORMAT}"
        )
    if crc32 != _crc32_of(body):
        raise CheckpointError(f"{NAME} does not match its own checksum")
    try:
        return structure(CheckpointManifest, body)
    except ValueError as error:
        raise CheckpointError(f"{NAME} is not one of a checkpoint: {error}") from None


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the checkpoint directory ``path``; empty when it is good."""
    try:
        files = read(path).files
    except CheckpointError as error:
        return [str(error)]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(lambda name: _problem(path / name, files[name]), files)
        return [f"{name}: {wrong}" for name, wrong in zip(files, found, strict=True) if wrong]


def summary(found: list[str]) -> str:
    """The first few problems on one line."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def _record(path: Path, *, flush: bool = False) -> FileRecord:
    size = crc32 = 0
    for chunk in disk.chunks(path, flush=flush):
        size += len(chunk)
        crc32 = zlib.crc32(chunk, crc32)
    return FileRecord(bytes=size, crc32=crc32)


def _problem(path: Path, expected: FileRecord) -> str:
    """What is wrong with one file; its size is compared first, which spares reading it."""
    try:
        size = path.stat().st_size
        if size != expected.bytes:
            return f"{size} bytes, not {expected.bytes}"
        crc32 = _record(path).crc32
    except OSError as error:
        return "missing" if isinstance(error, FileNotFoundError) else str(error)
    return "" if crc32 == expected.crc32 else f"crc32 {crc32:08x}, not {expected.crc32:08x}"


def _crc32_of(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
