"""Losses map hidden states and targets to sums of nats. YAML may use the short names below."""

from llm_train.discovery import load
from llm_train.model.loss.base import Loss, LossSum, Projection
from llm_train.model.loss.causal_lm import CausalLM
from llm_train.model.loss.chunked import ChunkedCausalLM
from llm_train.model.loss.per_token import PerTokenLoss

__all__ = ["CausalLM", "ChunkedCausalLM", "Loss", "LossSum", "PerTokenLoss", "Projection"]

load(__name__)
