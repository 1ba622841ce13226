"""Parameters and floating point operations, counted from the modules that exist.

Every parameter must belong to a module type this file knows; one that does not is an error, not a
silent zero. The count is of useful work: 6 operations for a weight and a token (2 forward, 4
backward), attention at its causal cost, no recomputation. torch's own counter is compared with it
in the tests. Call it before
sharding: ZeRO 3 empties the parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from llm_train.errors import ConfigError
from llm_train.model.network.attention import Attention
from llm_train.model.network.base import LanguageModel
from llm_train.model.network.head import Head
from llm_train.model.network.norm import LayerNorm, RMSNorm

_MATMUL = (nn.Linear, Head)
_NO_MATMUL = (nn.Embedding, LayerNorm, RMSNorm)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a network costs.

    Attributes:
        parameters: distinct parameters; a tied weight counts once, vocabulary padding counts.
        matmul_parameters: weights that multiply every token: linear layers and the head, also where
            its weight is the embedding's; not the embedding lookup, norms or biases.
        attention_width: sum over layers of heads * head_dim, layers * width in the usual case.
    """

    parameters: int
    matmul_parameters: int
    attention_width: int

    def flops_per_token(self, sequence: int, *, causal: bool = True) -> int:
        """Model FLOPs for one token, forward and backward.

        ``6 * matmul_parameters + 6 * layers * d_model * sequence``. Each of the two attention
        products costs 2 * d_model * sequence forward and twice that backward, 12 in all; a causal
        kernel has to do half of it. nanoGPT and PaLM (arXiv:2204.02311, appendix B) count all 12.

        Args:
            sequence: tokens in a training sequence.
            causal: count half of the attention matrix (the default), or all of it.
        """
        return 6 * self.matmul_parameters + (6 if causal else 12) * self.attention_width * sequence


def count(network: LanguageModel) -> Counts:
    """Counts by module type.

    Raises:
        ConfigError: a parameter sits in a module of unknown type.
    """
    matmul, attention_width = 0, 0
    seen: dict[int, int] = {}
    for path, module in network.named_modules():
        if isinstance(module, Attention):
            attention_width += module.heads * module.head_dim
        for name, parameter in module.named_parameters(recurse=False):
            if not isinstance(module, _MATMUL + _NO_MATMUL):
                raise ConfigError(
                    f"{path}.{name} is in a {type(module).__name__}, whose FLOPs are unknown; "
                    "build it from nn.Linear, nn.Embedding and modules of llm_train.model.network"
                )
            if isinstance(module, _MATMUL) and name == "weight":
                matmul += parameter.numel()
            seen[id(parameter)] = parameter.numel()
    total = sum(p.numel() for p in network.parameters())
    assert sum(seen.values()) == total, "the modules' parameters do not add up to the network's"
    return Counts(parameters=total, matmul_parameters=matmul, attention_width=attention_width)
