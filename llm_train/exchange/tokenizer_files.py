"""A tokenizer as ``AutoTokenizer`` opens it, encoding what training encoded and nothing else.

A template in ``tokenizer.json`` would put tokens around every text that training never had, so it
is left out. The token between documents is what ends a text, and what begins one.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

FILE = "tokenizer.json"


def write(text: str, folder: Path, boundary: str, positions: int) -> dict[str, int]:
    """Writes a tokenizer and returns the ids that ``config.json`` and generation want to know.

    Args:
        text: of ``tokenizer.json``; "" where token ids mean no text: nothing is written.
        folder: exists.
        boundary: the token between documents; "" is none.
        positions: of the longest sequence.
    """
    if not text:
        return {}
    plain: dict[str, Any] = json.loads(text)
    if (plain["post_processor"] or {}).get("type") != "ByteLevel":
        plain["post_processor"] = None
    plain |= {"truncation": None, "padding": None}
    (folder / FILE).write_text(json.dumps(plain, ensure_ascii=False), encoding="utf-8")
    known = Tokenizer.from_str(text).token_to_id(boundary) if boundary else None
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    if known is not None:
        about |= {"bos_token": boundary, "eos_token": boundary}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=1) + "\n")
    return {} if known is None else {"bos_token_id": known, "eos_token_id": known}
