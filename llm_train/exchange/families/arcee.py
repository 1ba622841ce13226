"""Arcee: Llama with a plain feed-forward part, for squared ReLU."""

from llm_train.exchange.families.base import PRE_NORM, SIZES, Family


class Arcee(Family):
    """``ArceeForCausalLM``."""

    model_type = "arcee"
    causal_lm = "ArceeForCausalLM"
    fixed = PRE_NORM
    keys = {**SIZES, "rms_norm_eps": "norm_eps", "attention_bias": "bias", "mlp_bias": "bias"}
