"""Activation checkpointing policies. Short names for YAML below."""

from llm_train.discovery import load
from llm_train.model.recompute.base import Recompute
from llm_train.model.recompute.every_block import EveryBlock
from llm_train.model.recompute.every_nth import EveryNth
from llm_train.model.recompute.none import NoRecompute
from llm_train.model.recompute.selective import Selective

__all__ = ["EveryBlock", "EveryNth", "NoRecompute", "Recompute", "Selective"]

load(__name__)
