"""Gemma 3: Gemma 2 with norms on queries and keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_train.exchange.families.base import GATED, Family
from llm_train.exchange.families.gemma2 import SANDWICH, Gemma2, constants
from llm_train.model.network.transformer import Transformer


class Gemma3(Family):
    """``Gemma3ForCausalLM``, the text part alone."""

    model_type = "gemma3_text"
    causal_lm = "Gemma3ForCausalLM"
    fixed = {**Gemma2.fixed, "qk_norm": True}
    keys = Gemma2.keys
    activations = GATED
    activation_key = "hidden_activation"
    tensors = SANDWICH
    unit_norms = True

    def settings(self, width: int, heads: int) -> Mapping[str, Any]:
        """Embeddings are multiplied by the root of the width."""
        return {**self.fixed, "embedding_scale": math.sqrt(width)}

    def constants(self, network: Transformer) -> dict[str, Any]:
        """As in Gemma 2."""
        return constants(network)
