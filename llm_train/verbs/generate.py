"""The verb that writes text: checkpoint directory in, continuation of a prompt out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from llm_train.checkpoint.loading import load_weights
from llm_train.checkpoint.store import CheckpointStore
from llm_train.data.base import END_OF_TEXT
from llm_train.data.tokenizer import load_tokenizer
from llm_train.errors import CheckpointError, ConfigError
from llm_train.model.network.init import materialise
from llm_train.model.network.sample import generate as sample
from llm_train.runtime.terminal import say_piece
from llm_train.settings import Settings


def generate(flags: Any, load: Callable[..., Settings]) -> int:
    """Writes a continuation of a prompt to standard output."""
    path = CheckpointStore(Path(".")).resolve(flags.checkpoint).path
    assert path is not None
    tokenizer_file = path / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise CheckpointError(
            f"{path} holds no tokenizer.json, so its token ids mean no text: it was trained on "
            "tokens without a tokenizer"
        )
    tokenizer = load_tokenizer(tokenizer_file)
    settings = load(["-c", str(path / "config.yaml")], flags.allow_import)
    device = _device(flags.device)
    with torch.device("meta"):
        network = settings.task.network_config.build()
    materialise(network, device)
    load_weights(path, network)
    prompt = tokenizer.encode(flags.prompt).ids or [_first_token(tokenizer)]
    stop = _stop_token(tokenizer, flags.stop)
    tokens = list(prompt)
    say_piece(flags.prompt)
    shown = tokenizer.decode(prompt) if flags.prompt else ""
    for token in sample(
        network,
        torch.tensor(prompt),
        max_new_tokens=flags.tokens,
        temperature=flags.temperature,
        top_k=flags.top_k,
        top_p=flags.top_p,
        stop=stop,
        seed=flags.seed,
    ):
        tokens.append(token)
        text = tokenizer.decode(tokens if flags.prompt else tokens[1:])
        if not text.endswith("\ufffd"):  # half of a character: wait for the other half
            say_piece(text[len(shown) :])
            shown = text
    say_piece("\n")
    return 0


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {name} cannot be used: {str(error).splitlines()[0]}"
        ) from error
    return device


def _first_token(tokenizer: Any) -> int:
    """What stands before a text: the end of the one before it, else the first id."""
    found = tokenizer.token_to_id(END_OF_TEXT)
    return 0 if found is None else int(found)


def _stop_token(tokenizer: Any, text: str) -> int | None:
    found = tokenizer.token_to_id(text or END_OF_TEXT)
    if text and found is None:
        raise ConfigError(f"--stop {text!r} is not a single token of this tokenizer")
    return None if found is None else int(found)
