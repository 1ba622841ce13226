"""Counts, lengths, compression and copies of prepared tokens."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from llm_train.data.audit.prepared_folder import PreparedFolder

_PARTS = {"shortest": 0.0, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}


@dataclass(frozen=True, kw_only=True)
class SplitStatistics:
    """One split.

    Attributes:
        lengths: (D,) tokens of each document, its boundary token included.
        rows: names and figures to print.
    """

    lengths: npt.NDArray[np.int64]
    rows: Mapping[str, str]


def statistics(folder: PreparedFolder) -> dict[str, SplitStatistics]:
    """Reads all tokens of all splits once."""
    found: dict[str, SplitStatistics] = {}
    trained: npt.NDArray[np.uint64] | None = None
    for name, split in folder.manifest.splits.items():
        lengths = np.diff(folder.starts(name), append=split.tokens)
        digests = folder.digests(name)
        rows = {
            "tokens": f"{split.tokens:,}",
            "documents": f"{lengths.size:,}",
            "bytes of text": f"{split.text_bytes:,}",
            "bytes per token": f"{split.text_bytes / max(1, split.tokens):.3f}",
        }
        if split.decoded_bytes != split.text_bytes:
            rows["bytes that tokens decode to"] = f"{split.decoded_bytes:,}"
        if lengths.size:
            quantiles = np.quantile(lengths, list(_PARTS.values()), method="nearest")
            parts = zip(_PARTS, quantiles.tolist(), strict=True)
            rows["tokens a document"] = ", ".join(f"{part} {n:,}" for part, n in parts)
        copies = digests.size - np.unique(digests).size
        rows["exact copies"] = share(copies, digests.size)
        if trained is None:
            trained = digests
        else:
            also = int(np.isin(digests, trained).sum())
            rows["documents that are also trained on"] = share(also, digests.size)
        found[name] = SplitStatistics(lengths=lengths, rows=rows)
    return found


def share(part: int, whole: int) -> str:
    """A count and its percentage."""
    return f"{part:,} ({part / max(1, whole):.2%})"
