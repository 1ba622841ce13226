"""Gemma 2 and 3: norms before and after each half, scaled embeddings, a soft cap on the logits."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from llm_train.exchange.families.base import GATED, LLAMA, SIZES, Family
from llm_train.model.network.transformer import Transformer

_LAYER = "model.layers.{}"


class Gemma(Family, ABC):
    """Base of both; layers with a window and caps on scores are not ours."""

    keys = {**SIZES, "rms_norm_eps": "norm_eps", "final_logit_softcapping": "soft_cap"}
    activations = GATED
    activation_key = "hidden_activation"
    tensors = {
        **LLAMA,
        "layers.{}.attention_out_norm": (f"{_LAYER}.post_attention_layernorm",),
        "layers.{}.mlp_norm": (f"{_LAYER}.pre_feedforward_layernorm",),
        "layers.{}.mlp_out_norm": (f"{_LAYER}.post_feedforward_layernorm",),
    }
    unit_norms = True

    @property
    @abstractmethod
    def qk_norm(self) -> bool:
        """Whether queries and keys have norms."""

    def settings(self, width: int, heads: int) -> Mapping[str, Any]:
        """Embeddings are multiplied by the root of the width."""
        return {
            "norm": "rmsnorm",
            "norm_placement": "sandwich",
            "positions": "rotary",
            "qk_norm": self.qk_norm,
            "bias": False,
            "embedding_scale": math.sqrt(width),
        }

    def constants(self, network: Transformer) -> dict[str, Any]:
        """Scores are divided by the root of a head's features, and every layer sees everything."""
        return {
            "head_dim": network.head_dim,
            "query_pre_attn_scalar": network.head_dim,
            "attn_logit_softcapping": None,
            "attention_bias": False,
            "layer_types": ["full_attention"] * network.layers,
            "final_logit_softcapping": network.soft_cap or None,
        }


class Gemma2(Gemma):
    """``Gemma2ForCausalLM``."""

    model_type = "gemma2"
    causal_lm = "Gemma2ForCausalLM"
    qk_norm = False


class Gemma3(Gemma):
    """``Gemma3ForCausalLM``, the text part alone, with norms on queries and keys."""

    model_type = "gemma3_text"
    causal_lm = "Gemma3ForCausalLM"
    qk_norm = True
