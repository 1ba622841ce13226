"""Qwen 3: Llama with norms on queries and keys."""

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

    def constants(self, network: Transformer) -> dict[str, Any]:
        """Every layer sees everything."""
        return super().constants(network) | {"attention_bias": False, "use_sliding_window": False}
