"""Reads every byte of prepared tokens and compares it with everything that is known about it."""

import numpy as np

from llm_train.data.audit.prepared_folder import PreparedFolder
from llm_train.data.shards import hash_of, verify
from llm_train.errors import DataError

_AT_ONCE = 100_000  # documents whose boundaries are read together


def verified(folder: PreparedFolder) -> dict[str, str]:
    """What was compared, and how much of it.

    Raises:
        DataError: something is not as it was written, by file and place.
    """
    manifest = verify(folder.path, checksums=True)
    size = sum(file.bytes for file in manifest.files)
    report = {"SHA-256 of files": f"{len(manifest.files):,} files, {size:,} bytes"}
    for name, split in manifest.splits.items():
        for _ in folder.read(name):  # which compares checksums of blocks, and ids with the size
            pass
        if hash_of(split.shards) != split.sha256:
            raise DataError(
                f"{folder.path}: {name} has other tokens than its manifest says, though each file "
                "is as it was: shards were exchanged; prepare again with --force"
            )
        below = f"{split.tokens:,}, all below {manifest.vocab_size:,}"
        report[f"{name}: tokens"] = f"{below}, CRC-32 of their blocks"
        if split.tokens:
            report[f"{name}: documents"] = _documents(folder, name)
    return report


def _documents(folder: PreparedFolder, split: str) -> str:
    starts, end = folder.starts(split), folder.manifest.end_of_text
    count, where = folder.manifest.splits[split].documents, f"{folder.path}: {split}"
    if starts.size != count or starts[0] != 0 or np.any(np.diff(starts) < 1):
        raise DataError(
            f"{where} has {starts.size} documents from token {starts[0]} on, its manifest says "
            f"{count}; prepare again with --force"
        )
    if end < 0:
        return f"{count:,}, without boundary tokens"
    tokens = folder.tokens(split)
    for first in range(1, starts.size, _AT_ONCE):
        before = starts[first : first + _AT_ONCE] - 1
        wrong = np.flatnonzero(tokens.rows(before.tolist(), 1)[:, 0] != end)
        if wrong.size:
            raise DataError(
                f"{where}: there is no boundary token {end} at token {before[wrong[0]]}, where a "
                "document ends; prepare again with --force"
            )
    return f"{count:,}, each after a boundary token"
