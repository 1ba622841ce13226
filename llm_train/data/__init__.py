"""Data: text to token shards (``prepare``), and token shards to windows by index.

Names in ``__all__`` may be used as ``class_path`` in YAML.
"""

from llm_train.data.base import (
    Corpus,
    Document,
    Piece,
    Recipe,
    Skipped,
    Split,
    Texts,
    Tokenizer,
    TokenSource,
    Windows,
)
from llm_train.data.corpus import HuggingFace, JSONLines, StandardLibrary, TextFiles
from llm_train.data.preparation import Prepared, prepare
from llm_train.data.random_tokens import RandomTokens
from llm_train.data.split import HashSplit, TailSplit
from llm_train.data.token_shards import TokenShards
from llm_train.data.tokenize_corpus import Tokenize
from llm_train.data.tokenizer import Characters, TokenizerFile, TrainBPE, load_tokenizer
from llm_train.discovery import load

__all__ = [
    "Characters",
    "Corpus",
    "Document",
    "HashSplit",
    "HuggingFace",
    "JSONLines",
    "Piece",
    "Prepared",
    "RandomTokens",
    "Recipe",
    "Skipped",
    "Split",
    "StandardLibrary",
    "TailSplit",
    "TextFiles",
    "Texts",
    "TokenShards",
    "TokenSource",
    "Tokenize",
    "Tokenizer",
    "TokenizerFile",
    "TrainBPE",
    "Windows",
    "load_tokenizer",
    "prepare",
]

load(__name__, skip=("module",))
