"""What LitData's ``optimize`` writes for its ``TokensLoader``: chunks, and an ``index.json``.

A chunk is the number of its items, the bytes at which they begin and the last one ends (32-bit
each), and then ids alone. ``data_format`` names their type by its number among torch's or numpy's.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_train.data.foreign.base import FileStretch, FileTokens, ForeignTokens, Starts
from llm_train.errors import DataError

_DTYPES = {
    **dict.fromkeys(("no_header_tensor:13", "no_header_tensor:14", "no_header_numpy:1"), "int16"),
    **dict.fromkeys(("no_header_tensor:15", "no_header_tensor:16", "no_header_numpy:2"), "int32"),
    **dict.fromkeys(("no_header_tensor:17", "no_header_tensor:18", "no_header_numpy:3"), "int64"),
    **dict.fromkeys(("no_header_tensor:20", "no_header_numpy:5"), "uint16"),
    "no_header_numpy:6": "uint32",
}


@dataclass(frozen=True, kw_only=True)
class LitDataTokens(ForeignTokens):
    """Reads a folder that LitData's ``optimize`` wrote with ``item_loader=TokensLoader()``.

    Attributes:
        path: the folder with ``index.json``.
        held_out: another such folder, whose text is held out.
        held_out_tokens: or so many tokens at the end of ``path``.
        vocabulary: number of token ids; 0 takes the tokenizer's.
        tokenizer: the ``tokenizer.json`` that made the ids, for bits per byte and generating text.
    """

    def open(self, path: str) -> FileTokens:
        """One chunk after another, without a gap."""
        index = read_index(path)
        config, chunks = index["config"], index["chunks"]
        for key in ("compression", "encryption"):
            if config.get(key):
                raise DataError(f"{path} has {key}={config[key]}; write it again without {key}")
        if (dtype := _DTYPES.get(config["data_format"][0])) is None:
            raise DataError(
                f"{path} holds {config['data_format']}, not token ids; write it with "
                "optimize(..., item_loader=TokensLoader())"
            )
        stretches = []
        for chunk in chunks:
            # How many items there are, where each begins, and where the last one ends.
            file, first = Path(path) / chunk["filename"], 4 * (int(chunk["chunk_size"]) + 2)
            if file.stat().st_size != chunk["chunk_bytes"]:
                raise DataError(f"{file} has not the {chunk['chunk_bytes']} bytes of the index")
            stretches.append(FileStretch(file, first, chunk["chunk_bytes"] - first))
        return FileTokens(stretches, dtype, self.vocab_size())

    def starts(self, path: str) -> Starts:
        """Of items, which are documents where the function given to ``optimize`` yields those."""
        index, found, before = read_index(path), [], 0
        width = np.dtype(_DTYPES[index["config"]["data_format"][0]]).itemsize
        for chunk in index["chunks"]:
            begins = np.fromfile(
                Path(path) / chunk["filename"], "<u4", chunk["chunk_size"] + 1, offset=4
            )
            found.append((begins[:-1].astype(np.int64) - begins[0]) // width + before)
            before += int(begins[-1] - begins[0]) // width
        return np.concatenate(found)


def read_index(path: str) -> dict[str, Any]:
    """The ``index.json`` of a folder.

    Raises:
        DataError: there is none.
    """
    file = Path(path) / "index.json"
    if not file.is_file():
        raise DataError(f"{file} is missing; set the path to the folder that holds it")
    return dict(json.loads(file.read_text("utf-8")))
