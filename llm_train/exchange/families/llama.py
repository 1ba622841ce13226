"""Llama: RMSNorm before each half, rotary positions with their scalings, a gated unit."""

from llm_train.exchange.families.base import GATED, PRE_NORM, SIZES, Family


class Llama(Family):
    """``LlamaForCausalLM``."""

    model_type = "llama"
    causal_lm = "LlamaForCausalLM"
    fixed = PRE_NORM
    keys = {**SIZES, "rms_norm_eps": "norm_eps", "attention_bias": "bias", "mlp_bias": "bias"}
    activations = GATED
