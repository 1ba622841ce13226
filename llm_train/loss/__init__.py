"""Losses: hidden states and targets in, sums of nats out. Short names for YAML below."""

from llm_train.loss.base import Loss, LossSum, Projection, Readout
from llm_train.loss.causal_lm import CausalLM
from llm_train.loss.chunked import ChunkedCausalLM

__all__ = ["CausalLM", "ChunkedCausalLM", "Loss", "LossSum", "Projection", "Readout"]
