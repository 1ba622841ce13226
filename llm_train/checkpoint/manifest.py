"""What makes a directory a checkpoint: ``manifest.json``, and how one is written, read and checked.

The manifest names every file with its size and CRC-32 and carries a CRC-32 of itself, so that a
flipped bit anywhere in the checkpoint is seen, in the list of checksums too. CRC-32 and not a
cryptographic hash: the enemy is a full disk, a killed process or a bad cable, and it runs at about
twice the speed of SHA-256. Files that the manifest does not name are ignored: a note left beside a
checkpoint must not make it unusable.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_train.errors import CheckpointError

FORMAT = 1
NAME = "manifest.json"
_CHUNK_BYTES = 4 << 20
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


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of ``manifest.json``.

    Attributes:
        step: optimizer steps done when the checkpoint was taken.
        sequence: how many checkpoints this store had committed before; orders checkpoints by when
            they were written, also after a run went back to an earlier step.
        facts: whatever the writer wants to know before it loads anything.
        files: relative POSIX path -> record.
    """

    step: int
    sequence: int
    facts: Mapping[str, Any]
    files: Mapping[str, FileRecord]


def record_files(directory: Path) -> dict[str, FileRecord]:
    """Checksums every file under ``directory`` and flushes files and directories to the disk."""
    names = sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
    )
    with ThreadPoolExecutor(_THREADS) as pool:
        records = list(pool.map(lambda name: _record(directory / name, flush=True), names))
    for inner in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        sync_directory(inner)
    return dict(zip(names, records, strict=True))


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes ``manifest.json`` and flushes it and its directory entry."""
    # Through JSON and back: the checksum is of what a reader will see, where keys are strings.
    body = json.loads(json.dumps({"format": FORMAT, **asdict(manifest)}))
    text = json.dumps({"crc32": _crc32_of(body), **body}, indent=1) + "\n"
    with open(directory / NAME, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_directory(directory)


def read_manifest(path: Path) -> Manifest:
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
        raise CheckpointError(f"{NAME} is unreadable ({_one_line(error)})") from None
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{NAME} has format {body.get('format')!r}; this version reads format {FORMAT}"
        )
    if crc32 != _crc32_of(body):
        raise CheckpointError(f"{NAME} does not match its own checksum")
    return Manifest(
        step=body["step"],
        sequence=body["sequence"],
        facts=body["facts"],
        files={name: FileRecord(**record) for name, record in body["files"].items()},
    )


def problems(path: Path, *, checksums: bool = True) -> list[str]:
    """Everything that is wrong with the checkpoint directory ``path``; empty when it is good.

    Args:
        path: the checkpoint directory.
        checksums: read every file; False compares sizes only.
    """
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return [str(error)]
    found: list[str] = []
    readable: list[str] = []
    for name, record in manifest.files.items():
        try:
            surplus = (path / name).stat().st_size - record.bytes
        except OSError as error:
            missing = isinstance(error, FileNotFoundError)
            found.append(f"{name}: {'missing' if missing else _one_line(error)}")
            continue
        if surplus == 0:
            readable.append(name)
        else:
            unit = "byte" if abs(surplus) == 1 else "bytes"
            found.append(f"{name}: {abs(surplus)} {unit} {'long' if surplus > 0 else 'short'}")
    if checksums:
        with ThreadPoolExecutor(_THREADS) as pool:
            for problem in pool.map(lambda name: _mismatch(path, name, manifest), readable):
                found.extend(problem)
    return found


def summary(found: list[str]) -> str:
    """The first few problems on one line."""
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more


def sync_directory(path: Path) -> None:
    """Flushes a directory's entries (names, renames, removals) to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(path: Path, *, flush: bool) -> FileRecord:
    size = crc32 = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc32 = zlib.crc32(chunk, crc32)
            size += len(chunk)
        if flush:
            os.fsync(file.fileno())
    return FileRecord(bytes=size, crc32=crc32)


def _mismatch(path: Path, name: str, manifest: Manifest) -> list[str]:
    try:
        actual = _record(path / name, flush=False).crc32
    except OSError as error:
        return [f"{name}: {_one_line(error)}"]
    expected = manifest.files[name].crc32
    return [] if actual == expected else [f"{name}: crc32 {actual:08x}, not {expected:08x}"]


def _crc32_of(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


def _one_line(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(f"{type(error).__name__}: {text}".split())
