"""Llama: RMSNorm before each half, rotary positions with their scalings, a gated unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_train.exchange.families.base import GATED, PRE_NORM, SIZES, Family
from llm_train.model.network.transformer import Transformer


class Llama(Family):
    """``LlamaForCausalLM``."""

    model_type = "llama"
    causal_lm = "LlamaForCausalLM"
    fixed = PRE_NORM
    keys = {**SIZES, "rms_norm_eps": "norm_eps", "attention_bias": "bias", "mlp_bias": "bias"}
    activations = GATED

    def constants(self, network: Transformer) -> Mapping[str, Any]:
        """Heads share the width."""
        return {"head_dim": network.head_dim}
