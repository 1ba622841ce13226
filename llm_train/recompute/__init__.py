"""Activation checkpointing policies. Short names for YAML below."""

from llm_train.recompute.base import Recompute
from llm_train.recompute.every_block import EveryBlock
from llm_train.recompute.every_nth import EveryNth
from llm_train.recompute.none import NoRecompute
from llm_train.recompute.saved import saved_bytes
from llm_train.recompute.selective import Selective

__all__ = ["EveryBlock", "EveryNth", "NoRecompute", "Recompute", "Selective", "saved_bytes"]
