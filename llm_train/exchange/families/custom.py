"""Our own code, for networks that no architecture of transformers has; it travels with them."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llm_train.exchange.families.base import GATED, PLAIN, SIZES, Family
from llm_train.model.network.positions import BASE, slopes
from llm_train.model.network.rotary_scaling.base import plain_frequencies
from llm_train.model.network.transformer import Transformer

_OWN = (
    *("norm", "norm_placement", "norms_stream", "norm_eps", "bias"),
    *("positions", "qk_norm", "soft_cap", "embedding_scale"),
)


class Custom(Family):
    """``LLMTrainForCausalLM``: every Transformer, with layouts and names as they are here."""

    model_type = "llm_train"
    causal_lm = "LLMTrainForCausalLM"
    code = "modeling_llm_train"
    fixed = {}
    keys = {**SIZES, **dict(zip(_OWN, _OWN, strict=True))}
    activations = {**PLAIN, **GATED}
    rotary = False

    def constants(self, network: Transformer) -> dict[str, Any]:
        """Where the code is, and numbers that follow from settings."""
        turns = {
            "rotary": lambda: network.rotary_scaling.frequencies(
                network.rotary_base, network.head_dim
            ),
            "sinusoidal": lambda: plain_frequencies(BASE, network.width),
        }
        found = turns.get(network.positions)
        kinds = {"AutoConfig": "LLMTrainConfig", "AutoModelForCausalLM": self.causal_lm}
        deepnorm = network.norm_placement == "deepnorm"
        return {
            "auto_map": {kind: f"{self.code}.{name}" for kind, name in kinds.items()},
            "stream_scale": network.deepnorm_alpha if deepnorm else 1.0,
            "slab": network.slab if network.gated else 0,
            "frequencies": found().tolist() if found else [],
            "rotary_factor": network.rotary_scaling.attention_factor,
            "slopes": slopes(network.heads),
        }

    def theirs(self, network: Transformer, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Without rows that pad."""
        table = name.split(".")[0] in ("embedding", "head")
        return {name: tensor[: network.vocab_size].contiguous() if table else tensor}

    def ours(self, network: Transformer, name: str, read: Callable[[str], Tensor]) -> Tensor:
        """The same."""
        return read(name)
