"""Activation checkpointing policies. Short names for YAML below."""

from llm_train.discovery import load
from llm_train.model.recompute.base import Recompute
from llm_train.model.recompute.selective import Selective
from llm_train.model.recompute.whole_blocks import EveryBlock, EveryNth, NoRecompute

__all__ = ["EveryBlock", "EveryNth", "NoRecompute", "Recompute", "Selective"]

load(__name__)
