"""Qwen 3: Llama with norms on queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_train.exchange.families.base import GATED, PRE_NORM, SIZES, Family
from llm_train.model.network.transformer import Transformer


class Qwen3(Family):
    """``Qwen3ForCausalLM``."""

    model_type = "qwen3"
    causal_lm = "Qwen3ForCausalLM"
    fixed = {**PRE_NORM, "qk_norm": True, "bias": False}
    keys = {**SIZES, "rms_norm_eps": "norm_eps"}
    activations = GATED

    def constants(self, network: Transformer) -> Mapping[str, Any]:
        """Heads share the width, and every layer sees everything."""
        return {
            "head_dim": network.head_dim,
            "attention_bias": False,
            "use_sliding_window": False,
        }
