"""Nemotron: LayerNorm with biases, rotary positions, and a plain feed-forward part."""

from typing import Any

from llm_train.exchange.families.base import PRE_NORM, SIZES, Family
from llm_train.model.network.transformer import Transformer


class Nemotron(Family):
    """``NemotronForCausalLM``; the rotation of half of a head's features is not one of ours."""

    model_type = "nemotron"
    causal_lm = "NemotronForCausalLM"
    fixed = {**PRE_NORM, "norm": "layernorm", "bias": True}
    keys = {**SIZES, "norm_eps": "norm_eps"}
    unit_norms = True

    def constants(self, network: Transformer) -> dict[str, Any]:
        """Biases everywhere, and all features turn."""
        biases = {"attention_bias": True, "mlp_bias": True}
        return super().constants(network) | biases | {"partial_rotary_factor": 1.0}
