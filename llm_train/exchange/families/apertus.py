"""Apertus: norms on queries and keys, and a plain feed-forward part."""

from typing import Any

from llm_train.exchange.families import rope
from llm_train.exchange.families.base import LLAMA, PRE_NORM, SIZES, Family
from llm_train.model.network.transformer import Transformer


class Apertus(Family):
    """``ApertusForCausalLM``; its own activation, xIELU, is not one of ours."""

    model_type = "apertus"
    causal_lm = "ApertusForCausalLM"
    fixed = {**PRE_NORM, "qk_norm": True, "bias": False}
    keys = {**SIZES, "rms_norm_eps": "norm_eps"}
    tensors = {
        **LLAMA,
        "layers.{}.attention_norm": ("model.layers.{}.attention_layernorm",),
        "layers.{}.mlp_norm": ("model.layers.{}.feedforward_layernorm",),
    }

    def constants(self, network: Transformer) -> dict[str, Any]:
        """No biases; without this key its rotary positions would be scaled as Llama 3.1's."""
        base, scaling = network.rotary_base, network.rotary_scaling
        positions = rope.written(base, scaling, network.head_dim)
        return {"attention_bias": False, "rope_parameters": positions}
