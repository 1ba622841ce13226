"""GPT-2: LayerNorm, a table of positions, biases everywhere, one matrix for queries to values."""

from collections.abc import Mapping
from typing import Any

from llm_train.exchange.families.base import PRE_NORM, Family
from llm_train.model.network.transformer import Transformer

_LAYER = "transformer.h.{}"


class GPT2(Family):
    """``GPT2LMHeadModel``."""

    model_type = "gpt2"
    causal_lm = "GPT2LMHeadModel"
    fixed = {**PRE_NORM, "norm": "layernorm", "positions": "learned", "bias": True}
    keys = {
        "vocab_size": "vocab_size",
        "n_embd": "width",
        "n_layer": "layers",
        "n_head": "heads",
        "n_inner": "hidden",
        "n_positions": "max_sequence",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied",
    }
    activation_key = "activation_function"
    rotary = False
    transposed = ("qkv", "out", "up", "down")
    tensors = {
        "embedding": ("transformer.wte",),
        "positions": ("transformer.wpe",),
        "layers.{}.attention_norm": (f"{_LAYER}.ln_1",),
        "layers.{}.attention.qkv": (f"{_LAYER}.attn.c_attn",),
        "layers.{}.attention.out": (f"{_LAYER}.attn.c_proj",),
        "layers.{}.mlp_norm": (f"{_LAYER}.ln_2",),
        "layers.{}.mlp.up": (f"{_LAYER}.mlp.c_fc",),
        "layers.{}.mlp.down": (f"{_LAYER}.mlp.c_proj",),
        "norm": ("transformer.ln_f",),
        "head": ("lm_head",),
    }

    def settings(self, width: int, heads: int) -> Mapping[str, Any]:
        """No groups of queries."""
        return {**self.fixed, "key_value_heads": heads}

    def constants(self, network: Transformer) -> dict[str, Any]:
        """No scaling by depth."""
        return {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
